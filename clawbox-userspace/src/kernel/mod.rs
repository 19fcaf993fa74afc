//! The kernel that clawbox runs on: what it can do.
//! A probe tells "no" from "cannot tell": refused is not the same as absent.

pub mod probe;
