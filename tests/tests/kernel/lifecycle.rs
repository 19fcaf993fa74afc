//! From start to end: the command's status, streams and signals are its user's own, and nothing
//! stays behind, whoever is killed.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clawbox_tests::clawbox::Clawbox;
use clawbox_tests::network::SITE;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;

use crate::scene::Scene;

/// For one piece of a terminal's output, in milliseconds; an emulated machine is slow.
const TERMINAL_PATIENCE: u16 = 60_000;

/// For other processes to let go of what they have of a test's, in milliseconds.
const STRAY_PATIENCE: u16 = 20_000;

/// Says which signals it was started without, then tells those that come. It waits with all of
/// them blocked: a shell's trap would not be run for one that comes just before its next read.
const WAITS_FOR_SIGNALS: &str = "
import signal
print('blocked', len(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
waited = [signal.Signals['SIG' + name] for name in 'TERM HUP INT USR1 USR2 QUIT'.split()]
signal.pthread_sigmask(signal.SIG_BLOCK, waited)
print('ready', flush=True)
for _ in waited:
    print('got', signal.Signals(signal.sigwait(waited)).name, flush=True)
raise SystemExit(3)
";

/// Tells an interrupt, then a line. The signal is waited for while it is blocked, for the reason above:
/// one that came between the shell's `echo` and its `read` was seen to stay unheard.
const WAITS_AT_A_TERMINAL: &str = "
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print('ready', flush=True)
signal.sigwait([signal.SIGINT])
print('interrupt', flush=True)
print('got', input(), len(signal.sigpending()), flush=True)
raise SystemExit(4)
";

fn shell(scene: &Scene, script: &str) -> clawbox_tests::clawbox::Finished {
    Clawbox::new(&scene.world, &scene.policy("")).run(&["/bin/sh", "-c", script])
}

#[test]
fn the_status_of_the_command_is_the_status_of_the_run() {
    let scene = Scene::new();
    for (script, status) in
        [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
    {
        let run = shell(&scene, script);
        assert_eq!(run.status, status, "{script}: {}", run.stderr);
        let stop = run.records("stop")[0];
        assert_eq!(stop["object"]["status"], status);
    }
}

#[test]
fn a_command_that_cannot_be_started_says_why_and_how_by_its_status() {
    let scene = Scene::new();
    let not_executable = scene.world.work().join("text");
    std::fs::write(&not_executable, "text").unwrap();
    let text = not_executable.display().to_string();
    for (command, status, word) in [
        ("/no/such/program", 127, "no such command"),
        ("no-such-program", 127, "no such command"),
        (&text, 126, "cannot execute"),
    ] {
        let run = Clawbox::new(&scene.world, &scene.policy("")).run(&[command]);
        assert_eq!(run.status, status, "{command}: {}", run.stderr);
        assert!(run.stderr.contains(word), "{}", run.stderr);
    }
}

#[test]
fn standard_streams_belong_to_the_command() {
    let scene = Scene::new();
    let mut running = Clawbox::new(&scene.world, &scene.policy("")).spawn(&["/bin/cat"]);
    let text: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
    let mut stdin = running.stdin.take().unwrap();
    let to_write = text.clone();
    let writing = std::thread::spawn(move || stdin.write_all(to_write.as_bytes()));
    let run = running.wait();
    writing.join().unwrap().unwrap();
    assert!(run.stdout == text, "{} bytes", run.stdout.len());
    // Where the kernel has less than the policy asks for, clawbox says so, before the command runs.
    let own = |stderr: &str| stderr.lines().filter(|line| !line.starts_with(" WARN ")).count();
    assert_eq!(own(&run.stderr), 0, "{}", run.stderr);
    let run = shell(&scene, "echo out; echo err >&2");
    assert_eq!(run.stdout, "out\n");
    assert!(run.stderr.ends_with("err\n") && own(&run.stderr) == 1, "{}", run.stderr);
}

#[test]
fn signals_to_clawbox_reach_the_command() {
    let scene = Scene::new();
    let mut running = Clawbox::new(&scene.world, &scene.policy("")).spawn(&[
        "/usr/bin/python3",
        "-c",
        WAITS_FOR_SIGNALS,
    ]);
    assert_eq!(running.line(), "blocked 0");
    assert_eq!(running.line(), "ready");
    for signal in [
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGQUIT,
    ] {
        running.signal(signal);
        assert_eq!(running.line(), format!("got {signal}"));
    }
    assert_eq!(running.wait().status, 3);
    let mut running = Clawbox::new(&scene.world, &scene.policy("")).spawn(&[
        "/bin/sh",
        "-c",
        "echo ready; exec sleep 1000",
    ]);
    assert_eq!(running.line(), "ready");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.wait().status, 143);
}

/// A terminal whose foreground is the command's process group.
pub fn on_terminal(mut command: Command) -> (std::process::Child, std::fs::File) {
    let terminal = nix::pty::openpty(None, None).unwrap();
    let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
    command.stdin(end(&terminal.slave)).stdout(end(&terminal.slave)).stderr(end(&terminal.slave));
    // SAFETY: system calls without pointers to anything that could go away, and no handlers.
    unsafe {
        command.pre_exec(|| {
            // Whoever started the tests in the background has had what is typed ignored.
            for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
                nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl)?;
            }
            nix::unistd::setsid()?;
            let stdin = std::io::stdin();
            nix::errno::Errno::result(nix::libc::ioctl(
                stdin.as_raw_fd(),
                nix::libc::TIOCSCTTY,
                0,
            ))?;
            Ok(())
        });
    }
    (command.spawn().unwrap(), std::fs::File::from(terminal.master))
}

/// Reads the terminal until a text appears.
pub fn until(terminal: &mut std::fs::File, seen: &mut String, text: &str) {
    let mut buffer = [0; 512];
    while !seen.contains(text) {
        let mut readable = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut readable, TERMINAL_PATIENCE), Ok(1), "no `{text}`: {seen}");
        let length = terminal.read(&mut buffer).unwrap_or(0);
        assert!(length > 0, "the terminal closed before `{text}`: {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
}

#[test]
fn what_is_typed_at_a_terminal_reaches_the_command_once() {
    let scene = Scene::new();
    let on =
        |words: &[&str]| on_terminal(Clawbox::new(&scene.world, &scene.policy("")).command(words));
    let (mut clawbox, mut terminal) = on(&["/usr/bin/python3", "-c", WAITS_AT_A_TERMINAL]);
    let mut seen = String::new();
    // With the end of the line, which the terminal's own echo could otherwise come before.
    until(&mut terminal, &mut seen, "ready\r\n");
    terminal.write_all(b"\x03").unwrap();
    until(&mut terminal, &mut seen, "interrupt\r\n");
    terminal.write_all(b"word\n").unwrap();
    // A second interrupt would be pending.
    until(&mut terminal, &mut seen, "got word 0");
    assert_eq!(clawbox.wait().unwrap().code(), Some(4));
    let (mut clawbox, mut terminal) = on(&["/bin/sh", "-c", "echo ready; exec cat"]);
    let mut seen = String::new();
    until(&mut terminal, &mut seen, "ready\r\n");
    terminal.write_all(b"echo\n").unwrap();
    until(&mut terminal, &mut seen, "echo\r\necho");
    terminal.write_all(b"\x03").unwrap();
    assert_eq!(clawbox.wait().unwrap().code(), Some(130));
}

#[test]
fn what_the_command_leaves_running_ends_with_it() {
    let scene = Scene::new();
    let attack = scene.attack();
    let start = Instant::now();
    // A daemon that would hold the run's output open for as long as it lives.
    let run =
        shell(&scene, &format!("({attack} as-daemon connect={SITE}:7 line </dev/zero &) ; exit 5"));
    assert_eq!(run.status, 5);
    assert!(start.elapsed() < Duration::from_secs(60));
}

/// A run whose process has left its cgroup, as root under a policy that opens the hierarchy, and
/// reads from a fifo; who holds the fifo's other end; and the fifo.
struct Stray<'s> {
    clawbox: Clawbox<'s>,
    script: String,
    told: PathBuf,
    held: std::fs::File,
    fifo: PathBuf,
}

impl<'s> Stray<'s> {
    fn new(scene: &'s Scene) -> Self {
        let root = clawbox_tests::clawbox::cgroup_root();
        let open = format!("[/dev/null, {}]", root.display());
        let policy = scene.policy("").replace("[/dev/null]", &open);
        let (fifo, told) = (scene.world.work().join("fifo"), scene.world.work().join("told"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        std::fs::write(&told, "").unwrap();
        let held = std::fs::File::options().read(true).write(true).open(&fifo).unwrap();
        let attack = scene.attack();
        let leave = format!("write={}/cgroup.procs,0", root.display());
        let script = format!(
            "({attack} as-daemon {leave} line connect={SITE}:7 <fifo >told 2>&1 &); \
             while ! grep -q outcome told; do :; done; echo left"
        );
        // In a cgroup namespace of its own some hosts (nsdelegate) would not let it leave; in a pid
        // namespace it would end with the command, whatever clawbox does.
        let clawbox = Clawbox::new(&scene.world, &policy).user(None).argument("--share=cgroup,pid");
        Self { clawbox, script, told, held, fifo }
    }

    /// Asserts that the process had left, and is no more: nobody reads from the fifo.
    fn is_gone(told: &Path, held: std::fs::File, fifo: &Path) {
        assert!(std::fs::read_to_string(told).unwrap().contains("\"outcome\":\"ok\""));
        drop(held);
        let nonblocking = nix::libc::O_NONBLOCK;
        match std::fs::File::options().write(true).custom_flags(nonblocking).open(fifo) {
            Err(error) => assert_eq!(error.raw_os_error(), Some(nix::libc::ENXIO)),
            // A child of another test, on its way to exec, has what this process had when it was
            // made. It lets go; the process that left would not.
            Ok(writer) => {
                let mut readers = [PollFd::new(writer.as_fd(), PollFlags::empty())];
                let gone = poll(&mut readers, STRAY_PATIENCE).unwrap();
                assert_eq!(gone, 1, "the process that left the cgroup has outlived its run");
            }
        }
    }
}

#[test]
fn a_process_that_left_the_cgroup_ends_with_the_run_too() {
    let scene = Scene::new();
    let Stray { clawbox, script, told, held, fifo } = Stray::new(&scene);
    let run = clawbox.run(&["/bin/bash", "-c", &script]);
    assert_eq!(run.status, 0, "{}", run.stderr);
    Stray::is_gone(&told, held, &fifo);
}

#[test]
fn a_process_that_left_the_cgroup_of_a_killed_run_ends_before_enforcement_does() {
    let scene = Scene::new();
    let Stray { clawbox, script, told, held, fifo } = Stray::new(&scene);
    let mut running = clawbox.spawn(&["/bin/bash", "-c", &format!("{script}; cat")]);
    assert_eq!(running.line(), "left");
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    let next = shell(&scene, "exit 0");
    assert_eq!(next.status, 0, "{}", next.stderr);
    Stray::is_gone(&told, held, &fifo);
    assert_eq!(running.remains(), Vec::<PathBuf>::new());
    scene.nothing_arrived();
}
