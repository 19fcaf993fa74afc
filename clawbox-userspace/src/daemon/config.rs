//! The agent's configuration, `/etc/clawbox/agent.yaml`: what is said once for a whole host. What is not
//! written has a default, and what is not known is an error.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::listen_at::ListenAt;
use super::watchdog::Every;
use crate::api;
use crate::audit::store::limits as audit;
use crate::dns::Upstream;
use crate::sandbox::limits::Memory;
use crate::sandbox::run::LsmUse;
use crate::ship::Ship;

/// Where it is looked for if nothing else is said.
pub const FILE: &str = "/etc/clawbox/agent.yaml";

/// A configuration file is no larger.
const LARGEST: u64 = 256 << 10;

/// The agent's configuration.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which agent of the host this is: its pins and its state go by this name.
    pub name: String,
    /// The control socket.
    pub socket: PathBuf,
    /// Where audit trails go, a file for each sandbox.
    pub trails: PathBuf,
    /// What outlives the agent: the sandboxes' policies and their revisions.
    pub state: PathBuf,
    /// Where standing rules are: which cgroups that others make are sandboxes, a file each.
    pub standing: PathBuf,
    /// Name servers, in place of the host's: ADDRESS or ADDRESS:PORT.
    pub dns: Vec<String>,
    /// What to make of the kernel's BPF LSM: auto, require or off.
    pub lsm: Lsm,
    /// Record what seccomp refuses, at the cost of some time for every system call of the host.
    pub refusals: bool,
    /// Where metrics are to be had: off, unix:PATH, or an address of loopback with a port.
    pub metrics: ListenAt,
    /// How often it is looked whether what enforces is attached and denies: from 1s to 1h.
    pub watchdog: Every,
    /// The host's audit store, in the directory `audit` of `state`.
    pub audit: audit::Limits,
    /// Where the store's events are shipped.
    pub ship: Ship,
    /// Bounds of a host and of each user.
    pub limits: Limits,
}

/// See [`LsmUse`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Lsm {
    /// Use it where the kernel has it.
    #[default]
    Auto,
    /// Do not start without it.
    Require,
    /// Do without it.
    Off,
}

impl From<Lsm> for LsmUse {
    fn from(lsm: Lsm) -> Self {
        match lsm {
            Lsm::Auto => Self::Auto,
            Lsm::Require => Self::Require,
            Lsm::Off => Self::Off,
        }
    }
}

/// Bounds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Sandboxes that one ordinary user may have at one time.
    pub sandboxes_per_user: u32,
    /// Rules that one sandbox's policy may compile to, for an ordinary user.
    pub rules_per_sandbox: u32,
    /// Memory of one sandbox of an ordinary user, such as 2G: what it gets, and cannot have more of.
    pub memory: Option<Memory>,
    /// The same of processors, such as 1.5.
    pub cpus: Option<f64>,
    /// The same of processes and threads.
    pub pids: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        let (memory, cpus, pids) = (None, None, None);
        Self { sandboxes_per_user: 64, rules_per_sandbox: 4_096, memory, cpus, pids }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "agent".to_owned(),
            socket: api::SOCKET.into(),
            trails: "/var/log/clawbox".into(),
            state: "/var/lib/clawbox".into(),
            standing: "/etc/clawbox/sandboxes.d".into(),
            dns: Vec::new(),
            lsm: Lsm::default(),
            refusals: false,
            metrics: ListenAt::Off,
            watchdog: Every::default(),
            audit: audit::Limits::default(),
            ship: Ship::default(),
            limits: Limits::default(),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// It is not a configuration.
    #[error("{}: {message}", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its place.
        message: String,
    },
}

impl Config {
    /// Reads a file; the default one may be missing, and all is then as it is by default.
    ///
    /// # Errors
    /// It cannot be read, or has a mistake.
    pub fn read(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(FILE));
        let failed = |source| ConfigError::Read { path: file.to_owned(), source };
        let text = match std::fs::metadata(file) {
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(failed(error)),
            Ok(found) if found.len() > LARGEST => {
                return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
            }
            Ok(_) => std::fs::read_to_string(file).map_err(failed)?,
        };
        Self::parse(&text).map_err(|message| ConfigError::Form { path: file.to_owned(), message })
    }

    /// Reads a text.
    ///
    /// # Errors
    /// What is wrong, with line and column.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        let config: Self = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let fits = |character: char| character.is_ascii_alphanumeric() || "-_".contains(character);
        if self.name.is_empty() || self.name.len() > 32 || !self.name.chars().all(fits) {
            return Err(format!("`name: {}`: use 1 to 32 letters, digits, `-` and `_`", self.name));
        }
        for (key, path) in [
            ("socket", &self.socket),
            ("trails", &self.trails),
            ("state", &self.state),
            ("standing", &self.standing),
        ] {
            if !path.is_absolute() {
                return Err(format!("`{key}: {}`: write the whole path", path.display()));
            }
        }
        self.limits.of_sandbox()?;
        self.audit.check()?;
        self.ship.check()?;
        self.servers().map(drop)
    }

    /// The name servers; empty for the host's.
    ///
    /// # Errors
    /// One is no address.
    pub fn servers(&self) -> Result<Vec<SocketAddr>, String> {
        let server = |text: &String| {
            Upstream::parse_server(text).map_err(|error| format!("`dns: {text}`: {error}"))
        };
        self.dns.iter().map(server).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_written_has_a_default_and_what_is_not_known_is_an_error() {
        for text in [
            "",
            "# nothing\n",
            "dns: [9.9.9.9, \"[2620:fe::fe]:5353\"]\n",
            "lsm: require\n",
            "metrics: off\n",
        ] {
            Config::parse(text).unwrap();
        }
        let found = Config::parse("limits: { sandboxes_per_user: 3 }\n").unwrap();
        let bounded = Config::parse("limits: { memory: 2G, cpus: 1.5, pids: 200 }\n").unwrap();
        let bounded = bounded.limits.of_sandbox().unwrap();
        assert_eq!(bounded.memory.map(Memory::bytes), Some(2 << 30));
        assert_eq!(
            (bounded.cpus.map(|cpus| cpus.thousandths()), bounded.pids),
            (Some(1500), Some(200))
        );
        assert_eq!((found.limits.sandboxes_per_user, found.limits.rules_per_sandbox), (3, 4_096));
        for (text, says) in [
            ("sockets: /run/x\n", "sockets"),
            ("lsm: maybe\n", "maybe"),
            ("name: a/b\n", "name"),
            ("socket: clawbox.sock\n", "whole path"),
            ("dns: [example.com]\n", "example.com"),
            ("metrics: 0.0.0.0:9464\n", "loopback"),
            ("limits: { memory: 1T }\n", "1T"),
            ("limits: { cpus: 0 }\n", "0.01"),
            ("limits: { pids: 1 }\n", "pids"),
            ("audit: { quota: 64M }\n", "two segments"),
            ("audit: { keep: never }\n", "30days"),
            ("audit: { share: 0 }\n", "1 to 100"),
            ("ship: { nats: { servers: [] } }\n", "name one"),
            ("ship: { otlp: { endpoint: \"http://192.0.2.1:1\" } }\n", "4317"),
            ("- 1\n", ""),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    /// The example without its explanations, and with its keys in force.
    fn example() -> String {
        let text = include_str!("../../../packaging/agent.yaml");
        // An explanation is `# Words`; a key has no space behind the `#`, or two and more.
        let is_explained = |line: &&str| {
            line.strip_prefix("# ").is_some_and(|rest| rest.starts_with(|c: char| c != ' '))
        };
        let lines = text.lines().filter(|line| !is_explained(line));
        lines.map(|line| line.strip_prefix('#').unwrap_or(line)).map(|l| format!("{l}\n")).collect()
    }

    #[test]
    fn the_example_has_every_key_with_its_default() {
        let default = serde_json::to_value(Config::default()).unwrap();
        let written: serde_json::Value = serde_saphyr::from_str(&example()).unwrap();
        // Compared as they are written, so that a key which is left out does not pass as its default.
        assert_eq!(written, default);
        let parsed = Config::parse(&example()).unwrap();
        assert_eq!(serde_json::to_value(parsed).unwrap(), default);
        let untouched = Config::parse(include_str!("../../../packaging/agent.yaml")).unwrap();
        assert_eq!(serde_json::to_value(untouched).unwrap(), default);
    }
}
