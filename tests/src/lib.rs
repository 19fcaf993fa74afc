//! What the attacks and the demonstration share: hosts in network namespaces, and runs of clawbox.

pub mod demo;
