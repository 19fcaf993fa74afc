//! Request rules of an endpoint as they are written: method, path, query, GraphQL, MCP, JSON-RPC.
//! Raw serde types, apart from `document` because only the gateway will read them.

use schemars::JsonSchema;
use serde::Deserialize;

use super::yaml::{At, Entries, Given};

/// `rules[]`
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleSection {
    /// Requests that are admitted.
    pub allow: At<RequestMatch>,
}

/// What a request has to look like. A key that is absent matches everything.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestMatch {
    /// HTTP, MCP or JSON-RPC method; `*` is every one.
    #[serde(default)]
    pub method: Given<At<String>>,
    /// Glob over the request path; here `*` crosses `/`.
    #[serde(default)]
    pub path: Given<At<String>>,
    /// Globs over query parameters.
    #[serde(default)]
    pub query: Given<At<Entries<ValueMatch>>>,
    /// GraphQL: `query`, `mutation`, `subscription`.
    #[serde(default)]
    pub operation_type: Given<At<String>>,
    /// GraphQL: glob over the operation's name.
    #[serde(default)]
    pub operation_name: Given<At<String>>,
    /// GraphQL: globs over the root fields.
    #[serde(default)]
    pub fields: Given<At<Vec<At<String>>>>,
    /// MCP: glob over the tool's name.
    #[serde(default)]
    pub tool: Given<At<String>>,
    /// MCP, JSON-RPC: globs over parameters.
    #[serde(default)]
    pub params: Given<At<Entries<ValueMatch>>>,
}

/// One glob, or several of which any may match.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a glob, or `any` with a list of globs")]
pub enum ValueMatch {
    /// One glob.
    Glob(String),
    /// Any of these.
    Any(AnyOf),
}

/// `{ any: [...] }`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AnyOf {
    /// Globs.
    pub any: Vec<String>,
}
