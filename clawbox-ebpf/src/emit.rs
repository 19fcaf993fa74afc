//! The way to the audit trail. Called when the verdict stands; a full ring is counted and changes
//! nothing. The reader is woken for a denial when it has read all, and for anything when the fill level
//! crosses a mark; never per event.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_ktime_get_boot_ns, bpf_loop},
    },
    maps::{RingBuf, ring_buf::RingBufEntry},
};
use clawbox_common::{
    decide::Decision,
    event::{
        CALL_WORKDIR, CallEvent, CallShape, FileEvent, Header, Kind, Operation, TaskEvent, Told,
    },
    limits::{EVENT_WAKE, TOLD_NAMES},
    number,
    rule::{LOST_ALLOW, LossKey},
    subject::{FileId, Standing, Subject},
    verdict::{Reason, Verdict},
};

use core::{
    arch::asm,
    ffi::c_void,
    hint::black_box,
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr::{self, null},
};

use crate::{
    attached::is_pending,
    kernel_read::{self, Dentry as _, Kernel, Reached, Untyped},
    maps::{ALLOWS, EVENTS, LOSSES, LOSSES_UNATTRIBUTED, NUMBERS},
    share,
    subject::{Executed, sandbox_here},
};

/// Where a decision of this verdict is told.
#[inline(always)]
pub fn ring_of(verdict: u8) -> &'static RingBuf {
    if verdict == Verdict::Allow as u8 { &ALLOWS } else { &EVENTS }
}

/// Room for a record, where there is any and the sandbox has not had its share.
#[inline(always)]
pub fn room<T: 'static>(verdict: u8, whose: impl FnOnce() -> u32) -> Option<RingBufEntry<T>> {
    if share::is_filling(verdict) && share::is_over(whose(), verdict, size_of::<T>() as u32) {
        return None;
    }
    ring_of(verdict).reserve::<T>(0)
}

/// Whether a record has the fill level cross a mark. One of several, because two records that are
/// reserved at one time may both see both of them below and above one.
#[inline(always)]
fn has_crossed(ring: &RingBuf, record: usize) -> bool {
    let filled = ring.query(u64::from(BPF_RB_AVAIL_DATA));
    // The ring puts 8 bytes in front of each record.
    let before = filled.wrapping_sub(record as u64 + 8);
    filled / EVENT_WAKE != before / EVENT_WAKE
}

/// How the reader is woken for a record among those that somebody waits for.
#[inline(always)]
fn wake(record: usize) -> u64 {
    if has_crossed(&EVENTS, record) {
        u64::from(BPF_RB_FORCE_WAKEUP)
    } else {
        // Only where the reader has read all before: it waits then, and will not look again so soon.
        ADAPTIVE
    }
}

/// The same in the ring for this verdict. A function of its own, which leaves nothing on its caller's stack.
/// For what is allowed the reader comes by itself: to wake it is an interrupt that whoever connects would
/// pay for.
#[inline(never)]
pub fn wake_of(verdict: u8, record: usize) -> u64 {
    if verdict != Verdict::Allow as u8 {
        wake(record)
    } else if has_crossed(&ALLOWS, record) {
        u64::from(BPF_RB_FORCE_WAKEUP)
    } else {
        u64::from(BPF_RB_NO_WAKEUP)
    }
}

/// The kernel wakes the reader where it stands at this very record.
const ADAPTIVE: u64 = 0;

/// A cgroup that a standing rule may be for is held, and the agent is not asked about it: there is no room.
#[inline(always)]
pub fn unasked() {
    if let Some(count) = LOSSES_UNATTRIBUTED.get_ptr_mut(2) {
        // SAFETY: this CPU's own value.
        unsafe { *count += 1 }
    }
}

#[inline(always)]
pub fn lost(sandbox: u32, kind: Kind) {
    lost_of(sandbox, kind as u32);
}

/// A loss of a decision.
#[inline(always)]
pub fn lost_by(sandbox: u32, kind: u32, verdict: u8) {
    let is_allowed = verdict == Verdict::Allow as u8;
    lost_of(sandbox, if is_allowed { kind | LOST_ALLOW } else { kind });
}

/// The number of a record that has its room. It is taken then, so that who is interrupted before has not yet
/// begun; the record of whoever interrupts in between stands behind this one and has the smaller number.
#[inline(never)]
pub fn number(verdict: u8) -> u64 {
    let ring = if verdict == Verdict::Allow as u8 { number::ALLOWS } else { number::EVENTS };
    let Some(account) = NUMBERS.get_ptr_mut(ring) else { return 0 };
    let mut number = 1_u64;
    // Written out: for the instruction set that all else is made in, the compiler knows no addition that gives
    // back what was there. Every kernel from 5.12 on has it. It is atomic for programs that interrupt this one.
    // SAFETY: an aligned word of a map value.
    unsafe {
        asm!(
            "{number} = atomic_fetch_add((u64 *)({next} + 0), {number})",
            number = inout(reg) number,
            next = in(reg) &raw mut (*account).next,
            options(nostack, preserves_flags),
        );
    }
    number
}

/// Takes the number of a record that has found no room: nobody will read it.
#[inline(never)]
fn number_lost(kind: u32) {
    let ring = if kind & LOST_ALLOW != 0 { number::ALLOWS } else { number::EVENTS };
    if let Some(account) = NUMBERS.get_ptr_mut(ring) {
        // SAFETY: as above. First the number: whoever reads the loss before it sees no loss too many.
        unsafe {
            atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*account).next, 1);
            atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*account).lost, 1);
        }
    }
}

#[inline(always)]
fn lost_of(sandbox: u32, kind: u32) {
    number_lost(kind);
    let key = LossKey { sandbox, kind };
    if let Some(count) = LOSSES.get_ptr_mut(key) {
        // SAFETY: an aligned u64 of a map value; the addition is atomic.
        unsafe {
            atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(count, 1);
        }
        if let Some(all) = LOSSES_UNATTRIBUTED.get_ptr_mut(1) {
            // SAFETY: this CPU's own value. Whatever comes in between, it changes.
            unsafe { *all += 1 }
        }
    } else if let Some(count) = LOSSES_UNATTRIBUTED.get_ptr_mut(0) {
        // SAFETY: this CPU's own value.
        unsafe { *count += 1 }
    }
}

/// What of a decision matters afterwards, in one number of which the verifier knows nothing: verdict,
/// reason, whether it is only recorded, and the sandbox's flags. Of a decision it would know the
/// numbers, and verify what follows once for each reason there is.
#[derive(Clone, Copy)]
pub struct Judged(pub u64);

impl Judged {
    #[inline(always)]
    pub fn by(decision: &Decision) -> Self {
        let low = decision.verdict as u64 | (decision.reason as u64) << 8;
        let audit_only = u64::from(decision.audit_only == 1) << 16;
        Self(unknown(low | audit_only | u64::from(decision.flags) << 32))
    }

    #[inline(always)]
    pub const fn verdict(self) -> u8 {
        self.0 as u8
    }

    #[inline(always)]
    const fn reason(self) -> u8 {
        (self.0 >> 8) as u8
    }

    #[inline(always)]
    const fn audit_only(self) -> u8 {
        (self.0 >> 16) as u8 & 1
    }

    /// [`clawbox_common::rule::SandboxState::flags`].
    #[inline(always)]
    pub const fn flags(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline(always)]
    pub const fn is_allowed(self) -> bool {
        self.verdict() == Verdict::Allow as u8
    }

    /// Whether the operation goes on.
    #[inline(always)]
    pub const fn goes_on(self) -> bool {
        self.is_allowed() || self.audit_only() == 1
    }
}

/// A number, forgotten by the verifier: what a function with C's linkage gives back it does not look
/// at where the function is called.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn unknown(number: u64) -> u64 {
    black_box(number)
}

#[inline(always)]
pub fn header(kind: Kind, standing: &Standing<'_>, judged: Judged) -> Header {
    header_of(kind as u8, subject(standing), judged)
}

#[inline(always)]
pub const fn subject<'a>(standing: &Standing<'a>) -> Option<&'a Subject> {
    match standing {
        Standing::Subject(subject) => Some(subject),
        _ => None,
    }
}

#[inline(always)]
pub fn header_of(kind: u8, subject: Option<&Subject>, judged: Judged) -> Header {
    let pid_tgid = bpf_get_current_pid_tgid();
    let (sandbox, exe, is_script) = match subject {
        Some(subject) => (subject.sandbox, subject.exe, subject.is_script),
        // Whose trail it is for, who has no identity.
        None => (sandbox_here(), FileId::default(), 0),
    };
    Header {
        kind,
        verdict: judged.verdict(),
        reason: judged.reason(),
        audit_only: judged.audit_only(),
        sandbox,
        // SAFETY: a helper without arguments.
        time: unsafe { bpf_ktime_get_boot_ns() },
        number: 0,
        tgid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        uid: kernel_read::user(kernel_read::current()),
        is_script,
        exe,
    }
}

/// What was done to a file, a process or the kernel.
#[derive(Clone, Copy)]
pub struct Deed {
    pub kind: Kind,
    pub operation: Operation,
    /// Bits of `clawbox_common::file`.
    pub access: u32,
    pub object: FileId,
    /// The thread group of another process; zero if none was meant.
    pub other: u32,
}

/// Reports a use, with the names from the object upwards.
#[inline(always)]
pub fn used(standing: &Standing<'_>, judged: Judged, deed: &Deed, at: Option<Reached>) {
    let (dentry, mount) = at.unwrap_or_default();
    let deed = DeedNumbers {
        object: deed.object,
        operation: deed.operation as u32,
        access: deed.access,
        other: deed.other,
        kind: deed.kind as u32,
        dentry,
        mount,
    };
    used_by(subject(standing), judged, &deed);
}

/// The same in numbers. Without a subject it is nobody's use.
#[inline(always)]
pub fn used_by(subject: Option<&Subject>, judged: Judged, deed: &DeedNumbers) {
    report_use(subject.map_or(null(), ptr::from_ref), judged.0, deed);
}

/// A [`Deed`] in numbers, and where it was. Typed pointers may not be handed to such a function, but
/// what it reads from memory is a number.
#[repr(C)]
pub struct DeedNumbers {
    pub object: FileId,
    pub operation: u32,
    pub access: u32,
    pub other: u32,
    pub kind: u32,
    pub dentry: u64,
    pub mount: u64,
}

/// With C's linkage, so that the verifier takes it once, as [`crate::search::meet`]; and with a stack
/// of its own. Without a subject it is nobody's use, without a dentry that of no file.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn report_use(
    subject: *const Subject,
    judged: u64,
    deed: *const DeedNumbers,
) -> u32 {
    // SAFETY: null, or a whole value of each caller, to which the verifier sees.
    let (Some(deed), subject) = (unsafe { (deed.as_ref(), subject.as_ref()) }) else { return 0 };
    let judged = Judged(judged);
    let whose = || subject.map_or_else(|| sandbox_here(), |subject| subject.sandbox);
    let Some(mut slot) = room::<FileEvent>(judged.verdict(), whose) else {
        lost_by(whose(), deed.kind, judged.verdict());
        return 0;
    };
    let event = slot.as_mut_ptr();
    // SAFETY: a reserved record of this type, written field by field because it does not fit the
    // stack. Names that were not written are what the ring held before; readers stop at `told`.
    unsafe {
        // Here and not before: it does not fit the stack of all callers.
        (*event).header = header_of(deed.kind as u8, subject, judged);
        (*event).header.number = number(judged.verdict());
        (*event).object = deed.object;
        (*event).operation = deed.operation;
        (*event).access = deed.access;
        (*event).other = deed.other;
        (*event).told = 0;
        if deed.dentry != 0 {
            tell((&raw mut (*event).told).cast(), (deed.dentry, deed.mount));
        }
    }
    // SAFETY: it was written above; see `network`.
    let verdict = unsafe { (&raw const (*event).header.verdict).read_volatile() };
    slot.submit(wake_of(verdict, size_of::<FileEvent>()));
    1
}

/// Tells the names from a dentry upwards.
///
/// # Safety
/// `into` is in a reserved record.
#[inline(always)]
unsafe fn tell(into: *mut Told, (dentry, mount): Reached) {
    let mut telling = Telling { into, dentry, mount };
    // SAFETY: the callback takes an index and this context, which outlives the call, as the record
    // does.
    unsafe {
        bpf_loop(TOLD_NAMES as u32, tell_name as *mut c_void, (&raw mut telling).cast(), 0);
    }
}

/// Where the telling of a path is.
#[repr(C)]
struct Telling {
    into: *mut Told,
    dentry: u64,
    /// `struct vfsmount`; zero where the hook knows none.
    mount: u64,
}

/// Tells one name and goes one directory up; 1 ends the loop. A callback, because the loop would
/// be verified for each way through all its turns.
#[inline(never)]
extern "C" fn tell_name(_index: u64, telling: *mut Telling) -> i64 {
    // SAFETY: `bpf_loop` hands over the context of `tell`, and the record in it is reserved until
    // that returns.
    let (telling, event) = unsafe { (&mut *telling, (*telling).into) };
    let dentry = Untyped(telling.dentry);
    // SAFETY: as above.
    let told = unsafe { (*event).told };
    // SAFETY: as above; the index is in bounds.
    dentry.name(unsafe { &raw mut (*event).names[told as usize % TOLD_NAMES] });
    let parent = dentry.parent();
    if parent != dentry {
        telling.dentry = parent.0;
        // SAFETY: as above.
        unsafe { (*event).told = told + 1 };
        return 0;
    }
    if telling.mount == 0 {
        // Mounted who knows where: the path is told from below here.
        return 1;
    }
    // The root of a filesystem is called what it is mounted on; at the top its name is `/`.
    let mount = Untyped::mount_of(telling.mount);
    let outer = mount.mount_parent();
    if outer == mount || outer.0 == 0 {
        // SAFETY: as above.
        unsafe { (*event).told = told + 1 };
        return 1;
    }
    telling.dentry = mount.mount_point().0;
    telling.mount = outer.vfsmount();
    0
}

/// A refused system call as its hook found it.
pub struct Refused<'a> {
    pub number: u32,
    pub errno: u32,
    pub arguments: [u64; 6],
    pub shape: &'a CallShape,
    pub task: Kernel,
}

/// `AT_FDCWD`, uapi/linux/fcntl.h.
const AT_FDCWD: u32 = -100_i32 as u32;

impl Refused<'_> {
    /// An argument by its number from 1; none is zero. Not from the array: an index that the
    /// verifier does not know would need it on the stack, byte for byte.
    #[inline(always)]
    fn argument(&self, number: u8) -> u64 {
        match number {
            1 => self.arguments[0],
            2 => self.arguments[1],
            3 => self.arguments[2],
            4 => self.arguments[3],
            5 => self.arguments[4],
            _ => 0,
        }
    }

    /// What a relative path starts from.
    #[inline(always)]
    fn base(&self, directory: u8) -> Reached {
        let descriptor = self.argument(directory) as u32;
        if directory == CALL_WORKDIR || descriptor == AT_FDCWD {
            kernel_read::workdir(self.task)
        } else {
            kernel_read::descriptor(self.task, descriptor)
        }
    }
}

/// Reports a system call that the kernel has refused beneath the hooks, or done where that is told.
#[inline(always)]
pub fn call(standing: &Standing<'_>, refused: &Refused<'_>) {
    let head = header(Kind::Call, standing, Judged::by(&Decision::refused(Reason::Refused)));
    let Some(mut slot) = room::<CallEvent>(Verdict::Deny as u8, || head.sandbox) else {
        lost(head.sandbox, Kind::Call);
        return;
    };
    let (event, shape) = (slot.as_mut_ptr(), refused.shape);
    // SAFETY: a reserved record of this type, written field by field because it does not fit the
    // stack. What is not written of paths and names is what the ring held before; readers stop at
    // their lengths.
    unsafe {
        (*event).header = head;
        (*event).header.number = number(Verdict::Deny as u8);
        (*event).arguments = refused.arguments;
        (*event).number = refused.number;
        (*event).errno = refused.errno;
        (*event).path_length = 0;
        (*event).other_length = 0;
        (*event).other_device = 0;
        (*event).base.told = 0;
        let mut directory = shape.directory;
        if shape.path != 0 {
            let from = refused.argument(shape.path).wrapping_add(u64::from(shape.skip));
            (*event).path_length = kernel_read::user_string(from, &raw mut (*event).path);
        }
        if shape.other_path != 0 {
            let from = refused.argument(shape.other_path);
            (*event).other_length = kernel_read::user_string(from, &raw mut (*event).other_path);
            if (*event).path_length > 1 && (*event).path[0] == b'/' {
                directory = shape.other_directory;
            } else if shape.other_directory != 0 {
                let (dentry, _) = refused.base(shape.other_directory);
                (*event).other_device = Untyped(dentry).identity().device;
            }
        }
        if directory != 0 {
            let reached = refused.base(directory);
            if reached.0 != 0 {
                tell(&raw mut (*event).base, reached);
            }
        }
    }
    slot.submit(wake(size_of::<CallEvent>()));
}

/// Reports a program start.
#[inline(always)]
pub fn exec(task: Kernel, bprm: Kernel, executed: &Executed) {
    let Some(mut slot) = EVENTS.reserve::<TaskEvent>(0) else {
        lost(executed.sandbox, Kind::Exec);
        return;
    };
    let pid_tgid = bpf_get_current_pid_tgid();
    let (verdict, reason) = if executed.identified {
        (Verdict::Allow, Reason::Exec)
    } else {
        (Verdict::Deny, Reason::TableFull)
    };
    let event = slot.as_mut_ptr();
    // SAFETY: a reserved record of this type, written field by field because it does not fit the
    // stack. What is behind the NUL of a path is what the ring held before; readers stop there.
    unsafe {
        (*event).header = Header {
            kind: Kind::Exec as u8,
            verdict: verdict as u8,
            reason: reason as u8,
            audit_only: 0,
            sandbox: executed.sandbox,
            time: bpf_ktime_get_boot_ns(),
            number: number(Verdict::Deny as u8),
            tgid: (pid_tgid >> 32) as u32,
            tid: pid_tgid as u32,
            uid: kernel_read::user(task),
            is_script: executed.is_script,
            exe: executed.exe,
        };
        (*event).parent = kernel_read::parent_thread_group(task);
        (*event).arguments_bytes = kernel_read::arguments(task, &raw mut (*event).arguments);
        (*event).path[0] = 0;
        kernel_read::exec_path(bprm, &raw mut (*event).path);
        (*event).interpreter[0] = 0;
        if executed.is_script != 0 {
            kernel_read::interpreter_path(bprm, &raw mut (*event).interpreter);
        }
    }
    // What is held waits for the agent.
    let wake = if is_pending(executed.sandbox) {
        u64::from(BPF_RB_FORCE_WAKEUP)
    } else {
        wake(size_of::<TaskEvent>())
    };
    slot.submit(wake);
}
