//! What arrived on the far side, in order.
//! Written by the servers, taken by the demo after each attempt.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// One thing that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// A question to the name server.
    Question {
        /// The name, as it was spelt.
        name: String,
    },
    /// A TCP connection.
    Connection {
        /// The server it was made to.
        at: SocketAddr,
        /// The name it gave in TLS or HTTP; none where it ended before that.
        name: Option<String>,
    },
    /// A datagram to the UDP listener.
    Datagram {
        /// Its length.
        bytes: usize,
    },
    /// ICMP echo requests.
    Echo,
}

/// Where servers write.
#[derive(Clone, Debug, Default)]
pub struct Sightings {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    seen: Vec<Sighting>,
    taken: usize,
    echoes: u64,
}

/// What arrived in one span of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen(pub Vec<Sighting>);

/// Names the connection a server is reading from, once it says for whom it is.
#[derive(Debug)]
pub struct Opened {
    sightings: Sightings,
    index: usize,
}

impl Sightings {
    pub(super) fn add(&self, sighting: Sighting) -> usize {
        let mut state = self.lock();
        state.seen.push(sighting);
        state.seen.len() - 1
    }

    pub(super) fn connection(&self, at: SocketAddr) -> Opened {
        let index = self.add(Sighting::Connection { at, name: None });
        Opened { sightings: self.clone(), index }
    }

    pub(super) fn take(&self, echoes: u64) -> Seen {
        let mut state = self.lock();
        let mut seen = state.seen[state.taken..].to_vec();
        state.taken = state.seen.len();
        seen.extend((state.echoes..echoes).map(|_| Sighting::Echo));
        state.echoes = echoes;
        Seen(seen)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Opened {
    pub(super) fn named(&self, of: &str) {
        if let Some(Sighting::Connection { name, .. }) =
            self.sightings.lock().seen.get_mut(self.index)
        {
            *name = Some(of.to_owned());
        }
    }
}

impl Seen {
    /// Whether a connection arrived that was meant for `name`.
    #[must_use]
    pub fn served(&self, name: &str) -> bool {
        self.0.iter().any(|sighting| {
            matches!(sighting, Sighting::Connection { name: Some(of), .. } if of == name)
        })
    }

    /// Whether nothing arrived but questions for exactly this name.
    #[must_use]
    pub fn only_asked_for(&self, expected: &str) -> bool {
        self.0
            .iter()
            .all(|sighting| matches!(sighting, Sighting::Question { name } if name == expected))
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counted: BTreeMap<String, usize> = BTreeMap::new();
        let mut order = Vec::new();
        for sighting in &self.0 {
            let text = match sighting {
                Sighting::Question { name } => format!("DNS {}", shortened(name)),
                Sighting::Connection { at, name: Some(name) } => format!("{name}:{}", at.port()),
                Sighting::Connection { at, name: None } => format!("connection to {at}"),
                Sighting::Datagram { bytes } => format!("{bytes} bytes of UDP"),
                Sighting::Echo => "a ping".to_owned(),
            };
            let count = counted.entry(text.clone()).or_default();
            *count += 1;
            if *count == 1 {
                order.push(text);
            }
        }
        match order.as_slice() {
            [] => f.write_str("nothing"),
            some => f.write_str(&some.join(", ")),
        }
    }
}

fn shortened(name: &str) -> String {
    match name.char_indices().nth(24) {
        Some((cut, _)) if name.len() > cut + 10 => {
            format!("{}…{}", &name[..12], &name[name.len() - 9..])
        }
        _ => name.to_owned(),
    }
}

/// How many echo requests this network has received, out of `/proc/net/snmp`: a line of names and
/// a line of numbers for each protocol.
pub(super) fn echoes(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Icmp: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split(' ').position(|name| name == "InEchos")?;
    values.split(' ').nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo_requests_are_found_by_name() {
        let text = "Ip: A B\nIp: 1 2\nIcmp: InMsgs InEchos Out\nIcmp: 9 7 1\nUdp: X\nUdp: 3\n";
        assert_eq!(echoes(text), Some(7));
        assert_eq!(echoes("Icmp: InMsgs\nIcmp: 1\n"), None);
    }

    #[test]
    fn what_was_taken_is_not_taken_again() {
        let sightings = Sightings::default();
        let opened = sightings.connection("192.0.2.1:443".parse().unwrap());
        opened.named("a.test");
        let seen = sightings.take(2);
        assert!(seen.served("a.test") && !seen.served("b.test"));
        assert_eq!(seen.to_string(), "a.test:443, a ping");
        assert_eq!(sightings.take(2), Seen::default());
        assert_eq!(Seen::default().to_string(), "nothing");
    }

    #[test]
    fn a_question_for_another_name_is_not_that_name() {
        let question = |name: &str| Sighting::Question { name: name.to_owned() };
        assert!(Seen(vec![question("a.test")]).only_asked_for("a.test"));
        assert!(!Seen(vec![question("x.a.test")]).only_asked_for("a.test"));
        assert!(Seen::default().only_asked_for("a.test"));
    }
}
