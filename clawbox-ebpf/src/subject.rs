//! The subject's life: found for a hook, begun or renewed at exec, copied at fork, ended with the
//! last thread of its group.

use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{
            bpf_get_current_ancestor_cgroup_id, bpf_map_delete_elem, bpf_map_update_elem,
            bpf_send_signal,
        },
    },
    macros::map,
    maps::Array,
};
use clawbox_common::{
    attach::{Attached, NOT_ATTACHED},
    rule::{BinaryKey, ScriptKey},
    subject::{FileId, Incarnation, Mask, Standing, Subject},
};
use core::{
    arch::asm,
    ptr::{self, null, read_volatile, write_volatile},
};

use crate::{
    attached::{attached, is_pending, newcomer},
    kernel_read::{self, Kernel},
    kind,
    maps::{BINARIES, CGROUPS, SCRIPT_SCRATCH, SCRIPT_STARTS, SCRIPTS, SUBJECTS},
    seat::{self, Found},
};

/// Of an identity that is nobody's: no process has started so many programs.
const NO_PROGRAM: u64 = u64::MAX;

#[inline(always)]
fn current_thread_group() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// The sandbox whose cgroup, or a cgroup below it, the current task is in.
#[inline(always)]
fn cgroup_sandbox() -> Option<u32> {
    let level = kernel_read::sandbox_level();
    // Every socket call of the host comes here, so what is nobody's is told by one comparison.
    // SAFETY: a helper without pointers.
    if unsafe { bpf_get_current_ancestor_cgroup_id(level - 1) } != kernel_read::sandbox_parent() {
        return None;
    }
    // SAFETY: a helper without pointers.
    let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
    // SAFETY: the agent adds and removes entries, never changes one.
    unsafe { CGROUPS.get(id) }.copied()
}

/// The sandbox whose cgroup the current task is in; zero if in none. With C's linkage, so that the
/// verifier takes it once: every report of a task without an identity asks.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sandbox_here() -> u32 {
    cgroup_sandbox().unwrap_or(0)
}

/// What is written for a thread group's number. Only the thread group's own exec changes it, when it
/// has one thread left; programs of another one read what exec does not change.
#[inline(always)]
fn identity<'a>(group: u64) -> Option<&'a Subject> {
    let found = match seat::find(group) {
        Found::Nobody => None,
        Found::Seated(subject) => Some(subject),
        // SAFETY: RCU keeps the value alive until this program ends; as for its changes, see above.
        Found::Crowded => unsafe { SUBJECTS.get(group as u32) },
    };
    let mut found = found.map_or(null(), ptr::from_ref);
    // Opaque: the compiler would copy what it knows to be unused from a register that this way did
    // not set ("R7 !read_ok"). `black_box` would take it over the stack.
    // An instruction it must have: the kernel takes no two lines of source at one.
    // SAFETY: the pointer is null or the reference that it was.
    unsafe {
        asm!("{found} = {found}", found = inout(reg) found, options(pure, nomem, nostack, preserves_flags));
        found.as_ref()
    }
}

/// Where the current task stands. The identity comes first: a process that moved to another
/// cgroup keeps its sandbox. One that was written for another process of its number is nobody's;
/// one for the program before the last exec says which sandbox, but no longer who.
#[inline(always)]
pub fn standing<'a>() -> Standing<'a> {
    // Its number by a load, which a helper of its own would take ten times as long for.
    let task = kernel_read::current();
    let group = kernel_read::thread_group_word(task);
    if let Some(subject) = identity(group) {
        let now = kernel_read::incarnation(task);
        if subject.incarnation.born == now.born {
            return if subject.incarnation.execs == now.execs {
                Standing::Subject(subject)
            } else {
                Standing::Unidentified
            };
        }
    }
    if cgroup_sandbox().is_some() || is_orphan(group) {
        Standing::Unidentified
    } else {
        Standing::Outside
    }
}

/// 1 once a thread group was born outside every sandbox's cgroup, of a parent with an identity, and
/// found the table full: nothing says whose it is, and its cgroup says that it is nobody's.
#[map]
static ORPHANS: Array<u32> = Array::with_max_entries(1, 0);

#[inline(always)]
fn has_orphans() -> bool {
    // SAFETY: an aligned word that only ever becomes 1.
    ORPHANS.get_ptr(0).is_some_and(|word| unsafe { read_volatile(word) != 0 })
}

/// 1 where cgroups that others have made are sandboxes, or may become some.
#[map]
static OTHERS: Array<u32> = Array::with_max_entries(1, 0);

/// The sandbox whose cgroup, which others have made, somebody without an identity is in: who is about to
/// start a program, which needs no network; or whose start the kernel has left out (7.x, where that is
/// preempted in the middle of another one's). With C's linkage, so that the verifier takes it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn left_out_in() -> Attached {
    // SAFETY: an aligned word that the agent writes.
    if OTHERS.get_ptr(0).is_none_or(|word| unsafe { read_volatile(word) } == 0) {
        return NOT_ATTACHED;
    }
    attached(kernel_read::cgroup(kernel_read::current()))
}

/// Whether it may be such a thread group, or a descendant of one: it has taken a seat, or its seat is
/// crowded. That may be one of the host's too, and where the table was really filled nearly all are:
/// denied rather than let go.
#[inline(always)]
fn is_orphan(group: u64) -> bool {
    has_orphans() && seat::may_have_identity(group)
}

/// The sandbox of a thread group, by its identity alone.
#[inline(always)]
pub fn sandbox_of(task: Kernel) -> Option<u32> {
    // One word is read, which its own exec does not change.
    let subject = identity(kernel_read::thread_group_word(task))?;
    if subject.incarnation.born != kernel_read::incarnation(task).born {
        return None;
    }
    Some(subject.sandbox)
}

/// Who a task is; `None` for one that is nobody, or is just becoming another program.
#[inline(always)]
pub fn of<'a>(task: Kernel) -> Option<&'a Subject> {
    let subject = identity(kernel_read::thread_group_word(task))?;
    let now = kernel_read::incarnation(task);
    (subject.incarnation.born == now.born && subject.incarnation.execs == now.execs)
        .then_some(subject)
}

/// The sandbox of the current task, where it is in one without being anybody.
#[inline(always)]
pub fn sandbox_of_unidentified() -> Option<u32> {
    cgroup_sandbox()
}

/// The sandbox that a task is in, also where it is nobody in it: then by the identity of an
/// earlier program, else by the cgroup.
#[inline(always)]
pub fn sandbox(standing: &Standing<'_>) -> Option<u32> {
    match standing {
        Standing::Outside => None,
        Standing::Subject(subject) => Some(subject.sandbox),
        Standing::Unidentified => sandbox_of(kernel_read::current()).or_else(cgroup_sandbox),
    }
}

/// The sandbox whose cgroup this is.
#[inline(always)]
pub fn sandbox_of_cgroup(id: u64) -> Option<u32> {
    // SAFETY: the agent adds and removes entries, never changes one.
    unsafe { CGROUPS.get(id) }.copied()
}

/// The slots of a file that the policy names as a binary.
#[inline(always)]
pub fn named<'a>(file: FileId, sandbox: u32) -> Option<&'a Mask> {
    // SAFETY: the agent adds and removes entries, never changes one; RCU keeps a removed one alive
    // until this program ends.
    unsafe { BINARIES.get(BinaryKey { file, sandbox, zero: 0 }) }
}

/// The slots of the files that this exec opened.
#[inline(always)]
fn matched(sandbox: u32, exe: FileId, script: Option<Kernel>) -> Mask {
    let mut own = Mask::EMPTY;
    if let Some(mask) = named(exe, sandbox) {
        own.extend(mask);
    }
    let Some(bprm) = script else { return own };
    // By its file, where LSM programs have seen it.
    let start = bprm.address();
    // SAFETY: only this start writes to the entry of its own address.
    if let Some(file) = unsafe { SCRIPT_STARTS.get(start) }.copied() {
        if let Some(mask) = named(file, sandbox) {
            own.extend(mask);
        }
        let _ = SCRIPT_STARTS.remove(start);
    }
    let Some(key) = SCRIPT_SCRATCH.get_ptr_mut(0) else { return own };
    // SAFETY: the scratch value is this CPU's, and tracepoint programs do not nest on a CPU.
    // Eight bytes at a time: the verifier counts a byte loop as 256 iterations.
    unsafe {
        let words = key.cast::<u64>();
        for word in 0..size_of::<ScriptKey>() / 8 {
            words.add(word).write_volatile(0);
        }
        if kernel_read::exec_path(bprm, &raw mut (*key).path) {
            (*key).sandbox = sandbox;
            if let Some(mask) = SCRIPTS.get(&*key) {
                own.extend(mask);
            }
        }
    }
    own
}

/// What exec made of the current task.
pub struct Executed {
    pub sandbox: u32,
    pub is_script: u32,
    pub exe: FileId,
    /// 0 where the identity table was full, so that everything will be denied.
    pub identified: bool,
}

/// Gives the current thread group the identity of the program it is about to run. `None` for a
/// task in no sandbox.
#[inline(always)]
pub fn exec(task: Kernel, bprm: Kernel) -> Option<Executed> {
    let group = current_thread_group();
    let now = kernel_read::incarnation(task);
    let mut held = SUBJECTS.get_ptr_mut(group);
    if let Some(subject) = held
        // SAFETY: a map value, and this is the group's only thread (exec has ended the others).
        && unsafe { (*subject).incarnation.born } != now.born
    {
        held = None;
    }
    let exe = kernel_read::program(bprm);
    // SAFETY: as above.
    let settled = held.map(|subject| unsafe { (*subject).sandbox });
    let sandbox = match settled.filter(|sandbox| !is_pending(*sandbox)) {
        Some(sandbox) => sandbox,
        None => match cgroup_sandbox().or_else(|| newcomer(task, exe)) {
            Some(sandbox) => sandbox,
            None => {
                if settled.is_some() {
                    forget(group);
                }
                return None;
            }
        },
    };
    let is_script = u32::from(kernel_read::is_script(bprm));
    let own = matched(sandbox, exe, (is_script == 1).then_some(bprm));
    if held.is_none() {
        seat::take(group);
        let fresh = Subject { sandbox, ..Subject::default() };
        let _ = SUBJECTS.insert(group, &fresh, u64::from(BPF_ANY));
        held = SUBJECTS.get_ptr_mut(group);
    }
    let identified = held.is_some();
    if let Some(subject) = held {
        // SAFETY: as above. Written in place, which cannot fail for want of memory. Whom it is written
        // for comes last: until then nobody who looks from another CPU takes it for an identity.
        unsafe {
            (*subject).is_script = is_script;
            (*subject).exe = exe;
            (*subject).own = own;
            (*subject).lineage.extend(&own);
            (*subject).kind = kind::number(subject);
            (&raw mut (*subject).incarnation.execs).write_volatile(now.execs);
            (&raw mut (*subject).incarnation.born).write_volatile(now.born);
        }
        seat::copy(group, subject);
    } else if cgroup_sandbox().is_none() {
        mark_orphan();
    }
    if is_pending(sandbox) {
        // Not an instruction of its own before the agent has said what it is. Whoever has it go on
        // earlier has it denied everything.
        // SAFETY: a helper without pointers.
        unsafe {
            bpf_send_signal(SIGSTOP);
        }
    }
    Some(Executed { sandbox, is_script, exe, identified })
}

/// Has who starts a program in an attached cgroup belong to its sandbox before [`exec`] says who it is. A
/// kernel that leaves that out (7.x, where a start is preempted in the middle of another one's) leaves
/// somebody there who is nobody and denied, and not somebody of the host's.
#[inline(always)]
pub fn enroll(task: Kernel, bprm: Kernel) {
    let group = current_thread_group();
    let born = kernel_read::incarnation(task).born;
    // SAFETY: a map value, and this is the group's only thread (exec has ended the others).
    let is_its = |held: &*const Subject| unsafe { (**held).incarnation.born == born };
    if SUBJECTS.get_ptr(group).filter(is_its).is_some() || cgroup_sandbox().is_some() {
        return;
    }
    let Some(sandbox) = newcomer(task, kernel_read::program(bprm)) else { return };
    seat::take(group);
    // No program of a process has this number: what runs is not who it was written for.
    let incarnation = Incarnation { born, execs: NO_PROGRAM };
    let fresh = Subject { sandbox, incarnation, ..Subject::default() };
    if SUBJECTS.insert(group, &fresh, u64::from(BPF_ANY)).is_ok()
        && let Some(subject) = SUBJECTS.get_ptr_mut(group)
    {
        seat::copy(group, subject);
    }
}

/// What a walk finds of a process that is in a sandbox's cgroup.
pub enum Walked {
    /// It has an identity.
    Known,
    /// It is nobody, and is to stay so until it starts a program.
    Starter,
    /// It got one, by the program that it runs.
    Identified,
    /// Which program it runs cannot be told: it is denied everything until it starts one.
    Unverified,
    /// It could not be given one.
    NoRoom,
}

/// Gives a process that is in the cgroup of a sandbox, and nobody in it, the identity of the program
/// that it runs. It does not run meanwhile: its cgroup is frozen.
#[inline(always)]
pub fn find(task: Kernel, sandbox: u32, is_for_all: bool) -> Walked {
    let group = kernel_read::thread_group(task);
    let now = kernel_read::incarnation(task);
    // SAFETY: a map value of a process that does not run.
    let is_its = |held: &*const Subject| unsafe { (**held).incarnation.born == now.born };
    match SUBJECTS.get_ptr(group).filter(is_its) {
        // SAFETY: as above.
        Some(held) if !is_pending(unsafe { (*held).sandbox }) => return Walked::Known,
        None if !is_for_all => return Walked::Starter,
        _ => {}
    }
    let exe = kernel_read::running(task);
    let own = named(exe, sandbox).copied().unwrap_or(Mask::EMPTY);
    seat::take(group);
    let fresh = Subject { sandbox, exe, own, lineage: own, ..Subject::default() };
    let _ = SUBJECTS.insert(group, &fresh, u64::from(BPF_ANY));
    let Some(subject) = SUBJECTS.get_ptr_mut(group) else {
        mark_orphan();
        return Walked::NoRoom;
    };
    let is_verified = exe.inode != 0;
    // SAFETY: as above. A count that no process has is nobody's.
    unsafe {
        (*subject).kind = kind::number(subject);
        let execs = if is_verified { now.execs } else { u64::MAX };
        (&raw mut (*subject).incarnation.execs).write_volatile(execs);
        (&raw mut (*subject).incarnation.born).write_volatile(now.born);
    }
    seat::copy(group, subject);
    if is_verified { Walked::Identified } else { Walked::Unverified }
}

/// Has a process be nobody again that was held in a cgroup which is no sandbox's.
#[inline(always)]
pub fn release(task: Kernel) -> bool {
    let group = kernel_read::thread_group(task);
    let Some(subject) = SUBJECTS.get_ptr(group) else { return false };
    // SAFETY: a map value of a process that does not run.
    if !is_pending(unsafe { (*subject).sandbox }) {
        return false;
    }
    forget(group);
    true
}

#[inline(always)]
fn mark_orphan() {
    if let Some(word) = ORPHANS.get_ptr_mut(0) {
        // SAFETY: an aligned word; others write the same.
        unsafe { write_volatile(word, 1) }
    }
}

/// `SIGSTOP`, uapi/asm-generic/signal.h.
const SIGSTOP: u32 = 19;

/// Copies the parent's identity to a new thread group. Where the table is full the child has no
/// identity and is denied by its cgroup, or where that is no sandbox's, as an orphan.
#[inline(always)]
pub fn fork(parent: Kernel, child: Kernel) {
    let group = kernel_read::thread_group(child);
    let from = kernel_read::thread_group(parent);
    if group == from || !seat::may_have_identity(u64::from(from)) {
        return;
    }
    let held = SUBJECTS.get_ptr(from);
    let born = kernel_read::incarnation(parent).born;
    // SAFETY: a map value; only the parent's exec writes to it, and the parent is here.
    let Some(subject) = held.filter(|held| unsafe { (**held).incarnation.born } == born) else {
        if has_orphans() {
            seat::take(group);
        }
        return;
    };
    seat::take(group);
    // SAFETY: key and value are initialised and of the map's sizes. The value is handed to the
    // helper where it stands: copying it over the stack costs more than the insert.
    unsafe {
        bpf_map_update_elem(
            (&raw const SUBJECTS).cast_mut().cast(),
            (&raw const group).cast(),
            subject.cast(),
            u64::from(BPF_ANY),
        );
    }
    if let Some(copy) = SUBJECTS.get_ptr_mut(group) {
        // The count of execs is the parent's identity's own: a child does not repair what its
        // parent lacks.
        // SAFETY: a map value of a process that has not run yet.
        unsafe { (*copy).incarnation.born = kernel_read::incarnation(child).born }
        seat::copy(group, copy);
    } else if cgroup_sandbox().is_none() {
        mark_orphan();
    }
}

/// Forgets a thread group whose last thread ends, so that the next one of its number starts
/// without an identity.
#[inline(always)]
pub fn exit(task: Kernel) {
    if !kernel_read::group_is_dead(task) {
        return;
    }
    let group = kernel_read::thread_group(task);
    if seat::may_have_identity(u64::from(group)) {
        forget(group);
    }
}

#[inline(always)]
fn forget(group: u32) {
    // SAFETY: the key is initialised and of the map's size.
    unsafe {
        bpf_map_delete_elem((&raw const SUBJECTS).cast_mut().cast(), (&raw const group).cast());
    }
    seat::leave(group);
}
