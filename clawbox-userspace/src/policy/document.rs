//! The three kinds of policy file exactly as they are written: policy, preset fragment, blueprint.
//! Raw serde types; what they mean, and whether they mean anything, is decided in `model`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::request_document::{RequestMatch, RuleSection};
use super::yaml::{At, Entries, Given};

/// A policy: what one sandbox may do. Everything else is denied.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "clawbox policy")]
pub struct PolicyDocument {
    /// Version of the language: 1.
    #[schemars(extend("const" = 1))]
    pub version: At<u64>,
    /// Which paths the sandbox may read and write.
    #[serde(default)]
    pub filesystem_policy: Given<FilesystemSection>,
    /// What happens when a layer is missing.
    #[serde(default)]
    pub landlock: Given<LandlockSection>,
    /// Who the sandboxed process runs as.
    #[serde(default)]
    pub process: Given<ProcessSection>,
    /// Which programs reach which endpoints.
    #[serde(default)]
    pub network_policies: Given<Entries<At<NetworkSection>>>,
    /// Processing of inspected traffic.
    #[serde(default)]
    pub network_middlewares: Given<Entries<At<MiddlewareSection>>>,
    /// Which files may be executed.
    #[serde(default)]
    pub execution: Given<At<ExecutionSection>>,
    /// Which Unix sockets may be connected to.
    #[serde(default)]
    pub unix_sockets: Given<At<UnixSocketsSection>>,
    /// Which ports may be listened on.
    #[serde(default)]
    pub listen: Given<At<ListenSection>>,
    /// Bounds on resources.
    #[serde(default)]
    pub limits: Given<At<LimitsSection>>,
    /// What happens to a connection that no rule names.
    #[serde(default)]
    pub unknown_endpoints: Given<At<UnknownEndpoints>>,
    /// Whether denied operations fail or are only recorded.
    #[serde(default)]
    pub mode: Given<At<Mode>>,
}

/// A preset: a fragment that is merged into a policy by key.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FragmentDocument {
    /// What the fragment is called.
    pub preset: PresetSection,
    /// What it adds.
    pub network_policies: Entries<At<NetworkSection>>,
}

/// Name of a preset.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PresetSection {
    /// Its name.
    pub name: String,
    /// What it is for.
    #[serde(default)]
    pub description: String,
}

/// `filesystem_policy`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilesystemSection {
    /// Whether the start directory may be written.
    #[serde(default)]
    pub include_workdir: Given<At<bool>>,
    /// Paths below which everything may be read, listed and executed.
    #[serde(default)]
    pub read_only: Given<Vec<At<String>>>,
    /// Paths below which everything is allowed.
    #[serde(default)]
    pub read_write: Given<Vec<At<String>>>,
    /// Paths, globs and groups (`group:NAME`) that stay closed below an allowed path.
    #[serde(default)]
    pub deny: Given<Vec<At<String>>>,
    /// Rules for single binaries.
    #[serde(default)]
    pub rules: Given<Vec<At<FileRuleSection>>>,
}

/// `filesystem_policy.rules[]`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileRuleSection {
    /// For whom.
    pub binaries: Vec<At<BinarySection>>,
    /// What they may read.
    #[serde(default)]
    pub read_only: Given<Vec<At<String>>>,
    /// What they may write.
    #[serde(default)]
    pub read_write: Given<Vec<At<String>>>,
}

/// `landlock`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LandlockSection {
    /// Whether a run goes on when this machine cannot enforce everything.
    #[serde(default)]
    pub compatibility: Given<At<Compatibility>>,
}

/// Whether a run goes on when this machine cannot enforce everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compatibility {
    /// Go on and say what is not enforced.
    BestEffort,
    /// Refuse to run.
    HardRequirement,
}

/// `process`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProcessSection {
    /// User name or number; never root.
    #[serde(default)]
    #[schemars(extend("type" = ["string", "integer"]))]
    pub run_as_user: Given<At<String>>,
    /// Group name or number; never root.
    #[serde(default)]
    #[schemars(extend("type" = ["string", "integer"]))]
    pub run_as_group: Given<At<String>>,
}

/// `network_policies.<key>`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSection {
    /// Name in the audit trail; the key where absent.
    #[serde(default)]
    pub name: Given<At<String>>,
    /// Destinations.
    #[serde(default)]
    pub endpoints: Given<Vec<At<EndpointSection>>>,
    /// Programs that may reach them; absent or empty admits nobody.
    #[serde(default)]
    pub binaries: Given<Vec<At<BinarySection>>>,
}

/// `binaries[]`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BinarySection {
    /// Absolute path, or a glob: `*` inside a component, `**` across. `/**` is every program.
    pub path: At<String>,
    /// Whether descendants of the program are admitted too.
    #[serde(default, rename = "match")]
    pub matching: Given<At<Matching>>,
    /// Deprecated in the base language; without effect.
    #[serde(default)]
    pub harness: Given<At<bool>>,
}

/// Whom a binary entry admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Matching {
    /// The program and everything it starts.
    Tree,
    /// The program alone.
    #[serde(rename = "self")]
    Own,
}

/// `network_policies.<key>.endpoints[]`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EndpointSection {
    /// Hosts and ports from the settings of a client of this machine, filled in by the command line.
    #[serde(default)]
    pub host_from: Given<At<HostFrom>>,
    /// Name, address, or wildcard such as `*.example.com`.
    #[serde(default)]
    pub host: Given<At<String>>,
    /// One port.
    #[serde(default)]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Given<At<u64>>,
    /// Several ports.
    #[serde(default)]
    pub ports: Given<At<Vec<At<u64>>>>,
    /// Application protocol; absent or `tcp` is the address level.
    #[serde(default)]
    pub protocol: Given<At<Protocol>>,
    /// Handling of TLS on inspected endpoints.
    #[serde(default)]
    pub tls: Given<At<Tls>>,
    /// Whether request rules are enforced or only recorded.
    #[serde(default)]
    pub enforcement: Given<At<Enforcement>>,
    /// A ready-made set of request rules.
    #[serde(default)]
    pub access: Given<At<Access>>,
    /// Requests that are admitted.
    #[serde(default)]
    pub rules: Given<At<Vec<At<RuleSection>>>>,
    /// Requests that are refused whatever `rules` or `access` say.
    #[serde(default)]
    pub deny_rules: Given<At<Vec<At<RequestMatch>>>>,
    /// Request paths that this endpoint is about.
    #[serde(default)]
    pub path: Given<At<String>>,
    /// Addresses and ranges that the host may resolve to; without a host, that may be dialled.
    #[serde(default)]
    pub allowed_ips: Given<At<Vec<At<String>>>>,
    /// Whether `%2F` in a request path is accepted.
    #[serde(default)]
    pub allow_encoded_slash: Given<At<bool>>,
    /// Placeholders are replaced in WebSocket messages.
    #[serde(default)]
    pub websocket_credential_rewrite: Given<At<bool>>,
    /// Placeholders are replaced in request bodies.
    #[serde(default)]
    pub request_body_credential_rewrite: Given<At<bool>>,
    /// Credentials may be used without inspection.
    #[serde(default)]
    pub allow_uninspected_credentials: Given<At<bool>>,
    /// Requests are signed.
    #[serde(default)]
    pub credential_signing: Given<At<Signing>>,
    /// Service of the signature.
    #[serde(default)]
    pub signing_service: Given<At<String>>,
    /// Region of the signature.
    #[serde(default)]
    pub signing_region: Given<At<String>>,
    /// Whose credentials are used.
    #[serde(default)]
    pub credential_binding: Given<At<CredentialBinding>>,
    /// Handling of persisted GraphQL queries.
    #[serde(default)]
    pub persisted_queries: Given<At<PersistedQueries>>,
    /// Registered GraphQL queries.
    #[serde(default)]
    pub graphql_persisted_queries: Given<At<Value>>,
    /// Bound on GraphQL request bodies.
    #[serde(default)]
    pub graphql_max_body_bytes: Given<At<u64>>,
    /// JSON-RPC options.
    #[serde(default)]
    pub json_rpc: Given<At<JsonRpcSection>>,
    /// MCP options.
    #[serde(default)]
    pub mcp: Given<At<McpSection>>,
    /// Transport; absent is TCP.
    #[serde(default)]
    pub transport: Given<At<Transport>>,
    /// Opens a port on the host's own loopback.
    #[serde(default)]
    pub host_loopback: Given<At<bool>>,
    /// The TLS ClientHello has to name the host.
    #[serde(default)]
    pub sni: Given<At<Sni>>,
    /// Whether a ClientHello may hide another name behind the one that is verified; absent is refuse.
    #[serde(default)]
    pub ech: Given<At<Ech>>,
}

/// Whose settings name the hosts of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostFrom {
    /// pip's indexes.
    Pip,
    /// npm's registries.
    Npm,
    /// cargo's registries.
    Cargo,
    /// apt's sources.
    Apt,
}

/// Application protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Address level.
    Tcp,
    /// HTTP.
    Rest,
    /// WebSocket.
    Websocket,
    /// GraphQL over HTTP.
    Graphql,
    /// Model Context Protocol.
    Mcp,
    /// JSON-RPC.
    JsonRpc,
}

/// Handling of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tls {
    /// Not inspected.
    Skip,
    /// Old spelling of the default.
    Terminate,
    /// Old spelling of the default.
    Passthrough,
}

/// Whether request rules are enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Enforcement {
    /// A request outside the rules fails.
    Enforce,
    /// A request outside the rules is recorded.
    Audit,
}

/// A ready-made set of request rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// GET, HEAD, OPTIONS.
    ReadOnly,
    /// Those, POST, PUT and PATCH.
    ReadWrite,
    /// Every request.
    Full,
}

/// Signature of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Signing {
    /// AWS Signature Version 4.
    #[serde(rename = "sigv4")]
    Sigv4,
    /// With the body.
    #[serde(rename = "sigv4:body")]
    Sigv4Body,
    /// Without the body.
    #[serde(rename = "sigv4:no_body")]
    Sigv4NoBody,
}

/// `credential_binding`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CredentialBinding {
    /// Name of the provider.
    pub provider: String,
}

/// Handling of persisted GraphQL queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PersistedQueries {
    /// Refused.
    Deny,
    /// Registered ones are admitted.
    AllowRegistered,
}

/// `json_rpc`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonRpcSection {
    /// Bound on request bodies.
    #[serde(default)]
    pub max_body_bytes: Given<At<u64>>,
}

/// `mcp`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct McpSection {
    /// Bound on request bodies.
    #[serde(default)]
    pub max_body_bytes: Given<At<u64>>,
    /// Tool names are compared strictly.
    #[serde(default)]
    pub strict_tool_names: Given<At<bool>>,
    /// Every method of the protocol is admitted.
    #[serde(default)]
    pub allow_all_known_mcp_methods: Given<At<bool>>,
}

/// Transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
    /// TCP and UDP.
    Any,
    /// Echo requests (ping).
    Icmp,
}

/// Check of the TLS server name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sni {
    /// The ClientHello has to name the host.
    Verify,
}

/// Handling of an encrypted ClientHello, or of what is made to look like one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ech {
    /// The connection ends.
    Refuse,
    /// It goes on if the name that can be read is the host's.
    Allow,
}

/// `network_middlewares.<key>`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MiddlewareSection {
    /// Name of a built-in middleware.
    pub middleware: At<String>,
    /// Place in the chain; no two may share one.
    #[serde(default)]
    pub order: Given<At<i64>>,
    /// Its own configuration.
    #[serde(default)]
    pub config: Given<At<Value>>,
    /// What happens when it fails.
    #[serde(default)]
    pub on_error: Given<At<OnError>>,
    /// Which endpoints it covers.
    pub endpoints: At<MiddlewareEndpoints>,
}

/// What happens when a middleware fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The request fails.
    FailClosed,
    /// The request goes on.
    FailOpen,
}

/// `network_middlewares.<key>.endpoints`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MiddlewareEndpoints {
    /// Host patterns; `**` is every host.
    pub include: Vec<At<String>>,
    /// Exceptions.
    #[serde(default)]
    pub exclude: Given<Vec<At<String>>>,
}

/// `execution`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecutionSection {
    /// Whether files that the sandbox can write may be executed.
    #[serde(default)]
    pub from_writable: Given<At<FromWritable>>,
    /// The only binaries that may be executed; absent is every readable one.
    #[serde(default)]
    pub allow: Given<Vec<At<String>>>,
}

/// Whether files that the sandbox can write may be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FromWritable {
    /// No.
    Deny,
    /// Yes.
    Allow,
}

/// `unix_sockets`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnixSocketsSection {
    /// Sockets outside `read_write` that may be connected to.
    #[serde(default)]
    pub allow: Given<Vec<At<String>>>,
}

/// `listen`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenSection {
    /// Ports.
    pub ports: Vec<At<u64>>,
    /// Local addresses; absent is 127.0.0.1 and ::1.
    #[serde(default)]
    pub addresses: Given<Vec<At<String>>>,
    /// Transport; absent is TCP.
    #[serde(default)]
    pub transport: Given<At<Transport>>,
}

/// `limits`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsSection {
    /// Processes and threads.
    #[serde(default)]
    pub pids: Given<At<u64>>,
    /// Bytes, as in `4GiB`.
    #[serde(default)]
    #[schemars(extend("type" = ["string", "number"]))]
    pub memory: Given<At<String>>,
    /// Share of one core, as in `200%`.
    #[serde(default)]
    #[schemars(extend("type" = ["string", "number"]))]
    pub cpu: Given<At<String>>,
}

/// What happens to a connection that no rule names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownEndpoints {
    /// It fails.
    Deny,
    /// It is held and put before an operator.
    Ask,
}

/// Whether denied operations fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// They fail.
    Enforce,
    /// They are recorded and go on.
    Audit,
}

/// The JSON Schema of a policy or a preset, for editors.
#[must_use]
pub fn schema() -> Value {
    #[derive(JsonSchema)]
    #[serde(untagged)]
    #[schemars(title = "clawbox policy or preset")]
    #[expect(dead_code, reason = "exists for its schema alone")]
    enum PolicyOrPreset {
        Policy(Box<PolicyDocument>),
        Preset(FragmentDocument),
    }
    schemars::schema_for!(PolicyOrPreset).to_value()
}
