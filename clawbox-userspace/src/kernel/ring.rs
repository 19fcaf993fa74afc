//! The reader's side of a ring of the kernel's: records are looked at where they lie, and their room is given
//! back for many of them at once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use aya::maps::MapData;
use nix::libc;

use super::pin::directory_of;

/// In a record's length: its writer is not done.
const BUSY: u32 = 1 << 31;
/// It was given up.
const DISCARDED: u32 = 1 << 30;
/// What stands before a record: its length, and a number of the kernel's own.
const HEAD: u64 = 8;

/// Pages of a ring.
#[derive(Debug)]
struct Pages {
    at: NonNull<u8>,
    length: usize,
}

impl Pages {
    fn map(fd: &OwnedFd, from: usize, length: usize, protection: libc::c_int) -> io::Result<Self> {
        let from = libc::off_t::try_from(from).map_err(io::Error::other)?;
        // SAFETY: the kernel picks a place where nothing is, and checks descriptor, length and offset.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                from,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::Other)?;
        Ok(Self { at, length })
    }

    /// The word that they begin with.
    fn first(&self) -> &AtomicU64 {
        // SAFETY: pages are aligned, mapped until this is dropped, and begin with a word that the kernel and
        // the reader write as a whole.
        unsafe { self.at.cast().as_ref() }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: a mapping of this length that is ours; nobody uses it after this.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.length) };
    }
}

// SAFETY: nothing in it belongs to a thread; what it points at is written by the kernel anyway.
unsafe impl Send for Pages {}

/// A ring with its one reader.
#[derive(Debug)]
pub struct Ring {
    fd: OwnedFd,
    /// How far it is read, which the kernel is told.
    consumer: Pages,
    /// How far it is written, and behind that page the records. Once: pages that are there a second time, so
    /// that no record has a break in it, count as memory of this process too.
    producer: Pages,
    /// The record that has a break in it.
    whole: Vec<u8>,
    page: usize,
    size: u64,
    /// How far this has looked.
    at: u64,
    /// How far it was written when that was asked last.
    written: u64,
}

impl Ring {
    /// Of a ring's map. Nobody else may read it.
    ///
    /// # Errors
    /// It is no ring, or cannot be mapped.
    pub fn of(map: &MapData) -> io::Result<Self> {
        let fd = map.fd().as_fd().try_clone_to_owned()?;
        let size = map.info().map_err(io::Error::other)?.max_entries();
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?;
        let page = usize::try_from(page.unwrap_or(4096)).map_err(io::Error::other)?;
        let length = usize::try_from(size).map_err(io::Error::other)?;
        let (read, write) = (libc::PROT_READ, libc::PROT_WRITE);
        let consumer = Pages::map(&fd, 0, page, read | write)?;
        let producer = Pages::map(&fd, page, page + length, read)?;
        let at = consumer.first().load(Ordering::Acquire);
        let whole = Vec::new();
        Ok(Self { fd, consumer, producer, whole, page, size: size.into(), at, written: at })
    }

    /// Of a ring that a load whose agent does not run has pinned.
    ///
    /// # Errors
    /// It is not there, or cannot be mapped.
    pub fn pinned(run: &str, name: &str) -> io::Result<Self> {
        let map = MapData::from_pin(directory_of(run).join(name)).map_err(io::Error::other)?;
        Self::of(&map)
    }

    /// The next record. What is behind it may be asked for at once; its room is the kernel's again with
    /// [`Ring::release`].
    pub fn read(&mut self) -> Option<&[u8]> {
        loop {
            if self.at >= self.written {
                self.written = self.producer.first().load(Ordering::Acquire);
                if self.at >= self.written {
                    return None;
                }
            }
            // In bounds: an offset below the size, and a head has no break in it.
            let offset = self.page + usize::try_from(self.at % self.size).ok()?;
            // SAFETY: a record's head lies within the mapping, aligned to 8.
            let head = unsafe { self.producer.at.add(offset).cast::<AtomicU32>().as_ref() };
            let head = head.load(Ordering::Acquire);
            if head & BUSY != 0 {
                return None;
            }
            let length = head & !(BUSY | DISCARDED);
            self.at += (u64::from(length) + HEAD).next_multiple_of(HEAD);
            if head & DISCARDED == 0 {
                return self.record(offset + HEAD as usize, usize::try_from(length).ok()?);
            }
        }
    }

    /// A record's bytes. Nobody writes them before they are released, which takes this ring mutably.
    fn record(&mut self, from: usize, length: usize) -> Option<&[u8]> {
        let left = self.producer.length.checked_sub(from)?;
        let (first, rest) = (length.min(left), length.saturating_sub(left));
        if rest > self.producer.length - self.page {
            return None;
        }
        // SAFETY: both are in the mapping, which outlives the borrow.
        let parts = unsafe {
            let part =
                |at, length| std::slice::from_raw_parts(self.producer.at.add(at).as_ptr(), length);
            [part(from, first), part(self.page, rest)]
        };
        if rest == 0 {
            return Some(parts[0]);
        }
        // It goes on where the records begin.
        self.whole.clear();
        parts.iter().for_each(|part| self.whole.extend_from_slice(part));
        Some(&self.whole)
    }

    /// Goes to where an agent that was killed had begun to say that it has read to.
    pub fn seek(&mut self, to: u64) {
        let written = self.producer.first().load(Ordering::Acquire);
        if (self.at..=written).contains(&to) {
            self.at = to;
            self.release(to);
        }
    }

    /// Bytes that were not looked at.
    #[must_use]
    pub fn unread(&self) -> u64 {
        self.producer.first().load(Ordering::Acquire).saturating_sub(self.at)
    }

    /// How far it was looked at.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Gives the room of what was looked at before a place back. Whether more is there by now: the kernel
    /// wakes nobody for what came before it knew of this.
    pub fn release(&mut self, to: u64) -> bool {
        let to = to.min(self.at);
        self.consumer.first().store(to, Ordering::Release);
        // Either the writer sees this, or what it wrote is seen here.
        fence(Ordering::SeqCst);
        self.written = self.producer.first().load(Ordering::Acquire);
        self.written > to
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
