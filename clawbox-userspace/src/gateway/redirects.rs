//! Connections that the kernel has taken to the agent: which one an accepted connection is, by the source
//! address that the kernel gave it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use aya::maps::{Array, MapData};
use clawbox_common::address::redirect_of;
use clawbox_common::event::NetworkEvent;
use clawbox_common::limits::REDIRECTS;
use clawbox_common::rule::Redirected;

/// Tells what an accepted connection was made for.
pub trait Redirects: Send + Sync {
    /// What the kernel wrote down of the connection with this number, once: nobody else of the host can
    /// come by the same address later and be taken for it. `None` if it has none, or has forgotten it.
    ///
    /// # Errors
    /// The kernel's table cannot be read or written.
    fn take(&self, number: u32) -> io::Result<Option<NetworkEvent>>;
}

/// The kernel's table.
pub struct Table(Mutex<Array<MapData, Redirected>>);

impl Table {
    /// Of a load.
    #[must_use]
    pub fn new(table: Array<MapData, Redirected>) -> Self {
        Self(Mutex::new(table))
    }
}

impl Redirects for Table {
    fn take(&self, number: u32) -> io::Result<Option<NetworkEvent>> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = number % REDIRECTS;
        let look = || table.get(&place, 0).map_err(io::Error::other);
        // The kernel copies a value without a lock: it is whole if nothing was written in between.
        let (one, other) = (look()?, look()?);
        if one != other || one.number != number {
            return Ok(None);
        }
        // Should the kernel write another one there just now, that one is refused.
        table.set(place, Redirected::default(), 0).map_err(io::Error::other)?;
        Ok(Some(one.event))
    }
}

/// The number of a connection, by where it comes from.
#[must_use]
pub fn number_of(source: SocketAddr) -> Option<u32> {
    let IpAddr::V4(source) = source.ip() else { return None };
    redirect_of(source.to_bits()).filter(|number| *number != 0)
}
