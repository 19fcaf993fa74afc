//! What is executed: program starts, and mappings that a loader makes by hand.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use clawbox_common::{
    decide,
    event::{Kind, Operation},
    file::EXECUTE,
    subject::Standing,
    verdict::Verdict,
};

use super::{file::execution, verdict::eacces};
use crate::{
    emit::{self, Deed, Judged},
    kernel_read::{self, Dentry as _, Kernel, Paths, Place},
    maps::{EVENTS, KernelLookup, SCRIPT_STARTS},
    search::Start as _,
    subject,
};

/// `PROT_EXEC`, uapi/asm-generic/mman-common.h.
const PROT_EXEC: u64 = 4;

/// `(bprm)`: once for a script and again for each interpreter.
#[lsm(hook = "bprm_check_security")]
pub fn bprm_check_security(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a linux_binprm.
    let bprm = unsafe { Kernel::new(ctx.arg(0)) };
    let standing = subject::standing();
    let Some(sandbox) = subject::sandbox(&standing) else { return 0 };
    let file = kernel_read::bprm_file(bprm);
    let place = Place::of_file(file);
    let object = place.dentry.identity();
    let named = subject::named(object, sandbox);
    if named.is_some() {
        // What the policy trusts a program with is not for a library that its caller chose.
        kernel_read::start_securely(bprm);
    }
    let decision = decide::execution::start(&KernelLookup, sandbox, named);
    if !matches!(decision.verdict, Verdict::Allow) {
        let (kind, operation) = (Kind::File, Operation::Start);
        let deed = Deed { kind, operation, access: EXECUTE, object, other: 0 };
        emit::used(&standing, Judged::by(&decision), &deed, Some(place.by_address()));
        return eacces(decision.goes_on());
    }
    // Who has no identity gets one by this exec; see `file_open`.
    if !matches!(standing, Standing::Subject(_)) {
        return 0;
    }
    execution(Operation::Start, file)
}

/// `(bprm)`: once, for the file that was asked for. Remembers it in case that it is a script: by the
/// time the start is over, its interpreter has taken its place.
///
/// The interpreter opens the script again, by the path that exec was given. So the file says who the
/// process is only where that path leads to it and to nothing else: it is the file's own, and nobody
/// in the sandbox can change the directory. By another path (a symlink, a relative one) a process
/// could exchange what is behind it once it has the identity.
///
/// A hook of its own: a second search does not fit the stack of `bprm_check_security`.
#[lsm(hook = "bprm_creds_for_exec")]
pub fn bprm_creds_for_exec(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a linux_binprm.
    let bprm = unsafe { Kernel::new(ctx.arg(0)) };
    let standing = subject::standing();
    if !matches!(standing, Standing::Outside) {
        remember_script(&standing, bprm);
    }
    0
}

/// `(bprm)`: the old program is gone, and the new one has not run.
#[lsm(hook = "bprm_committed_creds")]
pub fn bprm_committed_creds(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a linux_binprm.
    let bprm = unsafe { Kernel::new(ctx.arg(0)) };
    subject::enroll(kernel_read::current(), bprm);
    0
}

#[inline(always)]
fn remember_script(standing: &Standing<'_>, bprm: Kernel) {
    let start = bprm.address();
    // What a start that failed has left at this address is not this one's.
    let _ = SCRIPT_STARTS.remove(start);
    let Ok((subject, state)) = decide::file::subject(&KernelLookup, standing) else { return };
    let file = kernel_read::bprm_file(bprm);
    let Place { dentry, mount } = Place::of_file(file);
    let script = dentry.identity();
    if subject::named(script, subject.sandbox).is_none() {
        return;
    }
    let directory = dentry.parent();
    if directory == dentry {
        return;
    }
    let Some(mut memory) = EVENTS.reserve::<Paths>(0) else { return };
    let is_own = kernel_read::is_own_path(bprm, file, memory.as_mut_ptr());
    // The reader may stand at it, and would not be woken by what follows.
    memory.discard(0);
    if !is_own {
        return;
    }
    let found = Place { dentry: directory, mount }.search(state, subject);
    if found.whole && !found.search.is_written() {
        let _ = SCRIPT_STARTS.insert(start, script, 0);
    }
}

/// `(file, requested, protection, flags)`; without a file for anonymous memory. Writing by way of a
/// shared mapping needs no verdict here or in `file_mprotect`: the kernel asks for a descriptor that
/// was opened to be written, and that open was judged.
#[lsm(hook = "mmap_file")]
pub fn mmap_file(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a file or null.
    let file = unsafe { Kernel::new(ctx.arg(0)) };
    let protection: u64 = ctx.arg(2);
    if file.is_null() || protection & PROT_EXEC == 0 {
        return 0;
    }
    if !matches!(subject::standing(), Standing::Subject(_)) {
        return 0;
    }
    execution(Operation::Map, file)
}

/// `(vma, requested, protection)`.
#[lsm(hook = "file_mprotect")]
pub fn file_mprotect(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a vm_area_struct.
    let vma = unsafe { Kernel::new(ctx.arg(0)) };
    let protection: u64 = ctx.arg(2);
    if protection & PROT_EXEC == 0 || !matches!(subject::standing(), Standing::Subject(_)) {
        return 0;
    }
    let file = kernel_read::vma_file(vma);
    if file.is_null() {
        return 0;
    }
    execution(Operation::Map, file)
}
