//! Sandboxes: a cgroup, what its processes get before they start, and their end.

pub mod cgroup;
pub mod run_lock;
