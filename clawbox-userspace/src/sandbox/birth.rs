//! A fork whose child is born inside a cgroup. To enter one later by its `cgroup.procs` takes the
//! kernel a grace period of RCU, some 10 ms, in which nothing else may fork either.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use super::strays;

/// From linux/sched.h; does not fit the type that libc has for its neighbours.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A sandbox's first process.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    ended: Option<End>,
    /// Of one that is not this process's child.
    fd: Option<OwnedFd>,
}

/// How a process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this status.
    Status(ExitStatus),
    /// Nobody can say: its parent had ended before.
    Unknown,
}

impl Process {
    /// A child known by its number, which stays its own until this has waited for it.
    #[must_use]
    pub fn new(pid: Pid) -> Self {
        Self { pid, ended: None, fd: None }
    }

    /// A process that an earlier clawbox has started, by its number and when that was; `None` if it has
    /// ended.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn of_another(process: u32, born: u64) -> io::Result<Option<Self>> {
        let Some(pid) = rustix::process::Pid::from_raw(process.cast_signed()) else {
            return Ok(None);
        };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // The descriptor is from before the look: it is the one that is looked at.
        let is_same = strays::started(process) == Some(born) && !has_ended(&fd)?;
        let pid = Pid::from_raw(process.cast_signed());
        Ok(is_same.then_some(Self { pid, ended: None, fd: Some(fd) }))
    }

    /// When it was started, in units of `/proc/PID/stat`; zero if it has ended.
    #[must_use]
    pub fn born(&self) -> u64 {
        strays::started(self.pid.as_raw().cast_unsigned()).unwrap_or(0)
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends it a signal. A child keeps its number until this process has waited for it; of another's the
    /// descriptor is asked, whose process it is for good.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(fd) = &self.fd else { return Ok(kill(self.pid, signal)?) };
        let signal = rustix::process::Signal::from_named_raw(signal as i32);
        let signal = signal.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(pidfd_send_signal(fd, signal)?)
    }

    /// Whether it is this process's child.
    #[must_use]
    pub fn is_child(&self) -> bool {
        self.fd.is_none()
    }

    /// Whether it was this process's child, has ended, and is known to have.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        self.is_child() && self.ended.is_some()
    }

    /// How it has ended, if it has.
    ///
    /// # Errors
    /// Somebody else has waited for it.
    pub fn try_wait(&mut self) -> io::Result<Option<End>> {
        if let Some(fd) = &self.fd {
            if self.ended.is_none() && has_ended(fd)? {
                self.ended = Some(End::Unknown);
            }
            return Ok(self.ended);
        }
        if self.ended.is_none() {
            let mut status = 0;
            // SAFETY: the kernel writes one int of ours.
            let waited =
                unsafe { libc::waitpid(self.pid.as_raw(), &raw mut status, libc::WNOHANG) };
            if nix::errno::Errno::result(waited)? != 0 {
                self.ended = Some(End::Status(ExitStatus::from_raw(status)));
            }
        }
        Ok(self.ended)
    }
}

fn has_ended(fd: &OwnedFd) -> io::Result<bool> {
    let mut ended = [PollFd::new(fd, PollFlags::IN)];
    Ok(poll(&mut ended, Some(&Timespec::default()))? > 0)
}

/// Whether this process may be forked without the C library: with one thread nobody can hold a
/// lock that the child would wait for.
#[must_use]
pub fn is_single_threaded() -> bool {
    fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}

/// Lets children of the calling thread be born in another pid namespace, in a new one the first of them as
/// its process 1, until it is dropped.
#[derive(Debug)]
pub struct OtherPidNamespace {
    own: fs::File,
}

impl OtherPidNamespace {
    /// From now on.
    ///
    /// # Errors
    /// The kernel or the host's limits do not allow it.
    pub fn for_children() -> io::Result<Self> {
        let own = fs::File::open("/proc/thread-self/ns/pid")?;
        unshare(CloneFlags::CLONE_NEWPID)?;
        Ok(Self { own })
    }

    /// The same for one that is there, whose process 1 they are not.
    ///
    /// # Errors
    /// It is none that this process may enter.
    pub fn join(namespace: &OwnedFd) -> io::Result<Self> {
        let own = fs::File::open("/proc/thread-self/ns/pid")?;
        setns(namespace, CloneFlags::CLONE_NEWPID)?;
        Ok(Self { own })
    }
}

impl Drop for OtherPidNamespace {
    fn drop(&mut self) {
        if let Err(errno) = setns(&self.own, CloneFlags::CLONE_NEWPID) {
            tracing::error!("clawbox cannot start further processes: {errno}");
        }
    }
}

/// Whose child a process that is born inside a cgroup becomes, and in which pid namespace.
#[derive(Clone, Copy, Debug, Default)]
pub struct Family {
    /// The caller's parent's: it is the caller's sibling.
    pub is_sibling: bool,
    /// Process 1 of a new pid namespace.
    pub new_pid_namespace: bool,
}

/// What has been born.
#[derive(Debug)]
pub struct Born {
    /// Its number. Its parent has yet to wait for it.
    pub pid: Pid,
    /// Why it has ended before it came to be the command.
    pub failed: Option<io::Error>,
}

/// Runs a command in a child that is born inside a cgroup, as [`Command::spawn`] would outside, and
/// on demand as process 1 of a new pid namespace. Only for a process with one thread.
///
/// # Errors
/// As [`Command::spawn`]; `None` where the kernel, or a container's filter in front of it, does not
/// know the system call.
pub fn spawn_in(
    cgroup: BorrowedFd<'_>,
    new_pid_namespace: bool,
    command: &mut Command,
) -> io::Result<Option<Process>> {
    let family = Family { new_pid_namespace, ..Family::default() };
    match bear(cgroup, family, command)? {
        None => Ok(None),
        Some(Born { pid, failed: None }) => Ok(Some(Process::new(pid))),
        Some(Born { pid, failed: Some(error) }) => {
            waitpid(pid, None::<WaitPidFlag>)?;
            Err(error)
        }
    }
}

/// As [`spawn_in`], but leaves it to the child's parent to wait for one that has failed.
///
/// # Errors
/// None was born.
pub fn bear(
    cgroup: BorrowedFd<'_>,
    family: Family,
    command: &mut Command,
) -> io::Result<Option<Born>> {
    let (mut errors, mut report) = io::pipe()?;
    let new_pid_namespace = if family.new_pid_namespace { libc::CLONE_NEWPID as u64 } else { 0 };
    let sibling = if family.is_sibling { libc::CLONE_PARENT as u64 } else { 0 };
    let mut how = libc::clone_args {
        flags: CLONE_INTO_CGROUP | new_pid_namespace | sibling,
        // Of a sibling it is the caller's own (clone3_args_valid, kernel/fork.c).
        exit_signal: if family.is_sibling { 0 } else { libc::SIGCHLD as u64 },
        cgroup: cgroup.as_raw_fd() as u64,
        // SAFETY: all zero is what the kernel takes for "not given".
        ..unsafe { std::mem::zeroed() }
    };
    // SAFETY: the arguments are initialised. Without CLONE_VM the child has memory of its own and
    // goes on here on its copy of this stack, and there is no other thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut how, size_of_val(&how)) };
    match i32::try_from(pid) {
        Ok(0) => {
            let error = command.exec();
            let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
            let _ = report.write_all(&errno.to_ne_bytes());
            // SAFETY: ends this process without running what its parent has yet to run.
            unsafe { libc::_exit(1) }
        }
        Ok(pid @ 1..) => {
            drop(report);
            let mut errno = [0; 4];
            // Closed by exec without a word: it runs.
            let failed = errors.read_exact(&mut errno).ok();
            let failed = failed.map(|()| io::Error::from_raw_os_error(i32::from_ne_bytes(errno)));
            Ok(Some(Born { pid: Pid::from_raw(pid), failed }))
        }
        _ => {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::ENOSYS | libc::EPERM) => Ok(None),
                _ => Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_clawboxs_process_is_known_by_its_start_and_ends_with_a_status_that_nobody_knows() {
        let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let own = Process::new(Pid::from_raw(child.id().cast_signed()));
        let born = own.born();
        assert!(Process::of_another(child.id(), born + 1).unwrap().is_none());
        let mut process = Process::of_another(child.id(), born).unwrap().unwrap();
        assert_eq!(process.try_wait().unwrap(), None);
        process.signal(Signal::SIGTERM).unwrap();
        child.wait().unwrap();
        assert_eq!(process.try_wait().unwrap(), Some(End::Unknown));
        assert!(process.signal(Signal::SIGTERM).is_err());
        assert!(Process::of_another(child.id(), born).unwrap().is_none());
    }
}
