//! Syslog: each event a message of RFC 5424, to a socket of this host, datagrams or a stream with octet counts
//! (RFC 6587). What reads there takes it further.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::host_name;
use super::local::{Form, Level, Place, fields, level, main_line};
use crate::audit::store::event::time_text;
use crate::audit::store::read::Row;
use crate::audit::store::schema::Text;

/// `log audit`, RFC 5424.
const FACILITY: u8 = 13;

/// What the element with an event's fields is called; the number is that of examples (RFC 5612).
const ELEMENT: &str = "clawbox@32473";

/// Where a syslog is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Syslog {
    /// `unix:PATH` of a datagram socket, as in unix:/dev/log, or `tcp:ADDRESS:PORT` of loopback.
    pub to: String,
    /// What this host is called; its host name if nothing is said.
    #[serde(default)]
    pub host: Option<String>,
}

impl Syslog {
    /// Whether it can be used.
    ///
    /// # Errors
    /// What cannot.
    pub fn check(&self) -> Result<(), String> {
        let is_name = |host: &String| {
            (1..=255).contains(&host.len()) && host.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if let Some(host) = self.host.as_ref().filter(|host| !is_name(host)) {
            return Err(format!("`ship.syslog.host: {host}`: write a name without spaces"));
        }
        self.place().map(drop)
    }

    /// Where it is.
    ///
    /// # Errors
    /// It is no place that there can be.
    pub(super) fn place(&self) -> Result<Place, String> {
        let to = &self.to;
        if let Some(path) = to.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
            return Ok(Place::Datagrams(PathBuf::from(path)));
        }
        let address = to.strip_prefix("tcp:").and_then(|at| at.parse::<SocketAddr>().ok());
        match address.filter(|address| address.ip().is_loopback()) {
            Some(address) => Ok(Place::Stream(address)),
            None => {
                Err(format!("`ship.syslog.to: {to}`: as in unix:/dev/log or tcp:127.0.0.1:601"))
            }
        }
    }
}

/// Events as messages.
pub(super) struct Messages {
    host: String,
    counts_octets: bool,
}

impl Messages {
    pub(super) fn of(syslog: &Syslog, place: &Place) -> Self {
        let host = syslog.host.clone().unwrap_or_else(host_name);
        Self { host, counts_octets: matches!(place, Place::Stream(_)) }
    }
}

/// RFC 5424, 3.1: `<PRI>1 TIME HOST APP PROCESS ID [ELEMENT NAME="VALUE"...] MESSAGE`.
impl Form for Messages {
    fn message(&self, row: Row<'_>) -> Vec<u8> {
        let severity = match level(row) {
            Level::Critical => 2,
            Level::Error => 3,
            Level::Warning => 4,
            Level::Info => 6,
        };
        let (priority, time) = (FACILITY * 8 + severity, time_text(row.micros()));
        let (host, action) = (&self.host, row.text(Text::Action).unwrap_or("-"));
        let process = std::process::id();
        let mut text = format!("<{priority}>1 {time} {host} clawbox {process} {action} [{ELEMENT}");
        for (name, value) in fields(row) {
            // To a String: cannot fail.
            let _ = write!(text, " {name}=\"");
            for character in value.chars() {
                if matches!(character, '"' | '\\' | ']') {
                    text.push('\\');
                }
                text.push(character);
            }
            text.push('"');
        }
        // The mark says that what follows is UTF-8.
        let _ = write!(text, "] \u{feff}{}", main_line(row));
        match self.counts_octets {
            true => format!("{} {text}", text.len()).into_bytes(),
            false => text.into_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ship::local::tests::with_row;

    #[test]
    fn a_message_is_as_the_standard_has_it_and_no_value_ends_before_its_end() {
        let syslog = Syslog { to: "tcp:127.0.0.1:601".to_owned(), host: Some("h1".to_owned()) };
        let place = syslog.place().unwrap();
        let text = with_row("/tmp/a\"]\\b\n", |row| Messages::of(&syslog, &place).message(row));
        let text = String::from_utf8(text).unwrap();
        let (length, text) = text.split_once(' ').unwrap();
        assert_eq!(length.parse::<usize>().unwrap(), text.len());
        let process = std::process::id();
        assert!(text.starts_with("<108>1 20"), "{text}");
        assert!(text.contains(&format!("Z h1 clawbox {process} open [clawbox@32473 id=\"0\"")));
        assert!(
            text.contains(r#" path="/tmp/a\"\]\\b\n""#)
                || text.contains("path=\"/tmp/a\\\"\\]\\\\b")
        );
        let (_, line) = text.split_once("] \u{feff}").unwrap();
        assert!(line.contains("/tmp/a") && !line.contains('\n'), "{line}");
    }

    #[test]
    fn a_syslog_is_one_of_this_host() {
        let at = |to: &str| Syslog { to: to.to_owned(), host: None }.check();
        for to in ["unix:/dev/log", "tcp:127.0.0.1:601", "tcp:[::1]:601"] {
            at(to).unwrap();
        }
        for to in ["unix:log", "/dev/log", "tcp:192.0.2.1:601", "tcp:localhost", "udp:127.0.0.1:5"]
        {
            assert!(at(to).unwrap_err().contains("ship.syslog"), "{to}");
        }
        let host = Some("a b".to_owned());
        assert!(Syslog { to: "unix:/dev/log".to_owned(), host }.check().is_err());
    }
}
