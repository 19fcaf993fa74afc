//! Finds the BPF object that `cargo xtask build` makes, so that the agent can carry it.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=CLAWBOX_BPF_OBJECT");
    let object = std::env::var_os("CLAWBOX_BPF_OBJECT").map_or_else(
        || {
            let package = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
            package.join("../target/bpf/clawbox-ebpf.o")
        },
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(found) => println!("cargo::rustc-env=CLAWBOX_BPF_OBJECT={}", found.display()),
        Err(error) => println!(
            "cargo::error=the BPF object `{}` is not there ({error}); `cargo xtask build` makes it",
            object.display()
        ),
    }
}
