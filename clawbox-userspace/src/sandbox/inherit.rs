//! What a command gets of the process that asked for it, where another one starts it: its streams, its
//! directory, its environment, its umask and its limits, as a shell's child would have them.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::libc;

use crate::api::peer::Peer;

/// Resources that have limits, by their numbers, as `/proc/PID/limits` names them (fs/proc/base.c).
const RESOURCES: &[&str] = &[
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

/// All of it.
#[derive(Debug)]
pub struct Inherit {
    streams: [OwnedFd; 3],
    directory: OwnedFd,
    /// Where that is.
    pub workdir: PathBuf,
    environment: Vec<(OsString, OsString)>,
    umask: libc::mode_t,
    limits: Vec<(u32, libc::rlimit64)>,
}

/// All of it but the descriptors, for another process.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InheritBytes {
    #[prost(bytes = "vec", tag = "1")]
    workdir: Vec<u8>,
    /// Each `NAME=VALUE`.
    #[prost(bytes = "vec", repeated, tag = "2")]
    environment: Vec<Vec<u8>>,
    #[prost(uint32, tag = "3")]
    umask: u32,
    #[prost(message, repeated, tag = "4")]
    limits: Vec<LimitBytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LimitBytes {
    #[prost(uint32, tag = "1")]
    resource: u32,
    #[prost(uint64, tag = "2")]
    soft: u64,
    #[prost(uint64, tag = "3")]
    hard: u64,
}

impl Inherit {
    /// Gives the bytes, and adds the descriptors in the order in which [`Inherit::read`] takes them.
    #[must_use]
    pub fn write<'i>(&'i self, descriptors: &mut Vec<BorrowedFd<'i>>) -> InheritBytes {
        descriptors.extend(self.streams.iter().chain([&self.directory]).map(AsFd::as_fd));
        let variables = self.environment.iter();
        let limits = self.limits.iter().map(|(resource, limit)| LimitBytes {
            resource: *resource,
            soft: limit.rlim_cur,
            hard: limit.rlim_max,
        });
        InheritBytes {
            workdir: self.workdir.as_os_str().as_bytes().to_vec(),
            environment: variables
                .map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat())
                .collect(),
            umask: self.umask,
            limits: limits.collect(),
        }
    }

    /// The same again.
    ///
    /// # Errors
    /// A descriptor is missing.
    pub fn read(
        bytes: InheritBytes,
        descriptors: &mut impl Iterator<Item = OwnedFd>,
    ) -> io::Result<Self> {
        let mut next = || descriptors.next().ok_or(io::ErrorKind::InvalidData);
        let streams = [next()?, next()?, next()?];
        let limit = |LimitBytes { resource, soft, hard }| {
            (resource, libc::rlimit64 { rlim_cur: soft, rlim_max: hard })
        };
        Ok(Self {
            streams,
            directory: next()?,
            workdir: OsString::from_vec(bytes.workdir).into(),
            environment: bytes.environment.into_iter().filter_map(variable).collect(),
            umask: bytes.umask,
            limits: bytes.limits.into_iter().map(limit).collect(),
        })
    }

    /// Of a process that waits for an answer, with the environment that it names.
    ///
    /// # Errors
    /// It has closed a stream, or has gone.
    pub fn of(peer: &Peer, environment: Vec<Vec<u8>>) -> io::Result<Self> {
        let streams = [peer.descriptor(0)?, peer.descriptor(1)?, peer.descriptor(2)?];
        let proc = PathBuf::from(format!("/proc/{}", peer.pid));
        let directory = fs::File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(proc.join("cwd"))?
            .into();
        let workdir = fs::read_link(proc.join("cwd"))?;
        let umask = umask(&fs::read_to_string(proc.join("status"))?);
        let limits = limits(&fs::read_to_string(proc.join("limits"))?);
        if peer.has_ended() {
            // The number may have been another process's by then.
            return Err(io::ErrorKind::NotFound.into());
        }
        let environment = environment.into_iter().filter_map(variable).collect();
        Ok(Self { streams, directory, workdir, environment, umask, limits })
    }

    /// A variable of the environment.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&OsString> {
        self.environment.iter().find(|(own, _)| own == name).map(|(_, value)| value)
    }

    /// Gives a command the streams and the environment.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn give(&self, command: &mut Command) -> io::Result<()> {
        let [input, output, error] = &self.streams;
        command
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(input.try_clone()?))
            .stdout(Stdio::from(output.try_clone()?))
            .stderr(Stdio::from(error.try_clone()?));
        Ok(())
    }

    /// Takes the rest over. For a forked child that is still privileged: makes system calls and does not
    /// allocate.
    ///
    /// # Errors
    /// The directory cannot be entered.
    pub fn take_over(&self) -> io::Result<()> {
        // A session of its own: what is sent to the starting process's group is not meant for it.
        let _ = nix::unistd::setsid();
        for (resource, limit) in &self.limits {
            // SAFETY: the kernel reads a structure of ours. Best effort: a container may lack the right
            // to raise one, and what cannot be raised is no wider than before.
            unsafe { libc::prlimit64(0, *resource, limit, std::ptr::null_mut()) };
        }
        // SAFETY: takes a number.
        unsafe { libc::umask(self.umask) };
        // SAFETY: a descriptor of ours.
        let outcome = unsafe { libc::fchdir(self.directory.as_raw_fd()) };
        nix::errno::Errno::result(outcome)?;
        Ok(())
    }
}

fn variable(mut text: Vec<u8>) -> Option<(OsString, OsString)> {
    let equals = text.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
    if text.contains(&0) {
        return None;
    }
    let value = text.split_off(equals + 1);
    text.pop();
    Some((OsString::from_vec(text), OsString::from_vec(value)))
}

/// `Umask:` of `/proc/PID/status`; as restrictive as can be where it is not told.
fn umask(status: &str) -> libc::mode_t {
    let told = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    let told = told.and_then(|mask| libc::mode_t::from_str_radix(mask.trim(), 8).ok());
    told.unwrap_or(0o077)
}

/// The table of `/proc/PID/limits`: to ask prlimit(2) takes a right (CAP_SYS_RESOURCE) that a container's
/// root may lack.
fn limits(table: &str) -> Vec<(u32, libc::rlimit64)> {
    let value = |text: &str| match text {
        "unlimited" => Some(libc::RLIM64_INFINITY),
        number => number.parse().ok(),
    };
    let row = |(resource, name): (u32, &&str)| {
        let rest = table.lines().find_map(|line| line.strip_prefix(*name)?.strip_prefix(' '))?;
        let mut fields = rest.split_ascii_whitespace();
        let (rlim_cur, rlim_max) = (value(fields.next()?)?, value(fields.next()?)?);
        Some((resource, libc::rlimit64 { rlim_cur, rlim_max }))
    };
    (0..).zip(RESOURCES).filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_has_a_name_and_no_nul() {
        let read = |text: &str| variable(text.as_bytes().to_vec());
        assert_eq!(read("A=b=c"), Some(("A".into(), "b=c".into())));
        assert_eq!(read("A="), Some(("A".into(), "".into())));
        for text in ["=b", "A", "", "A=\0"] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_umask_that_is_not_told_lets_nobody_else_in() {
        assert_eq!(umask("Name:\tx\nUmask:\t0022\n"), 0o022);
        assert_eq!(umask("Name:\tx\n"), 0o077);
    }

    #[test]
    fn limits_are_read_from_the_kernels_table() {
        let own = limits(&fs::read_to_string("/proc/self/limits").unwrap());
        assert_eq!(own.len(), RESOURCES.len());
        let (soft, hard) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        let (number, files) = own[libc::RLIMIT_NOFILE as usize];
        assert_eq!((number, files.rlim_cur, files.rlim_max), (libc::RLIMIT_NOFILE, soft, hard));
        assert!(limits("Limit  Soft Limit\nMax open files\n").is_empty());
    }
}
