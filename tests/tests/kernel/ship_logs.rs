//! What is shipped to logs of this host: syslog by datagrams and by TCP, and the journal.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, World};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::audit_store::query;
use crate::daemon::{Dialler, to_site};
use crate::real_programs::has;
use crate::scene::Scene;

type Messages = Arc<Mutex<Vec<String>>>;

/// Somebody who listens and keeps what comes, until it is dropped.
struct Log {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// How long a wait for more is, before it is looked whether it is the end.
const LOOK: Option<Duration> = Some(Duration::from_millis(20));

impl Log {
    fn run(read: impl FnOnce(&AtomicBool) + Send + 'static) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let of_thread = Arc::clone(&ends);
        Self { ends, thread: Some(std::thread::spawn(move || read(&of_thread))) }
    }

    fn datagrams(path: &Path, messages: &Messages) -> Self {
        let _ = std::fs::remove_file(path);
        let (socket, messages) = (UnixDatagram::bind(path).unwrap(), Arc::clone(messages));
        socket.set_read_timeout(LOOK).unwrap();
        Self::run(move |ends| {
            let mut bytes = vec![0; 1 << 16];
            loop {
                match socket.recv(&mut bytes) {
                    Ok(length) => {
                        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                        messages.lock().unwrap().push(text);
                    }
                    // All that had come is read.
                    Err(_) if ends.load(Ordering::Relaxed) => return,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
        })
    }

    fn stream(world: &World, messages: &Messages) -> Self {
        let listener = world.inside(|| TcpListener::bind("127.0.0.1:601")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let messages = Arc::clone(messages);
        Self::run(move |ends| {
            while !ends.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    std::thread::yield_now();
                    continue;
                };
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(LOOK).unwrap();
                let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
                loop {
                    match stream.read(&mut piece) {
                        Ok(0) => break,
                        Ok(length) => bytes.extend_from_slice(&piece[..length]),
                        Err(_) if ends.load(Ordering::Relaxed) => break,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Err(_) => break,
                    }
                    messages.lock().unwrap().extend(whole(&mut bytes));
                }
            }
        })
    }
}

/// Takes out the messages that are there as a whole: a length, a space, and as many bytes.
fn whole(bytes: &mut Vec<u8>) -> Vec<String> {
    let mut found = Vec::new();
    while let Some(space) = bytes.iter().position(|byte| *byte == b' ') {
        let length: usize = std::str::from_utf8(&bytes[..space]).unwrap().parse().unwrap();
        if bytes.len() < space + 1 + length {
            break;
        }
        let message: Vec<u8> = bytes.drain(..space + 1 + length).skip(space + 1).collect();
        found.push(String::from_utf8(message).unwrap());
    }
    found
}

impl Log {
    /// A program of the distribution's that keeps what it is sent; `kept` says all that it has.
    fn program(
        mut child: Child,
        messages: &Messages,
        kept: impl Fn() -> Vec<String> + Send + 'static,
    ) -> Self {
        let messages = Arc::clone(messages);
        Self::run(move |ends| {
            while !ends.load(Ordering::Relaxed) {
                *messages.lock().unwrap() = kept();
                std::thread::yield_now();
            }
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
            child.wait().unwrap();
            *messages.lock().unwrap() = kept();
        })
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Numbers of the events that messages are about, by what stands before them.
fn ids(messages: &Messages, before: &str) -> BTreeSet<u64> {
    let messages = messages.lock().unwrap();
    let id = |text: &String| -> u64 {
        let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("{text}"));
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap();
        rest[..end].parse().unwrap()
    };
    messages.iter().map(id).collect()
}

/// The log and the agent go away in turn, and what is in the store is all there in the end.
fn is_resumed(
    scene: &Scene,
    ship: &str,
    before: &str,
    start: impl Fn(&Messages) -> Log,
) -> Vec<String> {
    let messages = Messages::default();
    let mut log = start(&messages);
    let mut daemon = Daemon::start_configured(&scene.world, "off", ship);
    let policy = daemon.policy("one", &to_site(scene));
    let mut dialler = Dialler::start(daemon.as_nobody(&[]), "one", &policy);
    let shipped = |daemon: &Daemon| {
        let began = Instant::now();
        loop {
            let rows = query(daemon, &[]);
            let stored: BTreeSet<u64> =
                rows.iter().map(|row| row["id"].as_u64().unwrap()).collect();
            if ids(&messages, before).is_superset(&stored) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{stored:?}");
        }
    };
    let mut denied = 0;
    let mut deny = |daemon: &Daemon, dialler: &mut Dialler| {
        assert_eq!(dialler.dial(&ELSEWHERE.to_string()), "EPERM");
        denied += 1;
        let began = Instant::now();
        while query(daemon, &["--verdict", "deny"]).len() < denied {
            assert!(began.elapsed() < Duration::from_secs(60), "{denied} are not stored");
        }
    };
    for _ in 0..2 {
        deny(&daemon, &mut dialler);
        // It says nothing back: what it has not read goes with it.
        shipped(&daemon);
        drop(log);
        deny(&daemon, &mut dialler);
        daemon.end_by(Signal::SIGKILL);
        log = start(&messages);
        daemon.start_again();
    }
    let _ = dialler.end();
    shipped(&daemon);
    drop(log);
    let messages = messages.lock().unwrap();
    messages.clone()
}

fn socket(scene: &Scene) -> PathBuf {
    scene.world.private().join("log.sock")
}

#[test]
fn a_syslog_of_datagrams_has_every_event_when_it_and_the_agent_were_away_in_turn() {
    let scene = Scene::new();
    let path = socket(&scene);
    let ship = format!("ship: {{ syslog: {{ to: \"unix:{}\", host: h1 }} }}\n", path.display());
    let messages = is_resumed(&scene, &ship, " id=\"", |messages| Log::datagrams(&path, messages));
    let denied = messages.iter().find(|text| text.contains("verdict=\"deny\"")).unwrap();
    assert!(denied.starts_with("<108>1 2") && denied.contains(" h1 clawbox "), "{denied}");
    assert!(denied.contains(&format!("ip=\"{ELSEWHERE}\"")), "{denied}");
}

#[test]
fn a_syslog_by_tcp_has_every_event_when_it_and_the_agent_were_away_in_turn() {
    let scene = Scene::new();
    let ship = "ship: { syslog: { to: \"tcp:127.0.0.1:601\" } }\n";
    let messages =
        is_resumed(&scene, ship, " id=\"", |messages| Log::stream(&scene.world, messages));
    assert!(messages.iter().any(|text| text.contains("verdict=\"deny\"")));
}

#[test]
fn the_journal_has_every_event_when_it_and_the_agent_were_away_in_turn() {
    let scene = Scene::new();
    let path = socket(&scene);
    let ship = format!("ship: {{ journald: {{ socket: {} }} }}\n", path.display());
    let messages =
        is_resumed(&scene, &ship, "\nCLAWBOX_ID=", |messages| Log::datagrams(&path, messages));
    let denied = messages.iter().find(|text| text.contains("\nCLAWBOX_VERDICT=deny\n")).unwrap();
    assert!(denied.contains("\nPRIORITY=4\nSYSLOG_IDENTIFIER=clawbox\n"), "{denied}");
}

/// Debian's `rsyslogd`, with what it needs, as its packages have them; in a guest there is none.
fn rsyslog() -> Option<PathBuf> {
    let unpacked = std::env::var_os("CLAWBOX_TESTS_RSYSLOG");
    let directory = unpacked.map_or("/usr/sbin".into(), PathBuf::from);
    let root = directory.ancestors().nth(2)?.to_owned();
    has(&[&directory.join("rsyslogd").to_string_lossy()]).then_some(root)
}

/// Starts it with an input, and has it keep how it has understood each message.
fn start_rsyslog(scene: &Scene, root: &Path, input: &str, messages: &Messages) -> Log {
    let place = scene.world.private();
    let (kept, config) = (place.join("kept"), place.join("rsyslog.conf"));
    let text = format!(
        "global(workDirectory=\"{}\")\nmodule(load=\"imuxsock\" SysSock.Use=\"off\")\n\
         module(load=\"imptcp\")\n{input}\n\
         template(name=\"kept\" type=\"string\" string=\"%syslogfacility-text%.%syslogseverity-text% \
         %hostname% %app-name% %msgid% %structured-data% | %msg%\\n\")\n\
         action(type=\"omfile\" file=\"{}\" template=\"kept\")\n",
        place.display(),
        kept.display()
    );
    std::fs::write(&config, text).unwrap();
    let libraries = root.join("usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
    let mut command = Command::new(root.join("usr/sbin/rsyslogd"));
    command.arg("-n").arg("-f").arg(&config).arg("-i").arg(place.join("rsyslog.pid"));
    command.arg("-M").arg(libraries.join("rsyslog")).env("LD_LIBRARY_PATH", &libraries);
    scene.world.enter(&mut command);
    let child = command.stdin(Stdio::null()).spawn().unwrap();
    Log::program(child, messages, move || {
        let text = std::fs::read_to_string(&kept).unwrap_or_default();
        // The last one may not be whole yet.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(str::to_owned).collect()
    })
}

/// What rsyslog has made of a denial.
fn is_understood(messages: &[String]) {
    let denied = messages.iter().find(|text| text.contains("verdict=\"deny\"")).unwrap();
    assert!(denied.starts_with("audit.warning h1 clawbox connect [clawbox@32473 "), "{denied}");
    assert!(denied.contains(&format!("ip=\"{ELSEWHERE}\"")), "{denied}");
    let (_, line) = denied.split_once(" | ").unwrap();
    assert!(line.contains("deny") && line.contains("unknown-endpoint"), "{denied}");
}

#[test]
fn the_real_rsyslog_keeps_and_understands_every_event_by_datagrams() {
    let Some(root) = rsyslog() else { return };
    let scene = Scene::new();
    let path = socket(&scene);
    let ship = format!("ship: {{ syslog: {{ to: \"unix:{}\", host: h1 }} }}\n", path.display());
    let input = format!(
        "input(type=\"imuxsock\" Socket=\"{}\" UseSpecialParser=\"off\" ParseHostname=\"on\")",
        path.display()
    );
    let start = |messages: &Messages| start_rsyslog(&scene, &root, &input, messages);
    is_understood(&is_resumed(&scene, &ship, " id=\"", start));
}

#[test]
fn the_real_rsyslog_keeps_and_understands_every_event_by_tcp() {
    let Some(root) = rsyslog() else { return };
    let scene = Scene::new();
    let ship = "ship: { syslog: { to: \"tcp:127.0.0.1:601\", host: h1 } }\n";
    let input = "input(type=\"imptcp\" port=\"601\" address=\"127.0.0.1\")";
    let start = |messages: &Messages| start_rsyslog(&scene, &root, input, messages);
    is_understood(&is_resumed(&scene, ship, " id=\"", start));
}

const JOURNALD: &str = "/lib/systemd/systemd-journald";

/// Starts systemd's journal with a directory as its `/run`.
fn start_journal(run: &Path, messages: &Messages) -> Log {
    std::fs::create_dir_all(run.join("systemd")).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "/bin/sh", "-c"]);
    command.arg(format!("mount --bind \"$0\" /run && exec {JOURNALD}")).arg(run);
    let child = command.stdin(Stdio::null()).spawn().unwrap();
    let journal = run.join("log/journal");
    Log::program(child, messages, move || {
        let Some(Ok(machine)) = std::fs::read_dir(&journal).ok().and_then(|mut all| all.next())
        else {
            return Vec::new();
        };
        let mut command = Command::new("journalctl");
        command.args(["--output", "json", "--quiet", "SYSLOG_IDENTIFIER=clawbox", "--directory"]);
        let said = command.arg(machine.path()).output().unwrap();
        String::from_utf8(said.stdout).unwrap().lines().map(str::to_owned).collect()
    })
}

#[test]
fn the_real_journal_keeps_every_event_with_its_fields() {
    // In a guest there is none.
    if !has(&[JOURNALD, "/usr/bin/journalctl", "/etc/machine-id", "/usr/bin/unshare"]) {
        return;
    }
    let scene = Scene::new();
    let run = scene.world.private().join("run");
    let socket = run.join("systemd/journal/socket");
    let ship = format!("ship: {{ journald: {{ socket: {} }} }}\n", socket.display());
    let start = |messages: &Messages| start_journal(&run, messages);
    let messages = is_resumed(&scene, &ship, "\"CLAWBOX_ID\":\"", start);
    let entries: Vec<Value> =
        messages.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let denied = entries.iter().find(|entry| entry["CLAWBOX_VERDICT"] == "deny").unwrap();
    assert_eq!(denied["PRIORITY"], "4", "{denied}");
    assert_eq!(denied["CLAWBOX_IP"], ELSEWHERE.to_string(), "{denied}");
    assert!(denied["MESSAGE"].as_str().unwrap().contains("unknown-endpoint"), "{denied}");
}
