//! Hosts whose addresses are other hosts' too: whoever may reach one may reach all that are there, unless
//! the name that is said on the connection is looked at.

use clawbox_common::rule::TCP;

use crate::judge::samples::transports;
use crate::policy::Diagnostic;
use crate::policy::model::Policy;
use crate::policy::network::{Endpoint, FirstSaid, Host};

/// Names that are served by networks for many; what is below them too. Registries of packages are not here:
/// presets take those from a machine's settings, and verify them whatever they are.
const SHARED: [&str; 39] = [
    // Amazon
    "cloudfront.net",
    "amazonaws.com",
    "huggingface.co",
    "hf.co",
    "slack.com",
    // Cloudflare
    "workers.dev",
    "pages.dev",
    "cloudflare.com",
    "discord.com",
    "discordapp.com",
    "openai.com",
    "chatgpt.com",
    "anthropic.com",
    "claude.ai",
    "openrouter.ai",
    "mistral.ai",
    "cloudflare.docker.com",
    "gitlab.com",
    "brave.com",
    // Fastly
    "fastly.net",
    "githubusercontent.com",
    "githubassets.com",
    "github.io",
    "rust-lang.org",
    // Google
    "googleapis.com",
    "google.com",
    "googleusercontent.com",
    "gstatic.com",
    "appspot.com",
    "run.app",
    "web.app",
    // Microsoft, Akamai and others
    "azureedge.net",
    "azurefd.net",
    "blob.core.windows.net",
    "akamai.net",
    "akamaiedge.net",
    "vercel.app",
    "netlify.app",
    "herokuapp.com",
];

/// Ports on which a name is said first.
const NAMED: [u16; 2] = [80, 443];

/// Endpoints at shared addresses without `sni: verify`.
pub(super) fn hosts(policy: &Policy) -> Vec<Diagnostic> {
    let endpoints = policy.network.iter().flat_map(|network| &network.endpoints);
    let shared = endpoints.filter(|endpoint| is_open(endpoint));
    shared
        .map(|endpoint| {
            Diagnostic::warning(
                endpoint.origin().clone(),
                format!("the addresses of `{}` are many hosts'", endpoint.host_text()),
                "write `sni: verify`, so that no other host can be reached there",
            )
        })
        .collect()
}

/// Whether a name's addresses are many hosts'.
#[must_use]
pub fn is_shared(name: &str) -> bool {
    SHARED.iter().any(|shared| {
        name.strip_suffix(shared).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

fn is_open(endpoint: &Endpoint) -> bool {
    let Host::Name(pattern) = endpoint.host() else { return false };
    let name = pattern.as_str().trim_start_matches(['*', '.']);
    let is_shared = is_shared(name);
    let is_named = endpoint.ports().iter().any(|port| NAMED.contains(&port.get()));
    is_shared
        && is_named
        && endpoint.first_said() == FirstSaid::Anything
        && transports(endpoint).contains(&TCP)
}
