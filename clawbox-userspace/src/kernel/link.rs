//! Another program in the place of one that is attached, at one moment: what aya does for XDP alone, for
//! programs at a cgroup. And what the kernel says of links and tables, whoever has made them.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;

/// Commands of bpf(2), linux/bpf.h: `BPF_MAP_CREATE`, `BPF_OBJ_GET`, `_PIN`, `_GET_INFO_BY_FD` and
/// `BPF_LINK_UPDATE`.
const TABLE_CREATE: libc::c_int = 0;
const OBJECT_GET: libc::c_int = 7;
const OBJECT_PIN: libc::c_int = 6;
const OBJECT_INFO: libc::c_int = 15;
const LINK_UPDATE: libc::c_int = 29;

/// The part of `union bpf_attr` that pins an object or gets a pinned one.
#[repr(C)]
struct Get {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The part that makes a table.
#[repr(C)]
struct Create {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
}

/// `BPF_MAP_TYPE_ARRAY` and `BPF_F_MMAPABLE`.
const ARRAY: u32 = 2;
const MAPPABLE: u32 = 1 << 10;

/// The part that updates a link.
#[repr(C)]
struct Update {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// The part that asks about an object.
#[repr(C)]
struct Ask {
    object: u32,
    length: u32,
    answer: u64,
}

/// `BPF_LINK_TYPE_CGROUP`.
const AT_CGROUP: u32 = 3;

/// What the kernel says of a link or a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    kind: u32,
    /// Its number.
    pub id: u32,
    /// Of a link, its program's number.
    pub program: u32,
    /// Of a link at a cgroup, that cgroup's id; zero if it was detached from it.
    pub cgroup: u64,
}

impl Info {
    /// Of a link.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn of_link(object: &OwnedFd) -> io::Result<Self> {
        // `struct bpf_link_info` begins with three numbers; what depends on the kind comes after 16 bytes.
        let words = info(object.as_fd())?;
        let (kind, id) = halves(words[0]);
        Ok(Self { kind, id, program: halves(words[1]).0, cgroup: words[2] })
    }

    /// Of a table.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn of_map(object: &OwnedFd) -> io::Result<Self> {
        let (kind, id) = halves(info(object.as_fd())?[0]);
        Ok(Self { kind, id, program: 0, cgroup: 0 })
    }

    /// Whether it is a link at a cgroup.
    #[must_use]
    pub fn is_at_cgroup(&self) -> bool {
        self.kind == AT_CGROUP
    }
}

/// The two numbers of a word, in the order in which they are in memory.
fn halves(word: u64) -> (u32, u32) {
    let bytes = word.to_ne_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

fn info(object: BorrowedFd<'_>) -> io::Result<[u64; 32]> {
    let mut answer = [0_u64; 32];
    let length = u32::try_from(size_of_val(&answer)).unwrap_or(0);
    let object = object.as_raw_fd().cast_unsigned();
    let ask = Ask { object, length, answer: answer.as_mut_ptr() as u64 };
    // SAFETY: the structure is initialised, and the kernel writes at most so many bytes of ours.
    unsafe { bpf(OBJECT_INFO, &ask) }?;
    Ok(answer)
}

/// What is pinned there.
///
/// # Errors
/// Nothing is.
pub fn get(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let get = Get { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the structure is initialised, and its path outlives the call.
    let object = unsafe { bpf(OBJECT_GET, &get) }?;
    // SAFETY: a descriptor that the kernel has just made for us, and nobody else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(object) })
}

/// Pins an object where nothing is.
///
/// # Errors
/// bpffs refuses.
pub fn pin(object: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
    let path = CString::new(at.as_os_str().as_bytes())?;
    let fd = object.as_raw_fd().cast_unsigned();
    let pin = Get { path: path.as_ptr() as u64, fd, flags: 0 };
    // SAFETY: the structure is initialised, and its path outlives the call.
    unsafe { bpf(OBJECT_PIN, &pin) }.map(drop)
}

/// A table of one entry of so many bytes, all zero, that can be mapped.
///
/// # Errors
/// The kernel refuses.
pub fn mapped_table(bytes: u32) -> io::Result<OwnedFd> {
    let create =
        Create { kind: ARRAY, key_size: 4, value_size: bytes, entries: 1, flags: MAPPABLE };
    // SAFETY: the structure is initialised and has no pointers.
    let table = unsafe { bpf(TABLE_CREATE, &create) }?;
    // SAFETY: a descriptor that the kernel has just made for us, and nobody else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(table) })
}

/// Puts a program in the place of the one that a pinned link has attached.
///
/// # Errors
/// The pin is no link, or its kind of link keeps its program.
pub fn update(pin: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let link = get(pin)?;
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
