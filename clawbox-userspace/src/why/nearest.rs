//! The rule that nearly matches: found by asking the judge again with one thing changed after the other.

use std::net::IpAddr;
use std::path::Path;

use clawbox_common::rule::{TCP, UDP};
use clawbox_common::verdict::Reason;
use serde::Serialize;

use crate::audit::kernel_event::transport;
use crate::judge::samples::{host as sample, transports};
use crate::judge::{Access, Deed, Judge, Who};
use crate::policy::binary_pattern::BinaryPattern;
use crate::policy::model::{Listen, Located, Transport};
use crate::policy::network::{Endpoint, Host, NetworkPolicy};
use crate::policy::path::SandboxPath;

/// What would nearly have matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nearest {
    /// The rule.
    pub rule: String,
    /// What differs, each in a few words.
    pub differs: Vec<String>,
}

/// The rule nearest to a deed that is denied, if any is near.
#[must_use]
pub fn to(judge: &Judge, who: &Who, deed: &Deed) -> Option<Nearest> {
    match deed {
        Deed::Connect { host, port, transport } => endpoint(judge, who, (host, *port, *transport)),
        Deed::Use { path, access } => match judge.ask(who, deed).reason {
            Reason::UnlistedProgram => listed(judge, path),
            Reason::WritableProgram => writable(judge, who, deed),
            _ => file(judge, who, path, *access),
        },
        Deed::Listen { address, port, transport } => {
            listening(judge.policy().listen.as_ref()?, *address, *port, *transport)
        }
        Deed::Reach { path } => {
            socket(judge, path).or_else(|| file(judge, who, path, Access::Write))
        }
    }
}

/// What of `listen` differs.
fn listening(listen: &Located<Listen>, address: IpAddr, port: u16, number: u8) -> Option<Nearest> {
    let Located { value, origin } = listen;
    let mut differs = Vec::new();
    if !value.ports().iter().any(|own| own.get() == port) {
        let ports: Vec<String> = value.ports().iter().map(ToString::to_string).collect();
        differs.push(format!("port {port} is not {}", ports.join(" or ")));
    }
    if !value.addresses().contains(&address) {
        let all: Vec<String> = value.addresses().iter().map(ToString::to_string).collect();
        differs.push(format!("address {address} is not {}", all.join(" or ")));
    }
    let own: &[u8] = match value.transport() {
        Transport::Tcp => &[TCP],
        Transport::Udp => &[UDP],
        _ => &[TCP, UDP],
    };
    if let Some(first) = own.first().filter(|_| !own.contains(&number)) {
        differs.push(format!("{} is not {}", transport(number), transport(*first)));
    }
    (!differs.is_empty()).then(|| Nearest { rule: format!("listen ({origin})"), differs })
}

/// The entry of `execution.allow` that has most of a program's path.
fn listed(judge: &Judge, path: &Path) -> Option<Nearest> {
    let list = judge.policy().execution.as_ref()?;
    let entries = list.value.allow.as_ref()?.iter();
    let likeness = |at: &&Located<BinaryPattern>| {
        let other = Path::new(at.value.as_str());
        (other.file_name() == path.file_name(), shared(path, other))
    };
    let program = path.display();
    let (rule, differs) = match entries.max_by_key(likeness) {
        Some(at) => {
            let rule = format!("execution.allow {} ({})", at.value.as_str(), at.origin);
            (rule, format!("program {program} is not {}", at.value.as_str()))
        }
        None => (format!("execution.allow ({})", list.origin), "it lists no program".to_owned()),
    };
    Some(Nearest { rule, differs: vec![differs] })
}

/// What lets the sandbox write a program.
fn writable(judge: &Judge, who: &Who, deed: &Deed) -> Option<Nearest> {
    let at = judge.ask(who, deed).at?;
    Some(Nearest {
        rule: format!("filesystem_policy.read_write {}", at.display()),
        differs: vec!["what may be written there may not be started".to_owned()],
    })
}

/// The socket of `unix_sockets.allow` in the same directory.
fn socket(judge: &Judge, path: &Path) -> Option<Nearest> {
    let entries = judge.policy().unix_sockets.as_ref()?.value.iter();
    let mut near = entries.filter(|other| other.as_path().parent() == path.parent());
    let other = near.next()?;
    Some(Nearest {
        rule: format!("unix_sockets.allow {other}"),
        differs: vec![format!("socket {} is not {other}", path.display())],
    })
}

/// How many components two paths have in common at their beginning.
fn shared(one: &Path, other: &Path) -> usize {
    one.components().zip(other.components()).take_while(|(one, other)| one == other).count()
}

type Asked<'a> = (&'a str, u16, u8);

fn endpoint(judge: &Judge, who: &Who, asked: (&String, u16, u8)) -> Option<Nearest> {
    let asked = (asked.0.as_str(), asked.1, asked.2);
    let all = judge.policy().network.iter();
    let all = all.flat_map(|network| network.endpoints.iter().map(move |at| (network, at)));
    all.filter_map(|(network, at)| compared(judge, who, asked, network, at))
        .min_by_key(|(cost, _)| *cost)
        .map(|(_, nearest)| nearest)
}

/// What has to be changed of a question so that an endpoint admits it, and how much that is.
fn compared(
    judge: &Judge,
    who: &Who,
    (host, port, number): Asked<'_>,
    network: &NetworkPolicy,
    endpoint: &Endpoint,
) -> Option<(usize, Nearest)> {
    let mut differs = Vec::new();
    let mut cost = 0;
    let allowed_host = match matching(endpoint, host) {
        true => host.to_owned(),
        false => {
            let shared = shared_labels(host, &endpoint.host_text());
            if shared < 2 {
                return None;
            }
            cost += 4_usize.saturating_sub(shared.min(3));
            differs.push(format!("host {host} is not {}", endpoint.host_text()));
            sample(endpoint)?
        }
    };
    let ports: Vec<u16> = endpoint.rule_ports().collect();
    let allowed_port = if ports.contains(&port) { port } else { *ports.first()? };
    if allowed_port != port {
        cost += 1;
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        differs.push(format!("port {port} is not {}", ports.join(" or ")));
    }
    let numbers = transports(endpoint);
    let allowed_number = if numbers.contains(&number) { number } else { *numbers.first()? };
    if allowed_number != number {
        cost += 1;
        differs.push(format!("{} is not {}", transport(number), transport(allowed_number)));
    }
    let deed = Deed::Connect { host: allowed_host, port: allowed_port, transport: allowed_number };
    if !judge.ask(who, &deed).is_allowed() {
        let binaries = network.binaries.iter().map(|binary| &binary.pattern);
        let admitted = binaries.filter(|pattern| {
            pattern.exact().is_none_or(|path| judge.ask(&Who::from(path), &deed).is_allowed())
        });
        let names: Vec<&str> = admitted.map(|pattern| pattern.as_str()).collect();
        if names.is_empty() {
            return None;
        }
        cost += 1;
        let program = who.script.as_ref().unwrap_or(&who.program).display();
        differs.push(format!("program {program} is not {}", names.join(" or ")));
    }
    let rule = format!(
        "network_policies.{}.endpoints[{}] {endpoint} ({})",
        network.key,
        endpoint.index(),
        endpoint.origin()
    );
    Some((cost, Nearest { rule, differs }))
}

fn matching(endpoint: &Endpoint, host: &str) -> bool {
    let address = host.parse().ok();
    match endpoint.host() {
        Host::Name(pattern) => address.is_none() && pattern.matches(host),
        Host::Localhost(pattern) => {
            pattern.matches(host) || address.is_some_and(|address: IpAddr| address.is_loopback())
        }
        Host::Address(own) => address == Some(*own),
        Host::Ranges => address.is_some_and(|address| {
            endpoint.allowed_ips().iter().any(|range| range.contains(&address))
        }),
    }
}

/// How many labels two names have in common at their end. Addresses have none.
fn shared_labels(one: &str, other: &str) -> usize {
    if one.parse::<IpAddr>().is_ok() || other.parse::<IpAddr>().is_ok() {
        return 0;
    }
    let labels = |name: &str| {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        name.rsplit('.').map(str::to_owned).collect::<Vec<_>>()
    };
    let (one, other) = (labels(one), labels(other));
    one.iter().zip(&other).take_while(|(a, b)| a == b).count()
}

fn file(judge: &Judge, who: &Who, path: &Path, access: Access) -> Option<Nearest> {
    let files = &judge.policy().filesystem;
    // The same use by somebody for whom there are rules.
    for rule in files.rules() {
        for binary in &rule.value.binaries {
            let Some(other) = binary.pattern.exact() else { continue };
            let deed = Deed::Use { path: path.to_owned(), access };
            if judge.ask(&Who::from(other), &deed).is_allowed() {
                let program = who.program.display();
                return Some(Nearest {
                    rule: format!(
                        "filesystem_policy.rules for {} ({})",
                        binary.pattern, rule.origin
                    ),
                    differs: vec![format!("program {program} is not {}", binary.pattern)],
                });
            }
        }
    }
    let reading = Deed::Use { path: path.to_owned(), access: Access::Read };
    let judged = judge.ask(who, &reading);
    if access == Access::Write && judged.is_allowed() {
        let at = judged.at.map(|at| at.display().to_string()).unwrap_or_default();
        return Some(Nearest {
            rule: format!("filesystem_policy.read_only {at}"),
            differs: vec!["it may be read there and not written".to_owned()],
        });
    }
    let lists = [("read_only", files.read_only()), ("read_write", files.read_write())];
    let near = |granted: &SandboxPath| shared(path, granted.as_path());
    let all = lists.into_iter().flat_map(|(key, list)| list.iter().map(move |at| (key, at)));
    let wanted = all.filter(|(key, _)| access != Access::Write || *key == "read_write");
    let (key, at) = wanted.max_by_key(|(_, at)| near(&at.value))?;
    // The root and one directory: that is not near.
    (near(&at.value) >= 3).then(|| Nearest {
        rule: format!("filesystem_policy.{key} {} ({})", at.value, at.origin),
        differs: vec![format!("{} is not below it", path.display())],
    })
}
