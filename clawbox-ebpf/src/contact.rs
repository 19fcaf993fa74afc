//! Reports of decisions about network objects.

use clawbox_common::{
    address::Address,
    decide::Decision,
    event::{Kind, NetworkEvent},
    subject::{Standing, Subject},
};
use core::ptr::{self, null};

use crate::{
    emit::{Judged, header_of, lost_by, number, room, subject, wake_of},
    subject::sandbox_here,
};

/// What a decision about a network object was about. Zeros where nothing is known.
#[derive(Clone, Copy, Default)]
pub struct Contact {
    pub asked: Address,
    pub real: Address,
    pub port: u16,
    pub transport: u8,
    /// [`clawbox_common::decide::Route`].
    pub route: u8,
    /// The socket's protocol, or the number of a connection that is taken to the agent.
    pub protocol: u32,
    pub cookie: u64,
    /// The family of a socket that was not made: there is no host then.
    pub family: u32,
}

/// Reports a decision about a network object.
#[inline(always)]
pub fn network(kind: Kind, standing: &Standing<'_>, decision: &Decision, contact: &Contact) {
    if matches!(standing, Standing::Outside) {
        return;
    }
    let contact = ContactNumbers {
        matched: decision.matched,
        cookie: contact.cookie,
        asked: contact.asked,
        real: contact.real,
        policy: decision.policy,
        host: decision.host | contact.family,
        matched_word: decision.matched_word,
        name: decision.name,
        protocol: contact.protocol,
        port: u32::from(contact.port),
        transport: u32::from(contact.transport),
        kind_and_route: kind as u32 | u32::from(contact.route) << 8,
    };
    let subject = subject(standing).map_or(null(), ptr::from_ref);
    report_contact(subject, Judged::by(decision).0, &raw const contact);
}

/// A [`Contact`] and what of its decision is told, in words: what is handed over must be written to the last byte.
#[repr(C)]
pub struct ContactNumbers {
    matched: u64,
    cookie: u64,
    asked: Address,
    real: Address,
    policy: u32,
    host: u32,
    matched_word: u32,
    name: u32,
    protocol: u32,
    port: u32,
    transport: u32,
    kind_and_route: u32,
}

/// With C's linkage, so that the verifier takes it once, as [`crate::search::meet`]. Without a subject it is
/// nobody's.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn report_contact(
    subject: *const Subject,
    judged: u64,
    contact: *const ContactNumbers,
) -> u32 {
    // SAFETY: null, or a whole value of each caller, to which the verifier sees.
    let (Some(contact), subject) = (unsafe { (contact.as_ref(), subject.as_ref()) }) else {
        return 0;
    };
    let judged = Judged(judged);
    let kind = contact.kind_and_route as u8;
    let whose = || subject.map_or_else(|| sandbox_here(), |subject| subject.sandbox);
    let Some(mut slot) = room::<NetworkEvent>(judged.verdict(), whose) else {
        lost_by(whose(), u32::from(kind), judged.verdict());
        return 0;
    };
    let event = slot.as_mut_ptr();
    // SAFETY: a reserved record of this type, written field by field because it does not fit the stack.
    unsafe {
        (*event).header = header_of(kind, subject, judged);
        (*event).header.number = number(judged.verdict());
        (*event).policy = contact.policy;
        (*event).host = contact.host;
        (*event).matched = contact.matched;
        (*event).matched_word = contact.matched_word;
        (*event).name = contact.name;
        (*event).asked = contact.asked;
        (*event).real = contact.real;
        (*event).port = contact.port as u16;
        (*event).transport = contact.transport as u8;
        (*event).route = (contact.kind_and_route >> 8) as u8;
        (*event).protocol = contact.protocol;
        (*event).cookie = contact.cookie;
    }
    // From the record: what is kept over the calls is on the stack, and on 6.1 that is full ("combined
    // stack size of 3 calls is 544. Too large").
    // SAFETY: it was just written.
    let verdict = unsafe { (&raw const (*slot.as_mut_ptr()).header.verdict).read_volatile() };
    slot.submit(wake_of(verdict, size_of::<NetworkEvent>()));
    1
}
