//! What a package installs as `clawbox` says and does what the agent would, whatever it is told.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use clawbox_tests::clawbox::program;
use clawbox_tests::daemon::Daemon;
use clawbox_tests::network::{SITE, copy_program};

use super::daemon::{Dialler, output, to_site};
use crate::attacks::attempt::PYTHON;
use crate::scene::{Scene, in_guest};

/// In place of a package: the front in `bin`, and the agent where it looks for it.
fn installed(directory: &Path) -> PathBuf {
    let (bin, lib) = (directory.join("bin"), directory.join("lib/clawbox"));
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir_all(&lib).unwrap();
    symlink(program(), lib.join("clawbox")).unwrap();
    let front = bin.join("clawbox");
    copy_program(&program().with_file_name("clawbox-front"), &front);
    front
}

#[test]
fn what_stands_in_front_of_the_agent_answers_as_the_agent_does() {
    if in_guest() {
        return;
    }
    let scene = Scene::new();
    let daemon = Daemon::start_with(&scene.world, "off");
    let directory = tempfile::tempdir().unwrap();
    let front = installed(directory.path());
    let policy = daemon.policy("site", &to_site(&scene));
    // For whose `~` an account is looked up, which is the agent's to do.
    let own = to_site(&scene).replace("read_write: [", "read_write: [~/nowhere, ");
    let own = daemon.policy("own", &own);
    let wrong = daemon.policy("wrong", "version: 1\nno_such_part: 1\n");
    let mut running = Dialler::start(daemon.by(&front, &[]), "one", &policy);
    assert_eq!(running.dial(&SITE.to_string()), "ok");
    let run = |policy: &str, code: &str| -> Vec<String> {
        ["run", "--quiet", "--policy", policy, "--", PYTHON, "-c", code].map(str::to_owned).into()
    };
    let asked: Vec<Vec<String>> = vec![
        run(&policy, "import sys; print(1 + 1); sys.exit(7)"),
        run(&own, "print(2)"),
        run(&wrong, ""),
        run("/no/such/policy", ""),
        vec!["run".into(), "--nonsense".into()],
        vec!["run".into(), "--help".into()],
        vec!["exec".into(), "nobody".into(), "--".into(), "true".into()],
        vec![
            "exec".into(),
            "one".into(),
            "--".into(),
            PYTHON.into(),
            "-c".into(),
            "print(3)".into(),
        ],
        vec![
            "policy".into(),
            "set".into(),
            "nobody".into(),
            policy.clone(),
            "--format=json".into(),
        ],
        vec!["policy".into(), "set".into(), "one".into(), wrong.clone()],
        vec!["policy".into(), "check".into(), wrong.clone()],
        vec!["--version".into()],
        vec!["show".into(), "nobody".into()],
    ];
    for words in &asked {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let [front, agent] =
            [front.clone(), program()].map(|program| output(daemon.by(&program, &words)));
        assert_eq!(front, agent, "{words:?}");
    }
    let words = ["policy", "set", "one", &policy, "--format", "json"];
    let (status, stdout, stderr) = output(daemon.by(&front, &words));
    assert!(status == 0 && stdout.contains("\"changed\""), "{status} {stdout} {stderr}");
    assert_eq!(running.dial(&SITE.to_string()), "ok");
    assert_eq!(running.end(), 0);
}

#[test]
fn without_the_agent_behind_it_the_front_says_what_is_missing() {
    if in_guest() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let front = installed(directory.path());
    fs::remove_dir_all(directory.path().join("lib")).unwrap();
    let mut command = Command::new(front);
    command.arg("list").env("CLAWBOX_SOCKET", directory.path().join("none"));
    let (status, _, stderr) = output(command);
    if fs::exists("/usr/lib/clawbox/clawbox").unwrap() {
        return;
    }
    assert!(status == 125 && stderr.contains("install the package again"), "{status} {stderr}");
}
