//! Connections that pass through the agent. It reads what is said first on them and lets it on only if it
//! names the host that the connection was made for; nothing is decrypted.

mod first_flight;
mod hidden;
mod network;
mod redirects;
#[cfg(test)]
mod tests;
mod verifier;
mod waiting_room;

pub use first_flight::{FirstFlight, LONGEST, Protocol, Unreadable, read};
pub use hidden::{HiddenConnections, MadeFor};
pub use network::Network;
pub use redirects::{Redirects, Table, number_of};
pub use verifier::{AdmitsHidden, Observer, Outcome, Verifier, bind};
pub use waiting_room::{Meeting, WaitingRoom};
