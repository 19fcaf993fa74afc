//! The threats as attacks on the running kernel. Each test is a sentence that holds; it looks at
//! the errno that the attacker got, at what arrived on the far side, and at the audit trail.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what is wrong by panicking"
)]

mod agents;
mod ask;
mod attached;
#[path = "../attacks/mod.rs"]
mod attacks;
mod audit;
mod audit_reading;
mod audit_store;
mod backstops;
mod bad_input;
mod clients;
mod coarse;
mod daemon;
mod egress;
mod exec;
mod execution;
mod faults;
mod files;
mod front;
mod full_store;
mod global;
mod launcher;
mod lifecycle;
mod limits;
mod listen;
mod live;
mod logs;
mod metrics;
mod names;
mod namespaces;
mod operator;
mod own_network;
mod ping;
mod processes;
mod real_programs;
mod reliability;
mod reload;
mod remembered;
mod scene;
mod ship;
mod ship_logs;
mod soak;
mod term;
mod tutorial;
mod watchdog;
mod widened;
