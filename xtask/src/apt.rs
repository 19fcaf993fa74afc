//! Packages of releases that this machine's apt is not set up for, without touching its settings.
//! Lists are kept in a directory of their own; mirrors are those this machine already uses.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// Of Debian's archives.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

const NO_MIRROR: &str =
    "no Debian mirror among apt's sources; add Debian's `main` to /etc/apt/sources.list.d";

/// The suites to read.
pub struct Suites {
    /// Of the main archive.
    pub main: Vec<String>,
    /// Of the security archive, where this machine uses one.
    pub security: String,
}

/// Whose list of installed packages counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// None are: packages are only fetched.
    Nothing,
    /// This machine's, for installing on it.
    Here,
}

/// An apt with its own sources and lists.
pub struct Apt {
    directory: PathBuf,
    installed: Installed,
}

impl Apt {
    /// Makes the state in `directory` and reads the mirrors' package lists into it.
    pub fn update(directory: PathBuf, suites: &Suites, installed: Installed) -> Result<Self> {
        for part in ["state/lists/partial", "cache/archives/partial"] {
            let path = directory.join(part);
            fs::create_dir_all(&path)
                .with_context(|| format!("cannot create `{}`", path.display()))?;
        }
        let sources = sources(&known()?, suites).context(NO_MIRROR)?;
        let list = directory.join("sources.list");
        fs::write(&list, sources).with_context(|| format!("cannot write `{}`", list.display()))?;
        let apt = Self { directory, installed };
        process::output(apt.command("apt-get").args(["-qq", "update"]))
            .context("cannot read the Debian mirror's package lists; is the network there?")?;
        Ok(apt)
    }

    /// Real packages whose name matches `pattern`.
    pub fn search(&self, pattern: &str) -> Result<Vec<String>> {
        let found =
            process::output(self.command("apt-cache").args(["search", "--names-only", pattern]))?;
        Ok(found.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
    }

    /// Downloads `package` and unpacks it below `to`.
    pub fn unpack(&self, package: &str, to: &Path) -> Result<()> {
        let downloads = self.directory.join("downloads");
        let _ = fs::remove_dir_all(&downloads);
        fs::create_dir_all(&downloads)
            .with_context(|| format!("cannot create `{}`", downloads.display()))?;
        process::output(
            self.command("apt-get").args(["-qq", "download", package]).current_dir(&downloads),
        )?;
        let file = fs::read_dir(&downloads)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("`apt-get download {package}` left no file"))?;
        process::output(Command::new("dpkg").arg("-x").arg(file).arg(to))?;
        Ok(())
    }

    /// Installs packages and what they need from `suite`, and removes none.
    pub fn install(&self, names: &[&str], suite: &str) -> Result<()> {
        let mut command = self.command("apt-get");
        command.args(["-qq", "-y", "--no-install-recommends", "--no-remove", "-t", suite]);
        command.arg("install").args(names).env("DEBIAN_FRONTEND", "noninteractive");
        process::output(&mut command)?;
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut set = |name: &str, value: &str| {
            command.arg("-o").arg(format!("{name}={value}"));
        };
        let path = |name: &str| self.directory.join(name).display().to_string();
        set("Dir::Etc::sourcelist", &path("sources.list"));
        set("Dir::Etc::sourceparts", "/dev/null");
        set("Dir::State::lists", &path("state/lists"));
        set("Dir::Cache", &path("cache"));
        if self.installed == Installed::Nothing {
            set("Dir::State", &path("state"));
            set("Dir::State::status", "/dev/null");
            set("APT::Architecture", "amd64");
            set("APT::Architectures", "amd64");
        }
        set("Acquire::Languages", "none");
        // apt's own unprivileged user cannot write below a checkout in root's home.
        set("APT::Sandbox::User", "root");
        command
    }
}

/// The mirror of Debian's main archive that this machine uses.
pub fn mirror() -> Result<String> {
    let known = known()?;
    let mirrors = mirrors(&known).context(NO_MIRROR)?;
    Ok(mirrors.main.to_owned())
}

/// What apt is set up for, in lines of `component|release|origin|uri`.
fn known() -> Result<String> {
    let format = "$(COMPONENT)|$(RELEASE)|$(ORIGIN)|$(REPO_URI)";
    process::output(Command::new("apt-get").args([
        "indextargets",
        "--no-release-info",
        "--format",
        format,
        "Identifier: Packages",
    ]))
}

struct Mirrors<'a> {
    main: &'a str,
    security: Option<&'a str>,
}

fn mirrors(known: &str) -> Option<Mirrors<'_>> {
    // By whether the line is a security archive's; the first of apt's own order wins, unless a
    // later one says that it is Debian's (the origin is known only once apt has been updated).
    let mut mirrors: BTreeMap<bool, (bool, &str)> = BTreeMap::new();
    for line in known.lines() {
        let mut fields = line.split('|');
        let (Some("main"), Some(release), Some(origin), Some(uri)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let is_debian = origin == "Debian";
        if !is_debian && !origin.starts_with("$(") {
            continue;
        }
        let best = mirrors.entry(release.ends_with("-security")).or_insert((is_debian, uri));
        if is_debian && !best.0 {
            *best = (true, uri);
        }
    }
    let (_, main) = mirrors.get(&false)?;
    Some(Mirrors { main, security: mirrors.get(&true).map(|(_, uri)| *uri) })
}

/// The sources list.
fn sources(known: &str, suites: &Suites) -> Option<String> {
    let Mirrors { main, security } = mirrors(known)?;
    let line = |uri: &str, suite: &str| format!("deb [signed-by={KEYRING}] {uri} {suite} main\n");
    let mut list: String = suites.main.iter().map(|suite| line(main, suite)).collect();
    if let Some(security) = security {
        list.push_str(&line(security, &suites.security));
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suites() -> Suites {
        Suites {
            main: vec!["bookworm".to_owned(), "trixie-backports".to_owned()],
            security: "bookworm-security".to_owned(),
        }
    }

    #[test]
    fn mirrors_are_the_machines_own() {
        let known = "stable|bookworm|Docker|https://example.org/docker/\n\
                     main|bookworm|Debian|http://mirror.example/debian/\n\
                     main|bookworm-updates|Debian|http://mirror.example/debian/\n\
                     main|bookworm-security|Debian|http://mirror.example/debian-security/\n";
        let list = sources(known, &suites()).unwrap();
        assert_eq!(list.lines().count(), 3);
        assert!(list.contains("http://mirror.example/debian/ trixie-backports main"));
        assert!(list.contains("http://mirror.example/debian-security/ bookworm-security main"));
        assert!(!list.contains("docker"));
    }

    #[test]
    fn an_origin_that_says_debian_wins_over_an_unknown_one() {
        let known = "main|stable|$(ORIGIN)|http://vendor.example/\n\
                     main|bookworm|Debian|http://mirror.example/debian/\n";
        assert!(
            sources(known, &suites())
                .unwrap()
                .contains("http://mirror.example/debian/ bookworm main")
        );
    }

    #[test]
    fn another_distribution_has_no_debian_mirror() {
        assert_eq!(sources("main|noble|Ubuntu|http://mirror.example/ubuntu/\n", &suites()), None);
    }
}
