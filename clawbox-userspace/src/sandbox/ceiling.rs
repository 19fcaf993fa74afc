//! What a running sandbox can never get: whatever Landlock and the launch have not given it. A new
//! policy that asks for more needs a restart, and is told so path by path.

use std::path::{Path, PathBuf};

use clawbox_common::rule::TCP;

use super::launch::landlock::since;
use super::launch::{self, BackstopReport, namespaces};
use super::objects;
use crate::compile::MapImage;
use crate::compile::files::Give;

/// The bounds that were set when a sandbox was started.
#[derive(Clone, Debug, Default, serde::Deserialize, serde::Serialize)]
pub struct Ceiling {
    readable: Vec<PathBuf>,
    writable: Vec<PathBuf>,
    /// Unix sockets; none counts as beyond where Landlock does not hold them.
    sockets: Option<Vec<PathBuf>>,
    /// The sandbox's `/tmp` is its own, so no rule can be made for what is in it.
    own_tmp: Option<PathBuf>,
    /// TCP ports, where Landlock holds them.
    ports: Option<Vec<u16>>,
    /// Whether seccomp lets sockets for echo requests be made.
    ping: bool,
    /// Whether BPF LSM programs decide files. Without them Landlock's rules stay as they are.
    judges_files: bool,
    /// Whether nothing was set: the sandbox was not started, but attached.
    #[serde(default)]
    is_open: bool,
}

impl Ceiling {
    /// That of a sandbox without backstops: any policy can be had.
    #[must_use]
    pub fn open() -> Self {
        Self { is_open: true, ..Self::default() }
    }

    /// The bounds of a launch and what it reported. Paths that could not be opened for Landlock are
    /// beyond.
    #[must_use]
    pub fn new(launched: &launch::Request, report: &BackstopReport, judges_files: bool) -> Self {
        let skipped: Vec<&PathBuf> =
            report.skipped_paths.iter().map(|skipped| &skipped.path).collect();
        let holds_sockets = report.landlock_abi_used >= since::UNIX_SOCKETS;
        let opened = |trees: &[PathBuf]| -> Vec<PathBuf> {
            let opened = trees.iter().filter(|tree| !skipped.contains(tree));
            opened.map(|tree| objects::resolved(tree)).collect()
        };
        Self {
            readable: opened(&launched.read_only),
            writable: opened(&launched.read_write),
            sockets: holds_sockets.then(|| opened(&launched.unix_sockets)),
            own_tmp: launched.own_tmp(),
            ping: launched.ping,
            ports: launched.port_ceiling.then(|| launched.connect_ports.clone()),
            judges_files,
            is_open: false,
        }
    }

    /// Trees that can be read, symlinks resolved.
    #[must_use]
    pub fn readable(&self) -> Vec<PathBuf> {
        self.readable.iter().chain(&self.writable).cloned().collect()
    }

    /// What of a policy lies beyond, each with the reason; nothing if all of it can be put in
    /// force. `before` is the policy that it is to replace.
    #[must_use]
    pub fn beyond(&self, before: &MapImage, image: &MapImage, writable: &[PathBuf]) -> Vec<String> {
        let mut beyond = Vec::new();
        if self.is_open {
            return beyond;
        }
        if !self.judges_files && files_differ(before, image) {
            beyond.push(
                "filesystem_policy: this kernel runs no BPF LSM programs, and Landlock's rules \
                 are fixed when a sandbox starts"
                    .to_owned(),
            );
        } else {
            let paths = image.files.iter().map(|grant| (grant.path.as_path(), grant.give));
            let trees = writable.iter().map(|tree| (tree.as_path(), Give::Writing));
            beyond.extend(paths.chain(trees).filter_map(|(path, give)| self.path(path, give)));
        }
        for rule in image.rules.keys().filter(|rule| rule.transport == TCP) {
            if self.ports.as_ref().is_some_and(|ports| !ports.contains(&rule.port)) {
                beyond.push(format!(
                    "port {}: `hard_requirement` has Landlock hold the ports of the start",
                    rule.port
                ));
            }
        }
        if !self.ping && image.opens_ping() {
            beyond.push(
                "transport: icmp: seccomp was told at the start that no rule opens it".to_owned(),
            );
        }
        beyond.dedup();
        beyond
    }

    fn path(&self, path: &Path, give: Give) -> Option<String> {
        let whole = objects::resolved(path);
        if self.own_tmp.is_some() && whole.starts_with(namespaces::TMP) {
            // The launch's own /tmp is among the trees that every policy of the run opens.
            return (path != Path::new(namespaces::TMP)).then(|| {
                format!("{}: the sandbox was started with a /tmp of its own", path.display())
            });
        }
        let below = |trees: &[PathBuf]| trees.iter().any(|tree| whole.starts_with(tree));
        let (what, is_within) = match give {
            Give::Nothing => return None,
            Give::Reading => ("readable", below(&self.readable) || below(&self.writable)),
            Give::Writing => ("writable", below(&self.writable)),
            Give::Reaching => (
                "reachable",
                self.sockets.as_ref().is_none_or(|sockets| below(sockets)) || below(&self.writable),
            ),
        };
        (!is_within)
            .then(|| format!("{}: it was not {what} when the sandbox was started", path.display()))
    }
}

fn files_differ(before: &MapImage, image: &MapImage) -> bool {
    let of = |image: &MapImage| {
        (image.files.clone(), image.names_anywhere.clone(), image.execute_writable)
    };
    of(before) != of(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::launch::SkippedPath;

    fn image(policy: &str) -> MapImage {
        let loaded = crate::policy::parse_str("p.yaml", policy).unwrap();
        crate::compile::compile(&loaded.policy, 1).unwrap()
    }

    fn ceiling(judges_files: bool) -> Ceiling {
        let request = launch::Request {
            read_only: vec!["/usr".into(), "/no/such/tree".into()],
            read_write: vec!["/var".into()],
            ..launch::Request::default()
        };
        let skipped = SkippedPath { path: "/no/such/tree".into(), why: "not there".to_owned() };
        let report = BackstopReport {
            landlock_abi: 3,
            landlock_abi_used: 3,
            layers: Vec::new(),
            skipped_paths: vec![skipped],
            writable_islands: Vec::new(),
        };
        Ceiling::new(&request, &report, judges_files)
    }

    fn files(read_only: &str, read_write: &str) -> MapImage {
        image(&format!(
            "version: 1\nfilesystem_policy:\n  read_only: [{read_only}]\n  read_write: [{read_write}]\n"
        ))
    }

    #[test]
    fn a_path_that_the_launch_did_not_open_is_beyond() {
        let before = files("/usr", "/var");
        for (read_only, read_write, expected) in [
            ("/usr", "/var", vec![]),
            ("/usr/lib, /var/lib", "/var/cache", vec![]),
            ("/etc", "", vec!["/etc: it was not readable"]),
            ("", "/usr", vec!["/usr: it was not writable"]),
            ("/no/such/tree/x", "", vec!["/no/such/tree/x: it was not readable"]),
            ("/tmp/x", "", vec!["/tmp/x: the sandbox was started with a /tmp of its own"]),
        ] {
            let beyond = ceiling(true).beyond(&before, &files(read_only, read_write), &[]);
            assert_eq!(beyond.len(), expected.len(), "{read_only} {read_write}: {beyond:?}");
            for (found, expected) in beyond.iter().zip(expected) {
                assert!(found.starts_with(expected), "{found}");
            }
        }
        let workdir = ceiling(true).beyond(&before, &files("", ""), &["/home".into()]);
        assert!(workdir[0].starts_with("/home: it was not writable"), "{workdir:?}");
    }

    #[test]
    fn without_lsm_no_file_rule_can_change_and_every_other_can() {
        let before = files("/usr", "");
        let other = ceiling(false).beyond(&before, &files("/usr/lib", ""), &[]);
        assert!(other[0].starts_with("filesystem_policy: "), "{other:?}");
        let network = image(
            "version: 1\nfilesystem_policy:\n  read_only: [/usr]\n  read_write: []\n\
             network_policies:\n  a:\n    endpoints: [{ host: a.example.com, port: 443 }]\n    \
             binaries: [{ path: /usr/bin/a }]\n",
        );
        assert_eq!(ceiling(false).beyond(&before, &network, &[]), Vec::<String>::new());
    }

    #[test]
    fn ports_are_beyond_only_where_landlock_holds_them() {
        let policy = "version: 1\nnetwork_policies:\n  a:\n    endpoints: [{ host: a.example.com, \
                      port: 8443 }]\n    binaries: [{ path: /usr/bin/a }]\n";
        let (before, asked) = (files("", ""), image(policy));
        assert!(ceiling(true).beyond(&before, &asked, &[]).is_empty());
        let held = Ceiling { ports: Some(vec![443]), ..ceiling(true) };
        assert!(held.beyond(&before, &asked, &[])[0].starts_with("port 8443"));
    }
}
