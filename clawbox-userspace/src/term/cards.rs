//! Approval cards: each program's endpoint that waits for an answer or was denied, however often, and what
//! is known of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use clawbox_common::address::{Address, Range};

use super::list::Place;
use super::plain::plain;
use crate::lint::is_shared;
use crate::sandbox::control::Connection;
use crate::sandbox::held::rule;

/// Cards of what was denied that are kept.
const MOST: usize = 500;

/// Looks at all sandboxes, two a second, for which a card counts as unread.
const UNREAD: u8 = 2;

/// Ports on which a host's name is said first.
const NAMED: [u16; 2] = [80, 443];

/// Whose card it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The sandbox, NAME-NUMBER.
    pub sandbox: String,
    /// The program; empty where it ended before its path could be read.
    pub program: String,
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// A connection that was denied, or a name that was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// Whose card it is on.
    pub key: Key,
    /// Where it would have gone, if that is known.
    pub ip: Option<IpAddr>,
    /// When, as the trail has it.
    pub time: String,
    /// So often.
    pub times: u64,
    /// Whether the name alone was asked for, so that the port is a guess.
    pub is_name: bool,
    /// It waited, and somebody or nobody answered.
    pub is_answer: bool,
}

/// What the policy says of a card.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// In words.
    pub says: Vec<String>,
    /// Whether the policy names the program anywhere.
    pub names_program: bool,
    /// The program as the policy writes it, or by its path.
    pub program: String,
    /// The policy that was asked.
    pub revision: u32,
}

/// A connection that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its number in the sandbox.
    pub id: u32,
    /// How long it still waits.
    pub seconds_left: u64,
}

/// A card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Whose.
    pub key: Key,
    /// Connections that wait, the longest first.
    pub held: Vec<Held>,
    /// How often it was denied.
    pub denied: u64,
    /// When it was last seen; empty where it only waits.
    pub last: String,
    /// Where it would have gone.
    pub ip: Option<IpAddr>,
    /// The port is a guess.
    pub is_name: bool,
    /// The rule that the daemon has for one that waits; empty where there is none.
    pub rule: String,
    /// What the policy says.
    pub advice: Option<Advice>,
    /// Which came first.
    number: u64,
    /// Out of sight until it comes again.
    is_dismissed: bool,
}

/// How much is approved, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Connections that wait.
    Once,
    /// As long as the sandbox runs.
    Session,
    /// A revision of the policy.
    Policy,
}

/// One way to approve a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// For how long.
    pub scope: Scope,
    /// In words.
    pub text: &'static str,
    /// The entry of `network_policies`; empty for once.
    pub rule: String,
}

impl Card {
    fn new(key: Key, number: u64) -> Self {
        let (held, denied, last, ip, is_name, rule, advice, is_dismissed) = Default::default();
        Self { key, held, denied, last, ip, is_name, rule, advice, number, is_dismissed }
    }

    /// HOST:PORT.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let Key { host, port, .. } = &self.key;
        let host = plain(host);
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// The program, as it is shown.
    #[must_use]
    pub fn program(&self) -> String {
        match self.key.program.is_empty() {
            true => "a program that has ended".to_owned(),
            false => plain(&self.key.program),
        }
    }

    /// The entry of `network_policies` that allows it; `None` where no rule can name the program.
    #[must_use]
    pub fn entry(&self, is_verified: bool) -> Option<String> {
        if !is_verified && !self.rule.is_empty() {
            return Some(self.rule.clone());
        }
        let program = self.advice.as_ref().map(|advice| advice.program.as_str());
        let program = program.filter(|path| !path.is_empty()).unwrap_or(&self.key.program);
        rule(&self.key.host, self.key.port, program, is_verified)
    }

    /// Whether a rule can have the name verified on the connection.
    #[must_use]
    pub fn can_be_verified(&self) -> bool {
        self.key.host.parse::<IpAddr>().is_err() && NAMED.contains(&self.key.port)
    }

    /// The ways to approve it, the narrowest first.
    #[must_use]
    pub fn ways(&self) -> Vec<Way> {
        let mut ways = Vec::new();
        if !self.held.is_empty() {
            let text = "once: what waits now";
            ways.push(Way { scope: Scope::Once, text, rule: String::new() });
        }
        let verified = self.can_be_verified().then(|| self.entry(true)).flatten();
        let named = self.entry(false);
        let texts = [
            (Scope::Session, &verified, "this session: this program, host and port, name verified"),
            (Scope::Session, &named, "this session: this program, host and port"),
            (Scope::Policy, &verified, "to policy: this program, host and port, name verified"),
            (Scope::Policy, &named, "to policy: this program, host and port"),
        ];
        for (scope, rule, text) in texts {
            if let Some(rule) = rule.clone() {
                ways.push(Way { scope, text, rule });
            }
        }
        ways
    }

    /// What to think of before it is approved.
    #[must_use]
    pub fn risks(&self) -> Vec<String> {
        let mut risks = Vec::new();
        let host = &self.key.host;
        let written = host.parse::<IpAddr>().ok();
        if written.is_some() {
            risks.push("bare IP address: no name says whose it is".to_owned());
        } else if is_shared(host) {
            risks.push("shared CDN: the addresses of this name are many hosts'".to_owned());
        }
        if let Some(what) = written.or(self.ip).and_then(range) {
            risks.push(what.to_owned());
        }
        if self.key.port == 80 {
            risks.push("port 80: what is sent can be read on the way".to_owned());
        }
        if self.advice.as_ref().is_some_and(|advice| !advice.names_program) {
            risks.push("program not named by the policy".to_owned());
        }
        if self.entry(false).is_none() {
            risks.push("no rule can name this program: once is all there is".to_owned());
        }
        if self.is_name {
            risks.push("its name alone was asked for: port 443 is a guess".to_owned());
        }
        risks
    }
}

fn range(ip: IpAddr) -> Option<&'static str> {
    let address = match ip {
        IpAddr::V4(ip) => Address::v4(u32::from(ip).to_be()),
        IpAddr::V6(ip) => Address::from_octets(ip.octets()),
    };
    match address.range() {
        Range::Global => None,
        Range::Special => Some("address in a private range: another machine of your network"),
        Range::Loopback => Some("address in a private range: this host itself"),
        Range::LinkLocal => Some("link-local address, as clouds' metadata services have"),
        Range::Synthetic | Range::Unspecified | Range::Multicast | Range::Reserved => {
            Some("address in a reserved range")
        }
    }
}

/// All cards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cards {
    all: Vec<Card>,
    last: u64,
    /// Which is chosen.
    pub place: Place,
    chosen: Option<Key>,
    /// Those that were denied here: that the trail says so too is no news.
    refused: BTreeSet<Key>,
    /// Looks until a card that has come up by itself, in the place of the one that was chosen, can have been
    /// read: a key that was meant for the other is not taken for this one.
    unread: u8,
}

impl Cards {
    /// Those that are shown: what waits first, then what was denied last.
    #[must_use]
    pub fn shown(&self) -> Vec<&Card> {
        self.all.iter().filter(|card| !card.is_dismissed).collect()
    }

    /// The one that is chosen.
    #[must_use]
    pub fn chosen(&self) -> Option<&Card> {
        self.shown().get(self.place.at).copied()
    }

    /// One of them.
    #[must_use]
    pub fn find(&self, key: &Key) -> Option<&Card> {
        self.all.iter().find(|card| card.key == *key)
    }

    /// How many connections wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.all.iter().map(|card| card.held.len()).sum()
    }

    /// Another row is chosen.
    pub fn step(&mut self, by: isize, height: usize) {
        self.place.step(by, self.shown().len(), height);
        self.chosen = self.chosen().map(|card| card.key.clone());
        self.unread = 0;
    }

    /// Whether the chosen card can have been read.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.unread == 0
    }

    fn of(&mut self, key: &Key) -> &mut Card {
        let at = match self.all.iter().position(|card| card.key == *key) {
            Some(at) => at,
            None => {
                self.last += 1;
                self.all.push(Card::new(key.clone(), self.last));
                self.all.len() - 1
            }
        };
        &mut self.all[at]
    }

    /// Takes up what was denied.
    pub fn denied(&mut self, denied: Denied) {
        let is_known = denied.is_answer && self.refused.contains(&denied.key);
        let card = self.of(&denied.key);
        card.denied = card.denied.saturating_add(denied.times);
        card.ip = denied.ip.or(card.ip);
        (card.last, card.is_name) = (denied.time, denied.is_name);
        card.is_dismissed = is_known;
        let old = self.all.iter().filter(|card| card.held.is_empty()).count();
        if old > MOST {
            let of_none = self.all.iter().enumerate().filter(|(_, card)| card.held.is_empty());
            let oldest = of_none.min_by(|(_, one), (_, other)| one.last.cmp(&other.last));
            if let Some(at) = oldest.map(|(at, _)| at) {
                self.all.remove(at);
            }
        }
    }

    /// Takes up what waits in all sandboxes that run.
    pub fn waits(&mut self, running: &[&str], waiting: &[(String, Vec<Connection>)]) {
        self.unread = self.unread.saturating_sub(1);
        self.all.retain(|card| running.contains(&card.key.sandbox.as_str()));
        self.all.iter_mut().for_each(|card| card.held.clear());
        for (sandbox, connections) in waiting {
            for connection in connections {
                let Connection { id, host, port, program, seconds_left, rule, .. } = connection;
                let (host, port) = (host.clone(), *port);
                let program = program.clone().unwrap_or_default();
                let key = Key { sandbox: sandbox.clone(), program, host, port };
                let card = self.of(&key);
                card.held.push(Held { id: *id, seconds_left: *seconds_left });
                rule.clone_into(&mut card.rule);
                (card.is_name, card.is_dismissed) = (false, false);
            }
        }
        // One that waited and was let go on is none any more.
        self.all.retain(|card| !card.held.is_empty() || card.denied > 0);
    }

    /// Puts them in order; who was chosen stays so.
    pub fn settle(&mut self, height: usize) {
        self.all.sort_by(|one, other| {
            let waits = |card: &Card| card.held.is_empty();
            waits(one).cmp(&waits(other)).then_with(|| match waits(one) {
                false => one.number.cmp(&other.number),
                true => other.last.cmp(&one.last).then(one.number.cmp(&other.number)),
            })
        });
        let shown = self.shown();
        let at = shown.iter().position(|card| Some(&card.key) == self.chosen.as_ref());
        let (length, at) = (shown.len(), at.unwrap_or(self.place.at));
        self.place.choose(at, length, height);
        let next = self.chosen().map(|card| card.key.clone());
        if self.chosen.is_some() && next.is_some() && self.chosen != next {
            self.unread = UNREAD;
        }
        self.chosen = next;
    }

    /// What the policy says of one.
    pub fn advise(&mut self, key: &Key, advice: Advice) {
        if let Some(card) = self.all.iter_mut().find(|card| card.key == *key) {
            card.advice = Some(advice);
        }
    }

    /// Puts one out of sight, or back.
    pub fn dismiss(&mut self, key: &Key, is_dismissed: bool) {
        if let Some(card) = self.all.iter_mut().find(|card| card.key == *key) {
            card.is_dismissed = is_dismissed;
        }
    }

    /// Somebody has denied one here, or takes that back.
    pub fn refuse(&mut self, key: &Key, is_refused: bool) {
        match is_refused {
            true => drop(self.refused.insert(key.clone())),
            false => drop(self.refused.remove(key)),
        }
        self.dismiss(key, is_refused);
    }

    /// What was asked for is allowed from now on: what it was denied before is no card any more.
    pub fn allowed(&mut self, key: &Key) {
        self.all.retain(|card| card.key != *key || !card.held.is_empty());
    }
}
