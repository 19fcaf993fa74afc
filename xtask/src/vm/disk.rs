//! The guest's root directory as a disk: an agent's everyday tools are too large for memory, and a
//! file system like everybody's is what policies are written for. Made without mounting anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::archive::Archive;
use super::closure::Installed;
use super::userland;
use crate::packages;
use crate::process;
use crate::workspace::Workspace;

/// Nearly all of it is a hole in the file.
const SIZE: &str = "4G";
/// Documents, which no program reads.
const UNWANTED: [&str; 6] = ["doc", "info", "lintian", "locale", "man", "icons"];
/// Where npm, and through it the machine's owner, replaces what a package has brought.
const NODE_MODULES: &str = "/usr/lib/node_modules";
/// Changes to this file's rules make old disks stale.
const FORMAT: u32 = 1;

/// The disk; made where this machine's packages changed.
pub fn ensure(workspace: &Workspace) -> Result<PathBuf> {
    let packages = wanted_packages()?;
    let directory = workspace.root().join("target/vm");
    let (disk, stamp_file) = (directory.join("disk.ext4"), directory.join("disk.versions"));
    let versions = packages.iter().map(|(name, version)| format!("{name} {version}\n"));
    let npm = npm_version().unwrap_or_default();
    let stamp = format!("format {FORMAT}\n{}{npm}\n", versions.collect::<String>());
    if disk.exists() && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
        return Ok(disk);
    }
    println!(
        "vm: making the guests' disk of {} packages (once per change of this machine's packages)",
        packages.len()
    );
    let names: Vec<String> = packages.into_iter().map(|(name, _)| name).collect();
    let (tree, partial) = (directory.join("disk.tree"), directory.join("disk.partial"));
    write_tree(&names, &tree)?;
    format(&tree, &partial)?;
    let _ = fs::remove_dir_all(&tree);
    // Renamed into place: a VM may be reading the old one.
    fs::rename(&partial, &disk)
        .and_then(|()| fs::write(&stamp_file, stamp))
        .with_context(|| format!("cannot write `{}`", disk.display()))?;
    Ok(disk)
}

/// Names and versions of what memory would hold, the real programs, and all they need.
fn wanted_packages() -> Result<Vec<(String, String)>> {
    let installed = Installed::read()?;
    let mut packages = userland::packages()?;
    for file in packages::REAL.iter().filter_map(packages::Package::file) {
        match installed.owner(file) {
            Some(owner) => packages.push(owner),
            None => println!("vm: `{}` is of no package; guests go without it", file.display()),
        }
    }
    Ok(installed.closure(&packages).into_iter().collect())
}

/// The line of an npm that may not be the package's.
fn npm_version() -> Option<String> {
    let about = fs::read_to_string(Path::new(NODE_MODULES).join("npm/package.json")).ok()?;
    Some(about.lines().find(|line| line.contains("\"version\""))?.to_owned())
}

/// Whether a file, by its path in the guest, is worth copying.
fn is_wanted(path: &Path) -> bool {
    let is_document =
        UNWANTED.iter().any(|name| path.starts_with(Path::new("/usr/share").join(name)));
    (path.starts_with("/usr") || path.starts_with("/etc")) && !is_document
}

/// Copies the packages' files into a directory that looks like a root directory.
fn write_tree(packages: &[String], tree: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(tree);
    fs::create_dir_all(tree).with_context(|| format!("cannot create `{}`", tree.display()))?;
    let mut unpack = Command::new("busybox")
        .args(["cpio", "-i", "-d", "-m"])
        .current_dir(tree)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start `busybox`; `cargo xtask setup --for test` installs it")?;
    let mut archive = Archive::new(unpack.stdin.take().context("busybox has no input")?);
    userland::add_packages(&mut archive, packages, is_wanted)?;
    let modules = Path::new(NODE_MODULES);
    if modules.exists() {
        archive.copy_tree(modules, modules)?;
    }
    archive.finish()?;
    let status = unpack.wait().context("cannot wait for `busybox cpio`")?;
    if !status.success() {
        bail!("`busybox cpio` could not unpack into `{}` ({status})", tree.display());
    }
    Ok(())
}

/// Makes an ext4 file system with the tree's files in `image`.
pub fn format(tree: &Path, image: &Path) -> Result<()> {
    let _ = fs::remove_file(image);
    let mke2fs = process::find_program("mke2fs")
        .context("`mke2fs` is not there; `cargo xtask setup --for test` installs it")?;
    let mut command = if process::is_root() {
        Command::new(mke2fs)
    } else {
        // The files' owner is the one who copied them; in a namespace of its own that is root.
        let mut command = Command::new("unshare");
        command.arg("--map-root-user").arg(mke2fs);
        command
    };
    // Initialised now, so that no thread of a guest does it.
    command.args(["-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d"]);
    process::output(command.arg(tree).arg(image).arg(SIZE))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_headers_and_settings_are_copied_and_documents_are_not() {
        for path in ["/usr/bin/git", "/usr/include/stdio.h", "/etc/npmrc", "/usr/share/perl/x.pm"] {
            assert!(is_wanted(Path::new(path)), "{path}");
        }
        for path in ["/usr/share/doc/git/README", "/usr/share/man/man1/git.1.gz", "/var/lib/git"] {
            assert!(!is_wanted(Path::new(path)), "{path}");
        }
    }
}
