//! What a change of a policy's file shows, and what it leaves of the file when it is written.

use std::sync::Arc;

use super::*;
use crate::presets::{edit, preset};

const POLICY: &str = "version: 1\n# Mine.\nnetwork_policies:\n    own: # the first\n        endpoints:\n        - { host: own.example, port: 443 }\n        binaries: [{ path: /usr/bin/curl }]\n\n# Until tomorrow.\nmode: audit\n";

#[test]
fn the_difference_of_an_added_preset_is_its_entries_and_two_comments() {
    let telegram = preset("telegram").unwrap();
    let file: Arc<str> = "policy.yaml".into();
    let name: Arc<str> = "preset:telegram".into();
    let after = edit::add((&file, POLICY), "telegram", (&name, telegram.text)).unwrap();
    insta::assert_snapshot!(difference(&file, POLICY, &after));
}

#[test]
fn a_file_is_replaced_whole_with_its_mode_and_through_a_link() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.yaml");
    let link = directory.path().join("link.yaml");
    fs::write(&file, "before").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("policy.yaml", &link).unwrap();
    replace(&link, "before", "after").unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "after");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    let error = replace(&file, "before", "other").unwrap_err().to_string();
    assert!(error.contains("changed meanwhile"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "after");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}
