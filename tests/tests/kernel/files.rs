//! Files, programs and other processes, decided by binary in the kernel. One run tries many things,
//! because an emulated machine takes long to load the programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clawbox_tests::clawbox::{Clawbox, Finished};

use crate::scene::Scene;

/// Tries one thing a line: a name, and a Python expression or statement.
pub const ATTACKER: &str = r#"
import ctypes, errno, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *words):
    if libc.syscall(number, *words) < 0:
        raise OSError(ctypes.get_errno(), "")
def exchange(one, two):
    call(316, -100, one.encode(), -100, two.encode(), 2)
def mapped(path):
    with open(path, "rb") as file:
        mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
def write(path, flags=0):
    os.close(os.open(path, os.O_WRONLY | flags))
def read(path):
    with open(path, "rb") as file:
        return file.read()
def start(*command):
    status = os.spawnv(os.P_WAIT, command[0], command)
    if status == 127:
        raise OSError(errno.EACCES, "")
def copied(path):
    made = os.memfd_create("program")
    os.write(made, read(path))
    return made
for line in sys.stdin:
    name, _, code = line.rstrip("\n").partition(": ")
    try:
        exec(code)
        print(name, "ok", flush=True)
    except OSError as error:
        print(name, errno.errorcode[error.errno], flush=True)
"#;

pub const PYTHON: &str = "/usr/bin/python3";

/// Runs what is to be tried in a sandbox and gives the outcomes by name, and the run.
pub fn attempts(
    scene: &Scene,
    policy: &str,
    tries: &[(&str, &str)],
) -> (BTreeMap<String, String>, Finished) {
    let clawbox = Clawbox::new(&scene.world, policy).with_lsm();
    let mut running = clawbox.spawn(&[PYTHON, "-c", ATTACKER]);
    for (name, code) in tries {
        running.say(&format!("{name}: {code}"));
    }
    let run = running.wait();
    let outcomes: BTreeMap<String, String> = run
        .stdout
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, outcome)| (name.to_owned(), outcome.to_owned()))
        .collect();
    assert_eq!(outcomes.len(), tries.len(), "{run:?}");
    (outcomes, run)
}

/// Asserts each outcome: `EACCES` where `closed` says so.
#[track_caller]
fn expect(outcomes: &BTreeMap<String, String>, expected: &[(&str, &str)]) {
    let expected: BTreeMap<String, String> = expected
        .iter()
        .map(|(name, outcome)| ((*name).to_owned(), (*outcome).to_owned()))
        .collect();
    assert_eq!(outcomes, &expected);
}

/// Denials of files: action, reason and path.
pub fn denials(run: &Finished) -> Vec<(&str, &str, &str)> {
    run.trail
        .iter()
        .filter(|record| record["verdict"] == "deny" && record["class"] == "file")
        .filter_map(|record| {
            Some((
                record["action"].as_str()?,
                record["reason"].as_str()?,
                record["object"]["path"].as_str()?,
            ))
        })
        .collect()
}

fn tree(scene: &Scene) -> PathBuf {
    let root = std::fs::canonicalize(scene.world.work()).unwrap().join("repo");
    for directory in ["repo/.git/hooks", "repo/src", "repo/closed"] {
        std::fs::create_dir_all(root.parent().unwrap().join(directory)).unwrap();
    }
    for (file, text) in [
        ("src/main.c", "int main;"),
        ("closed/key", "secret"),
        (".env", "TOKEN=secret"),
        ("src/.env", "TOKEN=secret"),
        ("ro", "as it was"),
        (".git/hooks/pre-commit", "#!/bin/sh\n"),
    ] {
        std::fs::write(root.join(file), text).unwrap();
    }
    open_to_all(&root);
    root
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            open_to_all(&entry.unwrap().path());
        }
    }
}

/// What the owner of the files may do anyway is done by root's rules here: the sandbox's user owns
/// everything.
fn owned_by_sandbox(path: &Path) {
    let nobody = clawbox_tests::network::NOBODY;
    std::os::unix::fs::lchown(path, Some(nobody), Some(nobody)).unwrap();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            owned_by_sandbox(&entry.unwrap().path());
        }
    }
}

#[test]
fn islands_in_a_writable_tree_hold_against_every_way_to_change_them() {
    let scene = Scene::new();
    if !scene.has_lsm() {
        return;
    }
    let root = tree(&scene);
    owned_by_sandbox(&root);
    let policy = scene
        .policy("")
        .replace(
            "/proc, ",
            &format!("/proc, {}/ro, {}/.git/hooks, ", root.display(), root.display()),
        )
        .replace(
            "read_write: [/dev/null]",
            &format!(
                "read_write: [/dev/null, {r}]\n  deny: [{r}/closed, {r}/later, \"**/.env\"]",
                r = root.display()
            ),
        );
    let tries = [
        ("write-tree", "write('src/main.c'); os.rename('src/main.c', 'src/m.c')"),
        ("make-and-remove", "os.mkdir('new'); os.rmdir('new')"),
        ("read-island", "read('ro')"),
        ("write-island", "write('ro')"),
        ("truncate-by-open", "write('ro', os.O_TRUNC)"),
        ("truncate", "os.truncate('ro', 0)"),
        ("chmod", "os.chmod('ro', 0o777)"),
        ("chown", "os.chown('ro', -1, os.getgid())"),
        ("times", "os.utime('ro', (0, 0))"),
        ("xattr", "os.setxattr('ro', 'user.x', b'y')"),
        ("unlink", "os.unlink('ro')"),
        ("rename-away", "os.rename('ro', 'gone')"),
        ("rename-over", "write('n', os.O_CREAT); os.rename('n', 'ro')"),
        ("exchange", "exchange('src', 'ro')"),
        ("hard-link", "os.link('ro', 'linked')"),
        ("symlink", "os.symlink('ro', 'soft'); write('soft')"),
        ("by-dots", "write('src/../ro')"),
        ("by-root", "write('/proc/self/root' + os.getcwd() + '/ro')"),
        ("by-descriptor", "write('/proc/self/fd/%d' % os.open('ro', os.O_RDONLY))"),
        ("by-o-path", "write('/proc/self/fd/%d' % os.open('ro', os.O_PATH))"),
        ("parent-away", "os.rename('.git', '.git2')"),
        ("below-island", "write('.git/hooks/post-commit', os.O_CREAT)"),
        ("closed", "read('closed/key')"),
        ("closed-listed", "os.listdir('closed')"),
        ("closed-moved", "os.rename('closed', 'opened')"),
        ("closed-linked", "os.link('closed/key', 'key')"),
        ("name-anywhere", "read('src/.env')"),
        ("name-made", "write('.git/.env', os.O_CREAT)"),
        ("name-renamed", "os.rename('.env', 'env')"),
        ("later-made", "os.mkdir('later')"),
        ("later-renamed", "os.mkdir('sooner'); os.rename('sooner', 'later')"),
        ("outside", "read('/root/.profile')"),
        ("deep", "[(os.mkdir('d'), os.chdir('d')) for _ in range(70)]"),
    ];
    let tries = tries.map(|(name, code)| {
        (
            name,
            if name == "write-tree" {
                format!("os.chdir('{}'); {code}", root.display())
            } else {
                code.to_owned()
            },
        )
    });
    let tries: Vec<(&str, &str)> =
        tries.iter().map(|(name, code)| (*name, code.as_str())).collect();
    let (outcomes, run) = attempts(&scene, &policy, &tries);
    let open = ["write-tree", "make-and-remove", "read-island"];
    let expected: Vec<(&str, &str)> = tries
        .iter()
        .map(|(name, _)| (*name, if open.contains(name) { "ok" } else { "EACCES" }))
        .collect();
    expect(&outcomes, &expected);
    assert_eq!(std::fs::read_to_string(root.join("ro")).unwrap(), "as it was");
    assert!(root.join(".git/hooks/pre-commit").exists() && root.join("closed/key").exists());
    assert!(!root.join("later").exists() && !root.join("key").exists());
    let denials = denials(&run);
    let at = |name: &str| root.join(name).display().to_string();
    for (action, reason, path) in [
        ("open", "read-only", at("ro")),
        ("truncate", "read-only", at("ro")),
        ("chmod", "read-only", at("ro")),
        ("chown", "read-only", at("ro")),
        ("attributes", "read-only", at("ro")),
        ("xattr", "read-only", at("ro")),
        ("unlink", "held-entry", at("ro")),
        ("rename", "held-entry", at("ro")),
        ("link", "read-only", at("ro")),
        ("rename", "held-entry", at(".git")),
        ("create", "read-only", at(".git/hooks/post-commit")),
        ("open", "closed-file", at("closed/key")),
        ("open", "closed-file", at("src/.env")),
        ("create", "held-entry", at(".git/.env")),
        ("mkdir", "held-entry", at("later")),
    ] {
        // Some hooks are not told on which mount the file is.
        let is_it = |told: &str| match told.strip_prefix("…/") {
            Some(end) => path.ends_with(end) && end.contains('/'),
            None => told == path,
        };
        assert!(
            denials
                .iter()
                .any(|denial| (denial.0, denial.1) == (action, reason) && is_it(denial.2)),
            "{action} {reason} {path}: {denials:#?}"
        );
    }
    assert!(denials.iter().any(|(action, reason, _)| (*action, *reason) == ("mkdir", "too-deep")));
}

/// The kernel opens the layers in the sandbox's name, and they are in no rule.
#[test]
fn on_overlayfs_the_merged_tree_is_judged_and_its_layers_are_not() {
    let scene = Scene::new();
    if !scene.has_lsm() {
        return;
    }
    let base = std::fs::canonicalize(scene.world.private()).unwrap();
    for directory in ["lower/island", "upper", "index", "merged"] {
        std::fs::create_dir_all(base.join(directory)).unwrap();
    }
    std::fs::write(base.join("lower/file"), "below").unwrap();
    std::fs::write(base.join("lower/island/file"), "below").unwrap();
    open_to_all(&base);
    owned_by_sandbox(&base.join("lower"));
    owned_by_sandbox(&base.join("upper"));
    let at = |name: &str| base.join(name).display().to_string();
    let options =
        format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("index"));
    let merged = base.join("merged");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("overlay"), &merged, Some("overlay"), flags, Some(options.as_str()))
        .unwrap();
    let policy = scene.policy("").replace(
        "read_write: [/dev/null]",
        &format!("read_write: [/dev/null, {m}]\n  deny: [{m}/closed]", m = merged.display()),
    );
    let policy = policy.replace("/proc, ", &format!("/proc, {}/island, ", merged.display()));
    let go = format!("os.chdir('{}'); read('file')", merged.display());
    let tries = [
        ("read", go.as_str()),
        ("copy-up", "open('file', 'a').write(' and above')"),
        ("create", "open('new', 'w').write('new')"),
        ("rename", "os.rename('new', 'newer')"),
        ("mode", "os.chmod('newer', 0o600); os.utime('newer', (0, 0))"),
        ("remove", "os.unlink('newer')"),
        ("island-read", "read('island/file')"),
        ("island-write", "write('island/file')"),
        ("island-times", "os.utime('island/file', (0, 0))"),
        ("closed", "os.mkdir('closed')"),
        ("layer", &format!("read('{}')", at("lower/file"))),
    ];
    let (outcomes, run) = attempts(&scene, &policy, &tries);
    nix::mount::umount(&merged).unwrap();
    let denied = ["island-write", "island-times", "closed", "layer"];
    let expected: Vec<(&str, &str)> = tries
        .iter()
        .map(|(name, _)| (*name, if denied.contains(name) { "EACCES" } else { "ok" }))
        .collect();
    assert_eq!(
        outcomes,
        expected.into_iter().map(|(n, o)| (n.to_owned(), o.to_owned())).collect(),
        "{run:?}"
    );
    assert_eq!(std::fs::read_to_string(base.join("upper/file")).unwrap(), "below and above");
}

#[test]
fn what_the_sandbox_may_write_it_may_not_execute() {
    let scene = Scene::new();
    if !scene.has_lsm() {
        return;
    }
    let work = std::fs::canonicalize(scene.world.work()).unwrap();
    let tries = [
        ("copy", "import shutil; shutil.copy('/bin/true', 'own'); start('./own')"),
        ("script", "open('s', 'w').write('#!/bin/sh\\n'); os.chmod('s', 0o755); start('./s')"),
        ("loader", "start('/lib64/ld-linux-x86-64.so.2', './own')"),
        ("mapped", "mapped('own')"),
        (
            "protected",
            "m = mmap.mmap(os.open('own', os.O_RDONLY), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ); a = ctypes.addressof(ctypes.c_char.from_buffer_copy(b'x')); call(10, ctypes.c_void_p(int(open('/proc/self/maps').read().split('own')[0].splitlines()[-1].split('-')[0], 16)), ctypes.c_size_t(4096), 5)",
        ),
        ("memfd", "start('/proc/self/fd/%d' % copied('/bin/true'))"),
        (
            "deleted",
            "f = os.open('own', os.O_RDONLY); os.unlink('own'); start('/proc/self/fd/%d' % f)",
        ),
        ("system", "start('/bin/true')"),
    ];
    for (policy, outcome) in [("", "EACCES"), ("execution: { from_writable: allow }", "ok")] {
        let policy = scene.policy("").replace("execution: { from_writable: allow }", policy);
        let (outcomes, run) = attempts(&scene, &policy, &tries);
        assert_eq!(outcomes["system"], "ok", "{outcomes:?}");
        for name in ["copy", "script", "mapped", "protected", "deleted"] {
            assert_eq!(outcomes[name], outcome, "{name}: {outcomes:?}");
        }
        // What has no place in a directory is no program, whatever is said of writable files.
        assert_eq!(outcomes["memfd"], "EACCES", "{outcomes:?}");
        let own = work.join("own").display().to_string();
        let denials = denials(&run);
        let is_told = denials.contains(&("start-program", "writable-program", &own))
            && denials.contains(&("map", "writable-program", &own));
        assert_eq!(is_told, outcome == "EACCES", "{denials:?}");
    }
}

#[test]
fn a_rule_for_one_binary_opens_a_path_to_it_and_to_nobody_else() {
    let scene = Scene::new();
    if !scene.has_lsm() {
        return;
    }
    let private = std::fs::canonicalize(scene.world.work()).unwrap().parent().unwrap().join("data");
    std::fs::create_dir(&private).unwrap();
    std::fs::write(private.join("config"), "for cat alone").unwrap();
    let shared = private.with_file_name("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::copy("/bin/true", shared.join("prog")).unwrap();
    open_to_all(&private);
    open_to_all(&shared);
    let policy = scene.policy("").replace(
        "read_write: [/dev/null]",
        &format!(
            "read_write: [/dev/null]\n  rules:\n    - binaries: [{{ path: /usr/bin/cat, match: self }}]\n      \
             read_only: [{p}]\n    - binaries: [{{ path: /usr/bin/tee }}]\n      read_write: [{p}, {s}]",
            p = private.display(),
            s = shared.display()
        ),
    );
    // All may read the second directory, and one program may write it: then nobody executes it.
    let policy = policy
        .replace(
            "/proc, ",
            &format!("/proc, {}, ", scene.world.work().parent().unwrap().join("shared").display()),
        )
        .replace("execution: { from_writable: allow }\n", "");
    let prog = shared.join("prog").display().to_string();
    let file = private.join("config").display().to_string();
    let script = format!(
        "cat {file}; echo cat $?; head -c3 {file}; echo head $?; echo by tee | tee {file}; \
         echo tee $?; cat {file}; echo x | dd of={file} 2>/dev/null; echo dd $?; \
         cat /bin/true | tee {prog} >/dev/null; echo wrote $?; {prog} 2>/dev/null; echo ran $?"
    );
    let clawbox = Clawbox::new(&scene.world, &policy).with_lsm();
    let run = clawbox.run(&["/bin/sh", "-c", &script]);
    let said: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(
        said,
        ["for cat alonecat 0", "head 1", "by tee", "tee 0", "by tee", "dd 1", "wrote 0", "ran 126"],
        "{run:?}"
    );
    let denials = denials(&run);
    assert!(denials.contains(&("open", "unknown-file", &file)), "{denials:?}");
    assert!(denials.contains(&("start-program", "writable-program", &prog)), "{denials:?}");
}

#[test]
fn another_process_and_the_kernels_own_rights_are_out_of_reach() {
    let scene = Scene::new();
    if !scene.has_lsm() {
        return;
    }
    // As root and with the host's processes in sight, so that only the hooks and the empty
    // capabilities stand in the way.
    let host = std::process::id();
    let tries = [
        ("environment", format!("read('/proc/{host}/environ')")),
        ("memory", format!("read('/proc/{host}/mem')")),
        ("signal", format!("os.kill({host}, 0)")),
        ("own-child", "p = os.fork() or os._exit(0); os.waitpid(p, 0)".to_owned()),
        (
            "own-signal",
            "import signal; p = os.fork() or signal.pause(); os.kill(p, 9); os.waitpid(p, 0)"
                .to_owned(),
        ),
        ("own-memory", "read('/proc/self/environ')".to_owned()),
    ];
    let tries: Vec<(&str, &str)> =
        tries.iter().map(|(name, code)| (*name, code.as_str())).collect();
    let clawbox = Clawbox::new(&scene.world, &scene.policy("")).user(None).with_lsm();
    let clawbox = clawbox.argument("--share").argument("pid");
    let mut running = clawbox.spawn(&[PYTHON, "-c", ATTACKER]);
    for (name, code) in &tries {
        running.say(&format!("{name}: {code}"));
    }
    let run = running.wait();
    let outcome = |name: &str| {
        let line = run.stdout.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name}: {run:?}")).to_owned()
    };
    for name in ["environment", "memory", "signal"] {
        assert!(["EPERM", "EACCES"].contains(&outcome(name).as_str()), "{name}: {run:?}");
    }
    for name in ["own-child", "own-signal", "own-memory"] {
        assert_eq!(outcome(name), "ok", "{name}: {run:?}");
    }
    let told = |action: &str| {
        run.trail.iter().any(|record| {
            record["class"] == "privilege"
                && record["action"] == action
                && record["reason"] == "other-process"
                && record["object"]["other_pid"] == host
        })
    };
    // Landlock is asked first, and where it scopes signals nothing is left for the hooks to refuse.
    let layers = run.records("start")[0]["object"]["layers"].as_array().unwrap().clone();
    let scoped =
        layers.iter().any(|layer| layer["layer"] == "landlock.scopes" && layer["state"] == "full");
    assert!(told("trace") || told("signal") || scoped, "{:#?}", run.denials());
}
