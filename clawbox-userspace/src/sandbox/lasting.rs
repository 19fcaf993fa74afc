//! What has to be known of a sandbox to serve it again after this process has ended: the daemon's
//! successor takes it over as it runs.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ceiling::Ceiling;
use super::change::Settled;
use super::control::Text;
use super::launch::again::Applied;

/// All of it. Everything else is in the kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lasting {
    /// What its user calls it.
    pub name: String,
    /// Its first process.
    pub process: u32,
    /// When that was started, in units of `/proc/PID/stat`: its number alone may be another one's later.
    pub born: u64,
    /// Its cgroup, if that is somebody else's; it has no first process then.
    #[serde(default)]
    pub attached: Option<PathBuf>,
    /// When, in seconds since the epoch.
    pub since: u64,
    /// What was started.
    pub command: Vec<String>,
    /// The files of its own policy.
    pub texts: Vec<Text>,
    /// The host's policy, where that is in force in their place.
    #[serde(default)]
    pub global: Option<Vec<Text>>,
    /// What was approved for as long as it runs.
    pub approved: String,
    /// The policy's number in the kernel's tables.
    pub generation: u32,
    /// The binaries that its policies have named, in the order of their slots.
    pub slots: Vec<String>,
    /// Ports of its resolver, for IPv4 and IPv6; zero is none.
    pub ports: [u16; 2],
    /// Name servers; the host's own if empty.
    pub dns: Vec<SocketAddr>,
    /// How long a connection waits for an answer, in milliseconds.
    pub patience_ms: u64,
    /// What the start has settled.
    pub settled: Settled,
    /// What the start did not give.
    pub ceiling: Ceiling,
    /// The backstops of the start, for further commands in it.
    #[serde(default)]
    pub backstops: Option<Applied>,
}
