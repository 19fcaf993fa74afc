//! What the daemon tells of itself: to the real Prometheus of the distribution, to people, and not to
//! sandboxes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, NOBODY, SITE, World};
use serde_json::Value;

use crate::attacks::attempt::PYTHON;
use crate::scene::{ECHO, Scene, in_guest};

const METRICS: &str = "127.0.0.1:9464";
const PROMETHEUS: &str = "127.0.0.1:9090";

/// Tries three times what it may not, says so, and stays.
const TRIES: &str = r#"
import socket, sys, errno
for _ in range(3):
    try: socket.create_connection((sys.argv[1], 7), 30)
    except OSError as error: print(errno.errorcode[error.errno], flush=True)
sys.stdin.read()
"#;

/// Reads what is to be had at a Unix socket or at a port.
const READS: &str = r#"
import socket, sys, errno
kind, to = sys.argv[1:]
try:
    if kind == "unix":
        made = socket.socket(socket.AF_UNIX); made.connect(to)
    else:
        made = socket.create_connection(("127.0.0.1", int(to)), 30)
    made.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
    print("read", len(made.recv(4096)))
except OSError as error: print(errno.errorcode[error.errno])
"#;

/// How long Prometheus may take to see something.
const PATIENCE: Duration = Duration::from_secs(60);

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn answer(mut stream: impl Read + Write, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: here\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"), "{head}");
    body.to_owned()
}

fn get(world: &World, at: &str, path: &str) -> String {
    let at: SocketAddr = at.parse().unwrap();
    answer(world.inside(|| TcpStream::connect(at)).unwrap(), path)
}

/// A sandbox that was denied three connections and runs on.
fn denied_three_times(daemon: &Daemon<'_>, policy: &str) -> Killed {
    let mut command = daemon.as_nobody(&["run", "--name", "denied", "--policy", policy, "--"]);
    command.args([PYTHON, "-c", TRIES, &ELSEWHERE.to_string()]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said: Vec<String> = lines.take(3).map(Result::unwrap).collect();
    assert_eq!(said, ["EPERM"; 3]);
    Killed(child)
}

/// The value of a series, as it is written.
fn value<'t>(text: &'t str, series: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))
}

/// A program of the distribution's Prometheus; none in a guest.
fn of_prometheus(name: &str) -> Option<PathBuf> {
    let directory = std::env::var_os("CLAWBOX_TESTS_PROMETHEUS").map(PathBuf::from);
    let found = directory.map(|directory| directory.join(name)).filter(|path| path.exists());
    if found.is_none() {
        println!("skipped: {name} is not here");
    }
    found
}

/// What Prometheus tells next.
fn next_alert(alerts: &TcpListener) -> String {
    loop {
        let (mut stream, _) = alerts.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap() == 0 || line == "\r\n" {
                break;
            }
            if let Some(told) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = told.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        if length > 0 {
            return String::from_utf8(body).unwrap();
        }
    }
}

fn start_prometheus(world: &World, program: &Path, alerts: SocketAddr) -> Killed {
    let directory = world.private().join("prometheus");
    fs::create_dir(&directory).unwrap();
    let rules = directory.join("rules.yml");
    fs::write(
        &rules,
        "groups:\n- name: clawbox\n  rules:\n  - alert: Denied\n    \
         expr: clawbox_decisions_total{class=\"network\",verdict=\"deny\"} == 3 \
         and on() clawbox_sandboxes == 1\n",
    )
    .unwrap();
    let config = directory.join("prometheus.yml");
    fs::write(
        &config,
        format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\n\
             rule_files: [\"{}\"]\n\
             alerting: {{ alertmanagers: [{{ static_configs: [{{ targets: [\"{alerts}\"] }}] }}] }}\n\
             scrape_configs:\n- job_name: clawbox\n  \
             static_configs: [{{ targets: [\"{METRICS}\"] }}]\n",
            rules.display()
        ),
    )
    .unwrap();
    let mut command = Command::new(program);
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", directory.join("data").display()));
    command.arg(format!("--web.listen-address={PROMETHEUS}")).arg("--log.level=warn");
    world.enter(&mut command);
    Killed(command.stdin(Stdio::null()).spawn().unwrap())
}

#[test]
fn the_real_prometheus_counts_what_an_attack_was_denied() {
    let Some(program) = of_prometheus("prometheus") else { return };
    let scene = Scene::new();
    let world = &scene.world;
    let daemon = Daemon::start_configured(world, "off", &format!("metrics: {METRICS}\n"));
    let policy = daemon.policy("one", &scene.allowing(PYTHON, &site()));
    let alerts = world.inside(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    let _prometheus = start_prometheus(world, &program, alerts.local_addr().unwrap());
    let _sandbox = denied_three_times(&daemon, &policy);
    let (tell, told) = mpsc::channel();
    let waiting = alerts.try_clone().unwrap();
    thread::spawn(move || tell.send(next_alert(&waiting)));
    let told = told.recv_timeout(PATIENCE).unwrap_or_else(|error| {
        panic!("{error}: {}", get(world, METRICS, "/metrics"));
    });
    assert!(told.contains("\"alertname\":\"Denied\""), "{told}");
    for (asked, value) in [
        ("clawbox_sandboxes", "1"),
        ("sum(clawbox_decisions_total%7Bverdict=%22deny%22%7D)", "3"),
        (
            "sum(clawbox_sandbox_decisions_total%7Bsandbox=%22denied-1%22,verdict=%22deny%22%7D)",
            "3",
        ),
        ("clawbox_table_entries%7Btable=%22CGROUPS%22%7D%20%3E=%20bool%201", "1"),
        ("count(process_resident_memory_bytes%20%3E%201e6)", "1"),
    ] {
        let text = get(world, PROMETHEUS, &format!("/api/v1/query?query={asked}"));
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["data"]["result"][0]["value"][1], value, "{asked}: {text}");
    }
}

#[test]
fn the_text_is_what_promtool_and_people_expect_and_is_made_once_a_second() {
    let scene = Scene::new();
    let world = &scene.world;
    let daemon = Daemon::start_configured(world, "off", &format!("metrics: {METRICS}\n"));
    let policy = daemon.policy("one", &scene.allowing(PYTHON, &site()));
    let sandbox = denied_three_times(&daemon, &policy);
    let other = daemon.policy("other", &scene.allowing(PYTHON, &elsewhere()));
    let set = daemon.clawbox(&["policy", "set", "denied", &other]).output().unwrap();
    assert!(set.status.success(), "{set:?}");
    let text = get(world, METRICS, "/metrics");
    for (series, is) in [
        ("clawbox_sandboxes", "1"),
        (
            "clawbox_sandbox_decisions_total{sandbox=\"denied-1\",class=\"network\",verdict=\"deny\"}",
            "3",
        ),
        ("clawbox_policy_changes_total{outcome=\"changed\"}", "1"),
        ("clawbox_policy_change_seconds_count", "1"),
        ("clawbox_ring_size_bytes", "3145728"),
        ("clawbox_table_entries{table=\"SUBJECTS\"}", "1"),
        ("clawbox_table_entries_max{table=\"SUBJECTS\"}", "65536"),
    ] {
        assert_eq!(value(&text, series), Some(is), "{series}: {text}");
    }
    // Nobody makes it again for whoever asks too often.
    assert_eq!(get(world, METRICS, "/metrics"), text);
    if let Some(promtool) = of_prometheus("promtool") {
        let mut check = Command::new(promtool);
        check.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut check = check.spawn().unwrap();
        check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let found = check.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&found.stderr).into_owned();
        assert!(found.status.success() && said.is_empty(), "{said}");
    }
    let status = daemon.clawbox(&["status", "--format", "json"]).output().unwrap();
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let rules = status["tables"].as_array().unwrap().iter().find(|table| table["table"] == "RULES");
    assert!(rules.unwrap()["entries"].as_u64().unwrap() >= 1, "{status:#}");
    assert_eq!((&status["events_lost"], &status["metrics"]), (&0.into(), &METRICS.into()));
    // What ran no more has no series of its own; what was decided stays counted.
    drop(sandbox);
    let stopped = daemon.clawbox(&["stop", "denied"]).output().unwrap();
    assert!(stopped.status.success() || daemon.list().is_empty(), "{stopped:?}");
    let (mut ended, begin) = (text, std::time::Instant::now());
    while ended.contains("denied-1") && begin.elapsed().as_secs() < 60 {
        ended = get(world, METRICS, "/metrics");
    }
    let denied = "clawbox_decisions_total{class=\"network\",verdict=\"deny\"}";
    assert_eq!((ended.contains("denied-1"), value(&ended, denied)), (false, Some("3")), "{ended}");
}

#[test]
fn no_sandbox_reads_the_metrics_by_socket_or_by_port_and_no_other_user_by_socket() {
    if in_guest() {
        return;
    }
    let scene = Scene::new();
    let world = &scene.world;
    let socket = world.work().with_file_name("metrics.sock");
    let configured = format!("metrics: unix:{}\n", socket.display());
    let by_socket = Daemon::start_configured(world, "off", &configured);
    let by_port = Daemon::start_configured(world, "off", &format!("metrics: {METRICS}\n"));
    let group = nix::unistd::Group::from_name("clawbox").unwrap();
    let mode = fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, if group.is_some() { 0o660 } else { 0o600 });
    let text = answer(UnixStream::connect(&socket).unwrap(), "/metrics");
    assert_eq!(value(&text, "clawbox_sandboxes"), Some("0"));
    let path = socket.display().to_string();
    let mut outside = Command::new(PYTHON);
    outside.args(["-c", READS, "unix", &path]);
    std::os::unix::process::CommandExt::uid(&mut outside, NOBODY);
    let refused = outside.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&refused.stdout), "EACCES\n", "{refused:?}");
    // Were everybody let in by the file, a sandbox would not be.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let outside = outside.output().unwrap();
    assert!(outside.stdout.starts_with(b"read ") && outside.stdout != b"read 0\n", "{outside:?}");
    let directory = socket.parent().unwrap().display().to_string();
    let open = scene.policy("").replace("read_write: [", &format!("read_write: [{directory}, "));
    for (daemon, kind, to, denied) in [
        (
            &by_socket,
            "unix",
            path.as_str(),
            &["read 0\n", "EPERM\n", "EACCES\n", "ECONNRESET\n", "EPIPE\n"][..],
        ),
        (&by_port, "port", "9464", &["EPERM\n"][..]),
    ] {
        let policy = daemon.policy(kind, &open);
        let mut inside = daemon.as_nobody(&["run", "--policy", &policy, "--", PYTHON, "-c", READS]);
        let inside = inside.args([kind, to]).output().unwrap();
        let said = String::from_utf8_lossy(&inside.stdout).into_owned();
        assert!(denied.contains(&said.as_str()), "{kind}: {inside:?}");
    }
}

fn site() -> String {
    format!("{{ host: {SITE}, port: {ECHO} }}")
}

fn elsewhere() -> String {
    format!("{{ host: {ELSEWHERE}, port: {ECHO} }}")
}
