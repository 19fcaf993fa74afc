//! The kernel's table of synthetic addresses, which the resolvers write.

use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{HashMap, MapData};
use clawbox_common::rule::{SyntheticKey, SyntheticValue};

use super::load::LoadError;

/// Synthetic addresses in the kernel.
#[derive(Debug)]
pub struct Synthetics {
    map: Mutex<HashMap<MapData, SyntheticKey, SyntheticValue>>,
}

impl Synthetics {
    pub(super) fn new(map: HashMap<MapData, SyntheticKey, SyntheticValue>) -> Self {
        Self { map: Mutex::new(map) }
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<MapData, SyntheticKey, SyntheticValue>> {
        // A panic while holding it leaves the kernel's map as whole as before.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a sandbox was handed out.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn of(&self, sandbox: u32) -> Result<Vec<(SyntheticKey, SyntheticValue)>, LoadError> {
        let failed = |source| LoadError::Map { name: "SYNTHETIC", source };
        let map = self.locked();
        let all = map.iter().map(|entry| entry.map_err(failed));
        all.filter(|entry| entry.as_ref().map_or(true, |(key, _)| key.sandbox == sandbox)).collect()
    }
}

impl crate::dns::SyntheticTable for Synthetics {
    fn publish(&self, key: &SyntheticKey, value: &SyntheticValue) -> std::io::Result<()> {
        self.locked().insert(key, value, 0).map_err(std::io::Error::other)
    }

    fn withdraw(&self, key: &SyntheticKey) -> std::io::Result<()> {
        self.locked().remove(key).map_err(std::io::Error::other)
    }
}
