//! Which cgroups that somebody else has made are sandboxes, wherever they are in the hierarchy: for
//! starts of programs and walks alone. What every hook asks is the identity that is given there.

use clawbox_common::attach::{Attached, LEVELS, NOT_ATTACHED, PENDING, STARTERS};
use clawbox_common::subject::FileId;

use crate::{
    kernel_read::{self, Kernel, Untyped},
    subject,
};

/// The sandbox that a cgroup is in: the innermost one's above it that is one.
///
/// With C's linkage, so that the verifier takes it once, as [`crate::search::meet`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn attached(cgroup: u64) -> Attached {
    let cgroup = Untyped(cgroup);
    let depth = cgroup.level();
    let mut found = NOT_ATTACHED;
    // The root, of level 0, is nobody's.
    for level in 1..=LEVELS as u64 {
        if level > depth {
            break;
        }
        if let Some(sandbox) = subject::sandbox_of_cgroup(cgroup.ancestor(level)) {
            found = u64::from(sandbox);
        }
    }
    found
}

/// The sandbox of a task whose own cgroup is none of clawbox's, and that is about to run a program.
/// `None` where it is in none, or the program is one that starts others.
#[inline(always)]
pub fn newcomer(task: Kernel, exe: FileId) -> Option<u32> {
    let found = attached(kernel_read::cgroup(task));
    if found == NOT_ATTACHED || subject::named(exe, STARTERS).is_some() {
        return None;
    }
    Some(found as u32)
}

/// Whether the agent has yet to say what a cgroup is.
#[inline(always)]
pub const fn is_pending(sandbox: u32) -> bool {
    sandbox == PENDING
}
