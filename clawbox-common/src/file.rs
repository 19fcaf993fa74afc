//! What a policy says of files: keys and values of the maps, and the kinds of access.
//! A rule stands at an object (device and inode) or at a name in a directory.

use crate::limits::FILE_NAME;
use crate::subject::{FileId, Mask};

/// Reading, listing.
pub const READ: u32 = 1;
/// Everything that changes a file, a directory or what is known of it.
pub const WRITE: u32 = 2;
/// Starting it, or mapping it to be executed.
pub const EXECUTE: u32 = 4;

/// What a rule at an object is looked up by.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey {
    /// The object.
    pub file: FileId,
    /// Policy generation.
    pub policy: u32,
    /// Always zero.
    pub zero: u32,
}

/// What a rule at a name is looked up by: for objects that do not exist yet, or that another one
/// takes the place of.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameKey {
    /// The directory; all zero for a name that means every directory.
    pub directory: FileId,
    /// Policy generation.
    pub policy: u32,
    /// Always zero.
    pub zero: u32,
    /// The name, filled up with zeros; one that does not fit has no rule.
    pub name: [u8; FILE_NAME],
}

/// What allowed uses are counted by.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TallyKey {
    /// The program.
    pub exe: FileId,
    /// The directory of what was used.
    pub directory: FileId,
    /// The sandbox.
    pub sandbox: u32,
    /// Always zero.
    pub zero: u32,
}

/// Where something is counted, once and for all.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TallyPlace {
    /// Index in the table of counts; never zero.
    pub slot: u32,
    /// Always zero.
    pub zero: u32,
    /// When it was first allowed, nanoseconds of `CLOCK_BOOTTIME`.
    pub first: u64,
}

/// How often something was allowed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Tally {
    /// To be read.
    pub reads: u64,
    /// To be written or changed.
    pub writes: u64,
    /// To be executed.
    pub executes: u64,
}

/// For every binary: closed.
pub const DENIED: u32 = 1;
/// For every binary: may be read and executed.
pub const READABLE: u32 = 2;
/// For every binary: may be written too.
pub const WRITABLE: u32 = 4;
/// Some binaries have rights of their own here: the sets are to be looked at.
pub const BY_BINARY: u32 = 8;
/// Names in this directory have rules of their own.
pub const HAS_NAMES: u32 = 16;
/// A rule lies below, so this entry must keep its name: it may not be moved, removed or replaced.
pub const HELD: u32 = 32;
/// Some binary may write here. Not an opinion, but what any of the sandbox can write none of it may
/// execute, also where it is told by a rule above.
pub const WRITTEN_BY_SOME: u32 = 64;
/// A Unix socket that is this very object may be reached, whatever rule is above. Not an opinion:
/// as a file the socket is what the rules around it say.
pub const REACHABLE: u32 = 128;

/// What is allowed at an object and below it, until a nearer rule says otherwise.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FileRule {
    /// The bits above.
    pub flags: u32,
    /// Always zero.
    pub zero: u32,
    /// Slots that may read if the subject or an ancestor of it is one of them.
    pub read_tree: Mask,
    /// Slots that may read only if the subject itself is one of them.
    pub read_own: Mask,
    /// As `read_tree`, to write.
    pub write_tree: Mask,
    /// As `read_own`, to write.
    pub write_own: Mask,
}
