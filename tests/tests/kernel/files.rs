//! Files by binary, in one sandbox; the attacks on files are in `attacks/islands.rs`.

use std::path::Path;

use clawbox_tests::clawbox::Clawbox;
use clawbox_tests::network::copy_program;

use crate::attacks::islands::open_to_all;
use crate::scene::{Scene, denials};

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
    copy_program(Path::new("/bin/true"), &shared.join("prog"));
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
    // What one binary was allowed is not remembered for another.
    let script = format!(
        "for i in 1 2 3; do cat {file} >/dev/null && echo read; head {file} || echo held; done; \
         cat {file}; echo cat $?; head -c3 {file}; echo head $?; echo by tee | tee {file}; \
         echo tee $?; cat {file}; echo x | dd of={file} 2>/dev/null; echo dd $?; \
         cat /bin/true | tee {prog} >/dev/null; echo wrote $?; {prog} 2>/dev/null; echo ran $?"
    );
    let clawbox = Clawbox::new(&scene.world, &policy).with_lsm();
    let run = clawbox.run(&["/bin/sh", "-c", &script]);
    let again = "read\nheld\n".repeat(3);
    let rest = run.stdout.strip_prefix(&again).unwrap_or_else(|| panic!("{run:?}"));
    let said: Vec<&str> = rest.lines().collect();
    assert_eq!(
        said,
        ["for cat alonecat 0", "head 1", "by tee", "tee 0", "by tee", "dd 1", "wrote 0", "ran 126"],
        "{run:?}"
    );
    let denials = denials(&run);
    assert!(denials.contains(&("open", "unknown-file", &file)), "{denials:?}");
    assert!(denials.contains(&("start-program", "writable-program", &prog)), "{denials:?}");
}
