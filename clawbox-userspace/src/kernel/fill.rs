//! How full the kernel's tables and its ring are. A table is counted in batches, a few with each look, and
//! only where somebody asks: neither a table of half a million entries nor a question stops the agent.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{Map, MapData};
use nix::errno::Errno;
use nix::libc;

use super::batch;
use super::enforcer::Enforcer;
use super::load::LoadError;

/// How old counts may be when somebody asks; then they are counted again, beside everything else.
pub const FRESH: Duration = Duration::from_secs(10);

/// How old counts may be to be told at all.
const STALE: Duration = Duration::from_secs(60);

/// Entries that are looked at with one system call.
const BATCH: u32 = 4096;

/// Tables that can be full, and what that means is in `docs/operations.md`.
const TABLES: &[&str] = &[
    "ADDRESSES",
    "BINARIES",
    "CGROUPS",
    "FILES",
    "LOSSES",
    "NAMES",
    "RULES",
    "SCRIPTS",
    "SUBJECTS",
    "SYNTHETIC",
    "TALLY_PLACES",
];

/// How full a table is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Its name in the kernel.
    pub table: &'static str,
    /// Entries in it.
    pub entries: u64,
    /// Entries that it has room for.
    pub room: u64,
}

/// How full the event ring is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    /// What it holds.
    pub size: u64,
    /// What waits to be read.
    pub pending: u64,
    /// The most that has waited when the agent came to read, since its start.
    pub peak: u64,
}

/// A table.
#[derive(Debug)]
struct Table {
    name: &'static str,
    map: OwnedFd,
    key: usize,
    value: usize,
    room: u32,
}

/// Where a count of all tables stands.
#[derive(Debug)]
struct Walk {
    /// Of the table that is counted.
    table: usize,
    so_far: u64,
    /// The kernel's own mark of where the last batch ended: of a hash a number, of a trie a key.
    mark: Option<Vec<u8>>,
    batch: u32,
    done: Vec<Fill>,
}

/// Counts of the tables of a load.
#[derive(Debug)]
pub struct Fills {
    tables: Vec<Table>,
    counted: Vec<Fill>,
    counted_at: Option<Instant>,
    asked_since: bool,
    walk: Option<Walk>,
}

impl Fills {
    /// How full the tables are, as last counted. Counts them here and now where nobody has for a minute.
    pub fn counted(&mut self) -> Vec<Fill> {
        self.asked_since = true;
        if self.counted_at.is_none_or(|at| at.elapsed() >= STALE) {
            let mut walk = self.walk.take().unwrap_or_else(Walk::new);
            while !walk.step(&self.tables) {}
            self.finish(walk);
        }
        self.counted.clone()
    }

    /// Whether a count is under way.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.walk.is_some()
    }

    /// Goes on with a count that somebody has asked for: one batch.
    pub fn go_on(&mut self) {
        let is_old = self.counted_at.is_some_and(|at| at.elapsed() >= FRESH);
        if self.walk.is_none() && self.asked_since && is_old {
            self.walk = Some(Walk::new());
        }
        if let Some(mut walk) = self.walk.take() {
            if walk.step(&self.tables) {
                self.finish(walk);
            } else {
                self.walk = Some(walk);
            }
        }
    }

    fn finish(&mut self, walk: Walk) {
        self.counted = walk.done;
        self.counted_at = Some(Instant::now());
        self.asked_since = false;
    }
}

impl Walk {
    fn new() -> Self {
        Self { table: 0, so_far: 0, mark: None, batch: BATCH, done: Vec::new() }
    }

    /// Counts a batch. True when all tables are counted.
    fn step(&mut self, tables: &[Table]) -> bool {
        let Some(table) = tables.get(self.table) else { return true };
        match table.look_up(self.mark.as_deref(), self.batch) {
            Ok((count, Some(mark))) => {
                self.so_far += u64::from(count);
                self.mark = Some(mark);
                return false;
            }
            Ok((count, None)) => {
                let entries = self.so_far + u64::from(count);
                self.done.push(Fill { table: table.name, entries, room: table.room.into() });
            }
            // More entries have one hash than fit.
            Err(Errno::ENOSPC) if self.batch < table.room => {
                self.batch = self.batch.saturating_mul(2);
                return false;
            }
            Err(errno) => tracing::debug!("table {} cannot be counted: {errno}", table.name),
        }
        *self = Self { table: self.table + 1, done: std::mem::take(&mut self.done), ..Self::new() };
        self.table >= tables.len()
    }
}

impl Table {
    fn of(enforcer: &Enforcer, name: &'static str) -> Result<Self, LoadError> {
        let failed = |source| LoadError::Map { name, source };
        let map = enforcer.map_data(name)?;
        let info = map.info().map_err(failed)?;
        let fd = map.fd().as_fd().try_clone_to_owned();
        let fd = fd.map_err(|error| failed(error.into()))?;
        let bytes = |count: u32| count as usize;
        let (key, value) = (bytes(info.key_size()), bytes(info.value_size()));
        Ok(Self { name, map: fd, key, value, room: info.max_entries() })
    }

    /// Looks a batch of entries up, from a mark on. Gives how many there were, and the next mark; none at
    /// the table's end.
    fn look_up(&self, mark: Option<&[u8]>, most: u32) -> Result<(u32, Option<Vec<u8>>), Errno> {
        let found = batch::look_up(self.map.as_fd(), (self.key, self.value), mark, most)?;
        Ok((found.count, found.next))
    }
}

/// A page of the ring, that holds how far somebody has come in it.
#[derive(Debug)]
struct Position {
    at: NonNull<AtomicU64>,
    page: usize,
}

impl Position {
    fn map(map: &MapData, page: usize, size: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(page * size).map_err(io::Error::other)?;
        let fd = map.fd().as_fd().as_raw_fd();
        // SAFETY: a mapping of its own, of a page that every ring has, only to be read.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ, libc::MAP_SHARED, fd, offset)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::Other)?;
        Ok(Self { at, page: size })
    }

    fn now(&self) -> u64 {
        // SAFETY: the page is mapped until this is dropped, and begins with a word that the kernel and the
        // ring's reader write as a whole.
        unsafe { self.at.as_ref() }.load(Ordering::Acquire)
    }
}

/// How full the event rings are, both together.
#[derive(Debug)]
pub struct RingFill {
    rings: [OneRing; 2],
    peak: u64,
}

#[derive(Debug)]
struct OneRing {
    consumer: Position,
    producer: Position,
    size: u64,
}

impl OneRing {
    fn of(map: &MapData) -> io::Result<Self> {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?;
        let page = usize::try_from(page.unwrap_or(4096)).map_err(io::Error::other)?;
        let size = map.info().map_err(io::Error::other)?.max_entries().into();
        let (consumer, producer) = (Position::map(map, 0, page)?, Position::map(map, 1, page)?);
        Ok(Self { consumer, producer, size })
    }

    fn pending(&self) -> u64 {
        // In this order: what is read meanwhile makes it less, never more than there was.
        let written = self.producer.now();
        written.saturating_sub(self.consumer.now()).min(self.size)
    }
}

impl RingFill {
    fn pending(&self) -> u64 {
        self.rings.iter().map(OneRing::pending).sum()
    }

    /// To be called before the rings are read.
    pub fn look(&mut self) {
        self.peak = self.peak.max(self.pending());
    }

    /// How full it is.
    pub fn now(&mut self) -> Ring {
        self.look();
        let size = self.rings.iter().map(|ring| ring.size).sum();
        Ring { size, pending: self.pending(), peak: self.peak }
    }
}

impl Drop for Position {
    fn drop(&mut self) {
        // SAFETY: a mapping of this size that is ours; nobody uses it after this.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.page) };
    }
}

impl Enforcer {
    /// What counts the tables. To be had before they are taken.
    ///
    /// # Errors
    /// A table was taken before.
    pub fn fills(&self) -> Result<Fills, LoadError> {
        let tables = TABLES.iter().map(|name| Table::of(self, name)).collect::<Result<_, _>>()?;
        let (counted, counted_at, walk) = Default::default();
        Ok(Fills { tables, counted, counted_at, asked_since: false, walk })
    }

    /// What measures the event rings. To be had before they are taken.
    ///
    /// # Errors
    /// They were taken before, or cannot be mapped.
    pub fn ring_fill(&self) -> Result<RingFill, LoadError> {
        let ring = |name| {
            let fill = OneRing::of(self.map_data(name)?);
            fill.map_err(|error| LoadError::Map { name, source: error.into() })
        };
        Ok(RingFill { rings: [ring("EVENTS")?, ring("ALLOWS")?], peak: 0 })
    }

    pub(super) fn map_data(&self, name: &'static str) -> Result<&MapData, LoadError> {
        match self.map_named(name) {
            Some(Map::HashMap(map) | Map::LpmTrie(map) | Map::RingBuf(map)) => Ok(map),
            _ => Err(LoadError::Absent { kind: "map", name }),
        }
    }
}
