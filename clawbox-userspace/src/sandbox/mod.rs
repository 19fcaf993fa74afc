//! Sandboxes: a cgroup, what its processes get before they start, and their end.

pub mod birth;
pub mod ceiling;
pub mod cgroup;
pub mod change;
pub mod child;
mod connections;
pub mod control;
pub mod held;
pub mod identities;
pub mod in_force;
pub mod init;
mod install;
pub mod launch;
pub mod monitor;
pub mod objects;
pub mod oom;
pub mod run;
pub mod run_lock;
pub mod self_test;
mod strays;
mod watch;
