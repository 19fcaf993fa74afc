//! What is checked in each file by itself: module documentation, names, sizes, foreign places.
//! Works on the text that rustfmt leaves, where a function's end is the brace at its own indent.

use std::path::{Component, Path};

use super::Problem;

const MAX_FILE_LINES: usize = 600;
const MAX_FUNCTION_LINES: usize = 70;
/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 7] = ["common", "helper", "helpers", "manager", "misc", "util", "utils"];
/// Directories of one developer's machine, and hosts that packages come from: each as two pieces,
/// since this file is checked too. Tools know their hosts; what needs one asks them.
const FOREIGN: [(&str, &str); 13] = [
    ("/wo", "rk/"),
    ("/tmp/", "w/"),
    ("/root/", ".cargo"),
    ("/root/", ".rustup"),
    ("crates", ".io"),
    ("deb.", "debian.org"),
    ("security.", "debian.org"),
    ("pypi", ".org"),
    ("pythonhosted", ".org"),
    ("registry.npmjs", ".org"),
    ("registry.yarnpkg", ".com"),
    ("proxy.golang", ".org"),
    ("rubygems", ".org"),
];

/// Every problem of one file.
pub fn check(path: &Path, text: &str) -> Vec<Problem> {
    let mut found = Vec::new();
    let is_lock = path.file_name().is_some_and(|name| name == "Cargo.lock");
    if !is_lock {
        found.extend(foreign(text));
    }
    if path.extension().is_some_and(|extension| extension == "rs") {
        found.extend(module_header(text));
        found.extend(name(path));
        found.extend(size(text));
        found.extend(functions(text));
    }
    found
        .into_iter()
        .map(|(line, message)| Problem { path: path.to_path_buf(), line, message })
        .collect()
}

type Found = (usize, String);

fn module_header(text: &str) -> Option<Found> {
    (!text.starts_with("//! "))
        .then(|| (1, "begin with `//!`: what the module is for, and what it relies on".to_owned()))
}

fn name(path: &Path) -> Option<Found> {
    let empty = path.components().find_map(|component| {
        let Component::Normal(part) = component else {
            return None;
        };
        let stem = Path::new(part).file_stem()?.to_str()?;
        let last = stem.rsplit('_').next()?;
        EMPTY_NAMES.contains(&last).then(|| stem.to_owned())
    })?;
    Some((0, format!("`{empty}` says nothing; name the module for what it does")))
}

fn size(text: &str) -> Option<Found> {
    let lines = text.lines().count();
    (lines > MAX_FILE_LINES).then(|| (0, format!("{lines} lines; split it below {MAX_FILE_LINES}")))
}

fn functions(text: &str) -> Vec<Found> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        let indent = &line[..line.len() - line.trim_start().len()];
        let ends = |line: &&str| line.strip_prefix(indent).is_some_and(is_end);
        let length = lines[start..].iter().position(ends).map_or(1, |end| end + 1);
        if length > MAX_FUNCTION_LINES {
            let message =
                format!("`{name}` has {length} lines; split it below {MAX_FUNCTION_LINES}");
            found.push((start + 1, message));
        }
    }
    found
}

/// Whether a function that begins at some indent ends with the line that has this after that indent:
/// its last brace, or all of a body or the semicolon behind the declaration. What is deeper is inside.
fn is_end(line: &str) -> bool {
    let is_at_indent = line.starts_with(|c: char| !c.is_whitespace());
    is_at_indent && (line.ends_with('}') || line.ends_with(';'))
}

/// The name of the function whose declaration begins on this line.
fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.trim_start().split_once("fn ")?;
    let only_qualifiers = before.split_whitespace().all(|word| {
        matches!(word, "async" | "const" | "extern" | "unsafe" | "\"C\"") || word.starts_with("pub")
    });
    let end = after.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    (only_qualifiers && end > 0).then(|| &after[..end])
}

fn foreign(text: &str) -> Vec<Found> {
    let mut found = Vec::new();
    for (start, end) in FOREIGN {
        let needle = format!("{start}{end}");
        for (index, line) in text.lines().enumerate() {
            if names(line, &needle) {
                let message =
                    format!("`{needle}` is one machine's or one registry's; leave it out");
                found.push((index + 1, message));
            }
        }
    }
    found
}

/// Whether `needle` begins a path or host in `line`, and is not just part of a longer one's name.
fn names(line: &str, needle: &str) -> bool {
    let is_path = needle.starts_with('/');
    line.match_indices(needle).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let joins = |c: char| c.is_alphanumeric() || c == '_' || c == '-' || (is_path && c == '.');
        !before.is_some_and(joins)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<(usize, String)> {
        check(Path::new(path), text).into_iter().map(|p| (p.line, p.message)).collect()
    }

    fn function_of(lines: usize) -> String {
        let body = "        let _ = 1;\n".repeat(lines - 2);
        format!("//! A.\nimpl X {{\n    pub const fn long(\n{body}    }}\n}}\n")
    }

    #[test]
    fn a_short_documented_module_is_fine() {
        assert_eq!(messages("src/policy.rs", "//! A.\nfn main() {}\n"), []);
    }

    #[test]
    fn a_module_says_what_it_is_for() {
        assert_eq!(messages("src/policy.rs", "fn main() {}\n")[0].0, 1);
    }

    #[test]
    fn names_that_say_nothing_are_refused() {
        for path in ["src/util.rs", "src/helpers/mod.rs", "a/src/string_utils.rs"] {
            assert_eq!(messages(path, "//! A.\n").len(), 1, "{path}");
        }
        assert_eq!(messages("clawbox-common/src/utility.rs", "//! A.\n"), []);
    }

    #[test]
    fn long_files_are_refused() {
        let text = format!("//! A.\n{}", "//\n".repeat(MAX_FILE_LINES - 1));
        assert_eq!(messages("src/a.rs", &text), []);
        assert_eq!(messages("src/a.rs", &format!("{text}//\n")).len(), 1);
    }

    #[test]
    fn long_functions_are_refused() {
        assert_eq!(messages("src/a.rs", &function_of(MAX_FUNCTION_LINES)), []);
        let found = messages("src/a.rs", &function_of(MAX_FUNCTION_LINES + 1));
        assert_eq!(found[0].0, 3);
        assert!(found[0].1.contains("`long` has 71 lines"), "{found:?}");
    }

    #[test]
    fn a_nested_brace_ends_no_function() {
        for nested in [
            "if a {\n    }",
            "let b = C { d };\n    e!({ f })",
            "match g {\n        H => { i }\n    }",
        ] {
            let body = "    let _ = 1;\n".repeat(MAX_FUNCTION_LINES);
            let text = format!("//! A.\nfn long() {{\n    {nested}\n{body}}}\n");
            assert_eq!(messages("src/a.rs", &text).len(), 1, "{nested}");
        }
        let after = "// Not of it.\n".repeat(MAX_FUNCTION_LINES);
        for short in [
            "fn a() {}",
            "fn a() { b() }",
            "fn a(\n    b: C,\n) -> D\nwhere\n    E: F,\n{\n    g\n}",
        ] {
            assert_eq!(messages("src/a.rs", &format!("//! A.\n{short}\n{after}")), []);
        }
    }

    #[test]
    fn a_declaration_without_a_body_ends_at_its_semicolon() {
        let text = format!("//! A.\ntrait T {{\n    fn a();\n{}}}\n", "    //\n".repeat(80));
        assert_eq!(messages("src/a.rs", &text), []);
    }

    #[test]
    fn one_machines_paths_and_registry_hosts_are_refused() {
        let path = ["see /wo", "rk/x"].concat();
        assert_eq!(messages("README.md", &path).len(), 1);
        assert_eq!(messages("README.md", &["see /opt/wo", "rk/x"].concat()), []);
        assert_eq!(messages("README.md", &["https://deb.", "debian.org/"].concat()).len(), 1);
        assert_eq!(messages("README.md", &["https://index.crates", ".io/"].concat()).len(), 1);
        assert_eq!(messages("Cargo.lock", &["index.crates", ".io"].concat()), []);
    }
}
