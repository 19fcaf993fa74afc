//! The demonstration: a real agent's attempts in a network of its own, with and without clawbox,
//! held against what the far side saw and what the audit trail says.

pub mod attempt;
pub mod attempts;
pub mod inside;
pub mod interrupt;
pub mod matrix;
pub mod outside;
pub mod place;
pub mod policy_file;
pub mod print;
pub mod programs;
pub mod showing;
pub mod stage;
pub mod stand_ins;
pub mod trail;
