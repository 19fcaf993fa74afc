//! Attached is not enforcing: before the command starts, its process tries what must be denied.
//! It stands in the sandbox's cgroup and has no identity yet, so every attempt has to fail.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

use nix::libc;
use nix::sys::socket::{MsgFlags, SockaddrStorage};

/// What the child's error says if an attempt went through: no system call gives it here.
pub const NOT_ENFORCING: i32 = libc::ENOTRECOVERABLE;

/// Sockets made outside the sandbox, as the sandbox's process cannot make any.
#[derive(Debug)]
pub struct SelfTest {
    sockets: Vec<(UdpSocket, SockaddrStorage)>,
    /// Whether files have to be refused too.
    files: bool,
}

impl SelfTest {
    /// Makes a socket for each address family that this host has. `files`: whether LSM programs
    /// are in place.
    ///
    /// # Errors
    /// Not even IPv4 sockets can be made.
    pub fn prepare(files: bool) -> io::Result<Self> {
        // Port 9 is discard; on loopback, should it get there after all.
        let v4 = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let mut sockets = vec![(v4, SocketAddr::from((Ipv4Addr::LOCALHOST, 9)).into())];
        if let Ok(v6) = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) {
            sockets.push((v6, SocketAddr::from((Ipv6Addr::LOCALHOST, 9)).into()));
        }
        Ok(Self { sockets, files })
    }

    /// Tries connect and send on each socket, to make new ones, and to open a file. For the forked child:
    /// makes system calls and does not allocate.
    ///
    /// # Errors
    /// [`NOT_ENFORCING`] if an attempt was not refused.
    pub fn run(&self) -> io::Result<()> {
        for (socket, address) in &self.sockets {
            let fd = socket.as_raw_fd();
            refused(nix::sys::socket::sendto(fd, b"", address, MsgFlags::empty()).map(drop))?;
            refused(nix::sys::socket::connect(fd, address))?;
        }
        refused(make_socket())?;
        if !self.files {
            return Ok(());
        }
        refused(open_file())?;
        refused(make_odd_socket())
    }
}

fn make_socket() -> nix::Result<()> {
    // SAFETY: no pointer is passed; a descriptor that comes back, which it must not, is closed
    // with the process that is about to fail.
    let fd: RawFd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) };
    nix::errno::Errno::result(fd).map(drop)
}

/// One of a family that no cgroup hook sees. Asked about before the kernel looks whether it has it
/// (`__sock_create`, net/socket.c).
fn make_odd_socket() -> nix::Result<()> {
    // SAFETY: as in `make_socket`.
    let fd: RawFd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT) };
    nix::errno::Errno::result(fd).map(drop)
}

/// The root directory, which everybody may open.
fn open_file() -> nix::Result<()> {
    // SAFETY: a constant path with its NUL; a descriptor that comes back, which it must not, is
    // closed with the process that is about to fail.
    let fd: RawFd = unsafe { libc::open(c"/".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    nix::errno::Errno::result(fd).map(drop)
}

fn refused(outcome: nix::Result<()>) -> io::Result<()> {
    match outcome {
        Err(nix::errno::Errno::EPERM | nix::errno::Errno::EACCES) => Ok(()),
        _ => Err(io::Error::from_raw_os_error(NOT_ENFORCING)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_a_sandbox_the_test_says_that_nothing_is_enforced() {
        let error = SelfTest::prepare(false).unwrap().run().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(NOT_ENFORCING));
    }
}
