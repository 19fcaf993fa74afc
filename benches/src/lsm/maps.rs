//! What the maps of a process take of the kernel's memory, by the kernel's own account. Before 6.4
//! that account is of full maps, whatever is in them.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Result;

/// The maps of one sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maps {
    /// How many.
    pub number: usize,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Bytes of the largest.
    pub largest: u64,
}

/// Of the maps that a process has descriptors of; each once.
pub fn of_process(pid: u32) -> Result<Maps> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be gone by now.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        maps.extend(map(&text));
    }
    Ok(Maps {
        number: maps.len(),
        bytes: maps.values().sum(),
        largest: maps.values().copied().max().unwrap_or_default(),
    })
}

/// A map's number and bytes, where the descriptor is one of a map.
fn map(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().parse().ok()
    };
    Some((field("map_id")?, field("memlock")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_told_from_other_descriptors() {
        let text = "pos:\t0\nmap_type:\t1\nmemlock:\t8192\nmap_id:\t7\n";
        assert_eq!(map(text), Some((7, 8192)));
        assert_eq!(map("pos:\t0\nprog_id:\t7\nmemlock:\t4096\n"), None);
    }
}
