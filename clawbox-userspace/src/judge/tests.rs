//! Answers about policies, with real files of this host.

use super::statement::Statement;
use super::*;
use crate::policy::parse_str;

fn judge(text: &str) -> Judge {
    Judge::of(parse_str("p.yaml", text).unwrap().policy, None).unwrap()
}

fn verdict(judge: &Judge, written: &str) -> &'static str {
    let said = Statement::parse(written, None).unwrap();
    let program = judge.programs(&said.program).remove(0);
    let ancestors = said.ancestors.iter().map(|word| judge.programs(word).remove(0)).collect();
    judge.ask(&Who { program, script: None, ancestors }, &said.deed).verdict_name()
}

#[test]
fn a_program_is_the_file_that_it_is_and_not_how_its_path_is_spelt() {
    let world = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(world.path()).unwrap();
    std::fs::write(root.join("tool-1.2"), "").unwrap();
    std::os::unix::fs::symlink("tool-1.2", root.join("tool")).unwrap();
    let judge = judge(&format!(
        "version: 1\nnetwork_policies:\n  a:\n    endpoints: [{{ host: a.test, port: 443 }}]\n    \
         binaries: [{{ path: {}/tool }}]\n",
        root.display()
    ));
    assert_eq!(verdict(&judge, "tool → a.test:443"), "allow");
    assert_eq!(verdict(&judge, &format!("{}/tool-1.2 → a.test:443", root.display())), "allow");
    assert_eq!(verdict(&judge, "/no/such/tool → a.test:443"), "deny");
    assert_eq!(verdict(&judge, "any → a.test:443"), "deny");
    assert_eq!(verdict(&judge, "tool > /no/such → a.test:443"), "allow");
}

#[test]
fn files_are_judged_from_the_object_upwards() {
    let world = tempfile::tempdir().unwrap();
    let root = std::fs::canonicalize(world.path()).unwrap();
    std::fs::create_dir_all(root.join("open/keys")).unwrap();
    let root = root.display();
    let judge = judge(&format!(
        "version: 1\nfilesystem_policy:\n  read_only: [{root}]\n  read_write: [{root}/open]\n  \
         deny: [{root}/open/keys]\n"
    ));
    for (written, expected) in [
        (format!("any → read {root}/x"), "allow"),
        (format!("any → write {root}/x"), "deny"),
        (format!("any → write {root}/open/x"), "allow"),
        (format!("any → read {root}/open/keys/id"), "deny"),
        ("any → read /no/such/place".to_owned(), "deny"),
    ] {
        assert_eq!(verdict(&judge, &written), expected, "{written}");
    }
}
