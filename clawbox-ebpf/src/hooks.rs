//! The hooks, one file a family.

mod address;
mod exec;
mod file;
mod listen;
mod peer;
mod privilege;
mod socket;
mod task;
mod unix;
mod verdict;
