//! The side where clawbox runs: a network that leads to the demo's servers alone, and one process
//! in it that makes attempts, one at a time and as told.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::interrupt::{Covered, Interrupt};
use super::outside::NAME_SERVER;
use super::place::{Place, cover};
use super::programs::Programs;
use super::stage::{Stage, USER};

/// Reads one command a line and runs it. Only the commands are started as programs, each as a
/// child of this shell: that is how the audit trail can be told apart into attempts.
const DRIVER: &str = r#"while IFS= read -r attempt; do
eval "$attempt </dev/null 2>&1 &"; wait $!; printf '\n@@%s\n' $?; done"#;
const MARK: &str = "@@";

/// Longer than any attempt may take: a denial is immediate.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the far side may still be writing down when an attempt has ended.
const SETTLE: Duration = Duration::from_millis(20);

/// A network that leads nowhere yet, in a file system where names are asked of the demo's server
/// and of nobody else: with the machine's own settings a question might leave it.
///
/// # Errors
/// The kernel makes no namespaces.
pub fn place(stage: &Stage, arrange: impl FnOnce() -> Result<()> + Send) -> Result<Place> {
    let resolv = stage.write("resolv.conf", &format!("nameserver {NAME_SERVER}\n"), 0o644)?;
    let switch = stage.write("nsswitch.conf", "hosts: files dns\n", 0o644)?;
    Place::network_and_mounts(|| {
        cover(Path::new("/etc/resolv.conf"), &resolv)?;
        if Path::new("/etc/nsswitch.conf").exists() {
            cover(Path::new("/etc/nsswitch.conf"), &switch)?;
        }
        arrange()
    })
}

/// Lets everybody ping in this network, as many distributions do. Says whether that worked.
pub fn open_ping(place: &Place) -> bool {
    let opened =
        place.enter(|| Ok(std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?));
    opened.is_ok()
}

/// `clawbox run` with the demo's policy and trail, up to the `--`.
#[must_use]
pub fn clawbox_run(programs: &Programs, policy: &Path, trail: &Path, workdir: &Path) -> Command {
    let mut command = clean(&programs.clawbox);
    command.arg("run").args(["--name", "demo", "--user", USER]);
    command.arg("--policy").arg(policy).arg("--audit").arg(trail);
    command.arg("--workdir").arg(workdir);
    command.arg("--dns").arg(NAME_SERVER.to_string()).arg("--");
    command
}

/// A command without this user's proxies and settings.
pub fn clean(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("LC_ALL", "C").env("HOME", "/nonexistent");
    for kept in ["TERM", "CLAWBOX_LOG"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command
}

/// What an attempt printed, and its exit status.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Standard output and error.
    pub output: String,
    /// Exit status.
    pub status: i32,
}

/// The process that makes attempts.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    _covered: Covered,
    orders: Option<ChildStdin>,
    lines: Receiver<String>,
    errors: Option<JoinHandle<String>>,
    interrupt: Interrupt,
}

impl Agent {
    /// Starts it under `wrapper`, which is a command that runs the words after it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(place: &Place, wrapper: Command, interrupt: &Interrupt) -> Result<Self> {
        Self::begin(place, wrapper, Some(&["/bin/sh", "-c", DRIVER]), interrupt)
    }

    /// Starts it without clawbox, as the same user and in the same directory.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_plain(place: &Place, stage: &Stage, interrupt: &Interrupt) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        let mut shell = clean("/bin/sh");
        shell.uid(stage.user().uid.as_raw()).gid(stage.user().gid.as_raw());
        shell.current_dir(stage.path("work")).args(["-c", DRIVER]);
        Self::begin(place, shell, None, interrupt)
    }

    fn begin(
        place: &Place,
        mut command: Command,
        words: Option<&[&str]>,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        command.args(words.unwrap_or_default());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let program = command.get_program().to_owned();
        let mut child = place.enter(move || {
            command.spawn().with_context(|| format!("cannot run {}", program.display()))
        })?;
        let covered = interrupt.cover(&child, false);
        let (sender, lines) = channel();
        if let Some(output) = child.stdout.take() {
            thread::spawn(move || {
                let read = BufReader::new(output).split(b'\n').map_while(Result::ok);
                for line in read {
                    if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                        return;
                    }
                }
            });
        }
        let errors = child.stderr.take().map(|mut errors| {
            thread::spawn(move || {
                let mut text = Vec::new();
                let _ = errors.read_to_end(&mut text);
                String::from_utf8_lossy(&text).into_owned()
            })
        });
        let orders = child.stdin.take();
        let interrupt = interrupt.clone();
        Ok(Self { child, _covered: covered, orders, lines, errors, interrupt })
    }

    /// Makes one attempt, and waits until the far side has had time to see of it what there is.
    ///
    /// # Errors
    /// It does not end, or the sandbox has.
    pub fn attempt(&mut self, line: &str) -> Result<Ended> {
        self.interrupt.check()?;
        if let Some(orders) = &mut self.orders {
            // Where nobody reads any more, the end of the output says so, with a reason.
            let _ = writeln!(orders, "{line}").and_then(|()| orders.flush());
        }
        let until = Instant::now() + PATIENCE;
        let mut output = String::new();
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => match line.strip_prefix(MARK).map(str::parse) {
                    Some(Ok(status)) => {
                        thread::sleep(SETTLE);
                        return Ok(Ended { output, status });
                    }
                    _ => {
                        output.push_str(&line);
                        output.push('\n');
                    }
                },
                Err(RecvTimeoutError::Timeout) => {
                    bail!("`{line}` has not ended after {} seconds", PATIENCE.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.interrupt.check()?;
                    let said = self.last_words();
                    bail!("the sandbox ended before its time; clawbox said:\n{}", said.trim());
                }
            }
        }
    }

    /// Ends it as it is meant to end. Gives what clawbox had to say meanwhile.
    ///
    /// # Errors
    /// It failed.
    pub fn end(mut self) -> Result<String> {
        drop(self.orders.take());
        let status = self.child.wait()?;
        let said = self.last_words();
        self.interrupt.check()?;
        if !status.success() {
            bail!("the sandbox ended with {status}; clawbox said:\n{}", said.trim());
        }
        Ok(said)
    }

    fn last_words(&mut self) -> String {
        drop(self.orders.take());
        self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.orders.take());
        let process = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let until = Instant::now() + Duration::from_secs(3);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > until {
                // The next `clawbox run` removes what this one then leaves.
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            let _ = nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM);
            thread::sleep(Duration::from_millis(50));
        }
    }
}
