//! Rows 3 to 6: what becomes a program, with which code, and what an allowed one is replaced by.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clawbox_tests::clawbox::Clawbox;
use clawbox_tests::layer::{self, Layer};

use super::attempt::{Attempt, PYTHON, attempts, find, got_through, harmless, hostile};
use crate::scene::{Account, Scene};

/// Row 5, and what of row 3 is about mappings: programs from what the sandbox can write.
fn from_what_can_be_written() -> Vec<Attempt> {
    let own = "import shutil; shutil.copy('/bin/true', 'own'); ";
    let run = |row: u8, name: &str, code: &str| hostile(row, name, format!("{own}{code}"));
    vec![
        harmless("a program of the system", "start('/bin/true')"),
        run(5, "a copy started", "start('./own')"),
        run(
            5,
            "a script started",
            "open('s', 'w').write('#!/bin/sh\\n'); os.chmod('s', 0o755); start('./s')",
        ),
        run(5, "a copy started by the loader", "start('/lib64/ld-linux-x86-64.so.2', './own')"),
        run(
            5,
            "an unlinked file started",
            "f = os.open('own', os.O_RDONLY); os.unlink('own'); start('/proc/self/fd/%d' % f)",
        ),
        hostile(5, "a memfd started", "start('/proc/self/fd/%d' % copied('/bin/true'))"),
        hostile(
            5,
            "an O_TMPFILE file started",
            "t = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o755); os.write(t, read('/bin/true')); \
             f = os.open('/proc/self/fd/%d' % t, os.O_RDONLY); os.close(t); start('/proc/self/fd/%d' % f)",
        ),
        hostile(
            5,
            "a file in /dev/shm started",
            "import shutil; n = '/dev/shm/clawbox-%d' % os.getpid(); shutil.copy('/bin/true', n); \
             f = os.open(n, os.O_RDONLY); os.unlink(n); start('/proc/self/fd/%d' % f)",
        ),
        hostile(
            5,
            "execveat of a memfd",
            "call(322, copied('/bin/true'), b'', None, None, 0x1000)",
        ),
        run(3, "a library mapped from a writable path", "mapped('own')"),
        run(
            3,
            "a mapping made executable",
            "m = mmap.mmap(os.open('own', os.O_RDONLY), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ); \
             a = int([l for l in open('/proc/self/maps') if '/own' in l][-1].split('-')[0], 16); \
             call(10, ctypes.c_void_p(a), ctypes.c_size_t(4096), 5)",
        ),
    ]
}

#[test]
fn what_the_sandbox_may_write_it_may_not_execute() {
    let scene = Scene::new();
    let has_lsm = scene.has_lsm();
    let work = std::fs::canonicalize(scene.world.work()).unwrap();
    let policy = scene.policy("").replace("[/dev/null]", "[/dev/null, /dev/shm]");
    let sandbox = |policy: &str| {
        let clawbox = Clawbox::new(&scene.world, policy);
        if has_lsm { clawbox.with_lsm() } else { clawbox }
    };
    let closed = policy.replace("execution: { from_writable: allow }", "");
    let tries = from_what_can_be_written();
    let tried = attempts(|| sandbox(&closed), &tries);
    if !has_lsm {
        return;
    }
    assert_eq!(got_through(&tries, &tried).count(), 0, "{tried:#?}");
    let own = work.join("own").display().to_string();
    for (name, action) in [
        ("a copy started", "start-program"),
        ("a copy started by the loader", "map"),
        ("a library mapped from a writable path", "map"),
    ] {
        let found = find(&tried, name);
        assert!(found.has(action, "writable-program") && found.paths().contains(&own.as_str()));
    }
    // What has no place in a directory is no program, whatever is said of writable files.
    let names =
        ["a copy started", "a library mapped from a writable path", "a mapping made executable"];
    let tries: Vec<Attempt> = from_what_can_be_written()
        .into_iter()
        .filter(|attempt| names.contains(&attempt.name.as_str()))
        .map(Attempt::now_harmless)
        .chain([hostile(
            5,
            "a memfd started, writable files allowed",
            "start('/proc/self/fd/%d' % copied('/bin/true'))",
        )])
        .collect();
    let tried = attempts(|| sandbox(&policy), &tries);
    assert_eq!(got_through(&tries, &tried).count(), 0, "{tried:#?}");
}

/// What the loader says of a library that it cannot find it says only where it looked for it, and
/// `AT_SECURE` is what it goes by.
#[test]
fn a_named_program_takes_no_code_from_its_environment() {
    let scene = Scene::new();
    let has_lsm = scene.has_lsm();
    let named_script = scene.world.script("named", "#!/usr/bin/env python3\nprint(1)\n");
    let startup = scene.world.script("startup", "print('startup')\n");
    let policy = scene
        .allowing(PYTHON, "{ host: api.test, port: 7 }")
        .replace("binaries: [", &format!("binaries: [{{ path: {} }}, ", named_script.display()));
    let script = format!(
        r#"
import subprocess
secure = "import ctypes; print(ctypes.CDLL(None).getauxval(23))"
exec(secure)
def run(*command, **variables):
    done = subprocess.run(command, env=dict(variables), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    print(done.stdout.strip() or "-", "such.so" in done.stderr)
run("{PYTHON}", "-c", secure)
run("{PYTHON}", "-c", secure, LD_PRELOAD="/no/such.so")
run("{PYTHON}", "-c", secure, LD_AUDIT="/no/such.so")
run("/usr/bin/head", "-c0", "/dev/null", LD_PRELOAD="/no/such.so")
run("{named}", LD_PRELOAD="/no/such.so", PATH="/usr/bin")
maps = "print('pcre' in open('/proc/self/maps').read())"
library = "/lib/x86_64-linux-gnu/libpcre2-8.so.0"
run("{PYTHON}", "-c", maps, LD_PRELOAD=library)
run("/usr/bin/sh", "-c", "grep -q pcre /proc/$$/maps && echo True", LD_PRELOAD=library)
run("{PYTHON}", "-i", PYTHONSTARTUP="{startup}")
"#,
        named = named_script.display(),
        startup = startup.display()
    );
    let clawbox = Clawbox::new(&scene.world, &policy);
    let clawbox = if has_lsm { clawbox.with_lsm() } else { clawbox };
    let run = clawbox.run(&[PYTHON, "-c", &script]);
    let said: Vec<&str> = run.stdout.lines().collect();
    // An unnamed program is its caller's: there the library is looked for, and loaded. What an
    // interpreter does with variables of its own is its own affair.
    let expected = if has_lsm {
        [
            "1",
            "1 False",
            "1 False",
            "1 False",
            "- True",
            "1 False",
            "False False",
            "True False",
            "startup False",
        ]
    } else {
        [
            "0",
            "0 False",
            "0 True",
            "0 True",
            "- True",
            "1 True",
            "True False",
            "True False",
            "startup False",
        ]
    };
    assert_eq!(said, expected, "{run:?}");
    let scrubbed = if has_lsm { Layer::BpfLsm } else { Layer::NotStopped };
    for variable in ["LD_PRELOAD", "LD_AUDIT", "LD_PRELOAD of a named script"] {
        layer::tell(3, variable, scrubbed);
    }
    layer::tell(3, "PYTHONSTARTUP of an allowed interpreter", Layer::NotStopped);
}

/// Its interpreter opens the script again by the path that exec was given. Were a process the script
/// by a path that it can exchange, it could put another script there once it has the identity.
#[test]
fn a_script_is_known_by_its_file_where_its_path_leads_to_nothing_else() {
    let scene = Scene::new();
    if !scene.has_lsm() {
        return;
    }
    let attack = scene.attack();
    let named = scene.world.script("named", &format!("#!/bin/sh\n{attack} tcp=v4.test:7\n"));
    let beside = named.with_file_name("beside");
    std::fs::hard_link(&named, &beside).unwrap();
    let work = scene.world.work();
    let linked = work.join("linked");
    std::fs::hard_link(&named, &linked).unwrap();
    let policy = scene.allowing(&named.display().to_string(), "{ host: v4.test, port: 7 }");
    let (named, beside) = (named.display().to_string(), beside.display().to_string());
    let bin = Path::new(&named).parent().unwrap().display().to_string();
    let script = format!(
        "{named}; {beside}; ln -s {named} soft; ./soft; {work}/linked; cd {bin}; ./named; \
         sh {named}; {bin}/../bin/named; \
         chmod 000 {named} 2>/dev/null; {attack} exec {named} 2>/dev/null; {attack} tcp=v4.test:7",
        work = work.display(),
    );
    let clawbox = Clawbox::new(&scene.world, &policy).with_lsm();
    let account = Account::of(clawbox.run(&["/bin/sh", "-c", &script]));
    let step = "tcp=v4.test:7";
    let (yes, no) = ((step, "ok"), (step, "EPERM"));
    // By its own path and by its other name where nobody can change it. By symlink, by a name in a
    // directory that the sandbox writes, by relative path, as an argument, by a path with dots: no.
    // By exec from the attacker: again by its own path. Afterwards nobody.
    account.expect(&[yes, yes, no, no, no, no, no, yes, no]);
    assert_eq!(scene.echo.arrivals().len(), 3);
    assert_eq!(account.denials().iter().filter(|(action, _)| *action == "connect").count(), 6);
    let mode = std::fs::metadata(&named).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
}
