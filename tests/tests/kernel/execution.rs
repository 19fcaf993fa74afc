//! Program starts: the list of programs, what a start takes from its environment, and which script a
//! process is. By BPF LSM; a run tries many things, as in `files.rs`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clawbox_tests::clawbox::Clawbox;

use crate::files::{PYTHON, attempts, denials};
use crate::scene::{Account, Scene};

fn outcomes<'a>(expected: &[(&'a str, &'a str)]) -> std::collections::BTreeMap<String, String> {
    expected.iter().map(|(name, outcome)| ((*name).to_owned(), (*outcome).to_owned())).collect()
}

#[test]
fn only_listed_programs_start_and_a_script_needs_its_interpreter_listed_too() {
    let scene = Scene::new();
    if !scene.has_lsm() {
        return;
    }
    let effect = std::fs::canonicalize(scene.world.work()).unwrap().join("effect");
    let text = |program: &str| format!("#!{program}\necho started > {}\n", effect.display());
    let script = |name: &str, text: &str| scene.world.script(name, text).display().to_string();
    let listed = script("listed", "#!/bin/sh\nexit 0\n");
    let unlisted = script("unlisted", &text("/bin/sh"));
    let foreign = script("foreign", &text("/usr/bin/bash"));
    let list = format!("allow: [{PYTHON}, /usr/bin/true, /bin/sh, {listed}, {foreign}]");
    let policy =
        scene.policy("").replace("from_writable: allow", &format!("from_writable: allow, {list}"));
    let scripts = [&listed, &unlisted, &foreign].map(|script| format!("start('{script}')"));
    let tries = [
        ("listed", "start('/usr/bin/true')"),
        ("by-symlink", "os.symlink('/usr/bin/true', 'link'); start('./link')"),
        ("unlisted", "start('/usr/bin/head', '/dev/null')"),
        ("unlisted-by-symlink", "os.symlink('/usr/bin/head', 'true'); start('./true')"),
        ("copy", "import shutil; shutil.copy('/usr/bin/true', 'own'); start('./own')"),
        ("loader", "start('/lib64/ld-linux-x86-64.so.2', '/usr/bin/true')"),
        ("descriptor", "start('/proc/self/fd/%d' % os.open('/usr/bin/head', os.O_RDONLY))"),
        ("memory", "start('/proc/self/fd/%d' % copied('/usr/bin/true'))"),
        ("script", &scripts[0]),
        ("unlisted-script", &scripts[1]),
        ("interpreter-unlisted", &scripts[2]),
        ("grandchild", "start('/bin/sh', '-c', '/usr/bin/head /dev/null || exit 127')"),
    ];
    let (tried, run) = attempts(&scene, &policy, &tries);
    let open = ["listed", "by-symlink", "script"];
    let expected: Vec<(&str, &str)> = tries
        .iter()
        .map(|(name, _)| (*name, if open.contains(name) { "ok" } else { "EACCES" }))
        .collect();
    assert_eq!(tried, outcomes(&expected), "{run:?}");
    assert!(!effect.exists());
    let denials = denials(&run);
    let real = |path: &str| std::fs::canonicalize(path).unwrap().display().to_string();
    for program in ["/usr/bin/head", "/usr/bin/bash", "/lib64/ld-linux-x86-64.so.2", &unlisted] {
        let denial = ("start-program", "unlisted-program", real(program));
        assert!(denials.contains(&(denial.0, denial.1, &denial.2)), "{denial:?}: {denials:#?}");
    }
    // The listed script was let through to its interpreter, which was not.
    let told = real(&foreign);
    assert!(!denials.iter().any(|(_, _, path)| *path == told), "{denials:#?}");
}

#[test]
fn the_command_itself_has_to_be_listed() {
    let scene = Scene::new();
    if !scene.has_lsm() {
        return;
    }
    let policy = scene.policy("execution: { allow: [/usr/bin/true] }");
    let policy = policy.replacen("execution: { from_writable: allow }\n", "", 1);
    let run = Clawbox::new(&scene.world, &policy).with_lsm().run(&["/usr/bin/id"]);
    assert_eq!((run.status, run.stdout.as_str()), (126, ""), "{run:?}");
    let denial = ("start-program", "unlisted-program", "/usr/bin/id");
    assert!(denials(&run).contains(&denial), "{:#?}", run.denials());
}

/// What the loader says of a library that it cannot find it says only where it looked for it, and
/// `AT_SECURE` is what it goes by.
#[test]
fn a_named_program_takes_no_code_from_its_environment() {
    let scene = Scene::new();
    if !scene.has_lsm() {
        return;
    }
    let policy = scene.allowing(PYTHON, "{ host: api.test, port: 7 }");
    let named_script = scene.world.script("named", "#!/usr/bin/env python3\nprint(1)\n");
    let policy = policy
        .replace("binaries: [", &format!("binaries: [{{ path: {} }}, ", named_script.display()));
    let script = format!(
        r#"
import ctypes, subprocess, sys
secure = "import ctypes; print(ctypes.CDLL(None).getauxval(23))"
exec(secure)
def run(*command, **variables):
    done = subprocess.run(command, env=dict(variables), capture_output=True, text=True)
    print(done.stdout.strip() or "-", "preload" in done.stderr)
run("{PYTHON}", "-c", secure)
run("{PYTHON}", "-c", secure, LD_PRELOAD="/no/such.so")
run("/usr/bin/head", "-c0", "/dev/null", LD_PRELOAD="/no/such.so")
run("{named}", LD_PRELOAD="/no/such.so", PATH="/usr/bin")
maps = "print('pcre' in open('/proc/self/maps').read())"
library = "/lib/x86_64-linux-gnu/libpcre2-8.so.0"
run("{PYTHON}", "-c", maps, LD_PRELOAD=library)
done = subprocess.run(["/usr/bin/cat", "/proc/self/maps"], env={{"LD_PRELOAD": library}}, capture_output=True)
print(b"pcre" in done.stdout)
"#,
        named = named_script.display()
    );
    let run = Clawbox::new(&scene.world, &policy).with_lsm().run(&[PYTHON, "-c", &script]);
    let said: Vec<&str> = run.stdout.lines().collect();
    // An unnamed program is its caller's: there the library is looked for, and loaded.
    let expected = ["1", "1 False", "1 False", "- True", "1 False", "False False", "True"];
    assert_eq!(said, expected, "{run:?}");
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
