//! What of the host's store goes elsewhere, from the store and never from the kernel's rings: who cannot take it
//! holds up nobody but themselves. `mark` is how far each receiver has come, `nats` the stream that a fleet shares,
//! `otlp` a collector of this host, `syslog` and `journald` its logs (`local`).

pub mod journald;
mod local;
mod mark;
pub mod nats;
pub mod otlp;
pub mod syslog;

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::audit::store::intake::directory_of;
use crate::audit::store::read::{Cursor, Everything, Loaded, Reader, Row};
use journald::{Entries, Journald};
use mark::{Mark, Marks};
use nats::Nats;
use otlp::Otlp;
use syslog::{Messages, Syslog};

/// How long after a failure it is tried again, at first and at most.
const AGAIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(15)];

/// Where the store's events are shipped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ship {
    /// A stream of NATS JetStream.
    pub nats: Option<Nats>,
    /// A collector of OpenTelemetry's on this host.
    pub otlp: Option<Otlp>,
    /// A syslog of this host.
    pub syslog: Option<Syslog>,
    /// systemd's journal.
    pub journald: Option<Journald>,
}

impl Ship {
    /// Whether it can be used.
    ///
    /// # Errors
    /// What cannot.
    pub fn check(&self) -> Result<(), String> {
        self.nats.as_ref().map_or(Ok(()), Nats::check)?;
        self.otlp.as_ref().map_or(Ok(()), Otlp::check)?;
        self.syslog.as_ref().map_or(Ok(()), Syslog::check)?;
        self.journald.as_ref().map_or(Ok(()), Journald::check)
    }
}

/// Why a receiver cannot be used.
pub type Failure = Box<dyn Error + Send + Sync>;

/// Whom the store's events are shipped to.
trait Receiver {
    /// Events that it has confirmed.
    fn shipped(&self) -> u64;
    /// Ships until something fails.
    async fn ship(&mut self) -> Result<Infallible, Failure>;
}

/// The next batch of a store, when there is one, and where it begins.
async fn next_batch(
    reader: &mut Reader,
    stored: &mut watch::Receiver<()>,
) -> Result<(Cursor, Loaded), Failure> {
    loop {
        // Before the look: what is stored after it wakes the next one.
        stored.mark_unchanged();
        let cursor = reader.cursor();
        match reader.next(&mut Everything) {
            Ok(Some(batch)) => return Ok((cursor, batch)),
            Ok(None) => {}
            // Nothing has been stored yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        stored.changed().await?;
    }
}

/// Who takes several events at one time and says then whether all of them are taken.
trait Taker {
    async fn take(&mut self, rows: &[Row<'_>]) -> Result<(), Failure>;
}

/// The way to a [`Taker`], from where it has come before.
struct Way {
    store: PathBuf,
    marks: Marks,
    stored: watch::Receiver<()>,
}

/// Events that a [`Taker`] is given at one time.
const TOGETHER: usize = 512;

impl Way {
    /// Ships until something fails.
    async fn ship(&mut self, to: &mut impl Taker) -> Result<Infallible, Failure> {
        let mut reader = Reader::at(&self.store, self.marks.mark().cursor);
        loop {
            let (cursor, batch) = next_batch(&mut reader, &mut self.stored).await?;
            let next = self.marks.shipped();
            let rows: Vec<Row<'_>> = batch.rows().filter(|row| row.id() >= next).collect();
            for some in rows.chunks(TOGETHER) {
                if let Err(failure) = to.take(some).await {
                    self.marks.keep();
                    return Err(failure);
                }
                if let Some(last) = some.last() {
                    self.marks.reached(Mark { cursor, next: last.id() + 1 });
                }
            }
            let next = batch.label.first + batch.label.events;
            self.marks.set(Mark { cursor: reader.cursor(), next });
        }
    }
}

/// What this host is called where nothing else is said.
fn host_name() -> String {
    let name = nix::unistd::gethostname();
    name.map_or_else(|_| "unknown".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Ships until it is dropped.
pub struct Shipping {
    stop: watch::Sender<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Shipping {
    /// Begins to ship a daemon's store to whom it is to go. `stored` is told when the store has more.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(ship: &Ship, state: &Path, stored: &watch::Receiver<()>) -> io::Result<Self> {
        let mut shipping = Self { stop: watch::Sender::new(()), threads: Vec::new() };
        let marks = |name: &str| Marks::at(&state.join(name));
        let (stored, store) = (|| stored.clone(), || directory_of(state));
        if let Some(nats) = ship.nats.clone() {
            let marks = marks("ship.nats.json");
            shipping.to(nats::Sender { nats, store: store(), marks, stored: stored() })?;
        }
        if let Some(otlp) = ship.otlp.clone() {
            let marks = marks("ship.otlp.json");
            let way = Way { store: store(), marks, stored: stored() };
            shipping.to(otlp::Sender { otlp, way })?;
        }
        if let Some(syslog) = &ship.syslog {
            let place = syslog.place().map_err(io::Error::other)?;
            let (form, marks) = (Messages::of(syslog, &place), marks("ship.syslog.json"));
            let way = Way { store: store(), marks, stored: stored() };
            shipping.to(local::Sender { place, form, way })?;
        }
        if let Some(journald) = &ship.journald {
            let (place, marks) = (journald.place(), marks("ship.journald.json"));
            let way = Way { store: store(), marks, stored: stored() };
            shipping.to(local::Sender { place, form: Entries, way })?;
        }
        Ok(shipping)
    }

    fn to(&mut self, receiver: impl Receiver + Send + 'static) -> io::Result<()> {
        let stopped = self.stop.subscribe();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("ship".to_owned());
        self.threads.push(thread.spawn(move || runtime.block_on(until(stopped, receiver)))?);
        Ok(())
    }
}

impl Drop for Shipping {
    /// What has not been taken by then is shipped by the next daemon.
    fn drop(&mut self) {
        self.stop.send_replace(());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("shipping has ended before its time");
            }
        }
    }
}

/// Ships until it is told to stop, again after each failure.
async fn until(mut stopped: watch::Receiver<()>, mut receiver: impl Receiver) {
    let mut pause = AGAIN[0];
    loop {
        let before = receiver.shipped();
        let failed = tokio::select! {
            shipped = receiver.ship() => match shipped {
                Ok(never) => match never {},
                Err(failed) => failed,
            },
            _ = stopped.changed() => return,
        };
        if receiver.shipped() != before {
            pause = AGAIN[0];
        }
        // Told as often as it is tried, and that ever more seldom.
        tracing::warn!("the audit store is not shipped: {failed}; again in {pause:?}");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stopped.changed() => return,
        }
        pause = (pause * 2).min(AGAIN[1]);
    }
}
