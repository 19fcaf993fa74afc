//! Which layer stopped an attack: read off the audit trail, and where no record tells, off the errno
//! that the attacker got. Each is told in a line that `cargo xtask attacks` collects.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::network::NOBODY;

/// What a line begins with.
const PREFIX: &str = "attack: ";

/// Where an attack ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The programs on the cgroup socket hooks, by the identity that exec gave.
    SocketHooks,
    /// The sandbox's resolver, which every question goes to.
    Resolver,
    /// The BPF LSM hooks.
    BpfLsm,
    /// The filter of system calls.
    Seccomp,
    /// Landlock, asked before the BPF LSM hooks.
    Landlock,
    /// The owner and mode of a file, or the user of a process: asked before every other layer.
    Permissions,
    /// What a descriptor was opened for.
    OpenMode,
    /// There is no such process, object or name in the sandbox's own namespaces.
    Namespaces,
    /// clawbox started nothing, or said in the first record what is missing.
    Start,
    /// Killing, stopping or filling changes nothing: what decides is pinned in the kernel.
    Pinned,
    /// The agent, which asks who speaks to it, reads what is said first on a
    /// connection, ends those that a new policy does not allow, and is spared where memory is short.
    Agent,
    /// It is let through.
    NotStopped,
}

impl fmt::Display for Layer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::SocketHooks => "socket hooks",
            Self::Resolver => "resolver",
            Self::BpfLsm => "BPF LSM",
            Self::Seccomp => "seccomp",
            Self::Landlock => "Landlock",
            Self::Permissions => "permissions",
            Self::OpenMode => "open mode",
            Self::Namespaces => "namespaces",
            Self::Start => "start",
            Self::Pinned => "pinned programs",
            Self::Agent => "agent",
            Self::NotStopped => "not stopped",
        })
    }
}

impl Layer {
    /// Of an attempt that ended with `outcome`, an errno or `ok`, from the records of its denials. A
    /// denial that has none was refused before or beneath everything that records.
    #[must_use]
    pub fn observed(outcome: &str, denials: &[&Value]) -> Self {
        if outcome == "ok" {
            return Self::NotStopped;
        }
        // What a hook decided is the reason for what a call that failed then returned.
        let own = denials.iter().find(|record| record["reason"] != "refused");
        match own.or_else(|| denials.first()) {
            Some(record) => Self::of_record(record),
            None => Self::of_errno(outcome),
        }
    }

    /// Of a denial's record.
    ///
    /// # Panics
    /// It is none.
    #[must_use]
    pub fn of_record(record: &Value) -> Self {
        match (record["class"].as_str(), record["reason"].as_str()) {
            (Some("network"), _) if has_lsm_hook(record) => Self::BpfLsm,
            (Some("network"), _) if record["action"] == "reset" || record["action"] == "verify" => {
                Self::Agent
            }
            (Some("dns"), _) => Self::Resolver,
            (Some("network"), _) => Self::SocketHooks,
            (Some("privilege"), Some("system-call")) => Self::Seccomp,
            (_, Some("landlock")) => Self::Landlock,
            // Attackers have the user of what they attack: what is left is Landlock's scopes.
            (Some("privilege"), Some("refused")) => Self::Landlock,
            (Some("file"), Some("refused")) if permitted(record) => Self::Landlock,
            (Some("file"), Some("refused")) => Self::Permissions,
            (Some("file" | "privilege"), Some(_)) => Self::BpfLsm,
            _ => panic!("no denial: {record}"),
        }
    }

    /// Without BPF LSM every refusal has a record; with it, those of seccomp and Landlock have none.
    fn of_errno(errno: &str) -> Self {
        match errno {
            "EPERM" => Self::Seccomp,
            "EACCES" | "EXDEV" => Self::Landlock,
            "EBADF" => Self::OpenMode,
            // An attack that found nothing to attack says nothing about any layer.
            other => panic!("{other}, without a record: what refused it?"),
        }
    }
}

/// Uses of sockets that no cgroup hook sees.
fn has_lsm_hook(record: &Value) -> bool {
    matches!(record["action"].as_str(), Some("listen" | "send-connected" | "receive"))
}

/// Whether the owner and mode of a refused file would have let the sandbox's user through, so that
/// Landlock refused it. Looked at afterwards, on the host: whoever owns what is left of a way owned what
/// has gone since, as a sandbox's cgroup has.
fn permitted(record: &Value) -> bool {
    let object = &record["object"];
    let path = PathBuf::from(object["path"].as_str().unwrap_or_default());
    let user = record["subject"]["uid"].as_u64().unwrap_or(NOBODY.into());
    let owns = |path: &Path| fs::metadata(path).is_ok_and(|file| u64::from(file.uid()) == user);
    let may = |path: &Path, bit: u32| {
        let Ok(file) = fs::metadata(path) else { return false };
        let shift = if u64::from(file.uid()) == user { 6 } else { 0 };
        file.mode() >> shift & bit == bit
    };
    let left: Vec<&Path> = path.ancestors().skip(1).filter(|above| above.exists()).collect();
    let reached = left.iter().all(|above| may(above, 1));
    let parent = left.first().copied().unwrap_or(Path::new("/"));
    // Nobody else answers so; and who may look into a process of one's own user is Landlock's to say.
    let by_landlock = object["errno"] == "EXDEV" || path.starts_with("/proc");
    by_landlock
        || reached
            && match record["action"].as_str().unwrap_or_default() {
                "chmod" | "chown" | "attributes" => owns(&path),
                "create" | "mkdir" | "unlink" | "rmdir" | "symlink" | "rename" | "link" => {
                    may(parent, 2)
                }
                _ if path.parent() != Some(parent) => owns(parent),
                "open" if !path.exists() => may(parent, 2),
                _ => {
                    let accesses = object["access"].as_array();
                    let asked = |name: &str| {
                        accesses
                            .is_some_and(|accesses| accesses.iter().any(|access| access == name))
                    };
                    [("read", 4), ("write", 2), ("execute", 1)]
                        .iter()
                        .all(|(name, bit)| !asked(name) || may(&path, *bit))
                }
            }
}

/// Tells where an attack of a row of the threat model ended. Past the test harness, which keeps what
/// a passing test prints.
pub fn tell(row: u8, attack: &str, layer: Layer) {
    let line = json!({ "row": row, "attack": attack, "layer": layer.to_string() });
    let mut stdout = io::stdout().lock();
    let told = stdout.write_all(format!("{PREFIX}{line}\n").as_bytes());
    told.and_then(|()| stdout.flush()).expect("a test's output is read");
}
