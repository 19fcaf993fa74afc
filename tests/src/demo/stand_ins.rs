//! Makes a policy's programs and directories appear where this machine has none: in a root
//! directory of the demo's own, in its own mount namespace. The machine's files stay as they are.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::pivot_root;

use super::stage::Stage;

/// What is to appear.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Programs; each becomes a copy of `like`.
    pub programs: Vec<&'a Path>,
    /// What they become copies of.
    pub like: &'a Path,
    /// Directories of the agent.
    pub directories: Vec<&'a Path>,
}

/// Where a path will be made: below a directory that is there.
struct Spot {
    there: PathBuf,
    rest: PathBuf,
}

impl Spot {
    fn of(path: &Path) -> Result<Self> {
        let mut there = path;
        while !there.is_dir() {
            there = there.parent().context("no absolute path")?;
        }
        let rest = path.strip_prefix(there)?.to_owned();
        Ok(Self { there: fs::canonicalize(there)?, rest })
    }

    fn is_at_top(&self) -> bool {
        self.there == Path::new("/")
    }
}

/// Changes into the new root. Call it in a mount namespace that nobody else is in.
///
/// # Errors
/// The kernel has no overlay file system, or the disk is full.
pub fn appear(stage: &Stage, wanted: &Wanted<'_>) -> Result<()> {
    let root = new_tmpfs(&stage.path("root"))?;
    // Else the view of the machine's files, made next, would contain itself.
    mount(None::<&str>, &root, None::<&str>, MsFlags::MS_UNBINDABLE, None::<&str>)?;
    show_machine(&root)?;
    let layers = new_tmpfs(&stage.path("layers"))?;
    let spots = wanted.programs.iter().map(|path| Spot::of(path)).collect::<Result<Vec<_>>>()?;
    let changed: BTreeSet<&Path> =
        spots.iter().filter(|spot| !spot.is_at_top()).map(|spot| spot.there.as_path()).collect();
    for (index, directory) in changed.into_iter().enumerate() {
        lay_over(directory, &root, &layers.join(index.to_string()))?;
    }
    for spot in &spots {
        copy_to(wanted.like, &below(&root, &spot.there), &spot.rest)?;
    }
    for path in &wanted.directories {
        let spot = Spot::of(path)?;
        // Only where nothing of the machine's is touched; clawbox tells of the others.
        if spot.is_at_top() && !spot.rest.as_os_str().is_empty() {
            give_directories(stage, &root, &spot.rest)?;
        }
    }
    change_root(&root)
}

fn new_tmpfs(path: &Path) -> Result<PathBuf> {
    fs::create_dir(path).with_context(|| format!("cannot make {}", path.display()))?;
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .context("cannot mount a tmpfs")?;
    Ok(path.to_owned())
}

/// Everything that is in `/`, at the same names.
fn show_machine(root: &Path) -> Result<()> {
    for entry in fs::read_dir("/")?.flatten() {
        let (from, to) = (entry.path(), root.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
        } else if kind.is_dir() {
            fs::create_dir(&to)?;
            let whole = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(Some(&from), &to, None::<&str>, whole, None::<&str>)
                .with_context(|| format!("cannot show {} a second time", from.display()))?;
        }
    }
    Ok(())
}

/// A directory of the machine whose changes stay in `layer`.
fn lay_over(directory: &Path, root: &Path, layer: &Path) -> Result<()> {
    let (upper, work) = (layer.join("upper"), layer.join("work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir(&work)?;
    fs::set_permissions(&upper, fs::metadata(directory)?.permissions())?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        directory.display(),
        upper.display(),
        work.display()
    );
    let at = below(root, directory);
    mount(Some("overlay"), &at, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("cannot lay anything over {}", directory.display()))
}

/// Never through a link that is there: it could lead to the machine's own file.
fn copy_to(like: &Path, there: &Path, rest: &Path) -> Result<()> {
    let path = there.join(rest);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let mut copy = File::create_new(&path)?;
    io::copy(&mut File::open(like)?, &mut copy)?;
    copy.set_permissions(Permissions::from_mode(0o755))?;
    Ok(())
}

fn give_directories(stage: &Stage, root: &Path, rest: &Path) -> Result<()> {
    let user = stage.user();
    let mut path = root.to_owned();
    for component in rest {
        path.push(component);
        if !path.exists() {
            fs::create_dir(&path)?;
            chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
    }
    Ok(())
}

fn below(root: &Path, absolute: &Path) -> PathBuf {
    let parts = absolute.components().skip(1);
    root.join(
        parts.map(|part| part.as_os_str()).collect::<Vec<&OsStr>>().iter().collect::<PathBuf>(),
    )
}

fn change_root(root: &Path) -> Result<()> {
    std::env::set_current_dir(root)?;
    pivot_root(".", ".").context("cannot change into the demo's root directory")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(std::env::set_current_dir("/")?)
}
