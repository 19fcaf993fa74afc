//! A fresh Debian of this machine's own release, as a directory to change root into. Made once by
//! debootstrap and kept as an archive; what runs in it is cut off from this machine's kernel objects.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::apt;
use crate::packages;
use crate::process;
use crate::workspace::Workspace;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Who removes the package in there runs `clawbox uninstall` as root: it must not find what a clawbox on
/// this machine has in the kernel.
const TAKEN: &str = "-bpf,-perfmon,-sys_admin,-net_admin,-sys_module,-sys_ptrace,-kill";

/// See the module.
pub struct Machine {
    root: PathBuf,
}

/// How much of Debian there is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What has to be.
    Minimal,
    /// What a server with systemd and containers has.
    Server,
}

/// What a server has beyond the rest. netavark is the one of several that podman is content with.
const SERVER: &str =
    "systemd,systemd-sysv,dbus,podman,crun,conmon,netavark,iproute2,python3,procps";

impl Machine {
    /// One that nobody has changed yet.
    pub fn fresh(workspace: &Workspace, kind: Kind) -> Result<Self> {
        packages::ensure(workspace, &packages::DIST_CHECK.iter().collect::<Vec<_>>())?;
        let directory = workspace.root().join("target/dist");
        let release = packages::release()?;
        let (archive, name) = match kind {
            Kind::Minimal => (format!("debian-{release}.tar"), "machine"),
            Kind::Server => (format!("debian-{release}-server.tar"), "server"),
        };
        let (archive, root) = (directory.join(archive), directory.join(name));
        remove(&root)?;
        if !archive.exists() {
            bootstrap(&release, kind, &root, &archive)?;
            remove(&root)?;
        }
        println!("check: unpacking {} (remove it for a newer one)", archive.display());
        fs::create_dir_all(&root).with_context(|| format!("cannot make `{}`", root.display()))?;
        let mut tar = Command::new("tar");
        tar.args(["--numeric-owner", "--same-permissions", "-xf"]).arg(&archive);
        process::run(tar.arg("-C").arg(&root))?;
        Ok(Self { root })
    }

    /// Its root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Runs a program in it and returns what that says.
    pub fn run(&self, command: &[&str]) -> Result<String> {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc", "--uts"]);
        unshare.arg(format!("--mount-proc={}", self.root.join("proc").display()));
        unshare.args(["--", "chroot"]).arg(&self.root);
        unshare.arg("setpriv").args([format!("--bounding-set={TAKEN}"), "--inh-caps=-all".into()]);
        unshare.args(["env", "-i", PATH, "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"]);
        process::output(unshare.args(command))
    }

    /// Puts a file into it.
    pub fn put(&self, to: &str, bytes: &[u8]) -> Result<()> {
        let path = self.root.join(to);
        let made = path.parent().map_or(Ok(()), fs::create_dir_all);
        made.and_then(|()| fs::write(&path, bytes))
            .with_context(|| format!("cannot write `{}`", path.display()))
    }

    /// Whether something is there, a link with nothing behind it too.
    pub fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.root.join(path)).is_ok()
    }

    /// Takes it away.
    pub fn remove(self) -> Result<()> {
        remove(&self.root)
    }
}

/// Nothing is ever mounted below it but in namespaces that are gone.
fn remove(root: &Path) -> Result<()> {
    match fs::remove_dir_all(root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove `{}`", root.display()))
        }
        _ => Ok(()),
    }
}

fn bootstrap(release: &str, kind: Kind, root: &Path, archive: &Path) -> Result<()> {
    let mirror = apt::mirror()?;
    println!("check: making a Debian {release} from this machine's mirror (once, minutes)");
    let start = Instant::now();
    let program = process::find_program("debootstrap").context("debootstrap is not on PATH")?;
    let mut debootstrap = Command::new(program);
    debootstrap.args(["--variant=minbase", &format!("--keyring={}", apt::KEYRING)]);
    if kind == Kind::Server {
        debootstrap.arg(format!("--include={SERVER}"));
    }
    debootstrap.arg(release);
    debootstrap.arg(root).arg(mirror).stdin(Stdio::null());
    if let Some(proxy) = proxy()? {
        debootstrap.env("http_proxy", proxy);
    }
    // Its hundreds of lines say which package it is at.
    process::run(&mut debootstrap)?;
    let partial = archive.with_extension("partial");
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "-cf"]).arg(&partial).arg("-C").arg(root);
    // Packages that have been installed are not needed again.
    process::run(tar.args(["--exclude=./var/cache/apt/archives/*.deb", "."]))?;
    fs::rename(&partial, archive)
        .with_context(|| format!("cannot write `{}`", archive.display()))?;
    println!("check: made in {:.0} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// apt's own, which debootstrap does not know of.
fn proxy() -> Result<Option<String>> {
    let mut dump = Command::new("apt-config");
    dump.args(["dump", "--format", "%v%n", "Acquire::http::Proxy"]);
    let told = process::output(&mut dump)?;
    let value = told.lines().next().unwrap_or_default().trim().to_owned();
    Ok((!value.is_empty() && value != "DIRECT").then_some(value))
}
