//! A daemon of the measurements' own: started, killed, looked at, and taken out of the kernel at the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::room::Room;
use crate::running::Running;

const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon of the measurement's own.
pub struct Daemon {
    process: Option<Running>,
    socket: PathBuf,
    config: PathBuf,
    clawbox: PathBuf,
}

impl Daemon {
    /// Starts one.
    pub fn start(room: &Room) -> Result<Self> {
        let (socket, config) = (room.file("clawbox.sock"), room.file("agent.yaml"));
        let text = format!(
            "name: bench-{}\nsocket: {}\ntrails: {}\nstate: {}\nlimits: {{ sandboxes_per_user: 4096 }}\n",
            std::process::id(),
            socket.display(),
            room.file("trails").display(),
            room.file("state").display()
        );
        fs::write(&config, text)?;
        let clawbox = room.clawbox_program().to_owned();
        let mut daemon = Self { process: None, socket, config, clawbox };
        daemon.start_again()?;
        Ok(daemon)
    }

    /// Starts it after [`Daemon::kill`].
    pub fn start_again(&mut self) -> Result<()> {
        let mut command = Command::new(&self.clawbox);
        command.arg("daemon").arg("--config").arg(&self.config).env("CLAWBOX_LOG", "error");
        // The one before left it there.
        drop(fs::remove_file(&self.socket));
        self.process = Some(Running(command.stdin(Stdio::null()).spawn()?));
        let since = Instant::now();
        while !self.socket.exists() {
            if since.elapsed() > PATIENCE {
                bail!("the daemon does not listen");
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Ends it at once; what it enforces stays.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, |process| process.0.id())
    }

    /// Processor time of all its threads so far.
    pub fn processor(&self) -> Result<Duration> {
        let mut nanoseconds = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            nanoseconds += text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// A `clawbox run` that lacks only its command.
    pub fn run(&self, policy: &Path) -> Command {
        self.run_with(policy, &[])
    }

    /// The same with more options.
    pub fn run_with(&self, policy: &Path, options: &[&str]) -> Command {
        // As a package has it, where that is built.
        let front = self.clawbox.with_file_name("clawbox-front");
        let program = if front.exists() { &front } else { &self.clawbox };
        let mut command = Command::new(program);
        command.args(["run", "--user", "nobody", "--workdir", "/", "--policy"]).arg(policy);
        command.args(options).arg("--").env("CLAWBOX_SOCKET", &self.socket);
        command
    }

    /// Mebibytes of it that are resident and no map's, and those that the process which starts sandboxes in its
    /// place has for itself.
    pub fn resident(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let own = kibibytes(&status, "VmRSS:").context("no VmRSS")?;
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let mut launcher = 0.0;
        for child in children.split_ascii_whitespace() {
            let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
            if name.trim() == "clawbox-launch" {
                let rollup = fs::read_to_string(format!("/proc/{child}/smaps_rollup"))?;
                let of = |field| kibibytes(&rollup, field).unwrap_or_default();
                launcher += of("Private_Clean:") + of("Private_Dirty:");
            }
        }
        Ok((own + launcher) / 1024.0 - self.rings()?)
    }

    /// Mebibytes of maps that it has mapped: those of ring buffers, with their data twice.
    pub fn rings(&self) -> Result<f64> {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", self.pid()))?;
        let (mut is_map, mut sum) = (false, 0.0);
        for line in smaps.lines() {
            // A mapping's first line begins with its place, the others with a field's name.
            if line.split(' ').next().is_some_and(|first| first.contains('-')) {
                is_map = line.ends_with("anon_inode:bpf-map");
            } else if is_map {
                sum += kibibytes(line, "Rss:").unwrap_or_default();
            }
        }
        Ok(sum / 1024.0)
    }

    /// Mebibytes of its maps, as the kernel accounts them.
    pub fn maps(&self) -> Result<f64> {
        // Several descriptors may be of one map.
        let mut bytes = std::collections::BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.pid()))? {
            let text = fs::read_to_string(entry?.path()).unwrap_or_default();
            let number = |what: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(what));
                line.and_then(|line| line.trim().parse::<u64>().ok())
            };
            if let (Some(map), Some(size)) = (number("map_id:"), number("memlock:")) {
                bytes.insert(map, size);
            }
        }
        Ok(bytes.values().sum::<u64>() as f64 / 1_048_576.0)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        let mut uninstall = Command::new(&self.clawbox);
        let _ = uninstall.arg("uninstall").arg("--config").arg(&self.config).output();
    }
}

fn kibibytes(text: &str, field: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}
