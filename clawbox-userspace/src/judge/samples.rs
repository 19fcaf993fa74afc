//! One example of what a pattern means, to ask the judge about: any other would get the same answer.

use std::path::PathBuf;

use clawbox_common::rule::{ICMP, TCP, UDP};

use super::Deed;
use crate::policy::binary_pattern::BinaryPattern;
use crate::policy::network::{Endpoint, Host, Transport};

/// A host that an endpoint names.
#[must_use]
pub fn host(endpoint: &Endpoint) -> Option<String> {
    match endpoint.host() {
        Host::Name(pattern) => {
            let text = pattern.as_str();
            let name = text.replace("**", "any").replace('*', "any");
            [name.as_str(), text].into_iter().find(|name| pattern.matches(name)).map(str::to_owned)
        }
        Host::Localhost(_) => Some("localhost".to_owned()),
        Host::Address(address) => Some(address.to_string()),
        Host::Ranges => endpoint.allowed_ips().first().map(|range| range.addr().to_string()),
    }
}

/// A program that a pattern means.
#[must_use]
pub fn program(pattern: &BinaryPattern) -> Option<PathBuf> {
    if let Some(path) = pattern.exact() {
        return Some(path.to_owned());
    }
    let text = pattern.as_str();
    let plain = PathBuf::from(text.replace("**", "any/any").replace('*', "any"));
    [plain, PathBuf::from(text)].into_iter().find(|path| pattern.matches(path))
}

/// The numbers of an endpoint's transports.
#[must_use]
pub fn transports(endpoint: &Endpoint) -> &'static [u8] {
    match endpoint.transport() {
        Transport::Tcp => &[TCP],
        Transport::Udp => &[UDP],
        Transport::Any => &[TCP, UDP],
        Transport::Icmp => &[ICMP],
    }
}

/// What an endpoint opens: each port, by each transport, at an example of its hosts.
#[must_use]
pub fn deeds(endpoint: &Endpoint) -> Vec<Deed> {
    let Some(host) = host(endpoint) else { return Vec::new() };
    let ports: Vec<u16> = endpoint.rule_ports().collect();
    let deed = |transport: u8, port: u16| Deed::Connect { host: host.clone(), port, transport };
    let numbers = transports(endpoint).iter();
    numbers.flat_map(|number| ports.iter().map(|port| deed(*number, *port))).collect()
}
