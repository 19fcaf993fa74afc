//! Standing rules, `/etc/clawbox/sandboxes.d/*.yaml`: which cgroups that others make are sandboxes as
//! soon as a program is started in them, and under which policy.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clawbox_common::attach::{Compared, Selector};
use globset::{GlobBuilder, GlobMatcher};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::config::ConfigError;
use super::containers::{self, Container};
use crate::audit::AuditLevel;
use crate::policy::model::Mode;

/// A file of a rule is no larger.
const LARGEST: u64 = 64 << 10;

/// A rule as it is written.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Written {
    /// What its sandboxes are called.
    pub name: String,
    /// For which cgroups it is.
    #[serde(rename = "match")]
    pub wanted: Wanted,
    /// The policy's file, or a list of it and presets.
    pub policy: Files,
    /// Also where BPF LSM is missing, and nothing holds what the processes do with files.
    #[serde(default)]
    pub network_only: bool,
    /// What of the allowed goes into the trail: denials, summary or all.
    #[serde(default)]
    pub audit_level: AuditLevel,
    /// In place of the policy's own: enforce or audit.
    #[serde(default)]
    pub mode: Option<Mode>,
}

/// One file, or several.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Files {
    /// One.
    One(PathBuf),
    /// In this order.
    Several(Vec<PathBuf>),
}

impl Files {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[PathBuf] {
        match self {
            Self::One(file) => std::slice::from_ref(file),
            Self::Several(files) => files,
        }
    }
}

/// One of these.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Wanted {
    /// The name of a unit of the system's systemd; `*` and `?` are any.
    Unit(String),
    /// The path of a cgroup below the root of the hierarchy; `*` is anything in one name, `**` any names.
    Cgroup(String),
    /// A container of Docker's or Podman's.
    Container(WantedContainer),
}

/// All that is written has to fit.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WantedContainer {
    /// Its name; `*` and `?` are any.
    pub name: Option<String>,
    /// Its image.
    pub image: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A rule that can be used.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Where it is written.
    pub file: PathBuf,
    /// As it is written.
    pub written: Written,
    matcher: Matcher,
}

#[derive(Clone, Debug)]
enum Matcher {
    Unit(GlobMatcher),
    Cgroup(GlobMatcher),
    Container {
        name: Option<GlobMatcher>,
        image: Option<GlobMatcher>,
        labels: Vec<(String, GlobMatcher)>,
    },
}

/// How the names of container engines' cgroups begin.
const ENGINES: &[(Compared, &str)] = &[
    (Compared::Name, "docker-"),
    (Compared::Name, "libpod-"),
    (Compared::Name, "cri-containerd-"),
    (Compared::Name, "crio-"),
    (Compared::Path, "/docker/"),
];

/// How the names of cgroups begin in which engines have what watches a container, and nothing of the
/// container's. An engine waits for it with the container's lock held: that it could start one while
/// there is no agent is not for the agent to prevent.
const MONITORS: [&str; 2] = ["libpod-conmon-", "crio-conmon-"];

/// What the kernel need not ask about, although it begins as a container does: nothing that any rule is
/// for.
#[must_use]
pub fn spared(rules: &[Rule]) -> Vec<(Selector, u32)> {
    let others = || rules.iter().filter(|rule| !rule.is_for_containers());
    let is_meant = |name: &str| {
        others().any(|rule| match &rule.written.wanted {
            Wanted::Unit(unit) => name.starts_with(literal(unit)),
            _ => false,
        })
    };
    if others().count() == rules.len() {
        return Vec::new();
    }
    let spared = MONITORS.iter().filter(|name| !is_meant(name));
    spared.map(|name| Selector::beginning(Compared::Name, name)).collect()
}

/// Reads all rules of a directory, in the order of their files' names; none if it is not there.
///
/// # Errors
/// One cannot be read, has a mistake, or somebody else than root can change it.
pub fn read(directory: &Path) -> Result<Vec<Rule>, ConfigError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ConfigError::Read { path, source }
    };
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed(directory))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed(directory))?.path();
        if path.extension().is_some_and(|end| end == "yaml" || end == "yml") {
            files.push(path);
        }
    }
    files.sort();
    files.iter().map(|file| read_file(file)).collect()
}

fn read_file(file: &Path) -> Result<Rule, ConfigError> {
    let failed = |source| ConfigError::Read { path: file.to_owned(), source };
    let wrong = |message: String| ConfigError::Form { path: file.to_owned(), message };
    let found = fs::metadata(file).map_err(failed)?;
    if found.uid() != 0 || found.mode() & 0o022 != 0 {
        return Err(wrong(
            "somebody else than root can change it; `chown root` and `chmod go-w` it".to_owned(),
        ));
    }
    if found.len() > LARGEST {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    let text = fs::read_to_string(file).map_err(failed)?;
    Rule::parse(file, &text).map_err(wrong)
}

fn glob(text: &str) -> Result<GlobMatcher, String> {
    let glob = GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build();
    Ok(glob.map_err(|error| format!("`{text}` is no pattern: {}", error.kind()))?.compile_matcher())
}

/// What of a pattern comes before anything that can be several.
fn literal(text: &str) -> &str {
    text.split(['*', '?', '[', '{', '\\']).next().unwrap_or("")
}

impl Rule {
    /// Reads a text.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(file: &Path, text: &str) -> Result<Self, String> {
        let written: Written = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        if written.policy.all().is_empty() {
            return Err("`policy`: name a file".to_owned());
        }
        if let Some(path) = written.policy.all().iter().find(|path| !path.is_absolute()) {
            return Err(format!("`policy: {}`: write the whole path", path.display()));
        }
        crate::sandbox::order::valid_name(&written.name).map_err(|error| error.to_string())?;
        let matcher = match &written.wanted {
            Wanted::Unit(name) if name.contains('/') => {
                return Err(format!("`unit: {name}`: write the name of a unit"));
            }
            Wanted::Unit(name) if !name.contains('.') => {
                return Err(format!("`unit: {name}`: write its end too, as in `{name}.service`"));
            }
            Wanted::Unit(name) => Matcher::Unit(glob(name)?),
            Wanted::Cgroup(path) if !path.starts_with('/') || path == "/" => {
                return Err(format!(
                    "`cgroup: {path}`: write the path below the root of the hierarchy, beginning with /"
                ));
            }
            Wanted::Cgroup(path) => Matcher::Cgroup(glob(path.trim_end_matches('/'))?),
            Wanted::Container(wanted) => {
                let WantedContainer { name, image, labels } = wanted;
                if name.is_none() && image.is_none() && labels.is_empty() {
                    return Err(
                        "`container`: name at least one of name, image and labels".to_owned()
                    );
                }
                let labels = labels.iter().map(|(label, value)| Ok((label.clone(), glob(value)?)));
                Matcher::Container {
                    name: name.as_deref().map(glob).transpose()?,
                    image: image.as_deref().map(glob).transpose()?,
                    labels: labels.collect::<Result<_, String>>()?,
                }
            }
        };
        Ok(Self { file: file.to_owned(), written, matcher })
    }

    /// What the kernel has to ask about, so that nothing this rule is for is left out. It may ask of
    /// others too.
    #[must_use]
    pub fn selectors(&self) -> Vec<(Selector, u32)> {
        let engines =
            || ENGINES.iter().map(|(compared, text)| Selector::beginning(*compared, text));
        match &self.written.wanted {
            Wanted::Unit(name) => vec![Selector::beginning(Compared::Name, literal(name))],
            Wanted::Cgroup(path) => vec![Selector::beginning(Compared::Path, literal(path))],
            Wanted::Container(_) => engines().collect(),
        }
    }

    /// Whether it is for containers, of which more has to be known than their path.
    #[must_use]
    pub fn is_for_containers(&self) -> bool {
        matches!(self.matcher, Matcher::Container { .. })
    }

    /// Whether it is for the cgroup of this path below the root of the hierarchy, and what is known of the
    /// container in it.
    #[must_use]
    pub fn is_for(&self, path: &Path, container: Option<&Container>) -> bool {
        match &self.matcher {
            Matcher::Unit(name) => {
                let last = path.file_name().map(Path::new);
                !is_users(path) && last.is_some_and(|last| name.is_match(last))
            }
            Matcher::Cgroup(pattern) => pattern.is_match(path),
            Matcher::Container { name, image, labels } => container.is_some_and(|found| {
                let fits = |wanted: &Option<GlobMatcher>, is: &str| {
                    wanted.as_ref().is_none_or(|wanted| wanted.is_match(is))
                };
                let has = |(label, wanted): &(String, GlobMatcher)| {
                    found.labels.get(label).is_some_and(|value| wanted.is_match(value))
                };
                !is_users(path)
                    && containers::is_outermost(path)
                    && fits(name, &found.name)
                    && fits(image, &found.image)
                    && labels.iter().all(has)
            }),
        }
    }
}

/// The daemon's own cgroup, of which the kernel never asks, whatever the rules say: with a rule for all
/// units the next daemon would wait for itself.
#[must_use]
pub fn itself(path: &Path) -> Vec<(Selector, u32)> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.map(|name| Selector::beginning(Compared::Name, &name));
    let path = Selector::beginning(Compared::Path, &path.to_string_lossy());
    name.into_iter().chain([path]).collect()
}

/// Whether a cgroup is below the users' own, who call there what they make as they like.
pub(super) fn is_users(path: &Path) -> bool {
    path.starts_with("/user.slice")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(wanted: &str) -> Rule {
        let text = format!("name: a\nmatch: {wanted}\npolicy: /p.yaml\n");
        Rule::parse(Path::new("a.yaml"), &text).unwrap_or_else(|error| panic!("{wanted}: {error}"))
    }

    #[test]
    fn a_users_own_unit_is_found_by_its_path() {
        let pattern =
            "{ cgroup: '/user.slice/user-*.slice/user@*.service/app.slice/claw.service' }";
        let is_for = |below: &str| {
            let path = format!("/user.slice/user-7.slice/{below}");
            rule(pattern).is_for(Path::new(&path), None)
        };
        assert!(is_for("user@7.service/app.slice/claw.service"));
        assert!(!is_for("user@7.service/app.slice/other.service") && !is_for("session-1.scope"));
    }

    #[test]
    fn a_rule_is_for_what_its_pattern_says_and_nothing_below_or_above() {
        let container = |name: &str, label: &str| Container {
            name: name.to_owned(),
            image: "localhost/agent:1".to_owned(),
            labels: BTreeMap::from([("clawbox".to_owned(), label.to_owned())]),
        };
        let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        let scope = format!("/machine.slice/libpod-{id}.scope");
        let inner = format!("{scope}/container");
        let rows: [(&str, &str, Option<Container>, bool); 14] = [
            ("{ unit: openclaw.service }", "/system.slice/openclaw.service", None, true),
            (
                "{ unit: 'claw@*.service' }",
                "/system.slice/system-claw.slice/claw@1.service",
                None,
                true,
            ),
            ("{ unit: openclaw.service }", "/system.slice/openclaw.service/sub", None, false),
            ("{ unit: openclaw.service }", "/system.slice/xopenclaw.service", None, false),
            (
                "{ unit: openclaw.service }",
                "/user.slice/user@7.service/openclaw.service",
                None,
                false,
            ),
            (
                "{ container: { name: a } }",
                &scope.replace("/machine.slice", "/user.slice/user-7.slice/user@7.service"),
                Some(container("a", "")),
                false,
            ),
            ("{ cgroup: '/agents/*' }", "/agents/one", None, true),
            ("{ cgroup: '/agents/*' }", "/agents/one/two", None, false),
            ("{ cgroup: '/agents/**' }", "/agents/one/two", None, true),
            (
                "{ container: { labels: { clawbox: 'on' } } }",
                &scope,
                Some(container("a", "on")),
                true,
            ),
            (
                "{ container: { labels: { clawbox: 'on' } } }",
                &scope,
                Some(container("a", "off")),
                false,
            ),
            ("{ container: { labels: { clawbox: 'on' } } }", &scope, None, false),
            (
                "{ container: { name: 'a*', image: 'localhost/agent*' } }",
                &scope,
                Some(container("ab", "")),
                true,
            ),
            ("{ container: { name: 'a*' } }", &inner, Some(container("ab", "")), false),
        ];
        for (wanted, path, container, is) in rows {
            assert_eq!(
                rule(wanted).is_for(Path::new(path), container.as_ref()),
                is,
                "{wanted} {path}"
            );
        }
    }

    #[test]
    fn the_daemons_own_cgroup_is_spared_by_its_name_and_by_its_path() {
        let own = "/system.slice/clawbox.service";
        let both = [
            Selector::beginning(Compared::Name, "clawbox.service"),
            Selector::beginning(Compared::Path, own),
        ];
        assert_eq!(itself(Path::new(own)), both);
    }

    #[test]
    fn the_kernel_is_told_what_comes_before_the_first_wildcard() {
        let of = |wanted: &str| rule(wanted).selectors();
        assert_eq!(
            of("{ unit: 'claw@*.service' }"),
            [Selector::beginning(Compared::Name, "claw@")]
        );
        assert_eq!(of("{ cgroup: '/a/b-?' }"), [Selector::beginning(Compared::Path, "/a/b-")]);
        assert_eq!(of("{ container: { name: x } }").len(), ENGINES.len());
    }

    #[test]
    fn what_watches_containers_is_spared_unless_a_rule_is_for_it() {
        let spared = |rules: &[&str]| {
            let rules: Vec<Rule> = rules.iter().map(|wanted| rule(wanted)).collect();
            spared(&rules)
        };
        let of = |name| Selector::beginning(Compared::Name, name);
        let container = "{ container: { name: x } }";
        let both = [of("libpod-conmon-"), of("crio-conmon-")];
        assert_eq!(spared(&[container, "{ cgroup: '/machine.slice/**' }"]), both);
        assert_eq!(spared(&[container, "{ unit: libpod-conmon-1.scope }"]), both);
        for unit in ["{ unit: 'libpod-*.scope' }", "{ unit: 'libpod-conmon-*.scope' }"] {
            assert_eq!(spared(&[container, unit]), [of("crio-conmon-")], "{unit}");
        }
        assert!(spared(&[container, "{ unit: '*.scope' }"]).is_empty());
        assert!(spared(&["{ unit: a.service }"]).is_empty());
    }

    #[test]
    fn what_is_wrong_with_a_rule_is_said() {
        for (text, says) in [
            ("name: a\nmatch: { unit: a }\npolicy: [/p]\n", ".service"),
            ("name: a\nmatch: { unit: a/b.service }\npolicy: [/p]\n", "name of a unit"),
            ("name: a\nmatch: { cgroup: a }\npolicy: [/p]\n", "beginning with /"),
            ("name: a\nmatch: { cgroup: / }\npolicy: [/p]\n", "beginning with /"),
            ("name: a\nmatch: { container: {} }\npolicy: [/p]\n", "at least one"),
            ("name: a\nmatch: { unit: a.service }\npolicy: []\n", "name a file"),
            ("name: a\nmatch: { unit: a.service }\npolicy: [p.yaml]\n", "whole path"),
            ("name: a/b\nmatch: { unit: a.service }\npolicy: [/p]\n", "no name"),
            ("name: a\nmatch: { unit: '[.service' }\npolicy: [/p]\n", "no pattern"),
            ("name: a\nmatch: { unit: a.service }\npolicy: [/p]\nmore: 1\n", "more"),
            ("name: a\npolicy: [/p]\n", "match"),
        ] {
            let error = Rule::parse(Path::new("a.yaml"), text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
