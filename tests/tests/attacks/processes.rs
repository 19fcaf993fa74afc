//! Rows 10 and 36: other processes. Of another identity in the same sandbox, of another sandbox, and of
//! the host.

use clawbox_tests::clawbox::{Clawbox, Running};
use clawbox_tests::layer::Layer;

use super::attempt::{
    Attempt, PYTHON, Tried, attempts, find, from_then_on, got_through, harmless, hostile,
};
use crate::live::change_to;
use crate::scene::Scene;

/// A named program waits, and an unnamed one of the same user and sandbox, its parent, reaches for it:
/// for memory that may be written, since some kernels force no other.
fn into_another_identity(tool: &str, has_lsm: bool) -> Vec<Attempt> {
    let begin = format!(
        "import subprocess; pipe = subprocess.PIPE; \
         t = subprocess.Popen(['{tool}', 'resolve=localhost', 'line'], stdin=pipe, stdout=pipe); \
         t.stdout.readline(); \
         at = lambda name: '/proc/%d/%s' % (t.pid, name); \
         first = lambda: int(next(l for l in open(at('maps')) if ' rw-p ' in l).split('-')[0], 16); "
    );
    let on = |name: &str, code: &str| hostile(10, name, format!("{begin}{code}"));
    vec![
        on("ptrace of another identity", "call(101, 16, t.pid, 0, 0)"),
        on("process_vm_writev into another identity", "call(311, t.pid, 0, 0, 0, 0, 0)"),
        on("pidfd_getfd of another identity", "call(438, os.pidfd_open(t.pid), 0, 0)"),
        on(
            "writing /proc/PID/mem of another identity",
            "a = first(); m = os.open(at('mem'), os.O_RDWR); os.pwrite(m, os.pread(m, 4, a), a)",
        ),
        on(
            "reading /proc/PID/mem of another identity",
            "a = first(); os.pread(os.open(at('mem'), os.O_RDONLY), 4, a)",
        )
        .known_if(!has_lsm),
        on("reading /proc/PID/environ of another identity", "read(at('environ'))")
            .known_if(!has_lsm),
    ]
}

#[test]
fn no_identity_reaches_into_another_one_of_its_sandbox() {
    let scene = Scene::new();
    let has_lsm = scene.has_lsm();
    let tool = scene.copy("tool");
    let policy = scene.allowing(&tool, "{ host: v4.test, port: 7 }");
    let open = policy.replace("[/dev/null]", "[/dev/null, /proc]").replace(" /proc,", "");
    let all = || into_another_identity(&tool, has_lsm);
    let writes = all().into_iter().filter(|attempt| attempt.name.starts_with("writing"));
    let writes: Vec<Attempt> = writes
        .map(|attempt| attempt.named("writing /proc/PID/mem, /proc writable").known_if(!has_lsm))
        .collect();
    let sandboxes = if has_lsm {
        let narrowed = from_then_on(change_to(&scene, "identities", &policy), all());
        vec![(&open, writes.into_iter().chain(narrowed).collect())]
    } else {
        vec![(&policy, all()), (&open, writes)]
    };
    for (policy, tries) in sandboxes {
        let sandbox = || Clawbox::new(&scene.world, policy).name("identities").with_lsm_if(has_lsm);
        let tried = attempts(sandbox, &tries);
        assert_eq!(got_through(&tries, &tried).count(), 0, "{tried:#?}");
    }
}

/// Owns shared memory under a key, and waits.
const VICTIM: &str = "
import ctypes, sys
libc = ctypes.CDLL(None)
assert libc.shmget(0xc1a4, 4096, 0o1666) >= 0
open(sys.argv[1], 'w').write('secret')
print('ready', flush=True)
input()
";

/// A message queue of the host: Landlock lets no sandbox make one.
struct Queue;

impl Queue {
    fn new() -> Self {
        Self::call("mq_open(b'/clawbox-victim', 0o100, 0o666, None)");
        Self
    }

    fn call(call: &str) {
        let code = format!("import ctypes; assert ctypes.CDLL(None).{call} >= 0");
        let called = std::process::Command::new(PYTHON).args(["-c", &code]).status();
        assert!(called.unwrap().success(), "{call}");
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        Self::call("mq_unlink(b'/clawbox-victim')");
    }
}

/// Another sandbox, of the same user, and the host's number of its process.
struct Victim {
    running: Running,
    pid: u32,
    shared: String,
}

impl Victim {
    fn new(scene: &Scene) -> Self {
        let shared = format!("/dev/shm/clawbox-victim-{}", std::process::id());
        let policy = scene.policy("").replace("[/dev/null]", "[/dev/null, /dev/shm]");
        let clawbox = Clawbox::new(&scene.world, &policy).argument("--share=pid");
        let mut running = clawbox.spawn(&[PYTHON, "-c", VICTIM, &shared]);
        assert_eq!(running.line(), "ready");
        let is_python = |process: &u32| {
            let program = std::fs::read_link(format!("/proc/{process}/exe"));
            program.is_ok_and(|program| program.display().to_string().contains("python"))
        };
        let pid = running.processes().into_iter().find(is_python).unwrap();
        Self { running, pid, shared }
    }

    fn end(mut self) {
        self.running.say("go");
        assert_eq!(self.running.wait().status, 0);
        std::fs::remove_file(&self.shared).unwrap();
    }
}

/// With a namespace of its own, the attacker has no number to ask for.
fn by_number(pid: u32, shared: &str) -> Vec<Attempt> {
    let on = |name: &str, code: String| hostile(36, name, code).or(Layer::Namespaces);
    vec![
        on("a signal", format!("os.kill({pid}, 0)")),
        on("a descriptor of the process", format!("os.pidfd_open({pid})")),
        on("its environment", format!("read('/proc/{pid}/environ')")),
        on("its memory", format!("read('/proc/{pid}/mem')")),
        on("its nice value", format!("os.setpriority(os.PRIO_PROCESS, {pid}, 5)")),
        on("its shared memory by key", "call(29, 0xc1a4, 4096, 0)".to_owned()),
        on("the host's message queue", "call(240, b'clawbox-victim', 0, 0, 0)".to_owned()),
        hostile(36, "its shared memory by name", format!("read('{shared}')")),
        hostile(36, "ptrace", format!("call(101, 16, {pid}, 0, 0)")),
    ]
}

/// Whose process the attacks of root are on: one with all capabilities, which the kernel lets nobody
/// without them look into.
const HOST: &str = "the host's, as root";

/// Each refusal of what an attacker tried on a process in sight has its record, whether Landlock was
/// asked first or not. Nobody else is asked who may look into a process that has capabilities.
fn refusals_are_told(tried: &[Tried]) {
    for tried in tried.iter().filter(|tried| tried.name.contains("in sight")) {
        let has_capabilities = tried.name.starts_with(HOST);
        let action = match tried.name.rsplit(": ").next().unwrap() {
            "a signal" | "a stop" | "a signal by descriptor" => "signal",
            "its environment" | "its memory" | "its descriptors" if !has_capabilities => "trace",
            _ => continue,
        };
        let is_told = tried.has(action, "landlock") || tried.has(action, "other-process");
        assert!(is_told, "{tried:#?}");
    }
}

/// With the host's processes in sight, so that only hooks, Landlock and permissions stand in the way.
fn in_sight(pid: u32, whose: &str) -> Vec<Attempt> {
    let on = |name: &str, code: String| hostile(36, &format!("{whose}, in sight: {name}"), code);
    let of_memory = if whose == HOST { Layer::Permissions } else { Layer::Landlock };
    vec![
        on("a signal", format!("os.kill({pid}, 0)")).or(Layer::Landlock),
        on("a stop", format!("os.kill({pid}, 19)")).or(Layer::Landlock),
        on("a signal by descriptor", format!("call(424, os.pidfd_open({pid}), 0, 0, 0)"))
            .or(Layer::Landlock),
        on("its environment", format!("read('/proc/{pid}/environ')")).or(of_memory),
        on("its memory", format!("read('/proc/{pid}/mem')")).or(of_memory),
        on("its descriptors", format!("os.readlink('/proc/{pid}/fd/0')")).or(of_memory),
        on("its nice value", format!("os.setpriority(os.PRIO_PROCESS, {pid}, 5)")),
        on("its processors", format!("os.sched_setaffinity({pid}, [0])")),
        on("its limits", format!("import resource as r; r.prlimit({pid}, r.RLIMIT_CORE, (0, 0))")),
    ]
}

#[test]
fn another_process_and_the_kernels_own_rights_are_out_of_reach() {
    let scene = Scene::new();
    let has_lsm = scene.has_lsm();
    let victim = Victim::new(&scene);
    let _queue = Queue::new();
    let policy = scene.policy("");
    let with = |user| {
        Clawbox::new(&scene.world, &policy).user(user).argument("--share=pid").with_lsm_if(has_lsm)
    };
    let tries = by_number(victim.pid, &victim.shared);
    // By namespaces, which need no hook's help.
    let tried = attempts(|| Clawbox::new(&scene.world, &policy), &tries);
    assert_eq!(got_through(&tries, &tried).count(), 0, "{tried:#?}");
    let mut tries = in_sight(victim.pid, "another sandbox's");
    tries.push(harmless("a child", "p = os.fork() or os._exit(0); os.waitpid(p, 0)"));
    tries.push(harmless(
        "a child's end",
        "import signal; p = os.fork() or signal.pause(); os.kill(p, 9); os.waitpid(p, 0)",
    ));
    tries.push(harmless("its own environment", "read('/proc/self/environ')"));
    let tried = attempts(|| with(Some("nobody")), &tries);
    if has_lsm {
        assert_eq!(got_through(&tries, &tried).count(), 0, "{tried:#?}");
        refusals_are_told(&tried);
        let nice = find(&tried, "another sandbox's, in sight: its nice value");
        assert!(nice.has("schedule", "other-process"), "{nice:#?}");
        assert_eq!(nice.denials[0]["object"]["other_pid"], victim.pid);
    }
    victim.end();
    // As root, whom permissions do not stop, at a process of no sandbox.
    let host = std::process::id();
    let tries: Vec<Attempt> = in_sight(host, HOST)
        .into_iter()
        .filter(|attempt| !attempt.name.ends_with("a stop"))
        .collect();
    let tried = attempts(|| with(None), &tries);
    if has_lsm {
        assert_eq!(got_through(&tries, &tried).count(), 0, "{tried:#?}");
        refusals_are_told(&tried);
    }
}
