//! The texts of the policies that decided, which are records of the store themselves: a copy of it on another
//! host tells by which words something was allowed or denied.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::filter::{Filter, Pattern};
use super::read::{Cursor, Reader, Row};
use super::schema::{Number, Text};

/// The action of such a record.
pub const ACTION: &str = "policy-text";

/// A policy as it came into force in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// Which of the sandbox's policies, or of the host's.
    pub revision: u32,
    /// Of the names and contents of its files, as `clawbox policy list` has it.
    pub digest: String,
    /// It is the host's, in place of the sandbox's own.
    pub is_global: bool,
    /// Its files; what was approved beside it is the last. None where another record of the same batch has them,
    /// of this digest.
    pub texts: Vec<File>,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its name.
    pub name: String,
    /// All that is in it.
    pub text: String,
}

impl InForce {
    /// What the policy has under a rule's name, as it is written where that is in lines of its own; and the
    /// file it is from.
    #[must_use]
    pub fn rule(&self, rule: &str) -> Option<(&str, String)> {
        // What is added later has other names; the last one wins where somebody uses one again.
        self.texts.iter().rev().find_map(|file| {
            let parsed: Value = serde_saphyr::from_str(&file.text).ok()?;
            let meant = parsed.get("network_policies")?.get(rule)?;
            let text = excerpt(&file.text, rule).unwrap_or_else(|| format!("{rule}: {meant}"));
            Some((file.name.as_str(), text))
        })
    }
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The lines of a key below `network_policies`, less what all are indented by.
fn excerpt(text: &str, rule: &str) -> Option<String> {
    let is_nothing = |line: &&str| line.trim().is_empty() || line.trim_start().starts_with('#');
    let section = text.lines().skip_while(|line| line.trim_end() != "network_policies:").skip(1);
    let section = section.take_while(|line| is_nothing(line) || indent(line) > 0);
    let is_key = |line: &&str| {
        let key = line.trim_start().split_once(':').map(|(key, _)| key.trim_matches(['"', '\'']));
        key == Some(rule)
    };
    let mut lines = section.skip_while(|line| !is_key(line));
    let first = lines.next()?;
    let depth = indent(first);
    let rest = lines.take_while(|line| is_nothing(line) || indent(line) > depth);
    let mut found: Vec<&str> = std::iter::once(first).chain(rest).collect();
    while found.last().is_some_and(is_nothing) {
        found.pop();
    }
    let cut = |line: &&str| line.get(depth..).unwrap_or_default().to_owned();
    Some(found.iter().map(cut).collect::<Vec<_>>().join("\n"))
}

/// The policy by which an event was decided; `None` where the store does not have it.
///
/// # Errors
/// The store cannot be read.
pub fn of_event(directory: &Path, row: Row<'_>) -> io::Result<Option<InForce>> {
    let (Some(sandbox), Some(number)) = (row.text(Text::Sandbox), row.number(Number::Policy))
    else {
        return Ok(None);
    };
    let mut told = texts();
    told.text(&[Text::Sandbox], Pattern::Is(sandbox.to_owned()));
    told.number(Number::Policy, number);
    let found = last_before(directory, &mut told, row.micros())?;
    match found {
        Some(found) if found.texts.is_empty() => with_texts(directory, found).map(Some),
        found => Ok(found),
    }
}

/// Records of texts.
fn texts() -> Filter {
    let mut told = Filter::default();
    told.text(&[Text::Action], Pattern::Is(ACTION.to_owned()));
    told.show(vec![Text::Detail.at()]);
    told
}

fn policy_of(row: Row<'_>) -> Option<InForce> {
    row.text(Text::Detail).and_then(|text| serde_json::from_str(text).ok())
}

/// The same with the texts that another sandbox's record has.
fn with_texts(directory: &Path, found: InForce) -> io::Result<InForce> {
    let (mut told, mut reader) = (texts(), Reader::at(directory, Cursor::default()));
    while let Some(batch) = reader.next(&mut told)? {
        let has = |policy: &InForce| policy.digest == found.digest && !policy.texts.is_empty();
        if let Some(other) = told.rows(&batch).filter_map(policy_of).find(has) {
            return Ok(InForce { texts: other.texts, ..found });
        }
    }
    Ok(found)
}

fn last_before(directory: &Path, told: &mut Filter, micros: i64) -> io::Result<Option<InForce>> {
    let (mut reader, mut found) = (Reader::at(directory, Cursor::default()), None);
    // Numbers come again after a restart of the machine: the last one before it, or else the first after.
    while let Some(batch) = reader.next(told)? {
        for policy in told.rows(&batch) {
            let is_later = policy.micros() > micros;
            if is_later && found.is_some() {
                return Ok(found);
            }
            found = policy_of(policy).or(found);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::intake::Store;
    use super::super::limits::Limits;
    use super::super::tests::denied;
    use super::*;

    #[test]
    fn a_text_that_several_sandboxes_are_under_is_in_a_batch_once_and_told_of_each() {
        let root = tempfile::tempdir().unwrap();
        let (directory, key) = (root.path().join("audit"), root.path().join("audit.key"));
        let store = Store::start(directory.clone(), key, "test", Limits::default(), None).unwrap();
        let intake = store.intake();
        let policy = |revision, name: &str| {
            let texts = vec![File { name: name.to_owned(), text: format!("# of {name}\n") }];
            InForce { revision, digest: format!("digest of {name}"), is_global: false, texts }
        };
        // All in one batch.
        intake.hold(std::time::Instant::now());
        let all = [("a-1", 3, "x"), ("b-1", 4, "y"), ("c-1", 5, "x"), ("d-1", 6, "x")];
        for (sandbox, number, name) in all {
            intake.policy(sandbox, number, policy(number * 10, name));
            intake.record(sandbox, Some(number), &denied("/etc/shadow"), None);
        }
        intake.release();
        drop(store);
        let mut events = Filter::default();
        events.text(&[Text::Action], Pattern::Is("open".to_owned()));
        let (mut reader, mut seen) = (Reader::at(&directory, Cursor::default()), Vec::new());
        while let Some(batch) = reader.next(&mut events).unwrap() {
            for row in events.rows(&batch) {
                seen.push(of_event(&directory, row).unwrap().unwrap());
            }
        }
        let expected = all.map(|(_, number, name)| policy(number * 10, name));
        assert_eq!(seen, expected);
        let (mut told, mut reader) = (texts(), Reader::at(&directory, Cursor::default()));
        let mut with = 0;
        while let Some(batch) = reader.next(&mut told).unwrap() {
            let rows = told.rows(&batch).filter_map(policy_of);
            with += rows.filter(|policy| !policy.texts.is_empty()).count();
        }
        assert_eq!(with, 2);
    }

    #[test]
    fn a_rule_is_quoted_as_it_is_written_and_from_flow_style_as_what_it_means() {
        let block = "version: 1\nnetwork_policies:\n  other:\n    endpoints: []\n\n  # why\n  \"site\":\n    \
                     endpoints:\n      - { host: a.test }\n    # more\n    binaries: [x]\n\n  # next\n  z: {}\nfilesystem: {}\n";
        let flow = "network_policies: { site: { endpoints: [{ host: b.test }] } }\n";
        let file = |name: &str, text: &str| File { name: name.to_owned(), text: text.to_owned() };
        let policy =
            |texts| InForce { revision: 1, digest: String::new(), is_global: false, texts };
        let of = |policy: &InForce| policy.rule("site").map(|(name, text)| (name.to_owned(), text));
        let written = "\"site\":\n  endpoints:\n    - { host: a.test }\n  # more\n  binaries: [x]";
        let found = of(&policy(vec![file("a.yaml", block)]));
        assert_eq!(found, Some(("a.yaml".to_owned(), written.to_owned())));
        let found = of(&policy(vec![file("a.yaml", "version: 1\n"), file("b", flow)])).unwrap();
        assert_eq!(found.0, "b");
        assert!(found.1.starts_with("site: {") && found.1.contains("b.test"), "{}", found.1);
        assert_eq!(of(&policy(vec![file("a", "version: 1\n")])), None);
    }
}
