//! A `clawbox daemon` in a world, and who asks it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::clawbox::{cgroup_root, program};
use crate::names::PORT;
use crate::network::{NAMESERVER, NOBODY, World};

/// How long it may take to be ready, on an emulated machine too.
const PATIENCE: Duration = Duration::from_secs(180);

/// A daemon that runs.
pub struct Daemon<'w> {
    world: &'w World,
    child: Option<Child>,
    name: String,
    directory: PathBuf,
    lsm: &'static str,
    /// More lines of its configuration.
    more: String,
    /// What it says, line by line.
    said: Option<mpsc::Receiver<String>>,
    /// Descriptors that it may have.
    most_descriptors: Option<u64>,
    /// Daemons that were started.
    starts: AtomicU32,
    /// What is `/etc/group` to it.
    groups: Option<PathBuf>,
}

impl<'w> Daemon<'w> {
    /// Starts one, without BPF LSM: an emulated machine takes ten seconds to verify its programs.
    #[must_use]
    pub fn start(world: &'w World) -> Self {
        Self::start_with(world, "off")
    }

    /// Starts one; `lsm` as the configuration has it.
    #[must_use]
    pub fn start_with(world: &'w World, lsm: &'static str) -> Self {
        Self::start_configured(world, lsm, "")
    }

    /// Starts one, with more lines in its configuration.
    #[must_use]
    pub fn start_configured(world: &'w World, lsm: &'static str, more: &str) -> Self {
        let mut daemon = Self::at_rest(world, lsm, more);
        daemon.start_again();
        daemon
    }

    /// One that does not run yet.
    #[must_use]
    pub fn at_rest(world: &'w World, lsm: &'static str, more: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // Pins and cgroups are the whole machine's.
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{number}", std::process::id());
        let directory = world.private().join(&name);
        let more = more.to_owned();
        fs::create_dir_all(&directory).expect("the directory of a world can be written");
        let (child, said, most_descriptors, groups, starts) = Default::default();
        Self { world, child, name, directory, lsm, more, said, most_descriptors, groups, starts }
    }

    /// Starts one that has a standing rule.
    #[must_use]
    pub fn start_standing(world: &'w World, lsm: &'static str, rule: &str) -> Self {
        let daemon = Self::start_with(world, lsm);
        let directory = daemon.directory.join("standing");
        fs::create_dir_all(&directory).expect("the directory of a world can be written");
        let file = directory.join("rule.yaml");
        fs::write(&file, rule).expect("the directory of a world can be written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("it is there");
        daemon.reload(|text| text);
        let _ = daemon.says("reloaded");
        daemon
    }

    /// Gives it groups of its own from its next start on, as `/etc/group` has them.
    ///
    /// # Panics
    /// The directory of the world cannot be written.
    pub fn give_groups(&mut self, text: &str) {
        let path = self.directory.join("group");
        fs::write(&path, text).expect("the directory of a world can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("it is there");
        self.groups = Some(path);
    }

    /// Lets it have no more descriptors than these from its next start on.
    pub fn bound_descriptors(&mut self, most: Option<u64>) {
        self.most_descriptors = most;
    }

    /// Its process.
    ///
    /// # Panics
    /// It does not run.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// A directory of its own: `state`, `trails` or `standing`.
    #[must_use]
    pub fn place(&self, what: &str) -> PathBuf {
        self.directory.join(what)
    }

    /// What it says when it cannot start.
    ///
    /// # Panics
    /// It starts.
    #[must_use]
    pub fn says_why_it_does_not_start(&self) -> String {
        assert!(self.child.is_none(), "it runs");
        let output = self.starting().output().expect("clawbox can be executed");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        said
    }

    /// Starts it once more, after it has ended.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let mut child = self.starting().spawn().expect("clawbox can be executed");
        let stderr = child.stderr.take().expect("a pipe was asked for");
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                eprintln!("daemon: {line}");
                let _ = tell.send(line);
            }
        });
        (self.child, self.said) = (Some(child), Some(told));
        let _ = self.says(" ready ");
    }

    /// Where there is another build to take over from this one, and back, each in its turn.
    fn next_program(&self) -> PathBuf {
        let number = self.starts.fetch_add(1, Ordering::Relaxed);
        let other = std::env::var_os("CLAWBOX_TESTS_OTHER").filter(|_| number % 2 == 1);
        other.map_or_else(program, PathBuf::from)
    }

    /// With its configuration as it is now.
    fn starting(&self) -> Command {
        let directory = self.directory.display();
        let config = format!(
            "name: {}\nsocket: {}\ntrails: {directory}/trails\nstate: {directory}/state\n\
             standing: {directory}/standing\ndns: [\"{NAMESERVER}:{PORT}\"]\nlsm: {}\n{}",
            self.name,
            self.socket().display(),
            self.lsm,
            self.more
        );
        let file = self.directory.join("agent.yaml");
        fs::write(&file, config).expect("the directory of a world can be written");
        let mut command = Command::new(self.next_program());
        command.arg("daemon").arg("--config").arg(&file).env("CLAWBOX_LOG", "info");
        command.env_remove("LD_LIBRARY_PATH").stdin(Stdio::null()).stderr(Stdio::piped());
        self.world.enter(&mut command);
        if let Some(groups) = self.groups.clone() {
            // SAFETY: the closure makes one system call on a value that it owns, in the command's own mounts.
            unsafe {
                command.pre_exec(move || {
                    let nothing = None::<&str>;
                    Ok(mount(Some(&groups), "/etc/group", nothing, MsFlags::MS_BIND, nothing)?)
                });
            }
        }
        if let Some(most) = self.most_descriptors {
            // SAFETY: the closure makes one system call on numbers.
            unsafe {
                command.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?));
            }
        }
        command
    }

    /// Waits for a line of what it says, and gives those until then.
    pub fn says(&self, what: &str) -> Vec<String> {
        let said = self.said.as_ref().expect("it was started");
        let mut lines = Vec::new();
        while lines.last().is_none_or(|line: &String| !line.contains(what)) {
            match said.recv_timeout(PATIENCE) {
                Ok(line) => lines.push(line),
                Err(error) => panic!("`{what}` was not said: {error}: {lines:#?}"),
            }
        }
        lines
    }

    /// Changes its configuration and has it read again.
    pub fn reload(&self, change: impl FnOnce(String) -> String) {
        let file = self.directory.join("agent.yaml");
        let text = fs::read_to_string(&file).expect("it was written at the start");
        fs::write(&file, change(text)).expect("the directory of a world can be written");
        let child = self.child.as_ref().expect("it runs");
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGHUP).expect("it is there");
    }

    /// The socket that it listens at: in a directory that every user may enter.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.world.work().with_file_name(format!("{}.sock", self.name))
    }

    /// Where a sandbox's trail is.
    #[must_use]
    pub fn trail(&self, id: &str) -> Vec<Value> {
        let path = self.directory.join("trails").join(format!("{id}.jsonl"));
        let text = fs::read_to_string(&path).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The same once it says enough: what happens is written down a moment later, on a busy machine seconds.
    ///
    /// # Panics
    /// It does not within two minutes.
    #[must_use]
    pub fn trail_once(&self, id: &str, is_enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let since = std::time::Instant::now();
        loop {
            let trail = self.trail(id);
            if is_enough(&trail) {
                return trail;
            }
            assert!(since.elapsed().as_secs() < 120, "not within two minutes: {trail:#?}");
            std::thread::yield_now();
        }
    }

    /// What it is called; its own trail is by that name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where what it has put into the kernel is pinned.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf/clawbox").join(&self.name)
    }

    /// A sandbox's cgroup, in the one that all are in.
    #[must_use]
    pub fn cgroup(&self, id: &str) -> String {
        format!("{}.{id}", self.name)
    }

    /// A command line of `clawbox`, as root.
    #[must_use]
    pub fn clawbox(&self, arguments: &[&str]) -> Command {
        self.by(&program(), arguments)
    }

    /// The same by another program.
    #[must_use]
    pub fn by(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env("CLAWBOX_SOCKET", self.socket());
        for foreign in ["CLAWBOX_POLICY", "CLAWBOX_LOG", "LD_LIBRARY_PATH"] {
            command.env_remove(foreign);
        }
        command.current_dir(self.world.work());
        self.world.enter(&mut command);
        command
    }

    /// The same as `nobody`, who has no rights on the machine.
    #[must_use]
    pub fn as_nobody(&self, arguments: &[&str]) -> Command {
        self.as_user(NOBODY, arguments)
    }

    /// The same as a user of this number, who need not exist.
    #[must_use]
    pub fn as_user(&self, user: u32, arguments: &[&str]) -> Command {
        let mut command = self.clawbox(arguments);
        // After the namespaces are entered, which takes root.
        // SAFETY: the closure makes system calls on numbers.
        unsafe {
            command.pre_exec(move || {
                nix::unistd::setgroups(&[])?;
                nix::unistd::setgid(user.into())?;
                Ok(nix::unistd::setuid(user.into())?)
            });
        }
        command
    }

    /// A policy's file, which everybody may read.
    #[must_use]
    pub fn policy(&self, name: &str, text: &str) -> String {
        let path = self.world.bin().join(format!("{name}.yaml"));
        fs::write(&path, text).expect("the directory of a world can be written");
        path.display().to_string()
    }

    /// The sandboxes that root sees.
    #[must_use]
    pub fn list(&self) -> Vec<Value> {
        let output =
            self.clawbox(&["list", "--format", "json"]).output().expect("it can be executed");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    /// A copy of what it has written down of its sandboxes; its audit store is not of that.
    #[must_use]
    pub fn keep_state(&self) -> PathBuf {
        let copy = self.directory.join("state-before");
        let from = self.directory.join("state");
        fs::create_dir(&copy).expect("a directory of this world's");
        for entry in fs::read_dir(&from).expect("the daemon has made it") {
            let entry = entry.expect("it can be listed");
            if entry.path().is_dir() {
                continue;
            }
            fs::copy(entry.path(), copy.join(entry.file_name())).expect("it can be read");
        }
        copy
    }

    /// Puts a copy in the place of what it has written down since.
    pub fn put_state_back(&self, copy: PathBuf) {
        let state = self.directory.join("state");
        fs::rename(state.join("audit"), copy.join("audit")).expect("every daemon has a store");
        fs::remove_dir_all(&state).expect("nobody has it open");
        fs::rename(copy, state).expect("a directory of this world's");
    }

    /// Whether it starts with another `lsm`; it is not running then either.
    #[must_use]
    pub fn starts_with(&self, lsm: &str) -> bool {
        let file = self.directory.join("agent.yaml");
        let text = fs::read_to_string(&file).expect("it was written at the start");
        let other = file.with_file_name("other.yaml");
        fs::write(&other, text.replace(&format!("lsm: {}", self.lsm), &format!("lsm: {lsm}")))
            .expect("the directory of a world can be written");
        let mut command = Command::new(self.next_program());
        command.arg("daemon").arg("--config").arg(&other).stdin(Stdio::null());
        self.world.enter(&mut command);
        command.status().expect("clawbox can be executed").success()
    }

    /// Sends it a signal, once it has done what it was asked so far, and waits for its end. A start that it
    /// is killed in the middle of is undone by the next one, which is a test of its own.
    pub fn end_by(&mut self, signal: Signal) {
        if self.child.is_some() {
            let _ = self.list();
        }
        if let Some(mut child) = self.child.take() {
            kill(Pid::from_raw(child.id().cast_signed()), signal).expect("it is there");
            child.wait().expect("it ends");
        }
    }

    /// Ends it at whatever it is doing.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it is there");
            child.wait().expect("it ends");
        }
    }

    /// What it has put into the system and is still there.
    #[must_use]
    pub fn remains(&self) -> Vec<PathBuf> {
        let possible = [
            Path::new("/sys/fs/bpf/clawbox").join(&self.name),
            cgroup_root().join("clawbox").join(format!(".{}", self.name)),
        ];
        possible.into_iter().filter(|path| path.exists()).collect()
    }

    /// Ends it and all of its sandboxes, and takes its programs out of the kernel.
    pub fn uninstall(&mut self) -> Output {
        self.end_by(Signal::SIGTERM);
        let file = self.directory.join("agent.yaml");
        let mut command = self.clawbox(&["uninstall", "--config"]);
        command.arg(file).output().expect("it can be executed")
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let output = self.uninstall();
        if !output.status.success() {
            eprintln!("uninstall: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
