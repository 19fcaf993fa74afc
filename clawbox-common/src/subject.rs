//! Who acts: the identity a thread group got at exec, and the sets of binaries it stands for.

use crate::limits::MASK_WORDS;

/// A set of a sandbox's binary slots, a bit each.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Mask {
    /// Slot `n` is bit `n % 64` of word `n / 64`.
    pub words: [u64; MASK_WORDS],
}

impl Mask {
    /// The empty set.
    pub const EMPTY: Self = Self { words: [0; MASK_WORDS] };

    /// Adds a slot; a slot past the bound is not added, so it can only ever deny.
    pub const fn insert(&mut self, slot: usize) {
        if slot < MASK_WORDS * 64 {
            self.words[slot / 64] |= 1 << (slot % 64);
        }
    }

    /// Whether a slot is in the set.
    #[must_use]
    pub const fn contains(&self, slot: usize) -> bool {
        slot < MASK_WORDS * 64 && self.words[slot / 64] & (1 << (slot % 64)) != 0
    }

    /// Adds every slot of another set.
    #[inline(always)]
    pub fn extend(&mut self, other: &Mask) {
        for (word, more) in self.words.iter_mut().zip(other.words.iter()) {
            *word |= *more;
        }
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }
}

/// A file as the kernel names it: superblock device and inode number.
///
/// The device is the kernel's `s_dev`, which `stat` does not report for every filesystem
/// (overlayfs, btrfs); see `fdinfo` and `mountinfo` for the way to read it from userspace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FileId {
    /// Inode number.
    pub inode: u64,
    /// `major << 20 | minor`, the kernel's own encoding.
    pub device: u32,
    /// Always zero; keeps the record free of padding.
    pub zero: u32,
}

/// Which process of its number, and which of its programs, an identity was written for. The hooks
/// that write identities are tracepoint programs, and a kernel that can be preempted inside one
/// (7.x) leaves out the next run of the same program on that CPU: an exit may leave an entry
/// behind, and an exec the identity of the program before. Neither is taken for the real one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Incarnation {
    /// `start_boottime` of the group's leader, in nanoseconds; kept over exec by any thread.
    pub born: u64,
    /// `self_exec_id`, which the kernel counts up at each exec and copies at fork.
    pub execs: u64,
}

/// The identity of a thread group, written at exec, copied at fork.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Subject {
    /// Whom this was written for.
    pub incarnation: Incarnation,
    /// The sandbox, which no later move to another cgroup changes.
    pub sandbox: u32,
    /// 1 where a `#!` script was started, so that `script` identities are in `own` too.
    pub is_script: u32,
    /// A number of all that [`Kind`] has: equal only where that is. Zero where none could be given.
    pub kind: u64,
    /// The file that runs: for a script its interpreter.
    pub exe: FileId,
    /// Slots that the program running now matches, itself.
    pub own: Mask,
    /// `own`, and the same of every ancestor and every earlier program of this process.
    pub lineage: Mask,
}

/// What decides of files that one subject and another have in common: everything but which process
/// it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Kind {
    /// [`Subject::exe`]
    pub exe: FileId,
    /// [`Subject::own`]
    pub own: Mask,
    /// [`Subject::lineage`]
    pub lineage: Mask,
    /// [`Subject::sandbox`]
    pub sandbox: u32,
    /// Always zero.
    pub zero: u32,
}

impl Subject {
    /// What its number stands for.
    #[inline(always)]
    #[must_use]
    pub const fn what_kind(&self) -> Kind {
        let Self { exe, own, lineage, sandbox, .. } = *self;
        Kind { exe, own, lineage, sandbox, zero: 0 }
    }
}

/// A place for one thread group, found by its number's last bits: its identity, without a search.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Seat {
    /// The thread group that sits here; zero is none, and all ones means that several have had this
    /// seat at one time, so that it says nothing.
    pub group: u64,
    /// What its identity is, once that is written; before, whatever an earlier one left.
    pub subject: Subject,
}

/// Where a task stands.
#[derive(Clone, Copy, Debug)]
pub enum Standing<'a> {
    /// In no sandbox: clawbox has no say.
    Outside,
    /// In a sandbox's cgroup without an identity: everything is denied.
    Unidentified,
    /// A known subject.
    Subject(&'a Subject),
}
