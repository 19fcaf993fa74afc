//! Cgroups that others make: which of them the agent is asked about, and the walk that gives
//! identities to who is in one.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_map_lookup_elem, bpf_probe_read_kernel_str},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use clawbox_common::attach::{
    ASKED, Compared, LEVELS, NOT_ATTACHED, PENDING, SELECTOR_BITS, SELECTOR_TEXT, Selector, Walk,
};
use core::{ffi::c_void, ptr::read_volatile};

use crate::{
    attached::{attached, hold_unasked},
    kernel_read::{self, Kernel, Untyped},
    maps::{CGROUPS, SELECTOR_SCRATCH, SELECTORS, WALK},
    subject::{self, Walked},
};

/// `(cgroup, path)`: it is there, and nothing is in it yet.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn cgroup_made(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: argument 0 of this tracepoint is a cgroup, argument 1 a string.
    let (cgroup, path) = unsafe { (Kernel::new(ctx.arg(0)), ctx.arg::<u64>(1)) };
    let cgroup = Untyped(kernel_read::address_of_cgroup(cgroup));
    // What users make there is called as they like, and no rule is for it by its name.
    let is_named = || !cgroup.is_users() && is_selected(Compared::Name, cgroup.name_of_cgroup());
    if !is_selected(Compared::Path, path) && !is_named() {
        return 0;
    }
    // What is made inside a sandbox is a part of it.
    if attached(cgroup.0) == NOT_ATTACHED
        && (cgroup.level() > LEVELS as u64
            || CGROUPS.insert(cgroup.id_of_cgroup(), PENDING, u64::from(BPF_NOEXIST)).is_err())
    {
        hold_unasked(cgroup.id_of_cgroup());
    }
    0
}

/// `(cgroup, path)`: it is gone, and nobody can be in it any more. The agent cannot tell: it finds none by
/// its id that is still being made, either.
#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn cgroup_gone(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: argument 0 of this tracepoint is a cgroup.
    let cgroup = unsafe { Kernel::new(ctx.arg(0)) };
    let id = Untyped(kernel_read::address_of_cgroup(cgroup)).id_of_cgroup();
    if subject::sandbox_of_cgroup(id) == Some(PENDING) {
        // Somebody else may have removed it.
        let _ = CGROUPS.remove(id);
    }
    0
}

/// Whether a text of the kernel's begins as some rule says; the selector that says most counts.
#[inline(always)]
fn is_selected(compared: Compared, text: u64) -> bool {
    let Some(key) = SELECTOR_SCRATCH.get_ptr_mut(0) else { return false };
    // SAFETY: the scratch value is this CPU's, and this program does not run inside itself. The helpers
    // check the source, and write no more than a text's bytes.
    unsafe {
        let words = (&raw mut (*key).selector).cast::<u64>();
        for word in 0..size_of::<Selector>() / 8 {
            words.add(word).write_volatile(0);
        }
        (*key).bits = SELECTOR_BITS;
        (*key).selector.compared = compared as u8;
        let into = (&raw mut (*key).selector.text).cast::<c_void>();
        if bpf_probe_read_kernel_str(into, SELECTOR_TEXT as u32, text as *const c_void) <= 1 {
            return false;
        }
        let selectors = (&raw const SELECTORS).cast_mut().cast();
        let found = bpf_map_lookup_elem(selectors, key.cast()).cast::<u32>();
        !found.is_null() && found.read() == ASKED
    }
}

/// What an iterator's program is called with: `struct bpf_iter__task`.
#[repr(C)]
pub struct Iteration {
    meta: u64,
    task: *const u8,
}

/// Once for each task of the host.
///
/// # Safety
/// The kernel calls it.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub unsafe fn walk(ctx: *mut Iteration) -> i32 {
    // SAFETY: the program's own context; the task is null at the end.
    let task = unsafe { Kernel::new(read_volatile(&raw const (*ctx).task)) };
    if task.is_null() || !kernel_read::is_leader(task) {
        return 0;
    }
    let Some(walk) = WALK.get_ptr_mut(0) else { return 0 };
    // SAFETY: a map value that the agent has written before, and no two walks are at one time.
    let walk: &mut Walk = unsafe { &mut *walk };
    let is_in = attached(kernel_read::cgroup(task));
    if walk.sandbox == PENDING {
        if is_in == NOT_ATTACHED && subject::release(task) {
            walk.released += 1;
        }
    } else if is_in == u64::from(walk.sandbox) {
        match subject::find(task, walk.sandbox, walk.is_for_all != 0) {
            Walked::Known | Walked::Starter => {}
            Walked::Identified => walk.identified += 1,
            Walked::Unverified => walk.unverified += 1,
            Walked::NoRoom => walk.left_out += 1,
        }
    }
    0
}
