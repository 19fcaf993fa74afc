//! Request rules and gateway options of an endpoint: checked although no gateway reads them yet,
//! so that a policy that loads today means the same when one does.

use super::{At, Scope};
use crate::policy::document::{EndpointSection, Protocol};
use crate::policy::network::{Base, GatewayOptions, RequestMatch, Requests};

pub(super) fn requests(scope: &mut Scope<'_>, section: &EndpointSection) -> Option<Requests> {
    let written = section.protocol.get();
    let inspected = written.is_some_and(|protocol| protocol.value != Protocol::Tcp);
    let rules_key = first_rules_key(section);
    if let Some((name, key)) = &rules_key
        && written.is_some()
        && !inspected
    {
        scope.error(
            key,
            format!("`{name}` is a rule over requests, and `protocol: tcp` has none"),
            "remove it, or write the protocol that is meant",
        );
        return None;
    }
    if !inspected && rules_key.is_none() {
        return None;
    }
    let base = base(scope, section);
    let deny = match section.deny_rules.get() {
        None => Vec::new(),
        Some(list) => {
            if list.value.is_empty() {
                scope.error(list, "`deny_rules` is empty", "add a rule or remove the key");
            }
            list.value.iter().map(|rule| request_match(scope, rule)).collect()
        }
    };
    if let Some(path) = section.path.get() {
        check_path(scope, path);
    }
    let protocol = written.map_or(Protocol::Rest, |protocol| protocol.value);
    Some(Requests {
        protocol,
        protocol_written: written.is_some(),
        enforcement: section.enforcement.get().map(|at| at.value),
        base,
        deny,
        path: section.path.get().map(|path| path.value.clone()),
    })
}

/// The first key that only makes sense for requests.
fn first_rules_key(section: &EndpointSection) -> Option<(&'static str, At<()>)> {
    [
        ("rules", section.rules.place()),
        ("access", section.access.place()),
        ("deny_rules", section.deny_rules.place()),
        ("path", section.path.place()),
    ]
    .into_iter()
    .find_map(|(name, place)| Some((name, place?)))
}

fn base(scope: &mut Scope<'_>, section: &EndpointSection) -> Base {
    match (section.access.get(), section.rules.get()) {
        (None, None) => Base::Nothing,
        (Some(access), None) => Base::Access(access.value),
        (access, Some(rules)) => {
            if access.is_some() {
                scope.error(
                    rules,
                    "`access` and `rules` exclude each other",
                    "keep `rules`, or the ready-made `access`",
                );
            }
            if rules.value.is_empty() {
                scope.error(
                    rules,
                    "`rules` is empty",
                    "add a rule, for example `- allow: { method: GET, path: \"/**\" }`",
                );
            }
            let rules = rules.value.iter();
            Base::Rules(rules.map(|rule| request_match(scope, &rule.value.allow)).collect())
        }
    }
}

fn request_match(scope: &mut Scope<'_>, rule: &At<RequestMatch>) -> RequestMatch {
    let RequestMatch { method, path, query, operation_type, operation_name, fields, tool, params } =
        &rule.value;
    let empty = method.get().is_none()
        && path.get().is_none()
        && query.get().is_none()
        && operation_type.get().is_none()
        && operation_name.get().is_none()
        && fields.get().is_none()
        && tool.get().is_none()
        && params.get().is_none();
    if empty {
        scope.error(rule, "the rule matches on nothing", "add at least `method` and `path`");
    }
    if let Some(method) = method.get() {
        let plain = |c: char| c.is_ascii_graphic();
        if method.value.is_empty() || !method.value.chars().all(plain) {
            let message = format!("{:?} is not a method", method.value);
            scope.error(method, message, "write for example GET, or \"*\"");
        }
    }
    if let Some(path) = path.get() {
        check_path(scope, path);
    }
    if let Some(kind) = operation_type.get() {
        let known = ["query", "mutation", "subscription", "*"];
        if !known.contains(&kind.value.as_str()) {
            let message = format!("{:?} is not an operation of GraphQL", kind.value);
            scope.error(kind, message, "write query, mutation, subscription or \"*\"");
        }
    }
    rule.value.clone()
}

fn check_path(scope: &mut Scope<'_>, path: &At<String>) {
    if !(path.value.starts_with('/') || path.value.starts_with('*')) {
        let message = format!("{:?} is not a request path", path.value);
        scope.error(path, message, "begin it with `/`, for example \"/v1/**\"");
    }
}

pub(super) fn gateway(scope: &mut Scope<'_>, section: &EndpointSection) -> GatewayOptions {
    if let (None, Some(key)) = (
        section.credential_signing.get(),
        section.signing_service.get().or(section.signing_region.get()),
    ) {
        scope.warning(
            key,
            "a signature's service or region without `credential_signing` has no effect",
            "add `credential_signing: sigv4`, or remove the key",
        );
    }
    let mcp = section.mcp.get().map(|mcp| &mcp.value);
    let json_rpc = section.json_rpc.get().map(|section| &section.value);
    GatewayOptions {
        tls: section.tls.get().map(|at| at.value),
        allow_encoded_slash: section.allow_encoded_slash.get().map(|at| at.value),
        websocket_credential_rewrite: section.websocket_credential_rewrite.get().map(|at| at.value),
        request_body_credential_rewrite: section
            .request_body_credential_rewrite
            .get()
            .map(|at| at.value),
        allow_uninspected_credentials: section
            .allow_uninspected_credentials
            .get()
            .map(|at| at.value),
        credential_signing: section.credential_signing.get().map(|at| at.value),
        signing_service: section.signing_service.get().map(|at| at.value.clone()),
        signing_region: section.signing_region.get().map(|at| at.value.clone()),
        credential_provider: section.credential_binding.get().map(|at| at.value.provider.clone()),
        persisted_queries: section.persisted_queries.get().map(|at| at.value),
        graphql_persisted_queries: section
            .graphql_persisted_queries
            .get()
            .map(|at| at.value.clone()),
        graphql_max_body_bytes: section.graphql_max_body_bytes.get().map(|at| at.value),
        json_rpc_max_body_bytes: json_rpc
            .and_then(|section| section.max_body_bytes.get())
            .map(|at| at.value),
        mcp_max_body_bytes: mcp.and_then(|mcp| mcp.max_body_bytes.get()).map(|at| at.value),
        mcp_strict_tool_names: mcp.and_then(|mcp| mcp.strict_tool_names.get()).map(|at| at.value),
        mcp_allow_all_known_mcp_methods: mcp
            .and_then(|mcp| mcp.allow_all_known_mcp_methods.get())
            .map(|at| at.value),
    }
}
