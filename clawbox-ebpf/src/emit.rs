//! The way to the audit trail. Called when the verdict stands; a full ring is counted and changes
//! nothing. Readers are woken when the fill level crosses a mark, never per event.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid, generated::bpf_ktime_get_boot_ns,
    },
};
use clawbox_common::{
    decide::Decision,
    event::{Header, Kind, NetworkEvent, TaskEvent},
    limits::EVENT_WAKE,
    rule::LossKey,
    subject::{FileId, Standing},
    verdict::{Reason, Verdict},
};

use crate::{
    kernel_read::{self, Kernel},
    maps::{EVENTS, LOSSES, LOSSES_UNATTRIBUTED},
    subject::Executed,
};

#[inline(always)]
fn wake(record: usize) -> u64 {
    let filled = EVENTS.query(u64::from(BPF_RB_AVAIL_DATA));
    // The ring puts 8 bytes in front of each record.
    let before = filled.wrapping_sub(record as u64 + 8);
    if filled >= EVENT_WAKE && before < EVENT_WAKE {
        u64::from(BPF_RB_FORCE_WAKEUP)
    } else {
        u64::from(BPF_RB_NO_WAKEUP)
    }
}

#[inline(always)]
fn lost(sandbox: u32, kind: Kind) {
    let key = LossKey { sandbox, kind: kind as u32 };
    if let Some(count) = LOSSES.get_ptr_mut(key) {
        // SAFETY: an aligned u64 of a map value; the addition is atomic.
        unsafe {
            core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
                count, 1,
            );
        }
    } else if let Some(count) = LOSSES_UNATTRIBUTED.get_ptr_mut(0) {
        // SAFETY: this CPU's own value.
        unsafe { *count += 1 }
    }
}

#[inline(always)]
fn header(kind: Kind, standing: &Standing<'_>, decision: &Decision) -> Header {
    let pid_tgid = bpf_get_current_pid_tgid();
    let (sandbox, exe, is_script) = match standing {
        Standing::Subject(subject) => (subject.sandbox, subject.exe, subject.is_script),
        _ => (0, FileId::default(), 0),
    };
    Header {
        kind: kind as u8,
        verdict: decision.verdict as u8,
        reason: decision.reason as u8,
        audit_only: decision.audit_only as u8,
        sandbox,
        // SAFETY: a helper without arguments.
        time: unsafe { bpf_ktime_get_boot_ns() },
        tgid: (pid_tgid >> 32) as u32,
        tid: pid_tgid as u32,
        uid: bpf_get_current_uid_gid() as u32,
        is_script,
        exe,
    }
}

/// Reports a decision about a network object. `fill` sets the object's fields.
#[inline(always)]
pub fn network(
    kind: Kind,
    standing: &Standing<'_>,
    decision: &Decision,
    fill: impl FnOnce(&mut NetworkEvent),
) {
    if matches!(standing, Standing::Outside) {
        return;
    }
    let head = header(kind, standing, decision);
    let Some(mut slot) = EVENTS.reserve::<NetworkEvent>(0) else {
        lost(head.sandbox, kind);
        return;
    };
    let mut event = NetworkEvent {
        header: head,
        host: decision.host,
        matched: decision.matched,
        matched_word: decision.matched_word,
        name: decision.name,
        ..NetworkEvent::default()
    };
    fill(&mut event);
    slot.write(event);
    slot.submit(wake(size_of::<NetworkEvent>()));
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
    // stack. The rest of `path` behind the NUL is what the ring held before; readers stop there.
    unsafe {
        (*event).header = Header {
            kind: Kind::Exec as u8,
            verdict: verdict as u8,
            reason: reason as u8,
            audit_only: 0,
            sandbox: executed.sandbox,
            time: bpf_ktime_get_boot_ns(),
            tgid: (pid_tgid >> 32) as u32,
            tid: pid_tgid as u32,
            uid: bpf_get_current_uid_gid() as u32,
            is_script: executed.is_script,
            exe: executed.exe,
        };
        (*event).parent = kernel_read::parent_thread_group(task);
        (*event).zero = 0;
        (*event).path[0] = 0;
        kernel_read::exec_path(bprm, &raw mut (*event).path);
    }
    slot.submit(wake(size_of::<TaskEvent>()));
}
