//! Runs of `clawbox run` in a world: the policy as text, the command, and what came of it, with
//! the audit trail as values.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use serde_json::Value;

use crate::names::PORT;
use crate::network::{NAMESERVER, World};
use crate::refusal::{self, Refusal};

/// No run of a test takes longer, not even on an emulated machine, unless it says so.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program under test: `CLAWBOX`, or what was built beside this test.
#[must_use]
pub fn program() -> PathBuf {
    std::env::var_os("CLAWBOX").map_or_else(|| beside("clawbox"), PathBuf::from)
}

/// A program of the tests' own: in `CLAWBOX_TESTS`, or beside this test.
#[must_use]
pub fn tool(name: &str) -> PathBuf {
    let directory = std::env::var_os("CLAWBOX_TESTS").map(PathBuf::from);
    let path = directory.map_or_else(|| beside(name), |directory| directory.join(name));
    assert!(path.exists(), "`{}` is not there; run `cargo xtask test`", path.display());
    path
}

/// Tests are in `target/debug/deps`, programs in `target/debug`.
fn beside(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("/proc is mounted");
    let here = test.parent().expect("a program is in a directory");
    [here, here.parent().unwrap_or(here)]
        .map(|directory| directory.join(name))
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("`{name}` is not built; run `cargo xtask build`"))
}

/// A run that is being set up.
pub struct Clawbox<'w> {
    world: &'w World,
    /// The option that says which, and its value.
    policy: [OsString; 2],
    user: Option<String>,
    name: Option<String>,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    workdir: PathBuf,
    trail: Option<PathBuf>,
    stdin: Option<Stdio>,
    lsm: bool,
    records_refusals: bool,
    patience: Duration,
    refusals: Vec<Refusal>,
    covered: Vec<(PathBuf, PathBuf)>,
    names_server: bool,
}

impl<'w> Clawbox<'w> {
    /// A run under this policy, as `nobody`, with the far side's name server.
    #[must_use]
    pub fn new(world: &'w World, policy: &str) -> Self {
        let policy_file = unused(&world.private(), "policy.yaml");
        fs::write(&policy_file, policy).expect("the directory of a world can be written");
        Self::with_policy_file(world, policy_file)
    }

    /// A run under the policy in a file, which need not be one.
    #[must_use]
    pub fn with_policy_file(world: &'w World, policy: PathBuf) -> Self {
        Self::under(world, ["--policy".into(), policy.into()])
    }

    /// A run under the built-in policy of an agent.
    #[must_use]
    pub fn with_profile(world: &'w World, name: &str) -> Self {
        Self::under(world, ["--profile".into(), name.into()])
    }

    fn under(world: &'w World, policy: [OsString; 2]) -> Self {
        Self {
            world,
            policy,
            user: Some("nobody".to_owned()),
            name: None,
            arguments: Vec::new(),
            variables: Vec::new(),
            workdir: world.work(),
            trail: Some(unused(&world.private(), "trail.jsonl")),
            stdin: None,
            lsm: false,
            records_refusals: true,
            patience: PATIENCE,
            refusals: Vec::new(),
            covered: Vec::new(),
            names_server: true,
        }
    }

    /// With the host's own name servers, as `/etc/resolv.conf` has them.
    #[must_use]
    pub fn with_name_servers_of_host(mut self) -> Self {
        self.names_server = false;
        self
    }

    /// On a host that refuses clawbox a system call.
    #[must_use]
    pub fn refused(mut self, refusal: Refusal) -> Self {
        self.refusals.push(refusal);
        self
    }

    /// On a host where a file says something else.
    #[must_use]
    pub fn covered(mut self, path: &str, text: &str) -> Self {
        let cover = unused(&self.world.private(), "cover");
        fs::write(&cover, text).expect("the directory of a world can be written");
        self.covered.push((cover, path.into()));
        self
    }

    /// On a host where a directory is another one.
    #[must_use]
    pub fn bound(mut self, directory: &Path, path: &str) -> Self {
        self.covered.push((directory.to_owned(), path.into()));
        self
    }

    /// The file that stands for one of the host's.
    ///
    /// # Panics
    /// It is not covered.
    #[must_use]
    pub fn cover(&self, path: &str) -> PathBuf {
        let found = self.covered.iter().find(|(_, covered)| covered == Path::new(path));
        found.map(|(cover, _)| cover.clone()).expect("it is covered")
    }

    /// Another user; `None` is whom the policy says, or root.
    #[must_use]
    pub fn user(mut self, user: Option<&str>) -> Self {
        self.user = user.map(str::to_owned);
        self
    }

    /// With BPF LSM where the kernel has it. Most runs go without, because an emulated machine takes
    /// ten seconds to verify the programs.
    #[must_use]
    pub fn with_lsm(self) -> Self {
        self.with_lsm_if(true)
    }

    /// The same where the kernel has them.
    #[must_use]
    pub fn with_lsm_if(mut self, has_lsm: bool) -> Self {
        self.lsm = has_lsm;
        self
    }

    /// As it is unless asked for otherwise: where BPF LSM does not decide, what the backstops refuse
    /// is not recorded.
    #[must_use]
    pub fn without_refusals(mut self) -> Self {
        self.records_refusals = false;
        self
    }

    /// With longer to come to its end.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Another name for the sandbox.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self.argument("--name").argument(name)
    }

    /// One more argument of `clawbox run`.
    #[must_use]
    pub fn argument(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// One more variable of the environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Another directory to start in.
    #[must_use]
    pub fn workdir(mut self, directory: &Path) -> Self {
        directory.clone_into(&mut self.workdir);
        self
    }

    /// No `--audit`; arguments of the test's own say where the trail goes.
    #[must_use]
    pub fn without_trail(mut self) -> Self {
        self.trail = None;
        self
    }

    /// Something else than a pipe as standard input.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = Some(stdin.into());
        self
    }

    /// The command line, ready to be started.
    pub fn command<S: AsRef<OsStr>>(&self, command: &[S]) -> Command {
        let mut clawbox = Command::new(program());
        clawbox.arg("run").args(&self.policy);
        clawbox.arg("--workdir").arg(&self.workdir);
        if self.names_server {
            clawbox.arg("--dns").arg(format!("{NAMESERVER}:{PORT}"));
        }
        if let Some(user) = &self.user {
            clawbox.args(["--user", user]);
        }
        if let Some(trail) = &self.trail {
            clawbox.arg("--audit").arg(trail);
        }
        if !self.lsm {
            clawbox.args(["--lsm", "off"]);
        }
        if self.records_refusals && !self.lsm {
            clawbox.arg("--refusals");
        }
        clawbox.args(&self.arguments).arg("--").args(command);
        clawbox.envs(self.variables.iter().map(|(name, value)| (name, value)));
        // cargo leads the loader to its own libraries, which no policy opens.
        for foreign in ["CLAWBOX_POLICY", "CLAWBOX_LOG", "LD_LIBRARY_PATH"] {
            clawbox.env_remove(foreign);
        }
        self.world.enter(&mut clawbox);
        for (cover, path) in self.covered.clone() {
            // SAFETY: the closure makes one system call on values that it owns.
            unsafe {
                clawbox.pre_exec(move || {
                    let (nothing, bind) = (None::<&str>, MsFlags::MS_BIND);
                    Ok(mount(Some(&cover), &path, nothing, bind, nothing)?)
                });
            }
        }
        for refusal in &self.refusals {
            let mut filter = refusal.filter();
            // SAFETY: the closure makes one system call on a value that it owns.
            unsafe { clawbox.pre_exec(move || refusal::apply(&mut filter)) };
        }
        clawbox
    }

    /// Starts the command.
    #[must_use]
    pub fn spawn<S: AsRef<OsStr>>(mut self, command: &[S]) -> Running {
        let mut clawbox = self.command(command);
        clawbox.stdin(self.stdin.take().unwrap_or_else(Stdio::piped));
        clawbox.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = clawbox.spawn().expect("clawbox can be executed");
        let (lines, read) = mpsc::channel();
        let stdout = child.stdout.take().map(|stdout| collect(stdout, Some(lines)));
        let stderr = child.stderr.take().map(|stderr| collect(stderr, None));
        let name = self.name.unwrap_or_else(|| name_of(command.first()));
        let cgroup = cgroup_root().join("clawbox").join(format!("{name}-{}", child.id()));
        Running {
            name,
            sandbox: EndsSandbox(cgroup),
            stdin: child.stdin.take(),
            child,
            lines: read,
            stdout,
            stderr,
            trail: self.trail,
            patience: self.patience,
            locks: self.world.locks(),
        }
    }

    /// Runs the command to its end; nothing may be left behind.
    #[must_use]
    pub fn run<S: AsRef<OsStr>>(self, command: &[S]) -> Finished {
        self.spawn(command).wait()
    }
}

/// A path in a directory that is not used yet.
fn unused(directory: &Path, name: &str) -> PathBuf {
    (0..)
        .map(|number| directory.join(format!("{number}-{name}")))
        .find(|path| !path.exists())
        .expect("numbers do not end")
}

/// What clawbox calls a sandbox without a name.
fn name_of<S: AsRef<OsStr>>(command: Option<&S>) -> String {
    let program = command.map(|program| Path::new(program.as_ref()));
    let name = program.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_default()
}

fn collect(
    mut from: impl Read + Send + 'static,
    lines: Option<mpsc::Sender<String>>,
) -> JoinHandle<String> {
    thread::spawn(move || {
        let (mut all, mut told, mut buffer) = (Vec::new(), 0, [0; 4096]);
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            all.extend_from_slice(&buffer[..length]);
            let Some(lines) = &lines else { continue };
            while let Some(end) = all[told..].iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(&all[told..told + end]).into_owned();
                told += end + 1;
                let _ = lines.send(line);
            }
        }
        String::from_utf8_lossy(&all).into_owned()
    })
}

/// A run that goes on.
pub struct Running {
    name: String,
    /// The clawbox process.
    pub child: Child,
    /// The other end of the command's standard input, if that is a pipe.
    pub stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
    trail: Option<PathBuf>,
    patience: Duration,
    locks: PathBuf,
    sandbox: EndsSandbox,
}

/// Ends a run's sandbox when it is dropped: a test that fails must leave nothing running, and no
/// later run of its world is there to clean up.
struct EndsSandbox(PathBuf);

impl EndsSandbox {
    fn end(&self) {
        // It has ended already if its test went well.
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
    }
}

impl Drop for EndsSandbox {
    fn drop(&mut self) {
        self.end();
    }
}

impl Running {
    /// The next line that the command writes.
    ///
    /// # Panics
    /// It writes none.
    pub fn line(&mut self) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(error) => {
                // The sandbox too, which a killed clawbox leaves behind: it has the same stderr.
                let _ = self.child.kill();
                self.sandbox.end();
                let stderr = self.stderr.take().and_then(|thread| thread.join().ok());
                panic!(
                    "the command wrote no line ({error}); stderr: {}",
                    stderr.unwrap_or_default()
                )
            }
        }
    }

    /// Writes a line to the command.
    pub fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("standard input is a pipe");
        stdin.write_all(format!("{line}\n").as_bytes()).expect("the command reads");
    }

    /// Sends a signal to clawbox itself.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let clawbox = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(clawbox, signal).expect("clawbox is there");
    }

    /// Whether the command's standard output is closed within the time that a test may take.
    #[must_use]
    pub fn stdout_ends(&mut self) -> bool {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return true,
                Err(mpsc::RecvTimeoutError::Timeout) => return false,
            }
        }
    }

    /// The trail as far as it is written.
    #[must_use]
    pub fn trail(&self) -> Vec<Value> {
        self.trail.as_deref().map(read_trail).unwrap_or_default()
    }

    /// The run's own name.
    #[must_use]
    pub fn run(&self) -> String {
        format!("{}-{}", self.name, self.child.id())
    }

    /// What the run has put into the system and is still there.
    #[must_use]
    pub fn remains(&self) -> Vec<PathBuf> {
        remains(&self.name, self.child.id(), &self.locks)
    }

    /// The sandbox's processes, by the host's numbers; none before it begins and after it ends.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let list = cgroup_root().join("clawbox").join(self.run()).join("cgroup.procs");
        let text = fs::read_to_string(list).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Where the run keeps its kernel objects from being removed.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        pins(&self.name, self.child.id())
    }

    /// Closes the command's standard input and waits for the end. Nothing may be left behind.
    ///
    /// # Panics
    /// The run does not end, or something is left behind.
    #[must_use]
    pub fn wait(mut self) -> Finished {
        drop(self.stdin.take());
        let (pid, ended) = (self.child.id(), deadline(self.child, self.patience));
        if ended.is_none() {
            self.sandbox.end();
        }
        let text = |thread: Option<JoinHandle<String>>| {
            thread.and_then(|thread| thread.join().ok()).unwrap_or_default()
        };
        let (stdout, stderr) = (text(self.stdout.take()), text(self.stderr.take()));
        let Some(ended) = ended else { panic!("clawbox did not end: {stdout}{stderr}") };
        let left = remains(&self.name, pid, &self.locks);
        assert!(left.is_empty(), "left behind: {left:?}\n{stderr}");
        Finished {
            status: ended
                .code()
                .or_else(|| ended.signal().map(|signal| 128 + signal))
                .unwrap_or(-1),
            stdout,
            stderr,
            trail: self.trail.as_deref().map(read_trail).unwrap_or_default(),
            trail_file: self.trail,
        }
    }
}

/// Waits for the end; a process that does not come to one is killed.
fn deadline(mut child: Child, patience: Duration) -> Option<ExitStatus> {
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let (tell, told) = mpsc::channel();
    let waiting = thread::spawn(move || {
        let ended = child.wait();
        let _ = tell.send(());
        ended
    });
    let in_time = told.recv_timeout(patience).is_ok();
    if !in_time {
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
    waiting.join().ok()?.ok().filter(|_| in_time)
}

fn read_trail(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    // While it is being written, the last line may not be whole.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// The version 2 hierarchy of control groups.
///
/// # Panics
/// None is mounted.
#[must_use]
pub fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
    let root = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    });
    root.expect("a version 2 hierarchy of control groups is mounted")
}

/// The file system of pins has no dots in names.
fn pins(name: &str, pid: u32) -> PathBuf {
    Path::new("/sys/fs/bpf/clawbox").join(format!("{name}-{pid}").replace('.', "+"))
}

fn remains(name: &str, pid: u32, locks: &Path) -> Vec<PathBuf> {
    let run = format!("{name}-{pid}");
    let possible = [
        cgroup_root().join("clawbox").join(&run),
        pins(name, pid),
        locks.join(format!("{run}.lock")),
    ];
    possible.into_iter().filter(|path| path.exists()).collect()
}

/// A run that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit status, as a shell counts.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The audit trail.
    pub trail: Vec<Value>,
    /// The file that it was read from.
    pub trail_file: Option<PathBuf>,
}

impl Finished {
    /// Records of one action, such as `connect`.
    #[must_use]
    pub fn records(&self, action: &str) -> Vec<&Value> {
        self.trail.iter().filter(|record| record["action"] == action).collect()
    }

    /// What `clawbox why` says of each of its denials, each kind once.
    ///
    /// # Panics
    /// It says nothing.
    #[must_use]
    pub fn explained(&self) -> Vec<Value> {
        let mut command = Command::new(program());
        command.args(["why", "--all", "--format", "json", "--trail"]);
        command.arg(self.trail_file.as_ref().expect("it has a trail"));
        command.env_remove("CLAWBOX_POLICY").env_remove("LD_LIBRARY_PATH");
        let output = command.output().expect("clawbox can be executed");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    /// Records of denials.
    #[must_use]
    pub fn denials(&self) -> Vec<&Value> {
        self.trail.iter().filter(|record| record["verdict"] == "deny").collect()
    }
}
