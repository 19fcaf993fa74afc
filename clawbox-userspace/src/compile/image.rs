//! The compiled policy: plain records for the maps, and what gives a record back its rule.
//! Everything is ordered, and no number of a generation is in it, so the same policy is the same bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use clawbox_common::address::{PING_PROBE_PORT, Range};
use clawbox_common::limits::PATTERNS_PER_HOST;
use clawbox_common::rule::{
    ADDRESS_KEY_HEAD, ANYBODY, ASK_UNKNOWN, AddressKey, AddressUse, EXECUTE_WRITABLE,
    FILES_BY_BINARY, HOST_LOOPBACK, HostId, HostIds, ICMP, LISTED_PROGRAMS, NAMES_ANYWHERE, PING,
    PING_PROBE, PROGRAMS, RuleKey, RuleValue, TCP, UDP,
};
use clawbox_common::subject::Mask;
use ipnet::IpNet;
use thiserror::Error;

use super::files::FileGrant;
use super::{host_ids, slots};
use crate::policy::address::{always_denied, range_of, readable, wire};
use crate::policy::binary_pattern::BinaryPattern;
use crate::policy::diagnostic::Origin;
use crate::policy::host_pattern::HostPattern;
use crate::policy::model::{Matching, Policy};
use crate::policy::network::{FirstSaid, Host};

/// What a [`HostId`] stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// Names. The same names with other `allowed_ips` are another pattern: a rule for one must
    /// not open the other's addresses. So are they where something else has to be said first: which
    /// rule is asked before another is a matter of patterns, whatever ports each has.
    Name {
        /// Which names.
        pattern: HostPattern,
        /// Where their addresses have to lie; empty is anywhere public.
        allowed_ips: Vec<IpNet>,
        /// What has to be said first.
        first_said: FirstSaid,
    },
    /// Addresses that are dialled without a name.
    Range(IpNet),
    /// The addresses that may be listened on.
    Listen,
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name { pattern, .. } => pattern.fmt(f),
            Self::Range(net) => net.fmt(f),
            Self::Listen => f.write_str("(listen)"),
        }
    }
}

/// What a binary slot stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BinaryEntry {
    /// The executables.
    pub pattern: BinaryPattern,
}

/// The rule behind a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleRef<'a> {
    /// Key under `network_policies`.
    pub policy_key: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Place of the endpoint in the policy's list, from zero.
    pub endpoint: usize,
    /// The endpoint's host as written.
    pub host: &'a str,
    /// The `path` of the binary entry that admitted the subject.
    pub binary: &'a str,
    /// Where the endpoint was written.
    pub origin: &'a Origin,
}

/// An endpoint that was not compiled, so that it admits nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Skipped {
    /// Key under `network_policies`.
    pub policy_key: String,
    /// Place of the endpoint in the policy's list, from zero.
    pub endpoint: usize,
    /// What it names.
    pub host: Host,
    /// Its ports.
    pub ports: Vec<NonZeroU16>,
    /// Why it was not compiled.
    pub because: String,
    /// Where it was written.
    pub origin: Origin,
}

/// More patterns match a name than a record can hold. The name must not be resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("more than {PATTERNS_PER_HOST} host patterns of the policy match the name")]
pub struct TooManyPatterns;

/// What a policy says about a name.
#[derive(Clone, Debug)]
pub struct NameRule<'a> {
    /// The strictest first.
    matched: Vec<Matched<'a>>,
}

#[derive(Clone, Copy, Debug)]
struct Matched<'a> {
    id: HostId,
    pattern: &'a HostPattern,
    allowed_ips: &'a [IpNet],
    first_said: FirstSaid,
}

impl NameRule<'_> {
    /// Every pattern that the name matches.
    #[must_use]
    pub fn hosts(&self) -> HostIds {
        let ids: Vec<HostId> = self.matched.iter().map(|matched| matched.id).collect();
        host_ids(&ids)
    }

    /// What the strictest of them wants to be said first.
    #[must_use]
    pub fn first_said(&self) -> FirstSaid {
        self.matched.first().map_or(FirstSaid::Name, |matched| matched.first_said)
    }

    /// How many bytes of the name no pattern that it matches spells out.
    #[must_use]
    pub fn free_bytes(&self, name: &str) -> usize {
        let spelt = self.matched.iter().map(|matched| matched.pattern.spelt_bytes()).max();
        name.len().saturating_sub(spelt.unwrap_or_default())
    }

    /// The patterns under which the name may stand for this address; `None`: under none, and the
    /// whole answer is to be refused. These, not [`NameRule::hosts`], belong into the record of
    /// the synthetic address.
    ///
    /// A range that is always denied stays denied. With `allowed_ips` the address has to lie in
    /// them. Otherwise a special address (RFC 1918 and its like) needs an exact name, because
    /// whoever owns a wildcard's zone could point any name in it at the host's own network.
    #[must_use]
    pub fn hosts_for(&self, address: IpAddr) -> Option<HostIds> {
        let range = range_of(address);
        if always_denied(range).is_some() {
            return None;
        }
        let judged = readable(wire(address).embedded());
        let ids: Vec<HostId> = self
            .matched
            .iter()
            .filter(|matched| {
                if matched.allowed_ips.is_empty() {
                    range == Range::Global || matched.pattern.is_exact()
                } else {
                    matched.allowed_ips.iter().any(|net| net.contains(&judged))
                }
            })
            .map(|matched| matched.id)
            .collect();
        (!ids.is_empty()).then(|| host_ids(&ids))
    }
}

/// Whom one entry of `network_policies` admits.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Who {
    pub(super) tree: Mask,
    pub(super) own: Mask,
    pub(super) anybody: bool,
    /// Slot (none for `/**`), how it matches, and the path as written, in the file's order.
    pub(super) entries: Vec<(Option<usize>, Matching, String)>,
}

/// One compiled endpoint.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Admission {
    pub(super) policy_key: String,
    pub(super) name: String,
    pub(super) endpoint: usize,
    pub(super) host: String,
    pub(super) origin: Origin,
    pub(super) who: usize,
}

/// The generation of keys that none has been given yet.
pub(super) const NO_GENERATION: u32 = 0;

/// A compiled policy. Its keys have no generation yet: [`super::MapImage`] gives them one.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// Rules by host pattern, port and transport.
    pub rules: BTreeMap<RuleKey, RuleValue>,
    /// Addresses and ranges, with their length in bits including [`ADDRESS_KEY_HEAD`].
    pub addresses: BTreeMap<(AddressKey, u32), HostIds>,
    /// Host patterns; pattern `n` has the [`HostId`] `n + 1`.
    pub patterns: Vec<Pattern>,
    /// Binaries; entry `n` is slot `n`.
    pub binaries: Vec<BinaryEntry>,
    /// Endpoints that admit nothing, and why.
    pub skipped: Vec<Skipped>,
    /// Paths, in the order of the file.
    pub files: Vec<FileGrant>,
    /// Names that are closed in every directory.
    pub names_anywhere: Vec<String>,
    /// Whether what the sandbox may write it may execute.
    pub execute_writable: bool,
    asks_for_unknown: bool,
    audit_only: bool,
    pub(super) who: Vec<Who>,
    pub(super) admissions: Vec<Admission>,
    /// The endpoints behind each rule, in the order of the files.
    pub(super) admitted: BTreeMap<RuleKey, Vec<usize>>,
    pub(super) admitting: usize,
}

impl Compiled {
    pub(super) fn empty(policy: &Policy) -> Self {
        Self {
            rules: BTreeMap::new(),
            addresses: BTreeMap::new(),
            patterns: Vec::new(),
            binaries: Vec::new(),
            skipped: Vec::new(),
            files: Vec::new(),
            names_anywhere: Vec::new(),
            execute_writable: false,
            audit_only: policy.audit_only(),
            asks_for_unknown: policy.asks_for_unknown(),
            who: Vec::new(),
            admissions: Vec::new(),
            admitted: BTreeMap::new(),
            admitting: 0,
        }
    }

    /// Whether connections to endpoints that no rule names wait for an answer.
    #[must_use]
    pub fn asks_for_unknown(&self) -> bool {
        self.asks_for_unknown && !self.audit_only
    }

    /// Whether denied operations are only recorded.
    #[must_use]
    pub fn audit_only(&self) -> bool {
        self.audit_only
    }

    /// The flags that it means for a sandbox. `with_lsm`: BPF LSM programs judge, without which nothing
    /// sees an echo request.
    pub(super) fn flags(&self, with_lsm: bool) -> u32 {
        (if self.asks_for_unknown { ASK_UNKNOWN } else { 0 })
            | (if self.names_anywhere.is_empty() { 0 } else { NAMES_ANYWHERE })
            | (if self.execute_writable { EXECUTE_WRITABLE } else { 0 })
            | (if self.lists_programs() { LISTED_PROGRAMS } else { 0 })
            | (if self.has_files_by_binary() { FILES_BY_BINARY } else { 0 })
            | (if with_lsm { self.pinging() } else { 0 })
    }

    /// Whether a rule opens echo requests.
    #[must_use]
    pub fn opens_ping(&self) -> bool {
        self.rules.keys().any(|rule| rule.transport == ICMP)
    }

    fn pinging(&self) -> u32 {
        if !self.opens_ping() {
            return 0;
        }
        // A port that a rule names is what the rule says.
        let is_ruled =
            self.rules.keys().any(|rule| rule.transport == UDP && rule.port == PING_PROBE_PORT);
        if is_ruled { PING } else { PING | PING_PROBE }
    }

    /// Whether who asks for a file matters.
    #[must_use]
    pub fn has_files_by_binary(&self) -> bool {
        self.files.iter().any(|grant| grant.whom.is_some())
    }

    /// Whether the policy lists the programs that may be started.
    #[must_use]
    pub fn lists_programs(&self) -> bool {
        self.rules.contains_key(&RuleKey::programs(NO_GENERATION))
    }

    /// What the policy says about a name; `None`: nothing, so it is not resolved.
    ///
    /// # Errors
    ///
    /// More patterns match than a record can hold; the name must not be resolved either.
    pub fn name(&self, name: &str) -> Result<Option<NameRule<'_>>, TooManyPatterns> {
        let mut matched = Vec::new();
        for (id, pattern) in (1..).zip(&self.patterns) {
            if let Pattern::Name { pattern, allowed_ips, first_said } = pattern
                && pattern.matches(name)
            {
                let first_said = *first_said;
                matched.push(Matched { id, pattern, allowed_ips, first_said });
            }
        }
        // A rule that wants the host verified decides before one that does not.
        matched.sort_by_key(|matched| matched.first_said);
        match matched.len() {
            0 => Ok(None),
            1..=PATTERNS_PER_HOST => Ok(Some(NameRule { matched })),
            _ => Err(TooManyPatterns),
        }
    }

    /// Whether on a connection that a rule for this host pattern admits a name may be hidden behind the
    /// one that is verified.
    #[must_use]
    pub fn admits_hidden(&self, host: HostId) -> bool {
        let place = usize::try_from(host).ok().and_then(|host| host.checked_sub(1));
        let pattern = place.and_then(|place| self.patterns.get(place));
        matches!(pattern, Some(Pattern::Name { first_said: FirstSaid::OuterName, .. }))
    }

    /// The same of a connection that another policy has admitted, and whose program is not known: every
    /// rule for it has to.
    #[must_use]
    pub fn all_admit_hidden(&self, name: &str, address: IpAddr, port: u16) -> bool {
        let Ok(Some(rule)) = self.name(name) else { return false };
        let Some(hosts) = rule.hosts_for(address) else { return false };
        let is_asked = |matched: &&Matched<'_>| {
            hosts.ids.contains(&matched.id)
                && self.rules.contains_key(&Self::rule_key(matched.id, port, TCP))
        };
        let mut asked = rule.matched.iter().filter(is_asked).peekable();
        asked.peek().is_some() && asked.all(|matched| matched.first_said != FirstSaid::Name)
    }

    /// The first rule in the order of the files that made a decision's verdict an allow; the
    /// arguments are what the decision was about and its `host`, `matched_word` and `matched`.
    #[must_use]
    pub fn attribute(
        &self,
        host: HostId,
        port: u16,
        transport: u8,
        matched_word: u32,
        matched: u64,
    ) -> Option<RuleRef<'_>> {
        let key = Self::rule_key(host, port, transport);
        let rule = self.rules.get(&key)?;
        let word = usize::try_from(matched_word).ok()?;
        let met = |slot: usize| slot / 64 == word && matched & (1 << (slot % 64)) != 0;
        for &admission in self.admitted.get(&key)? {
            let admission = self.admissions.get(admission)?;
            let who = self.who.get(admission.who)?;
            let admitting = who.entries.iter().find(|(slot, matching, _)| match slot {
                None => matched == 0,
                Some(slot) => {
                    // A slot that some rule takes with its descendants may have met for that
                    // reason alone, so it does not prove that a `match: self` entry admitted.
                    met(*slot) && (*matching == Matching::Tree || !rule.tree.contains(*slot))
                }
            });
            if let Some((_, _, binary)) = admitting {
                return Some(RuleRef {
                    policy_key: &admission.policy_key,
                    name: &admission.name,
                    endpoint: admission.endpoint,
                    host: &admission.host,
                    binary,
                    origin: &admission.origin,
                });
            }
        }
        None
    }

    /// Everything the policy says about an endpoint, whoever it admits, in the order of the files:
    /// the answer to "who may, then?".
    pub fn naming(
        &self,
        host: HostId,
        port: u16,
        transport: u8,
    ) -> impl Iterator<Item = RuleRef<'_>> {
        let key = Self::rule_key(host, port, transport);
        let admissions = self.admitted.get(&key).into_iter().flatten();
        admissions.filter_map(|&index| self.admissions.get(index)).flat_map(|admission| {
            let who = self.who.get(admission.who);
            who.into_iter().flat_map(|who| &who.entries).map(|(_, _, binary)| RuleRef {
                policy_key: &admission.policy_key,
                name: &admission.name,
                endpoint: admission.endpoint,
                host: &admission.host,
                binary,
                origin: &admission.origin,
            })
        })
    }

    pub(super) fn rule_key(host: HostId, port: u16, transport: u8) -> RuleKey {
        RuleKey { policy: NO_GENERATION, host, port, transport, zero: 0 }
    }

    pub(super) fn egress_key(net: &IpNet) -> (AddressKey, u32) {
        let prefix = u32::from(net.prefix_len());
        let bits = match net {
            IpNet::V4(_) => 96 + prefix,
            IpNet::V6(_) => prefix,
        };
        let key = AddressKey {
            policy: NO_GENERATION,
            usage: AddressUse::Egress as u32,
            address: wire(net.network()),
        };
        (key, ADDRESS_KEY_HEAD + bits)
    }

    pub(super) fn ranges(&self) -> impl Iterator<Item = (IpNet, HostId)> + '_ {
        (1..).zip(&self.patterns).filter_map(|(id, pattern)| {
            if let Pattern::Range(net) = pattern { Some((*net, id)) } else { None }
        })
    }
}

/// A listing for people and for snapshots.
impl fmt::Display for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.audit_only {
            writeln!(f, "audit only")?;
        }
        for (slot, binary) in self.binaries.iter().enumerate() {
            writeln!(f, "binary {slot} {}", binary.pattern)?;
        }
        for (id, pattern) in (1..).zip(&self.patterns) {
            let id: u32 = id;
            write!(f, "host {id} {pattern}")?;
            if let Pattern::Name { allowed_ips, first_said, .. } = pattern {
                for net in allowed_ips {
                    write!(f, " within {net}")?;
                }
                match first_said {
                    FirstSaid::Name => write!(f, " verified")?,
                    FirstSaid::OuterName => write!(f, " verified outside")?,
                    FirstSaid::Anything => {}
                }
            }
            writeln!(f)?;
        }
        for (key, rule) in &self.rules {
            match key.transport {
                PROGRAMS => write!(f, "programs")?,
                TCP => write!(f, "rule {}:{}/tcp", key.host, key.port)?,
                _ => write!(f, "rule {}:{}/udp", key.host, key.port)?,
            }
            for (name, mask) in [("tree", &rule.tree), ("self", &rule.own)] {
                let slots: Vec<String> = slots(mask).map(|slot| slot.to_string()).collect();
                if !slots.is_empty() {
                    write!(f, " {name}={}", slots.join(","))?;
                }
            }
            if rule.flags & ANYBODY != 0 {
                write!(f, " anybody")?;
            }
            if rule.flags & HOST_LOOPBACK != 0 {
                write!(f, " host-loopback")?;
            }
            writeln!(f)?;
        }
        for ((key, bits), hosts) in &self.addresses {
            let usage = if key.usage == AddressUse::Listen as u32 { "listen" } else { "egress" };
            let ids: Vec<String> =
                hosts.ids.iter().filter(|id| **id != 0).map(HostId::to_string).collect();
            let address = std::net::Ipv6Addr::from(key.address.octets());
            writeln!(f, "{usage} {address}/{} hosts={}", bits - ADDRESS_KEY_HEAD, ids.join(","))?;
        }
        for skipped in &self.skipped {
            writeln!(
                f,
                "skipped {}[{}]: {}",
                skipped.policy_key, skipped.endpoint, skipped.because
            )?;
        }
        Ok(())
    }
}
