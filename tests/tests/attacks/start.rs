//! Row 38: a kernel that can less, made by covering what clawbox looks at and refusing it system calls.
//! Nothing is started, or the first record says what is missing.

use clawbox_tests::clawbox::{Clawbox, Finished};
use clawbox_tests::layer::{self, Layer};
use clawbox_tests::refusal::{
    LANDLOCK, LINK, LIST_MODULES, PROGRAM_LOAD, PROGRAM_REJECTED, Refusal,
};

use crate::scene::Scene;

const LSM_LIST: &str = "/sys/kernel/security/lsm";
const BTF: &str = "/sys/kernel/btf/vmlinux";
const STARTED: &str = "started";

/// Runs a command that leaves something behind.
fn run(clawbox: Clawbox<'_>) -> Finished {
    clawbox.run(&["/bin/sh", "-c", &format!("echo > {STARTED}")])
}

/// Asserts that nothing was started, and that clawbox said why.
#[track_caller]
fn refused(scene: &Scene, attack: &str, run: &Finished, words: &[&str]) {
    assert_eq!(run.status, 125, "{attack}: {}", run.stderr);
    assert!(!scene.world.work().join(STARTED).exists(), "{attack}: started");
    for word in words {
        assert!(run.stderr.contains(word), "{attack}: no `{word}`: {}", run.stderr);
    }
    layer::tell(38, attack, Layer::Start);
}

/// Asserts that the first record says that a layer is missing, and why.
#[track_caller]
fn said(attack: &str, run: &Finished, layer: &str, word: &str) {
    assert_eq!(run.status, 0, "{attack}: {}", run.stderr);
    let layers = run.records("start")[0]["object"]["layers"].as_array().unwrap().clone();
    let found = layers.iter().find(|found| found["layer"] == layer).unwrap();
    assert_ne!(found["state"], "full", "{attack}: {found}");
    assert!(found.to_string().contains(word), "{attack}: no `{word}`: {found}");
    layer::tell(38, attack, Layer::Start);
}

#[test]
fn without_bpf_in_the_list_of_lsms_the_first_record_says_so_and_who_requires_it_is_refused() {
    let scene = Scene::new();
    let policy = scene.policy("");
    // Where security's file system is not mounted there is no list, and nothing to cover.
    let has_list = std::path::Path::new(LSM_LIST).exists();
    let list = || {
        let clawbox = Clawbox::new(&scene.world, &policy).with_lsm();
        if !has_list {
            return clawbox;
        }
        clawbox.refused(LIST_MODULES).covered(LSM_LIST, "lockdown,capability,landlock,yama")
    };
    refused(
        &scene,
        "no bpf in the LSM list, required",
        &run(list().argument("--lsm=require")),
        &["BPF LSM"],
    );
    said("no bpf in the LSM list", &run(list()), "lsm", if has_list { "`bpf`" } else { "why" });
}

#[test]
fn a_kernel_that_does_not_take_the_programs_starts_nothing() {
    let scene = Scene::new();
    let policy = scene.policy("");
    let clawbox = || Clawbox::new(&scene.world, &policy);
    refused(&scene, "no BTF", &run(clawbox().covered(BTF, "")), &["BTF"]);
    let refuses: [(&str, Refusal, &str); 3] = [
        ("lockdown refuses the programs", PROGRAM_LOAD, "kernel refused"),
        ("the verifier rejects a program", PROGRAM_REJECTED, "kernel refused"),
        ("programs cannot be attached", LINK, "kernel"),
    ];
    for (attack, refusal, word) in refuses {
        refused(&scene, attack, &run(clawbox().refused(refusal)), &[word]);
    }
}

#[test]
fn a_kernel_without_any_layer_for_files_starts_nothing() {
    let scene = Scene::new();
    let policy = scene.policy("");
    let hard = format!("{policy}landlock: {{ compatibility: hard_requirement }}\n");
    let without = |policy: &str| run(Clawbox::new(&scene.world, policy).refused(LANDLOCK));
    refused(
        &scene,
        "no Landlock, required",
        &without(&hard),
        &["filesystem_policy", "best_effort"],
    );
    refused(&scene, "no Landlock and no BPF LSM", &without(&policy), &["no filesystem layer"]);
}
