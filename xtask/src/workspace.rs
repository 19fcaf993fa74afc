//! Where things are: the repository, its build output, and the cargo that started us.
//! Everything xtask makes stays under `target/`, so `cargo clean` undoes it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The repository this xtask was built from.
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// The workspace whose `cargo xtask` is running.
    pub fn locate() -> Result<Self> {
        // cargo sets the variable at run time too; the compiled-in value serves a directly
        // started binary and would be stale in a target directory shared by two checkouts.
        let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest_dir
            .parent()
            .with_context(|| format!("`{}` has no parent directory", manifest_dir.display()))?
            .to_path_buf();
        let target =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let target = if target.is_absolute() { target } else { root.join(target) };
        Ok(Self { root, target })
    }

    /// The repository's top directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where cargo puts the workspace's own binaries.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The `clawbox` binary of the given profile.
    pub fn clawbox(&self, release: bool) -> PathBuf {
        self.target.join(if release { "release" } else { "debug" }).join("clawbox")
    }

    /// Tools that setup installs for this checkout alone.
    pub fn tools(&self) -> PathBuf {
        self.root.join("target/tools")
    }

    /// Where the BPF object goes; clawbox-userspace's build script looks here.
    pub fn bpf_object(&self) -> PathBuf {
        self.root.join("target/bpf/clawbox-ebpf.o")
    }

    /// The cargo that is running us, in the repository's top directory.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(cargo_program());
        command.current_dir(&self.root);
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(is_per_package) {
                command.env_remove(name);
            }
        }
        command
    }
}

/// The cargo binary itself: below rustup this is the toolchain's, not the proxy.
pub fn cargo_program() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// Variables that `cargo run` sets for xtask itself and that describe xtask, not what it builds.
fn is_per_package(name: &str) -> bool {
    name.starts_with("CARGO_PKG_")
        || name.starts_with("CARGO_MANIFEST_")
        || name.starts_with("CARGO_BIN_")
        || matches!(name, "CARGO_CRATE_NAME" | "CARGO_PRIMARY_PACKAGE" | "OUT_DIR")
}

/// Variables that must not reach a build with another compiler for another target.
pub fn leaks_into_another_build(name: &str) -> bool {
    if name == "CARGO_BUILD_JOBS" {
        return false;
    }
    is_per_package(name)
        || name.starts_with("RUSTC")
        || name.starts_with("RUSTDOC")
        || name.starts_with("CARGO_BUILD_")
        || name.starts_with("CARGO_PROFILE_")
        || name.starts_with("CARGO_TARGET_")
        || name.starts_with("RUSTUP_TOOLCHAIN")
        || matches!(name, "CARGO" | "CARGO_ENCODED_RUSTFLAGS" | "LD_LIBRARY_PATH" | "RUSTFLAGS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outer_build_does_not_leak_into_the_inner_one() {
        for name in [
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_MANIFEST_DIR",
            "CARGO_PKG_NAME",
            "CARGO_PROFILE_RELEASE_LTO",
            "CARGO_TARGET_DIR",
            "LD_LIBRARY_PATH",
            "RUSTC_WRAPPER",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(leaks_into_another_build(name), "{name}");
        }
    }

    #[test]
    fn what_the_user_configured_for_the_network_stays() {
        for name in ["CARGO_BUILD_JOBS", "CARGO_HOME", "CARGO_NET_OFFLINE", "PATH", "RUSTUP_HOME"] {
            assert!(!leaks_into_another_build(name), "{name}");
        }
    }
}
