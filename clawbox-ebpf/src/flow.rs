//! Counts of allowed connects and sends that are like one that was told: a count of all of them is exact,
//! and costs whoever connects a third of a record.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    macros::map,
    maps::{Array, HashMap},
};
use clawbox_common::{
    decide::{Decision, Destination, Route},
    flow::{COUNTED_FLOWS, Flow, FlowKey},
    limits,
    rule::{REPORT_ALLOWS, TALLY_ALLOWS},
    subject::Subject,
    verdict::{Reason, Verdict},
};
use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr::read_volatile,
};

use crate::{kernel_read, tally};

#[map]
static FLOWS: HashMap<FlowKey, Flow> = HashMap::with_max_entries(limits::FLOWS, BPF_F_NO_PREALLOC);

/// The number of the span of time that it is. The agent changes it, and takes out what was counted in an
/// earlier one when nobody counts there any more.
#[map]
static FLOW_SPAN: Array<u32> = Array::with_max_entries(1, 0);

/// Counts an allowed connect or send if one like it was told in this span; or if nothing that is allowed is
/// to be told. Otherwise it is to be told by itself, and those after it are counted.
///
/// A function of its own, with a part of the stack of its own.
#[inline(never)]
pub fn is_counted(subject: *const Subject, kind: u32, to: &Destination, by: &Decision) -> u32 {
    // Where it goes to the agent, that tells of each what became of it, and of questions who asked.
    let is_plain = matches!(by.verdict, Verdict::Allow)
        && by.audit_only == 0
        && matches!(by.route, Route::Direct | Route::Real)
        && !matches!(by.reason, Reason::Held);
    let level = by.flags & (TALLY_ALLOWS | REPORT_ALLOWS);
    // SAFETY: null, or a subject that the caller has.
    let Some(subject) = (unsafe { subject.as_ref() }) else { return 0 };
    if !is_plain || level & REPORT_ALLOWS != 0 || subject.kind == 0 {
        return 0;
    }
    if level == 0 {
        return 1;
    }
    let Some(span) = FLOW_SPAN.get_ptr(0) else { return 0 };
    let real = if matches!(by.route, Route::Direct) { to.address } else { by.target };
    let key = FlowKey {
        subject: subject.kind,
        asked: to.address,
        real,
        policy: by.policy,
        uid: kernel_read::user(kernel_read::current()),
        // SAFETY: an aligned word that the agent writes.
        span: unsafe { read_volatile(span) },
        port: to.port,
        transport: to.transport,
        kind: kind as u8,
        reason: by.reason as u8,
        route: by.route as u8,
        zero: [0; 6],
    };
    if let Some(flow) = FLOWS.get_ptr_mut(&key) {
        // SAFETY: an aligned word of a map value; the addition is atomic.
        unsafe {
            atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*flow).again, 1);
        }
        return 1;
    }
    let flow = Flow {
        again: 0,
        exe: subject.exe,
        matched: by.matched,
        matched_word: by.matched_word,
        sandbox: subject.sandbox,
        host: by.host,
        name: by.name,
        is_script: subject.is_script,
        zero: 0,
    };
    tally::mark(subject.sandbox, COUNTED_FLOWS);
    // Where there is no room, each is told.
    let _ = FLOWS.insert(&key, &flow, u64::from(BPF_NOEXIST));
    0
}
