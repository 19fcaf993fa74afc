//! One question to a compiled policy, answered by the decision that the kernel hooks run.
//! Stands in for exec, the resolver and the hook: gives the subject its slots, the name an address.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use clawbox_common::address::Address;
use clawbox_common::decide::{Destination, Route, egress};
use clawbox_common::rule::{HostIds, SyntheticKey, SyntheticValue, TCP};
use clawbox_common::subject::{Mask, Standing, Subject};
use clawbox_common::verdict::{Reason, Verdict};

use super::{ImageLookup, MapImage, RuleRef};
use crate::policy::address::wire;
use crate::policy::network::Host;

/// What a connection goes to.
#[derive(Clone, Debug)]
pub enum Target {
    /// A name, resolved to some public address.
    Name(String),
    /// An address, dialled without a name.
    Address(IpAddr),
}

/// One connection.
#[derive(Clone, Debug)]
pub struct Question {
    /// The program that connects.
    pub binary: PathBuf,
    /// Programs further up.
    pub ancestors: Vec<PathBuf>,
    /// Where to.
    pub target: Target,
    /// Port; zero for echo requests.
    pub port: u16,
    /// [`clawbox_common::rule::TCP`], [`clawbox_common::rule::UDP`] or [`clawbox_common::rule::ICMP`].
    pub transport: u8,
}

/// The verdict and what led to it.
#[derive(Clone, Debug)]
pub struct Answer<'a> {
    /// The verdict.
    pub verdict: Verdict,
    /// Its reason.
    pub reason: Reason,
    /// The rule that decided.
    pub rule: Option<RuleRef<'a>>,
    /// What else to know.
    pub remarks: Vec<String>,
}

/// What follows from `unknown_endpoints: ask`, and from `sni: verify`.
const WAITS: &str = "`unknown_endpoints: ask`: it waits until `clawbox approvals` answers it";
const VERIFIED: &str = "`sni: verify`: it goes on if what is said first on it names the host";
const HIDDEN: &str = "`ech: allow`: another name may be hidden behind that";

/// The sandbox and an address it was handed out for the name in question.
const SANDBOX: u32 = 1;
const SYNTHETIC: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1));
/// Stands for whatever public address a name has.
const PUBLIC: IpAddr = IpAddr::V4(Ipv4Addr::new(1, 0, 0, 1));

/// Answers a question, with programs known by their paths alone.
#[must_use]
pub fn answer<'a>(image: &'a MapImage, question: &Question) -> Answer<'a> {
    answer_to(image, &subject(image, &question.binary, &question.ancestors), question)
}

/// Answers a question of a subject of sandbox 1, whatever the question says of programs.
#[must_use]
pub fn answer_to<'a>(image: &'a MapImage, subject: &Subject, question: &Question) -> Answer<'a> {
    let mut remarks = skipped(image, question);
    if image.audit_only() {
        remarks.push("`mode: audit`: denied connections are recorded and go on".to_owned());
    }
    let deny = |reason, remarks| Answer { verdict: Verdict::Deny, reason, rule: None, remarks };
    let mut lookup = ImageLookup::new(image, SANDBOX);
    let address = match &question.target {
        Target::Address(address) => wire(*address),
        Target::Name(name) => {
            let rule = match image.name(name) {
                Ok(Some(rule)) => rule,
                Ok(None) if image.asks_for_unknown() && question.transport == TCP => {
                    remarks.push(WAITS.to_owned());
                    return deny(Reason::Held, remarks);
                }
                Ok(None) => return deny(Reason::UnknownName, remarks),
                Err(error) => {
                    remarks.push(error.to_string());
                    return deny(Reason::UnknownName, remarks);
                }
            };
            // A pattern with `allowed_ips` may not hold for a public address; for another one it
            // does, and which the name has is not known here.
            hand_out(&mut lookup, rule.hosts())
        }
    };
    // Nothing runs, so nothing is bound.
    let to = Destination {
        address,
        port: question.port,
        transport: question.transport,
        zero: 0,
        receiver: 0,
    };
    let decision = egress(&lookup, &Standing::Subject(subject), &to);
    match decision.route {
        // It goes on for nobody before it is approved.
        Route::Waiting => {
            remarks.push(WAITS.to_owned());
            return deny(Reason::Held, remarks);
        }
        Route::Verifier => {
            remarks.push(VERIFIED.to_owned());
            if image.admits_hidden(decision.host) {
                remarks.push(HIDDEN.to_owned());
            }
        }
        _ => {}
    }
    let rule = match (decision.verdict, decision.reason) {
        (Verdict::Allow, Reason::Rule) => image.attribute(
            decision.host,
            to.port,
            to.transport,
            decision.matched_word,
            decision.matched,
        ),
        _ => None,
    };
    if decision.reason == Reason::OtherBinary {
        remarks.extend(image.naming(decision.host, to.port, to.transport).map(|rule| {
            format!(
                "network_policies.{}.endpoints[{}] {} is for {} {}",
                rule.policy_key, rule.endpoint, rule.host, rule.binary, rule.origin
            )
        }));
    }
    Answer { verdict: decision.verdict, reason: decision.reason, rule, remarks }
}

fn hand_out(lookup: &mut ImageLookup<'_>, hosts: HostIds) -> Address {
    let address = wire(SYNTHETIC);
    let key = SyntheticKey { sandbox: SANDBOX, policy: lookup.image.generation(), address };
    let value = SyntheticValue { real: wire(PUBLIC), hosts, name: 1 };
    lookup.synthetics.insert(key, value);
    address
}

/// Who a program is under a policy, with the programs further up.
#[must_use]
pub fn subject(image: &MapImage, binary: &Path, ancestors: &[PathBuf]) -> Subject {
    let own = image.slots_of(binary);
    let mut lineage = own;
    for ancestor in ancestors {
        lineage.extend(&image.slots_of(ancestor));
    }
    Subject { sandbox: SANDBOX, own, lineage, ..Subject::default() }
}

/// Endpoints that name the target and admit nothing.
fn skipped(image: &MapImage, question: &Question) -> Vec<String> {
    image
        .skipped
        .iter()
        .filter(|skipped| skipped.ports.iter().any(|port| port.get() == question.port))
        .filter(|skipped| match (&skipped.host, &question.target) {
            (Host::Name(pattern), Target::Name(name)) => pattern.matches(name),
            (host, Target::Address(address)) => host.literals().contains(address),
            _ => false,
        })
        .map(|skipped| {
            format!(
                "network_policies.{}.endpoints[{}] ({}) names it and is denied entirely: {}",
                skipped.policy_key, skipped.endpoint, skipped.origin, skipped.because
            )
        })
        .collect()
}

impl MapImage {
    /// The slots that a program at this path matches.
    #[must_use]
    pub fn slots_of(&self, path: &Path) -> Mask {
        let mut mask = Mask::EMPTY;
        for (slot, binary) in self.binaries.iter().enumerate() {
            if binary.pattern.matches(path) {
                mask.insert(slot);
            }
        }
        mask
    }
}
