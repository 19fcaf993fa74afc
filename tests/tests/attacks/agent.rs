//! Row 33: the agent and what it has put into the kernel. Killed, stopped, flooded, short of disk and
//! asked by the sandbox itself, it changes no verdict.

use std::path::PathBuf;

use clawbox_tests::clawbox::{Clawbox, Finished};
use clawbox_tests::layer::{self, Layer};
use clawbox_tests::network::{ELSEWHERE, SITE};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::attempt::{PYTHON, attempts, got_through, hostile};
use crate::live;
use crate::scene::{Account, Scene};

/// Who clawbox is, as a sandbox with the host's processes in sight can tell: with those it makes no
/// process 1, and is the command's parent.
const AGENT: &str =
    "agent = os.getppid(); assert 'clawbox' in open('/proc/%d/comm' % agent).read(); ";

#[test]
fn the_agent_is_neither_ended_nor_stopped_nor_its_programs_taken_away() {
    let scene = Scene::new();
    let has_lsm = scene.has_lsm();
    let on = |name: &str, code: &str| hostile(33, name, format!("{AGENT}{code}"));
    for user in [Some("nobody"), None] {
        // The agent is root's.
        let below = if user.is_some() { Layer::Permissions } else { Layer::Landlock };
        let tries = [
            on("the agent killed by the sandbox", "os.kill(agent, 9)").or(below),
            on("the agent stopped by the sandbox", "os.kill(agent, 19)").or(below),
            on("the agent's memory", "read('/proc/%d/mem' % agent)").or(below),
            on("the agent's limits", "call(302, agent, 7, (ctypes.c_uint64 * 2)(), 0)"),
            on("the agent's OOM score", "write('/proc/%d/oom_score_adj' % agent)").or(below),
            on("pins listed", "os.listdir('/sys/fs/bpf/clawbox')").or(below),
            on("pins removed", "os.rmdir('/sys/fs/bpf/clawbox')").or(below),
            on("its lock files", "os.listdir('/run/clawbox')").or(below),
            on("the kernel's log", "call(103, 3, ctypes.create_string_buffer(9), 9)"),
        ];
        let sandbox = || {
            let policy = scene.policy("");
            let clawbox = Clawbox::new(&scene.world, &policy).user(user).argument("--share=pid");
            // The other time without, so that nobody can say the hooks alone hold.
            if has_lsm && user.is_none() { clawbox.with_lsm() } else { clawbox }
        };
        let tried = attempts(sandbox, &tries);
        assert_eq!(got_through(&tries, &tried).count(), 0, "{tried:#?}");
    }
}

#[test]
fn a_killed_clawbox_lets_nobody_go_and_the_next_run_cleans_up() {
    let scene = Scene::new();
    let policy = scene.allowing_attack("{ host: v4.test, port: 7 }");
    let direct = format!("tcp={SITE}:7");
    let child = format!("{} in-child {direct}", scene.attack());
    let words = ["resolve=v4.test", "line", &direct, "send=93.184.216.35:7", "socket=raw", "line"];
    let script = format!("{} {}; {child}; cat", scene.attack(), words.join(" "));
    let mut running = Clawbox::new(&scene.world, &policy).spawn(&["/bin/sh", "-c", &script]);
    running.line();
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    assert_eq!(running.remains().len(), 3, "{:?}", running.remains());
    running.say("go");
    let mut told = vec![running.line()];
    for _ in 0..3 {
        told.push(running.line());
    }
    running.say("go");
    told.extend([running.line(), running.line()]);
    let refused = told.iter().filter(|line| line.contains("\"EPERM\"")).count();
    assert_eq!(refused, 4, "{told:?}");
    layer::tell(33, "the agent killed", Layer::Pinned);
    scene.nothing_arrived();
    // `cat` waits for more; the next run ends it and removes what was left.
    let next = scene.shell(&scene.policy(""), "exit 0").run;
    assert_eq!(next.status, 0, "{}", next.stderr);
    assert!(running.stdout_ends(), "the process of the killed run is still there");
    assert_eq!(running.remains(), Vec::<PathBuf>::new());
}

/// Denied connects: those recorded one by one, and those counted as lost.
fn counted(trail: &[Value]) -> (u64, u64) {
    let one_by_one = trail
        .iter()
        .filter(|record| record["action"] == "connect" && record["reason"] == "unknown-endpoint");
    let is_lost =
        |record: &&Value| record["class"] == "gap" && record["object"]["kind"] == "connect";
    let lost = trail.iter().filter(is_lost);
    let lost = lost.map(|record| record["object"]["count"].as_u64().unwrap());
    (one_by_one.count() as u64, lost.sum())
}

#[test]
fn a_flood_changes_no_verdict_and_every_loss_is_counted() {
    const ATTEMPTS: u64 = 200_000;
    let scene = Scene::new();
    let flood = format!("flood={ATTEMPTS},{ELSEWHERE}:7");
    let steps = [
        &scene.attack(),
        "resolve=localhost",
        "line",
        &flood,
        &format!("tcp={ELSEWHERE}:7"),
        "line",
    ]
    .map(String::from);
    for stopped in [true, false] {
        let mut running = Clawbox::new(&scene.world, &scene.policy("")).spawn(&steps);
        running.line();
        if stopped {
            // Nobody reads what the kernel reports until the flood is over.
            running.signal(Signal::SIGSTOP);
        }
        running.say("go");
        running.line();
        let told: Value = serde_json::from_str(&running.line()).unwrap();
        assert_eq!(
            (&told["detail"]["EPERM"], &told["detail"]["other"]),
            (&ATTEMPTS.into(), &0.into())
        );
        assert!(running.line().contains("EPERM"));
        if stopped {
            running.signal(Signal::SIGCONT);
        }
        let run = running.wait();
        let (recorded, lost) = counted(&run.trail);
        assert_eq!(recorded + lost, ATTEMPTS + 1, "{recorded} recorded, {lost} lost");
        assert!(!stopped || lost > ATTEMPTS / 2, "the ring was never full: {lost} lost");
        let attack =
            if stopped { "the agent stopped, its ring filled" } else { "its ring flooded" };
        layer::tell(33, attack, Layer::observed("EPERM", &run.denials()));
    }
    scene.nothing_arrived();
}

#[test]
fn a_full_disk_changes_no_verdict() {
    let scene = Scene::new();
    let clawbox = Clawbox::new(&scene.world, &scene.policy("")).without_trail();
    let steps = [scene.attack(), format!("tcp={ELSEWHERE}:7"), format!("flood=5000,{ELSEWHERE}:7")];
    let account = Account::of(clawbox.argument("--audit=/dev/full").run(&steps));
    let outcome = account.outcomes()[0].1;
    assert_eq!(outcome, "EPERM", "{account:?}");
    assert_eq!(account.detail(&steps[2])["EPERM"], 5000);
    // What was denied is summed up without the trail, which as a device would be read for ever.
    let Finished { status, stderr, .. } = &account.run;
    assert!(*status == 0 && stderr.contains("5001 denials"), "{status} {stderr}");
    // Without a trail there is no record: that it is the hook's errno is known from the same step above.
    layer::tell(33, "its disk filled", Layer::SocketHooks);
    scene.nothing_arrived();
}

/// Root in the sandbox, under a policy that opens the directory of the agent's socket.
#[test]
fn a_sandbox_has_no_say_in_its_own_policy_even_as_root() {
    let scene = Scene::new();
    let policy = scene.policy("").replace("[/dev/null]", "[/dev/null, /run/clawbox]");
    let ask = "
import socket, sys
path = '/run/clawbox/' + sys.stdin.readline().strip() + '.sock'
held = []
try:
    for _ in range(300):
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(5)
        one.connect(path)
        held.append(one)
    held[0].sendall(b'{}\\n')
    print('said', held[0].makefile().readline().strip(), flush=True)
except OSError as error:
    print('refused', error.errno, len(held), flush=True)
sys.stdin.readline()
";
    let mut running = Clawbox::new(&scene.world, &policy).user(None).spawn(&[PYTHON, "-c", ask]);
    let run = running.run();
    running.say(&run);
    let said = running.line();
    assert!(said.contains("no say") || said.starts_with("refused"), "{said}");
    // While the sandbox holds what it could get of the socket, root outside is heard.
    live::changes(&scene, &running, &policy);
    layer::tell(33, "its socket asked and filled", Layer::Agent);
    running.say("go");
    assert_eq!(running.wait().status, 0);
}
