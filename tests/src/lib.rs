//! What the attacks and the demonstration share: hosts in network namespaces, and runs of clawbox.
//! Everything here panics when the machine does not give what a test needs, and says what.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot be set up has failed"
)]

pub mod capture;
pub mod clawbox;
pub mod daemon;
pub mod demo;
pub mod disk;
pub mod layer;
pub mod names;
pub mod network;
pub mod refusal;
pub mod services;
