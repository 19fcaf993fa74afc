//! Program starts: the list of programs, what a start takes from its environment, and which script a
//! process is. By BPF LSM; a run tries many things.

use clawbox_tests::clawbox::Clawbox;

use crate::attacks::attempt::PYTHON;
use crate::scene::{Scene, attempts, denials};

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
