//! The rows of the threat model, each tried by a program in a sandbox on the running kernel. What
//! stopped it is told as it was seen (`clawbox_tests::layer`); `cargo xtask attacks` makes a table of
//! that. The number of a row is its place in the list of threats that clawbox was built against.

mod agent;
pub mod attempt;
mod by_the_text;
mod calls;
mod explained;
mod fronting;
mod identity;
pub mod islands;
mod last;
mod network;
mod open_files;
mod processes;
mod programs;
mod sockets;
mod start;
mod unix_sockets;
