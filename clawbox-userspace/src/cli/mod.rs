//! The verbs of the `clawbox` command, one file each.
//! A verb parses, calls the library and prints; what it prints comes from a value that serialises.

pub mod doctor;
