//! Finds the BPF object that `cargo xtask build` makes, so that the agent can carry it, and turns the
//! control API's description into code, without a compiler that would have to be installed.

use std::path::{Path, PathBuf};

/// The control API.
const API: &str = "proto/clawbox/v1/clawbox.proto";

fn main() {
    if let Err(error) = api() {
        println!("cargo::error=the control API: {error}");
    }
    object();
}

fn api() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed={API}");
    let description = protox::compile([API], ["proto"])?;
    let into = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    // For who asks the daemon what it understands.
    std::fs::write(into.join("clawbox.bin"), prost::Message::encode_to_vec(&description))?;
    // Of src/api/codec.rs.
    let codec = "crate::api::codec::SmallCodec";
    tonic_prost_build::configure().codec_path(codec).compile_fds(description)?;
    Ok(())
}

fn object() {
    println!("cargo::rerun-if-env-changed=CLAWBOX_BPF_OBJECT");
    let object = std::env::var_os("CLAWBOX_BPF_OBJECT").map_or_else(
        || {
            let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
            Path::new(&package).join("../target/bpf/clawbox-ebpf.o")
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
