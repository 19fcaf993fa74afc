//! The guest's programs: this machine's own, taken package by package, with their libraries.
//! Debian's cloud kernels cannot mount a host directory, so what tests may run is copied.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::archive::Archive;
use crate::process;
use crate::workspace::Workspace;

/// Real programs rather than busybox's: a policy tells programs apart by their file.
const PACKAGES: [&str; 16] = [
    "bash",
    "busybox-static",
    "coreutils",
    "curl",
    "dash",
    "findutils",
    "grep",
    "hostname",
    "iproute2",
    "iputils-ping",
    "libc-bin",
    "mount",
    "openssl",
    "procps",
    "sed",
    "util-linux",
];
/// Directories of a package that a guest has a use for.
const WANTED: [&str; 5] = ["usr/bin", "usr/sbin", "usr/lib", "usr/libexec", "etc/ssl/openssl.cnf"];
/// Parts of Python's library that no test runs, and that are large.
const UNWANTED: [&str; 5] = ["ensurepip", "idlelib", "lib2to3", "pydoc_data", "systemd"];
/// Changes to this file's rules make old archives stale.
const FORMAT: u32 = 2;

/// The archive with the guest's programs; made where this machine's packages changed.
pub fn ensure(workspace: &Workspace) -> Result<PathBuf> {
    let packages = packages()?;
    let versions = process::output(
        Command::new("dpkg-query").args(["-W", "-f", "${Package} ${Version}\n"]).args(&packages),
    )
    .context("cannot read this machine's packages; `cargo xtask setup --for test` installs them")?;
    let stamp = format!("format {FORMAT}\n{versions}");
    let directory = workspace.root().join("target/vm");
    let (archive, stamp_file) =
        (directory.join("userland.cpio"), directory.join("userland.versions"));
    if archive.exists() && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
        return Ok(archive);
    }
    println!("vm: collecting the guest's programs (once per change of this machine's packages)");
    // Renamed into place: a VM may be reading the old one.
    let partial = archive.with_extension("partial");
    let mut out = Archive::create(&partial)?;
    let programs = add_packages(&mut out, &packages, is_wanted)?;
    add_libraries(&mut out, &programs)?;
    out.finish()?;
    fs::rename(&partial, &archive)
        .and_then(|()| fs::write(&stamp_file, stamp))
        .with_context(|| format!("cannot write `{}`", stamp_file.display()))?;
    Ok(archive)
}

/// The packages to copy. Python's are named after its version.
pub fn packages() -> Result<Vec<String>> {
    let python = fs::read_link("/usr/bin/python3").context("cannot read `/usr/bin/python3`")?;
    let python = python.to_string_lossy().into_owned();
    let mut packages: Vec<String> = PACKAGES.map(str::to_owned).to_vec();
    packages.extend([
        format!("{python}-minimal"),
        format!("lib{python}-minimal"),
        format!("lib{python}-stdlib"),
        "python3-minimal".to_owned(),
    ]);
    Ok(packages)
}

/// Adds what `packages` list, where it is wanted; the programs and libraries among it.
pub fn add_packages<W: Write>(
    archive: &mut Archive<W>,
    packages: &[String],
    is_wanted: fn(&Path) -> bool,
) -> Result<Vec<PathBuf>> {
    let listed = process::output(Command::new("dpkg").arg("-L").args(packages))?;
    // Packages list `/bin` itself; as `/usr/bin` it would be a link to itself.
    let is_below = |path: &PathBuf| path.parent() != Some(Path::new("/"));
    let files: BTreeSet<PathBuf> = listed
        .lines()
        .map(PathBuf::from)
        .filter(|path| is_below(path) && is_wanted(&in_guest(path)))
        .collect();
    for link in ["bin", "sbin", "lib", "lib64"] {
        archive.symlink(Path::new(link), &Path::new("usr").join(link))?;
    }
    let mut programs = Vec::new();
    for file in &files {
        let Ok(meta) = fs::symlink_metadata(file) else {
            continue;
        };
        if meta.is_dir() {
            continue; // Made when a file in it is.
        }
        archive.copy(file, &in_guest(file))?;
        if meta.is_file() && is_elf(file) {
            programs.push(file.clone());
        } else if let Some(compiled) = compiled_python(file) {
            archive.copy(&compiled, &in_guest(&compiled))?;
        }
    }
    Ok(programs)
}

/// Adds every shared library that `programs` are linked to.
pub fn add_libraries<W: Write>(archive: &mut Archive<W>, programs: &[PathBuf]) -> Result<()> {
    if programs.is_empty() {
        return Ok(());
    }
    // Its status says whether the last one was linked dynamically: not of interest.
    let found = Command::new("ldd")
        .args(programs)
        .env_remove("LD_LIBRARY_PATH")
        .output()
        .context("cannot start `ldd`")?;
    for library in parse_ldd(&String::from_utf8_lossy(&found.stdout))? {
        archive.copy_contents(&library, &in_guest(&library))?;
    }
    Ok(())
}

/// The paths in `ldd`'s answer; a library it did not find is an error.
fn parse_ldd(text: &str) -> Result<BTreeSet<PathBuf>> {
    let mut libraries = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with('\t')) {
        if line.ends_with("not found") {
            bail!("a program's library is missing on this machine: {}", line.trim());
        }
        let path = line.rsplit(" => ").next().and_then(|rest| rest.split(" (").next());
        if let Some(path) = path.map(str::trim).filter(|path| path.starts_with('/')) {
            libraries.insert(PathBuf::from(path));
        }
    }
    Ok(libraries)
}

/// Whether a file, by its path in the guest, is worth its memory.
fn is_wanted(path: &Path) -> bool {
    WANTED.iter().any(|wanted| path.starts_with(Path::new("/").join(wanted)))
        && !path.components().any(
            |part| matches!(part, Component::Normal(name) if UNWANTED.iter().any(|un| name == *un)),
        )
}

/// Where a host path is in the guest, whose `/bin` and the like are links into `/usr`.
pub fn in_guest(path: &Path) -> PathBuf {
    let merged = ["/bin", "/sbin", "/lib", "/lib64"];
    if merged.iter().any(|top| path.starts_with(top)) {
        return Path::new("/usr").join(path.strip_prefix("/").unwrap_or(path));
    }
    path.to_path_buf()
}

/// Whether a file is a program or library, which may need others.
pub fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
        && &magic == b"\x7fELF"
}

/// The compiled form of a Python module, where this machine has one: compiling takes seconds on
/// an emulated processor.
fn compiled_python(source: &Path) -> Option<PathBuf> {
    if source.extension()? != "py" {
        return None;
    }
    let stem = source.file_stem()?.to_str()?;
    let entries = fs::read_dir(source.parent()?.join("__pycache__")).ok()?;
    entries.flatten().map(|entry| entry.path()).find(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
            name.strip_prefix(stem)
                .is_some_and(|rest| rest.starts_with(".cpython-") && !rest.contains("opt-"))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_paths_lead_into_usr() {
        assert_eq!(in_guest(Path::new("/bin/cat")), Path::new("/usr/bin/cat"));
        assert_eq!(in_guest(Path::new("/lib64/ld.so.2")), Path::new("/usr/lib64/ld.so.2"));
        assert_eq!(in_guest(Path::new("/libexec/x")), Path::new("/libexec/x"));
        assert_eq!(in_guest(Path::new("/opt/x")), Path::new("/opt/x"));
    }

    #[test]
    fn documents_are_left_out() {
        assert!(is_wanted(Path::new("/usr/bin/cat")));
        assert!(!is_wanted(Path::new("/usr/share/doc/coreutils/README")));
        assert!(!is_wanted(Path::new("/usr/lib/python3.11/lib2to3/main.py")));
    }

    #[test]
    fn libraries_are_read_from_ldd() {
        let text = "/usr/bin/ip:\n\tlinux-vdso.so.1 (0x00007f)\n\
                    \tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\
                    /bin/busybox:\n\tnot a dynamic executable\n";
        let found: Vec<_> = parse_ldd(text).unwrap().into_iter().collect();
        let expected = ["/lib/x/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(found, expected);
        assert!(parse_ldd("\tlibx.so => not found\n").is_err());
    }
}
