//! The rule that nearly matches: found by asking the judge again with one thing changed after the other.

use std::path::Path;

use serde::Serialize;

use crate::audit::kernel_event::transport;
use crate::judge::samples::{host as sample, transports};
use crate::judge::{Access, Deed, Judge, Who};
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
        Deed::Use { path, access } => file(judge, who, path, *access),
    }
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
            pattern.matches(host)
                || address.is_some_and(|address: std::net::IpAddr| address.is_loopback())
        }
        Host::Address(own) => address == Some(*own),
        Host::Ranges => address.is_some_and(|address| {
            endpoint.allowed_ips().iter().any(|range| range.contains(&address))
        }),
    }
}

/// How many labels two names have in common at their end. Addresses have none.
fn shared_labels(one: &str, other: &str) -> usize {
    if one.parse::<std::net::IpAddr>().is_ok() || other.parse::<std::net::IpAddr>().is_ok() {
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
    let near = |granted: &SandboxPath| {
        let mut shared = 0;
        for (one, other) in path.components().zip(granted.as_path().components()) {
            if one != other {
                break;
            }
            shared += 1;
        }
        shared
    };
    let all = lists.into_iter().flat_map(|(key, list)| list.iter().map(move |at| (key, at)));
    let wanted = all.filter(|(key, _)| access != Access::Write || *key == "read_write");
    let (key, at) = wanted.max_by_key(|(_, at)| near(&at.value))?;
    // The root and one directory: that is not near.
    (near(&at.value) >= 3).then(|| Nearest {
        rule: format!("filesystem_policy.{key} {} ({})", at.value, at.origin),
        differs: vec![format!("{} is not below it", path.display())],
    })
}
