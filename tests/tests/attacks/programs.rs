//! Rows 3 to 6, and of row 13 what is about programs: what becomes a program, with which code, and what an allowed one is replaced by.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use clawbox_common::limits::SCRIPT_PATH;
use clawbox_tests::clawbox::{Clawbox, Running};
use clawbox_tests::layer::{self, Layer};
use clawbox_tests::network::copy_program;
use serde_json::Value;

use super::attempt::{
    Attempt, PYTHON, attempts, find, from_then_on, got_through, harmless, hostile,
};
use super::islands::{open_to_all, owned_by_sandbox};
use crate::live::{change_to, changes};
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
    let closed = policy.replace("execution: { from_writable: allow }", "");
    let tries = from_what_can_be_written();
    if !has_lsm {
        attempts(|| Clawbox::new(&scene.world, &closed), &tries);
        return;
    }
    // What has no place in a directory is no program, whatever is said of writable files.
    let names =
        ["a copy started", "a library mapped from a writable path", "a mapping made executable"];
    let allowed = from_what_can_be_written()
        .into_iter()
        .filter(|attempt| names.contains(&attempt.name.as_str()))
        .map(|attempt| attempt.named("allowed").now_harmless())
        .chain([hostile(
            5,
            "a memfd started, writable files allowed",
            "start('/proc/self/fd/%d' % copied('/bin/true'))",
        )]);
    let tries = from_then_on(change_to(&scene, "writable", &closed), tries);
    let tries: Vec<Attempt> = allowed.chain(tries).collect();
    let sandbox = || Clawbox::new(&scene.world, &policy).name("writable").with_lsm();
    let tried = attempts(sandbox, &tries);
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
    let clawbox = Clawbox::new(&scene.world, &policy).with_lsm_if(has_lsm);
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
    account.tell(&[
        (0, "its own path"),
        (0, "its other name in the same directory"),
        (4, "a named script by a symlink"),
        (4, "a named script by a link in a writable directory"),
        (4, "a named script by a relative path, its file being known"),
        (4, "a named script as an argument, its file being known"),
        (4, "a named script by a path with dots"),
        (0, "exec from another program"),
        (4, "what a failed start leaves"),
    ]);
    assert_eq!(scene.echo.arrivals().len(), 3);
    assert_eq!(account.denials().iter().filter(|(action, _)| *action == "connect").count(), 6);
    let mode = std::fs::metadata(&named).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
}

/// The files' own permissions would let the sandbox's user do all of it.
#[test]
fn an_allowed_binary_is_neither_overwritten_nor_replaced() {
    let scene = Scene::new();
    let has_lsm = scene.has_lsm();
    let directory = scene.world.bin().join("owned");
    std::fs::create_dir(&directory).unwrap();
    let tool = scene.world.install(&scene.attack, "owned/tool");
    owned_by_sandbox(&directory);
    open_to_all(&directory);
    let tool = tool.display().to_string();
    let policy = scene.allowing(&tool, "{ host: v4.test, port: 7 }");
    let mine = "write('mine', os.O_CREAT); ";
    let tries = [
        hostile(6, "written", format!("write('{tool}')")),
        hostile(6, "truncated", format!("os.truncate('{tool}', 0)")),
        hostile(6, "unlinked", format!("os.unlink('{tool}')")),
        hostile(6, "moved away", format!("os.rename('{tool}', '{tool}.old')")),
        hostile(6, "replaced by rename", format!("{mine}os.rename('mine', '{tool}')")),
        hostile(6, "exchanged", format!("{mine}exchange('mine', '{tool}')")),
        hostile(6, "its directory moved away", {
            format!("os.rename('{d}', '{d}.old')", d = directory.display())
        }),
        hostile(
            6,
            "linked to where it may be written",
            format!("os.link('{tool}', 'linked'); write('linked')"),
        ),
    ];
    let sandbox = || Clawbox::new(&scene.world, &policy).with_lsm_if(has_lsm);
    let tried = attempts(sandbox, &tries);
    assert_eq!(got_through(&tries, &tried).count(), 0, "{tried:#?}");
    assert_eq!(std::fs::read(&tool).unwrap(), std::fs::read(&scene.attack).unwrap());
    // The host's root may, and what is then there is another file.
    let step = "tcp=v4.test:7";
    let script = format!("{tool} {step}; read a; {tool} {step}");
    let mut running = Clawbox::new(&scene.world, &policy).spawn(&["/bin/sh", "-c", &script]);
    running.line();
    let next = scene.world.install(&scene.attack, "owned/next");
    std::fs::rename(next, &tool).unwrap();
    running.say("go");
    let account = Account::of(running.wait());
    account.expect(&[(step, "ok"), (step, "EPERM")]);
    account.tell(&[(0, "before"), (6, "replaced from outside")]);
}

/// Its inode stays, so only that it may not be executed stands in the way: where the policy lets
/// writable files be executed, or the kernel has no BPF LSM, naming such a binary names whoever can
/// write it.
#[test]
fn a_named_binary_in_a_writable_tree_is_not_executed_once_it_is_another() {
    let scene = Scene::new();
    let has_lsm = scene.has_lsm();
    let tool = std::fs::canonicalize(scene.world.work()).unwrap().join("tool");
    let allowing = scene.allowing(&tool.display().to_string(), "{ host: v4.test, port: 7 }");
    let closed = allowing.replace("execution: { from_writable: allow }\n", "");
    let script = format!(
        "while read a; do cat {} > tool; ./tool tcp=v4.test:7; echo end; done",
        scene.attack()
    );
    let start = |policy: &str| {
        let clawbox = Clawbox::new(&scene.world, policy).with_lsm_if(has_lsm);
        clawbox.spawn(&["/bin/sh", "-c", &script])
    };
    // Its inode stays, whatever is written to it.
    let as_it_was = || {
        copy_program(Path::new("/bin/true"), &tool);
        open_to_all(&tool);
        owned_by_sandbox(&tool);
    };
    let overwritten = |running: &mut Running| {
        as_it_was();
        running.say("go");
        // It says nothing if it was not started.
        let line = running.line();
        let told: Value = serde_json::from_str(&line).unwrap_or_default();
        assert!(line == "end" || running.line() == "end", "{line}");
        told["outcome"].as_str().unwrap_or("EACCES").to_owned()
    };
    as_it_was();
    let mut running = start(&allowing);
    let outcome = overwritten(&mut running);
    let attack = "overwritten in a writable tree whose files may be executed";
    layer::tell(6, attack, Layer::observed(&outcome, &[]));
    if has_lsm {
        changes(&scene, &running, &closed);
    } else {
        assert_eq!(running.wait().status, 0);
        running = start(&closed);
    }
    let outcome = overwritten(&mut running);
    let run = running.wait();
    let denials = run.denials();
    let denials: Vec<_> =
        denials.into_iter().filter(|record| record["action"] == "start-program").collect();
    assert!(outcome == "ok" || !denials.is_empty(), "{run:?}");
    assert!(!has_lsm || outcome != "ok", "{run:?}");
    layer::tell(6, "overwritten in a writable tree", Layer::observed(&outcome, &denials));
}

/// One byte more than the kernel's buffer for a script's path holds, and names that are no text.
#[test]
fn paths_that_are_long_or_odd_are_nobodys_and_recorded() {
    let scene = Scene::new();
    let (attack, bin) = (scene.attack(), scene.world.bin());
    let text = format!("#!/bin/sh\n{attack} tcp=v4.test:7\n");
    let directory = bin.join("d".repeat(150));
    std::fs::create_dir(&directory).unwrap();
    let room = SCRIPT_PATH - 2 - directory.as_os_str().len() - 1;
    let script = |length: usize| {
        let name = "s".repeat(length);
        let path = scene.world.script(&format!("{}/{name}", "d".repeat(150)), &text);
        path.display().to_string()
    };
    let (fits, longer) = (script(room), script(room + 1));
    let cut = script(room + 2);
    assert_eq!((fits.len(), longer.len()), (SCRIPT_PATH - 2, SCRIPT_PATH - 1));
    let odd = bin.join(std::ffi::OsStr::from_bytes(b"\xff\x01\" \n'x"));
    copy_program(Path::new(&attack), &odd);
    let deep = bin.join("deep").join("e/".repeat(200)).join("f".repeat(200)).join("g".repeat(200));
    std::fs::create_dir_all(&deep).unwrap();
    copy_program(Path::new(&attack), &deep.join("tool"));
    let policy = scene.allowing(&fits, "{ host: v4.test, port: 7 }");
    let step = "tcp=v4.test:7";
    let account = scene.shell(
        &policy,
        &format!(
            "{fits}; {longer}; {cut}; \"{bin}/$(printf '\\377\\001\\042 \\n\\047x')\" {step}; {deep}/tool {step}",
            bin = bin.display(),
            deep = deep.display()
        ),
    );
    account.expect(&[vec![(step, "ok")], vec![(step, "EPERM"); 4]].concat());
    account.tell(&[
        (0, "as long as may be"),
        (13, "a script's path one byte longer than a named one"),
        (13, "a script's path longer than the kernel's buffer"),
        (13, "odd bytes in a program's name"),
        (13, "a program 200 directories down"),
    ]);
    let told = account.run.denials();
    // Whoever has ended by then is told by its file, and by the path that it was started by.
    for (denial, path) in [(2, odd), (3, deep.join("tool"))] {
        let inode = std::fs::metadata(&path).unwrap().ino();
        let file = told[denial]["subject"]["exe_id"].as_str().unwrap();
        assert!(file.ends_with(&format!(":{inode}")), "{file}: {path:?}");
    }
    let starts = account.run.records("exec");
    let is_odd = |record: &&Value| {
        record["object"]["path"].as_str().is_some_and(|path| path.ends_with("\u{1}\" \n'x"))
    };
    assert!(starts.iter().any(is_odd), "{starts:#?}");
}
