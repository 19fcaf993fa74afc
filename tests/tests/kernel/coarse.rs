//! Without BPF LSM: files are Landlock's alone, and what Landlock, the files' own permissions and
//! seccomp refuse is in the trail all the same, told when the system call returns.

use std::path::Path;

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

/// Name, attempt, and of its record: action, reason where the hooks are asked first, and path.
type Use = (&'static str, String, &'static str, &'static str, String);

fn uses_of_files(secret: &str, private: &str) -> Vec<Use> {
    vec![
        ("read", format!("read('{secret}')"), "open", "unknown-file", secret.to_owned()),
        ("list", format!("os.listdir('{private}')"), "open", "unknown-file", private.to_owned()),
        ("write", "write('/usr/bin/env')".into(), "open", "read-only", "/usr/bin/env".into()),
        ("make", "write('/usr/x1', os.O_CREAT)".into(), "create", "read-only", "/usr/x1".into()),
        ("fifo", "os.mkfifo('/usr/x2')".into(), "create", "read-only", "/usr/x2".into()),
        ("mkdir", "os.mkdir('/usr/x3')".into(), "mkdir", "read-only", "/usr/x3".into()),
        ("symlink", "os.symlink('a', '/usr/x4')".into(), "symlink", "read-only", "/usr/x4".into()),
        (
            "unlink",
            "os.unlink('/usr/bin/cut')".into(),
            "unlink",
            "read-only",
            "/usr/bin/cut".into(),
        ),
        ("rmdir", "os.rmdir('/usr/lib')".into(), "rmdir", "read-only", "/usr/lib".into()),
        (
            "rename",
            "os.rename('/usr/bin/tr', '/usr/bin/x5')".into(),
            "rename",
            "read-only",
            "/usr/bin/tr".into(),
        ),
    ]
}

/// Interrupted as kill(2) returns, and goes on with `EPERM` in its place: 144 is where the handler finds
/// RAX of what it has interrupted.
const COMES_BACK_REFUSED: &str = "handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)( \
        lambda _, __, context: ctypes.memmove(context + 144, bytes(b'\\xff' * 8), 8) and None); \
    libc.signal(10, handler); code = libc.kill(os.getpid(), 10); \
    raise OSError(ctypes.get_errno(), 'refused') if code else None";

/// A signal may come wherever a process has the number of `EPERM` in the register of results: what
/// sigreturn(2) brings back is then no answer to any call.
#[test]
fn going_on_after_a_signal_is_no_refused_call() {
    let scene = Scene::new();
    let tries =
        [("back", COMES_BACK_REFUSED.to_owned()), ("unshare", "call(272, 0x80)".to_owned())];
    let (outcomes, run) = attempts(Clawbox::new(&scene.world, &scene.policy("")), &tries);
    assert_eq!(outcome(&outcomes, "back"), "EPERM", "{run:#?}");
    assert_eq!(outcome(&outcomes, "unshare"), "EPERM");
    let denials = run.denials();
    let calls: Vec<_> = denials.iter().map(|record| &record["object"]["system_call"]).collect();
    assert_eq!(calls, ["unshare"], "{denials:#?}");
}

/// `RNDGETENTCNT` of a device that may be read and not written.
const ASK_DEVICE: &str = "import fcntl; \
    fcntl.ioctl(os.open('/dev/urandom', os.O_RDONLY), 0x80045200, bytes(4))";

/// The kernel asks security modules in the order of its list, and Landlock's refusal leaves no record.
/// By Landlock where the kernel asks it first, as Debian's list has it, else by the hooks.
#[test]
fn with_bpf_lsm_every_refused_use_of_a_file_has_one_record_whoever_is_asked_first() {
    let scene = Scene::new();
    if !scene.has_lsm() {
        return;
    }
    let modules = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap();
    let place = |name: &str| modules.trim().split(',').position(|module| module == name).unwrap();
    let by_landlock = place("landlock") < place("bpf");
    let secret = secret(&scene);
    let private = Path::new(&secret).parent().unwrap().display().to_string();
    let tries = uses_of_files(&secret, &private);
    let mut codes: Vec<_> = tries.iter().map(|(name, code, ..)| (*name, code.clone())).collect();
    codes.push(("device", ASK_DEVICE.to_owned()));
    codes.push(("unshare", "call(272, 0x10000000)".to_owned()));
    // As root, whom the file's own permissions let.
    let policy = scene.policy("").replace("/proc,", "/proc, /dev/urandom,");
    let clawbox = Clawbox::new(&scene.world, &policy).with_lsm().user(None);
    let clawbox = clawbox.argument("--audit-level=denials").argument("--refusals");
    let (outcomes, run) = attempts(clawbox, &codes);
    // Of allowed uses nothing is told at this level, not even a count.
    let is_allow = |record: &&Value| record["class"] == "file" && record["verdict"] == "allow";
    assert_eq!((run.trail.iter().filter(is_allow).count(), run.records("summary").len()), (0, 0));
    let start = &run.records("start")[0]["object"]["layers"];
    assert!(start.as_array().unwrap().iter().all(|layer| layer["layer"] != "refusals"), "{start}");
    let denials = run.denials();
    // Landlock alone refuses it, since ABI 5.
    let rights = layer(&run, "landlock.files")["actual"].as_array().unwrap();
    let is_refused = rights.iter().any(|right| right == "ioctl on devices");
    assert_eq!(outcome(&outcomes, "device") == "EACCES", is_refused, "{outcomes:?}");
    let is_told = |record: &&&Value| {
        record["action"] == "ioctl"
            && record["reason"] == "landlock"
            && record["object"]["path"] == "/dev/urandom"
    };
    assert_eq!(denials.iter().filter(is_told).count(), usize::from(is_refused), "{denials:#?}");
    // What the filter refuses no hook sees; asked for, it is told when the call returns.
    assert_eq!(outcome(&outcomes, "unshare"), "EPERM");
    let by_calls: Vec<_> =
        denials.iter().filter(|record| record["reason"] == "system-call").collect();
    assert_eq!(by_calls.len(), 1, "{denials:#?}");
    assert_eq!(by_calls[0]["object"]["system_call"], "unshare");
    assert!(denials.iter().all(|record| record["reason"] != "refused"), "{denials:#?}");
    for (name, _, action, reason, path) in &tries {
        assert_eq!(outcome(&outcomes, name), "EACCES", "{name}");
        let told: Vec<_> = denials
            .iter()
            .filter(|record| {
                record["action"] == *action && record["object"]["path"] == path.as_str()
            })
            .collect();
        assert_eq!(told.len(), 1, "{name}: {denials:#?}");
        let reason = if by_landlock { "landlock" } else { reason };
        assert_eq!(told[0]["reason"], reason, "{name}: {}", told[0]);
        assert!(told[0]["subject"]["exe"].is_string(), "{}", told[0]);
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
