//! The command line: one verb, one file. A verb parses, calls the library and prints; what it
//! prints comes from a value that serialises.

mod answer;
pub mod approvals;
mod ask;
pub mod audit;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod manual;
pub mod policy;
mod remote;
pub mod run;
pub mod sandboxes;
mod style;

use clap::ValueEnum;

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}
