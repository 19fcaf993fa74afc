//! clawbox's agent: policy in, enforcement by the kernel, audit trail out.
//! Data flows one way: policy → compile → kernel → events → audit; see `docs/architecture.md`.

pub mod api;
pub mod audit;
pub mod cli;
pub mod compile;
pub mod daemon;
pub mod dns;
pub mod events;
pub mod gateway;
pub mod judge;
pub mod kernel;
pub mod learn;
pub mod lint;
pub mod policy;
pub mod presets;
pub mod sandbox;
pub mod ship;
pub mod term;
pub mod why;
