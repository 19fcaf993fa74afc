//! The kernel side as the agent sees it: what the kernel can do, loading, and the maps.

pub mod attached;
mod batch;
pub mod boot;
pub mod btf;
pub mod calls;
pub mod counted;
pub mod deaf;
pub mod enforcer;
pub mod file_id;
pub mod fill;
pub mod flows;
pub mod link;
pub mod load;
pub mod losses;
pub mod lsm;
pub mod memory;
pub mod numbers;
pub mod parts;
mod patch;
pub mod pin;
pub mod pinned;
pub mod probe;
pub mod ring;
pub mod symbols;
pub mod synthetics;
pub mod tallies;
