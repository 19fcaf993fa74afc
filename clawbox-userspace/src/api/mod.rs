//! The daemon's control socket: gRPC over a Unix socket, and who may ask what.

pub mod client;
pub mod codec;
pub mod convert;
pub mod peer;
pub mod server;

/// The messages and services of `clawbox.proto`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; the description has the documentation"
)]
pub mod proto {
    tonic::include_proto!("clawbox.v1");

    /// The description itself, for reflection.
    pub const DESCRIPTION: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/clawbox.bin"));
}

/// Where the daemon listens if nothing else is said.
pub const SOCKET: &str = "/run/clawbox/clawbox.sock";

/// The group whose members manage every sandbox.
pub const GROUP: &str = "clawbox";

/// Bytes of a message: a policy and presets of 256 KiB each, and a long environment.
pub const LARGEST: usize = 16 << 20;
