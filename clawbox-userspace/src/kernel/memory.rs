//! Words that outlive the agent: a table of the kernel's, pinned beside the rings and mapped. Whoever is killed
//! leaves them as they were at that moment.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::libc;

use super::link;

/// Words in shared memory, each read and written as a whole.
pub trait Words: Send {
    /// One of them; zero behind the last.
    fn get(&self, at: usize) -> u64;
    /// Writes one, after all that were written before.
    fn set(&mut self, at: usize, value: u64);
}

/// See the module.
#[derive(Debug)]
pub struct Memory {
    at: NonNull<AtomicU64>,
    words: usize,
    _table: OwnedFd,
}

// SAFETY: the mapping belongs to no thread, and its words are written through `&mut self` alone.
unsafe impl Send for Memory {}

impl Memory {
    /// The memory that is pinned there, or that from now on is, all zero.
    ///
    /// # Errors
    /// What is pinned is something else, or the kernel refuses.
    pub fn open(pin: &Path, words: usize) -> io::Result<Self> {
        let bytes = words * size_of::<u64>();
        let table = match link::get(pin) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let table = link::mapped_table(u32::try_from(bytes).map_err(io::Error::other)?)?;
                link::pin(table.as_fd(), pin)?;
                table
            }
            other => other?,
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel picks a place where nothing is, and checks the descriptor and the length, which
        // may not be larger than the table.
        let at = unsafe {
            let (nowhere, shared) = (std::ptr::null_mut(), libc::MAP_SHARED);
            libc::mmap(nowhere, bytes, protection, shared, table.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::Other)?;
        Ok(Self { at, words, _table: table })
    }

    fn word(&self, at: usize) -> Option<&AtomicU64> {
        // SAFETY: within the mapping, which is aligned and lives as long as this.
        (at < self.words).then(|| unsafe { self.at.add(at).as_ref() })
    }
}

impl Words for Memory {
    fn get(&self, at: usize) -> u64 {
        self.word(at).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn set(&mut self, at: usize, value: u64) {
        if let Some(word) = self.word(at) {
            word.store(value, Ordering::Release);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: a mapping of this length that is ours; nobody uses it after this.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.words * size_of::<u64>()) };
    }
}
