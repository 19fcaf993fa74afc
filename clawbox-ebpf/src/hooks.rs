//! The hooks, one file a family.

mod address;
mod call;
mod ceiling;
mod cgroup;
mod connected;
mod exec;
mod file;
mod listen;
mod open_file;
mod peer;
mod privilege;
mod receiver;
mod redirect;
mod route;
mod socket;
mod task;
mod unix;
mod verdict;
