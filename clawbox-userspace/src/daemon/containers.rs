//! Containers as their engines know them: which one a cgroup is, what it is called, its image and its
//! labels. The engine is asked, because nothing else knows labels.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;

/// Bytes of what an engine says that are read.
const LONGEST: u64 = 4 << 20;

/// How long an engine may take to answer, in seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is known of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// As its user calls it.
    pub name: String,
    /// As its user named it.
    pub image: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// An engine, and the number it gave.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    engine: Engine,
    /// 64 hexadecimal digits.
    pub number: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Engine {
    Docker,
    Podman,
    /// One that has nothing to say of labels here.
    Other,
}

/// How the names of containers' cgroups begin, with systemd's hierarchy and without.
const NAMES: &[(&str, Engine)] = &[
    ("docker-", Engine::Docker),
    ("libpod-", Engine::Podman),
    ("cri-containerd-", Engine::Other),
    ("crio-", Engine::Other),
];

/// The container that a cgroup is, or is a part of.
#[must_use]
pub fn of_path(path: &Path) -> Option<Id> {
    path.ancestors().find_map(of_name)
}

/// Whether a cgroup is a container's, and not a part of one.
#[must_use]
pub fn is_outermost(path: &Path) -> bool {
    of_name(path).is_some() && path.parent().and_then(of_path).is_none()
}

fn of_name(path: &Path) -> Option<Id> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let is_number = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if is_number(name) && path.parent()?.file_name()? == "docker" {
        return Some(Id { engine: Engine::Docker, number: name.to_owned() });
    }
    NAMES.iter().find_map(|(begin, engine)| {
        let number = name.strip_prefix(begin).filter(|rest| is_number(rest))?;
        Some(Id { engine: *engine, number: number.to_owned() })
    })
}

/// What `podman inspect` and Docker's own file have in common, as far as it is used.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    #[serde(default)]
    name: String,
    #[serde(default)]
    image_name: String,
    config: DescribedConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribedConfig {
    #[serde(default)]
    image: String,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

impl From<Described> for Container {
    fn from(found: Described) -> Self {
        let Described { name, image_name, config: DescribedConfig { image, labels } } = found;
        Self {
            // Docker has a slash before it.
            name: name.trim_start_matches('/').to_owned(),
            image: if image_name.is_empty() { image } else { image_name },
            labels: labels.unwrap_or_default(),
        }
    }
}

/// Where Docker writes down a container before it starts it.
const DOCKER: &str = "/var/lib/docker/containers";

/// Asks the engine, which may take its time.
///
/// # Errors
/// It does not say.
pub fn describe(id: &Id) -> Result<Container, String> {
    match id.engine {
        Engine::Docker => {
            let file = Path::new(DOCKER).join(&id.number).join("config.v2.json");
            let text = fs::read_to_string(&file);
            let text = text.map_err(|error| format!("`{}`: {error}", file.display()))?;
            let found: Described =
                serde_json::from_str(&text).map_err(|error| error.to_string())?;
            Ok(found.into())
        }
        Engine::Podman => podman(&id.number),
        Engine::Other => Ok(Container::default()),
    }
}

fn podman(number: &str) -> Result<Container, String> {
    let mut command = Command::new("podman");
    command.args(["inspect", "--type", "container", number]).stdin(Stdio::null());
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("podman: {error}"))?;
    let mut stdout = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        stdout.take().map(|stdout| stdout.take(LONGEST).read_to_end(&mut text));
        text
    });
    let ended = wait(&mut child);
    let text = reader.join().unwrap_or_default();
    ended?;
    let found: Vec<Described> =
        serde_json::from_slice(&text).map_err(|error| format!("podman inspect: {error}"))?;
    found.into_iter().next().map(Container::from).ok_or_else(|| "podman knows it not".to_owned())
}

/// Waits for a child, and ends it when the time is up.
fn wait(child: &mut std::process::Child) -> Result<(), String> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let failed = |error: &dyn std::fmt::Display| format!("podman inspect: {error}");
    let pid = Pid::from_child(child);
    let fd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| failed(&error))?;
    let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    let mut ended = [PollFd::new(&fd, PollFlags::IN)];
    if poll(&mut ended, Some(&patience)).map_err(|error| failed(&error))? == 0 {
        drop(child.kill());
        drop(child.wait());
        return Err(format!("podman inspect has not answered within {} s", PATIENCE.as_secs()));
    }
    let status = child.wait().map_err(|error| failed(&error))?;
    if status.success() { Ok(()) } else { Err(format!("podman inspect: {status}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBER: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn a_container_is_known_by_the_name_of_its_cgroup() {
        let of = |path: &str| {
            of_path(Path::new(&path.replace('#', NUMBER))).map(|id| (id.engine, id.number))
        };
        let is = |engine| Some((engine, NUMBER.to_owned()));
        assert_eq!(of("/system.slice/docker-#.scope"), is(Engine::Docker));
        assert_eq!(of("/docker/#"), is(Engine::Docker));
        assert_eq!(of("/machine.slice/libpod-#.scope/container"), is(Engine::Podman));
        assert_eq!(of("/libpod_parent/libpod-#"), is(Engine::Podman));
        assert_eq!(of("/kubepods.slice/cri-containerd-#.scope"), is(Engine::Other));
        for other in ["/", "/machine.slice/libpod-conmon-#.scope", "/other/#", "/libpod-12"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn both_engines_descriptions_are_read() {
        let podman = r#"{"Name":"agent","ImageName":"localhost/a:1","Image":"sha256:1",
            "Config":{"Labels":{"clawbox":"on"},"Other":1}}"#;
        let docker = r#"{"ID":"1","Name":"/agent","Image":"sha256:1",
            "Config":{"Image":"localhost/a:1","Labels":null}}"#;
        let read = |text: &str| Container::from(serde_json::from_str::<Described>(text).unwrap());
        let (one, other) = (read(podman), read(docker));
        assert_eq!((one.name.as_str(), one.image.as_str()), ("agent", "localhost/a:1"));
        assert_eq!(one.labels.get("clawbox").map(String::as_str), Some("on"));
        assert_eq!((other.name.as_str(), other.image.as_str()), ("agent", "localhost/a:1"));
        assert!(other.labels.is_empty());
    }
}
