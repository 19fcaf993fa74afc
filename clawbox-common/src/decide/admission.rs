//! What the rules for a host say of a subject, and the address that is judged. In numbers: the kernel programs have
//! either done by a function of its own, which hands back no more.

use super::{Destination, Lookup};
use crate::address::{Address, Range};
use crate::limits::{MASK_WORDS, PATTERNS_PER_HOST};
use crate::rule::{ANYBODY, HOST_LOOPBACK, HostIds, RuleKey, VERIFY_NAME};
use crate::subject::Subject;

/// An address as it is judged.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    /// What it stands for: [`Address::embedded`].
    pub judged: Address,
    /// The [`Range`] of that. In numbers, as everything that such a function hands back.
    pub range: u32,
}

impl Placed {
    /// By the address alone.
    #[inline(always)]
    #[must_use]
    pub const fn of(address: &Address) -> Self {
        let judged = address.embedded();
        Self { judged, range: judged.range() as u32 }
    }

    #[inline(always)]
    pub(super) const fn is(&self, range: Range) -> bool {
        self.range == range as u32
    }
}

/// What a rule is asked about beside the subject and the host: policy generation, port, transport, and whether it
/// is on loopback, which only some rules open. In one number, which takes no room on the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleQuery(pub u64);

impl RuleQuery {
    #[inline(always)]
    pub(super) const fn new(policy: u32, to: &Destination, is_loopback: bool) -> Self {
        let low = is_loopback as u64 | (to.transport as u64) << 8 | (to.port as u64) << 16;
        Self((policy as u64) << 32 | low)
    }

    #[inline(always)]
    const fn is_loopback(self) -> bool {
        self.0 & 1 != 0
    }

    #[inline(always)]
    const fn rule_for(self, host: u32) -> RuleKey {
        let (policy, port, transport) =
            ((self.0 >> 32) as u32, (self.0 >> 16) as u16, (self.0 >> 8) as u8);
        RuleKey { policy, host, port, transport, zero: 0 }
    }
}

/// What the rules say. All zeros: none is for this host and port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// See [`Decision::matched`].
    pub matched: u64,
    /// See [`Decision::matched_word`].
    pub matched_word: u32,
    /// The pattern of the rule that admits, or of the last that does not.
    pub host: u32,
    /// [`Admission::OTHERS`] or [`Admission::ADMITTED`].
    pub who: u32,
    /// 1: whom an admitted connection is for has to be verified.
    pub is_verified: u32,
}

impl Admission {
    /// Rules are there, for others.
    pub const OTHERS: u32 = 1;
    /// A rule admits the subject.
    pub const ADMITTED: u32 = 2;
}

/// Looks for a rule that admits the subject among those of the patterns that the host matches.
#[inline(always)]
pub fn admission<L: Lookup + ?Sized>(
    lookup: &L,
    subject: &Subject,
    hosts: &HostIds,
    query: RuleQuery,
) -> Admission {
    let mut found = Admission::default();
    for slot in 0..PATTERNS_PER_HOST {
        let host = hosts.ids[slot];
        if host == 0 {
            break;
        }
        let Some(rule) = lookup.rule(&query.rule_for(host)) else {
            continue;
        };
        if query.is_loopback() && rule.flags & HOST_LOOPBACK == 0 {
            continue;
        }
        let is_verified = u32::from(rule.flags & VERIFY_NAME != 0);
        let admitted =
            Admission { host, who: Admission::ADMITTED, is_verified, ..Admission::default() };
        if rule.flags & ANYBODY != 0 {
            return admitted;
        }
        for word in 0..MASK_WORDS {
            let met = (subject.lineage.words[word] & rule.tree.words[word])
                | (subject.own.words[word] & rule.own.words[word]);
            if met != 0 {
                return Admission { matched: met, matched_word: word as u32, ..admitted };
            }
        }
        found = Admission { host, who: Admission::OTHERS, ..Admission::default() };
    }
    found
}
