//! Documents to the model: every value is checked here, once, and every mistake is reported.
//! One file per section; a section with a mistake yields a finding and leaves out the value.

mod endpoint;
mod filesystem;
mod middleware;
mod network;
mod request;

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use clawbox_common::address::Range;

use super::address::range_of;
use super::diagnostic::{Diagnostic, Findings, Origin};
use super::document::{
    ExecutionSection, LimitsSection, ListenSection, PolicyDocument, ProcessSection, Transport,
};
use super::model::{
    Account, Execution, Filesystem, FromWritable, Limits, Listen, Located, Policy, Process,
    parse_cpu, parse_size,
};
use super::path::SandboxPath;
use super::preset::Contribution;
use super::yaml::{At, Given};

/// Resolves a policy without its network part, then the network parts of all files.
pub(super) fn policy(
    file: &Arc<str>,
    document: &PolicyDocument,
    network: &[Contribution],
    findings: &mut Findings,
) -> Policy {
    let mut scope = Scope { file, findings };
    if document.version.value != 1 {
        scope.error(
            &document.version,
            format!("version {} is not known", document.version.value),
            "write `version: 1`",
        );
    }
    let filesystem = match document.filesystem_policy.get() {
        Some(section) => filesystem::filesystem(&mut scope, section),
        None => Filesystem::default(),
    };
    let compatibility = document
        .landlock
        .get()
        .map(|section| &section.compatibility)
        .map_or(super::document::Compatibility::BestEffort, |given| {
            given.or(super::document::Compatibility::BestEffort)
        });
    let mut resolved = Policy {
        compatibility,
        filesystem,
        process: document
            .process
            .get()
            .map_or_else(Process::default, |section| scope.process(section)),
        middlewares: middleware::middlewares(&mut scope, &document.network_middlewares),
        execution: scope.located(&document.execution, Scope::execution),
        unix_sockets: scope.located(&document.unix_sockets, |scope, section| {
            let sockets = scope.paths(section.allow.get());
            Some(sockets.into_iter().map(|path| path.value).collect())
        }),
        listen: scope.located(&document.listen, Scope::listen),
        limits: scope.located(&document.limits, Scope::limits),
        unknown_endpoints: scope.located(&document.unknown_endpoints, |_, value| Some(*value)),
        mode: scope.located(&document.mode, |_, value| Some(*value)),
        ..empty(file)
    };
    resolved.network = network::contributions(network, findings);
    resolved
}

/// Resolves fragments alone.
pub(super) fn fragments(
    file: &Arc<str>,
    network: &[Contribution],
    findings: &mut Findings,
) -> Policy {
    Policy { network: network::contributions(network, findings), ..empty(file) }
}

fn empty(file: &Arc<str>) -> Policy {
    Policy {
        origin: Origin::file(file),
        filesystem: Filesystem::default(),
        compatibility: super::document::Compatibility::BestEffort,
        process: Process::default(),
        network: Vec::new(),
        middlewares: Vec::new(),
        execution: None,
        unix_sockets: None,
        listen: None,
        limits: None,
        unknown_endpoints: None,
        mode: None,
    }
}

/// The file that is being resolved and what was found in it.
struct Scope<'a> {
    file: &'a Arc<str>,
    findings: &'a mut Findings,
}

impl Scope<'_> {
    fn error<T>(&mut self, at: &At<T>, message: impl Into<String>, remedy: impl Into<String>) {
        self.findings.push(Diagnostic::error(at.origin(self.file), message, remedy));
    }

    fn warning<T>(&mut self, at: &At<T>, message: impl Into<String>, remedy: impl Into<String>) {
        self.findings.push(Diagnostic::warning(at.origin(self.file), message, remedy));
    }

    fn note<T>(&mut self, at: &At<T>, message: impl Into<String>) {
        self.findings.push(Diagnostic::note(at.origin(self.file), message));
    }

    fn located<T, V>(
        &mut self,
        given: &Given<At<T>>,
        resolve: impl FnOnce(&mut Self, &T) -> Option<V>,
    ) -> Option<Located<V>> {
        let at = given.get()?;
        let value = resolve(self, &at.value)?;
        Some(Located { value, origin: at.origin(self.file) })
    }

    fn paths(&mut self, written: Option<&Vec<At<String>>>) -> Vec<Located<SandboxPath>> {
        let mut paths = Vec::new();
        for at in written.into_iter().flatten() {
            match SandboxPath::parse(&at.value) {
                Ok(value) => paths.push(Located { value, origin: at.origin(self.file) }),
                Err(error) => self.error(at, error.to_string(), error.remedy),
            }
        }
        paths
    }

    fn port(&mut self, at: &At<u64>) -> Option<NonZeroU16> {
        let port = u16::try_from(at.value).ok().and_then(NonZeroU16::new);
        if port.is_none() {
            self.error(at, format!("port {} is not a port", at.value), "write 1 to 65535");
        }
        port
    }

    fn ports(&mut self, written: &[At<u64>]) -> Vec<NonZeroU16> {
        let mut ports: Vec<_> = written.iter().filter_map(|at| self.port(at)).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    fn process(&mut self, section: &ProcessSection) -> Process {
        let mut account = |given: &Given<At<String>>| {
            let at = given.get()?;
            match Account::parse(&at.value) {
                Ok(value) => Some(Located { value, origin: at.origin(self.file) }),
                Err(message) => {
                    self.error(
                        at,
                        message,
                        "write the name or number of an unprivileged account, 1 to 4294967294",
                    );
                    None
                }
            }
        };
        Process { user: account(&section.run_as_user), group: account(&section.run_as_group) }
    }

    fn execution(&mut self, section: &ExecutionSection) -> Option<Execution> {
        let allow = section.allow.get().map(|allow| {
            let mut patterns = Vec::new();
            for at in allow {
                match super::binary_pattern::BinaryPattern::parse(&at.value) {
                    Ok(value) => patterns.push(Located { value, origin: at.origin(self.file) }),
                    Err(error) => self.error(at, error.to_string(), error.remedy),
                }
            }
            patterns
        });
        Some(Execution { from_writable: section.from_writable.or(FromWritable::Deny), allow })
    }

    fn listen(&mut self, section: &ListenSection) -> Option<Listen> {
        let ports = self.ports(&section.ports);
        let mut addresses = Vec::new();
        match section.addresses.get() {
            None => {
                addresses.push(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
                addresses.push(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST));
            }
            Some(written) => {
                for at in written {
                    addresses.extend(self.listen_address(at));
                }
            }
        }
        if let Some(written) = section.transport.get()
            && written.value == Transport::Icmp
        {
            self.error(
                written,
                "nobody listens for echo requests but the kernel",
                "remove `transport`",
            );
        }
        addresses.sort_unstable();
        addresses.dedup();
        (!ports.is_empty() && !addresses.is_empty()).then_some(Listen {
            ports,
            addresses,
            transport: section.transport.or(Transport::Tcp),
        })
    }

    fn listen_address(&mut self, at: &At<String>) -> Option<IpAddr> {
        let Ok(address) = at.value.parse::<IpAddr>() else {
            self.error(
                at,
                format!("{:?} is not an address", at.value),
                "write an IP address of this machine, for example 127.0.0.1",
            );
            return None;
        };
        match range_of(address) {
            Range::Multicast | Range::Reserved | Range::Synthetic => {
                self.error(
                    at,
                    format!("{address} cannot be listened on"),
                    "write an IP address of this machine, for example 127.0.0.1",
                );
                None
            }
            Range::Unspecified => {
                self.warning(
                    at,
                    format!("{address} listens on every address of the machine"),
                    "name the one address that is meant, for example 127.0.0.1",
                );
                Some(address)
            }
            _ => Some(address),
        }
    }

    fn limits(&mut self, section: &LimitsSection) -> Option<Limits> {
        let pids = section.pids.get().and_then(|at| {
            if at.value == 0 {
                self.error(at, "0 processes cannot run anything", "write 1 or more");
                return None;
            }
            Some(at.value)
        });
        let memory = section.memory.get().and_then(|at| {
            let bytes = parse_size(&at.value);
            if bytes.is_none() {
                let message = format!("{:?} is not an amount of memory", at.value);
                self.error(at, message, "write for example `4GiB`");
            }
            bytes
        });
        let cpu_percent = section.cpu.get().and_then(|at| {
            let percent = parse_cpu(&at.value);
            if percent.is_none() {
                let message = format!("{:?} is not a share of cores", at.value);
                self.error(at, message, "write for example `200%` for two cores");
            }
            percent
        });
        Some(Limits { pids, memory, cpu_percent })
    }
}
