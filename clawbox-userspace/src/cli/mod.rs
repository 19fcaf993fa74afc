//! The command line: one verb, one file. A verb parses, calls the library and prints; what it
//! prints comes from a value that serialises.

mod answer;
pub mod approvals;
mod ask;
pub mod attach;
pub mod audit;
mod complete;
pub mod config;
pub mod daemon;
mod denials;
pub mod doctor;
mod edited;
pub mod exec;
pub mod failure;
pub mod fleet;
pub mod frequent;
pub mod learn;
mod listing;
pub mod logs;
pub mod manual;
pub mod policy;
pub mod preset;
pub mod profile;
mod remote;
pub mod run;
pub mod sandboxes;
pub mod status;
mod style;
pub mod term;
pub mod why;

use std::fmt::Display;

use clap::ValueEnum;

/// An error whose message has its cause already: the whole chain would tell that twice.
fn told(error: impl Display) -> anyhow::Error {
    anyhow::Error::msg(error.to_string())
}

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}
