//! The compiler and linker for BPF: any rustc that has its own library's sources will do.
//! bpf-linker is pinned, and is always given the LLVM of the rustc whose bitcode it reads.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, anyhow, bail};

use crate::packages;
use crate::process;
use crate::workspace::{self, Workspace};

/// The bpf-linker that the object was verified with.
const LINKER_VERSION: &str = "0.10.3";
/// The LLVM majors that bpf-linker can be built for.
const LINKER_LLVM: [u32; 3] = [20, 21, 22];
/// The workspace's `rust-version`.
const OLDEST_RUSTC: (u32, u32) = (1, 89);

/// Everything a build for `bpfel-unknown-none` needs.
pub struct Toolchain {
    rustc: Rustc,
    linker: PathBuf,
    llvm_dir: PathBuf,
    /// One line per thing found or done.
    pub report: Vec<String>,
}

/// A compiler that can build `core` for another target.
struct Rustc {
    program: PathBuf,
    origin: &'static str,
    version: (u32, u32),
    llvm: u32,
}

impl Toolchain {
    /// Finds the toolchain; installs what is missing.
    pub fn ensure(workspace: &Workspace) -> Result<Self> {
        let mut report = Vec::new();
        let rustc = match find_rustc()? {
            Some(rustc) => rustc,
            None => {
                install_rustc(workspace)?;
                report.push("compiler: installed rustc-web and rust-web-src".to_owned());
                find_rustc()?.ok_or_else(|| anyhow!(no_compiler()))?
            }
        };
        report.push(format!(
            "compiler: {} ({}, rustc {}.{}, LLVM {})",
            rustc.program.display(),
            rustc.origin,
            rustc.version.0,
            rustc.version.1,
            rustc.llvm
        ));
        let (linker, how) = ensure_linker(workspace, rustc.llvm)?;
        report.push(format!("linker: {} ({how})", linker.display()));
        let llvm_dir = expose_llvm(workspace, &rustc.program)?;
        Ok(Self { rustc, linker, llvm_dir, report })
    }

    /// The compiler.
    pub fn rustc(&self) -> &Path {
        &self.rustc.program
    }

    /// A cargo command that builds for BPF with this toolchain and nothing of the outer build's.
    pub fn cargo(&self, directory: &Path) -> Command {
        let mut command = Command::new(workspace::cargo_program());
        command.current_dir(directory);
        for (name, _) in env::vars_os() {
            if name.to_str().is_some_and(workspace::leaks_into_another_build) {
                command.env_remove(name);
            }
        }
        // BTF maps and programs need the debug information that `--btf` turns into BTF.
        let flags = ["-Cdebuginfo=2".to_owned(), "-Clink-arg=--btf".to_owned()];
        let linker = format!("-Clinker={}", self.linker.display());
        command
            .env("RUSTC", &self.rustc.program)
            // `build-std` on a stable compiler and the allocator-free `core` need this.
            .env("RUSTC_BOOTSTRAP", "1")
            .env(
                "CARGO_ENCODED_RUSTFLAGS",
                [&flags[0], &flags[1], &linker].map(|s| &**s).join("\x1f"),
            )
            .env("LD_LIBRARY_PATH", &self.llvm_dir);
        command
    }
}

fn find_rustc() -> Result<Option<Rustc>> {
    let mut candidates = Vec::new();
    if let Some(rustc) = rustup_nightly() {
        candidates.push((rustc, "rustup nightly with rust-src"));
    }
    candidates.push((PathBuf::from("/usr/bin/rustc"), "the distribution's, with its sources"));
    for (program, origin) in candidates {
        if !program.exists() || !has_library_sources(&program) {
            continue;
        }
        let text = process::output(Command::new(&program).arg("-vV"))?;
        let (version, llvm) = parse_versions(&text).with_context(|| {
            format!("`{} -vV` says neither release nor LLVM", program.display())
        })?;
        if version >= OLDEST_RUSTC {
            return Ok(Some(Rustc { program, origin, version, llvm }));
        }
    }
    Ok(None)
}

/// rustup's nightly compiler itself, not its proxy, where that is installed.
fn rustup_nightly() -> Option<PathBuf> {
    let rustup = process::find_program("rustup")?;
    let found = Command::new(rustup)
        .args(["which", "--toolchain", "nightly", "rustc"])
        .env("RUSTUP_AUTO_INSTALL", "0")
        .output()
        .ok()?;
    let path = String::from_utf8(found.stdout).ok()?;
    found.status.success().then(|| PathBuf::from(path.trim()))
}

fn has_library_sources(rustc: &Path) -> bool {
    process::output(Command::new(rustc).args(["--print", "sysroot"])).is_ok_and(|sysroot| {
        Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
    })
}

/// Release (major, minor) and LLVM major from `rustc -vV`.
fn parse_versions(text: &str) -> Option<((u32, u32), u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mut release = field("release:")?.split('.').map(str::parse);
    let version = (release.next()?.ok()?, release.next()?.ok()?);
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some((version, llvm))
}

fn install_rustc(workspace: &Workspace) -> Result<()> {
    if process::find_program("apt-get").is_none() || !process::is_root() {
        bail!(no_compiler());
    }
    packages::install(workspace, &["rustc-web", "rust-web-src"]).context(no_compiler())
}

fn no_compiler() -> String {
    let (major, minor) = OLDEST_RUSTC;
    format!(
        "no compiler for BPF: need a rustc >= {major}.{minor} with its library's sources. \
         Either `rustup toolchain install nightly --component rust-src`, \
         or as root `apt-get install rustc-web rust-web-src`"
    )
}

/// The pinned linker: this checkout's own, or the same version on PATH, or built now.
fn ensure_linker(workspace: &Workspace, llvm: u32) -> Result<(PathBuf, String)> {
    let own = workspace.tools().join(format!("llvm-{llvm}/bin/bpf-linker"));
    if is_pinned_linker(&own) {
        return Ok((own, format!("version {LINKER_VERSION}")));
    }
    if let Some(found) = process::find_program("bpf-linker").filter(|path| is_pinned_linker(path)) {
        return Ok((found, format!("version {LINKER_VERSION}, found on PATH")));
    }
    if !LINKER_LLVM.contains(&llvm) {
        bail!(
            "bpf-linker {LINKER_VERSION} cannot read LLVM {llvm} bitcode (it knows {LINKER_LLVM:?}); \
             install a matching compiler: {}",
            no_compiler()
        );
    }
    println!(
        "setup: building bpf-linker {LINKER_VERSION} for LLVM {llvm} (one to three minutes, once)"
    );
    let root = workspace.tools().join(format!("llvm-{llvm}"));
    process::run(
        workspace
            .cargo()
            .args(["install", "--quiet", "bpf-linker", "--locked", "--no-default-features"])
            .args(["--version", &format!("={LINKER_VERSION}")])
            .args(["--features", &format!("rust-llvm-{llvm}")])
            .arg("--root")
            .arg(&root)
            // LLVM does its work and is built already; what is built here need not be fast.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
            // `cargo install` would warn that this directory is not on PATH; it need not be.
            .env_remove("CARGO_TARGET_DIR"),
    )?;
    Ok((own, format!("built version {LINKER_VERSION}")))
}

fn is_pinned_linker(program: &Path) -> bool {
    program.exists()
        && process::output(Command::new(program).arg("--version"))
            .is_ok_and(|text| text.trim() == format!("bpf-linker {LINKER_VERSION}"))
}

/// A directory with just rustc's own LLVM in it. bpf-linker opens the first libLLVM it meets on
/// its library path, and a system directory may hold several.
fn expose_llvm(workspace: &Workspace, rustc: &Path) -> Result<PathBuf> {
    let driver = library_of(rustc, "librustc_driver")?;
    // A compiler with LLVM linked in statically has it in the driver library itself.
    let llvm = library_of(Path::new(&driver), "libLLVM").unwrap_or(driver);
    let directory = workspace.tools().join("llvm");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create `{}`", directory.display()))?;
    let link = directory.join("libLLVM.so");
    if fs::read_link(&link).ok().as_deref() != Some(&llvm) {
        let _ = fs::remove_file(&link);
        symlink(&llvm, &link).with_context(|| format!("cannot create `{}`", link.display()))?;
    }
    Ok(directory)
}

/// The path of the shared library whose name starts with `name` that `object` is linked to.
fn library_of(object: &Path, name: &str) -> Result<PathBuf> {
    // The path that `cargo run` sets would answer with another toolchain's libraries.
    let text = process::output(Command::new("ldd").arg(object).env_remove("LD_LIBRARY_PATH"))?;
    parse_ldd(&text, name)
        .with_context(|| format!("`{}` is not linked to a {name}", object.display()))
}

fn parse_ldd(text: &str, name: &str) -> Option<PathBuf> {
    text.lines()
        .map(str::trim)
        .filter(|line| line.starts_with(name))
        .find_map(|line| line.split(" => ").nth(1)?.split(" (").next().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_rustc() {
        let text = "rustc 1.97.0-nightly (x 2026-05-19)\nbinary: rustc\nhost: x86_64\n\
                    release: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(parse_versions(text), Some(((1, 97), 22)));
        assert_eq!(parse_versions("release: 1.97.0\n"), None);
    }

    #[test]
    fn the_library_is_found_by_the_start_of_its_name() {
        let text = "\tlinux-vdso.so.1 (0x00007f)\n\
                    \tlibLLVM.so.22.1 => /usr/lib/libLLVM.so.22.1 (0x00007fee)\n";
        assert_eq!(parse_ldd(text, "libLLVM"), Some(PathBuf::from("/usr/lib/libLLVM.so.22.1")));
        assert_eq!(parse_ldd(text, "librustc_driver"), None);
    }
}
