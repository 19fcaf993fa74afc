//! A policy as it is meant: only valid values exist, each rule remembers where it was written.
//! Built by `resolve` from documents; `compile`, `enforceability` and the sandbox read it.

use std::net::IpAddr;
use std::num::NonZeroU16;

use super::binary_pattern::BinaryPattern;
use super::diagnostic::Origin;
pub use super::document::{
    Compatibility, FromWritable, Matching, Mode, Transport, UnknownEndpoints,
};
use super::network::{Middleware, NetworkPolicy};
use super::path::{DenyPattern, SandboxPath};

/// A value and where it was written.
#[derive(Clone, Debug)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it was written.
    pub origin: Origin,
}

/// What one sandbox may do.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The policy file.
    pub origin: Origin,
    /// Files.
    pub filesystem: Filesystem,
    /// Whether a run goes on when not everything can be enforced.
    pub compatibility: Compatibility,
    /// Credentials.
    pub process: Process,
    /// Destinations, in the order of the files.
    pub network: Vec<NetworkPolicy>,
    /// Processing of inspected traffic.
    pub middlewares: Vec<Middleware>,
    /// Execution, where written.
    pub execution: Option<Located<Execution>>,
    /// Unix sockets, where written.
    pub unix_sockets: Option<Located<Vec<SandboxPath>>>,
    /// Ports that may be listened on.
    pub listen: Option<Located<Listen>>,
    /// Resources, where written.
    pub limits: Option<Located<Limits>>,
    /// Connections that no rule names, where written; absent is deny.
    pub unknown_endpoints: Option<Located<UnknownEndpoints>>,
    /// Whether denied operations fail, where written; absent is enforce.
    pub mode: Option<Located<Mode>>,
}

impl Policy {
    /// Whether denied operations are only recorded.
    #[must_use]
    pub fn asks_for_unknown(&self) -> bool {
        self.unknown_endpoints
            .as_ref()
            .is_some_and(|unknown| unknown.value == UnknownEndpoints::Ask)
    }

    /// Whether denied operations are only recorded.
    #[must_use]
    pub fn audit_only(&self) -> bool {
        matches!(&self.mode, Some(mode) if mode.value == Mode::Audit)
    }
}

/// What the sandbox may do with files. No path is both read-only and writable, `/` is never
/// writable, and there are at most 256 paths.
#[derive(Clone, Debug, Default)]
pub struct Filesystem {
    pub(super) written: bool,
    pub(super) include_workdir: bool,
    pub(super) read_only: Vec<Located<SandboxPath>>,
    pub(super) read_write: Vec<Located<SandboxPath>>,
    pub(super) deny: Vec<Located<DenyPattern>>,
    pub(super) rules: Vec<Located<FileRule>>,
}

impl Filesystem {
    /// Whether the policy has a `filesystem_policy` at all; without one nothing is readable.
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.written
    }

    /// Whether the start directory joins [`Filesystem::read_write`].
    #[must_use]
    pub fn include_workdir(&self) -> bool {
        self.include_workdir
    }

    /// Paths to read, list and execute below.
    #[must_use]
    pub fn read_only(&self) -> &[Located<SandboxPath>] {
        &self.read_only
    }

    /// Paths to do everything below.
    #[must_use]
    pub fn read_write(&self) -> &[Located<SandboxPath>] {
        &self.read_write
    }

    /// Paths that stay closed.
    #[must_use]
    pub fn deny(&self) -> &[Located<DenyPattern>] {
        &self.deny
    }

    /// Rules for single binaries.
    #[must_use]
    pub fn rules(&self) -> &[Located<FileRule>] {
        &self.rules
    }
}

/// A file rule for single binaries.
#[derive(Clone, Debug)]
pub struct FileRule {
    /// For whom.
    pub binaries: Vec<Binary>,
    /// What they may read.
    pub read_only: Vec<Located<SandboxPath>>,
    /// What they may write.
    pub read_write: Vec<Located<SandboxPath>>,
}

/// An entry of a `binaries` list.
#[derive(Clone, Debug)]
pub struct Binary {
    /// Which executables.
    pub pattern: BinaryPattern,
    /// Whether their descendants too.
    pub matching: Matching,
    /// Where it was written.
    pub origin: Origin,
}

/// Whom the sandboxed process runs as. `None`: the policy leaves it to the command line.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// User.
    pub user: Option<Located<Account>>,
    /// Group.
    pub group: Option<Located<Account>>,
}

/// A user or group that is not root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account(AccountKind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum AccountKind {
    Name(String),
    Id(u32),
}

/// The largest number of a user: the one above it means "unchanged" to the kernel.
const LARGEST_ID: u32 = u32::MAX - 1;

impl Account {
    /// Parses a name or a number; the error is what is wrong with it.
    pub fn parse(written: &str) -> Result<Self, String> {
        if written.is_empty() {
            return Err("the name is empty".to_owned());
        }
        if written.bytes().all(|b| b.is_ascii_digit()) {
            return match written.parse::<u32>() {
                Ok(0) => Err("0 is root".to_owned()),
                Ok(id) if id <= LARGEST_ID => Ok(Self(AccountKind::Id(id))),
                _ => Err(format!("{written} is not a user or group number")),
            };
        }
        if written == "root" {
            return Err("root cannot be confined".to_owned());
        }
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if written.len() > 32 || written.starts_with('-') || !written.chars().all(known) {
            return Err(format!("{written:?} is not a user or group name"));
        }
        Ok(Self(AccountKind::Name(written.to_owned())))
    }

    /// The name, if it was given by name.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.0 {
            AccountKind::Name(name) => Some(name),
            AccountKind::Id(_) => None,
        }
    }

    /// The number, if it was given by number.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        match self.0 {
            AccountKind::Name(_) => None,
            AccountKind::Id(id) => Some(id),
        }
    }
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            AccountKind::Name(name) => f.write_str(name),
            AccountKind::Id(id) => id.fmt(f),
        }
    }
}

/// Which files may be executed.
#[derive(Clone, Debug)]
pub struct Execution {
    /// Whether files that the sandbox can write may be executed.
    pub from_writable: FromWritable,
    /// The only binaries that may be executed, where written.
    pub allow: Option<Vec<Located<BinaryPattern>>>,
}

/// Ports that may be listened on. There is at least one of each.
#[derive(Clone, Debug)]
pub struct Listen {
    pub(super) ports: Vec<NonZeroU16>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) transport: Transport,
}

impl Listen {
    /// Ports, ascending.
    #[must_use]
    pub fn ports(&self) -> &[NonZeroU16] {
        &self.ports
    }

    /// Local addresses.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Transport.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.transport
    }
}

/// Bounds on resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Hundredths of a core.
    pub cpu_percent: Option<u32>,
}

/// Bytes of a size such as `4GiB`, `512MB` or `1048576`.
#[must_use]
pub fn parse_size(written: &str) -> Option<u64> {
    let digits = written.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = written.split_at_checked(digits)?;
    let unit: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "KiB" | "K" | "k" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "TiB" | "T" => 1 << 40,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    let bytes = number.parse::<u64>().ok()?.checked_mul(unit)?;
    (bytes > 0).then_some(bytes)
}

/// Percent of one core of a share such as `200%` or `1.5`.
#[must_use]
pub fn parse_cpu(written: &str) -> Option<u32> {
    let percent = match written.strip_suffix('%') {
        Some(number) => number.trim_end().parse::<u32>().ok()?,
        None => {
            let (whole, part) = written.split_once('.').unwrap_or((written, "0"));
            if part.is_empty() || part.len() > 2 || !part.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            let part = part.parse::<u32>().ok()? * if part.len() == 1 { 10 } else { 1 };
            whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(part)?
        }
    };
    (percent > 0).then_some(percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_shares_are_read_as_people_write_them() {
        for (written, bytes) in [
            ("4GiB", Some(4 << 30)),
            ("512 MB", Some(512_000_000)),
            ("1048576", Some(1_048_576)),
            ("1k", Some(1024)),
            ("0", None),
            ("", None),
            ("GiB", None),
            ("4 gigabytes", None),
            ("99999999999999999999", None),
            ("99999999999TiB", None),
        ] {
            assert_eq!(parse_size(written), bytes, "{written}");
        }
        for (written, percent) in [
            ("200%", Some(200)),
            ("1.5", Some(150)),
            ("0.25", Some(25)),
            ("2", Some(200)),
            ("0%", None),
            ("", None),
            ("-1", None),
            ("1.", None),
            ("1.234", None),
        ] {
            assert_eq!(parse_cpu(written), percent, "{written}");
        }
    }

    #[test]
    fn an_account_is_never_root() {
        for (written, refused) in [
            ("sandbox", false),
            ("1000", false),
            ("4294967294", false),
            ("root", true),
            ("0", true),
            ("000", true),
            ("4294967295", true),
            ("99999999999", true),
            ("", true),
            ("-u", true),
            ("a b", true),
        ] {
            assert_eq!(Account::parse(written).is_err(), refused, "{written}");
        }
    }
}
