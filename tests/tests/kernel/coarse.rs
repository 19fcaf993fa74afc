//! Without BPF LSM: files are Landlock's alone, and what Landlock, the files' own permissions and
//! seccomp refuse is in the trail all the same, told when the system call returns.

use clawbox_tests::clawbox::{Clawbox, Finished};
use serde_json::{Value, json};

use crate::attacks::attempt::{ATTACKER, PYTHON};
use crate::scene::{Scene, by_nobody};

/// Runs what is to be tried, a line each, and gives what the attacker saw of each, in order.
fn attempts(clawbox: Clawbox<'_>, tries: &[(&str, String)]) -> (Vec<(String, String)>, Finished) {
    let mut running = clawbox.spawn(&[PYTHON, "-c", ATTACKER]);
    for (name, code) in tries {
        running.say(&format!("{name}: {code}"));
    }
    let run = running.wait();
    let said = run.stdout.lines().filter_map(|line| line.split_once(' '));
    let outcomes: Vec<(String, String)> =
        said.map(|(name, outcome)| (name.to_owned(), outcome.to_owned())).collect();
    assert_eq!(outcomes.len(), tries.len(), "{run:?}");
    (outcomes, run)
}

fn outcome<'o>(outcomes: &'o [(String, String)], name: &str) -> &'o str {
    &outcomes.iter().find(|(found, _)| found == name).unwrap().1
}

fn layer<'r>(run: &'r Finished, name: &str) -> &'r Value {
    let layers = run.records("start")[0]["object"]["layers"].as_array().unwrap();
    layers.iter().find(|layer| layer["layer"] == name).unwrap()
}

#[test]
fn without_bpf_lsm_the_first_record_says_what_is_coarser_and_who_tells_refusals() {
    let scene = Scene::new();
    let run = Clawbox::new(&scene.world, &scene.policy("")).run(&["/bin/true"]);
    let lsm = layer(&run, "lsm");
    assert_eq!(lsm["state"], "absent");
    assert!(!lsm["why"].as_str().unwrap().is_empty(), "{lsm}");
    let coarser = lsm["coarser"].as_array().unwrap();
    for subject in ["rules", "island", "execute", "running sandbox", "returns"] {
        assert!(
            coarser.iter().any(|line| line.as_str().unwrap().contains(subject)),
            "{subject}: {coarser:?}"
        );
    }
    assert_eq!(layer(&run, "refusals")["state"], "full", "{}", run.stderr);
}

/// A file that only root may read.
fn secret(scene: &Scene) -> String {
    let path = std::fs::canonicalize(scene.world.private()).unwrap().join("secret");
    std::fs::write(&path, "for root alone").unwrap();
    path.display().to_string()
}

/// The kernel asks security modules in the order of its list, and Landlock's refusal leaves no record.
#[test]
fn with_bpf_lsm_a_refused_file_is_recorded_or_the_first_record_says_why_it_is_not() {
    let scene = Scene::new();
    if !scene.has_lsm() {
        return;
    }
    let modules = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap();
    let place = |name: &str| modules.trim().split(',').position(|module| module == name).unwrap();
    let secret = secret(&scene);
    // As root, whom the file's own permissions let.
    let clawbox = Clawbox::new(&scene.world, &scene.policy("")).with_lsm().user(None);
    let (outcomes, run) = attempts(clawbox, &[("read", format!("read('{secret}')"))]);
    assert_eq!(outcome(&outcomes, "read"), "EACCES");
    let start = &run.records("start")[0]["object"]["layers"];
    let layers = start.as_array().unwrap();
    let said = layers.iter().find(|layer| layer["layer"] == "refusals");
    let is_recorded = run.denials().iter().any(|record| {
        record["reason"] == "unknown-file" && record["object"]["path"] == secret.as_str()
    });
    if place("bpf") < place("landlock") {
        assert!(said.is_none() && is_recorded, "{:#?}", run.denials());
    } else {
        let why = said.unwrap()["why"].as_str().unwrap();
        assert!(why.contains("Landlock") && why.contains("doctor --fix"), "{why}");
    }
}

/// Name, attempt, and of its record: action, access, path and second path. `~` is the working
/// directory, `$` one that is root's alone, and `!` one that may be read, on the same filesystem.
type Attempt =
    (&'static str, &'static str, &'static str, &'static [&'static str], &'static str, &'static str);

const ON_FILES: &[Attempt] = &[
    ("read", "read('$/secret')", "open", &["read"], "$/secret", ""),
    ("list", "os.listdir('$')", "open", &["read"], "$", ""),
    ("write", "write('/usr/bin/true')", "open", &["write"], "/usr/bin/true", ""),
    ("relative", "write('../new', os.O_CREAT)", "open", &["write"], "~/../new", ""),
    (
        "from-descriptor",
        "os.open('new', os.O_RDWR | os.O_CREAT, dir_fd=os.open('/usr/bin', os.O_RDONLY))",
        "open",
        &["read", "write"],
        "/usr/bin/new",
        "",
    ),
    (
        "openat2",
        "how = (ctypes.c_uint64 * 3)(1, 0, 0); call(437, -100, b'/usr/bin/env', how, 24)",
        "open",
        &["write"],
        "/usr/bin/env",
        "",
    ),
    ("mkdir", "os.mkdir('/usr/new')", "mkdir", &["write"], "/usr/new", ""),
    ("mkfifo", "os.mkfifo('/usr/new')", "create", &["write"], "/usr/new", ""),
    ("unlink", "os.unlink('/usr/bin/env')", "unlink", &["write"], "/usr/bin/env", ""),
    ("rmdir", "os.rmdir('/usr/bin')", "rmdir", &["write"], "/usr/bin", ""),
    (
        "rmdir-at",
        "os.rmdir('bin', dir_fd=os.open('/usr', os.O_RDONLY))",
        "rmdir",
        &["write"],
        "/usr/bin",
        "",
    ),
    ("rename", "os.rename('!/attack', 'env')", "rename", &["write"], "!/attack", "~/env"),
    ("link", "os.link('mine', '!/mine')", "link", &["write"], "~/mine", "!/mine"),
    ("symlink", "os.symlink('../etc', '/usr/soft')", "symlink", &["write"], "/usr/soft", "../etc"),
    ("truncate", "os.truncate('/usr/bin/env', 0)", "truncate", &["write"], "/usr/bin/env", ""),
    ("chmod", "os.chmod('/usr/bin/env', 0o777)", "chmod", &["write"], "/usr/bin/env", ""),
    (
        "chmod-descriptor",
        "os.fchmod(os.open('/usr/bin/dd', os.O_RDONLY), 0o777)",
        "chmod",
        &["write"],
        "/usr/bin/dd",
        "",
    ),
    ("chown", "os.chown('/usr/bin/env', 1, 1)", "chown", &["write"], "/usr/bin/env", ""),
    ("times", "os.utime('/usr/bin/env', (0, 0))", "attributes", &["write"], "/usr/bin/env", ""),
    (
        "xattr",
        "os.setxattr('/usr/bin/env', 'user.x', b'y')",
        "xattr",
        &["write"],
        "/usr/bin/env",
        "",
    ),
    ("start", "start('/etc/passwd')", "start-program", &["execute"], "/etc/passwd", ""),
    (
        "bind",
        "import socket; socket.socket(socket.AF_UNIX).bind('/usr/socket')",
        "create",
        &["write"],
        "/usr/socket",
        "",
    ),
];

#[test]
fn every_refused_use_of_a_file_is_recorded_with_what_was_asked_and_answered() {
    let scene = Scene::new();
    let home = std::fs::canonicalize(scene.world.work()).unwrap().display().to_string();
    let secret = secret(&scene);
    let closed = secret.strip_suffix("/secret").unwrap();
    let bin = std::fs::canonicalize(scene.world.bin()).unwrap().display().to_string();
    let place = |text: &str| text.replace('~', &home).replace('$', closed).replace('!', &bin);
    let mut tries = vec![("mine", "write('mine', os.O_CREAT)".to_owned())];
    tries.extend(ON_FILES.iter().map(|attempt| (attempt.0, place(attempt.1))));
    let (outcomes, run) = attempts(Clawbox::new(&scene.world, &scene.policy("")), &tries);
    assert_eq!(outcome(&outcomes, "mine"), "ok");
    let denials = run.denials();
    for (name, _, action, access, path, other) in ON_FILES {
        let errno = outcome(&outcomes, name);
        assert!(["EACCES", "EPERM"].contains(&errno), "{name}: {errno}");
        let mut object = json!({
            "path": place(path), "id": "0:0:0", "access": access, "errno": errno,
        });
        if !other.is_empty() {
            object["other_path"] = place(other).into();
        }
        let is_it = |record: &&&Value| {
            record["class"] == "file"
                && record["action"] == *action
                && record["reason"] == "refused"
                && record["object"] == object
        };
        let record = denials.iter().find(is_it);
        let record = record.unwrap_or_else(|| panic!("{name}: no {object}: {denials:#?}"));
        assert!(by_nobody(record), "{record}");
        assert!(record["subject"]["exe"].as_str().unwrap().contains("python3"), "{record}");
    }
    assert_eq!(denials.len(), ON_FILES.len(), "what went through is no denial: {denials:#?}");
}

#[test]
fn a_link_that_would_gain_rights_is_told_and_a_move_to_another_filesystem_is_not() {
    let scene = Scene::new();
    let shelf = scene.world.bin().join("shelf");
    std::fs::create_dir(&shelf).unwrap();
    std::fs::write(shelf.join("file"), "read-only").unwrap();
    let nobody = Some(clawbox_tests::network::NOBODY);
    std::os::unix::fs::chown(shelf.join("file"), nobody, nobody).unwrap();
    let file = std::fs::canonicalize(shelf.join("file")).unwrap().display().to_string();
    let tries = [
        ("gain", format!("os.link('{file}', 'writable')")),
        ("away", "write('f', os.O_CREAT); os.rename('f', '/dev/shm/f')".to_owned()),
    ];
    let policy = scene.policy("").replace("[/dev/null]", "[/dev/null, /dev/shm]");
    let (outcomes, run) = attempts(Clawbox::new(&scene.world, &policy), &tries);
    assert_eq!(outcomes.iter().map(|(_, o)| o.as_str()).collect::<Vec<_>>(), ["EXDEV", "EXDEV"]);
    let denials = run.denials();
    assert_eq!(denials.len(), 1, "{denials:#?}");
    let object = &denials[0]["object"];
    assert_eq!((&object["path"], &object["errno"]), (&file.into(), &"EXDEV".into()));
}

#[test]
fn what_programs_take_for_not_available_is_no_denial() {
    let scene = Scene::new();
    // Threads are made by clone3 if it is there, and by clone if not.
    let thread =
        "import threading; t = threading.Thread(target=len, args=('',)); t.start(); t.join()";
    let tries = [("threads", thread), ("missing", "read('/usr/no-such-file')")]
        .map(|(name, code)| (name, code.to_owned()));
    let (outcomes, run) = attempts(Clawbox::new(&scene.world, &scene.policy("")), &tries);
    assert_eq!(outcome(&outcomes, "threads"), "ok");
    assert_eq!(outcome(&outcomes, "missing"), "ENOENT");
    assert!(run.denials().is_empty(), "{:#?}", run.denials());
}

#[test]
fn audit_mode_does_not_claim_that_a_refusal_was_let_through() {
    let scene = Scene::new();
    let clawbox =
        Clawbox::new(&scene.world, &scene.policy("")).argument("--mode").argument("audit");
    let run = clawbox.run(&["/bin/cat", secret(&scene).as_str()]);
    assert_eq!(run.status, 1, "{}", run.stderr);
    let denials = run.denials();
    assert_eq!(denials.len(), 1, "{denials:?}");
    assert_eq!(denials[0].get("let_through"), None);
}

#[test]
fn a_process_outside_every_sandbox_is_not_told_of() {
    let scene = Scene::new();
    let secret = secret(&scene);
    let script = format!("echo on; read line; cat {secret}");
    let clawbox = Clawbox::new(&scene.world, &scene.policy(""));
    let mut running = clawbox.spawn(&["/bin/sh", "-c", &script]);
    assert_eq!(running.line(), "on");
    let outside = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups", "cat", &secret])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&outside.stderr).contains("Permission denied"), "{outside:?}");
    running.say("go");
    let run = running.wait();
    assert_eq!(run.denials().len(), 1, "{:#?}", run.denials());
}

#[test]
fn who_does_without_the_record_of_refusals_is_told_so_in_the_first_one() {
    let scene = Scene::new();
    let run = Clawbox::new(&scene.world, &scene.policy(""))
        .without_refusals()
        .run(&["/bin/cat", "/etc/shadow"]);
    assert_eq!(run.status, 1, "{}", run.stderr);
    let layers = run.records("start")[0]["object"]["layers"].as_array().unwrap();
    let layer = layers.iter().find(|layer| layer["layer"] == "refusals").unwrap();
    assert_eq!(layer["state"], "absent");
    assert!(layer["why"].as_str().unwrap().contains("--refusals"), "{layer}");
    assert!(run.denials().is_empty(), "{:?}", run.denials());
}
