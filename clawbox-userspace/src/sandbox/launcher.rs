//! The process that starts sandboxes in the daemon's place. It is forked off before the daemon has anything:
//! a fork copies and an exec drops the tables of all memory, and the daemon's grow with each sandbox.
//!
//! What it starts are the daemon's children (CLONE_PARENT), and it ends with the daemon.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getppid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::birth::{self, Born};
use super::entrance::{Entrance, Failure, Parent};
use super::launch::empty_bounding_set;
use super::{memory, probe};

/// More than an [`Entrance`] has.
const DESCRIPTORS: usize = 24;

/// Longer than any: arguments and environment are at most 6 MiB (`MAX_ARG_STRLEN` and fs/exec.c).
const LONGEST: usize = 16 << 20;

/// After which nothing is to be started for a while.
const AT_REST: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// The launcher, as the daemon sees it.
#[derive(Debug)]
pub struct Launcher {
    socket: UnixStream,
    process: Pid,
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // It is gone, or goes with the socket. A child that nobody has waited for is in nobody's way.
        let _ = waitpid(self.process, Some(WaitPidFlag::WNOHANG));
    }
}

/// Why the launcher has started nothing.
#[derive(Debug)]
pub enum LauncherError {
    /// It has said so.
    Refused(Failure),
    /// It was gone before.
    Gone(io::Error),
    /// It went meanwhile: nobody knows how far it came.
    Lost(io::Error),
}

/// What it answers, as three numbers: what, of which error, and which process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
enum Answer {
    Runs,
    /// The child has failed, and waits to be waited for.
    Failed,
    /// There are no births inside cgroups here.
    Unsupported,
    SelfTest,
    Streams,
    PidNamespace,
    Gone,
    /// The child could not be made.
    Child,
}

impl Answer {
    const ALL: [Self; 8] = [
        Self::Runs,
        Self::Failed,
        Self::Unsupported,
        Self::SelfTest,
        Self::Streams,
        Self::PidNamespace,
        Self::Gone,
        Self::Child,
    ];
}

impl Launcher {
    /// Forks it off. To be called before there is a second thread, and before anything is opened or read
    /// that is not to be the sandboxes' starter's; `None`, with a warning, where it cannot be.
    #[must_use]
    pub fn begin() -> Option<Self> {
        match Self::try_begin() {
            Ok(launcher) => Some(launcher),
            Err(error) => {
                tracing::warn!("the daemon starts sandboxes itself, which takes longer: {error}");
                None
            }
        }
    }

    fn try_begin() -> io::Result<Self> {
        if !birth::is_single_threaded() {
            return Err(io::Error::other("there are other threads already"));
        }
        let (own, theirs) = UnixStream::pair()?;
        let daemon = nix::unistd::getpid();
        // SAFETY: there is one thread, so the child may do all that this process may.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self { socket: own, process: child }),
            ForkResult::Child => {
                drop(own);
                let status = i32::from(serve(theirs, daemon).is_err());
                // SAFETY: ends the forked child without running what its parent has yet to run.
                unsafe { libc::_exit(status) }
            }
        }
    }

    /// Has a process started, which is this process's child. `None` where the launcher cannot on this
    /// kernel.
    ///
    /// # Errors
    /// See [`LauncherError`].
    pub fn start(&mut self, entrance: &Entrance) -> Result<Option<Born>, LauncherError> {
        let (text, descriptors) = entrance.write();
        if text.len() > LONGEST {
            // As the kernel says it of less. The launcher would not know how to go on.
            let error = io::Error::from_raw_os_error(libc::E2BIG);
            return Err(LauncherError::Refused(Failure::Child(error)));
        }
        self.send(&text, &descriptors).map_err(LauncherError::Gone)?;
        let mut numbers = [[0; 4]; 3];
        let read = self.socket.read_exact(numbers.as_flattened_mut());
        read.map_err(LauncherError::Lost)?;
        let [what, errno, pid] = numbers.map(i32::from_ne_bytes);
        let error = || io::Error::from_raw_os_error(errno);
        let what = Answer::ALL.into_iter().find(|answer| *answer as i32 == what);
        let refused = |failure| Err(LauncherError::Refused(failure));
        match what {
            Some(Answer::Runs) => Ok(Some(Born { pid: Pid::from_raw(pid), failed: None })),
            Some(Answer::Failed) => {
                Ok(Some(Born { pid: Pid::from_raw(pid), failed: Some(error()) }))
            }
            Some(Answer::Unsupported) => Ok(None),
            Some(Answer::SelfTest) => refused(Failure::SelfTest(error())),
            Some(Answer::Streams) => refused(Failure::Streams(error())),
            Some(Answer::PidNamespace) => refused(Failure::PidNamespace(error())),
            Some(Answer::Gone) => refused(Failure::Gone),
            Some(Answer::Child) => refused(Failure::Child(error())),
            None => Err(LauncherError::Lost(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Has a child of the launcher's try what must be denied in a cgroup; see [`probe::denies`].
    ///
    /// # Errors
    /// The launcher is gone. In the answer: it could not be tried.
    pub fn probe(&mut self, cgroup: BorrowedFd<'_>, files: bool) -> io::Result<io::Result<bool>> {
        self.send(&[u8::from(files)], &[cgroup])?;
        let mut numbers = [[0; 4]; 3];
        self.socket.read_exact(numbers.as_flattened_mut())?;
        let [what, errno, _] = numbers.map(i32::from_ne_bytes);
        match what {
            DENIES => Ok(Ok(true)),
            LETS_THROUGH => Ok(Ok(false)),
            UNTRIED => Ok(Err(io::Error::from_raw_os_error(errno))),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// The length and the descriptors come first, in one piece.
    fn send(&mut self, text: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let length = u64::try_from(text.len()).unwrap_or(u64::MAX).to_ne_bytes();
        let sent =
            sendmsg(&self.socket, &[IoSlice::new(&length)], &mut ancillary, SendFlags::NOSIGNAL)?;
        if sent != length.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.socket.write_all(text)
    }
}

/// The launcher's life.
fn serve(socket: UnixStream, daemon: Pid) -> io::Result<()> {
    nix::sys::prctl::set_name(c"clawbox-launch")?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != daemon {
        // It has ended in between.
        return Ok(());
    }
    close_others(socket.as_raw_fd())?;
    // What it starts has it empty then from its birth: to empty it takes eighty system calls. This process executes
    // nothing, and its own capabilities stay. Where it may not, each start does it, or says so.
    let _ = empty_bounding_set();
    let mut socket = socket;
    while let Some((text, descriptors)) = receive(&mut socket)? {
        let answered = match text[..] {
            [files] => probed(&descriptors, files != 0),
            _ => answer(&text, descriptors),
        };
        let numbers = <[i32; 3]>::from(answered).map(i32::to_ne_bytes);
        socket.write_all(numbers.as_flattened())?;
    }
    Ok(())
}

/// All descriptors but the streams and this one: what the daemon had by then is not for sandboxes' starter.
fn close_others(kept: i32) -> io::Result<()> {
    for (from, to) in [(3, kept - 1), (kept + 1, i32::MAX)] {
        if from <= to {
            // SAFETY: takes numbers; nothing here uses one of these from now on.
            let closed = unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
            nix::errno::Errno::result(closed)?;
        }
    }
    Ok(())
}

/// Where nothing is to be started for a while, gives back what the next start will ask for again.
fn rest(socket: &UnixStream) {
    let mut asked = [PollFd::new(socket, PollFlags::IN)];
    if let Ok(0) = poll(&mut asked, Some(&AT_REST)) {
        memory::give_back();
    }
}

/// What is to be started; `None` once the daemon has closed its end.
fn receive(socket: &mut UnixStream) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    rest(socket);
    let mut length = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        &*socket,
        &mut [IoSliceMut::new(&mut length)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    match got.bytes {
        0 => return Ok(None),
        8 => {}
        _ => return Err(io::ErrorKind::UnexpectedEof.into()),
    }
    let length = usize::try_from(u64::from_ne_bytes(length)).unwrap_or(usize::MAX);
    if length > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = vec![0; length];
    socket.read_exact(&mut text)?;
    Ok(Some((text, descriptors)))
}

/// What it answers a probe, in the place of an [`Answer`].
const DENIES: i32 = 100;
const LETS_THROUGH: i32 = 101;
const UNTRIED: i32 = 102;

/// Tries what must be denied. What it is asked so is one byte, shorter than any start.
fn probed(descriptors: &[OwnedFd], files: bool) -> (i32, i32, i32) {
    let found = match descriptors {
        [cgroup] => probe::denies(cgroup.as_fd(), files),
        _ => Err(io::Error::from_raw_os_error(libc::EBADF)),
    };
    match found {
        Ok(true) => (DENIES, 0, 0),
        Ok(false) => (LETS_THROUGH, 0, 0),
        Err(error) => (UNTRIED, error.raw_os_error().unwrap_or(libc::EINVAL), 0),
    }
}

fn answer(text: &[u8], descriptors: Vec<OwnedFd>) -> (i32, i32, i32) {
    let (what, errno, pid) = started(text, descriptors);
    (what as i32, errno, pid)
}

fn started(text: &[u8], descriptors: Vec<OwnedFd>) -> (Answer, i32, i32) {
    let number = |error: &io::Error| error.raw_os_error().unwrap_or(libc::EINVAL);
    let born = Entrance::read(text, descriptors)
        .map_err(Failure::Child)
        .and_then(|entrance| entrance.bear(Parent::Its));
    match born {
        Ok(Some(Born { pid, failed: None })) => (Answer::Runs, 0, pid.as_raw()),
        Ok(Some(Born { pid, failed: Some(error) })) => {
            (Answer::Failed, number(&error), pid.as_raw())
        }
        Ok(None) => (Answer::Unsupported, 0, 0),
        Err(Failure::SelfTest(error)) => (Answer::SelfTest, number(&error), 0),
        Err(Failure::Streams(error)) => (Answer::Streams, number(&error), 0),
        Err(Failure::PidNamespace(error)) => (Answer::PidNamespace, number(&error), 0),
        Err(Failure::Gone) => (Answer::Gone, 0, 0),
        Err(Failure::Child(error)) => (Answer::Child, number(&error), 0),
    }
}
