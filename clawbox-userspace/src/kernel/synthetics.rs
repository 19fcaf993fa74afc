//! The kernel's table of synthetic addresses, which the resolvers of all sandboxes write: and how many are
//! in it, so that none takes the room of the others.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use aya::maps::{HashMap, MapData};
use clawbox_common::rule::{SyntheticKey, SyntheticValue};

use super::load::LoadError;

/// Synthetic addresses in the kernel.
#[derive(Debug)]
pub struct Synthetics {
    map: Mutex<HashMap<MapData, SyntheticKey, SyntheticValue>>,
    in_use: AtomicUsize,
}

impl Synthetics {
    /// Those of a table, in which an earlier load may have left some.
    #[must_use]
    pub fn in_table(map: HashMap<MapData, SyntheticKey, SyntheticValue>) -> Self {
        let synthetics = Self { map: Mutex::new(map), in_use: AtomicUsize::new(0) };
        synthetics.count();
        synthetics
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, HashMap<MapData, SyntheticKey, SyntheticValue>> {
        // A panic while holding it leaves the kernel's map as whole as before.
        self.map.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Counts anew, after somebody else has changed the table.
    pub fn count(&self) {
        let count = self.locked().keys().filter(Result::is_ok).count();
        self.in_use.store(count, Ordering::Relaxed);
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
        let mut map = self.locked();
        let is_new = map.get(key, 0).is_err();
        map.insert(key, value, 0).map_err(std::io::Error::other)?;
        self.in_use.fetch_add(usize::from(is_new), Ordering::Relaxed);
        Ok(())
    }

    fn withdraw(&self, key: &SyntheticKey) -> std::io::Result<()> {
        let mut map = self.locked();
        map.remove(key).map_err(std::io::Error::other)?;
        self.in_use.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }
}
