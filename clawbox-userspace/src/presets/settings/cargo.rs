//! cargo's settings: source replacement and named registries of `config.toml`; where nothing replaces
//! the usual registry, the one that cargo has used, as it has written it down itself.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{Machine, server, text};

/// What cargo calls the usual registry.
const USUAL: &str = "crates-io";

pub(super) fn urls(machine: &Machine) -> Result<Vec<String>, String> {
    let own = machine.variable("CARGO_HOME").map(PathBuf::from);
    let own = own.unwrap_or_else(|| machine.home.join(".cargo"));
    let config = config(&own)?;
    let mut urls = Vec::new();
    let replaced = replacement(&config, &mut urls)?;
    for registry in table(&config, "registries").into_iter().flat_map(Table::values) {
        urls.extend(string(registry.get("index")));
    }
    let known = used(&own);
    if !replaced {
        // What no setting names is the usual one, or was named once.
        let named: HashSet<String> = hosts(&urls);
        let usual = known.iter().filter(|(host, _)| !named.contains(host));
        let usual: Vec<String> = usual.map(|(host, _)| format!("https://{host}/")).collect();
        if usual.is_empty() {
            return Err(
                "cargo has no registry in its settings and has not used its own yet; run `cargo \
                        fetch` once outside the sandbox, or set a source replacement"
                    .to_owned(),
            );
        }
        urls.extend(usual);
    }
    // An index says where the files are; cargo keeps what it said.
    let named = hosts(&urls);
    let files = known.into_iter().filter(|(host, _)| named.contains(host));
    urls.extend(files.map(|(_, files)| files));
    Ok(urls)
}

fn hosts(urls: &[String]) -> HashSet<String> {
    urls.iter().filter_map(|url| server(url).ok()).map(|server| server.host).collect()
}

/// Cargo reads both names, the old one first.
fn config(own: &Path) -> Result<Table, String> {
    for name in ["config", "config.toml"] {
        let path = own.join(name);
        if let Some(text) = text(&path)? {
            // The parser's words quote the line, and a line may hold a token.
            return text.parse::<Table>().map_err(|_| {
                format!("`{}` is not TOML; ask `cargo` what is wrong", path.display())
            });
        }
    }
    Ok(Table::new())
}

/// Follows what replaces the usual registry, and adds where it leads to. Whether anything does.
fn replacement(config: &Table, urls: &mut Vec<String>) -> Result<bool, String> {
    let sources = table(config, "source");
    let mut name = USUAL.to_owned();
    let mut seen = HashSet::new();
    while let Some(next) =
        string(sources.and_then(|sources| sources.get(&name)).and_then(|at| at.get("replace-with")))
    {
        if !seen.insert(next.clone()) {
            return Err(format!("cargo's source `{next}` replaces itself; ask `cargo fetch`"));
        }
        name = next;
    }
    if name == USUAL {
        return Ok(false);
    }
    let at = |table: &str| config.get(table).and_then(|all| all.get(&name));
    let registry = at("source").and_then(|source| source.get("registry"));
    match string(registry).or_else(|| string(at("registries").and_then(|at| at.get("index")))) {
        Some(url) => {
            urls.push(url);
            Ok(true)
        }
        None => Err(format!(
            "cargo's source `{name}` is no registry with a host; cargo needs no network for it"
        )),
    }
}

/// The registries that cargo has used: the host of each index, and where it says files are.
fn used(own: &Path) -> Vec<(String, String)> {
    let mut used = Vec::new();
    for entry in std::fs::read_dir(own.join("registry/index")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((host, _)) = name.rsplit_once('-') else { continue };
        let said = std::fs::read_to_string(entry.path().join("config.json")).ok();
        let said = said.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
        if let Some(files) = said.as_ref().and_then(|said| said.get("dl")?.as_str()) {
            used.push((host.to_owned(), files.to_owned()));
        }
    }
    used.sort();
    used
}

fn table<'a>(config: &'a Table, name: &str) -> Option<&'a Table> {
    config.get(name).and_then(Value::as_table)
}

fn string(value: Option<&Value>) -> Option<String> {
    value.and_then(Value::as_str).map(str::to_owned)
}
