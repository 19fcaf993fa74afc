//! Allows are remembered with the object: none outlives the path for which it was found, whoever
//! moves the object, and from wherever. That they are one binary's is in `files.rs`.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sched::{CloneFlags, setns};

use clawbox_tests::clawbox::{Clawbox, Running};

use crate::attacks::attempt::{ATTACKER, PYTHON};
use crate::scene::Scene;

struct Tree {
    root: String,
    running: Running,
}

impl Tree {
    /// A sandbox that may write a tree but for `closed` in it, and every `.env`.
    fn new(scene: &Scene) -> Self {
        let tree = scene.world.work().join("tree");
        for directory in ["open/deep", "closed", "mnt"] {
            fs::create_dir_all(tree.join(directory)).unwrap();
        }
        let root = tree.display().to_string();
        let policy = scene
            .policy("")
            .replace("[/dev/null]", &format!("[/dev/null, {root}]"))
            .replace("include_workdir: true", "include_workdir: false")
            .replace(
                "  read_write:",
                &format!("  deny: [{root}/closed, \"**/.env\"]\n  read_write:"),
            );
        let clawbox = Clawbox::new(&scene.world, &policy).user(None).with_lsm();
        let running = clawbox.argument("--share=mount").spawn(&[PYTHON, "-c", ATTACKER]);
        Self { root, running }
    }

    /// Opens a file below the tree, several times, and gives the outcome that all had.
    #[track_caller]
    fn reads(&mut self, path: &str) -> String {
        let outcomes: Vec<String> = (0..3)
            .map(|_| {
                self.running.say(&format!("it: read('{}/{path}')", self.root));
                self.running.line().strip_prefix("it ").unwrap().to_owned()
            })
            .collect();
        assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{outcomes:?}");
        outcomes[0].clone()
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        Path::new(&self.root).join(path)
    }

    /// Changes the mounts that clawbox sees, and with it this sandbox, which shares them.
    fn mount(&self, arguments: &[&str]) {
        let mounts = fs::File::open(format!("/proc/{}/ns/mnt", self.running.child.id())).unwrap();
        let mut command = Command::new("mount");
        command.args(arguments);
        // SAFETY: the closure makes one system call on a descriptor that it owns.
        unsafe {
            command.pre_exec(move || Ok(setns(mounts.as_fd(), CloneFlags::CLONE_NEWNS)?));
        }
        assert!(command.status().unwrap().success(), "{arguments:?}");
    }
}

#[test]
fn no_allow_outlives_a_move_a_name_or_a_change_of_the_mounts() {
    let scene = Scene::new();
    if !scene.has_lsm() {
        return;
    }
    // One sandbox for both, because an emulated machine takes long to load the programs.
    let mut tree = Tree::new(&scene);
    none_is_remembered_for_another_path(&mut tree);
    none_is_remembered_over_a_change_of_the_mounts(&mut tree);
}

fn none_is_remembered_for_another_path(tree: &mut Tree) {
    for file in ["open/deep/file", "open/renamed", "open/linked", "open/two", "open/exchanged"] {
        fs::write(tree.at(file), "text").unwrap();
        assert_eq!(tree.reads(file), "ok", "{file}");
    }
    // A directory above it moves.
    fs::rename(tree.at("open/deep"), tree.at("closed/deep")).unwrap();
    assert_eq!(tree.reads("closed/deep/file"), "EACCES");
    fs::rename(tree.at("closed/deep"), tree.at("open/deep")).unwrap();
    assert_eq!(tree.reads("open/deep/file"), "ok");
    // It gets another name itself.
    fs::rename(tree.at("open/renamed"), tree.at("open/.env")).unwrap();
    assert_eq!(tree.reads("open/.env"), "EACCES");
    // It gets a second name, and loses the first.
    assert_eq!(tree.reads("open/linked"), "ok");
    fs::hard_link(tree.at("open/linked"), tree.at("closed/linked")).unwrap();
    assert_eq!(tree.reads("open/linked"), "ok");
    assert_eq!(tree.reads("closed/linked"), "EACCES");
    fs::remove_file(tree.at("open/linked")).unwrap();
    assert_eq!(tree.reads("closed/linked"), "EACCES");
    assert_eq!(tree.reads("open/two"), "ok");
    // It loses a name because another object takes it.
    fs::hard_link(tree.at("open/two"), tree.at("closed/two")).unwrap();
    fs::write(tree.at("open/other"), "").unwrap();
    fs::rename(tree.at("open/other"), tree.at("open/two")).unwrap();
    assert_eq!(tree.reads("closed/two"), "EACCES");
    assert_eq!(tree.reads("open/two"), "ok");
}

fn none_is_remembered_over_a_change_of_the_mounts(tree: &mut Tree) {
    let (open, closed) = (tree.at("mnt"), tree.at("closed/mnt"));
    fs::create_dir(&closed).unwrap();
    let (open, closed) = (open.display().to_string(), closed.display().to_string());
    tree.mount(&["-t", "tmpfs", "none", &open]);
    tree.running.say(&format!("it: os.close(os.open('{open}/file', os.O_CREAT | os.O_WRONLY))"));
    assert_eq!(tree.running.line(), "it ok");
    assert_eq!(tree.reads("mnt/file"), "ok");
    tree.mount(&["--move", &open, &closed]);
    assert_eq!(tree.reads("closed/mnt/file"), "EACCES");
    tree.mount(&["--move", &closed, &open]);
    assert_eq!(tree.reads("mnt/file"), "ok");
    // The same file by another mount is another path.
    tree.mount(&["--bind", &open, &closed]);
    assert_eq!(tree.reads("mnt/file"), "ok");
    assert_eq!(tree.reads("closed/mnt/file"), "EACCES");
}
