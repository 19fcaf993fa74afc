//! Connections that the kernel has taken to the agent: which one an accepted connection is, by the source
//! address that the kernel gave it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use aya::maps::{Array, MapData};
use clawbox_common::address::redirect_of;
use clawbox_common::event::NetworkEvent;
use clawbox_common::limits::REDIRECTS;
use clawbox_common::rule::Redirected;

/// Tells what an accepted connection was made for.
pub trait Redirects: Send + Sync {
    /// What the kernel wrote down of the connection with this number; `None` if it has none, or has
    /// forgotten it.
    ///
    /// # Errors
    /// The kernel's table cannot be read.
    fn find(&self, number: u32) -> io::Result<Option<NetworkEvent>>;
}

/// The kernel's table.
pub struct Table(pub Array<MapData, Redirected>);

impl Redirects for Table {
    fn find(&self, number: u32) -> io::Result<Option<NetworkEvent>> {
        let look = || self.0.get(&(number % REDIRECTS), 0).map_err(io::Error::other);
        // The kernel copies a value without a lock: it is whole if nothing was written in between.
        let (one, other) = (look()?, look()?);
        Ok((one == other && one.number == number).then_some(one.event))
    }
}

/// The number of a connection, by where it comes from.
#[must_use]
pub fn number_of(source: SocketAddr) -> Option<u32> {
    let IpAddr::V4(source) = source.ip() else { return None };
    redirect_of(source.to_bits()).filter(|number| *number != 0)
}
