//! What a policy file names: its hosts, programs and directories. Read as plain YAML, without
//! clawbox's own reader, whose work is to be checked.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// What can be tried of a policy.
#[derive(Clone, Debug, Default)]
pub struct Named {
    /// Exact hosts with each of their ports, in the order of the file.
    pub endpoints: Vec<(String, u16)>,
    /// Exact programs.
    pub binaries: BTreeSet<PathBuf>,
    /// `filesystem_policy.read_write`.
    pub writable: Vec<PathBuf>,
    /// `filesystem_policy.read_only`.
    pub readable: Vec<PathBuf>,
    /// Patterns and addresses, which stand for things that nobody can list.
    pub skipped: BTreeSet<String>,
}

impl Named {
    /// Reads a file.
    ///
    /// # Errors
    /// It is no policy, or names no host.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the policy {}", path.display()))?;
        let value: Value = serde_saphyr::from_str(&text)
            .with_context(|| format!("{} is no YAML", path.display()))?;
        let named = Self::of(&value);
        if named.endpoints.is_empty() {
            bail!("{} names no exact host that could be tried", path.display());
        }
        Ok(named)
    }

    fn of(value: &Value) -> Self {
        let mut named = Self::default();
        let files = &value["filesystem_policy"];
        let paths = |value: &Value| strings(value).map(PathBuf::from).collect();
        named.writable = paths(&files["read_write"]);
        named.readable = paths(&files["read_only"]);
        let policies = value["network_policies"].as_object().into_iter().flatten();
        for (_, policy) in policies {
            for endpoint in policy["endpoints"].as_array().into_iter().flatten() {
                named.endpoint(endpoint);
            }
            for binary in policy["binaries"].as_array().into_iter().flatten() {
                let Some(path) = binary["path"].as_str() else {
                    continue;
                };
                if path.starts_with('/') && !path.contains(['*', '?', '[']) {
                    named.binaries.insert(path.into());
                } else {
                    named.skipped.insert(path.to_owned());
                }
            }
        }
        named
    }

    fn endpoint(&mut self, endpoint: &Value) {
        let Some(host) = endpoint["host"].as_str() else {
            return;
        };
        let host = host.to_ascii_lowercase();
        if host.contains('*') || host.parse::<std::net::IpAddr>().is_ok() || host == "localhost" {
            self.skipped.insert(host);
            return;
        }
        let ports = endpoint["ports"].as_array().into_iter().flatten();
        for port in ports.chain([&endpoint["port"]]).filter_map(Value::as_u64) {
            let Ok(port) = u16::try_from(port) else {
                continue;
            };
            let at = (host.clone(), port);
            if !self.endpoints.contains(&at) {
                self.endpoints.push(at);
            }
        }
    }
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_names_are_tried_and_patterns_are_told() {
        let value = serde_json::json!({
            "filesystem_policy": { "read_only": ["/usr"], "read_write": ["/sandbox"] },
            "network_policies": {
                "b": { "endpoints": [{ "host": "B.test", "ports": [80, 443] }],
                       "binaries": [{ "path": "/usr/bin/b" }, { "path": "/opt/**" }] },
                "a": { "endpoints": [{ "host": "*.a.test", "port": 443 },
                                     { "host": "b.test", "port": 443 }] },
            },
        });
        let named = Named::of(&value);
        assert_eq!(named.endpoints, [("b.test".to_owned(), 80), ("b.test".to_owned(), 443)]);
        assert_eq!(named.binaries.len(), 1);
        assert_eq!(named.skipped.iter().collect::<Vec<_>>(), ["*.a.test", "/opt/**"]);
    }
}
