//! Fills in what a text leaves to the machine, in the text itself: what is sent on has everything in it.
//! Each value is replaced where it stands, so that comments and the places of other lines stay.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use nix::unistd::{Uid, User};

use super::groups::groups;
use super::settings::{Machine, Server};
use crate::policy::drafted::{Blank, Place, draft};
use crate::policy::nearest::nearest;
use crate::policy::{Diagnostic, HostFrom};

/// What `~` is.
#[derive(Clone, Debug)]
pub enum Home {
    /// The home of this user, by name or number, maybe with a group; else of whom the policy runs as
    /// where root asks, and of who asks where anybody else does.
    Of(Option<String>),
    /// This directory.
    At(PathBuf),
    /// Left as it is, like groups: only hosts are filled in.
    Later,
}

/// Fills in texts.
#[derive(Debug)]
pub struct Filler {
    home: Home,
    machine: Machine,
    /// Of the first text: presets run as whom the policy says.
    user: Option<String>,
    told: Vec<(HostFrom, Vec<Server>)>,
}

impl Filler {
    /// For this machine.
    #[must_use]
    pub fn here(home: Home) -> Self {
        Self { home, machine: Machine::here(), user: None, told: Vec::new() }
    }

    /// A text with what it leaves to the machine filled in. One that does not parse stays as it is: who
    /// loads it says why.
    ///
    /// # Errors
    ///
    /// Each place that cannot be filled in.
    pub fn fill(&mut self, file: &Arc<str>, text: &str) -> Result<String, Vec<Diagnostic>> {
        let Ok(draft) = draft(file, text) else { return Ok(text.to_owned()) };
        self.user = self.user.take().or(draft.user);
        let mut filled = text.to_owned();
        let mut errors = Vec::new();
        // From the end, since the places before it stay where they are.
        for place in draft.places.iter().rev() {
            match self.place(&filled, place) {
                Ok(Some(changed)) => filled = changed,
                Ok(None) => {}
                Err((message, remedy)) => {
                    errors.push(Diagnostic::error(place.origin.clone(), message, remedy));
                }
            }
        }
        errors.reverse();
        // A home that is not known is not known in thirty places: once is enough.
        let mut said = HashSet::new();
        errors.retain(|error| said.insert(error.message.clone()));
        if errors.is_empty() { Ok(filled) } else { Err(errors) }
    }

    /// What `~` is, where that can be told.
    #[must_use]
    pub fn home(&self) -> Option<PathBuf> {
        match &self.home {
            Home::At(home) => Some(home.clone()),
            Home::Of(user) => home(user.as_deref(), self.user.as_deref()).ok(),
            Home::Later => None,
        }
    }

    /// Says on standard error which hosts came from settings: whoever can write them chooses.
    pub fn tell(&self) {
        for (client, servers) in &self.told {
            let servers: Vec<String> =
                servers.iter().map(|at| format!("{}:{}", bracketed(&at.host), at.port)).collect();
            eprintln!(
                "clawbox: hosts from the settings of {}: {}",
                word(*client),
                servers.join(", ")
            );
        }
    }

    fn place(&mut self, text: &str, place: &Place) -> Result<Option<String>, Refusal> {
        let is_later = matches!(self.home, Home::Later);
        match &place.blank {
            Blank::Home(_) | Blank::Group(_) if is_later => Ok(None),
            Blank::Home(path) => {
                let path = self.below_home(path)?;
                Spot::of(text, place, path_token(&place.blank))?.replaced(text, &[quoted(&path)])
            }
            Blank::Group(name) => {
                let paths = self.group(name)?;
                Spot::of(text, place, path_token(&place.blank))?.replaced(text, &paths)
            }
            Blank::Hosts(client) => {
                let servers = self.servers(*client)?;
                let spot = Spot::of(text, place, word(*client).to_owned())?.endpoint(text)?;
                let inner = text.get(spot.start..spot.end).unwrap_or_default();
                let each: Vec<String> =
                    servers.iter().map(|at| endpoint(inner, *client, at)).collect();
                if each.iter().any(|endpoint| endpoint == inner) {
                    return Err((
                        "`host_from` is written in a way that is not filled in".to_owned(),
                        format!("write `host_from: {}` with one space", word(*client)),
                    ));
                }
                spot.replaced(text, &each)
            }
        }
    }

    fn servers(&mut self, client: HostFrom) -> Result<Vec<Server>, Refusal> {
        if let Some((_, servers)) = self.told.iter().find(|(known, _)| *known == client) {
            return Ok(servers.clone());
        }
        let servers = self.machine.servers(client).map_err(|error| {
            let (message, fix) = error.split_once("; ").unwrap_or((&error, "correct the settings"));
            (message.to_owned(), fix.to_owned())
        })?;
        self.told.push((client, servers.clone()));
        Ok(servers)
    }

    fn group(&self, name: &str) -> Result<Vec<String>, Refusal> {
        let groups =
            groups().map_err(|error| (error.to_string(), "reinstall clawbox".to_owned()))?;
        let Some((_, group)) = groups.iter().find(|(known, _)| known == name) else {
            let names: Vec<&str> = groups.iter().map(|(known, _)| known.as_str()).collect();
            let remedy = match nearest(name, &names) {
                Some(known) => format!("did you mean `group:{known}`?"),
                None => format!("the groups are {}", names.join(", ")),
            };
            return Err((format!("there is no group {name:?}"), remedy));
        };
        group
            .paths
            .iter()
            .map(|path| match path.starts_with("~/") {
                true => self.below_home(path).map(|path| quoted(&path)),
                false => Ok(quoted(path)),
            })
            .collect()
    }

    fn below_home(&self, path: &str) -> Result<String, Refusal> {
        let home = match &self.home {
            Home::At(home) => home.clone(),
            Home::Of(user) => home(user.as_deref(), self.user.as_deref())?,
            Home::Later => return Ok(path.to_owned()),
        };
        let rest = path.strip_prefix("~/").unwrap_or(path);
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
        match home.to_str() {
            Some(home) if home.starts_with('/') && home.chars().all(plain) && home != "/" => {
                Ok(format!("{}/{rest}", home.trim_end_matches('/')))
            }
            _ => Err((
                format!("`~` is {home:?}, which cannot stand in a policy"),
                "write the path itself".to_owned(),
            )),
        }
    }
}

type Refusal = (String, String);

fn home(user: Option<&str>, run_as: Option<&str>) -> Result<PathBuf, Refusal> {
    let own = Uid::effective();
    let account = match user.map(|user| user.split(':').next().unwrap_or(user)) {
        Some(name) => named(name),
        None if !own.is_root() => User::from_uid(own).ok().flatten(),
        None => run_as.and_then(named),
    };
    account.map(|account| account.dir).ok_or_else(|| {
        (
            "nobody can tell whose home `~` is".to_owned(),
            "name an account of this machine with --user or `run_as_user`, or write the path itself"
                .to_owned(),
        )
    })
}

fn named(name: &str) -> Option<User> {
    match name.parse::<u32>() {
        Ok(number) => User::from_uid(Uid::from_raw(number)),
        Err(_) => User::from_name(name),
    }
    .ok()
    .flatten()
}

const fn word(client: HostFrom) -> &'static str {
    match client {
        HostFrom::Pip => "pip",
        HostFrom::Npm => "npm",
        HostFrom::Cargo => "cargo",
        HostFrom::Apt => "apt",
    }
}

fn path_token(blank: &Blank) -> String {
    match blank {
        Blank::Home(path) => path.clone(),
        Blank::Group(name) => format!("group:{name}"),
        Blank::Hosts(client) => word(*client).to_owned(),
    }
}

/// As a YAML string, which has JSON's escapes.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// An endpoint as it is written, with a server in place of `host_from`.
fn endpoint(written: &str, client: HostFrom, server: &Server) -> String {
    let mut keys = format!("host: {}, port: {}", quoted(&server.host), server.port);
    let address = server.host.parse::<std::net::IpAddr>();
    if address.as_ref().map_or(server.host == "localhost", |address| address.is_loopback()) {
        keys.push_str(", host_loopback: true");
    }
    let blank = |quote: &str| format!("host_from: {quote}{}{quote}", word(client));
    let filled = ["\"", "'", ""]
        .iter()
        .fold(written.to_owned(), |text, quote| text.replacen(&blank(quote), &keys, 1));
    // Only a name can be compared with what is said on a connection.
    if address.is_ok() || server.host == "localhost" {
        return filled.replacen(", sni: verify", "", 1);
    }
    filled
}

/// A part of one line.
struct Spot {
    /// Of the line.
    line: usize,
    start: usize,
    end: usize,
}

impl Spot {
    /// Where a value stands, with its quotes.
    fn of(text: &str, place: &Place, value: String) -> Result<Self, Refusal> {
        let unclear = || {
            (
                "what is to be filled in here is written in a way that hides it".to_owned(),
                "write it plainly, on one line and without a tag or an anchor".to_owned(),
            )
        };
        let number = usize::try_from(place.origin.line).ok().and_then(|line| line.checked_sub(1));
        let (mut line, mut rest) = (0, text);
        for _ in 0..number.ok_or_else(unclear)? {
            let end = rest.find('\n').ok_or_else(unclear)? + 1;
            line += end;
            rest = rest.get(end..).ok_or_else(unclear)?;
        }
        let column = usize::try_from(place.origin.column).unwrap_or_default().saturating_sub(1);
        let start = rest.char_indices().nth(column).map(|(at, _)| line + at).ok_or_else(unclear)?;
        let here = text.get(start..).ok_or_else(unclear)?;
        // At the beginning of a line it may be a part of a folded text, where quotes are not quotes.
        let before = text.get(..line).unwrap_or_default().trim_end();
        let is_first = text.get(line..start).is_none_or(|before| before.trim().is_empty());
        if is_first && !before.ends_with(['[', ',']) {
            return Err(unclear());
        }
        let written = ["", "\"", "'"].map(|quote| format!("{quote}{value}{quote}"));
        let found = written.iter().find(|written| here.starts_with(written.as_str()));
        Ok(Self { line, start, end: start + found.ok_or_else(unclear)?.len() })
    }

    /// The endpoint around a value, in its braces.
    fn endpoint(self, text: &str) -> Result<Self, Refusal> {
        let before = text.get(self.line..self.start).unwrap_or_default();
        let after = text.get(self.end..).and_then(|rest| rest.lines().next()).unwrap_or_default();
        match (before.rfind('{'), after.find('}')) {
            (Some(open), Some(close))
                if !before.get(open..).unwrap_or_default().contains('}')
                    && !after.get(..close).unwrap_or_default().contains('{') =>
            {
                Ok(Self { start: self.line + open, end: self.end + close + 1, ..self })
            }
            _ => Err((
                "an endpoint with `host_from` may become several".to_owned(),
                "write it on one line, in braces: `- { host_from: pip }`".to_owned(),
            )),
        }
    }

    /// The text with other entries of the list in place of this one.
    fn replaced(&self, text: &str, entries: &[String]) -> Result<Option<String>, Refusal> {
        let before = text.get(self.line..self.start).unwrap_or_default();
        let between = match before.trim() {
            "-" => format!("\n{before}"),
            _ => ", ".to_owned(),
        };
        let (head, tail) = (text.get(..self.start), text.get(self.end..));
        let entries = entries.join(&between);
        Ok(head.zip(tail).map(|(head, tail)| format!("{head}{entries}{tail}")))
    }
}

#[cfg(test)]
#[path = "fill_tests.rs"]
mod tests;
