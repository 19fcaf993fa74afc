//! Sandboxes: a cgroup, what its processes get before they start, and their end.

pub mod cgroup;
