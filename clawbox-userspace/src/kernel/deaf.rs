//! A filter that lets nothing into a socket. Loaded once: the kernel compiles a filter of the older kind anew for
//! each socket, which takes longer than to open it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::libc;

/// `BPF_PROG_LOAD` and `BPF_PROG_TYPE_SOCKET_FILTER`, linux/bpf.h.
const PROG_LOAD: libc::c_int = 5;
const SOCKET_FILTER: u32 = 1;

/// `r0 = 0; exit`: of each packet nothing is kept, so that it is dropped before TCP looks at it (sk_filter).
const NOTHING: [u64; 2] = [0xb7, 0x95];

/// The first fields of `union bpf_attr` for a load.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instructions: u32,
    text: u64,
    license: u64,
    log: [u32; 2],
    log_at: u64,
    version: u32,
    flags: u32,
}

/// Makes a socket deaf.
///
/// # Errors
/// The kernel takes no such filter.
pub fn deafen(socket: BorrowedFd<'_>) -> io::Result<()> {
    static LOADED: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let Some(filter) = LOADED.get_or_init(|| load().ok()) else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let number = filter.as_raw_fd();
    // SAFETY: the kernel reads one int of ours.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_BPF,
            (&raw const number).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(set).map(drop).map_err(io::Error::from)
}

fn load() -> io::Result<OwnedFd> {
    let mut load = Load {
        kind: SOCKET_FILTER,
        instructions: NOTHING.len() as u32,
        text: NOTHING.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: the structure is initialised, and what it points at outlives the call, which reads it.
    let loaded =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw mut load, size_of::<Load>()) };
    let number = Errno::result(loaded)?;
    let number = i32::try_from(number).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: a descriptor that the kernel has just given to nobody else. It is closed at an exec (bpf(2)).
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    #[test]
    fn nobody_reaches_a_deaf_listener_and_nobody_is_refused() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port()));
        let reach = || TcpStream::connect_timeout(&at, Duration::from_millis(50));
        assert!(reach().is_ok());
        if deafen(listener.as_fd()).is_err() {
            // Not privileged: whoever opens one attaches a filter of the older kind.
            return;
        }
        assert_eq!(reach().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
