//! What one process sets for another, and what only the kernel lends: by BPF LSM, behind seccomp.

use std::os::unix::process::CommandExt;
use std::process::Command;

use clawbox_tests::clawbox::Clawbox;
use clawbox_tests::network::NOBODY;

use crate::attacks::attempt::{ATTACKER, PYTHON};
use crate::scene::Scene;

#[test]
fn what_one_process_sets_for_another_ends_at_the_sandbox() {
    let scene = Scene::new();
    if !scene.has_lsm() {
        return;
    }
    // A process of the same user, and with the host's processes in sight: what is asked of the user
    // and of capabilities lets all of it through.
    let mut host = Command::new("/usr/bin/sleep");
    let mut host = host.arg("600").uid(NOBODY).gid(NOBODY).spawn().unwrap();
    let pid = host.id();
    let child = "p = os.fork() or (os.read(r, 1), os._exit(0)); ";
    let tries = [
        ("nice", format!("os.setpriority(os.PRIO_PROCESS, {pid}, 5)"), "EPERM"),
        ("scheduler", format!("os.sched_setscheduler({pid}, os.SCHED_BATCH, os.sched_param(0))"), "EPERM"),
        ("affinity", format!("os.sched_setaffinity({pid}, [0])"), "EPERM"),
        ("io-priority", format!("call(251, 1, {pid}, 3 << 13)"), "EPERM"),
        ("limits", format!("import resource as r; r.prlimit({pid}, r.RLIMIT_NOFILE, (64, 64))"), "EPERM"),
        ("own-limits", "import resource as r; r.setrlimit(r.RLIMIT_CORE, (0, 0))".to_owned(), "ok"),
        ("own-nice", "os.setpriority(os.PRIO_PROCESS, 0, 5)".to_owned(), "ok"),
        ("own-name", "call(157, 15, ctypes.c_char_p(b'renamed'), 0, 0, 0)".to_owned(), "ok"),
        (
            "own-child",
            format!(
                "r, w = os.pipe(); {child}os.setpgid(p, p); os.setpriority(os.PRIO_PROCESS, p, 6); \
                 os.sched_setaffinity(p, [0]); os.close(w) or os.kill(p, 9); os.waitpid(p, 0)"
            ),
            "ok",
        ),
        ("own-image", "call(157, 35, 13, os.open('/usr/bin/true', os.O_RDONLY), 0, 0)".to_owned(), "EPERM"),
        ("key", "call(248, ctypes.c_char_p(b'user'), ctypes.c_char_p(b'k'), ctypes.c_char_p(b'v'), 1, -3)".to_owned(), "EPERM"),
    ];
    let clawbox = Clawbox::new(&scene.world, &scene.policy("")).with_lsm();
    let mut running = clawbox.argument("--share").argument("pid").spawn(&[PYTHON, "-c", ATTACKER]);
    for (name, code, _) in &tries {
        running.say(&format!("{name}: {code}"));
    }
    let run = running.wait();
    // SAFETY: takes numbers.
    let nice = unsafe { nix::libc::getpriority(nix::libc::PRIO_PROCESS, pid) };
    // SAFETY: takes a number.
    let policy = unsafe { nix::libc::sched_getscheduler(pid.cast_signed()) };
    host.kill().unwrap();
    host.wait().unwrap();
    for (name, _, expected) in &tries {
        let line = run.stdout.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        assert_eq!(line, Some(*expected), "{name}: {run:?}");
    }
    assert_eq!((nice, policy), (0, nix::libc::SCHED_OTHER));
    let denied = run.trail.iter().filter(|record| {
        record["class"] == "privilege"
            && record["action"] == "schedule"
            && record["reason"] == "other-process"
            && record["object"]["other_pid"] == pid
    });
    // Nice value, scheduler, affinity and I/O priority; seccomp has refused the rest before.
    assert_eq!(denied.count(), 4, "{:#?}", run.denials());
    let layers = run.records("start")[0]["object"]["layers"].as_array().unwrap().clone();
    let lsm = layers.iter().find(|layer| layer["layer"] == "lsm").unwrap();
    let hooks: Vec<&str> =
        lsm["actual"].as_array().unwrap().iter().filter_map(|hook| hook.as_str()).collect();
    for hook in ["task_setrlimit", "task_prctl", "key_alloc", "key_permission", "uring_cmd"] {
        assert!(hooks.contains(&hook), "{hook}: {hooks:?}");
    }
}
