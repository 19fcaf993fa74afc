//! What a policy's own text says of a file: read as its manual tells it, with nothing of clawbox's, so that what
//! `clawbox why` answers can be known before it is asked.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// What a place gives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gives {
    Closed,
    Reading,
    Writing,
}

/// The reason of the policy in a file for an access to a path, where the sandbox starts in a directory; `allow`
/// where it has none against it. Whichever layer refused, this is what `why` has to say of the policy: Landlock has
/// of it what was there at the start, and a file's own mode has nothing of it. `None` where the text is of a kind
/// that no attack has: rules for single programs, and patterns but for a name at any depth.
pub fn says(policy: &str, workdir: Option<&str>, path: &str, access: &str) -> Option<&'static str> {
    let text = fs::read_to_string(policy).ok()?;
    let policy: Value = serde_saphyr::from_str(&text).ok()?;
    let files = &policy["filesystem_policy"];
    if files.get("rules").is_some() {
        return None;
    }
    let listed = |key: &str| {
        let all = files[key].as_array().into_iter().flatten();
        all.filter_map(Value::as_str).map(PathBuf::from).collect::<Vec<_>>()
    };
    let path = really(Path::new(path));
    let mut places: Vec<(PathBuf, Gives)> = Vec::new();
    for (key, gives) in
        [("deny", Gives::Closed), ("read_only", Gives::Reading), ("read_write", Gives::Writing)]
    {
        for place in listed(key) {
            if let Ok(name) = place.strip_prefix("**") {
                let named =
                    path.ancestors().filter(|around| around.file_name() == Some(name.as_os_str()));
                places.extend(named.map(|around| (around.to_owned(), gives)));
            } else {
                places.push((really(&place), gives));
            }
            if place.to_string_lossy().replace("**/", "/").contains(['*', '?', '[']) {
                return None;
            }
        }
    }
    if files["include_workdir"] != false {
        places.extend(workdir.map(|workdir| (really(Path::new(workdir)), Gives::Writing)));
    }
    let around = places.iter().filter(|(place, _)| path.starts_with(place));
    // The innermost decides; of two at one place the one that closes.
    let innermost =
        around.max_by_key(|(place, gives)| (place.components().count(), *gives == Gives::Closed));
    let Some((_, gives)) = innermost else { return Some("unknown-file") };
    let execution = &policy["execution"];
    Some(match (gives, access) {
        (Gives::Closed, _) => "closed-file",
        (Gives::Reading, "write") => "read-only",
        (Gives::Writing, "execute") if execution["from_writable"] != "allow" => "writable-program",
        (_, "execute") => match execution["allow"].as_array() {
            Some(listed)
                if !listed
                    .iter()
                    .filter_map(Value::as_str)
                    .any(|one| really(Path::new(one)) == path) =>
            {
                "unlisted-program"
            }
            _ => "allow",
        },
        _ => "allow",
    })
}

/// Where a path leads, as far as it is there.
fn really(path: &Path) -> PathBuf {
    if let Ok(found) = fs::canonicalize(path) {
        return found;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => really(parent).join(name),
        // `..` at the end of what is not there.
        _ => path.to_owned(),
    }
}
