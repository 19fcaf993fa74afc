//! Another program in the place of one that is attached, at one moment: what aya does for XDP alone, for
//! programs at a cgroup.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;

/// `BPF_OBJ_GET` and `BPF_LINK_UPDATE` of bpf(2), linux/bpf.h.
const OBJECT_GET: libc::c_int = 7;
const LINK_UPDATE: libc::c_int = 29;

/// The part of `union bpf_attr` that gets a pinned object.
#[repr(C)]
struct Get {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The part that updates a link.
#[repr(C)]
struct Update {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Puts a program in the place of the one that a pinned link has attached.
///
/// # Errors
/// The pin is no link, or its kind of link keeps its program.
pub fn update(pin: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let get = Get { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the structure is initialised, and its path outlives the call.
    let link = unsafe { bpf(OBJECT_GET, &get) }?;
    // SAFETY: a descriptor that the kernel has just made for us, and nobody else knows of.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    let update = Update {
        link: link.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_program: 0,
    };
    // SAFETY: the structure is initialised and has no pointers.
    unsafe { bpf(LINK_UPDATE, &update) }.map(drop)
}

/// # Safety
/// The structure is the command's part of `union bpf_attr`, and what it points at is valid.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    // SAFETY: the caller's promise, and the structure's own size.
    let outcome = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    Ok(Errno::result(i32::try_from(outcome).unwrap_or(-1))?)
}
