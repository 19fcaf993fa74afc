//! Destinations: each endpoint of each network policy, middlewares, and ports to listen on.

use super::{HostFacts, Layer, Report, Status};
use crate::policy::diagnostic::{Diagnostic, Origin};
use crate::policy::model::{Policy, Transport};
use crate::policy::network::{
    Cause, Endpoint, FirstSaid, Host, Middleware, NetworkPolicy, OnError, Treatment,
};

const NO_HOOKS: &str =
    "this machine has no socket hooks for cgroups; clawbox needs Linux 6.1 and cgroup v2";

pub(super) fn network_policy(
    report: &mut Report,
    policy: &Policy,
    network: &NetworkPolicy,
    facts: &HostFacts,
) {
    binaries(report, network, facts);
    for endpoint in &network.endpoints {
        let part =
            format!("network_policies.{}.endpoints[{}] {endpoint}", network.key, endpoint.index());
        remarks(report, endpoint);
        let treatment = Treatment::of(endpoint, &policy.middlewares);
        endpoint_part(report, part, endpoint, &treatment, facts);
    }
}

/// Who enforces an endpoint that is no ping.
fn layer(endpoint: &Endpoint) -> Layer {
    match endpoint.host() {
        Host::Name(_) if endpoint.first_said() == FirstSaid::Anything => {
            Layer::CgroupHooksAndResolver
        }
        Host::Name(_) => Layer::CgroupHooksResolverAndAgent,
        _ => Layer::CgroupHooks,
    }
}

fn endpoint_part(
    report: &mut Report,
    part: String,
    endpoint: &Endpoint,
    treatment: &Treatment,
    facts: &HostFacts,
) {
    let origin = endpoint.origin();
    let layer = layer(endpoint);
    if !facts.cgroup_hooks {
        return report.not(origin, part, NO_HOOKS);
    }
    let is_ping = endpoint.transport() == Transport::Icmp;
    if is_ping && !facts.bpf_lsm {
        let detail =
            "denied entirely: no other hook than BPF LSM's sees an echo request".to_owned();
        return report.add(origin, part, Layer::CgroupHooks, Status::Denied, Some(detail));
    }
    let layer = if is_ping { Layer::Lsm } else { layer };
    match treatment {
        // No request is admitted by the policy, and none is by us.
        Treatment::Denied(Cause::NoRequests) => report.add(
            origin,
            part,
            layer,
            Status::Full,
            Some(format!("denied entirely: {}", Cause::NoRequests)),
        ),
        Treatment::Denied(cause) => report.add(
            origin,
            part,
            layer,
            Status::Denied,
            Some(format!("denied entirely: {cause}")),
        ),
        Treatment::RequestsUnrecorded => report.add(
            origin,
            part,
            layer,
            Status::Partly,
            Some(
                "connections are ruled; requests outside the rules are let through, as \
                 `enforcement: audit` says, but this build does not record them"
                    .to_owned(),
            ),
        ),
        Treatment::AddressLevel => {
            let promises = endpoint.gateway().promises();
            if promises.is_empty() {
                return report.full(origin, part, layer);
            }
            report.add(
                origin,
                part,
                layer,
                Status::Partly,
                Some(format!(
                    "connections are ruled; {} needs the HTTP gateway, which this build does not \
                     have",
                    promises.join(", ")
                )),
            );
        }
    }
}

/// What an author may not expect of an endpoint.
fn remarks(report: &mut Report, endpoint: &Endpoint) {
    let note = |message: &str| Diagnostic::note(endpoint.origin().clone(), message);
    if *endpoint.host() == Host::Ranges {
        report.warnings.push(note(
            "an endpoint without a host admits addresses alone; no name is resolved for it",
        ));
    }
    if endpoint.first_said() == FirstSaid::OuterName {
        report.warnings.push(note(
            "`ech: allow` lets a client hide the host that it speaks to behind the one that is \
             verified; which it is, the server alone can read",
        ));
    }
    let Some(requests) = endpoint.requests() else {
        return;
    };
    if !requests.protocol_written {
        report.warnings.push(note("request rules without `protocol` are read as `protocol: rest`"));
    }
    if requests.enforcement.is_none() && !requests.admit_every_request() {
        report.warnings.push(note(
            "without `enforcement` the rules are enforced; elsewhere the default is `audit`",
        ));
    }
}

fn binaries(report: &mut Report, network: &NetworkPolicy, facts: &HostFacts) {
    for binary in &network.binaries {
        let path = &binary.pattern;
        let origin = binary.origin.clone();
        if path.is_anybody() {
            report.warnings.push(Diagnostic::note(
                origin,
                format!("`/**` admits every program to `{}`", network.key),
            ));
            continue;
        }
        if facts.binaries.get(path.as_str()).copied().unwrap_or(0) > 0 {
            continue;
        }
        let message = if path.exact().is_some() {
            format!("{path} does not exist here and admits nobody")
        } else {
            format!("{path} matches nothing here and admits nobody")
        };
        report.warnings.push(Diagnostic::warning(
            origin,
            message,
            "install the program, or write the path it has here",
        ));
    }
}

pub(super) fn middlewares(report: &mut Report, policy: &Policy) {
    for middleware in &policy.middlewares {
        let Middleware { key, on_error, origin, .. } = middleware;
        let part = format!("network_middlewares.{key}");
        match on_error {
            OnError::FailOpen => report.not(
                origin,
                part,
                "needs the HTTP gateway, which this build does not have; traffic passes \
                 unprocessed, as `on_error: fail_open` says",
            ),
            OnError::FailClosed => report.add(
                origin,
                part,
                Layer::CgroupHooks,
                Status::Denied,
                Some(
                    "needs the HTTP gateway, which this build does not have; the endpoints it \
                     covers are denied, as `on_error: fail_closed` says"
                        .to_owned(),
                ),
            ),
        }
    }
}

pub(super) fn listen(report: &mut Report, policy: &Policy, facts: &HostFacts) {
    let Some(listen) = &policy.listen else { return };
    for address in listen.value.addresses() {
        let ports: Vec<String> = listen.value.ports().iter().map(u16_text).collect();
        let part = format!("listen {address} {}", ports.join(","));
        hooked(report, &listen.origin, part, Layer::CgroupHooks, facts);
    }
}

fn u16_text(port: &std::num::NonZeroU16) -> String {
    port.to_string()
}

/// A part that the socket hooks enforce alone.
pub(super) fn hooked(
    report: &mut Report,
    origin: &Origin,
    part: String,
    layer: Layer,
    facts: &HostFacts,
) {
    if facts.cgroup_hooks {
        report.full(origin, part, layer);
    } else {
        report.not(origin, part, NO_HOOKS);
    }
}
