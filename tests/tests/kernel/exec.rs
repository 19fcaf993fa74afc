//! A further command in a sandbox that runs has what the sandbox has, and no more.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use clawbox_tests::clawbox::cgroup_root;
use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, NOBODY, SITE};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::attacks::attempt::PYTHON;
use crate::daemon::{Dialler, output, to_site};
use crate::scene::Scene;

/// Says what it is and what it may, as one line of JSON, and waits for the end of its input.
const FACTS: &str = r#"
import errno, json, os, socket, sys
sys.stderr = sys.stdout
def tried(what):
    try:
        what()
        return "ok"
    except OSError as error:
        return errno.errorcode[error.errno]
def dial(host):
    made = socket.create_connection((host, 7), 30)
    made.send(b"x\n"); made.recv(1)
status = dict(line.rstrip("\n").split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
print(json.dumps({
    "site": tried(lambda: dial(sys.argv[1])), "elsewhere": tried(lambda: dial(sys.argv[2])),
    "outside": tried(lambda: open("/dev/zero")), "root": tried(lambda: os.listdir("/")),
    "tmp": tried(lambda: open("/tmp/mark", "a").close()), "marks": os.listdir("/tmp"),
    "work": tried(lambda: open("mark", "w").close()), "directory": os.getcwd(),
    "name": tried(lambda: socket.sethostname("other")),
    "memory": tried(lambda: open("/proc/1/mem")), "files": tried(lambda: os.listdir("/proc/1/fd")),
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "user": os.getresuid() + os.getresgid(), "groups": os.getgroups(), "variable": os.environ.get("GIVEN"),
    "rights": [status[name] for name in ("CapPrm", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")],
}), flush=True)
sys.stdin.read()
sys.exit(7)
"#;

/// What a further command says of itself; looked at from outside while it runs.
fn facts(daemon: &Daemon, while_it_runs: impl FnOnce()) -> Value {
    let (site, elsewhere) = (SITE.to_string(), ELSEWHERE.to_string());
    let mut command = daemon.as_nobody(&[]);
    command.args(["exec", "one", "--", PYTHON, "-c", FACTS, &site, &elsewhere]);
    command.env("GIVEN", "by who asks").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines
        .next()
        .unwrap_or_else(|| panic!("it said nothing: {:#?}", daemon.trail("one-1")))
        .unwrap();
    assert!(line.starts_with('{'), "{line}{:?}", lines.map_while(Result::ok).collect::<Vec<_>>());
    while_it_runs();
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(7), "{line}");
    serde_json::from_str(&line).unwrap()
}

fn records<'t>(trail: &'t [Value], action: &str) -> Vec<&'t Value> {
    trail.iter().filter(|record| record["action"] == action).collect()
}

/// Which namespaces a process is in.
fn namespaces(process: u64) -> Vec<String> {
    ["mnt", "pid", "ipc", "uts", "cgroup", "net", "user"]
        .map(|kind| std::fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap())
        .map(|link| link.display().to_string())
        .to_vec()
}

fn assert_confined(facts: &Value) {
    let told = |names: &[&str]| -> Vec<String> {
        names.iter().map(|name| facts[*name].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(told(&["site", "elsewhere"]), ["ok", "EPERM"], "{facts:#}");
    let refused = told(&["outside", "root", "name", "memory", "files", "work"]);
    assert!(refused.iter().all(|errno| errno == "EACCES" || errno == "EPERM"), "{facts:#}");
    assert_eq!(told(&["tmp", "variable", "directory"]), ["ok", "by who asks", "/usr"]);
    assert_eq!(facts["user"], serde_json::json!(vec![NOBODY; 6]), "{facts:#}");
    assert_eq!(facts["groups"], serde_json::json!([]), "{facts:#}");
    let none = "0000000000000000";
    assert_eq!(facts["rights"], serde_json::json!([none, none, none, "1", "2"]), "{facts:#}");
    // Process 1, its command and this one.
    let processes = facts["processes"].as_array().unwrap();
    assert!(processes.len() == 3 && processes[..2] == [1, 2], "{facts:#}");
}

#[test]
fn a_further_command_has_the_sandboxs_policy_user_processes_and_backstops_after_a_restart_too() {
    let scene = Scene::new();
    let lsm = if scene.has_lsm() { "require" } else { "off" };
    let mut daemon = Daemon::start_with(&scene.world, lsm);
    // Nothing of the host's `/tmp`, so that it has one of its own.
    let policy = to_site(&scene).replace(&scene.world.bin().display().to_string(), "/usr/share");
    let policy = daemon.policy("one", &policy.replace("include_workdir: true", ""));
    let mut command = daemon.as_nobody(&[]);
    command.current_dir("/usr");
    let dialler = Dialler::start(command, "one", &policy);
    for round in 1..=2 {
        let found = facts(&daemon, || {
            let trail = daemon.trail("one-1");
            let mut told =
                records(&trail, "exec").into_iter().filter(|told| told["class"] == "sandbox");
            let told = told.next_back().unwrap();
            assert_eq!(told["object"]["asked_by"], NOBODY, "{told:#}");
            assert_eq!(told["object"]["command"][0], PYTHON, "{told:#}");
            let process = told["object"]["process"].as_u64().unwrap();
            assert!(std::path::Path::new("/proc").join(process.to_string()).exists(), "{trail:#?}");
            let first = daemon.list()[0]["pid"].as_u64().unwrap();
            assert_eq!(namespaces(process), namespaces(first));
            let cgroup = cgroup_root().join("clawbox").join(daemon.cgroup("one-1"));
            let inside = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
            assert!(inside.lines().any(|line| line == process.to_string()), "{inside}");
        });
        assert_confined(&found);
        // A `/tmp` of the sandbox's own, in which the first round has left something.
        assert_eq!(found["marks"], serde_json::json!(["mark"]), "{found:#}");
        let is_denied = |record: &&Value| {
            record["verdict"] == "deny" && record["object"]["ip"] == ELSEWHERE.to_string()
        };
        let trail =
            daemon.trail_once("one-1", |trail| trail.iter().filter(is_denied).count() >= round);
        let denied: Vec<&Value> = trail.iter().filter(is_denied).collect();
        assert_eq!(denied.len(), round, "{trail:#?}");
        let program = std::fs::canonicalize(PYTHON).unwrap().display().to_string();
        assert!(denied.iter().all(|record| record["subject"]["exe"] == program.as_str()));
        // The self-test of its process is nobody's denial.
        assert!(trail.iter().all(|record| record["reason"] != "no-identity"), "{trail:#?}");
        if round == 1 {
            daemon.end_by(Signal::SIGKILL);
            daemon.start_again();
        }
    }
    // Root may, others do not even see it.
    assert_eq!(output(daemon.clawbox(&["exec", "one", "--", "/bin/sh", "-c", "exit 3"])).0, 3);
    let (status, _, stderr) = output(daemon.as_user(4711, &["exec", "one", "--", "/bin/true"]));
    assert!(status == 125 && stderr.contains("no sandbox `one` is running here"), "{stderr}");
    assert_eq!(dialler.end(), 125);
}

#[test]
fn a_further_command_ends_as_it_is_told_to_and_with_its_sandbox_at_the_latest() {
    let scene = Scene::new();
    let daemon = Daemon::start(&scene.world);
    let policy = daemon.policy("one", &to_site(&scene));
    let dialler = Dialler::start(daemon.as_nobody(&[]), "one", &policy);
    for (command, status, says) in [
        (&["/no/such/program"][..], 127, "no such command"),
        (&["no-such-program"], 127, "no such command"),
        (&["/etc/passwd"], 126, "cannot execute"),
        (&["/bin/sh", "-c", "exit 5"], 5, ""),
        (&["sh", "-c", "kill -9 $$"], 137, ""),
    ] {
        let mut words = vec!["exec", "one", "--"];
        words.extend(command);
        let (found, _, stderr) = output(daemon.as_nobody(&words));
        assert!(found == status && stderr.contains(says), "{command:?}: {found} {stderr}");
    }
    let closed = scene.world.private().display().to_string();
    let words = ["exec", "one", "--workdir", &closed, "--", "/bin/true"];
    let (status, _, stderr) = output(daemon.as_nobody(&words));
    assert!(status == 125 && stderr.contains("enter the directory"), "{stderr}");
    let begun = || {
        let mut command = daemon.as_nobody(&["exec", "one", "--", "/bin/sh", "-c"]);
        command.args(["trap 'exit 9' TERM; echo ready; while :; do sleep 0.2; done"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        child
    };
    let mut told = begun();
    kill(Pid::from_raw(told.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(told.wait().unwrap().code(), Some(9));
    let mut ended = begun();
    assert_eq!(dialler.end(), 0);
    assert_eq!(ended.wait().unwrap().code(), Some(137));
    let trail = daemon.trail("one-1");
    assert!(trail.iter().all(|record| record["verdict"] != "deny"), "{trail:#?}");
    let (status, _, stderr) = output(daemon.as_nobody(&["exec", "one", "--", "/bin/true"]));
    assert!(status == 125 && stderr.contains("no sandbox"), "{stderr}");
}
