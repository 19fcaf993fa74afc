//! Network and mount namespaces without a name: they go away with the last process in them,
//! however that process ends, so there is nothing to clean up after a killed demo.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace, and perhaps a mount namespace, to run things in.
#[derive(Debug)]
pub struct Place {
    network: File,
    mounts: Option<File>,
}

impl Place {
    /// A network with nothing in it but a loopback interface that is down.
    ///
    /// # Errors
    /// The kernel makes no namespace.
    pub fn network() -> Result<Self> {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            let network = File::open("/proc/thread-self/ns/net")?;
            Ok(Self { network, mounts: None })
        })
    }

    /// A network with nothing in it, and a view of the file system that `arrange` may change
    /// without the rest of the machine noticing.
    ///
    /// # Errors
    /// The kernel makes no namespaces, or `arrange` failed.
    pub fn network_and_mounts(arrange: impl FnOnce() -> Result<()> + Send) -> Result<Self> {
        in_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
                .context("cannot make network and mount namespaces")?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
                .context("cannot make the mount namespace private")?;
            arrange()?;
            let network = File::open("/proc/thread-self/ns/net")?;
            let mounts = Some(File::open("/proc/thread-self/ns/mnt")?);
            Ok(Self { network, mounts })
        })
    }

    /// Does something in this place; what it starts is and stays there.
    ///
    /// # Errors
    /// The place cannot be entered, or `work` failed.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        in_thread(|| {
            if let Some(mounts) = &self.mounts {
                // A mount namespace is not for a thread that shares its root with others.
                unshare(CloneFlags::CLONE_FS)?;
                setns(mounts, CloneFlags::CLONE_NEWNS)?;
            }
            setns(&self.network, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// Runs a batch of `ip` commands here.
    ///
    /// # Errors
    /// One of them failed.
    pub fn ip(&self, batch: &str) -> Result<()> {
        self.enter(|| {
            let mut child = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .context("cannot run `ip`; install the package iproute2")?;
            if let Some(mut input) = child.stdin.take() {
                std::io::Write::write_all(&mut input, batch.as_bytes())?;
            }
            let ended = child.wait_with_output()?;
            if !ended.status.success() {
                let said = String::from_utf8_lossy(&ended.stderr);
                bail!("`ip` failed: {}; does this kernel have veth interfaces?", said.trim());
            }
            Ok(())
        })
    }

    /// How `ip` can name this network.
    #[must_use]
    pub fn network_path(&self) -> String {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), self.network.as_raw_fd())
    }
}

/// Puts one file in the place of another, in this mount namespace.
///
/// # Errors
/// One of them is not there.
pub fn cover(covered: &Path, with: &Path) -> Result<()> {
    mount(Some(with), covered, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("cannot put another file in the place of {}", covered.display()))
}

/// Namespaces are a thread's: one that has changed its own must not go back to other work.
fn in_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let worker = scope.spawn(work);
        worker.join().unwrap_or_else(|_| Err(anyhow!("a thread of the demo has panicked")))
    })
}
