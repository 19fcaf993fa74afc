//! What a process sees: paths mean the files of its mount namespace and its root, and sockets are its
//! network namespace's. A container has others than the host.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{chroot, fchdir};

use crate::gateway::Network;
use crate::kernel::file_id::{self, Mounts};

/// See the module. Nothing where that is what the agent sees itself.
#[derive(Debug, Default)]
pub struct View {
    /// A process that sees so; zero for the agent itself.
    process: u32,
    mounts: Option<(OwnedFd, OwnedFd)>,
    network: Option<OwnedFd>,
}

impl View {
    /// Of a process, which does not go on meanwhile.
    ///
    /// # Errors
    /// It has ended.
    pub fn of(process: u32) -> io::Result<Self> {
        let path = |what: &str| PathBuf::from(format!("/proc/{process}/{what}"));
        let differs = |what: &str| -> io::Result<bool> {
            let (theirs, own) = (path(what), PathBuf::from(format!("/proc/self/{what}")));
            let id =
                |path: &PathBuf| std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
            Ok(id(&theirs)? != id(&own)?)
        };
        let open = |what: &str| -> io::Result<OwnedFd> { Ok(File::open(path(what))?.into()) };
        let has_other_files = differs("ns/mnt")? || differs("root")?;
        let mounts = has_other_files.then(|| Ok::<_, io::Error>((open("ns/mnt")?, open("root")?)));
        let network = differs("ns/net")?.then(|| open("ns/net"));
        Ok(Self { process, mounts: mounts.transpose()?, network: network.transpose()? })
    }

    /// Whether it has a network of its own.
    #[must_use]
    pub fn has_own_network(&self) -> bool {
        self.network.is_some()
    }

    /// Its network.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn network(&self) -> io::Result<Network> {
        let own = self.network.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(own.map(Network::of).unwrap_or_default())
    }

    /// Its mounts, by their numbers.
    ///
    /// # Errors
    /// It has ended.
    pub fn read_mounts(&self) -> io::Result<Mounts> {
        let mut mounts = Mounts::read()?;
        if self.mounts.is_some() {
            mounts.add_those_of(self.process)?;
        }
        Ok(mounts)
    }

    /// Does some work as it is seen there. Nothing in it may rely on what `/proc` means.
    ///
    /// # Errors
    /// The namespaces cannot be entered.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        if self.mounts.is_none() && self.network.is_none() {
            return Ok(work());
        }
        file_id::keep_proc()?;
        // Namespaces are a thread's, so that this one ends with its own.
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                self.enter()?;
                Ok(work())
            });
            entered.join().unwrap_or_else(|_| Err(io::Error::other("the work has panicked")))
        })
    }

    fn enter(&self) -> io::Result<()> {
        if let Some(network) = &self.network {
            setns(network, CloneFlags::CLONE_NEWNET)?;
        }
        if let Some((namespace, root)) = &self.mounts {
            unshare(CloneFlags::CLONE_FS)?;
            setns(namespace, CloneFlags::CLONE_NEWNS)?;
            fchdir(root)?;
            chroot(".")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::{Command, Stdio};

    #[test]
    fn what_another_process_sees_is_told_from_what_this_one_sees() {
        let own = View::of(std::process::id()).unwrap();
        assert!(!own.has_own_network() && own.mounts.is_none());
        let script = "mount -t tmpfs none /mnt && echo 1 > /mnt/only-here && echo ready && read x";
        let mut child = Command::new("unshare")
            .args(["--mount", "--net", "--", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 6];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        let view = View::of(child.id()).unwrap();
        assert!(view.has_own_network());
        let mounts = view.read_mounts().unwrap();
        let file = Path::new("/mnt/only-here");
        let held = view.within(|| mounts.hold(file).map(|held| held.id)).unwrap().unwrap();
        assert!(held.inode > 0 && !file.exists());
        // Its loopback is down, where the host's is not.
        assert!(view.within(|| std::net::TcpStream::connect(("127.0.0.1", 1))).unwrap().is_err());
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
