//! The way up from an object to the rule that decides: the filesystem's own directories by typed
//! loads, then from mount to mount by checked reads.

use aya_ebpf::helpers::generated::bpf_loop;
use clawbox_common::{
    decide::{
        file::{self, Name, Search},
        unix,
    },
    limits::FILE_DEPTH,
    rule::SandboxState,
    subject::{FileId, Subject},
};
use core::{ffi::c_void, ptr::read_volatile};

use crate::{
    kernel_read::{Dentry as _, Kernel, Place, Untyped},
    maps::KernelLookup,
};

/// How a way up ended.
#[derive(Clone, Copy)]
pub struct Found {
    pub search: Search,
    /// False where it was too long to be followed to its end.
    pub whole: bool,
}

/// What the steps hand to one another, on the stack of who starts them. A loop in the program
/// itself would be verified once for every step: 371,000 instructions for 64 of them.
#[repr(C)]
struct Way<D> {
    /// Typed as long as the way stays in its first filesystem; the verifier follows the type
    /// through the context. Nothing where it is followed by its address.
    dentry: D,
    search: *mut Search,
    subject: *const Subject,
    /// Where the way stands if not at `dentry`, and the `struct mount` of that; zero is none, with
    /// which the way ends at the top of the filesystem.
    at: u64,
    mount: u64,
    /// The dentry by which the way came into this directory; zero at the object itself, and at a
    /// mount point. To be handed on, not compared here: 6.1 verifies a callback once, with what the
    /// context holds at first, and takes the branch for any other value of a known zero out of the
    /// program.
    below: u64,
    end: u32,
}

/// Not at an end yet.
const ON: u32 = 0;
/// A rule with an opinion was met.
const MET: u32 = 1;
/// There is nothing above.
const TOP: u32 = 2;

/// A place from which a way up can be gone.
pub trait Start: Copy {
    /// That of an open file.
    fn of(file: Kernel) -> Self;

    /// Goes up to the top of its own filesystem, and gives how that ended.
    fn climb_inside(self, search: *mut Search, subject: &Subject) -> u32;

    /// The address of its `struct vfsmount`; zero where that is not known.
    fn mount(self) -> u64;

    /// Looks for the nearest rule with an opinion about the subject, at the place or above it.
    #[inline(always)]
    fn search(self, state: &SandboxState, subject: &Subject) -> Found {
        let mut search = Search::new(state);
        let end = self.climb_inside(&raw mut search, subject);
        let end = beyond(&mut search, end, subject, self.mount());
        Found { search, whole: end != ON }
    }
}

/// By checked reads.
impl Start for Place {
    #[inline(always)]
    fn of(file: Kernel) -> Self {
        Self::of_file(file)
    }

    #[inline(always)]
    fn climb_inside(self, search: *mut Search, subject: &Subject) -> u32 {
        climb(search, subject, &Footing { at: self.dentry.0, mount: 0 })
    }

    #[inline(always)]
    fn mount(self) -> u64 {
        self.mount
    }
}

/// By typed loads.
impl Start for Place<Kernel> {
    #[inline(always)]
    fn of(file: Kernel) -> Self {
        Self::of_open_file(file)
    }

    #[inline(always)]
    fn climb_inside(self, search: *mut Search, subject: &Subject) -> u32 {
        let dentry = self.dentry;
        let mut way = Way { dentry, search, subject, at: 0, mount: 0, below: 0, end: ON };
        go(step_inside, &mut way)
    }

    #[inline(always)]
    fn mount(self) -> u64 {
        self.mount
    }
}

/// Goes on where a way has ended at the top of a filesystem that is mounted somewhere.
#[inline(always)]
fn beyond(search: &mut Search, end: u32, subject: &Subject, mount: u64) -> u32 {
    if end == TOP && mount != 0 {
        let mount = Untyped::mount_of(mount);
        let outer = mount.mount_parent();
        if outer != mount {
            let start = Footing { at: mount.mount_point().0, mount: outer.0 };
            return climb(&raw mut *search, subject, &raw const start);
        }
    }
    end
}

/// Where a way by address starts: the addresses of a dentry and of the `struct mount` that it is in;
/// without that, the way ends at the top of the filesystem.
#[repr(C)]
pub struct Footing {
    at: u64,
    mount: u64,
}

/// Goes up by checked reads, and gives how it ended.
///
/// A function of its own with C's linkage, as [`meet`]: what follows it is verified once, not once for
/// every way through it. Its addresses are handed over in memory: as an argument the verifier takes no
/// pointer that has a type ("R3 is not a scalar").
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn climb(
    search: *mut Search,
    subject: *const Subject,
    start: *const Footing,
) -> u32 {
    if search.is_null() || subject.is_null() || start.is_null() {
        // To the verifier they could be. What did not end is too deep.
        return ON;
    }
    // SAFETY: not null, and the verifier sees to it that each caller has a whole value here.
    let &Footing { at, mount } = unsafe { &*start };
    let mut way = Way { dentry: (), search, subject, at, mount, below: 0, end: ON };
    go(step_beyond, &mut way)
}

#[inline(always)]
fn go<D>(step: extern "C" fn(u64, *mut Way<D>) -> i64, way: &mut Way<D>) -> u32 {
    // SAFETY: the callback takes an index and this context, which outlives the call. The field is
    // volatile, because the steps have written it.
    unsafe {
        bpf_loop(FILE_DEPTH as u32, step as *mut c_void, (&raw mut *way).cast(), 0);
        read_volatile(&way.end)
    }
}

/// Shows an object, and the name in it by which the way came, to the search; 1 where that ends it.
///
/// A function of its own with C's linkage: the verifier takes such a one on its own, once, whatever
/// it is called with. As a part of the steps it was verified for every way into and out of it, in
/// every turn of their loops: 35,000 instructions a hook, and half a second for all of them.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn meet(
    search: *mut Search,
    subject: *const Subject,
    inode: u64,
    device: u32,
    below: *const u64,
) -> u32 {
    if search.is_null() || subject.is_null() || below.is_null() {
        // To the verifier they could be. A search that goes on without looking finds nothing.
        return 0;
    }
    // SAFETY: not null, and the verifier sees to it that each caller has a whole value here.
    let (search, subject, below) = unsafe { (&mut *search, &*subject, *below) };
    let object = FileId { inode, device, zero: 0 };
    let name = |into: &mut Name| below != 0 && Untyped(below).name(&raw mut *into);
    u32::from(search.step(&KernelLookup, subject, object, name))
}

#[inline(always)]
fn show<D>(way: &mut Way<D>, object: FileId) -> bool {
    // By its address: on 7.x no typed pointer may be handed to such a function ("R5 is not a
    // scalar"), and what is read from memory that was handed to it is a number.
    let below = &raw const way.below;
    if meet(way.search, way.subject, object.inode, object.device, below) != 0 {
        way.end = MET;
        return true;
    }
    false
}

/// One step in the object's own filesystem, by typed loads; 1 ends the loop.
#[inline(never)]
extern "C" fn step_inside(_index: u64, way: *mut Way<Kernel>) -> i64 {
    // SAFETY: `bpf_loop` hands over the context of who starts the steps, which nobody else uses
    // meanwhile.
    let way = unsafe { &mut *way };
    let dentry = way.dentry;
    if show(way, dentry.identity()) {
        return 1;
    }
    let parent = dentry.parent();
    if parent == dentry {
        way.end = TOP;
        return 1;
    }
    way.below = dentry.address();
    way.dentry = parent;
    0
}

/// One step by checked reads, also from a mount to where it is mounted.
#[inline(never)]
extern "C" fn step_beyond<D>(_index: u64, way: *mut Way<D>) -> i64 {
    // SAFETY: as in `step_inside`.
    let way = unsafe { &mut *way };
    let dentry = Untyped(way.at);
    if show(way, dentry.identity()) {
        return 1;
    }
    let parent = dentry.parent();
    if parent != dentry {
        way.below = way.at;
        way.at = parent.0;
        return 0;
    }
    let mount = Untyped(way.mount);
    let outer = mount.mount_parent();
    if outer == mount || outer.0 == 0 {
        way.end = TOP;
        return 1;
    }
    way.at = mount.mount_point().0;
    way.mount = outer.0;
    way.below = 0;
    0
}

/// Whether a rule keeps an entry where it is.
#[inline(always)]
pub fn is_held(dentry: Untyped, state: &SandboxState) -> bool {
    // What cannot be asked is held.
    own_rule(state, &raw const dentry.0, HELD) != 0
}

/// Whether the policy opens a Unix socket by itself.
#[inline(always)]
pub fn is_opened(dentry: Untyped, state: &SandboxState) -> bool {
    own_rule(state, &raw const dentry.0, OPENED) == 1
}

/// What is asked of the rule at an entry or at its name.
const HELD: u32 = 0;
const OPENED: u32 = 1;
/// To the verifier a pointer could be null.
const UNASKED: u32 = 2;

/// With C's linkage, as [`meet`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn own_rule(state: *const SandboxState, dentry: *const u64, asked: u32) -> u32 {
    if state.is_null() || dentry.is_null() {
        return UNASKED;
    }
    // SAFETY: not null, and the verifier sees to it that each caller has a whole value here.
    let (state, dentry) = unsafe { (&*state, Untyped(*dentry)) };
    let (object, directory) = (dentry.identity(), dentry.parent().identity());
    let name = |into: &mut Name| dentry.name(&raw mut *into);
    u32::from(if asked == HELD {
        file::is_held(&KernelLookup, state, object, directory, name)
    } else {
        unix::is_opened(&KernelLookup, state, object, directory, name)
    })
}
