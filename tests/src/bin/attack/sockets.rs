//! Socket calls as thin as they can be: any family, any flags, any address bytes, and the errno as
//! it came. What the standard library would refuse to do is what an attack needs.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc::{self, c_int};

/// An outcome of the kernel.
pub type Result<T> = std::result::Result<T, Errno>;

/// An address as the bytes of a `sockaddr`.
pub fn encode(address: SocketAddr) -> Vec<u8> {
    match address {
        SocketAddr::V4(v4) => {
            let mut bytes = (libc::AF_INET as u16).to_ne_bytes().to_vec();
            bytes.extend(v4.port().to_be_bytes());
            bytes.extend(v4.ip().octets());
            bytes.extend([0; 8]);
            bytes
        }
        SocketAddr::V6(v6) => {
            let mut bytes = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
            bytes.extend(v6.port().to_be_bytes());
            bytes.extend(v6.flowinfo().to_be_bytes());
            bytes.extend(v6.ip().octets());
            bytes.extend(v6.scope_id().to_ne_bytes());
            bytes
        }
    }
}

/// The same with another family in front.
pub fn encode_as(family: c_int, address: SocketAddr) -> Vec<u8> {
    let mut bytes = encode(address);
    bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    bytes
}

/// The address in the bytes of a `sockaddr`; `None` for other families.
pub fn decode(bytes: &[u8]) -> Option<SocketAddr> {
    let family = c_int::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    if family == libc::AF_INET {
        let octets: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
        return Some(SocketAddr::from((octets, port)));
    }
    let octets: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
    (family == libc::AF_INET6).then(|| SocketAddr::from((octets, port)))
}

/// The family of an address.
pub fn family(address: SocketAddr) -> c_int {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

pub fn socket(family: c_int, kind: c_int, protocol: c_int) -> Result<OwnedFd> {
    // SAFETY: numbers only.
    let fd = Errno::result(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub fn connect(fd: RawFd, address: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads no more than the length given.
    let answer =
        unsafe { libc::connect(fd, address.as_ptr().cast(), address.len() as libc::socklen_t) };
    Errno::result(answer).map(drop)
}

pub fn bind(fd: RawFd, address: SocketAddr) -> Result<()> {
    let address = encode(address);
    // SAFETY: the kernel reads no more than the length given.
    let answer =
        unsafe { libc::bind(fd, address.as_ptr().cast(), address.len() as libc::socklen_t) };
    Errno::result(answer).map(drop)
}

pub fn listen(fd: RawFd) -> Result<()> {
    // SAFETY: numbers only.
    Errno::result(unsafe { libc::listen(fd, 16) }).map(drop)
}

pub fn send(fd: RawFd, data: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads no more than the length given.
    let sent = unsafe { libc::send(fd, data.as_ptr().cast(), data.len(), libc::MSG_NOSIGNAL) };
    Errno::result(sent).map(drop)
}

pub fn send_to(fd: RawFd, data: &[u8], flags: c_int, address: &[u8]) -> Result<()> {
    // SAFETY: the kernel reads no more than the lengths given.
    let sent = unsafe {
        libc::sendto(
            fd,
            data.as_ptr().cast(),
            data.len(),
            flags | libc::MSG_NOSIGNAL,
            address.as_ptr().cast(),
            address.len() as libc::socklen_t,
        )
    };
    Errno::result(sent).map(drop)
}

/// One datagram by `sendmsg`, or as the only one of a `sendmmsg`.
pub fn send_message(fd: RawFd, data: &[u8], address: &[u8], many: bool) -> Result<()> {
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: all-zero bytes are an empty message header.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_name = address.as_ptr().cast_mut().cast();
    message.msg_hdr.msg_namelen = address.len() as libc::socklen_t;
    message.msg_hdr.msg_iov = &raw mut part;
    message.msg_hdr.msg_iovlen = 1;
    // SAFETY: the header points at data and address, which live through the call.
    let sent = unsafe {
        if many {
            libc::sendmmsg(fd, &raw mut message, 1, libc::MSG_NOSIGNAL) as isize
        } else {
            libc::sendmsg(fd, &raw const message.msg_hdr, libc::MSG_NOSIGNAL)
        }
    };
    Errno::result(sent).map(drop)
}

/// Waits for data, at most some seconds, and gives it with the address it came from.
pub fn receive(fd: RawFd) -> Result<(Vec<u8>, Option<SocketAddr>)> {
    let patience = libc::timeval { tv_sec: 10, tv_usec: 0 };
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &patience)?;
    let (mut data, mut from) = (vec![0_u8; 4096], [0_u8; 128]);
    let mut size = from.len() as libc::socklen_t;
    // SAFETY: both buffers are writable for the lengths given.
    let length = unsafe {
        libc::recvfrom(
            fd,
            data.as_mut_ptr().cast(),
            data.len(),
            0,
            from.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    data.truncate(Errno::result(length)?.unsigned_abs());
    Ok((data, decode(&from[..size as usize])))
}

pub fn set_option<T>(fd: RawFd, level: c_int, name: c_int, value: &T) -> Result<()> {
    let size = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads no more than the value.
    let answer =
        unsafe { libc::setsockopt(fd, level, name, std::ptr::from_ref(value).cast(), size) };
    Errno::result(answer).map(drop)
}

fn name_of(
    fd: RawFd,
    get: unsafe extern "C" fn(c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> c_int,
) -> Option<SocketAddr> {
    let mut bytes = [0_u8; 128];
    let mut size = bytes.len() as libc::socklen_t;
    // SAFETY: the buffer is writable for the length given.
    let answer = unsafe { get(fd, bytes.as_mut_ptr().cast(), &raw mut size) };
    (answer == 0).then(|| decode(&bytes[..size as usize])).flatten()
}

/// The other side, as the process is shown it.
pub fn peer(fd: RawFd) -> Option<SocketAddr> {
    name_of(fd, libc::getpeername)
}

/// This side.
pub fn local(fd: RawFd) -> Option<SocketAddr> {
    name_of(fd, libc::getsockname)
}

/// A descriptor sent over the Unix socket that is standard input.
pub fn received_descriptor() -> Result<OwnedFd> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let (mut byte, mut space) = ([0_u8; 1], nix::cmsg_space!(RawFd));
    let mut parts = [std::io::IoSliceMut::new(&mut byte)];
    let stdin = std::io::stdin().as_raw_fd();
    let message = recvmsg::<()>(stdin, &mut parts, Some(&mut space), MsgFlags::empty())?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let Some(fd) = descriptors.first()
        {
            // SAFETY: a new descriptor that the kernel has just put into this process.
            return Ok(unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    Err(Errno::ENOMSG)
}
