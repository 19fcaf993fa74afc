//! The hooks, one file a family.

mod address;
mod peer;
mod socket;
mod task;
