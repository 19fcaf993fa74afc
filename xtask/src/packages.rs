//! The distribution's packages that building, testing and measuring need.
//! Looked for by the program or file each brings, so any way of having it will do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::{Apt, Installed, KEYRING, Suites};
use crate::process;
use crate::workspace::Workspace;

/// A distribution package and how to see that what it brings is there.
pub struct Package {
    name: &'static str,
    brings: Brings,
}

enum Brings {
    Program(&'static str),
    File(&'static str),
}

const fn program(name: &'static str, program: &'static str) -> Package {
    Package { name, brings: Brings::Program(program) }
}

const fn file(name: &'static str, path: &'static str) -> Package {
    Package { name, brings: Brings::File(path) }
}

/// What the demo and the enforcement tests run inside sandboxes. `python3` must be the
/// distribution's own: the VM's root directory is made of its files.
pub const DEMO: &[Package] = &[
    program("iproute2", "ip"),
    program("curl", "curl"),
    file("python3", "/usr/bin/python3"),
    program("openssl", "openssl"),
];

/// What the tests with real programs run: an agent's everyday tools, as the distribution has them.
pub const REAL: &[Package] = &[
    file("git", "/usr/bin/git"),
    file("make", "/usr/bin/make"),
    file("gcc", "/usr/bin/gcc"),
    file("libc6-dev", "/usr/include/stdio.h"),
    file("nodejs", "/usr/bin/node"),
    file("npm", "/usr/bin/npm"),
    file("python3-pip", "/usr/lib/python3/dist-packages/pip"),
];

/// Clients of the protocols that agents speak, and servers for them: none that starts by itself.
pub const CLIENTS: &[Package] = &[
    file("python3-requests", "/usr/lib/python3/dist-packages/requests"),
    file("python3-aiohttp", "/usr/lib/python3/dist-packages/aiohttp"),
    file("python3-asyncssh", "/usr/lib/python3/dist-packages/asyncssh"),
    file("python3-grpcio", "/usr/lib/python3/dist-packages/grpc"),
    program("redis-tools", "redis-cli"),
    program("openssh-client", "ssh"),
    program("tmux", "tmux"),
    program("ngtcp2-client", "gtlsclient"),
    program("ngtcp2-server", "gtlsserver"),
    // Its journal; it is no service of a machine that something else has started.
    file("systemd", "/lib/systemd/systemd-journald"),
];

/// What booting other kernels takes beyond that.
pub const VM: &[Package] = &[
    program("qemu-system-x86", "qemu-system-x86_64"),
    program("busybox-static", "busybox"),
    program("xz-utils", "xz"),
    program("iputils-ping", "ping"),
    program("e2fsprogs", "mke2fs"),
    file("debian-archive-keyring", KEYRING),
];

/// The sandbox launcher we measure ourselves against.
pub const BENCH: &[Package] = &[
    program("bubblewrap", "bwrap"),
    program("tinyproxy-bin", "tinyproxy"),
    program("dnsmasq-base", "dnsmasq"),
];

/// What packing takes.
pub const DIST: &[Package] =
    &[program("dpkg", "dpkg-deb"), program("dpkg-dev", "dpkg-shlibdeps"), program("gzip", "gzip")];

/// What makes a fresh Debian to try the package in.
pub const DIST_CHECK: &[Package] = &[
    program("debootstrap", "debootstrap"),
    program("util-linux", "unshare"),
    file("debian-archive-keyring", KEYRING),
];

/// The directory of a program that a package of this machine's release brings. Where it is not there it is
/// unpacked among the build's tools, with the other packages that it needs: installing it would start a service.
pub fn unpacked(workspace: &Workspace, names: &[&str], program: &str) -> Result<PathBuf> {
    let name = names.first().context("a package is needed")?;
    if let Some(found) = process::find_program(program)
        && let Some(directory) = found.parent()
    {
        return Ok(directory.to_owned());
    }
    let directory = workspace.tools().join(name);
    let found = || {
        let mut places = ["usr/bin", "usr/sbin", "sbin"].iter().map(|below| directory.join(below));
        places.find(|place| place.join(program).exists())
    };
    if found().is_none() {
        println!("setup: unpacking {name} (apt-get)");
        let downloads = workspace.tools().join(format!("{name}-download"));
        fs::create_dir_all(&downloads)
            .with_context(|| format!("cannot create `{}`", downloads.display()))?;
        let mut download = Command::new("apt-get");
        // apt's own unprivileged user cannot write below a checkout in root's home.
        download.args(["-qq", "-o", "APT::Sandbox::User=root", "download"]).args(names);
        process::output(download.current_dir(&downloads))?;
        for file in fs::read_dir(&downloads)?.flatten().map(|entry| entry.path()) {
            process::output(Command::new("dpkg").arg("-x").arg(file).arg(&directory))?;
        }
        fs::remove_dir_all(&downloads)?;
    }
    found().with_context(|| format!("{name} has no program `{program}`"))
}

/// What reads the audit store with no code of ours, from Python's package index, in the versions that were
/// tried; and the published schema of its OCSF events, with what checks them.
const READERS: [&str; 5] = [
    "pyarrow==26.0.1",
    "duckdb==2.0.1",
    "polars==2.1.0",
    "ocsf-json-schema==1.2.0",
    "jsonschema==4.26.0",
];

/// A Python that has [`READERS`], among the build's tools.
pub fn readers(workspace: &Workspace) -> Result<PathBuf> {
    let directory = workspace.tools().join("readers");
    let (python, list) = (directory.join("bin/python"), directory.join("installed"));
    let wanted = READERS.join("\n");
    if fs::read_to_string(&list).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    println!("setup: installing {} (pip)", READERS.join(", "));
    process::output(Command::new("python3").args(["-m", "venv"]).arg(&directory))?;
    let mut pip = Command::new(&python);
    process::output(pip.args(["-m", "pip", "install", "--quiet"]).args(READERS))?;
    fs::write(&list, wanted).with_context(|| format!("cannot write `{}`", list.display()))?;
    Ok(python)
}

/// Installs those of `packages` that are missing; returns the names of what it installed.
pub fn ensure(workspace: &Workspace, packages: &[&Package]) -> Result<Vec<&'static str>> {
    let missing: Vec<&str> =
        packages.iter().filter(|package| !package.is_there()).map(|package| package.name).collect();
    if !missing.is_empty() {
        install(workspace, &missing)?;
    }
    if let Some(still) = packages.iter().find(|package| !package.is_there()) {
        bail!("package {} is installed, but what it brings is not on PATH", still.name);
    }
    Ok(missing)
}

/// `apt-get install` without removing anything the machine's owner has chosen. What conflicts with
/// that in the machine's own release is taken from the release's backports, where they have it: a
/// machine with a part of QEMU from there cannot have the rest from elsewhere.
pub fn install(workspace: &Workspace, names: &[&str]) -> Result<()> {
    let remedy = format!("apt-get install {}", names.join(" "));
    if process::find_program("apt-get").is_none() {
        bail!("missing: {}; install these with this distribution's own tool", names.join(", "));
    }
    if !process::is_root() {
        bail!("missing: {}; run `{remedy}` as root, or run this command as root", names.join(", "));
    }
    println!("setup: installing {} (apt-get)", names.join(", "));
    // One unreachable source of many makes this fail, and may not matter for these packages.
    if !process::status(Command::new("apt-get").args(["-qq", "update"]))?.success() {
        println!("setup: `apt-get update` failed; going on with the package lists at hand");
    }
    let installed = process::output(
        Command::new("apt-get")
            .args(["-qq", "-y", "--no-install-recommends", "--no-remove", "install"])
            .args(names)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    );
    let Err(error) = installed else { return Ok(()) };
    println!("setup: they do not fit to what is installed; trying this release's backports");
    if let Err(other) = install_from_backports(workspace, names) {
        bail!(
            "{error:#}\nfrom backports: {other:#}\n\
             run `{remedy}` by hand to see what stands in the way"
        );
    }
    Ok(())
}

fn install_from_backports(workspace: &Workspace, names: &[&str]) -> Result<()> {
    let release = release()?;
    let backports = format!("{release}-backports");
    let suites = Suites {
        main: vec![release.clone(), backports.clone()],
        security: format!("{release}-security"),
    };
    let directory = workspace.root().join("target/apt");
    Apt::update(directory, &suites, Installed::Here)?.install(names, &backports)
}

/// This machine's release, by its name in the archive.
pub fn release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    match codename(&text) {
        Some(release) => Ok(release.to_owned()),
        None => bail!("/etc/os-release names no VERSION_CODENAME; is this a stable Debian?"),
    }
}

fn codename(os_release: &str) -> Option<&str> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim_matches('"')).filter(|name| !name.is_empty())
}

impl Package {
    /// What it brings, where that is a file.
    pub fn file(&self) -> Option<&'static Path> {
        match self.brings {
            Brings::Program(_) => None,
            Brings::File(path) => Some(Path::new(path)),
        }
    }

    fn is_there(&self) -> bool {
        match self.brings {
            Brings::Program(name) => process::find_program(name).is_some(),
            Brings::File(path) => Path::new(path).exists(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_known_by_its_codename() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n"), Some("bookworm"));
        assert_eq!(codename("VERSION_CODENAME=\"trixie\"\n"), Some("trixie"));
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=\n"), None);
    }
}
