//! Capability sets by raw system call: read in the parent, emptied in the child.
//! glibc wraps none of it, and the child may not allocate, so there is no crate in between.

use nix::errno::Errno;
use nix::libc::{self, c_int, c_ulong};

/// _LINUX_CAPABILITY_VERSION_3, from linux/capability.h.
const VERSION: u32 = 0x2008_0522;

/// CAP_SETGID, from linux/capability.h as the next ones.
pub(super) const SETGID: u32 = 6;
/// CAP_SETUID.
pub(super) const SETUID: u32 = 7;
/// CAP_SETPCAP.
pub(super) const SETPCAP: u32 = 8;
/// CAP_SYS_ADMIN.
pub(super) const SYS_ADMIN: u32 = 21;

/// Securebits that take away what is special about uid 0, and lock it. From linux/securebits.h:
/// NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE. Not KEEP_CAPS: who has no capability keeps none by it,
/// and programs that give up theirs by themselves, ping among them, end where they may not set it.
const SECUREBITS: c_ulong = 0b11 | 0b11 << 2 | 0b11 << 6;

#[repr(C)]
struct Header {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Default, Clone, Copy, PartialEq, Eq)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const NOTHING: [Half; 2] = [Half { effective: 0, permitted: 0, inheritable: 0 }; 2];

fn get() -> Result<[Half; 2], Errno> {
    let mut header = Header { version: VERSION, pid: 0 };
    let mut halves = NOTHING;
    // SAFETY: version 3 writes exactly two `Half`, which `halves` is; both outlive the call.
    let answer = unsafe { libc::syscall(libc::SYS_capget, &mut header, halves.as_mut_ptr()) };
    Errno::result(answer).map(|_| halves)
}

/// The caller's effective set as a bit mask.
pub(super) fn effective() -> Result<u64, Errno> {
    get().map(|[low, high]| u64::from(low.effective) | u64::from(high.effective) << 32)
}

/// Empties the permitted, effective, inheritable and ambient sets.
pub(super) fn empty() -> Result<(), Errno> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong)?;
    let mut header = Header { version: VERSION, pid: 0 };
    // SAFETY: version 3 reads exactly two `Half`, which `NOTHING` is; both outlive the call.
    let answer = unsafe { libc::syscall(libc::SYS_capset, &mut header, NOTHING.as_ptr()) };
    Errno::result(answer).map(drop)
}

/// Whether all sets that [`empty`] empties are empty.
pub(super) fn are_empty() -> Result<bool, Errno> {
    get().map(|halves| halves == NOTHING)
}

/// Locks the securebits. Needs CAP_SETPCAP.
pub(super) fn lock_securebits() -> Result<(), Errno> {
    prctl(libc::PR_SET_KEEPCAPS, 0)?;
    prctl(libc::PR_SET_SECUREBITS, SECUREBITS).map(drop)
}

/// Empties the bounding set. Needs CAP_SETPCAP, unless it is empty.
///
/// # Errors
/// The kernel refuses it.
pub fn empty_bounding_set() -> Result<(), Errno> {
    for capability in 0.. {
        match prctl(libc::PR_CAPBSET_READ, capability) {
            Ok(0) => {}
            Ok(_) => drop(prctl(libc::PR_CAPBSET_DROP, capability)?),
            // Past the last capability of this kernel.
            Err(Errno::EINVAL) => break,
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

/// prctl(2) for the options that take at most two numbers; the others must be 0.
pub(super) fn prctl(option: c_int, argument: c_ulong) -> Result<c_int, Errno> {
    let zero: c_ulong = 0;
    // SAFETY: every option passed in this module's family takes numbers, never pointers.
    Errno::result(unsafe { libc::prctl(option, argument, zero, zero, zero) })
}
