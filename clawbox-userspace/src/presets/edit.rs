//! Adds a preset to a policy's text and takes it out again to the byte. What is written stays between two
//! comments; the result counts only if it says what the policy and the preset say, and nothing else.

use std::sync::Arc;

use crate::policy::drafted::{check_union, say_the_same};
use crate::policy::{Diagnostic, Origin};

/// Before an entry that a preset brought.
const BEGIN: &str = "# clawbox preset: ";
/// After it.
const END: &str = "# clawbox preset end: ";
/// A section that the policy had not.
const SECTION: &str = "network_policies: # by clawbox preset";

/// A policy's text with a preset in it.
///
/// # Errors
///
/// The preset is in it already, a key has two meanings, or the text is laid out so that nothing can be
/// added to it without touching the rest.
pub fn add(
    policy: (&Arc<str>, &str),
    name: &str,
    preset: (&Arc<str>, &str),
) -> Result<String, Vec<Diagnostic>> {
    let (file, text) = policy;
    if let Some(found) = block(text, name) {
        let line = text.get(..found.0).unwrap_or_default().lines().count() + 1;
        let origin = Origin {
            line: u32::try_from(line).unwrap_or(u32::MAX),
            column: 1,
            file: Arc::clone(file),
        };
        return Err(vec![Diagnostic::error(
            origin,
            format!("the preset `{name}` is in the policy already"),
            format!("take it out first: `clawbox preset remove {name} {file}`"),
        )]);
    }
    let marks = |indent: &str| [format!("{indent}{BEGIN}{name}"), format!("{indent}{END}{name}")];
    let changed = at_end(text, preset.1, marks, SECTION);
    check_union(policy, preset, &changed)?;
    Ok(changed)
}

/// A policy's text with the entries of a fragment, comments and all.
///
/// # Errors
///
/// A key has two meanings, or nothing can be added to the text without touching the rest.
pub fn add_entries(
    policy: (&Arc<str>, &str),
    fragment: (&Arc<str>, &str),
) -> Result<String, Vec<Diagnostic>> {
    let changed = at_end(policy.1, fragment.1, |_| [String::new(), String::new()], PLAIN_SECTION);
    check_union(policy, fragment, &changed)?;
    Ok(changed)
}

/// A text with a fragment's entries at the end of `network_policies`, between two lines that may be empty.
fn at_end(
    text: &str,
    fragment: &str,
    marks: impl FnOnce(&str) -> [String; 2],
    new_section: &str,
) -> String {
    let eol = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let mut changed = text.to_owned();
    let section = match Section::of(text) {
        Some(section) => section,
        None => {
            let end = text.trim_end_matches(['\n', '\r']).len();
            changed.insert_str(end, &format!("{eol}{new_section}"));
            let end = end + eol.len() + new_section.len();
            Section { end, indent: "  ".to_owned() }
        }
    };
    let body = body(fragment, &section.indent).join(eol);
    let [before, after] = marks(&section.indent);
    let lines: Vec<&str> = [before.as_str(), body.as_str(), after.as_str()]
        .into_iter()
        .filter(|lines| !lines.is_empty())
        .collect();
    changed.insert_str(section.end, &format!("{eol}{}", lines.join(eol)));
    changed
}

/// A policy's text without a preset that was added to it.
///
/// # Errors
///
/// It is not in it, or without it the text is no policy.
pub fn remove(policy: (&Arc<str>, &str), name: &str) -> Result<String, Vec<Diagnostic>> {
    let (file, text) = policy;
    let Some((start, end)) = block(text, name) else {
        return Err(vec![Diagnostic::error(
            Origin::file(file),
            format!("`clawbox preset add` has put no preset `{name}` into the policy"),
            "take out by hand what was written by hand",
        )]);
    };
    let mut changed = text.to_owned();
    changed.replace_range(start..end, "");
    if let Some(at) = changed.find(&format!("\n{SECTION}"))
        && Section::of(&changed).is_some_and(|section| section.end == at + 1 + SECTION.len())
    {
        let with_return = changed.get(..at).is_some_and(|before| before.ends_with('\r'));
        let start = at - usize::from(with_return);
        changed.replace_range(start..at + 1 + SECTION.len(), "");
    }
    // That it loads, too.
    say_the_same(file, &changed, &changed).map_err(|diagnostic| vec![diagnostic])?;
    Ok(changed)
}

/// The presets that were added to a policy's text.
#[must_use]
pub fn added(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.trim().strip_prefix(BEGIN)).collect()
}

/// Where a preset stands, from the end of the line before it to the end of its last line.
fn block(text: &str, name: &str) -> Option<(usize, usize)> {
    let line = |mark: &str| {
        let mark = format!("{mark}{name}");
        let mut at = 0;
        text.split_inclusive('\n').find_map(|line| {
            let start = at;
            at += line.len();
            (line.trim() == mark)
                .then(|| (start, start + line.trim_end_matches(['\n', '\r']).len()))
        })
    };
    let (start, _) = line(BEGIN)?;
    let (_, end) = line(END)?;
    let before = text.get(..start)?;
    let before = before.strip_suffix("\r\n").or_else(|| before.strip_suffix('\n'))?;
    (end > start).then_some((before.len(), end))
}

/// The same where no preset has brought it.
const PLAIN_SECTION: &str = "network_policies:";

/// `network_policies` in a text.
struct Section {
    /// Where its last line ends.
    end: usize,
    /// What stands before its keys.
    indent: String,
}

impl Section {
    fn of(text: &str) -> Option<Self> {
        let mut at = 0;
        let mut section: Option<Self> = None;
        for line in text.split_inclusive('\n') {
            let content = line.trim_end_matches(['\n', '\r']);
            let end = at + content.len();
            at += line.len();
            let is_comment = content.trim_start().starts_with('#');
            let indent = content.len() - content.trim_start().len();
            match &mut section {
                None if content.starts_with("network_policies:") => {
                    section = Some(Self { end, indent: String::new() });
                }
                None => {}
                Some(_) if content.trim().is_empty() => {}
                // What a preset has added ends with a comment, and the next comes after it.
                Some(section) if is_comment && content.trim_start().starts_with(END) => {
                    section.end = end;
                }
                Some(_) if is_comment => {}
                Some(_) if indent == 0 => break,
                Some(section) => {
                    if section.indent.is_empty() {
                        section.indent = content.get(..indent).unwrap_or_default().to_owned();
                    }
                    section.end = end;
                }
            }
        }
        if let Some(section) = &mut section
            && section.indent.is_empty()
        {
            section.indent = "  ".to_owned();
        }
        section
    }
}

/// The lines of a preset's entries, at another indent.
fn body(preset: &str, indent: &str) -> Vec<String> {
    let lines: Vec<&str> = preset
        .lines()
        .skip_while(|line| !line.starts_with("network_policies:"))
        .skip(1)
        .take_while(|line| line.is_empty() || line.starts_with([' ', '#']))
        .collect();
    let is_entry = |line: &&&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let own = lines.iter().find(is_entry).map_or(0, |line| line.len() - line.trim_start().len());
    let last = lines.iter().rposition(|line| !line.trim().is_empty()).map_or(0, |last| last + 1);
    let shift = |line: &&str| match line.get(own..) {
        _ if line.trim().is_empty() => String::new(),
        Some(rest) if line.get(..own).is_some_and(|head| head.trim().is_empty()) => {
            format!("{indent}{}", rest.trim_end())
        }
        _ => format!("{indent}{}", line.trim()),
    };
    lines.iter().take(last).map(shift).collect()
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
