//! What a sandbox sees of the host: its own processes, mounts and names, unless a part is shared.
//! Nothing that decides depends on it, so the trail goes on in the host's numbers.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use clawbox_tests::clawbox::{Clawbox, Finished, Running};
use clawbox_tests::network::{NOBODY, SITE};
use clawbox_tests::refusal::{CLONE3, PROC_MOUNT, TMP_MOUNT};
use serde_json::Value;

use crate::lifecycle::{on_terminal, until};
use crate::scene::Scene;

/// A policy under which `/tmp` is the sandbox's own: nothing in it is below `/tmp`.
const FAR_FROM_TMP: &str = "version: 1\n\
    filesystem_policy:\n  \
      include_workdir: false\n  \
      read_only: [/usr, /lib, /lib64, /bin, /etc, /proc]\n  \
      read_write: [/dev/null]\n";

/// Says what it can learn of a process outside, and which processes there are.
const LOOKS_AROUND: &str = "
import errno, json, os, sys
def attempt(what):
    try: what(); return 'ok'
    except OSError as error: return errno.errorcode[error.errno]
outside = int(sys.argv[1])
print(json.dumps({
    'processes': sorted(int(name) for name in os.listdir('/proc') if name.isdigit()),
    'here': sorted(int(name) for name in os.listdir('.') if name.isdigit()),
    'self': os.getpid(),
    'kill': attempt(lambda: os.kill(outside, 0)),
    'environ': attempt(lambda: open(f'/proc/{outside}/environ').read()),
    'memory': attempt(lambda: open(f'/proc/{outside}/mem')),
}))
";

/// A process outside, of the sandbox's own user, that ends with the test.
struct Outsider(Child);

impl Outsider {
    fn new() -> Self {
        let mut sleep = Command::new("/bin/sleep");
        sleep.arg("1000").env("SECRET", "of another").uid(NOBODY).gid(NOBODY);
        Self(sleep.spawn().unwrap())
    }
}

impl Drop for Outsider {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn layer<'r>(run: &'r Finished, name: &str) -> &'r Value {
    let layers = run.records("start")[0]["object"]["layers"].as_array().unwrap();
    layers.iter().find(|layer| layer["layer"] == name).unwrap()
}

#[test]
fn a_sandbox_sees_and_signals_its_own_processes_and_no_others() {
    let (scene, outsider) = (Scene::new(), Outsider::new());
    let outside = outsider.0.id().to_string();
    let look = |clawbox: Clawbox<'_>| -> Value {
        let command = ["/usr/bin/python3", "-c", LOOKS_AROUND, &outside];
        let run = clawbox.workdir(Path::new("/proc")).run(&command);
        serde_json::from_str(&run.stdout).unwrap_or_else(|_| panic!("{run:?}"))
    };
    // The root opened: the host's /proc would be readable if there were any way to it left, such
    // as the directory that clawbox was told to start in.
    let root = FAR_FROM_TMP.replace("[/usr, /lib, /lib64, /bin, /etc, /proc]", "[/]");
    for policy in [FAR_FROM_TMP, &root] {
        let told = look(Clawbox::new(&scene.world, policy));
        assert_eq!(told["processes"], serde_json::json!([1, 2]), "{told}");
        assert_eq!(told["here"], told["processes"], "{told}");
        assert_eq!(told["self"], 2);
        assert_eq!((&told["kill"], &told["environ"]), (&"ESRCH".into(), &"ENOENT".into()));
    }
    let told = look(Clawbox::new(&scene.world, FAR_FROM_TMP).argument("--share").argument("pid"));
    let seen = told["processes"].as_array().unwrap();
    assert!(seen.contains(&outsider.0.id().into()) && seen.contains(&told["self"]), "{told}");
    assert_eq!((&told["environ"], &told["memory"]), (&"EACCES".into(), &"EACCES".into()));
}

#[test]
fn process_1_can_be_neither_read_nor_ended_and_holds_nothing() {
    let scene = Scene::new();
    let script = "
import errno, os, signal
read = lambda path: open(path).read()
for name, look in ('environ', read), ('mem', read), ('maps', read), ('root', os.readlink), ('cwd', os.readlink):
    try: look(f'/proc/1/{name}'); print(name, 'ok')
    except OSError as error: print(name, errno.errorcode[error.errno])
for number in signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV, signal.SIGCHLD:
    os.kill(1, number)
print('ready', flush=True)
input()
raise SystemExit(5)
";
    for user in [Some("nobody"), None] {
        let clawbox = Clawbox::new(&scene.world, &scene.policy("")).user(user);
        let mut running = clawbox.spawn(&["/usr/bin/python3", "-c", script]);
        for name in ["environ", "mem", "maps", "root", "cwd"] {
            assert_eq!(running.line(), format!("{name} EACCES"), "{user:?}");
        }
        assert_eq!(running.line(), "ready");
        let init = init_of(&running);
        assert_eq!(std::fs::read_dir(format!("/proc/{init}/fd")).unwrap().count(), 0);
        let status = std::fs::read_to_string(format!("/proc/{init}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().to_owned()
        };
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".into(), "2".into()));
        assert_eq!(field("Seccomp_filters:"), "2");
        assert_eq!(field("Uid:"), if user.is_some() { NOBODY.to_string() } else { "0".into() });
        running.say("go");
        assert_eq!(running.wait().status, 5);
    }
}

/// The host's number of a sandbox's process 1.
fn init_of(running: &Running) -> u32 {
    let is_init = |process: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
        numbers.split_whitespace().next_back() == Some("1")
    };
    running.processes().into_iter().find(is_init).unwrap()
}

#[test]
fn the_trail_has_the_numbers_of_the_host() {
    let scene = Scene::new();
    let (attack, step) = (scene.attack(), format!("connect={SITE}:7"));
    let policy = scene.allowing("/usr/bin/true", &format!("{{ host: {SITE}, port: 7 }}"));
    let mut running =
        Clawbox::new(&scene.world, &policy).spawn(&[attack.as_str(), "line", step.as_str()]);
    // The attacker waits for a line: both processes are there.
    let processes = loop {
        let processes = running.processes();
        let executed = |process: &u32| {
            let link = std::fs::read_link(format!("/proc/{process}/exe"));
            link.is_ok_and(|link| link == Path::new(&attack))
        };
        if let Some(command) = processes.iter().copied().find(executed) {
            break (init_of(&running), command);
        }
    };
    running.say("go");
    let account = crate::scene::Account::of(running.wait());
    account.expect(&[("line", "ok"), (&step, "EPERM")]);
    assert!(account.steps.iter().all(|step| step["pid"] == 2), "{:?}", account.steps);
    let (init, command) = processes;
    let denied = account.record("connect", "other-binary", &attack, (SITE.into(), 7));
    assert_eq!(denied["subject"]["pid"], command);
    let started = account.run.records("exec")[0];
    assert_eq!(
        (&started["subject"]["pid"], &started["object"]["parent"]),
        (&command.into(), &init.into())
    );
    // What process 1 did before, the self-test, is told by the start record alone.
    assert!(account.denials().iter().all(|(_, reason)| *reason == "other-binary"));
}

#[test]
fn orphans_are_reaped_and_end_with_the_run() {
    let scene = Scene::new();
    let script = "
import os
def orphan(does):
    number, tell = os.pipe()
    if os.fork() == 0:
        process = os.fork()
        if process == 0:
            while os.getppid() != 1: pass
            does()
            os._exit(0)
        os.write(tell, str(process).encode())
        os._exit(0)
    os.wait()
    return int(os.read(number, 16))
ended = orphan(lambda: None)
while os.path.exists(f'/proc/{ended}'): pass
print('reaped', flush=True)
def stay():
    os.setsid()
    os.pipe()
    while True: os.read(os.pipe()[0], 1)
stays = orphan(stay)
print('stays', os.path.exists(f'/proc/{stays}'), flush=True)
raise SystemExit(9)
";
    // The orphan that stays holds the run's output open for as long as it lives.
    let run =
        Clawbox::new(&scene.world, &scene.policy("")).run(&["/usr/bin/python3", "-c", script]);
    assert_eq!((run.status, run.stdout.as_str()), (9, "reaped\nstays True\n"), "{}", run.stderr);
}

#[test]
fn a_private_tmp_is_empty_writable_and_gone_with_the_run() {
    let scene = Scene::new();
    let theirs = tempfile::Builder::new().prefix("of-the-host-").tempfile_in("/tmp").unwrap();
    let own = format!("{}-own", theirs.path().display());
    let script = format!(
        "ls -A /tmp; echo own >{own} && cat {own}; stat -c '%a %u' /tmp; grep ' /tmp ' /proc/mounts"
    );
    let command = ["/bin/sh", "-c", &script];
    let clawbox = |policy: &str| Clawbox::new(&scene.world, policy).workdir(Path::new("/usr"));
    let run = clawbox(FAR_FROM_TMP).with_lsm().run(&command);
    let said: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(said[..2], ["own", &format!("1777 {NOBODY}")], "{run:?}");
    // The host's may be a mount too, beneath it.
    let mount = said.last().unwrap();
    assert!(mount.contains("nosuid,nodev") && mount.contains("size="), "{run:?}");
    assert!(!Path::new(&own).exists());
    assert_eq!(layer(&run, "namespaces.tmp")["state"], "full");

    // The host's, closed as the policy has it, and opened as the policy has it.
    let run = clawbox(FAR_FROM_TMP).argument("--share=tmp").run(&command);
    assert!(run.stderr.contains("Permission denied") && !run.stdout.contains("own"), "{run:?}");
    assert_eq!(layer(&run, "namespaces.tmp")["why"], "shared: asked for");
    let listing = FAR_FROM_TMP.replace("/proc]", "/proc, /tmp]");
    let run = clawbox(&listing).run(&command);
    let name = theirs.path().file_name().unwrap().to_str().unwrap();
    assert!(run.stdout.lines().any(|line| line == name), "{run:?}");
    assert_eq!(layer(&run, "namespaces.tmp")["why"], "the policy lists `/tmp`");
    // What the run itself needs there keeps it the host's too, and opens nothing.
    let run = clawbox(FAR_FROM_TMP).workdir(&scene.world.work()).run(&command);
    let why = layer(&run, "namespaces.tmp")["why"].as_str().unwrap();
    assert!(why.starts_with("the run needs `/tmp/clawbox-test-"), "{why}");
}

#[test]
fn a_script_that_a_rule_names_in_tmp_cannot_be_put_there_by_the_sandbox() {
    let scene = Scene::new();
    let script = scene.world.script("tool", "#!/bin/sh\n");
    let rule =
        "network_policies:\n  rule:\n    endpoints: [{ host: v4.test, port: 7 }]\n    binaries: ";
    let policy = format!("{FAR_FROM_TMP}{rule}[{{ path: {} }}]\n", script.display());
    let clawbox = Clawbox::new(&scene.world, &policy).workdir(Path::new("/usr"));
    let (place, path) = (script.parent().unwrap().display(), script.display());
    let name = format!("new-{}", std::process::id());
    let command = format!("mkdir {place}/new; echo >/tmp/{name}; {path}");
    let run = clawbox.run(&["/bin/sh", "-c", &command]);
    assert_eq!(run.stderr.matches("Permission denied").count(), 3, "{run:?}");
    let why = layer(&run, "namespaces.tmp")["why"].as_str().unwrap();
    assert!(why.contains(&script.display().to_string()), "{why}");
}

#[test]
fn each_namespace_is_its_own_and_shared_when_asked_for() {
    let scene = Scene::new();
    let kinds =
        [("pid", "pid"), ("mount", "mnt"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup")];
    let script = "for kind in pid mnt ipc uts cgroup net; do readlink /proc/self/ns/$kind; done; \
                  grep ^0:: /proc/self/cgroup; uname -n; read line";
    let told = |share: &[&str]| {
        let mut clawbox = Clawbox::new(&scene.world, &scene.policy(""));
        for parts in share {
            clawbox = clawbox.argument("--share").argument(parts);
        }
        let mut running = clawbox.spawn(&["/bin/sh", "-c", script]);
        let lines: Vec<String> = (0..8).map(|_| running.line()).collect();
        let outside: Vec<String> = ["pid", "mnt", "ipc", "uts", "cgroup", "net"]
            .iter()
            .map(|kind| {
                let link = format!("/proc/{}/ns/{kind}", running.child.id());
                std::fs::read_link(link).unwrap().display().to_string()
            })
            .collect();
        running.say("go");
        let run = running.wait();
        let shares: Vec<bool> = lines.iter().zip(&outside).map(|(a, b)| a == b).collect();
        (shares, lines[6].clone(), lines[7].clone(), run)
    };
    let (shares, cgroup, name, run) = told(&[]);
    // The network is the host's: egress is the kernel programs' to decide.
    assert_eq!(shares, [false, false, false, false, false, true]);
    assert_eq!(cgroup, "0::/");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(name, host.trim());
    for (part, _) in kinds {
        assert_eq!(layer(&run, &format!("namespaces.{part}"))["state"], "full");
    }
    for (place, (part, _)) in kinds.into_iter().enumerate() {
        let (shares, _, _, run) = told(&[part]);
        let mut expected = [false, false, false, false, false, true];
        expected[place] = true;
        assert_eq!(shares, expected, "{part}");
        let found = layer(&run, &format!("namespaces.{part}"));
        assert_eq!(
            (&found["state"], &found["why"]),
            (&"absent".into(), &"shared: asked for".into())
        );
    }
    let (shares, cgroup, _, run) = told(&["pid,mount,ipc", "uts,cgroup,tmp"]);
    assert_eq!(shares, [true; 6]);
    assert!(cgroup.starts_with("0::/clawbox/sh-"), "{cgroup}");
    assert_eq!(run.status, 0, "{}", run.stderr);
}

#[test]
fn a_host_that_refuses_the_mounts_is_reported_and_under_hard_requirement_refused() {
    let scene = Scene::new();
    let clawbox = |policy: &str| {
        let clawbox = Clawbox::new(&scene.world, policy).workdir(Path::new("/usr"));
        clawbox.refused(PROC_MOUNT).refused(TMP_MOUNT)
    };
    let script = "cat /proc/self/comm; ls /tmp || exit 3";
    let run = clawbox(FAR_FROM_TMP).run(&["/bin/sh", "-c", script]);
    // The host's /proc as before; the host's /tmp is not opened in place of a private one.
    assert_eq!((run.status, run.stdout.as_str()), (3, "cat\n"), "{}", run.stderr);
    let pid = layer(&run, "namespaces.pid");
    assert_eq!(pid["state"], "partial");
    assert_eq!(pid["actual"], serde_json::json!(["own process numbers"]));
    assert!(pid["why"].as_str().unwrap().contains("not permitted"), "{pid}");
    let tmp = layer(&run, "namespaces.tmp");
    assert_eq!(tmp["state"], "absent");
    assert!(tmp["why"].as_str().unwrap().contains("Permission denied"), "{tmp}");
    let hard = format!("{FAR_FROM_TMP}landlock: {{ compatibility: hard_requirement }}\n");
    let run = clawbox(&hard).run(&["/bin/true"]);
    assert_eq!(run.status, 125, "{}", run.stderr);
    // A kernel with an older Landlock is refused before it comes to this.
    assert!(run.stderr.contains("best_effort"), "{}", run.stderr);
}

#[test]
fn where_a_process_cannot_be_born_in_its_cgroup_nothing_else_is_different() {
    let scene = Scene::new();
    let words = ["/usr/bin/python3", "-c", LOOKS_AROUND, "1"];
    let clawbox = Clawbox::new(&scene.world, FAR_FROM_TMP).workdir(Path::new("/proc"));
    let run = clawbox.refused(CLONE3).run(&words);
    let told: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|_| panic!("{run:?}"));
    assert_eq!((&told["processes"], &told["self"]), (&serde_json::json!([1, 2]), &2.into()));
    let clawbox = Clawbox::new(&scene.world, FAR_FROM_TMP).workdir(Path::new("/usr"));
    let run = clawbox.refused(CLONE3).run(&["/bin/sh", "-c", "kill -KILL $$"]);
    assert_eq!(run.status, 137, "{}", run.stderr);
}

#[test]
fn a_shell_that_takes_the_terminal_leaves_it_to_whoever_had_it_before() {
    let scene = Scene::new();
    let inner = ["/bin/bash", "--norc", "--noediting", "-i"];
    let clawbox = Clawbox::new(&scene.world, &scene.policy("")).command(&inner);
    // Without job control of its own it stays in the group that clawbox is in.
    let mut shell = scene.world.command("/bin/sh");
    shell.args(["-c", "\"$@\"; echo back $?; read line; echo read $line", "sh"]);
    shell.arg(clawbox.get_program()).args(clawbox.get_args()).env("PS1", "prompt: ");
    let (mut outer, mut terminal) = on_terminal(shell);
    let mut seen = String::new();
    until(&mut terminal, &mut seen, "prompt: ");
    // A job takes the foreground, and the shell takes it back.
    terminal.write_all(b"/bin/echo $((6 * 7)) is told\n").unwrap();
    until(&mut terminal, &mut seen, "42 is told");
    terminal.write_all(b"exit 4\n").unwrap();
    until(&mut terminal, &mut seen, "back 4");
    terminal.write_all(b"word\n").unwrap();
    until(&mut terminal, &mut seen, "read word");
    assert!(outer.wait().unwrap().success());
}
