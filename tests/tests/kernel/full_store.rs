//! An audit store without room: what `audit.on_full` says is done, and nothing of it untold.

use std::time::{Duration, Instant};

use clawbox_tests::daemon::Daemon;
use clawbox_tests::disk::Disk;
use clawbox_tests::network::{ELSEWHERE, SITE};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::attacks::attempt::PYTHON;
use crate::audit_store::{connects, query, verified};
use crate::daemon::{DIALLER, Dialler, output, to_site};
use crate::scene::Scene;

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(120), "not within two minutes: {what}");
    }
}

/// The exit status and what is said of the store.
fn status(daemon: &Daemon) -> (i32, Value) {
    let (code, stdout, stderr) = output(daemon.clawbox(&["status", "--format", "json"]));
    let said: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout}{stderr}"));
    (code, said["audit_store"].clone())
}

/// Who dials and counts what came of it.
struct Counting {
    dialler: Dialler,
    allowed: u64,
    denied: u64,
}

impl Counting {
    fn dial(&mut self, to: &str) -> bool {
        let answer = self.dialler.dial(to);
        let is_allowed = answer == "ok";
        assert!(is_allowed || answer == "EPERM", "{answer}");
        if is_allowed {
            self.allowed += 1
        } else {
            self.denied += 1
        }
        is_allowed
    }
}

#[test]
fn nothing_is_allowed_while_nothing_can_be_recorded_and_all_of_it_again_when_there_is_room() {
    let scene = Scene::new();
    let audit = "audit: { on_full: stop-allows }\n";
    let mut daemon = Daemon::at_rest(&scene.world, "off", audit);
    let disk = Disk::mount(daemon.place("state/audit"), 2 << 20);
    daemon.start_again();
    let policy = daemon.policy("one", &to_site(&scene));
    let mut command = daemon.as_nobody(&["run", "--name", "one", "--policy", &policy]);
    command.args(["--audit-level", "all", "--", PYTHON, "-c", DIALLER, DIALLER]);
    let mut one = Counting { dialler: Dialler::of(command), allowed: 0, denied: 0 };
    let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
    assert_eq!([one.dial(&site), one.dial(&elsewhere)], [true, false]);
    until("what was allowed is stored", || connects(&daemon)[0] == one.allowed);
    assert_eq!(
        (status(&daemon).0, status(&daemon).1["allows_stopped"].as_bool()),
        (0, Some(false))
    );

    disk.fill();
    until("a full disk stops what is allowed", || !one.dial(&site));
    let (code, said) = status(&daemon);
    assert!(code == 1 && said["allows_stopped"] == true && said["stops"] == 1, "{said}");
    assert!(said["failing"].as_str().unwrap().contains("No space"), "{said}");
    let (code, _, stderr) = output(daemon.as_nobody(&["run", "--policy", &policy, "--", "true"]));
    assert!(code == 125 && stderr.contains("until it can be recorded"), "{code} {stderr}");
    until("the trail says why", || {
        daemon.trail("one-1").iter().any(|record| record["reason"] == "unrecorded")
    });

    // A change of the policy lets nobody through, nor does a daemon that is killed or comes again.
    let (code, stdout, _) = output(daemon.clawbox(&["policy", "set", "one", &policy]));
    assert_eq!(code, 0, "{stdout}");
    assert!(!one.dial(&site));
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        daemon.end_by(signal);
        assert!(!one.dial(&site));
        daemon.start_again();
        assert!(!one.dial(&site));
        assert_eq!(status(&daemon).1["allows_stopped"], true);
    }

    disk.empty();
    until("room lets go on what is allowed", || one.dial(&site));
    assert!(!one.dial(&elsewhere));
    until("it is said that all is well", || status(&daemon).0 == 0);
    assert_eq!(status(&daemon).1["allows_stopped"], false);
    // What is denied then is denied where the socket is made.
    let denials = |daemon: &Daemon| -> u64 {
        let counted = query(daemon, &["--verdict", "deny", "--count-by", "verdict"]);
        let gaps = query(daemon, &["--class", "gap"]);
        let lost = gaps.iter().filter(|gap| gap["detail"]["verdict"] == "deny");
        counted
            .iter()
            .chain(lost)
            .map(|row| row.get("events").unwrap_or(&row["count"]).as_u64().unwrap())
            .sum()
    };
    let made = [one.allowed, one.denied];
    let (mut found, began) = ([0; 2], Instant::now());
    while found != made {
        let [rows, lost, ..] = connects(&daemon);
        found = [rows + lost, denials(&daemon)];
        assert!(began.elapsed() < Duration::from_secs(30), "{found:?} of {made:?}");
    }
    let told = query(&daemon, &["--action", "alarm"]);
    assert!(told.iter().any(|row| row["reason"] == "allows-resumed"), "{told:#?}");
    assert_eq!(verified(&daemon)["unsigned"], 0);
    // How it has ended no restarted daemon can tell.
    let _ = one.dialler.end();
}

/// Does with files what it is told, a word and a path a line, and says what came of it. One is open from
/// the beginning.
const USER: &str = r#"
import errno, os, sys
held = os.open(sys.argv[1], os.O_RDONLY)
own = os.open("own-open", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def kept(path): return os.pread(held, 1, 0)
def append(path): return os.write(own, b"x")
def read(path): return os.close(os.open(path, os.O_RDONLY))
def write(path): return os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
def make(path): os.mkdir(path); os.rmdir(path)
def move(path): os.rename(path, path + ".moved"); os.rename(path + ".moved", path)
def start(path): return os.waitpid(os.posix_spawn(path, [path], {}), 0)
print("ready", flush=True)
for line in sys.stdin:
    what, path = line.split()
    try:
        globals()[what](path)
        print("ok", flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
"#;

#[test]
fn no_file_is_opened_made_or_started_while_nothing_can_be_recorded() {
    let scene = Scene::new();
    if !scene.has_lsm() {
        // Landlock alone holds files, and cannot be told anything later.
        return;
    }
    let audit = "audit: { on_full: stop-allows }\n";
    let mut daemon = Daemon::at_rest(&scene.world, "require", audit);
    let disk = Disk::mount(daemon.place("state/audit"), 2 << 20);
    daemon.start_again();
    let policy = daemon.policy("one", &scene.policy(""));
    let own = scene.world.work().display().to_string();
    let mut command = daemon.as_nobody(&["run", "--name", "one", "--policy", &policy]);
    command.args(["--workdir", &own, "--", PYTHON, "-c", USER, "/etc/passwd"]);
    let mut one = Dialler::of(command);
    let uses = |one: &mut Dialler| -> Vec<String> {
        let words = ["read /etc/passwd", "write own", "make made", "move own", "start /bin/true"];
        words.map(|word| one.dial(word)).into()
    };
    let all = |answer: &str| vec![answer.to_owned(); 5];
    assert_eq!(uses(&mut one), all("ok"));
    disk.fill();
    // Only what has to be stored finds the disk full: a denial by the policy, which all users may read.
    until("a full disk stops what is allowed", || {
        assert_ne!(one.dial("read /var/lib"), "ok");
        status(&daemon).1["allows_stopped"] == true
    });
    let refused = uses(&mut one);
    assert!(
        refused.iter().all(|answer| ["EPERM", "EACCES"].contains(&answer.as_str())),
        "{refused:?}"
    );
    // What was open before is used on, which is no new act: it says its answers that way too.
    let kept = |one: &mut Dialler| [one.dial("kept /etc/passwd"), one.dial("append own-open")];
    assert_eq!(kept(&mut one), ["ok", "ok"]);
    // Nor is anything new let through while no agent runs.
    daemon.end_by(Signal::SIGKILL);
    assert_eq!((uses(&mut one), kept(&mut one)), (refused.clone(), ["ok", "ok"].map(Into::into)));
    // The next agent finds what is open judged: its policy goes on for that, and for nothing else.
    daemon.start_again();
    assert_eq!(status(&daemon).1["allows_stopped"], true);
    assert_eq!((uses(&mut one), kept(&mut one)), (refused.clone(), ["ok", "ok"].map(Into::into)));
    // And another policy, which closes what is open to be written, closes it now.
    let closed = scene.policy("").replace("include_workdir: true", "include_workdir: false");
    let closed = daemon.policy("closed", &closed.replace("/proc, ", &format!("/proc, {own}, ")));
    let (code, stdout, stderr) = output(daemon.clawbox(&["policy", "set", "one", &closed]));
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert_eq!(uses(&mut one), refused);
    assert_eq!(kept(&mut one), ["ok", "EACCES"]);
    let (code, stdout, stderr) = output(daemon.clawbox(&["policy", "set", "one", &policy]));
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert_eq!((uses(&mut one), kept(&mut one)), (refused.clone(), ["ok", "ok"].map(Into::into)));
    disk.empty();
    until("room lets go on what is allowed", || status(&daemon).0 == 0);
    let why = query(&daemon, &["--verdict", "deny", "--reason", "unrecorded", "--class", "file"]);
    assert!(why.iter().any(|row| row["path"] == "/etc/passwd"), "{why:#?}");
    verified(&daemon);
    // How it has ended no restarted daemon can tell.
    let _ = one.end();
}

/// Connects to so many places that no rule names, no two alike.
const SCATTERS: &str = r#"
import random, socket, sys
print("ready", flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        low = [str(random.randrange(256)) for _ in range(3)]
        try: made.connect((".".join(["10"] + low), random.randrange(1024, 65536)))
        except PermissionError: pass
        made.close()
    print("done", flush=True)
"#;

#[test]
fn the_oldest_records_go_where_there_is_no_room_and_it_is_said_which_and_how_many() {
    let scene = Scene::new();
    let audit = "audit: { segment: 64K, quota: 256K, on_full: drop-oldest }\n";
    let mut daemon = Daemon::at_rest(&scene.world, "off", audit);
    let disk = Disk::mount(daemon.place("state/audit"), 2 << 20);
    daemon.start_again();
    let policy = daemon.policy("one", &to_site(&scene));
    let mut command = daemon.as_nobody(&["run", "--name", "one", "--policy", &policy]);
    command.args(["--", PYTHON, "-c", SCATTERS]);
    let mut one = Dialler::of(command);
    let removed = |daemon: &Daemon| status(daemon).1["removed_events"].as_u64().unwrap();
    // By the quota, and by the disk.
    for round in 0..2 {
        let before = removed(&daemon);
        if round == 1 {
            disk.fill();
        }
        until("the oldest are removed", || {
            assert_eq!(one.dial("5000"), "done");
            removed(&daemon) > before
        });
    }
    let mut two = Dialler::start(daemon.as_nobody(&[]), "two", &policy);
    assert_eq!(two.dial(&SITE.to_string()), "ok");
    assert_eq!((one.end(), two.end()), (0, 0));
    disk.empty();
    until("all that waits is stored", || status(&daemon).0 == 0);
    let told = removed(&daemon);
    daemon.end_by(Signal::SIGTERM);
    // The end of a segment may have been one too many once more, which the next daemon's status tells.
    let lines = std::fs::read_to_string(daemon.place("state/audit/heads.jsonl")).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let gone: u64 = lines
        .filter(|line| line["what"] == "made-room")
        .map(|line| line["events"].as_u64().unwrap())
        .sum();
    assert!(gone >= told, "{gone} {told}");
    // What is there begins behind what was removed.
    let rows = query(&daemon, &["--action", "store"]);
    let last = rows.iter().rfind(|row| row["reason"] == "made-room").unwrap();
    let why = last["detail"]["why"].as_str().unwrap();
    assert!(last["detail"]["part"].as_str().unwrap().ends_with(".arrows"), "{last}");
    assert!(last["count"].as_u64().unwrap() > 0, "{last}");
    let end = why.split_once(" were removed").unwrap().0.rsplit_once(" to ").unwrap().1;
    assert!((told - 1..gone).contains(&end.parse().unwrap()), "{told} {gone} {last}");
    // Those of one batch are told by their time, and numbered as they are stored: some of them come first.
    let rows = query(&daemon, &["--limit", "20000"]);
    let first = rows.iter().filter_map(|row| row["id"].as_u64()).min();
    assert_eq!(first, Some(gone));
    let found = verified(&daemon);
    assert!(found["removed"].as_u64().unwrap() > 1, "{found}");
}
