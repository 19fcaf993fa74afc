//! Where allowed names are looked up: the host's hosts file, then its name servers.
//! hickory-resolver chases aliases and turns to TCP when a datagram was too short.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clawbox_common::address::DNS_PORT;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use tracing::debug;

use super::hosts::{HOSTS, Hosts};
use super::lock;
use super::memory::{Found, Memory};

/// What one question may take in all, retries and aliases included.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest that the absence of a record is remembered, in seconds.
const LONGEST_ABSENCE: u32 = 60;
/// Aliases that one answer may chain.
const ALIASES: usize = 16;

/// The name servers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The host's configuration names none.
    #[error("no usable name server in /etc/resolv.conf: {0}; name one with `--dns ADDRESS[:PORT]`")]
    System(NetError),
    /// The list given is empty.
    #[error("no name server given; name at least one with `--dns ADDRESS[:PORT]`")]
    Empty,
    /// Not an address.
    #[error(
        "`{0}` is not the address of a name server; write `--dns 192.0.2.53`, `--dns 192.0.2.53:5353` or `--dns [2001:db8::53]:5353`"
    )]
    Address(String),
    /// The resolver refused the servers given.
    #[error("name servers cannot be used: {0}; check the addresses given with `--dns`")]
    Servers(NetError),
}

/// No answer: the servers failed, refused or were silent.
#[derive(Debug)]
pub(super) struct Failed;

/// Looks names up for any number of sandboxes; a clone shares servers and memory.
#[derive(Clone)]
pub struct Upstream {
    resolver: TokioResolver,
    hosts: Arc<Hosts>,
    memory: Arc<Mutex<Memory>>,
    patience: Duration,
}

impl Upstream {
    /// The name servers of the host's `/etc/resolv.conf`, as they are now.
    ///
    /// # Errors
    /// The file names no server.
    pub fn system() -> Result<Self, UpstreamError> {
        let mut builder = TokioResolver::builder_tokio().map_err(UpstreamError::System)?;
        limit(builder.options_mut());
        builder.build().map(Self::new).map_err(UpstreamError::System)
    }

    /// The name servers given.
    ///
    /// # Errors
    /// The list is empty.
    pub fn servers(servers: &[SocketAddr]) -> Result<Self, UpstreamError> {
        if servers.is_empty() {
            return Err(UpstreamError::Empty);
        }
        let servers = servers.iter().map(|server| {
            let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
            for connection in &mut connections {
                connection.port = server.port();
            }
            NameServerConfig::new(server.ip(), true, connections)
        });
        let config = ResolverConfig::from_name_servers(servers.collect());
        let provider = TokioRuntimeProvider::default();
        let mut builder = TokioResolver::builder_with_config(config, provider);
        limit(builder.options_mut());
        builder.build().map(Self::new).map_err(UpstreamError::Servers)
    }

    /// Reads the address of a name server, with port 53 unless it has its own.
    ///
    /// # Errors
    /// The text is no address, or the port is 0.
    pub fn parse_server(text: &str) -> Result<SocketAddr, UpstreamError> {
        let ip = text.parse().map(|ip: IpAddr| SocketAddr::new(ip, DNS_PORT));
        ip.or_else(|_| text.parse())
            .ok()
            .filter(|server| server.port() != 0)
            .ok_or_else(|| UpstreamError::Address(text.to_owned()))
    }

    fn new(resolver: TokioResolver) -> Self {
        Self {
            resolver,
            hosts: Arc::new(Hosts::new(HOSTS.into())),
            memory: Arc::default(),
            patience: PATIENCE,
        }
    }

    /// Reads another file in place of `/etc/hosts`.
    #[must_use]
    pub fn with_hosts_file(mut self, path: PathBuf) -> Self {
        self.hosts = Arc::new(Hosts::new(path));
        self
    }

    /// Waits another time than five seconds for an answer.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// What is known without asking anybody. A name in the hosts file is decided there, for
    /// both families, as it is for programs outside a sandbox.
    pub(super) fn known(&self, name: &Arc<str>, kind: RecordType) -> Option<Found> {
        let v6 = kind == RecordType::AAAA;
        if let Some(mut addresses) = self.hosts.find(name) {
            addresses.retain(|ip| ip.is_ipv6() == v6);
            return Some(if addresses.is_empty() {
                Found::Nothing { exists: true }
            } else {
                Found::Addresses { addresses: addresses.into(), ttl: 0 }
            });
        }
        lock(&self.memory).recall(name, v6)
    }

    /// Asks the name servers.
    pub(super) fn ask(
        &self,
        asked: Name,
        name: Arc<str>,
        kind: RecordType,
    ) -> impl Future<Output = Result<Found, Failed>> + Send + use<> {
        let this = self.clone();
        async move {
            let lookup = this.resolver.lookup(asked.clone(), kind);
            let (found, seconds) = match tokio::time::timeout(this.patience, lookup).await {
                Ok(Ok(lookup)) => read_answer(&asked, kind, lookup.answers()),
                Ok(Err(error)) => read_error(error)?,
                Err(_) => {
                    debug!(%name, "name servers did not answer in time");
                    return Err(Failed);
                }
            };
            lock(&this.memory).keep(&name, kind == RecordType::AAAA, &found, seconds);
            Ok(found)
        }
    }
}

fn limit(options: &mut ResolverOpts) {
    // Its own memory holds whole messages, which a hostile server can make large; ours does not.
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.timeout = options.timeout.min(Duration::from_secs(2));
    options.max_active_requests = 256;
}

/// The addresses that belong to the name, by way of its aliases, and for how long.
fn read_answer(asked: &Name, kind: RecordType, records: &[Record]) -> (Found, u32) {
    let mut names = vec![asked];
    let mut ttl = u32::MAX;
    for _ in 0..ALIASES {
        let before = names.len();
        for record in records {
            if let RData::CNAME(target) = &record.data
                && names.contains(&&record.name)
                && !names.contains(&&target.0)
                && names.len() <= ALIASES
            {
                names.push(&target.0);
                ttl = ttl.min(record.ttl);
            }
        }
        if names.len() == before {
            break;
        }
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    for record in records {
        if record.record_type() == kind
            && names.contains(&&record.name)
            && let Some(ip) = record.data.ip_addr()
        {
            addresses.push(ip);
            ttl = ttl.min(record.ttl);
        }
    }
    if addresses.is_empty() {
        return (Found::Nothing { exists: true }, 0);
    }
    let addresses = addresses.into();
    (Found::Addresses { addresses, ttl }, ttl)
}

fn read_error(error: NetError) -> Result<(Found, u32), Failed> {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none))
            if matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain) =>
        {
            let exists = none.response_code == ResponseCode::NoError;
            let seconds = none.negative_ttl.unwrap_or(0).min(LONGEST_ABSENCE);
            Ok((Found::Nothing { exists }, seconds))
        }
        error => {
            debug!(%error, "name servers failed");
            Err(Failed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_an_address_with_or_without_a_port() {
        for (text, want) in [
            ("192.0.2.53", Some("192.0.2.53:53")),
            ("192.0.2.53:5353", Some("192.0.2.53:5353")),
            ("2001:db8::53", Some("[2001:db8::53]:53")),
            ("[2001:db8::53]:5353", Some("[2001:db8::53]:5353")),
            ("192.0.2.53:0", None),
            ("dns.test", None),
            ("", None),
        ] {
            let server = Upstream::parse_server(text).ok();
            assert_eq!(server, want.map(|want| want.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn an_empty_list_of_servers_says_what_to_write() {
        let error = Upstream::servers(&[]).err().unwrap();
        assert!(error.to_string().contains("--dns"));
    }
}
