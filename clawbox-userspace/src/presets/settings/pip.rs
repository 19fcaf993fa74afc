//! pip's settings: its variables, then its files from the user's to the machine's, then its default.
//! An index that is set in one place hides those of the places behind it; further indexes add up.

use std::path::PathBuf;

use super::{Machine, text};

/// What pip takes its own index and the files from if nobody says anything else.
const OWN: &str = "from pip._internal.models.index import PyPI\n\
                   print(PyPI.simple_url)\nprint('https://' + PyPI.file_storage_domain)";

pub(super) fn urls(machine: &Machine) -> Result<Vec<String>, String> {
    let mut index: Option<String> = machine.variable("PIP_INDEX_URL").map(str::to_owned);
    let mut further: Option<String> = machine.variable("PIP_EXTRA_INDEX_URL").map(str::to_owned);
    // The user's own before the machine's: the first that says something is the one that counts.
    for file in files(machine) {
        let Some(text) = text(&file)? else { continue };
        let said = Said::of(&text);
        index = index.or(said.index);
        further = further.or(said.further);
    }
    let mut urls: Vec<String> = index.into_iter().collect();
    if urls.is_empty() {
        let own = machine.ask("python3", &["-I", "-c", OWN]).ok_or(
            "pip has no index in its settings, and cannot be asked for its own; say `pip config set \
             global.index-url URL`",
        )?;
        urls.extend(own.lines().map(str::to_owned));
    }
    urls.extend(further.iter().flat_map(|list| list.split_whitespace()).map(str::to_owned));
    Ok(urls)
}

fn files(machine: &Machine) -> Vec<PathBuf> {
    let mut files = Vec::new();
    if let Some(file) = machine.variable("PIP_CONFIG_FILE") {
        files.push(PathBuf::from(file));
    }
    let config = machine.variable("XDG_CONFIG_HOME").map(PathBuf::from);
    files.push(config.unwrap_or_else(|| machine.home.join(".config")).join("pip/pip.conf"));
    files.push(machine.home.join(".pip/pip.conf"));
    files.push(machine.system("/etc/pip.conf"));
    files.push(machine.system("/etc/xdg/pip/pip.conf"));
    files
}

/// What one file says. A section for a command counts before the one for all.
#[derive(Default)]
struct Said {
    index: Option<String>,
    further: Option<String>,
}

impl Said {
    fn of(text: &str) -> Self {
        let mut sections = [Self::default(), Self::default(), Self::default()];
        let mut section = None;
        // Lines that are indented go on with the value above.
        let mut open: Option<&mut String> = None;
        for line in text.lines() {
            let content = line.trim();
            if content.is_empty() || content.starts_with(['#', ';']) {
                continue;
            }
            if line.starts_with(char::is_whitespace) {
                if let Some(value) = &mut open {
                    value.push(' ');
                    value.push_str(content);
                }
                continue;
            }
            open = None;
            if let Some(name) = content.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
                section = ["install", "download", "global"].iter().position(|known| *known == name);
                continue;
            }
            let Some((key, value)) = content.split_once(['=', ':']) else { continue };
            let Some(said) = section.and_then(|index| sections.get_mut(index)) else { continue };
            let slot = match key.trim().to_ascii_lowercase().replace('_', "-").as_str() {
                "index-url" => &mut said.index,
                "extra-index-url" => &mut said.further,
                _ => continue,
            };
            open = Some(slot.insert(value.trim().to_owned()));
        }
        let filled = |value: Option<String>| value.filter(|value| !value.is_empty());
        sections.into_iter().fold(Self::default(), |first, next| Self {
            index: first.index.or(filled(next.index)),
            further: first.further.or(filled(next.further)),
        })
    }
}
