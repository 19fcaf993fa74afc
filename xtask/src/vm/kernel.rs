//! The kernels that clawbox is tested on: the newest build of each line Debian offers.
//! Fetched once into `target/vm/kernels/`; with that in place no network is used.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use super::modules;
use crate::apt::{Apt, Installed, Suites};
use crate::workspace::Workspace;

/// A line of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kernel {
    /// Debian 12's own: the oldest that clawbox supports.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's own, as Debian 12 gets it.
    #[value(name = "6.12")]
    V6_12,
    /// The newest that Debian has for any release.
    Latest,
}

/// A kernel ready to boot.
pub struct KernelFiles {
    /// The package it came from.
    pub name: String,
    /// The compressed kernel.
    pub image: PathBuf,
    /// Modules, in the order to load them.
    pub modules: Vec<PathBuf>,
    /// Those that a guest with a disk needs beyond them.
    pub disk_modules: Vec<PathBuf>,
    /// What QEMU must offer for this kernel to run.
    pub cpu: &'static str,
}

impl Kernel {
    /// Every kernel, oldest first.
    pub const ALL: [Self; 3] = [Self::V6_1, Self::V6_12, Self::Latest];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Latest => "latest",
        }
    }

    /// The emulated processor. Under QEMU 7.2's emulation 6.12 crashes at boot half of the time
    /// unless cmpxchg16b is hidden; without cmpxchg16b, task storage fails silently on 7.x.
    const fn cpu(self) -> &'static str {
        match self {
            Self::V6_12 => "max,-cx16",
            Self::V6_1 | Self::Latest => "max",
        }
    }
}

/// Where Debian's kernels for its own releases and their backports are.
fn suites() -> Suites {
    let main = ["bookworm", "bookworm-backports", "trixie-backports"];
    Suites { main: main.map(str::to_owned).to_vec(), security: "bookworm-security".to_owned() }
}

/// The kernel's files; fetches them where they are not there yet.
pub fn ensure(workspace: &Workspace, kernel: Kernel) -> Result<KernelFiles> {
    let directory = workspace.root().join("target/vm/kernels").join(kernel.name());
    let is_complete = directory.join("name").exists()
        && fs::read_to_string(directory.join("wanted")).is_ok_and(|old| old == modules::wanted());
    if !is_complete {
        fetch(workspace, kernel, &directory).with_context(|| {
            format!("cannot fetch kernel {} from this machine's Debian mirror", kernel.name())
        })?;
    }
    let read = |name: &str| {
        let path = directory.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))
    };
    let paths = |names: String| names.lines().map(|name| directory.join(name)).collect();
    Ok(KernelFiles {
        name: read("name")?.trim().to_owned(),
        image: directory.join("vmlinuz"),
        modules: paths(read("modules")?),
        disk_modules: paths(read("modules.disk")?),
        cpu: kernel.cpu(),
    })
}

fn fetch(workspace: &Workspace, kernel: Kernel, directory: &Path) -> Result<()> {
    println!("vm: fetching kernel {} (once)", kernel.name());
    let apt = Apt::update(workspace.root().join("target/vm/apt"), &suites(), Installed::Nothing)?;
    let offered = apt.search("^linux-.*-cloud-amd64(-unsigned)?$")?;
    let packages = choose(kernel, &offered)?;
    let unpacked = directory.join("unpacked");
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(&unpacked)
        .with_context(|| format!("cannot create `{}`", unpacked.display()))?;
    for package in &packages {
        apt.unpack(package, &unpacked)?;
    }
    let image = find(&unpacked, &|name| name.starts_with("vmlinuz"))
        .with_context(|| format!("no kernel image in {}", packages.join(" or ")))?;
    fs::copy(&image, directory.join("vmlinuz"))
        .with_context(|| format!("cannot copy `{}`", image.display()))?;
    let modules = modules::extract(&unpacked, directory)?;
    fs::write(directory.join("modules"), modules.always.join("\n"))?;
    fs::write(directory.join("modules.disk"), modules.for_a_disk.join("\n"))?;
    fs::write(directory.join("wanted"), modules::wanted())?;
    fs::remove_dir_all(&unpacked)?;
    // Last: its presence says that the rest is complete.
    fs::write(directory.join("name"), &packages[0])?;
    Ok(())
}

/// The packages that hold the newest kernel of this line: its image, then its modules. Since 7.x
/// the image is in `linux-binary`, and `linux-image` of the same version is empty.
fn choose(kernel: Kernel, offered: &[String]) -> Result<Vec<String>> {
    let newest = offered
        .iter()
        .filter_map(|name| Some((version_of_image(name)?, !name.contains("-image-"), name)))
        .filter(|(version, ..)| match kernel {
            Kernel::V6_1 => version.starts_with(&[6, 1, 0]),
            Kernel::V6_12 => version.starts_with(&[6, 12]),
            Kernel::Latest => true,
        })
        .max();
    let Some((.., image)) = newest else {
        bail!("the mirror offers no cloud kernel of the {} line", kernel.name());
    };
    let mut packages = vec![image.clone()];
    // And the modules are a package of their own.
    let release = image.trim_start_matches(|c: char| !c.is_ascii_digit());
    let modules = format!("linux-modules-{release}");
    if offered.contains(&modules) {
        packages.push(modules);
    }
    Ok(packages)
}

/// The numbers of an image package's version; none for metapackages and everything else.
fn version_of_image(name: &str) -> Option<Vec<u32>> {
    let prefixes = ["linux-image-", "linux-binary-unsigned-", "linux-binary-"];
    let rest = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix))?;
    let version = rest.strip_suffix("-cloud-amd64")?;
    let version = version.split('+').next()?;
    let numbers: Vec<u32> =
        version.split(['.', '-']).map(str::parse).collect::<Result<_, _>>().ok()?;
    (numbers.len() >= 3).then_some(numbers)
}

/// The first file below `directory` whose name satisfies `wanted`.
pub fn find(directory: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries.into_iter().find_map(|path| {
        if path.is_symlink() {
            None
        } else if path.is_dir() {
            find(&path, wanted)
        } else {
            path.file_name()?.to_str().is_some_and(wanted).then_some(path)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(kernel: Kernel, offered: &[&str]) -> Vec<String> {
        let offered: Vec<String> = offered.iter().map(|&name| name.to_owned()).collect();
        choose(kernel, &offered).unwrap()
    }

    const OFFERED: &[&str] = &[
        "linux-base-7.3.4+deb13-cloud-amd64",
        "linux-binary-unsigned-7.2.12+deb13-cloud-amd64",
        "linux-binary-unsigned-7.3.4+deb13-cloud-amd64",
        "linux-headers-6.1.0-57-cloud-amd64",
        "linux-image-6.1.0-9-cloud-amd64",
        "linux-image-6.1.0-56-cloud-amd64",
        "linux-image-6.1.0-56-cloud-amd64-unsigned",
        "linux-image-6.12-cloud-amd64",
        "linux-image-6.12.117+deb12-cloud-amd64",
        "linux-image-6.12.95+deb12-cloud-amd64",
        "linux-image-cloud-amd64",
        "linux-modules-7.3.4+deb13-cloud-amd64",
    ];

    #[test]
    fn numbers_are_compared_as_numbers() {
        assert_eq!(chosen(Kernel::V6_1, OFFERED), ["linux-image-6.1.0-56-cloud-amd64"]);
        assert_eq!(chosen(Kernel::V6_12, OFFERED), ["linux-image-6.12.117+deb12-cloud-amd64"]);
    }

    #[test]
    fn the_newest_comes_with_its_modules() {
        assert_eq!(
            chosen(Kernel::Latest, OFFERED),
            [
                "linux-binary-unsigned-7.3.4+deb13-cloud-amd64",
                "linux-modules-7.3.4+deb13-cloud-amd64"
            ]
        );
    }

    #[test]
    fn an_empty_image_package_is_passed_over() {
        let offered = ["linux-binary-unsigned-7.4.1-cloud-amd64", "linux-image-7.4.1-cloud-amd64"];
        assert_eq!(chosen(Kernel::Latest, &offered), ["linux-binary-unsigned-7.4.1-cloud-amd64"]);
    }

    #[test]
    fn a_mirror_without_the_line_is_an_error() {
        let error = choose(Kernel::V6_1, &["linux-image-cloud-amd64".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("6.1"), "{error}");
    }
}
