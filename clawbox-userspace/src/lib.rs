//! clawbox's agent: policy in, enforcement by the kernel, audit trail out.
//! Data flows one way: policy → compile → kernel → events → audit; see `docs/architecture.md`.

pub mod cli;
pub mod compile;
pub mod policy;
