//! `endpoints[]`: the host, its ports, its addresses, and how they depend on each other.

use std::net::IpAddr;
use std::num::NonZeroU16;

use clawbox_common::address::{DNS_PORT, Range};
use ipnet::IpNet;

use super::request::{gateway, requests};
use super::{At, Scope};
use crate::policy::address::{always_denied, hidden_v4, parse_range, range_of};
use crate::policy::document::{Ech, EndpointSection, Transport};
use crate::policy::host_pattern::HostPattern;
use crate::policy::network::{Endpoint, FirstSaid, Host};

pub(super) fn endpoint(
    scope: &mut Scope<'_>,
    index: usize,
    at: &At<EndpointSection>,
) -> Option<Endpoint> {
    let section = &at.value;
    if is_left_open(scope, section) {
        return None;
    }
    let allowed_ips = allowed_ips(scope, section);
    let host_loopback = section.host_loopback.or(false);
    let host = host(scope, at, host_loopback);
    let transport = section.transport.or(Transport::Tcp);
    let is_ping = transport == Transport::Icmp;
    let ports = if is_ping { portless(scope, section) } else { ports(scope, at) };
    let requests = requests(scope, section);
    if let Some(written) = section.transport.get()
        && requests.is_some()
        && transport != Transport::Tcp
    {
        scope.error(
            written,
            "request rules exist for TCP alone",
            "remove `transport`, or the protocol and the rules",
        );
    }
    let host = host?;
    if let (true, Host::Name(_), Some(written)) = (is_ping, &host, section.transport.get()) {
        scope.error(
            written,
            "`transport: icmp` needs addresses: programs send echo requests to what a name's answer \
             says, and a sandbox's answers stand for connections",
            "write `host` as an address, or leave it out and name ranges in `allowed_ips`",
        );
    }
    if let (Host::Address(address), Some(written), false) =
        (&host, section.allowed_ips.get(), allowed_ips.is_empty())
        && !allowed_ips.iter().any(|net| net.contains(address))
    {
        scope.error(
            written,
            format!("{address} lies outside its own `allowed_ips`"),
            "remove `allowed_ips`; the address is exact already",
        );
    }
    let first_said = first_said(scope, section, &host, transport);
    if ports.iter().any(|port| port.get() == DNS_PORT) {
        scope.warning(
            at,
            "port 53 always goes to the sandbox's own resolver, whatever a rule says",
            "remove port 53; names are resolved for every allowed host",
        );
    }
    (is_ping || !ports.is_empty()).then(|| Endpoint {
        index,
        origin: at.origin(scope.file),
        host,
        ports,
        transport,
        allowed_ips,
        host_loopback,
        first_said,
        requests,
        gateway: gateway(scope, section),
    })
}

/// Whether hosts are still to be filled in, which nobody does from here on.
fn is_left_open(scope: &mut Scope<'_>, section: &EndpointSection) -> bool {
    let Some(written) = section.host_from.get() else { return false };
    scope.error(
        written,
        "`host_from` stands for hosts of the machine's settings, and nothing has filled them in",
        "give the file to `clawbox run` or `clawbox policy set`, or add it with `clawbox preset add`",
    );
    true
}

/// Only a name can be named, and only where a connection begins with words.
fn first_said(
    scope: &mut Scope<'_>,
    section: &EndpointSection,
    host: &Host,
    transport: Transport,
) -> FirstSaid {
    let Some(written) = section.sni.get() else {
        if let Some(ech) = section.ech.get() {
            scope.error(
                ech,
                "`ech` says what `sni: verify` lets through, and the endpoint does not have it",
                "add `sni: verify`, or remove `ech`: without it nothing that is said is read",
            );
        }
        return FirstSaid::Anything;
    };
    if !matches!(host, Host::Name(_)) {
        scope.error(
            written,
            "`sni: verify` compares names, and the endpoint has none",
            "write `host` as a name, or remove `sni`",
        );
    }
    if transport != Transport::Tcp {
        scope.error(
            written,
            "`sni: verify` reads TCP connections alone",
            "remove `transport`, or `sni`",
        );
    }
    match section.ech.or(Ech::Refuse) {
        Ech::Refuse => FirstSaid::Name,
        Ech::Allow => FirstSaid::OuterName,
    }
}

fn host(scope: &mut Scope<'_>, at: &At<EndpointSection>, host_loopback: bool) -> Option<Host> {
    let Some(written) = at.value.host.get() else {
        if at.value.allowed_ips.get().is_none() {
            scope.error(
                at,
                "the endpoint has no host",
                "add `host`, or `allowed_ips` to admit addresses without a name",
            );
            return None;
        }
        refuse_loopback_key(scope, at);
        return Some(Host::Ranges);
    };
    if let Ok(address) = written.value.parse::<IpAddr>() {
        return literal(scope, at, written, address, host_loopback);
    }
    let pattern = match HostPattern::parse(&written.value) {
        Ok(pattern) => pattern,
        Err(error) => {
            scope.error(written, error.to_string(), error.remedy);
            return None;
        }
    };
    if !pattern.is_localhost() {
        refuse_loopback_key(scope, at);
        return Some(Host::Name(pattern));
    }
    if pattern.as_str() != "localhost" {
        scope.error(
            written,
            format!("{pattern} is a name of the machine itself"),
            "write `host: localhost` with `host_loopback: true`",
        );
        return None;
    }
    if !host_loopback {
        scope.error(
            written,
            "localhost is the host's loopback, which is closed",
            "add `host_loopback: true` if a port of the host itself is meant",
        );
        return None;
    }
    Some(Host::Localhost(pattern))
}

fn literal(
    scope: &mut Scope<'_>,
    at: &At<EndpointSection>,
    written: &At<String>,
    address: IpAddr,
    host_loopback: bool,
) -> Option<Host> {
    if let Some(hidden) = hidden_v4(address) {
        scope.error(
            written,
            format!("{address} is an IPv6 spelling of an IPv4 address"),
            format!("write {hidden}"),
        );
        return None;
    }
    match range_of(address) {
        Range::Loopback if host_loopback => Some(Host::Address(address)),
        Range::Loopback => {
            scope.error(
                written,
                format!("{address} is the host's loopback, which is closed"),
                "add `host_loopback: true` if a port of the host itself is meant",
            );
            None
        }
        range => {
            refuse_loopback_key(scope, at);
            if let Some(kind) = always_denied(range) {
                scope.error(
                    written,
                    format!("{address} is {kind}, and never reachable"),
                    "remove the endpoint",
                );
                return None;
            }
            Some(Host::Address(address))
        }
    }
}

fn refuse_loopback_key(scope: &mut Scope<'_>, at: &At<EndpointSection>) {
    if let Some(key) = at.value.host_loopback.get()
        && key.value
    {
        scope.error(
            key,
            "`host_loopback` opens the host's loopback, and the host is not on it",
            "write `host: 127.0.0.1`, `::1` or `localhost`, or remove the key",
        );
    }
}

/// Echo requests have no port.
fn portless(scope: &mut Scope<'_>, section: &EndpointSection) -> Vec<NonZeroU16> {
    let message = "`transport: icmp` has no ports";
    if let Some(port) = section.port.get() {
        scope.error(port, message, "remove `port`");
    }
    if let Some(ports) = section.ports.get() {
        scope.error(ports, message, "remove `ports`");
    }
    Vec::new()
}

fn ports(scope: &mut Scope<'_>, at: &At<EndpointSection>) -> Vec<NonZeroU16> {
    match (at.value.port.get(), at.value.ports.get()) {
        (None, None) => {
            scope.error(at, "the endpoint has no port", "add `port`, for example `port: 443`");
            Vec::new()
        }
        (Some(port), None) => scope.port(port).into_iter().collect(),
        (port, Some(list)) => {
            let ports = scope.ports(&list.value);
            if list.value.is_empty() {
                scope.error(list, "`ports` is empty", "name at least one port");
            }
            if let Some(port) = port {
                let known = scope.port(port);
                if known.is_some_and(|known| !ports.contains(&known)) {
                    scope.error(
                        port,
                        format!("`port: {}` is not among `ports`", port.value),
                        "keep one of the two keys",
                    );
                }
            }
            ports
        }
    }
}

fn allowed_ips(scope: &mut Scope<'_>, section: &EndpointSection) -> Vec<IpNet> {
    let Some(written) = section.allowed_ips.get() else {
        return Vec::new();
    };
    if written.value.is_empty() {
        scope.error(
            written,
            "`allowed_ips` is empty and admits no address",
            "name a range, for example 10.0.0.0/8, or remove the key",
        );
    }
    let mut ranges = Vec::new();
    for at in &written.value {
        match parse_range(&at.value) {
            Ok(net) => ranges.push(net),
            Err((message, remedy)) => scope.error(at, message, remedy),
        }
    }
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}
