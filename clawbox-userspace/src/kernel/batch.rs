//! Many entries of a kernel's table with one system call: what aya reads one by one, with two calls each.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use aya::Pod;
use aya::maps::MapError;
use aya::sys::SyscallError;
use nix::errno::Errno;
use nix::libc;

use super::parts::{Late, Part, Parts};

/// `BPF_MAP_LOOKUP_ELEM`, `BPF_MAP_LOOKUP_BATCH`, `BPF_MAP_UPDATE_BATCH` and `BPF_MAP_DELETE_BATCH` of bpf(2), linux/bpf.h.
const LOOKUP_ELEMENT: libc::c_int = 1;
const LOOKUP_BATCH: libc::c_int = 24;
const UPDATE_BATCH: libc::c_int = 26;
const DELETE_BATCH: libc::c_int = 27;

/// Entries that are read at first, and at most, with one call.
const FIRST: u32 = 64;
const MOST: u32 = 4096;

/// So many that are written pay for a thread, and so many it takes at a time.
const SHARED: usize = 512;
const PART: usize = 64;

/// `struct { } batch` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Batched {
    begin: u64,
    end: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// The part of `union bpf_attr` for one element.
#[repr(C)]
struct Element {
    map: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// What came of one call.
pub(super) struct Batch {
    /// How many entries there were.
    pub count: u32,
    /// Where the next one begins; none at the table's end.
    pub next: Option<Vec<u8>>,
    keys: Vec<u8>,
    values: Vec<u8>,
}

/// Looks entries up, from a mark on. `key` and `value` are the table's own sizes, in bytes.
///
/// # Errors
/// `ENOSPC`: more entries have one hash than were asked for. Otherwise the kernel does not do this.
pub(super) fn look_up(
    map: BorrowedFd<'_>,
    (key, value): (usize, usize),
    mark: Option<&[u8]>,
    most: u32,
) -> Result<Batch, Errno> {
    let mut keys = vec![0_u8; key * most as usize];
    let mut values = vec![0_u8; value * most as usize];
    let mut end = vec![0_u8; key.max(size_of::<u64>())];
    let mut lookup = Batched {
        begin: mark.map_or(0, |mark| mark.as_ptr() as u64),
        end: end.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: most,
        map: map.as_raw_fd().cast_unsigned(),
        ..Batched::default()
    };
    // SAFETY: the structure is initialised; what it points at is ours, outlives the call, and has room for
    // as many keys and values as it says, and for either kind of mark.
    let outcome = unsafe {
        libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, &raw mut lookup, size_of::<Batched>())
    };
    let next = match Errno::result(outcome) {
        Ok(_) => Some(end),
        Err(Errno::ENOENT) => None,
        Err(errno) => return Err(errno),
    };
    Ok(Batch { count: lookup.count.min(most), next, keys, values })
}

/// All entries of a hash table. One that is made or removed meanwhile may be among them or not; no other
/// is left out.
///
/// # Errors
/// The kernel does not look up in batches.
pub(super) fn all<K: Pod, V: Pod>(map: impl AsFd) -> Result<Vec<(K, V)>, Errno> {
    let mut found = Vec::new();
    let (mut mark, mut most) = (None::<Vec<u8>>, FIRST);
    loop {
        let sizes = (size_of::<K>(), size_of::<V>());
        let batch = match look_up(map.as_fd(), sizes, mark.as_deref(), most) {
            Err(Errno::ENOSPC) if most < MOST * 16 => {
                most *= 2;
                continue;
            }
            other => other?,
        };
        let values = batch.values.chunks_exact(size_of::<V>());
        let entries = batch.keys.chunks_exact(size_of::<K>()).zip(values);
        found.extend(entries.take(batch.count as usize).map(|(key, value)| {
            // SAFETY: as many bytes as the types have, of which every pattern is a value.
            unsafe {
                (
                    ptr::read_unaligned(key.as_ptr().cast()),
                    ptr::read_unaligned(value.as_ptr().cast()),
                )
            }
        }));
        let Some(next) = batch.next else { return Ok(found) };
        mark = Some(next);
        most = most.max((most * 2).min(MOST));
    }
}

/// The same error as aya has it.
pub(super) fn failed(errno: Errno) -> MapError {
    MapError::SyscallError(SyscallError { call: "bpf_map_batch", io_error: errno.into() })
}

/// Whether a table has an entry.
pub(super) fn has<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> bool {
    let mut value = vec![0_u8; size_of::<V>()];
    let mut element = Element {
        map: map.as_raw_fd().cast_unsigned(),
        zero: 0,
        key: ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the structure is initialised; what it points at is ours, outlives the call, and is as long as
    // the table's keys and values.
    let outcome = unsafe {
        libc::syscall(libc::SYS_bpf, LOOKUP_ELEMENT, &raw mut element, size_of::<Element>())
    };
    outcome == 0
}

/// Writes entries, in the place of those that have their keys. Many are written by two threads: an entry takes
/// most of a microsecond, as no place of a large table is in a processor's cache. All are there then; the second
/// thread may write some of them once more, and is to be waited for before they are removed.
///
/// # Errors
/// The table is full: others than those that did not fit are there.
pub(super) fn write<K: Pod + Send + Sync, V: Pod + Send + Sync>(
    map: impl AsFd,
    keys: Vec<K>,
    values: Vec<V>,
) -> Result<Option<Late>, Errno> {
    let map = map.as_fd();
    let second = (keys.len() >= SHARED).then(|| map.try_clone_to_owned().ok()).flatten();
    let Some(second) = second else {
        return write_in_order(map, &keys, &values).map(|()| None);
    };
    let begins = (0..keys.len()).step_by(PART);
    let all = Arc::new((second, keys, values));
    let parts = begins.map(|begin| {
        let all = Arc::clone(&all);
        Arc::new(move || {
            let (map, keys, values) = &*all;
            write_in_order(map.as_fd(), part(keys, begin), part(values, begin))
        }) as Part
    });
    let late = Parts::begin(parts).end()?;
    Ok(Some(late).filter(|late| !late.is_over()))
}

fn part<T>(all: &[T], begin: usize) -> &[T] {
    all.get(begin..begin.saturating_add(PART).min(all.len())).unwrap_or_default()
}

/// [`remove`] in parts.
pub(super) fn removal<K: Pod + Send + Sync>(
    map: OwnedFd,
    keys: Vec<K>,
) -> impl Iterator<Item = Part> {
    let begins = (0..keys.len()).step_by(PART);
    let all = Arc::new((map, keys));
    begins.map(move |begin| {
        let all = Arc::clone(&all);
        Arc::new(move || {
            remove(&all.0, part(&all.1, begin));
            Ok(())
        }) as Part
    })
}

/// Writes entries by one thread, each after those before it.
///
/// # Errors
/// The table is full: those before it are there.
pub(super) fn write_in_order<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> Result<(), Errno> {
    for (keys, values) in keys.chunks(MOST as usize).zip(values.chunks(MOST as usize)) {
        let count = u32::try_from(keys.len().min(values.len())).unwrap_or(0);
        let mut update = Batched {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count,
            map: map.as_raw_fd().cast_unsigned(),
            ..Batched::default()
        };
        call(UPDATE_BATCH, &mut update)?;
    }
    Ok(())
}

/// Removes entries; keys that have none are passed over.
pub(super) fn remove<K: Pod>(map: impl AsFd, keys: &[K]) {
    let mut left = keys;
    while !left.is_empty() {
        let count = left.len().min(MOST as usize);
        let mut delete = Batched {
            keys: left.as_ptr() as u64,
            count: u32::try_from(count).unwrap_or(0),
            map: map.as_fd().as_raw_fd().cast_unsigned(),
            ..Batched::default()
        };
        // It ends at the first that has none, and says how many came before.
        let removed = match call(DELETE_BATCH, &mut delete) {
            Ok(()) => count,
            Err(_) => (delete.count as usize).min(count - 1) + 1,
        };
        left = left.get(removed..).unwrap_or_default();
    }
}

fn call(command: libc::c_int, batched: &mut Batched) -> Result<(), Errno> {
    let batched = ptr::from_mut(batched);
    // SAFETY: the structure is initialised, and its callers' keys and values are as many as it says, of the
    // table's own sizes, and outlive the call, which only reads them.
    let outcome = unsafe { libc::syscall(libc::SYS_bpf, command, batched, size_of::<Batched>()) };
    Errno::result(outcome).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_all_entries_once_each_in_order() {
        for count in [0, 1, PART, PART + 1, 1_000] {
            let all: Vec<usize> = (0..count).collect();
            let parts = (0..count).step_by(PART).flat_map(|begin| part(&all, begin));
            assert_eq!(parts.copied().collect::<Vec<_>>(), all);
        }
    }

    #[test]
    fn what_the_kernel_does_not_take_is_said() {
        let no_table = std::fs::File::open("/dev/null").unwrap();
        for count in [1, SHARED] {
            let keys: Vec<u32> = (0..count as u32).collect();
            assert!(write(&no_table, keys.clone(), keys).is_err());
        }
    }
}
