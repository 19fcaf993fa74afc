//! NATS JetStream: each event a message, confirmed by the server before it counts as shipped, with an id by
//! which the stream leaves out what it has already.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::IntoFuture;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, Context, stream};
use async_nats::{Client, ConnectOptions, ServerAddr};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::mark::{Mark, Marks};
use super::{Failure, Receiver, host_name, next_batch};
use crate::audit::store::event;
use crate::audit::store::read::{Cursor, Loaded, Reader, Row};

/// Messages that are under way at one time.
const UNDER_WAY: usize = 512;

/// How long a server remembers ids.
const REMEMBERED: Duration = Duration::from_secs(3_600);

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a fleet's stream is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nats {
    /// Servers of one cluster: nats://HOST:PORT, or tls:// for one that must be encrypted.
    pub servers: Vec<String>,
    /// The stream, which is made where there is none.
    #[serde(default = "stream")]
    pub stream: String,
    /// What subjects begin with; the host's name follows.
    #[serde(default = "subject")]
    pub subject: String,
    /// A file with the credentials of a NATS user.
    #[serde(default)]
    pub credentials: Option<PathBuf>,
    /// A file with the certificate authorities of the servers, besides the host's own.
    #[serde(default)]
    pub authorities: Option<PathBuf>,
    /// What this host is called in the stream; its host name if nothing is said.
    #[serde(default)]
    pub host: Option<String>,
}

fn stream() -> String {
    "CLAWBOX".to_owned()
}

fn subject() -> String {
    "clawbox.audit".to_owned()
}

/// A part of a subject: what NATS keeps for itself is another character.
fn token(text: &str) -> String {
    let is_kept = |character: char| {
        character.is_control() || character.is_whitespace() || ".*>".contains(character)
    };
    text.chars().map(|character| if is_kept(character) { '-' } else { character }).collect()
}

impl Nats {
    /// At these servers, and all else as it is by default.
    #[must_use]
    pub fn at(servers: &[String]) -> Self {
        let (stream, subject, servers) = (stream(), subject(), servers.to_vec());
        let (credentials, authorities, host) = Default::default();
        Self { servers, stream, subject, credentials, authorities, host }
    }

    /// Whether it can be used.
    ///
    /// # Errors
    /// What cannot.
    pub fn check(&self) -> Result<(), String> {
        if self.servers.is_empty() {
            return Err("`ship.nats.servers`: name one, as in nats://192.0.2.1:4222".to_owned());
        }
        self.addresses()?;
        if self.stream.is_empty() || token(&self.stream) != self.stream {
            return Err(format!(
                "`ship.nats.stream: {}`: no dots, spaces, `*` or `>`",
                self.stream
            ));
        }
        let has_empty = self.subject.split('.').any(|part| part.is_empty() || token(part) != part);
        if has_empty {
            return Err(format!("`ship.nats.subject: {}`: words with dots between", self.subject));
        }
        Ok(())
    }

    fn addresses(&self) -> Result<Vec<ServerAddr>, String> {
        let parse = |text: &String| {
            // Whoever may read the configuration or a log would have it.
            if text.contains('@') {
                return Err(
                    "`ship.nats.servers`: an address is no place for a user and a password; \
                            name a file of them in `credentials`"
                        .to_owned(),
                );
            }
            text.parse::<ServerAddr>()
                .map_err(|error| format!("`ship.nats.servers: {text}`: {error}"))
        };
        self.servers.iter().map(parse).collect()
    }

    /// Connects.
    ///
    /// # Errors
    /// No server answers, or the credentials are not right.
    pub async fn connect(&self) -> Result<Client, Failure> {
        let mut options = ConnectOptions::new()
            .name("clawbox")
            .connection_timeout(PATIENCE)
            .request_timeout(Some(PATIENCE))
            // A connection that is lost is made anew, from the mark on.
            .max_reconnects(1);
        if let Some(path) = &self.credentials {
            options = options.credentials_file(path).await?;
        }
        if let Some(path) = &self.authorities {
            options = options.add_root_certificates(path.clone());
        }
        Ok(options.connect(self.addresses()?).await?)
    }

    /// The host's subject.
    fn of_host(&self, host: &str) -> String {
        format!("{}.{}", self.subject, token(host))
    }
}

/// One host's events on their way to the stream.
pub(super) struct Sender {
    pub nats: Nats,
    pub store: PathBuf,
    pub marks: Marks,
    pub stored: watch::Receiver<()>,
}

/// A connection, and what waits to be confirmed there.
struct Publishing {
    context: Context,
    subject: String,
    host: String,
    /// The number of each event, with its answer.
    under_way: VecDeque<(u64, PublishAckFuture)>,
}

impl Receiver for Sender {
    fn shipped(&self) -> u64 {
        self.marks.shipped()
    }

    async fn ship(&mut self) -> Result<Infallible, Failure> {
        let context = jetstream::new(self.nats.connect().await?);
        let subjects = vec![format!("{}.>", self.nats.subject)];
        let (name, duplicate_window) = (self.nats.stream.clone(), REMEMBERED);
        let wanted = stream::Config { name, subjects, duplicate_window, ..Default::default() };
        context.get_or_create_stream(wanted).await?;
        let host = self.nats.host.clone().unwrap_or_else(host_name);
        let subject = self.nats.of_host(&host);
        let mut to = Publishing { context, subject, host, under_way: VecDeque::new() };
        let mut reader = Reader::at(&self.store, self.marks.mark().cursor);
        loop {
            let (cursor, batch) = next_batch(&mut reader, &mut self.stored).await?;
            self.batch(&mut to, cursor, &batch).await?;
            let next = batch.label.first + batch.label.events;
            self.marks.set(Mark { cursor: reader.cursor(), next });
        }
    }
}

impl Sender {
    /// Publishes what of a batch is not confirmed yet, and waits until all of it is.
    async fn batch(
        &mut self,
        to: &mut Publishing,
        cursor: Cursor,
        batch: &Loaded,
    ) -> Result<(), Failure> {
        let missing = batch.label.first.saturating_sub(self.marks.shipped());
        if missing > 0 {
            to.gap(self.marks.shipped(), missing, batch.label.from).await?;
        }
        let next = self.marks.shipped();
        for row in batch.rows().filter(|row| row.id() >= next) {
            to.row(row).await?;
            if to.under_way.len() >= UNDER_WAY {
                let confirmed = to.confirmed().await;
                self.reached(cursor, confirmed)?;
            }
        }
        while !to.under_way.is_empty() {
            let confirmed = to.confirmed().await;
            self.reached(cursor, confirmed)?;
        }
        Ok(())
    }

    /// An event is confirmed, and so were all before it. In memory: the file is written with each batch, or
    /// when something fails.
    fn reached(&mut self, cursor: Cursor, confirmed: Result<u64, Failure>) -> Result<(), Failure> {
        match confirmed {
            Ok(id) => {
                self.marks.reached(Mark { cursor, next: id + 1 });
                Ok(())
            }
            Err(failure) => {
                self.marks.keep();
                Err(failure)
            }
        }
    }
}

impl Publishing {
    async fn row(&mut self, row: Row<'_>) -> Result<(), Failure> {
        let mut object = Map::new();
        object.insert("host_name".to_owned(), self.host.clone().into());
        object.extend(event::object(row));
        // The time too: a number may be given again for what the disk has lost with its power.
        let id = format!("{}:{}:{}", self.host, row.id(), row.micros());
        self.publish(row.id(), id, &Value::Object(object)).await
    }

    /// Says that events were removed from the store before they could be shipped.
    async fn gap(&mut self, first: u64, count: u64, before: i64) -> Result<(), Failure> {
        let said = json!({
            "host_name": self.host, "id": first, "time": event::time_text(before), "class": "gap",
            "action": "lost", "verdict": "none", "reason": "unshipped", "count": count,
        });
        let id = format!("{}:{first}:gap:{count}", self.host);
        tracing::warn!(count, "events were removed from the audit store before they were shipped");
        self.publish(first, id, &said).await
    }

    async fn publish(&mut self, number: u64, id: String, said: &Value) -> Result<(), Failure> {
        let message = PublishMessage::build().payload(said.to_string().into()).message_id(id);
        let answer = self.context.send_publish(self.subject.clone(), message).await?;
        self.under_way.push_back((number, answer));
        Ok(())
    }

    /// Waits for the oldest answer.
    async fn confirmed(&mut self) -> Result<u64, Failure> {
        let Some((number, answer)) = self.under_way.pop_front() else {
            return Err("nothing is under way".into());
        };
        answer.into_future().await?;
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stream_cannot_be_called_is_refused_and_hosts_are_one_word() {
        let nats = |server: &str, stream: &str, subject: &str| Nats {
            stream: stream.to_owned(),
            subject: subject.to_owned(),
            ..Nats::at(&[server.to_owned()])
        };
        nats("nats://192.0.2.1:4222", "CLAWBOX", "a.b").check().unwrap();
        for (server, stream, subject) in [
            ("http://[", "A", "a"),
            ("nats://a.test", "A.B", "a"),
            ("nats://a.test", "", "a"),
            ("nats://a.test", "A", "a..b"),
            ("nats://a.test", "A", "a.>"),
        ] {
            assert!(nats(server, stream, subject).check().is_err(), "{server} {stream} {subject}");
        }
        let refused = nats("nats://me:hunter2@a.test:4222", "A", "a").check().unwrap_err();
        assert!(refused.contains("credentials") && !refused.contains("hunter2"), "{refused}");
        assert_eq!(nats("nats://a.test", "A", "x").of_host("web 1.test"), "x.web-1-test");
    }
}
