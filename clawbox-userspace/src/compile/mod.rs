//! A policy to the records that the kernel decides by. Pure: same policy, same bytes.
//! No clock, no files, no DNS; what does not fit the contract's bounds is refused here.

mod binaries;
pub mod files;
mod generation;
mod hosts_file;
mod image;
mod lookup;
#[cfg(test)]
mod property;
pub mod question;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use clawbox_common::limits::{BINARY_SLOTS, PATTERNS_PER_HOST, RULES};
use clawbox_common::rule::{
    ADDRESS_KEY_HEAD, ANYBODY, AddressKey, AddressUse, HOST_LOOPBACK, HostId, HostIds, ICMP,
    RuleKey, RuleValue, TCP, UDP, VERIFY_NAME,
};
use clawbox_common::subject::Mask;
use ipnet::{IpNet, Ipv6Net};

pub use generation::{AgentPorts, MapImage};
pub use image::{BinaryEntry, Compiled, NameRule, Pattern, RuleRef, Skipped, TooManyPatterns};
pub use lookup::ImageLookup;

use crate::policy::address::wire;
use crate::policy::binary_pattern::BinaryPattern;
use crate::policy::diagnostic::{Diagnostic, Origin};
use crate::policy::model::{Binary, Listen, Matching, Policy, Transport};
use crate::policy::network::{Endpoint, FirstSaid, Host, NetworkPolicy, Treatment};
use image::{Admission, NO_GENERATION, Who};

/// Compiles a policy for a generation, which is never zero.
///
/// # Errors
///
/// What does not fit: binaries past the slots, rules past the table, more ranges around one
/// address than a lookup can return.
pub fn compile(policy: &Policy, generation: u32) -> Result<MapImage, Vec<Diagnostic>> {
    compile_after(policy, generation, &[])
}

/// Compiles a policy for a sandbox that has run under others: `slots` are the binaries that those
/// had named. Processes carry what they matched as slots, so a slot never gets another meaning
/// while the sandbox lives.
///
/// # Errors
///
/// As [`compile`]; the slots of earlier policies count.
pub fn compile_after(
    policy: &Policy,
    generation: u32,
    slots: &[BinaryEntry],
) -> Result<MapImage, Vec<Diagnostic>> {
    let mut builder = Builder::new(policy);
    builder.keep_slots(slots);
    if generation == 0 {
        builder.errors.push(Diagnostic::error(
            policy.origin.clone(),
            "generation 0 means that no policy is loaded",
            "number generations from 1",
        ));
    }
    for network in &policy.network {
        builder.network_policy(policy, network);
    }
    if let Some(listen) = &policy.listen {
        builder.listen(&listen.value, &listen.origin);
    }
    builder.files(policy);
    builder.check_slots();
    builder.addresses();
    let image = MapImage::new(builder.image, generation);
    if builder.errors.is_empty() { Ok(image) } else { Err(builder.errors) }
}

struct Builder {
    image: Compiled,
    errors: Vec<Diagnostic>,
    /// The number of each pattern, and where it was first written.
    numbers: HashMap<Pattern, (HostId, Origin)>,
    slots: HashMap<String, usize>,
    first_over: Option<Origin>,
    full: bool,
}

impl Builder {
    fn new(policy: &Policy) -> Self {
        Self {
            image: Compiled::empty(policy),
            errors: Vec::new(),
            numbers: HashMap::new(),
            slots: HashMap::new(),
            first_over: None,
            full: false,
        }
    }

    fn keep_slots(&mut self, slots: &[BinaryEntry]) {
        for (slot, entry) in slots.iter().enumerate() {
            self.slots.insert(entry.pattern.as_str().to_owned(), slot);
        }
        self.image.binaries = slots.to_vec();
    }

    fn network_policy(&mut self, policy: &Policy, network: &NetworkPolicy) {
        let mut who = None;
        for endpoint in &network.endpoints {
            let skipped = match Treatment::of(endpoint, &policy.middlewares) {
                Treatment::Denied(cause) => Some(cause.to_string()),
                // Compiling it would let its names be resolved, for nobody.
                _ if network.binaries.is_empty() => {
                    Some("its policy names no binaries and admits nobody".to_owned())
                }
                _ => None,
            };
            if let Some(because) = skipped {
                self.image.skipped.push(Skipped {
                    policy_key: network.key.clone(),
                    endpoint: endpoint.index(),
                    host: endpoint.host().clone(),
                    ports: endpoint.ports().to_vec(),
                    because,
                    origin: endpoint.origin().clone(),
                });
                continue;
            }
            let who = *who.get_or_insert_with(|| self.who(&network.binaries));
            self.endpoint(network, endpoint, who);
        }
    }

    /// Turns a list of binaries into sets of slots.
    fn who(&mut self, binaries: &[Binary]) -> usize {
        let mut who = Who::default();
        for binary in binaries {
            let text = binary.pattern.as_str().to_owned();
            if binary.pattern.is_anybody() {
                who.anybody = true;
                who.entries.push((None, binary.matching, text));
                continue;
            }
            let slot = self.slot(&binary.pattern, &binary.origin);
            match binary.matching {
                Matching::Tree => who.tree.insert(slot),
                Matching::Own => who.own.insert(slot),
            }
            who.entries.push((Some(slot), binary.matching, text));
        }
        self.image.who.push(who);
        self.image.who.len() - 1
    }

    /// The slot of a pattern, which all its entries share.
    fn slot(&mut self, pattern: &BinaryPattern, origin: &Origin) -> usize {
        let entries = &mut self.image.binaries;
        *self.slots.entry(pattern.as_str().to_owned()).or_insert_with(|| {
            if entries.len() == BINARY_SLOTS {
                self.first_over.get_or_insert(origin.clone());
            }
            entries.push(BinaryEntry { pattern: pattern.clone() });
            entries.len() - 1
        })
    }

    fn endpoint(&mut self, network: &NetworkPolicy, endpoint: &Endpoint, who: usize) {
        let patterns = patterns_of(endpoint);
        let transports = transports(endpoint.transport());
        let count = patterns.len() * endpoint.rule_ports().count() * transports.len();
        if self.full || self.image.admitting + count > RULES as usize {
            self.overflow(endpoint.origin());
            return;
        }
        self.image.admitting += count;
        let admission = self.image.admissions.len();
        self.image.admissions.push(Admission {
            policy_key: network.key.clone(),
            name: network.name.clone(),
            endpoint: endpoint.index(),
            host: endpoint.host_text(),
            origin: endpoint.origin().clone(),
            who,
        });
        let ids: Vec<HostId> =
            patterns.into_iter().map(|pattern| self.host_id(pattern, endpoint.origin())).collect();
        for &host in &ids {
            for port in endpoint.rule_ports() {
                for &transport in transports {
                    let key = Compiled::rule_key(host, port, transport);
                    self.admit(key, who, admission, endpoint);
                }
            }
        }
    }

    fn admit(&mut self, key: RuleKey, who: usize, admission: usize, endpoint: &Endpoint) {
        let rule: &mut RuleValue = self.image.rules.entry(key).or_default();
        if let Some(who) = self.image.who.get(who) {
            rule.tree.extend(&who.tree);
            rule.own.extend(&who.own);
            if who.anybody {
                rule.flags |= ANYBODY;
            }
        }
        if endpoint.host_loopback() {
            rule.flags |= HOST_LOOPBACK;
        }
        if endpoint.first_said() != FirstSaid::Anything {
            rule.flags |= VERIFY_NAME;
        }
        self.image.admitted.entry(key).or_default().push(admission);
    }

    fn overflow(&mut self, origin: &Origin) {
        if !self.full {
            self.full = true;
            self.errors.push(Diagnostic::error(
                origin.clone(),
                format!("from here on the policy has more than {RULES} rules"),
                "name fewer ports and ranges",
            ));
        }
    }

    fn host_id(&mut self, pattern: Pattern, origin: &Origin) -> HostId {
        if let Some((id, _)) = self.numbers.get(&pattern) {
            return *id;
        }
        self.image.patterns.push(pattern.clone());
        // A policy file is too small to hold that many patterns; zero, no pattern, would deny.
        let id = HostId::try_from(self.image.patterns.len()).unwrap_or(0);
        self.numbers.insert(pattern, (id, origin.clone()));
        id
    }

    fn listen(&mut self, listen: &Listen, origin: &Origin) {
        let id = self.host_id(Pattern::Listen, origin);
        for port in listen.ports() {
            for &transport in transports(listen.transport()) {
                let key = Compiled::rule_key(id, port.get(), transport);
                self.image.rules.insert(key, RuleValue::default());
            }
        }
        for address in listen.addresses() {
            let key = AddressKey {
                policy: NO_GENERATION,
                usage: AddressUse::Listen as u32,
                address: wire(*address).embedded(),
            };
            let hosts = host_ids(&[id]);
            self.image.addresses.insert((key, ADDRESS_KEY_HEAD + 128), hosts);
        }
    }

    fn check_slots(&mut self) {
        if let Some(origin) = self.first_over.take() {
            self.errors.push(Diagnostic::error(
                origin,
                format!("the policy names {} binaries", self.image.binaries.len()),
                format!("name at most {BINARY_SLOTS}; a glob such as /usr/lib/git-core/* is one"),
            ));
        }
    }

    /// A lookup returns the longest prefix alone, so each stored one carries the numbers of all
    /// that contain it, the longest first.
    fn addresses(&mut self) {
        let ranges: BTreeMap<IpNet, HostId> = self.image.ranges().collect();
        for net in ranges.keys() {
            let around: Vec<(IpNet, HostId)> = std::iter::successors(Some(*net), IpNet::supernet)
                .filter_map(|around| Some((around, *ranges.get(&around)?)))
                .collect();
            let ids: Vec<HostId> = around.iter().map(|(_, id)| *id).collect();
            if ids.len() > PATTERNS_PER_HOST {
                self.too_nested(net, &around);
                continue;
            }
            let (key, bits) = Compiled::egress_key(net);
            self.image.addresses.insert((key, bits), host_ids(&ids));
        }
        self.keep_families_apart(&ranges);
    }

    fn too_nested(&mut self, net: &IpNet, around: &[(IpNet, HostId)]) {
        let nets: Vec<String> = around.iter().map(|(net, _)| net.to_string()).collect();
        let Some((_, origin)) = self.numbers.get(&Pattern::Range(*net)) else {
            return;
        };
        self.errors.push(Diagnostic::error(
            origin.clone(),
            format!("{net} lies in {} ranges: {}", nets.len(), nets.join(", ")),
            format!("nest at most {PATTERNS_PER_HOST}"),
        ));
    }

    /// IPv4 is kept IPv4-mapped, so an IPv6 range around `::ffff:0:0/96` would hold all of IPv4.
    /// An entry without rules for that block stops the lookup there.
    fn keep_families_apart(&mut self, ranges: &BTreeMap<IpNet, HostId>) {
        let Ok(mapped) = Ipv6Net::new(std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(), 96) else {
            return;
        };
        let mapped = IpNet::V6(mapped);
        if ranges.keys().any(|net| net.contains(&mapped)) {
            let (key, bits) = Compiled::egress_key(&mapped);
            let rules = self.image.addresses.entry((key, bits));
            rules.or_default();
        }
    }
}

fn patterns_of(endpoint: &Endpoint) -> Vec<Pattern> {
    match endpoint.host() {
        Host::Name(pattern) => vec![Pattern::Name {
            pattern: pattern.clone(),
            allowed_ips: endpoint.allowed_ips().to_vec(),
            first_said: endpoint.first_said(),
        }],
        Host::Ranges => endpoint.allowed_ips().iter().copied().map(Pattern::Range).collect(),
        host @ (Host::Address(_) | Host::Localhost(_)) => {
            host.literals().into_iter().map(|address| Pattern::Range(address.into())).collect()
        }
    }
}

const fn transports(transport: Transport) -> &'static [u8] {
    match transport {
        Transport::Tcp => &[TCP],
        Transport::Udp => &[UDP],
        Transport::Any => &[TCP, UDP],
        Transport::Icmp => &[ICMP],
    }
}

fn host_ids(ids: &[HostId]) -> HostIds {
    let mut hosts = HostIds::default();
    for (slot, id) in hosts.ids.iter_mut().zip(ids) {
        *slot = *id;
    }
    hosts
}

/// The slots of a set, ascending.
fn slots(mask: &Mask) -> impl Iterator<Item = usize> + '_ {
    (0..BINARY_SLOTS).filter(|slot| mask.contains(*slot))
}
