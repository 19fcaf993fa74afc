//! The entries of one policy: written beside those in force, and removed once no sandbox's state points at them.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use aya::maps::lpm_trie::Key;
use clawbox_common::file::{FileKey, FileRule, NameKey};

use super::Enforcer;
use crate::compile::MapImage;
use crate::kernel::batch;
use crate::kernel::load::LoadError;
use crate::kernel::parts::{Late, Part, Parts};

/// The keys of one policy's entries in the maps.
#[derive(Debug, Default)]
pub struct Generation {
    image: Option<MapImage>,
    files: Vec<FileKey>,
    names: Vec<NameKey>,
}

impl Enforcer {
    /// Writes a generation: the compiled rules, and those at objects and names. Nothing points at
    /// it until a sandbox's state does.
    ///
    /// # Errors
    /// A map is full or gone; what was written is taken out again.
    pub fn write_generation(
        &mut self,
        image: &MapImage,
        files: &BTreeMap<FileKey, FileRule>,
        names: &BTreeMap<NameKey, FileRule>,
    ) -> Result<Generation, LoadError> {
        let generation = self.known_generation(image, files, names);
        let written = self.write_policy(image).and_then(|()| {
            self.write("FILES", files)?;
            self.write("NAMES", names)
        });
        match written {
            Ok(()) => Ok(generation),
            Err(error) => {
                self.remove_generation(&generation);
                Err(error)
            }
        }
    }

    /// The keys of a generation that is written already.
    #[must_use]
    pub fn known_generation(
        &self,
        image: &MapImage,
        files: &BTreeMap<FileKey, FileRule>,
        names: &BTreeMap<NameKey, FileRule>,
    ) -> Generation {
        Generation {
            image: Some(image.clone()),
            files: files.keys().copied().collect(),
            names: names.keys().copied().collect(),
        }
    }

    /// Takes out a generation that no sandbox's state points at. What is not there is passed over.
    pub fn remove_generation(&self, generation: &Generation) {
        for part in self.removal(generation) {
            let _ = part();
        }
    }

    /// The same by a second thread, for who has something else to do meanwhile and does then what is left of it.
    #[must_use]
    pub fn begin_to_remove(&self, generation: &Generation) -> Parts {
        Parts::begin(self.removal(generation))
    }

    /// Best effort: an entry that stays is unreachable, and costs its room alone.
    fn removal(&self, generation: &Generation) -> Vec<Part> {
        self.wait_for_late();
        let Generation { image, files, names } = generation;
        let mut parts = Vec::new();
        if let Some(image) = image {
            let rules = image.rules().map(|(key, _)| key);
            parts.extend(self.removal_of("RULES", rules));
            let addresses = image.addresses().map(|((key, bits), _)| Key::new(bits, key));
            parts.extend(self.removal_of("ADDRESSES", addresses));
        }
        parts.extend(self.removal_of("FILES", files.iter().copied()));
        parts.extend(self.removal_of("NAMES", names.iter().copied()));
        parts
    }

    fn removal_of<K: aya::Pod + Send + Sync>(
        &self,
        name: &'static str,
        keys: impl Iterator<Item = K>,
    ) -> Vec<Part> {
        let keys: Vec<K> = keys.collect();
        match self.again(name) {
            Ok(map) => batch::removal(map, keys).collect(),
            // Without a descriptor for a second thread they go all the same, and now.
            Err(_) => {
                self.remove_keys(name, &keys);
                Vec::new()
            }
        }
    }

    /// Entries that nobody changes while they are there: before they are removed it is waited for who is late.
    fn write_once<K: aya::Pod + Send + Sync, V: aya::Pod + Send + Sync>(
        &self,
        name: &'static str,
        entries: impl Iterator<Item = (K, V)>,
    ) -> Result<(), LoadError> {
        let late = self.begin_to_write(name, entries)?;
        self.late.lock().unwrap_or_else(PoisonError::into_inner).extend(late);
        Ok(())
    }

    fn wait_for_late(&self) {
        let late = std::mem::take(&mut *self.late.lock().unwrap_or_else(PoisonError::into_inner));
        late.into_iter().for_each(Late::wait);
    }

    fn write_policy(&mut self, image: &MapImage) -> Result<(), LoadError> {
        self.write_once("RULES", image.rules())?;
        let mut trie = self.trie()?;
        for ((key, bits), hosts) in image.addresses() {
            trie.insert(&Key::new(bits, key), hosts, 0)
                .map_err(|source| LoadError::Map { name: "ADDRESSES", source })?;
        }
        Ok(())
    }
}
