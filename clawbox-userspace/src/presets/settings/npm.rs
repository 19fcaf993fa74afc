//! npm's settings: its variable, the user's and the machine's `npmrc`, then what npm itself says.
//! Registries of scopes (`@scope:registry`) count too.

use std::path::PathBuf;

use super::{Machine, text};

pub(super) fn urls(machine: &Machine) -> Result<Vec<String>, String> {
    let said = ["npm_config_registry", "NPM_CONFIG_REGISTRY"];
    let mut registry = said.iter().find_map(|name| machine.variable(name)).map(str::to_owned);
    let mut scopes: Vec<(String, String)> = Vec::new();
    let own = machine.variable("NPM_CONFIG_USERCONFIG").map(PathBuf::from);
    for file in [own.unwrap_or_else(|| machine.home.join(".npmrc")), machine.system("/etc/npmrc")] {
        let Some(text) = text(&file)? else { continue };
        for (key, value) in settings(&text) {
            if key == "registry" {
                registry = registry.or(Some(value));
            } else if key.starts_with('@')
                && key.ends_with(":registry")
                && !scopes.iter().any(|(known, _)| *known == key)
            {
                scopes.push((key, value));
            }
        }
    }
    let registry = match registry {
        Some(registry) => registry,
        None => machine
            .ask("npm", &["config", "get", "registry"])
            .map(|answer| answer.trim().to_owned())
            .filter(|answer| answer.contains("://"))
            .ok_or(
                "npm has no registry in its settings, and cannot be asked for its own; say `npm config \
                 set registry URL`",
            )?,
    };
    let scopes = scopes.into_iter().map(|(_, url)| url);
    Ok(std::iter::once(registry).chain(scopes).collect())
}

fn settings(text: &str) -> impl Iterator<Item = (String, String)> + '_ {
    text.lines().filter_map(|line| {
        let line = line.trim();
        let (key, value) = line.split_once('=').filter(|_| !line.starts_with(['#', ';']))?;
        let value = value.trim().trim_matches(['"', '\'']);
        (!value.is_empty()).then(|| (key.trim().to_owned(), value.to_owned()))
    })
}
