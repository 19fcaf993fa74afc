//! What of the host's store goes elsewhere, from the store and never from the kernel's rings: who cannot take it
//! holds up nobody but themselves. `mark` is how far each receiver has come, `nats` the receiver that a fleet
//! shares.

mod mark;
pub mod nats;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::audit::store::intake::directory_of;
use mark::Marks;
use nats::Nats;

/// How long after a failure it is tried again, at first and at most.
const AGAIN: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(15)];

/// Where the store's events are shipped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ship {
    /// A stream of NATS JetStream.
    pub nats: Option<Nats>,
}

impl Ship {
    /// Whether it can be used.
    ///
    /// # Errors
    /// What cannot.
    pub fn check(&self) -> Result<(), String> {
        self.nats.as_ref().map_or(Ok(()), Nats::check)
    }
}

/// Ships until it is dropped.
pub struct Shipping {
    stop: watch::Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Shipping {
    /// Begins to ship a daemon's store, if it is to go anywhere. `stored` is told when the store has more.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(ship: &Ship, state: &Path, stored: Arc<Notify>) -> io::Result<Option<Self>> {
        let Some(nats) = ship.nats.clone() else { return Ok(None) };
        let (stop, stopped) = watch::channel(());
        let (marks, store) = (Marks::at(&state.join("ship.nats.json")), directory_of(state));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("ship".to_owned()).spawn(move || {
            let sender = nats::Sender { nats, store, marks, stored };
            runtime.block_on(until(stopped, sender));
        })?;
        Ok(Some(Self { stop, thread: Some(thread) }))
    }
}

impl Drop for Shipping {
    /// What has not been taken by then is shipped by the next daemon.
    fn drop(&mut self) {
        self.stop.send_replace(());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("shipping has ended before its time");
        }
    }
}

/// Ships until it is told to stop, again after each failure.
async fn until(mut stopped: watch::Receiver<()>, mut sender: nats::Sender) {
    let mut pause = AGAIN[0];
    loop {
        let before = sender.marks.shipped();
        let failed = tokio::select! {
            failed = sender.ship() => failed,
            _ = stopped.changed() => return,
        };
        if sender.marks.shipped() != before {
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
