//! How the daemon is, for people who ask.

use super::Daemon;
use super::request::seconds;
use super::usage;
use crate::api::proto;

impl Daemon {
    /// The answer to who asks how the host is.
    pub(super) fn status(&mut self) -> proto::StatusReply {
        let figures = self.host.figures();
        let lsm = self.host.lsm();
        let lost: Vec<proto::Count> = figures
            .all
            .lost()
            .map(|(kind, count)| proto::Count { kind: kind.to_owned(), count })
            .collect();
        let fills = figures.fills.into_iter().map(|fill| proto::Fill {
            table: fill.table.to_owned(),
            entries: fill.entries,
            room: fill.room,
        });
        proto::StatusReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: seconds(self.since),
            sandboxes: u32::try_from(self.members.len()).unwrap_or(u32::MAX),
            bpf_lsm: lsm.is_active(),
            without_lsm: if lsm.is_active() { String::new() } else { lsm.why.clone() },
            fills: fills.collect(),
            resident_bytes: usage::resident(),
            events_lost: lost.iter().map(|lost| lost.count).sum(),
            lost,
            ring: Some(proto::Ring {
                size_bytes: figures.ring.size,
                pending_bytes: figures.ring.pending,
                peak_bytes: figures.ring.peak,
            }),
            watchdog: Some(proto::Watchdog {
                rounds: self.watchdog.rounds,
                last: seconds(self.watchdog.last),
                alarms: self.watchdog.alarms.values().sum(),
                failing: self.watchdog.failing.clone(),
            }),
            global_revision: self.global.revision(),
            metrics: self.config.metrics.to_string(),
            audit: Some(self.described_recording()),
        }
    }
}
