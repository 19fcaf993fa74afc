//! A small disk of a test's own, that is full or read-only when the test says so.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// The file that takes the room.
const BALLAST: &str = "ballast";

/// A disk at a directory, which is what it was when this is dropped. Who is to see it has to be started
/// afterwards.
pub struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Mounts one of so many bytes.
    ///
    /// # Panics
    /// The kernel refuses.
    #[must_use]
    pub fn mount(at: PathBuf, bytes: u64) -> Self {
        fs::create_dir_all(&at).expect("the directory of a world can be written");
        let options = format!("size={bytes},mode=0700");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("disk"), &at, Some("tmpfs"), flags, Some(options.as_str()))
            .expect("root may mount");
        Self { at }
    }

    fn ballast(&self) -> PathBuf {
        self.at.join(BALLAST)
    }

    /// Takes all the room that is left.
    ///
    /// # Panics
    /// Something else is wrong with it.
    pub fn fill(&self) {
        let mut file = File::create(self.ballast()).expect("a new file takes no room");
        loop {
            match file.write(&[0; 4096]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Gives the room back.
    ///
    /// # Panics
    /// It was not full.
    pub fn empty(&self) {
        fs::remove_file(self.ballast()).expect("it is there");
    }

    /// Has nobody write to it, or everybody again. Nobody may have a file of it open for writing.
    ///
    /// # Panics
    /// Somebody has.
    pub fn set_read_only(&self, is: bool) {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let flags = if is { flags | MsFlags::MS_RDONLY } else { flags };
        let nothing = None::<&Path>;
        mount(nothing, &self.at, nothing, flags, nothing).expect("nobody writes to it");
        // The disk and not its place: who was started meanwhile has a copy of that.
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(nothing, &self.at, nothing, flags, nothing).expect("root may mount");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.at, MntFlags::MNT_DETACH) {
            eprintln!("`{}` stays mounted: {error}", self.at.display());
        }
    }
}
