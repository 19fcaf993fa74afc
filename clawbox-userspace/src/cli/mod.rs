//! The command line: one verb, one file. A verb parses, calls the library and prints; what it
//! prints comes from a value that serialises.

mod answer;
pub mod approvals;
pub mod audit;
pub mod doctor;
pub mod policy;
pub mod run;
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
