//! Who reaches which destinations: network policies, endpoints, request rules, middlewares.
//! An endpoint's fields depend on each other, so only `resolve` can make one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use ipnet::IpNet;
use serde_json::Value;

use super::diagnostic::Origin;
pub use super::document::{
    Access, Enforcement, OnError, PersistedQueries, Protocol, Signing, Tls, Transport,
};
use super::host_pattern::HostPattern;
use super::model::Binary;
pub use super::request_document::{RequestMatch, ValueMatch};

/// An entry of `network_policies`.
#[derive(Clone, Debug)]
pub struct NetworkPolicy {
    /// Its key, unique in a policy.
    pub key: String,
    /// Its name in the audit trail.
    pub name: String,
    /// Destinations.
    pub endpoints: Vec<Endpoint>,
    /// Who may reach them; empty admits nobody.
    pub binaries: Vec<Binary>,
    /// Where it was written.
    pub origin: Origin,
}

/// What an endpoint names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name or wildcard, never one of the local machine.
    Name(HostPattern),
    /// An address, never one that is always denied.
    Address(IpAddr),
    /// `localhost`: both loopback addresses.
    Localhost(HostPattern),
    /// No host: any address in `allowed_ips`.
    Ranges,
}

impl Host {
    /// The addresses that are dialled without asking DNS.
    #[must_use]
    pub fn literals(&self) -> Vec<IpAddr> {
        match self {
            Self::Address(address) => vec![*address],
            Self::Localhost(_) => {
                vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
            }
            Self::Name(_) | Self::Ranges => Vec::new(),
        }
    }
}

/// What has to be said first on a connection, the strictest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FirstSaid {
    /// The host's name, and none that only the server can read (`sni: verify`).
    Name,
    /// The host's name; another one may be hidden behind it (`ech: allow` too).
    OuterName,
    /// Anything.
    Anything,
}

/// A destination of a network policy.
///
/// Invariants: at least one port, but of echo requests, which have none; [`Host::Ranges`] has ranges; `host_loopback` exactly if the
/// host is a loopback address or `localhost`; request rules only over TCP.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub(super) index: usize,
    pub(super) origin: Origin,
    pub(super) host: Host,
    pub(super) ports: Vec<NonZeroU16>,
    pub(super) transport: Transport,
    pub(super) allowed_ips: Vec<IpNet>,
    pub(super) host_loopback: bool,
    pub(super) first_said: FirstSaid,
    pub(super) requests: Option<Requests>,
    pub(super) gateway: GatewayOptions,
}

impl Endpoint {
    /// Its place in the policy's list, from zero.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Where it was written.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// What it names.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Ports, ascending.
    #[must_use]
    pub fn ports(&self) -> &[NonZeroU16] {
        &self.ports
    }

    /// The ports that its rules are for: zero for echo requests.
    pub fn rule_ports(&self) -> impl Iterator<Item = u16> + '_ {
        let without = (self.transport == Transport::Icmp).then_some(0);
        without.into_iter().chain(self.ports.iter().map(|port| port.get()))
    }

    /// Transport.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// Where the host's addresses have to lie, if anywhere in particular; without a host, which
    /// addresses may be dialled.
    #[must_use]
    pub fn allowed_ips(&self) -> &[IpNet] {
        &self.allowed_ips
    }

    /// Whether it opens a port on the host's loopback.
    #[must_use]
    pub fn host_loopback(&self) -> bool {
        self.host_loopback
    }

    /// What has to be said first on a connection.
    #[must_use]
    pub fn first_said(&self) -> FirstSaid {
        self.first_said
    }

    /// Request rules; `None` is the address level.
    #[must_use]
    pub fn requests(&self) -> Option<&Requests> {
        self.requests.as_ref()
    }

    /// What the gateway is asked to do to requests.
    #[must_use]
    pub fn gateway(&self) -> &GatewayOptions {
        &self.gateway
    }

    /// The host as text: the pattern, the address, or the ranges.
    #[must_use]
    pub fn host_text(&self) -> String {
        match &self.host {
            Host::Name(pattern) | Host::Localhost(pattern) => pattern.as_str().to_owned(),
            Host::Address(address) => address.to_string(),
            Host::Ranges => {
                let ranges: Vec<String> = self.allowed_ips.iter().map(IpNet::to_string).collect();
                ranges.join(",")
            }
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports: Vec<String> = self.ports.iter().map(NonZeroU16::to_string).collect();
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Any => "any",
            Transport::Icmp => return write!(f, "{}/icmp", self.host_text()),
        };
        let host = self.host_text();
        let ports = ports.join(",");
        if host.contains(':') {
            write!(f, "[{host}]:{ports}/{transport}")
        } else {
            write!(f, "{host}:{ports}/{transport}")
        }
    }
}

/// Rules over requests, which only a gateway can read.
#[derive(Clone, Debug)]
pub struct Requests {
    /// Protocol; `rest` where rules stand without one.
    pub protocol: Protocol,
    /// Whether the protocol was written.
    pub protocol_written: bool,
    /// Whether requests outside the rules fail, where written; absent is enforce.
    pub enforcement: Option<Enforcement>,
    /// What is admitted.
    pub base: Base,
    /// What is refused all the same.
    pub deny: Vec<RequestMatch>,
    /// Request paths that the endpoint is about.
    pub path: Option<String>,
}

/// The requests that are admitted before `deny_rules`.
#[derive(Clone, Debug)]
pub enum Base {
    /// Neither `access` nor `rules`: none.
    Nothing,
    /// A ready-made set.
    Access(Access),
    /// These.
    Rules(Vec<RequestMatch>),
}

impl Requests {
    /// Whether every request is admitted, so that the address level alone enforces the rules.
    #[must_use]
    pub fn admit_every_request(&self) -> bool {
        let every = match &self.base {
            Base::Nothing => false,
            Base::Access(access) => *access == Access::Full,
            Base::Rules(rules) => rules.iter().any(matches_every_request),
        };
        every && self.deny.is_empty() && self.path.as_deref().is_none_or(is_every_path)
    }
}

fn is_every_path(glob: &str) -> bool {
    glob == "/**" || glob == "**"
}

fn matches_every_request(rule: &RequestMatch) -> bool {
    let RequestMatch { method, path, query, operation_type, operation_name, fields, tool, params } =
        rule;
    method.get().is_some_and(|method| method.value == "*")
        && path.get().is_some_and(|path| is_every_path(&path.value))
        && query.get().is_none()
        && operation_type.get().is_none()
        && operation_name.get().is_none()
        && fields.get().is_none()
        && tool.get().is_none()
        && params.get().is_none()
}

/// What the gateway is asked to do to requests beside judging them.
#[derive(Clone, Debug, Default)]
pub struct GatewayOptions {
    /// `tls`
    pub tls: Option<Tls>,
    /// `allow_encoded_slash`
    pub allow_encoded_slash: Option<bool>,
    /// `websocket_credential_rewrite`
    pub websocket_credential_rewrite: Option<bool>,
    /// `request_body_credential_rewrite`
    pub request_body_credential_rewrite: Option<bool>,
    /// `allow_uninspected_credentials`
    pub allow_uninspected_credentials: Option<bool>,
    /// `credential_signing`
    pub credential_signing: Option<Signing>,
    /// `signing_service`
    pub signing_service: Option<String>,
    /// `signing_region`
    pub signing_region: Option<String>,
    /// `credential_binding.provider`
    pub credential_provider: Option<String>,
    /// `persisted_queries`
    pub persisted_queries: Option<PersistedQueries>,
    /// `graphql_persisted_queries`
    pub graphql_persisted_queries: Option<Value>,
    /// `graphql_max_body_bytes`
    pub graphql_max_body_bytes: Option<u64>,
    /// `json_rpc.max_body_bytes`
    pub json_rpc_max_body_bytes: Option<u64>,
    /// `mcp.max_body_bytes`
    pub mcp_max_body_bytes: Option<u64>,
    /// `mcp.strict_tool_names`
    pub mcp_strict_tool_names: Option<bool>,
    /// `mcp.allow_all_known_mcp_methods`
    pub mcp_allow_all_known_mcp_methods: Option<bool>,
}

impl GatewayOptions {
    /// The keys that promise something no layer below a gateway can do.
    #[must_use]
    pub fn promises(&self) -> Vec<&'static str> {
        [
            (self.websocket_credential_rewrite == Some(true), "websocket_credential_rewrite"),
            (self.request_body_credential_rewrite == Some(true), "request_body_credential_rewrite"),
            (self.credential_signing.is_some(), "credential_signing"),
            (self.credential_provider.is_some(), "credential_binding"),
            (self.persisted_queries.is_some(), "persisted_queries"),
            (self.graphql_persisted_queries.is_some(), "graphql_persisted_queries"),
            (self.graphql_max_body_bytes.is_some(), "graphql_max_body_bytes"),
            (self.json_rpc_max_body_bytes.is_some(), "json_rpc.max_body_bytes"),
            (self.mcp_max_body_bytes.is_some(), "mcp.max_body_bytes"),
            (self.mcp_strict_tool_names == Some(true), "mcp.strict_tool_names"),
            (self.allow_encoded_slash == Some(false), "allow_encoded_slash"),
        ]
        .into_iter()
        .filter_map(|(promised, key)| promised.then_some(key))
        .collect()
    }
}

/// An entry of `network_middlewares`.
#[derive(Clone, Debug)]
pub struct Middleware {
    /// Its key.
    pub key: String,
    /// The built-in.
    pub middleware: String,
    /// Place in the chain, unique.
    pub order: i64,
    /// Its configuration.
    pub config: Option<Value>,
    /// What happens when it fails.
    pub on_error: OnError,
    /// Which hosts it covers.
    pub include: Vec<Cover>,
    /// Exceptions.
    pub exclude: Vec<Cover>,
    /// Where it was written.
    pub origin: Origin,
}

/// Hosts that a middleware covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cover {
    /// Every host.
    Every,
    /// These.
    Hosts(HostPattern),
}

impl Cover {
    fn holds(&self, name: &str) -> bool {
        match self {
            Self::Every => true,
            Self::Hosts(pattern) => pattern.matches(name),
        }
    }
}

impl Middleware {
    /// Whether traffic to an endpoint may have to pass here. For an endpoint that is more than
    /// one exact name this cannot be told from two patterns, and the answer is yes.
    #[must_use]
    pub fn may_cover(&self, endpoint: &Endpoint) -> bool {
        match endpoint.host() {
            Host::Name(pattern) if pattern.is_exact() => {
                let name = pattern.as_str();
                self.include.iter().any(|cover| cover.holds(name))
                    && !self.exclude.iter().any(|cover| cover.holds(name))
            }
            _ => true,
        }
    }
}

/// What this build does with an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// The address level enforces all of it.
    AddressLevel,
    /// Connections are admitted, requests are neither judged nor recorded, as `enforcement: audit`
    /// lets them through anyway.
    RequestsUnrecorded,
    /// Nothing may pass: to admit it would be to admit more than the policy does.
    Denied(Cause),
}

/// Why an endpoint is denied entirely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Some requests are not admitted, and there is no gateway to tell them apart.
    NarrowRequests,
    /// No request is admitted.
    NoRequests,
    /// A middleware that must not be skipped.
    Middleware(String),
}

impl Treatment {
    /// What this build does with an endpoint of a policy with these middlewares.
    #[must_use]
    pub fn of(endpoint: &Endpoint, middlewares: &[Middleware]) -> Self {
        let must_pass =
            |m: &&Middleware| m.on_error == OnError::FailClosed && m.may_cover(endpoint);
        if let Some(middleware) = middlewares.iter().find(must_pass) {
            return Self::Denied(Cause::Middleware(middleware.key.clone()));
        }
        match endpoint.requests() {
            None => Self::AddressLevel,
            Some(requests) if requests.admit_every_request() => Self::AddressLevel,
            Some(requests) if requests.enforcement == Some(Enforcement::Audit) => {
                Self::RequestsUnrecorded
            }
            Some(requests) if matches!(requests.base, Base::Nothing) => {
                Self::Denied(Cause::NoRequests)
            }
            Some(_) => Self::Denied(Cause::NarrowRequests),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NarrowRequests => f.write_str(
                "its rules admit only some requests, and this build has no HTTP gateway to tell \
                 them apart",
            ),
            Self::NoRequests => f.write_str(
                "it has a protocol but neither `access` nor `rules`, so no request is admitted",
            ),
            Self::Middleware(key) => {
                write!(f, "traffic must pass the middleware `{key}`, which this build cannot run")
            }
        }
    }
}
