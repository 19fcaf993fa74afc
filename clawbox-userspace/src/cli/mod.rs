//! The command line: one verb, one file. Verbs print; everything below them returns values.

pub mod policy;
mod style;
