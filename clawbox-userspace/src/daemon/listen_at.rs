//! Where the daemon's metrics are to be had: nowhere, at a Unix socket, or at a port of the host's own
//! loopback. Nowhere else: what sandboxes do is nobody else's to know.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum ListenAt {
    /// Nowhere.
    #[default]
    Off,
    /// At a Unix socket.
    Unix(PathBuf),
    /// At a port of loopback.
    Loopback(SocketAddr),
}

impl FromStr for ListenAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        if let Some(path) = text.strip_prefix("unix:").map(PathBuf::from) {
            return match path.is_absolute() {
                true => Ok(Self::Unix(path)),
                false => Err(format!("`metrics: {text}`: write the whole path")),
            };
        }
        let address: SocketAddr = text.parse().map_err(|_| {
            format!(
                "`metrics: {text}`: write off, unix:/run/clawbox/metrics.sock, or an address of loopback \
                 with a port, as in 127.0.0.1:9464"
            )
        })?;
        if !address.ip().is_loopback() {
            return Err(format!(
                "`metrics: {text}`: not an address of loopback, and metrics are for this host alone; use \
                 127.0.0.1 or [::1], and let a proxy of yours say who else may read them"
            ));
        }
        if address.port() == 0 {
            return Err(format!("`metrics: {text}`: name a port, or nobody knows where they are"));
        }
        Ok(Self::Loopback(address))
    }
}

impl fmt::Display for ListenAt {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => to.write_str("off"),
            Self::Unix(path) => write!(to, "unix:{}", path.display()),
            Self::Loopback(address) => address.fmt(to),
        }
    }
}

impl TryFrom<String> for ListenAt {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ListenAt> for String {
    fn from(at: ListenAt) -> Self {
        at.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_hosts_own_places_are_listened_at() {
        for text in ["off", "unix:/run/clawbox/metrics.sock", "127.0.0.1:9464", "[::1]:9464"] {
            assert_eq!(text.parse::<ListenAt>().unwrap().to_string(), text);
        }
        for (text, says) in [
            ("0.0.0.0:9464", "not an address of loopback"),
            ("[::]:9464", "not an address of loopback"),
            ("192.0.2.1:9464", "not an address of loopback"),
            ("[::ffff:127.0.0.1]:9464", "not an address of loopback"),
            ("127.0.0.1:0", "name a port"),
            ("localhost:9464", "127.0.0.1:9464"),
            ("9464", "127.0.0.1:9464"),
            ("unix:metrics.sock", "whole path"),
            ("", "write off"),
        ] {
            let error = text.parse::<ListenAt>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
