//! The policy resolver: answers a sandbox's DNS questions with addresses that belong to a name.
//! A name the policy does not allow never leaves the machine; see `docs/architecture.md`.

mod admission;
mod budget;
mod contract;
mod hosts;
mod listener;
mod memory;
mod names;
mod pace;
mod resolver;
mod serve;
mod synthetic;
mod upstream;
mod wire;

#[cfg(test)]
mod tests;

pub use contract::{NameDecision, NamePolicy, Observer, QuestionEvent, SyntheticTable, Transport};
pub use hickory_proto::rr::RecordType;
pub use hosts::{hosts_file, lines_of};
pub use listener::ResolverSockets;
pub use names::NameTable;
pub use pace::Traffic;
pub use resolver::Resolver;
pub use upstream::{Upstream, UpstreamError};
pub use wire::refusal_of;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Addresses of one answer that are handed out; the rest is left out.
pub const ADDRESSES_PER_ANSWER: usize = 64;

/// A lock whose holder panicked protects data that every method here leaves consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
