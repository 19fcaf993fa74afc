//! Rules that are wider than anybody means: every program, every host of a registry, whole homes.

use std::path::Path;

use crate::policy::Diagnostic;
use crate::policy::model::{Located, Policy};
use crate::policy::network::{Endpoint, Host};
use crate::policy::path::SandboxPath;

/// Below these names everybody can have one.
const REGISTRIES: [&str; 24] = [
    "co.uk",
    "org.uk",
    "com.au",
    "co.jp",
    "com.br",
    "co.in",
    "github.io",
    "gitlab.io",
    "pages.dev",
    "workers.dev",
    "vercel.app",
    "netlify.app",
    "web.app",
    "firebaseapp.com",
    "run.app",
    "appspot.com",
    "herokuapp.com",
    "cloudfront.net",
    "amazonaws.com",
    "azurewebsites.net",
    "blob.core.windows.net",
    "fastly.net",
    "ngrok.io",
    "ngrok-free.app",
];

/// The shortest prefixes of ranges that are not too wide.
const SHORTEST: (u8, u8) = (8, 32);

/// Networks: programs, hosts and ranges.
pub(super) fn network(policy: &Policy) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for network in &policy.network {
        if let Some(binary) = network.binaries.iter().find(|binary| binary.pattern.is_anybody()) {
            found.push(Diagnostic::warning(
                binary.origin.clone(),
                format!("`/**` lets every program reach what `{}` names", network.key),
                "name the programs that need it",
            ));
        }
        for binary in &network.binaries {
            let Some(tree) = writable(policy, binary.pattern.search_root()) else { continue };
            let is_inside = binary.pattern.exact().is_none_or(|path| path.starts_with(tree));
            if is_inside {
                found.push(Diagnostic::warning(
                    binary.origin.clone(),
                    format!(
                        "`{}` is below `{tree}`, which the sandbox may write: it can make any program \
                         of itself one that is admitted",
                        binary.pattern
                    ),
                    "put the program where the sandbox cannot write",
                ));
            }
        }
        found.extend(network.endpoints.iter().filter_map(endpoint));
    }
    found
}

fn writable<'p>(policy: &'p Policy, path: &Path) -> Option<&'p str> {
    let trees = policy.filesystem.read_write().iter().map(|tree| tree.value.as_str());
    trees.filter(|tree| path.starts_with(tree)).max_by_key(|tree| tree.len())
}

fn endpoint(endpoint: &Endpoint) -> Option<Diagnostic> {
    let warn = |message: String, fix: &str| {
        Some(Diagnostic::warning(endpoint.origin().clone(), message, fix))
    };
    if let Host::Name(pattern) = endpoint.host() {
        let text = pattern.as_str();
        if let Some((_, suffix)) = text.rsplit_once('*') {
            let suffix = suffix.trim_start_matches('.');
            let is_registry = suffix.split('.').count() < 2 || REGISTRIES.contains(&suffix);
            if is_registry {
                return warn(
                    format!("`{text}` is names that anybody can have"),
                    "name the hosts, or a wildcard below a name that is one owner's",
                );
            }
        }
    }
    let wide = endpoint.allowed_ips().iter().find(|range| match range {
        ipnet::IpNet::V4(_) => range.prefix_len() < SHORTEST.0,
        ipnet::IpNet::V6(_) => range.prefix_len() < SHORTEST.1,
    });
    let is_by_range = *endpoint.host() == Host::Ranges;
    wide.filter(|_| is_by_range).and_then(|range| {
        warn(format!("`{range}` is a good part of all addresses"), "name hosts, or smaller ranges")
    })
}

/// Directories that hold everybody's or everything.
const TOO_WIDE_TO_READ: [&str; 3] = ["/", "/home", "/root"];
const TOO_WIDE_TO_WRITE: [&str; 12] = [
    "/home", "/root", "/etc", "/usr", "/var", "/opt", "/srv", "/boot", "/run", "/dev", "/bin",
    "/lib",
];

/// Paths that are too wide.
pub(super) fn paths(policy: &Policy, home: Option<&Path>) -> Vec<Diagnostic> {
    let files = &policy.filesystem;
    let is_home = |path: &SandboxPath| home.is_some_and(|home| path.as_path() == home);
    let warn = |at: &Located<SandboxPath>, verb: &str| {
        Diagnostic::warning(
            at.origin.clone(),
            format!("the whole of `{}` may be {verb}", at.value),
            "name the directories in it that are needed",
        )
    };
    let reading = files
        .read_only()
        .iter()
        .filter(|at| TOO_WIDE_TO_READ.contains(&at.value.as_str()) || is_home(&at.value))
        .map(|at| warn(at, "read"));
    let writing = files
        .read_write()
        .iter()
        .filter(|at| TOO_WIDE_TO_WRITE.contains(&at.value.as_str()) || is_home(&at.value))
        .map(|at| warn(at, "written"));
    reading.chain(writing).collect()
}
