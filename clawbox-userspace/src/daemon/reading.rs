//! The host's audit store for who may not read its files. The loop only says what of it they may have; it is
//! read on a thread of its own.

use std::io::{self, Write};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::Status;

use super::Daemon;
use super::request::{Refusal, refuse};
use crate::api::peer::Peer;
use crate::api::proto;
use crate::audit::ask::{self, Out, Permit};
use crate::audit::store::intake::directory_of;

/// Who reads at one time: of those who manage, and of all others.
const READERS: usize = 8;

/// Sent at one time.
const PIECE: usize = 64 << 10;

/// Events that are kept in memory for one who reads.
const MOST: usize = 100_000;

type Told = mpsc::Sender<Result<proto::AuditText, Status>>;

/// Room for those who read.
pub struct Readers {
    managing: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl Default for Readers {
    fn default() -> Self {
        let room = || Arc::new(Semaphore::new(READERS));
        Self { managing: room(), others: room() }
    }
}

/// Somebody who reads.
pub struct Reading {
    permit: Permit,
    _room: OwnedSemaphorePermit,
}

impl Daemon {
    /// What somebody may read of the store.
    ///
    /// # Errors
    /// Too many read at this moment, or it cannot be told what is theirs.
    pub(super) fn read_audit(&mut self, peer: &Peer) -> Result<Reading, Refusal> {
        let room = if peer.manages() { &self.readers.managing } else { &self.readers.others };
        let room = Arc::clone(room).try_acquire_owned().map_err(|_| {
            let why = format!("{READERS} others read the audit store at this moment; try it again");
            refuse(Status::resource_exhausted(why))
        })?;
        let directory = directory_of(&self.config.state);
        let mut permit = Permit { most: MOST, ..Permit::all(directory) };
        if !peer.manages() {
            let own = self.store.started_by(peer.uid);
            let own = own.map_err(|error| refuse(Status::internal(error.to_string())))?;
            let micros = |seconds: i64| seconds.saturating_mul(1_000_000);
            permit.only = Some(own.into_iter().map(|(id, since)| (id, micros(since))).collect());
        }
        Ok(Reading { permit, _room: room })
    }
}

/// Text on its way to who has asked.
struct Sent {
    told: Told,
    piece: Vec<u8>,
}

impl Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let text = std::mem::take(&mut self.piece);
        let sent = self.told.blocking_send(Ok(proto::AuditText { text }));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Out for Sent {
    fn is_open(&self) -> bool {
        !self.told.is_closed()
    }
}

impl Reading {
    /// Answers, on the thread that calls it.
    pub fn tell(self, request: proto::ReadAuditRequest, told: Told) {
        let mut out = Sent { told, piece: Vec::new() };
        if let Err(error) = ask::answer(request, &self.permit, &mut out) {
            // Who has gone is told nothing.
            drop(out.told.blocking_send(Err(Status::failed_precondition(format!("{error:#}")))));
        }
    }
}
