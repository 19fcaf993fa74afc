//! apt's sources, in both ways to write them: a line for each, and paragraphs (`.sources`).
//! What is on a disk needs no network and is left out.

use std::path::PathBuf;

use super::{Machine, text};

pub(super) fn urls(machine: &Machine) -> Result<Vec<String>, String> {
    let mut urls = Vec::new();
    let parts = machine.system("/etc/apt/sources.list.d");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(parts).into_iter().flatten().flatten().map(|at| at.path()).collect();
    files.push(machine.system("/etc/apt/sources.list"));
    files.sort();
    for file in files {
        let is_lines = file.extension().is_some_and(|extension| extension == "list");
        let is_paragraphs = file.extension().is_some_and(|extension| extension == "sources");
        if !is_lines && !is_paragraphs {
            continue;
        }
        let Some(text) = text(&file)? else { continue };
        if is_lines {
            urls.extend(text.lines().filter_map(of_line));
        } else {
            urls.extend(of_paragraphs(&text));
        }
    }
    urls.retain(|url| {
        let scheme = url.split(':').next().unwrap_or_default();
        !matches!(scheme.rsplit('+').next().unwrap_or(scheme), "file" | "cdrom" | "copy")
    });
    if urls.is_empty() {
        return Err("apt has no source with a host; name one in /etc/apt/sources.list.d".to_owned());
    }
    Ok(urls)
}

/// `deb [options] URL suite component…`
fn of_line(line: &str) -> Option<String> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let rest = line.strip_prefix("deb-src").or_else(|| line.strip_prefix("deb"))?;
    let rest = rest.strip_prefix(char::is_whitespace)?.trim_start();
    let rest = match rest.strip_prefix('[') {
        Some(options) => options.split_once(']')?.1,
        None => rest,
    };
    rest.split_whitespace().next().map(str::to_owned)
}

fn of_paragraphs(text: &str) -> Vec<String> {
    let mut urls = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for paragraph in lines.split(|line| line.trim().is_empty()) {
        let mut named = Vec::new();
        let mut is_off = false;
        let mut field = "";
        for line in paragraph {
            let value = match line.split_once(':') {
                Some((name, value)) if !line.starts_with(char::is_whitespace) => {
                    field = name;
                    value
                }
                // Goes on with the field above.
                _ => line,
            };
            if field.eq_ignore_ascii_case("URIs") {
                named.extend(value.split_whitespace().map(str::to_owned));
            } else if field.eq_ignore_ascii_case("Enabled") {
                is_off |=
                    matches!(value.trim(), "no" | "false" | "without" | "off" | "disable" | "0");
            }
        }
        if !is_off {
            urls.extend(named);
        }
    }
    urls
}
