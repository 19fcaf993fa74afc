//! What the resolver needs from the rest of the agent, and what it tells it.
//! The policy decides names, a table takes synthetic addresses, an observer hears of questions.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use clawbox_common::rule::{HostIds, SyntheticKey, SyntheticValue};
use clawbox_common::verdict::{Reason, Verdict};
use hickory_proto::rr::RecordType;

/// What a policy says about one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameDecision {
    /// No rule names it.
    Denied(Reason),
    /// No rule names it, and a connection to it waits for an answer: its addresses are asked for only then.
    Asked,
    /// Some rule names it; which binary may connect is decided in the kernel.
    Allowed,
}

/// The names of the policy in force. A call must not block and may change from call to call.
pub trait NamePolicy: Send + Sync {
    /// Judges a name in lower case, without a trailing dot.
    fn name(&self, name: &str) -> NameDecision;

    /// The host patterns under which an allowed name may stand for this address; `None` if under
    /// none. Ranges that are always denied are refused before this is asked.
    fn hosts_for(&self, name: &str, address: IpAddr) -> Option<HostIds>;

    /// How many bytes of an allowed name the policy does not spell out; zero for an exact name.
    fn free_bytes(&self, name: &str) -> usize {
        let _ = name;
        0
    }

    /// The generation that [`NamePolicy::name`] answers from; it changes with every new policy.
    fn generation(&self) -> u32;

    /// Whether names that are not allowed are recorded as denied, but answered all the same.
    fn audit_only(&self) -> bool {
        false
    }
}

/// The kernel's table of synthetic addresses.
pub trait SyntheticTable: Send + Sync {
    /// Writes or replaces an entry. It holds when this returns.
    ///
    /// # Errors
    /// The table is full or gone; the question is then answered with SERVFAIL.
    fn publish(&self, key: &SyntheticKey, value: &SyntheticValue) -> io::Result<()>;

    /// Removes an entry.
    ///
    /// # Errors
    /// The table is gone.
    fn withdraw(&self, key: &SyntheticKey) -> io::Result<()>;

    /// Entries of all sandboxes.
    fn in_use(&self) -> usize;
}

/// Hears of every question exactly once, before its answer is sent. A call must not block.
pub trait Observer: Send + Sync {
    /// A question has been decided.
    fn question(&self, event: QuestionEvent);
}

/// How a question arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// On a connection.
    Tcp,
}

impl Transport {
    /// The name in audit records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

/// One question and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuestionEvent {
    /// The name in lower case without a trailing dot; odd bytes are escaped, the root is `.`.
    pub name: Arc<str>,
    /// The record type asked for.
    pub kind: RecordType,
    /// How it arrived.
    pub transport: Transport,
    /// Who asked, as the agent's socket sees it.
    pub client: SocketAddr,
    /// The policy's verdict. In audit mode a denied question may still have answers.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Synthetic address as handed out, and the real one behind it.
    pub answers: Vec<(IpAddr, IpAddr)>,
    /// Milliseconds the upstream took; none if nothing was asked of it.
    pub upstream_ms: Option<u32>,
}
