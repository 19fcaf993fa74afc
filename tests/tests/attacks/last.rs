//! Attacks on, and states of, a whole machine, after which it is good for nothing else: in VMs alone,
//! when all other tests are over, one by one in the order of their names.

use clawbox_tests::clawbox::Clawbox;
use clawbox_tests::layer::{self, Layer};

use super::attempt::PYTHON;
use crate::scene::Scene;

/// Takes memory until there is none. Every page is written to.
const HOG: &str = "
import sys
print('ready', flush=True)
sys.stdin.readline()
held = []
while True:
    held.append(b'x' * (16 << 20))
";

fn score(process: u32) -> i32 {
    let told = std::fs::read_to_string(format!("/proc/{process}/oom_score_adj")).unwrap();
    told.trim().parse().unwrap()
}

/// Row 33.
#[test]
#[ignore = "takes all memory of the machine"]
fn a_host_without_memory_ends_the_sandbox_and_not_the_agent() {
    let scene = Scene::new();
    let mut running = Clawbox::new(&scene.world, &scene.policy("")).spawn(&[PYTHON, "-c", HOG]);
    assert_eq!(running.line(), "ready");
    let own = score(std::process::id());
    assert_eq!(score(running.child.id()), -900);
    for process in running.processes() {
        assert_eq!(score(process), own, "what is inside is ended as anything else");
    }
    running.say("go");
    let run = running.wait();
    // SIGKILL is the command's, told by a clawbox that lives.
    assert_eq!(run.status, 128 + 9, "{}", run.stderr);
    assert_eq!(run.records("stop")[0]["object"]["status"], 128 + 9);
    layer::tell(33, "the machine's memory taken", Layer::Agent);
}

/// Row 38.
#[test]
#[ignore = "locks the kernel down, for good"]
fn a_kernel_that_is_locked_down_starts_nothing_and_says_why() {
    let scene = Scene::new();
    std::fs::write("/sys/kernel/security/lockdown", "confidentiality").unwrap();
    let left = scene.world.work().join("started");
    let touch = format!("echo > {}", left.display());
    let run = Clawbox::new(&scene.world, &scene.policy("")).run(&["/bin/sh", "-c", &touch]);
    assert_eq!(run.status, 125, "{}", run.stderr);
    assert!(!left.exists());
    assert!(run.stderr.contains("lockdown"), "{}", run.stderr);
    layer::tell(38, "the kernel locked down", Layer::Start);
}
