//! Sandboxes: a cgroup, what its processes get before they start, and their end.

pub mod birth;
pub mod ceiling;
pub mod cgroup;
pub mod change;
pub mod child;
mod connections;
pub mod control;
pub mod feed;
pub mod held;
pub mod host;
pub mod host_facts;
pub mod identities;
pub mod in_force;
pub mod inherit;
pub mod init;
pub mod launch;
pub mod life;
pub mod objects;
pub mod oom;
pub mod order;
pub mod ready;
pub mod recorder;
pub mod run;
pub mod run_lock;
pub mod self_test;
mod strays;
mod watch;
