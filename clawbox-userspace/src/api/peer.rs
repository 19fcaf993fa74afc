//! Who is at the other end of the control socket, by the kernel's word at the time of the connect.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use nix::libc;
use nix::unistd::Group;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::Connected;

use super::GROUP;

/// From linux/socket.h, since 6.5; libc has no name for it yet.
const SO_PEERPIDFD: i32 = 77;

/// Groups that a process may have (`NGROUPS_MAX`).
const GROUPS: usize = 65_536;

/// Who asks.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Real to the kernel's word: the effective user at the connect.
    pub uid: u32,
    /// The effective group then.
    pub gid: u32,
    /// The process that connected, as the host sees it.
    pub pid: u32,
    groups: Arc<[u32]>,
    process: Arc<OwnedFd>,
}

impl Peer {
    /// Of a connected socket.
    ///
    /// # Errors
    /// The kernel does not say, or the process has gone.
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        let (uid, gid, pid) = credentials(socket.as_fd())?;
        let process = match pidfd(socket.as_fd()) {
            Ok(process) => process,
            // Before 6.5. A process that has gone meanwhile may have left its number to another one: only
            // one of the same user is taken for it, which could as well have connected itself.
            Err(_) => {
                let pid = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::NotFound)?;
                let process = pidfd_open(pid, PidfdFlags::empty())?;
                if owner_of(pid.as_raw_nonzero().get())? != uid {
                    return Err(io::ErrorKind::PermissionDenied.into());
                }
                process
            }
        };
        let groups = groups(socket.as_fd())?.into();
        Ok(Self { uid, gid, pid, groups, process: Arc::new(process) })
    }

    /// Whether it may have a say in every sandbox: root, and the members of [`GROUP`].
    #[must_use]
    pub fn manages(&self) -> bool {
        if self.uid == 0 {
            return true;
        }
        let group = Group::from_name(GROUP).ok().flatten().map(|group| group.gid.as_raw());
        group.is_some_and(|group| self.gid == group || self.groups.contains(&group))
    }

    /// Its supplementary groups then.
    #[must_use]
    pub fn groups(&self) -> &[u32] {
        &self.groups
    }

    /// A descriptor of the calling process, by its number there.
    ///
    /// # Errors
    /// It has none of this number, or has gone.
    pub fn descriptor(&self, number: RawFd) -> io::Result<OwnedFd> {
        Ok(pidfd_getfd(&*self.process, number, PidfdGetfdFlags::empty())?)
    }

    /// Whether it has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut ended = [PollFd::new(&*self.process, PollFlags::IN)];
        poll(&mut ended, Some(&Timespec::default())).is_ok_and(|count| count > 0)
    }
}

fn credentials(socket: BorrowedFd<'_>) -> io::Result<(u32, u32, u32)> {
    let found = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials)?;
    let pid = u32::try_from(found.pid()).map_err(io::Error::other)?;
    if pid == 0 {
        // Of another pid namespace.
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok((found.uid(), found.gid(), pid))
}

fn pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut found: RawFd = -1;
    let mut length = size_of::<RawFd>() as libc::socklen_t;
    // SAFETY: the kernel writes an int and its length, both of ours.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut found).cast(),
            &raw mut length,
        )
    };
    nix::errno::Errno::result(outcome)?;
    if found < 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    // SAFETY: a descriptor that the kernel has just made for us, and nobody else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(found) })
}

fn groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut found = vec![MaybeUninit::<u32>::uninit(); 64];
    loop {
        let mut length = libc::socklen_t::try_from(size_of_val(found.as_slice())).unwrap_or(0);
        // SAFETY: the kernel writes at most so many bytes into memory of ours, and says how many.
        let outcome = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                found.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        match nix::errno::Errno::result(outcome) {
            Ok(_) => {
                let count = length as usize / size_of::<u32>();
                let written = found.iter().take(count);
                // SAFETY: the kernel has written that many.
                return Ok(written.map(|group| unsafe { group.assume_init() }).collect());
            }
            Err(nix::errno::Errno::ERANGE) if found.len() < GROUPS => {
                found.resize(GROUPS, MaybeUninit::uninit());
            }
            // A peer without supplementary groups.
            Err(nix::errno::Errno::ENODATA) => return Ok(Vec::new()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn owner_of(pid: i32) -> io::Result<u32> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(format!("/proc/{pid}"))?.uid())
}

/// A connection, with who is at its other end.
#[derive(Debug)]
pub struct PeerStream {
    stream: UnixStream,
    peer: Peer,
}

impl PeerStream {
    /// Looks at who has connected.
    ///
    /// # Errors
    /// As [`Peer::of`].
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        let peer = Peer::of(&stream)?;
        Ok(Self { stream, peer })
    }

    /// Who.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Connected for PeerStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_who_is_at_the_other_end_and_gives_its_descriptors() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        assert_eq!((peer.uid, peer.pid), (nix::unistd::geteuid().as_raw(), std::process::id()));
        assert!(!peer.has_ended());
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        match peer.descriptor(file.as_raw_fd()) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}"),
        }
        assert_eq!(peer.manages(), peer.uid == 0 || peer.manages());
    }
}
