//! Installed packages with everything they need to run: what their dependencies name, followed to
//! the end. Only this machine's dpkg is asked; what is not installed does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// Fields of each installed package, one package a line.
const FORMAT: &str = "${db:Status-Status}|${Package}|${Version}|${Essential}|${Provides}|${Pre-Depends}, ${Depends}\n";

/// This machine's packages.
pub struct Installed {
    packages: BTreeMap<String, Package>,
    /// Who provides a name that is no package's own.
    provided: BTreeMap<String, Vec<String>>,
}

struct Package {
    version: String,
    /// No other package has to say that it needs this one.
    is_essential: bool,
    needs: Vec<String>,
}

impl Installed {
    /// Asks dpkg.
    pub fn read() -> Result<Self> {
        let listed = process::output(Command::new("dpkg-query").args(["-W", "-f", FORMAT]))
            .context("cannot read this machine's packages")?;
        Ok(Self::parse(&listed))
    }

    fn parse(listed: &str) -> Self {
        let mut installed = Self { packages: BTreeMap::new(), provided: BTreeMap::new() };
        for line in listed.lines() {
            // The last field has bars of its own.
            let fields: Vec<&str> = line.splitn(6, '|').collect();
            let ["installed", name, version, essential, provides, needs] = fields[..] else {
                continue;
            };
            for provided in names(provides) {
                installed.provided.entry(provided).or_default().push(name.to_owned());
            }
            let package = Package {
                version: version.to_owned(),
                is_essential: essential == "yes",
                needs: names(needs),
            };
            installed.packages.insert(name.to_owned(), package);
        }
        installed
    }

    /// The package of a file.
    pub fn owner(&self, path: &Path) -> Option<String> {
        let found = process::output(Command::new("dpkg").arg("-S").arg(path)).ok()?;
        let owners = found.lines().filter_map(|line| line.rsplit_once(": "));
        let mut names = owners.flat_map(|(owners, _)| names(owners));
        names.find(|name| self.packages.contains_key(name))
    }

    /// `packages`, those that every machine has, and what they need, with versions.
    pub fn closure(&self, packages: &[String]) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let essential = self.packages.iter().filter(|(_, package)| package.is_essential);
        let mut next: Vec<String> = essential.map(|(name, _)| name.clone()).collect();
        next.extend_from_slice(packages);
        while let Some(name) = next.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            if let Some(package) = self.packages.get(&name) {
                next.extend(package.needs.iter().cloned());
                found.insert(name, package.version.clone());
            } else {
                next.extend(self.provided.get(&name).into_iter().flatten().cloned());
            }
        }
        found
    }
}

/// The names in a list of relations, of all alternatives, without versions and architectures.
fn names(relations: &str) -> Vec<String> {
    relations
        .split([',', '|'])
        .filter_map(|relation| relation.split(['(', ':', '[']).next())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "installed|git|1:2.39|||, libc6 (>= 2.34), perl:any, less | pager\n\
        installed|libc6|2.36|no||, libgcc-s1\n\
        installed|libgcc-s1|12|||, libc6\n\
        installed|perl|5.36||perl5|, \n\
        installed|most|1||pager (= 1), other|, \n\
        config-files|less|590|||, \n\
        installed|diffutils|3.8|yes||, \n\
        installed|nodejs|20||node|, \n";

    #[test]
    fn what_is_needed_is_found_to_the_end_and_by_other_names() {
        let installed = Installed::parse(LISTED);
        let found: Vec<String> = installed.closure(&["git".to_owned()]).into_keys().collect();
        assert_eq!(found, ["diffutils", "git", "libc6", "libgcc-s1", "most", "perl"]);
    }

    #[test]
    fn versions_come_with_the_packages() {
        let found = Installed::parse(LISTED).closure(&["nodejs".to_owned(), "absent".to_owned()]);
        let found: Vec<String> =
            found.into_iter().map(|(name, version)| format!("{name} {version}")).collect();
        assert_eq!(found, ["diffutils 3.8", "nodejs 20"]);
    }
}
