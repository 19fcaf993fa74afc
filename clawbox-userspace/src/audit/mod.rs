//! The audit trail: every decision, start, stop and loss, as a numbered line.

pub mod kernel_event;
pub mod programs;
pub mod record;
mod refused_call;
pub mod trail;
