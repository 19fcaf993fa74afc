//! Links pinned in bpffs: what is attached stays attached when the agent dies, so that nobody is
//! let through because somebody was killed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::pin::PinError;

use aya::programs::links::FdLink;

use super::load::NamedLink;

/// Where bpffs is on every distribution that mounts it.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Directory below it that is clawbox's own.
pub const PARENT: &str = "clawbox";

/// Why links could not be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinLinksError {
    /// No bpffs.
    #[error(
        "no bpffs at {BPFFS} and it cannot be mounted ({source}); run `mount -t bpf bpf {BPFFS}` as root"
    )]
    NoBpffs {
        /// Cause.
        source: io::Error,
    },
    /// A directory could not be made.
    #[error("cannot make `{}`: {source}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A link or a map could not be pinned.
    #[error("cannot pin `{what}`: {source}")]
    Pin {
        /// The link's program, or the map.
        what: &'static str,
        /// Cause.
        source: PinError,
    },
}

/// The links of one load. They stay when this is dropped; [`remove`] ends them.
#[derive(Debug)]
pub struct PinnedLinks {
    directory: PathBuf,
}

impl PinnedLinks {
    /// Pins each link under its program's name.
    ///
    /// # Errors
    /// bpffs is not there or refuses.
    pub fn pin(run: &str, links: Vec<NamedLink>) -> Result<Self, PinLinksError> {
        let pinned = Self { directory: prepare(run)? };
        for (program, link) in links {
            if let Err(error) = pinned.add(program, link) {
                // No process is held by them yet.
                let _ = remove(&pinned.directory);
                return Err(error);
            }
        }
        Ok(pinned)
    }

    /// Pins each link in the place of an earlier one of its program's name, which ends only when this one is
    /// there. Earlier ones that no link takes the place of stay.
    ///
    /// # Errors
    /// bpffs refuses; the earlier links that were not replaced by then stay.
    pub fn replace(run: &str, links: Vec<NamedLink>) -> Result<Self, PinLinksError> {
        let pinned = Self { directory: prepare(run)? };
        pinned.take_in(links)?;
        Ok(pinned)
    }

    /// As [`PinnedLinks::replace`], of more links.
    ///
    /// # Errors
    /// bpffs refuses.
    pub fn take_in(&self, links: Vec<NamedLink>) -> Result<(), PinLinksError> {
        for (program, link) in links {
            let (place, beside) =
                (self.directory.join(program), self.directory.join(format!("{program}-new")));
            // Of a daemon that was ended just here.
            drop(fs::remove_file(&beside));
            link.pin(&beside).map_err(|source| PinLinksError::Pin { what: program, source })?;
            drop(fs::remove_file(&place));
            fs::rename(&beside, &place)
                .map_err(|source| PinLinksError::Directory { path: place, source })?;
        }
        Ok(())
    }

    fn add(&self, program: &'static str, link: FdLink) -> Result<(), PinLinksError> {
        let pinned = link.pin(self.directory.join(program));
        pinned.map(drop).map_err(|source| PinLinksError::Pin { what: program, source })
    }

    /// Where they are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// The directory of a run's pins. bpffs keeps dots in names for itself (EPERM); no run has a plus.
#[must_use]
pub fn directory_of(run: &str) -> PathBuf {
    Path::new(BPFFS).join(PARENT).join(run.replace('.', "+"))
}

/// Removes a run's pins, its own or those that a killed one left.
///
/// # Errors
/// As the file system says; a directory that is not there is no error.
pub fn remove(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(directory)?;
    // Fails while another run has its pins there, as it should.
    let _ = directory.parent().map(fs::remove_dir);
    Ok(())
}

/// The directory of a run's pins, made where it is not there.
///
/// # Errors
/// bpffs is not there or refuses.
pub fn prepare(run: &str) -> Result<PathBuf, PinLinksError> {
    mount_bpffs().map_err(|source| PinLinksError::NoBpffs { source })?;
    let directory = directory_of(run);
    make(&directory)
        .map_err(|source| PinLinksError::Directory { path: directory.clone(), source })?;
    Ok(directory)
}

/// Makes a run's directory, again if another run that ends takes the parent away meanwhile.
fn make(directory: &Path) -> io::Result<()> {
    loop {
        match fs::create_dir_all(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
}

fn mount_bpffs() -> io::Result<()> {
    let found = nix::sys::statfs::statfs(BPFFS)?;
    if found.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC {
        return Ok(());
    }
    use nix::mount::{MsFlags, mount};
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), BPFFS, Some("bpf"), flags, Some("mode=0700"))?;
    tracing::debug!("mounted bpffs at {BPFFS}");
    Ok(())
}
