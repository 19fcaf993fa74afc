//! What the agent ships: all of it, to a fleet's stream each once, whoever dies in between.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, SITE, World};
use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

use crate::audit_store::query;
use crate::daemon::{Dialler, output, to_site};
use crate::real_programs::has;
use crate::scene::Scene;

/// Debian's `nats-server`; in a guest there is none.
fn server() -> Option<PathBuf> {
    let directory = std::env::var_os("CLAWBOX_TESTS_NATS").map(PathBuf::from);
    let installed = Path::new("/usr/sbin/nats-server");
    let found = directory.map_or(installed.to_owned(), |directory| directory.join("nats-server"));
    has(&[&found.to_string_lossy()]).then_some(found)
}

const SERVER: &str = "nats://127.0.0.1:4222";

/// A server with JetStream, in the world's network.
struct Stream<'w> {
    program: PathBuf,
    world: &'w World,
    directory: PathBuf,
    child: Option<Child>,
}

impl<'w> Stream<'w> {
    fn start(program: PathBuf, world: &'w World, directory: &Path) -> Self {
        let mut server = Self { program, world, directory: directory.to_owned(), child: None };
        server.start_again();
        server
    }

    fn start_again(&mut self) {
        let mut command = Command::new(&self.program);
        command.args(["-a", "127.0.0.1", "-p", "4222", "-js", "-sd"]).arg(&self.directory);
        self.world.enter(&mut command);
        let null = [Stdio::null(), Stdio::null(), Stdio::null()];
        let [stdin, stdout, stderr] = null;
        self.child = Some(command.stdin(stdin).stdout(stdout).stderr(stderr).spawn().unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// So many events of the stream, from its oldest on.
fn shipped(daemon: &Daemon, count: usize) -> Vec<Value> {
    let count = count.to_string();
    let words = ["fleet", "tail", "--server", SERVER, "--all", "--format", "json", "--limit"];
    let words = [&words[..], &[count.as_str()]].concat();
    let began = Instant::now();
    loop {
        let (status, stdout, stderr) = output(daemon.clawbox(&words));
        if status == 0 {
            return stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        }
        // A server that has just been started does not answer yet.
        assert!(began.elapsed() < Duration::from_secs(60), "{stderr}");
    }
}

fn stored(daemon: &Daemon) -> Vec<u64> {
    let config = daemon.place("agent.yaml").display().to_string();
    let words = ["audit", "query", "--format", "json", "--config", &config];
    let (status, stdout, stderr) = output(daemon.clawbox(&words));
    assert_eq!(status, 0, "{stderr}");
    let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_u64().unwrap();
    stdout.lines().map(id).collect()
}

#[test]
fn a_stream_has_every_event_once_when_the_server_and_the_agent_are_killed_in_turn() {
    let Some(program) = server() else { return };
    let scene = Scene::new();
    let mut server = Stream::start(program, &scene.world, &scene.world.private().join("nats"));
    let ship = format!("ship: {{ nats: {{ servers: [\"{SERVER}\"], host: web1 }} }}\n");
    let mut daemon = Daemon::start_configured(&scene.world, "off", &ship);
    let policy = daemon.policy("one", &to_site(&scene));
    let mut dialler = Dialler::start(daemon.as_nobody(&[]), "one", &policy);
    let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
    for round in 0..3 {
        for _ in 0..20 {
            assert_eq!([dialler.dial(&elsewhere), dialler.dial(&site)], ["EPERM", "ok"]);
        }
        // Something of it has come, and more is on its way.
        let seen = shipped(&daemon, 10 + 20 * round);
        assert!(seen.iter().all(|event| event["host_name"] == "web1"), "{seen:#?}");
        server.kill();
        assert_eq!(dialler.dial(&elsewhere), "EPERM");
        daemon.kill();
        server.start_again();
        assert_eq!(dialler.dial(&elsewhere), "EPERM");
        daemon.start_again();
    }
    // How it has ended no restarted daemon can tell: it is another one's child.
    let _ = dialler.end();
    daemon.end_by(Signal::SIGTERM);
    let ids = stored(&daemon);
    daemon.start_again();
    let events = shipped(&daemon, ids.len());
    let came: Vec<u64> = events.iter().map(|event| event["id"].as_u64().unwrap()).collect();
    assert_eq!(came, ids, "each once, in their order");
    let denied = |event: &&Value| event["verdict"] == "deny" && event["action"] == "connect";
    let lost: u64 = events
        .iter()
        .filter(|event| event["reason"] == "killed")
        .map(|event| event["count"].as_u64().unwrap())
        .sum();
    let found = events.iter().filter(denied).count() as u64;
    assert!(found <= 66 && found + lost >= 66, "{found} and {lost} of 66 denials");
}

type Records = Arc<Mutex<Vec<LogRecord>>>;

/// A collector as OTLP wants one to be.
struct Collector {
    records: Records,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Logs(Records);

#[tonic::async_trait]
impl LogsService for Logs {
    async fn export(
        &self,
        request: tonic::Request<ExportLogsServiceRequest>,
    ) -> Result<tonic::Response<ExportLogsServiceResponse>, tonic::Status> {
        for of_host in request.into_inner().resource_logs {
            let attributes = of_host.resource.unwrap().attributes;
            assert!(attributes.iter().any(|pair| pair.key == "host.name"), "{attributes:?}");
            let mut all = self.0.lock().unwrap();
            all.extend(of_host.scope_logs.into_iter().flat_map(|scope| scope.log_records));
        }
        Ok(tonic::Response::new(ExportLogsServiceResponse::default()))
    }
}

impl Collector {
    /// In the world's network.
    fn start(world: &World, records: &Records) -> Self {
        let listener = world.inside(|| TcpListener::bind("127.0.0.1:4317")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let logs = Logs(Arc::clone(records));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let server = Server::builder().add_service(LogsServiceServer::new(logs));
                let served = server.serve_with_incoming(TcpListenerStream::new(listener));
                // Its end takes the connections with it.
                tokio::select! {
                    served = served => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self { records: Arc::clone(records), stop: Some(stop), thread: Some(thread) }
    }

    /// Numbers of the events that have come so far.
    fn ids(&self) -> BTreeSet<u64> {
        let records = self.records.lock().unwrap();
        let id = |record: &LogRecord| {
            let pair = record.attributes.iter().find(|pair| pair.key == "clawbox.id")?;
            match pair.value.as_ref()?.value.as_ref()? {
                Any::IntValue(id) => u64::try_from(*id).ok(),
                _ => None,
            }
        };
        records.iter().map(|record| id(record).unwrap()).collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

#[test]
fn a_collector_has_every_event_when_it_and_the_agent_were_away_in_turn() {
    let scene = Scene::new();
    let records = Records::default();
    let mut collector = Collector::start(&scene.world, &records);
    let ship = "ship: { otlp: { endpoint: \"http://127.0.0.1:4317\" } }\n";
    let mut daemon = Daemon::start_configured(&scene.world, "off", ship);
    let policy = daemon.policy("one", &to_site(&scene));
    let mut dialler = Dialler::start(daemon.as_nobody(&[]), "one", &policy);
    for round in 1..=2 {
        assert_eq!(dialler.dial(&ELSEWHERE.to_string()), "EPERM");
        // What is not on the disk when the agent is killed is counted, and not shipped.
        let denied = || query(&daemon, &["--sandbox", "one", "--verdict", "deny"]).len();
        let began = Instant::now();
        while denied() < round {
            assert!(began.elapsed() < Duration::from_secs(60), "the denial is not stored");
        }
        drop(collector);
        assert_eq!(dialler.dial(&ELSEWHERE.to_string()), "EPERM");
        daemon.kill();
        collector = Collector::start(&scene.world, &records);
        daemon.start_again();
    }
    let _ = dialler.end();
    daemon.end_by(Signal::SIGTERM);
    let ids: BTreeSet<u64> = stored(&daemon).into_iter().collect();
    daemon.start_again();
    let began = Instant::now();
    while !collector.ids().is_superset(&ids) {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?} of {ids:?}", collector.ids());
    }
    let records = records.lock().unwrap();
    let denied = |record: &&LogRecord| record.severity_text == "deny";
    let said = records.iter().find(denied).unwrap();
    assert_eq!((said.severity_number, said.event_name.as_str()), (13, "clawbox.connect"));
    let Some(Any::StringValue(line)) = &said.body.as_ref().unwrap().value else {
        panic!("{said:?}")
    };
    assert!(line.contains(&ELSEWHERE.to_string()) && said.time_unix_nano > 0, "{said:?}");
}
