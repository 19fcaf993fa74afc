//! The start of one process in a sandbox, complete: whoever has an [`Entrance`] needs nothing else of the
//! agent to have the process born in its cgroup, tested, held by the backstops, and be the command.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use nix::libc;
use nix::unistd::Pid;
use prost::Message as _;
use rustix::fs::{Mode, OFlags, openat};

use super::birth::{self, Born, Family, OtherPidNamespace};
use super::inherit::{Inherit, InheritBytes};
use super::launch::wire::{EntryBytes, odd};
use super::launch::{Entry, PidNamespace};
use super::self_test::SelfTest;
use super::watch;

/// See the module.
#[derive(Debug)]
pub struct Entrance {
    /// The file that is executed.
    pub program: PathBuf,
    /// What the command calls itself, and its arguments; never empty.
    pub command: Vec<OsString>,
    /// Where it starts, unless it inherits that.
    pub workdir: PathBuf,
    /// Variables that it gets beside those of its environment.
    pub variables: Vec<(OsString, OsString)>,
    /// What it gets of whoever asked for it, if that is another process than this.
    pub inherit: Option<Arc<Inherit>>,
    /// Whether LSM programs are in place, which the self-test has to see deny.
    pub judges_files: bool,
    /// The directory of the cgroup.
    pub cgroup: File,
    /// The backstops.
    pub entry: Arc<Entry>,
}

/// Why no command runs.
#[derive(Debug)]
pub enum Failure {
    /// The self-test cannot be prepared.
    SelfTest(io::Error),
    /// The streams cannot be given on.
    Streams(io::Error),
    /// There is no pid namespace to be had.
    PidNamespace(io::Error),
    /// The pid namespace's process 1 has ended.
    Gone,
    /// The child, or its making.
    Child(io::Error),
}

/// Whose child the command becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// The calling process.
    This,
    /// The calling process's own parent.
    Its,
}

#[derive(Clone, PartialEq, prost::Message)]
struct VariableBytes {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EntranceBytes {
    #[prost(bytes = "vec", tag = "1")]
    program: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    command: Vec<Vec<u8>>,
    #[prost(bytes = "vec", tag = "3")]
    workdir: Vec<u8>,
    #[prost(message, repeated, tag = "4")]
    variables: Vec<VariableBytes>,
    #[prost(message, optional, tag = "5")]
    inherit: Option<InheritBytes>,
    #[prost(bool, tag = "6")]
    judges_files: bool,
    #[prost(message, optional, tag = "7")]
    entry: Option<EntryBytes>,
}

impl Entrance {
    /// As bytes and descriptors, for another process.
    #[must_use]
    pub fn write(&self) -> (Vec<u8>, Vec<BorrowedFd<'_>>) {
        let bytes = |text: &OsString| text.as_bytes().to_vec();
        let mut descriptors = vec![self.cgroup.as_fd()];
        let inherit = self.inherit.as_ref().map(|inherit| inherit.write(&mut descriptors));
        let entry = self.entry.write(&mut descriptors);
        let variables = self.variables.iter();
        let text = EntranceBytes {
            program: self.program.as_os_str().as_bytes().to_vec(),
            command: self.command.iter().map(bytes).collect(),
            workdir: self.workdir.as_os_str().as_bytes().to_vec(),
            variables: variables
                .map(|(name, value)| VariableBytes { name: bytes(name), value: bytes(value) })
                .collect(),
            inherit,
            judges_files: self.judges_files,
            entry: Some(entry),
        };
        (text.encode_to_vec(), descriptors)
    }

    /// The same again.
    ///
    /// # Errors
    /// Something of it is missing.
    pub fn read(text: &[u8], descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let read = EntranceBytes::decode(text).map_err(io::Error::other)?;
        let mut descriptors = descriptors.into_iter();
        let cgroup = descriptors.next().ok_or_else(odd)?.into();
        let inherit = read.inherit.map(|inherit| Inherit::read(inherit, &mut descriptors));
        let variable =
            |VariableBytes { name, value }| (OsString::from_vec(name), OsString::from_vec(value));
        Ok(Self {
            program: OsString::from_vec(read.program).into(),
            command: read.command.into_iter().map(OsString::from_vec).collect(),
            workdir: OsString::from_vec(read.workdir).into(),
            variables: read.variables.into_iter().map(variable).collect(),
            inherit: inherit.transpose()?.map(Arc::new),
            judges_files: read.judges_files,
            cgroup,
            entry: Arc::new(Entry::read(read.entry.ok_or_else(odd)?, &mut descriptors)?),
        })
    }

    /// Has the process born in its cgroup and waits until it is the command. `None` where this kernel, or a
    /// container's filter in front of it, has no births inside a cgroup. For a process with one thread.
    ///
    /// # Errors
    /// No process was made. One that was made and has failed is among what is given.
    pub fn bear(&self, parent: Parent) -> Result<Option<Born>, Failure> {
        let namespace = self.entry.pid_namespace();
        let _joined = joined(namespace)?;
        let mut command = self.command(true)?;
        let family = Family {
            is_sibling: parent == Parent::Its,
            new_pid_namespace: matches!(namespace, PidNamespace::New),
        };
        birth::bear(self.cgroup.as_fd(), family, &mut command)
            .map_err(|error| of_birth(error, namespace))
    }

    /// Has the process born outside of its cgroup, which it enters first of all.
    ///
    /// # Errors
    /// It has not come to be the command; no process is left.
    pub fn fork(&self) -> Result<Pid, Failure> {
        let namespace = self.entry.pid_namespace();
        let _joined = joined(namespace)?;
        let is_new = matches!(namespace, PidNamespace::New);
        let _apart = is_new
            .then(OtherPidNamespace::for_children)
            .transpose()
            .map_err(Failure::PidNamespace)?;
        match self.command(false)?.spawn() {
            Ok(child) => Ok(Pid::from_raw(child.id().cast_signed())),
            Err(error) => Err(of_birth(error, namespace)),
        }
    }

    fn command(&self, is_inside: bool) -> Result<Command, Failure> {
        let self_test = SelfTest::prepare(self.judges_files).map_err(Failure::SelfTest)?;
        let procs = (!is_inside).then(|| {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&self.cgroup, c"cgroup.procs", flags, Mode::empty()).map(File::from)
        });
        let procs = procs.transpose().map_err(|errno| Failure::Child(errno.into()))?;
        let mut words = self.command.iter();
        let mut command = Command::new(&self.program);
        command.arg0(words.next().map_or_else(Default::default, Clone::clone)).args(words);
        let inherit = self.inherit.clone();
        match &inherit {
            Some(inherit) => inherit.give(&mut command).map_err(Failure::Streams)?,
            None => drop(command.current_dir(&self.workdir)),
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        let entry = Arc::clone(&self.entry);
        // SAFETY: the closure makes system calls only: a write, those of `Inherit::take_over`, the
        // self-test's socket calls, and `Entry::enter`, which is async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                if let Some(mut procs) = procs.as_ref() {
                    procs.write_all(b"0")?;
                }
                if let Some(inherit) = &inherit {
                    inherit.take_over()?;
                }
                self_test.run()?;
                entry.enter()?;
                watch::receive_signals()
            });
        }
        Ok(command)
    }
}

fn joined(namespace: PidNamespace<'_>) -> Result<Option<OtherPidNamespace>, Failure> {
    match namespace {
        PidNamespace::Of(there) => {
            OtherPidNamespace::join(there).map(Some).map_err(|_| Failure::Gone)
        }
        PidNamespace::Same | PidNamespace::New => Ok(None),
    }
}

fn of_birth(error: io::Error, namespace: PidNamespace<'_>) -> Failure {
    match error.raw_os_error() {
        // The limit of namespaces is the only way to this error.
        Some(libc::ENOSPC) => Failure::PidNamespace(error),
        // Of a pid namespace whose process 1 has ended.
        Some(libc::ENOMEM) if matches!(namespace, PidNamespace::Of(_)) => Failure::Gone,
        _ => Failure::Child(error),
    }
}
