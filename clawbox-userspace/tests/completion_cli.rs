//! What a shell is offered: verbs, options, and the values that this host has.

#![expect(clippy::unwrap_used, reason = "a test's helpers may fail as the test does")]

use std::process::Command;

/// As fish asks for the last of these words.
fn offered(words: &[&str]) -> Vec<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clawbox"));
    command.env("COMPLETE", "fish").args(["--", "clawbox"]).args(words);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
}

#[test]
fn a_shell_is_offered_verbs_and_what_is_built_in_and_no_hidden_verb() {
    let verbs = offered(&[""]);
    for verb in ["run", "why", "learn", "policy", "preset"] {
        assert!(verbs.iter().any(|offered| offered == verb), "{verb}: {verbs:?}");
    }
    assert!(!verbs.iter().any(|offered| offered == "manual"), "{verbs:?}");
    assert_eq!(offered(&["run", "--profile", "cod"]), ["codex"]);
    assert_eq!(offered(&["policy", "lint", "x.yaml", "--preset", "git"]), ["github", "gitlab"]);
    assert_eq!(offered(&["preset", "show", "sla"]), ["slack"]);
    assert!(offered(&["policy", "allow", "p.yaml", "--end"]).contains(&"--endpoint".to_owned()));
}

#[test]
fn each_shell_is_told_how_to_ask() {
    for shell in ["bash", "zsh", "fish"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_clawbox"));
        let output = command.env("COMPLETE", shell).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("COMPLETE"), "{shell}: {text}");
    }
}
