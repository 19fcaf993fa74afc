//! What the measurements stand in: the clawbox under test, a directory with a policy, the worker's
//! program and the trails, and the ends outside. All of it goes away.

use std::ffi::OsStr;
use std::fmt::Write;
use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::attached::Root;
use crate::dns;
use crate::operation::{Ends, FORWARDED, MIXED, MIXED_PORT, NAME_SERVER, REMEMBERED};
use crate::worker::{ARGUMENT, Worker};

/// Endpoints that the policy names beside the one that is used, so that no lookup is in an empty
/// table.
const OTHER_ENDPOINTS: u8 = 64;

/// Whom sandboxed workers run as.
const USER: &str = "nobody";

/// What clawbox does with a denial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Denies.
    Enforce,
    /// Only records.
    Audit,
}

/// See the module.
#[derive(Debug)]
pub struct Room {
    /// The hierarchy's root.
    pub root: Root,
    /// The ends outside.
    pub ends: Ends,
    clawbox: PathBuf,
    policy: PathBuf,
    program: PathBuf,
    directory: TempDir,
    /// Where names of [`REMEMBERED`] and [`FORWARDED`] are served; others are asked for by nobody.
    pub name_server: SocketAddr,
}

/// What a sandbox's trail has in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trail {
    /// Connects and sends that are in it.
    pub network: u64,
    /// Events that were lost, by the trail's own gap records.
    pub lost: u64,
    /// Denials, of which the measurements make none.
    pub denied: u64,
}

impl Room {
    /// Makes everything ready around a clawbox.
    pub fn open(clawbox: &Path) -> Result<Self> {
        let clawbox = clawbox
            .canonicalize()
            .with_context(|| format!("cannot find `{}`", clawbox.display()))?;
        let directory = tempfile::Builder::new().prefix("clawbox-bench-").tempdir()?;
        // The sandboxed worker is another user.
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
        let program = directory.path().join("bench-worker");
        fs::copy(std::env::current_exe()?, &program)?;
        fs::set_permissions(&program, Permissions::from_mode(0o755))?;
        let ends = Ends::bind()?;
        let policy = directory.path().join("policy.yaml");
        fs::write(&policy, policy_text(&program, ends.address()?.port()))?;
        let name_server = dns::serve()?;
        let root = Root::open()?;
        Ok(Self { root, ends, clawbox, policy, program, directory, name_server })
    }

    /// A `clawbox run` that lacks only its command.
    pub fn clawbox<S: AsRef<OsStr>>(&self, mode: Mode, trail: &str, command: &[S]) -> Command {
        let mut clawbox = Command::new(&self.clawbox);
        clawbox
            .args(["run", "--name", "bench", "--user", USER, "--workdir", "/"])
            .args(["--mode", if mode == Mode::Enforce { "enforce" } else { "audit" }])
            .arg("--policy")
            .arg(&self.policy)
            .arg("--audit")
            .arg(self.trail(trail))
            .args(["--dns", &self.name_server.to_string()])
            .arg("--")
            .args(command)
            .env("CLAWBOX_LOG", "error");
        clawbox
    }

    /// A worker inside a sandbox of its own.
    pub fn sandboxed(&self, mode: Mode) -> Result<Worker> {
        let command = [self.program.as_os_str(), OsStr::new(ARGUMENT)];
        let mut clawbox = self.clawbox(mode, "worker", &command);
        // Whatever server is asked, the sandbox's resolver answers.
        Worker::start(clawbox.env(NAME_SERVER, "127.0.0.53:53"), &self.ends)
    }

    /// One under a policy of so many rules.
    pub fn sandboxed_under(&self, rules: usize) -> Result<Worker> {
        let command = [self.program.as_os_str(), OsStr::new(ARGUMENT)];
        let clawbox = self.clawbox(Mode::Enforce, "worker", &command);
        let presets = self.presets(rules)?;
        // Before `--`, which ends what is clawbox's own.
        let words: Vec<_> = clawbox.get_args().map(ToOwned::to_owned).collect();
        let mut command = Command::new(&self.clawbox);
        command.arg(&words[0]);
        for preset in presets {
            command.arg("--preset").arg(preset);
        }
        command.args(&words[1..]).env("CLAWBOX_LOG", "error");
        Worker::start(&mut command, &self.ends)
    }

    /// Presets that make the policy have about so many rules: hosts with a thousand ports each.
    fn presets(&self, rules: usize) -> Result<Vec<PathBuf>> {
        const PORTS: usize = 1000;
        const HOSTS: usize = 40;
        let left = rules.saturating_sub(usize::from(OTHER_ENDPOINTS));
        let hosts = left.div_ceil(PORTS);
        let mut presets = Vec::new();
        for first in (0..hosts).step_by(HOSTS) {
            let path = self.file(&format!("rules-{rules}-{first}.yaml"));
            if !path.exists() {
                let hosts = first..(first + HOSTS).min(hosts);
                fs::write(&path, preset_text(&self.program, hosts, PORTS.min(left)))?;
            }
            presets.push(path);
        }
        Ok(presets)
    }

    /// The clawbox under test.
    pub fn clawbox_program(&self) -> &Path {
        &self.clawbox
    }

    /// The file of a policy of about so many rules, under which the worker may reach the ends.
    pub fn policy_of(&self, name: &str, rules: usize) -> Result<PathBuf> {
        let mut text = fs::read_to_string(&self.policy)?;
        let others = rules.saturating_sub(usize::from(OTHER_ENDPOINTS));
        let _ = writeln!(text, "  others:\n    endpoints:");
        for host in 0..others.div_ceil(50) {
            let ports: Vec<String> =
                (1..=50.min(others)).map(|port| (1000 + port).to_string()).collect();
            let ports = ports.join(",");
            let _ = writeln!(text, "      - {{ host: 198.51.100.{host}, ports: [{ports}] }}");
        }
        let _ = writeln!(text, "    binaries: [{{ path: {} }}]", self.program.display());
        let path = self.file(&format!("{name}.yaml"));
        fs::write(&path, text)?;
        Ok(path)
    }

    /// The file of a policy that allows [`crate::operation::Operation::UdpConnectMixed`] but for the hundredth.
    pub fn policy_of_mixed(&self) -> Result<PathBuf> {
        let mut text = fs::read_to_string(&self.policy)?;
        text += "  mixed:\n    endpoints:\n";
        for last in 0..MIXED {
            let _ = writeln!(
                text,
                "      - {{ host: 127.0.1.{last}, port: {MIXED_PORT}, transport: any, \
                 host_loopback: true }}"
            );
        }
        let _ = writeln!(text, "    binaries: [{{ path: {} }}]", self.program.display());
        let path = self.file("mixed.yaml");
        fs::write(&path, text)?;
        Ok(path)
    }

    /// A file of the measurements' own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The worker's program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A worker outside.
    pub fn outside(&self) -> Result<Worker> {
        Worker::outside(&self.program, &self.ends)
    }

    fn trail(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.jsonl"))
    }

    /// Reads and removes the trail of the last sandboxed worker.
    pub fn take_trail(&self) -> Result<Trail> {
        let path = self.trail("worker");
        let text = fs::read_to_string(&path)?;
        fs::remove_file(&path)?;
        let mut trail = Trail::default();
        for line in text.lines() {
            let record: serde_json::Value = serde_json::from_str(line)?;
            match record["class"].as_str() {
                // One may stand for many that are alike.
                Some("network") => trail.network += record["object"]["times"].as_u64().unwrap_or(1),
                Some("gap") => trail.lost += record["object"]["count"].as_u64().unwrap_or(0),
                _ => {}
            }
            trail.denied += u64::from(record["verdict"] == "deny");
        }
        Ok(trail)
    }
}

fn preset_text(program: &Path, hosts: std::ops::Range<usize>, ports: usize) -> String {
    let ports: Vec<String> = (1024..1024 + ports).map(|port| port.to_string()).collect();
    let ports = ports.join(",");
    let key = hosts.start;
    let mut text = format!(
        "preset: {{ name: rules, description: rules }}\nnetwork_policies:\n  r{key}:\n    endpoints:\n"
    );
    for host in hosts {
        let _ = writeln!(text, "      - {{ host: 198.51.{}.{}, ports: [{ports}] }}", 100, host);
    }
    let _ = writeln!(text, "    binaries: [{{ path: {} }}]", program.display());
    text
}

fn policy_text(program: &Path, port: u16) -> String {
    let mut text = String::from("version: 1\nfilesystem_policy:\n  read_only: [/]\n");
    text += "network_policies:\n  bench:\n    name: bench\n    endpoints:\n";
    let _ = writeln!(
        text,
        "      - {{ host: 127.0.0.1, port: {port}, transport: any, host_loopback: true }}"
    );
    for name in [REMEMBERED, FORWARDED] {
        let _ = writeln!(text, "      - {{ host: {name}, port: 443 }}");
    }
    for other in 0..OTHER_ENDPOINTS {
        let _ = writeln!(text, "      - {{ host: 192.0.2.{other}, port: 443 }}");
    }
    let _ = writeln!(text, "    binaries: [{{ path: {} }}]", program.display());
    text
}
