//! The hosts that package clients of this machine are told to use (`host_from`), from their own settings.
//! Reads the settings of the machine and of who asks, never those of a project: an agent can write them.

mod apt;
mod cargo;
mod npm;
mod pip;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::policy::HostFrom;

/// Where a client goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Server {
    /// A name or an address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// Whose settings are read.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What `/etc` and the like are below.
    root: PathBuf,
    /// Where the user's own settings are.
    home: PathBuf,
    variables: HashMap<String, String>,
    /// Where clients are, to be asked for their own defaults.
    path: String,
}

/// Of root, who must not start what somebody else has put in the way.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Machine {
    /// This machine, as who runs the command line sees it.
    #[must_use]
    pub fn here() -> Self {
        // What is not text is no URL and no path that a client would be given.
        let variables: HashMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let path = match variables.get("PATH") {
            Some(path) if !nix::unistd::geteuid().is_root() => path.clone(),
            _ => SYSTEM_PATH.to_owned(),
        };
        let home = variables.get("HOME").map_or_else(|| "/".into(), PathBuf::from);
        Self { root: "/".into(), home, variables, path }
    }

    /// Where a client is told to go, each server once.
    ///
    /// # Errors
    ///
    /// Why its settings name none, and what to do.
    pub fn servers(&self, client: HostFrom) -> Result<Vec<Server>, String> {
        let urls = match client {
            HostFrom::Pip => pip::urls(self),
            HostFrom::Npm => npm::urls(self),
            HostFrom::Cargo => cargo::urls(self),
            HostFrom::Apt => apt::urls(self),
        }?;
        let mut servers = Vec::new();
        for url in urls {
            let server = server(&url)?;
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
        Ok(servers)
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A file of the machine's.
    fn system(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Asks a client for its own default, which no file has. Nothing of a project is in its reach.
    fn ask(&self, program: &str, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new(found(&self.path, program)?);
        command.args(arguments).current_dir("/").env_clear();
        command.env("PATH", &self.path).env("HOME", &self.home);
        let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        output.status.success().then_some(())?;
        String::from_utf8(output.stdout).ok()
    }
}

/// `Command` would look for the program in this process's own path.
fn found(path: &str, program: &str) -> Option<PathBuf> {
    let directories = path.split(':').filter(|directory| directory.starts_with('/'));
    directories.map(|directory| Path::new(directory).join(program)).find(|file| file.is_file())
}

/// A settings file's text; one that is not there says nothing.
fn text(path: &Path) -> Result<Option<String>, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(format!("`{}` cannot be read: {error}", path.display())),
    }
}

/// The server of a URL. Who is named in it, and by which password, is nobody's business here.
fn server(url: &str) -> Result<Server, String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err("a URL in the settings has no scheme; write it with `https://`".to_owned());
    };
    // As in `sparse+https` and `mirror+http`.
    let scheme = scheme.rsplit('+').next().unwrap_or(scheme).to_ascii_lowercase();
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let place = authority.rsplit('@').next().unwrap_or(authority);
    let (host, port) = match place.strip_prefix('[') {
        Some(inner) => match inner.split_once(']') {
            Some((address, after)) => (address, after.strip_prefix(':')),
            None => (inner, None),
        },
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let usual = match scheme.as_str() {
        "https" => Some(443),
        "http" | "mirror" => Some(80),
        "ssh" => Some(22),
        "ftp" => Some(21),
        _ => None,
    };
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0),
        None => usual,
    };
    let is_address = host.parse::<std::net::IpAddr>().is_ok();
    let is_name =
        !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '-');
    match port {
        Some(port) if is_name || is_address => Ok(Server { host: host.to_ascii_lowercase(), port }),
        _ => Err(format!(
            "a {scheme} URL in the settings names no server with a port; write the endpoint by hand"
        )),
    }
}

#[cfg(test)]
mod tests;
