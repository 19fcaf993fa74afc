//! The daemon killed, and policies swapped, while a sandbox does its worst: no connection is let through
//! that no policy allows, and none fails that every policy allows. How often is for the environment to say:
//! `CLAWBOX_TESTS_KILLS` and `CLAWBOX_TESTS_SWAPS`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{ELSEWHERE, PRIVATE, SITE};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::attacks::attempt::PYTHON;
use crate::scene::{ECHO, Scene};

/// Connects to each address without a pause until its input ends, and then says what came of it.
const HAMMER: &str = r#"
import collections, errno, json, select, socket, struct, sys
seen = {address: collections.Counter() for address in sys.argv[1:]}
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for address, counts in seen.items():
        made = socket.socket()
        made.settimeout(60)
        # Closed by a reset, or its port would be in use for a minute more, and there are only so many.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        try:
            made.connect((address, 7))
            counts["ok"] += 1
        except OSError as error: counts[errno.errorcode.get(error.errno, str(error))] += 1
        made.close()
print(json.dumps(seen), flush=True)
"#;

pub(super) struct Hammer {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Hammer {
    pub(super) fn start(daemon: &Daemon, policy: &str, addresses: &[String]) -> Self {
        let mut command = daemon.as_nobody(&["run", "--name", "hammer", "--policy", policy, "--"]);
        command.args([PYTHON, "-c", HAMMER]).args(addresses);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut hammer = Self { child, lines };
        assert_eq!(hammer.line(), "ready");
        hammer
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Ends it and gives the outcomes by address.
    pub(super) fn end(mut self) -> Value {
        drop(self.child.stdin.take());
        let seen = serde_json::from_str(&self.line()).unwrap();
        self.child.wait().unwrap();
        seen
    }
}

/// Less often on an emulated machine, which takes seconds for what takes milliseconds.
pub(super) fn times(variable: &str, unless_said: u32) -> u32 {
    let said = std::env::var(variable).ok().and_then(|text| text.parse().ok());
    let is_emulated = std::env::var_os("CLAWBOX_TESTS_LSM").is_some();
    said.unwrap_or(if is_emulated { unless_said.div_ceil(3) } else { unless_said })
}

/// The outcomes of one address, all of which must be of these.
#[track_caller]
pub(super) fn only(seen: &Value, address: &str, outcomes: &[&str]) -> u64 {
    let counts = seen[address].as_object().unwrap();
    assert!(counts.keys().all(|outcome| outcomes.contains(&outcome.as_str())), "{address}: {seen}");
    counts.values().filter_map(Value::as_u64).sum()
}

#[test]
fn a_daemon_that_is_killed_again_and_again_lets_nothing_through_and_breaks_nothing() {
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene.world);
    let text = scene.allowing(PYTHON, &format!("{{ host: {SITE}, port: {ECHO} }}"));
    let policy = daemon.policy("hammer", &text);
    let [site, elsewhere] = [SITE, ELSEWHERE].map(|address| address.to_string());
    let hammer = Hammer::start(&daemon, &policy, &[site.clone(), elsewhere.clone()]);
    for _ in 0..times("CLAWBOX_TESTS_KILLS", 5) {
        daemon.end_by(Signal::SIGKILL);
        daemon.start_again();
    }
    let seen = hammer.end();
    assert!(only(&seen, &site, &["ok"]) > 10, "{seen}");
    assert!(only(&seen, &elsewhere, &["EPERM"]) > 10, "{seen}");
    assert!(!scene.world.arrived().iter().any(|packet| packet.to == ELSEWHERE));
}

#[test]
fn policies_swapped_under_load_decide_as_one_or_the_other_and_never_as_neither() {
    let scene = Scene::new();
    let daemon = Daemon::start(&scene.world);
    let to = |address: &str| {
        let always = format!("{{ host: {SITE}, port: {ECHO} }}");
        scene.allowing(PYTHON, &format!("{always}, {{ host: {address}, port: {ECHO} }}"))
    };
    let [site, elsewhere, never] = [SITE, ELSEWHERE, PRIVATE].map(|address| address.to_string());
    let policies =
        [daemon.policy("one", &to(&elsewhere)), daemon.policy("other", &to("192.0.2.1"))];
    let addresses = [site.clone(), elsewhere.clone(), never.clone()];
    let hammer = Hammer::start(&daemon, &policies[0], &addresses);
    for swap in 0..times("CLAWBOX_TESTS_SWAPS", 60) {
        let policy = &policies[(swap as usize + 1) % 2];
        let output = daemon.as_nobody(&["policy", "set", "hammer", policy]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let seen = hammer.end();
    assert!(only(&seen, &site, &["ok"]) > 10, "{seen}");
    assert!(only(&seen, &never, &["EPERM"]) > 10, "{seen}");
    // One that was being made when the policy that allows it went is reset.
    only(&seen, &elsewhere, &["ok", "EPERM", "ECONNRESET"]);
    assert!(!scene.world.arrived().iter().any(|packet| packet.to == PRIVATE));
}
