//! `curl → api.github.com:443`: who does what, as people write it in tests and on the command line.
//! Spelling only; what it means under a policy is the judge's.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use clawbox_common::rule::{ICMP, TCP, UDP};

use super::{Access, Deed};
use crate::audit::kernel_event::transport;

/// Who does what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The program, by name or path.
    pub program: String,
    /// Programs further up, the nearest first.
    pub ancestors: Vec<String>,
    /// What is done.
    pub deed: Deed,
}

impl Statement {
    /// Parses `PROGRAM → DEED`, where the program may be a chain (`git > git-remote-https`) and `home` is
    /// what `~` stands for.
    ///
    /// # Errors
    /// What is wrong, and what to write.
    pub fn parse(written: &str, home: Option<&Path>) -> Result<Self, (String, String)> {
        let halves = written.split_once('→').or_else(|| written.split_once("->"));
        let Some((who, what)) = halves else {
            return Err((
                format!("`{written}` has no arrow"),
                "write `curl → api.github.com:443` or `git → read /srv/work`".to_owned(),
            ));
        };
        let mut chain: Vec<String> = Vec::new();
        for program in who.split('>').map(str::trim) {
            if program.is_empty() {
                let fix = "name it by its path or its file's name, or write `any`";
                return Err((format!("`{written}` names no program"), fix.to_owned()));
            }
            chain.push(filled(program, home)?);
        }
        let program = chain.pop().unwrap_or_default();
        chain.reverse();
        Ok(Self { program, ancestors: chain, deed: deed(what.trim(), home)? })
    }
}

/// Parses an endpoint, or `read`, `write` or `execute` and a path.
fn deed(written: &str, home: Option<&Path>) -> Result<Deed, (String, String)> {
    if let Some((verb, path)) = written.split_once(char::is_whitespace) {
        let access = match verb {
            "read" | "reads" => Access::Read,
            "write" | "writes" => Access::Write,
            "execute" | "executes" | "start" | "starts" => Access::Execute,
            "listen" | "listens" => return listening(path.trim()),
            "reach" | "reaches" => return socket(path.trim(), home),
            _ => {
                return Err((
                    format!("`{verb}` is nothing that is done with a file or a socket"),
                    "write `read PATH`, `write PATH`, `execute PATH`, `listen ADDRESS:PORT` or \
                     `reach SOCKET`"
                        .to_owned(),
                ));
            }
        };
        return file(path.trim(), access, home);
    }
    endpoint(written)
}

/// A use of a file.
///
/// # Errors
/// What is wrong with the path, and what to write.
pub fn file(written: &str, access: Access, home: Option<&Path>) -> Result<Deed, (String, String)> {
    let path = filled(written, home)?;
    if !path.starts_with('/') {
        return Err((format!("`{written}` is not absolute"), "begin it with `/` or `~/`".into()));
    }
    Ok(Deed::Use { path: path.into(), access })
}

/// A Unix socket, by its path.
///
/// # Errors
/// What is wrong with the path, and what to write.
pub fn socket(written: &str, home: Option<&Path>) -> Result<Deed, (String, String)> {
    match file(written, Access::Write, home)? {
        Deed::Use { path, .. } => Ok(Deed::Reach { path }),
        other => Ok(other),
    }
}

/// `ADDRESS:PORT`, or a port of 127.0.0.1, each maybe with `/tcp` or `/udp`.
///
/// # Errors
/// What is wrong, and what to write.
pub fn listening(written: &str) -> Result<Deed, (String, String)> {
    let is_port = written.starts_with(|c: char| c.is_ascii_digit()) && !written.contains(':');
    let whole = if is_port { format!("127.0.0.1:{written}") } else { written.to_owned() };
    if let Ok(Deed::Connect { host, port, transport: transport @ (TCP | UDP) }) = endpoint(&whole)
        && let Ok(address) = host.parse()
    {
        return Ok(Deed::Listen { address, port, transport });
    }
    Err((
        format!("`{written}` is no address and port to listen on"),
        "write `8080`, `127.0.0.1:8080` or `[::1]:8080`, maybe with /udp".to_owned(),
    ))
}

/// `HOST:PORT`, `[ADDRESS]:PORT`, each maybe with `/tcp` or `/udp`, or `HOST/icmp`.
///
/// # Errors
/// What is wrong, and what to write.
pub fn endpoint(written: &str) -> Result<Deed, (String, String)> {
    let wrong = |what: &str| {
        Err((format!("`{written}` {what}"), "write `api.github.com:443`, maybe with /udp".into()))
    };
    let (place, transport) = match written.rsplit_once('/') {
        Some((place, "tcp")) => (place, TCP),
        Some((place, "udp")) => (place, UDP),
        Some((place, "icmp")) if !place.is_empty() => {
            return Ok(Deed::Connect { host: place.to_owned(), port: 0, transport: ICMP });
        }
        Some(_) => return wrong("is no endpoint"),
        None => (written, TCP),
    };
    let Some((host, port)) = place.rsplit_once(':') else { return wrong("has no port") };
    let Some(port) = port.parse().ok().filter(|port| *port > 0) else {
        return wrong("has no port between 1 and 65535");
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match bare {
        Some(address) if address.parse::<IpAddr>().is_ok() => address,
        None if !host.is_empty() && !host.contains([':', '[', ']']) => host,
        _ => return wrong("names no host"),
    };
    Ok(Deed::Connect { host: host.to_owned(), port, transport })
}

fn filled(written: &str, home: Option<&Path>) -> Result<String, (String, String)> {
    let Some(rest) = written.strip_prefix("~/") else { return Ok(written.to_owned()) };
    match home.and_then(Path::to_str) {
        Some(home) => Ok(format!("{}/{rest}", home.trim_end_matches('/'))),
        None => Err((
            "nobody can tell whose home `~` is".to_owned(),
            "name an account with --user or in the policy's `run_as_user`, or write the path itself"
                .to_owned(),
        )),
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect { host, transport: ICMP, .. } => write!(f, "{host}/icmp"),
            Self::Connect { host, port, transport: number } => {
                if host.contains(':') {
                    write!(f, "[{host}]:{port}")?;
                } else {
                    write!(f, "{host}:{port}")?;
                }
                if *number == TCP { Ok(()) } else { write!(f, "/{}", transport(*number)) }
            }
            Self::Use { path, access } => write!(f, "{} {}", access.name(), path.display()),
            Self::Listen { address, port, transport: number } => {
                write!(f, "listen {}", SocketAddr::new(*address, *port))?;
                if *number == TCP { Ok(()) } else { write!(f, "/{}", transport(*number)) }
            }
            Self::Reach { path } => write!(f, "reach {}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_read_with_either_arrow_and_said_again_the_same() {
        for (written, program, ancestors, deed) in [
            ("curl → api.github.com:443", "curl", vec![], "api.github.com:443"),
            ("curl -> [2001:db8::1]:53/udp", "curl", vec![], "[2001:db8::1]:53/udp"),
            ("/a/git > sh > curl->x.test:1/tcp", "curl", vec!["sh", "/a/git"], "x.test:1"),
            ("any → 192.0.2.1/icmp", "any", vec![], "192.0.2.1/icmp"),
            ("git → read ~/.ssh/id", "git", vec![], "read /home/a/.ssh/id"),
            ("git → writes /srv/x y", "git", vec![], "write /srv/x y"),
            ("web → listen 8080", "web", vec![], "listen 127.0.0.1:8080"),
            ("web → listens [::]:80/udp", "web", vec![], "listen [::]:80/udp"),
            ("psql → reach /run/db/sock", "psql", vec![], "reach /run/db/sock"),
        ] {
            let found = Statement::parse(written, Some(Path::new("/home/a"))).unwrap();
            assert_eq!((found.program.as_str(), found.ancestors), (program, vec_of(&ancestors)));
            assert_eq!(found.deed.to_string(), deed, "{written}");
        }
    }

    fn vec_of(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_statement_that_says_nothing_is_refused_with_what_to_write() {
        for (written, says) in [
            ("curl api.github.com:443", "no arrow"),
            ("→ api.github.com:443", "no program"),
            ("curl → api.github.com", "no port"),
            ("curl → api.github.com:0", "between 1"),
            ("curl → a/b", "no endpoint"),
            ("curl → :443", "no host"),
            ("curl → [x]:443", "no host"),
            ("curl → eat /x", "nothing that is done"),
            ("curl → read x", "not absolute"),
            ("curl → reach x", "not absolute"),
            ("curl → listen name:80", "to listen on"),
            ("curl → listen 0", "to listen on"),
            ("curl → listen 127.0.0.1/icmp", "to listen on"),
            ("curl → read ~/x", "whose home"),
        ] {
            let (message, fix) = Statement::parse(written, None).unwrap_err();
            assert!(message.contains(says) && !fix.is_empty(), "{written}: {message}");
        }
    }
}
