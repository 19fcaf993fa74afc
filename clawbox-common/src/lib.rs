//! The contract between the kernel programs and the agent: records, bounds and `decide`.
//! `no_std`, no I/O, no allocation; everything here runs unchanged under the BPF verifier.
#![cfg_attr(not(test), no_std)]

pub mod address;
pub mod attach;
pub mod decide;
pub mod event;
pub mod field;
pub mod file;
pub mod flow;
pub mod layout;
pub mod limits;
pub mod number;
pub mod patch;
pub mod rule;
pub mod subject;
pub mod verdict;
