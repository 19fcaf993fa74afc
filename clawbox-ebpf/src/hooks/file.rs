//! Files: opening and receiving them, the entries of directories, and what is known of a file.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use clawbox_common::{
    decide::{Decision, file},
    event::{Kind, Operation},
    file::{EXECUTE, WRITE},
    rule::{REPORT_ALLOWS, SandboxState, TALLY_ALLOWS},
    subject::{Standing, Subject},
};

use super::verdict::eacces;
use crate::{
    allowed::{self, Found},
    emit::{self, DeedNumbers, Judged},
    kernel_read::{self, Dentry, Kernel, Place, Untyped},
    maps::KernelLookup,
    search::{self, Start},
    subject,
    tally::{self, Counted},
};

/// # Safety
/// Argument `n` of the hook is a pointer to a kernel structure.
#[inline(always)]
unsafe fn argument(ctx: &LsmContext, n: usize) -> Kernel {
    // SAFETY: the caller's promise.
    unsafe { Kernel::new(ctx.arg(n)) }
}

/// Judges a use of an object that is there, and reports a denial.
#[inline(always)]
pub fn object(operation: Operation, access: u32, place: Place) -> bool {
    let standing = subject::standing();
    if matches!(standing, Standing::Outside) {
        return true;
    }
    let judged = Judged::by(&of_object(&standing, access, place));
    report(&standing, judged, operation, access, place);
    judged.goes_on()
}

#[inline(always)]
fn of_object(standing: &Standing<'_>, access: u32, place: Place) -> Decision {
    let (subject, state) = match file::subject(&KernelLookup, standing) {
        Ok(found) => found,
        Err(decision) => return decision,
    };
    if place.dentry.is_placeless() {
        return file::placeless(access, state);
    }
    let found = place.search(state, subject);
    if found.whole { file::access(&found.search, access, state) } else { file::too_deep(state) }
}

/// Judges the common use of an open file, its opening or reading or writing, and reports a denial.
#[inline(always)]
pub fn opened(operation: Operation, access: u32, file: Kernel) -> bool {
    goes_on_at_once(access, file) || judged_apart(operation, access, file)
}

/// A function of its own: the compiler would have numbers ready for it where nearly nobody comes so far.
#[inline(never)]
fn judged_apart(operation: Operation, access: u32, file: Kernel) -> bool {
    judged::<Kernel>(operation, access, file)
}

/// Whether somebody outside every sandbox asks, or it was allowed a moment ago and is counted now.
/// What nearly every open of a host goes through, and nothing else.
#[inline(always)]
fn goes_on_at_once(access: u32, file: Kernel) -> bool {
    let standing = subject::standing();
    if matches!(standing, Standing::Outside) {
        return true;
    }
    let Ok((subject, state)) = file::subject(&KernelLookup, &standing) else { return false };
    let Some(tally) = allowed::recall_own(file, access, state, subject, allowed::moment()) else {
        return false;
    };
    tally::again(tally, access)
}

/// Whether it is the use of a file that is open already; to have a program of it is more.
#[inline(always)]
fn is_open(operation: Operation, access: u32) -> bool {
    let operation = operation as u32;
    let is_use = operation == Operation::Read as u32
        || operation == Operation::Write as u32
        || operation == Operation::Map as u32;
    is_use && access & EXECUTE == 0
}

#[inline(always)]
fn is_of_launch(operation: Operation, file: Kernel) -> bool {
    let operation = operation as u32;
    let is_exec = operation == Operation::Open as u32 || operation == Operation::Read as u32;
    if is_exec && kernel_read::is_opened_by_exec(file) {
        return true;
    }
    operation != Operation::Map as u32 && kernel_read::is_pipe(file)
}

/// Judges any use of an open file, and reports a denial: what was allowed before is taken from there, if
/// for another kind of subject; else the way up is gone, by dentries of this kind.
#[inline(always)]
pub fn judged<D: Dentry>(operation: Operation, access: u32, file: Kernel) -> bool
where
    Place<D>: Start,
{
    let standing = subject::standing();
    if matches!(standing, Standing::Outside) {
        return true;
    }
    let is_open = is_open(operation, access);
    let (subject, state) = match file::subject_of(&KernelLookup, &standing, is_open) {
        Ok(found) => found,
        Err(decision) => {
            // exec of the sandbox's first program, by clawbox's own child; or of a process whose fork
            // was not seen, which has Landlock around it and gets an identity by this very exec. Where open
            // files are judged, exec's own read of its file is asked about too, and what the child says to
            // the agent by a pipe.
            if matches!(standing, Standing::Unidentified) && is_of_launch(operation, file) {
                return true;
            }
            let judged = Judged::by(&decision);
            report(&standing, judged, operation, access, Place::<D>::of(file));
            return judged.goes_on();
        }
    };
    let now = allowed::moment();
    let (place, mut allows) = (Place::<D>::of(file), 0);
    let judged = if allowed::recall(file, access, state, subject, now) {
        Judged::by(&file::remembered(state))
    } else {
        Judged::by(&of_file(state, subject, access, place, &mut allows))
    };
    let tally = report(&standing, judged, operation, access, place);
    // What is used on while nothing can be recorded is not counted, and must not be taken for that later.
    if allows != 0 && judged.is_allowed() && state.is_in_force() {
        let tally = match state.flags & (REPORT_ALLOWS | TALLY_ALLOWS) {
            TALLY_ALLOWS if tally != 0 => tally,
            0 => tally::NOBODYS,
            _ => tally::NONE,
        };
        let found = Found { then: now, access: allows, tally };
        allowed::keep(file, state, subject, &found);
    }
    judged.goes_on()
}

/// `allows` is what the way up allows, if that may be remembered.
#[inline(always)]
fn of_file<D: Dentry>(
    state: &SandboxState,
    subject: &Subject,
    access: u32,
    place: Place<D>,
    allows: &mut u32,
) -> Decision
where
    Place<D>: Start,
{
    if place.dentry.is_placeless() {
        return file::placeless(access, state);
    }
    // A layer of overlayfs, which the merged file was judged for. Not what is executed: that is the
    // merged file, and other internal mounts hold memfds.
    if access & EXECUTE == 0 && Untyped::mount_of(place.mount).is_internal_mount() {
        return file::judged_elsewhere(state);
    }
    let found = place.search(state, subject);
    if !found.whole {
        return file::too_deep(state);
    }
    *allows = file::all_allowed(&found.search, state);
    file::access(&found.search, access, state)
}

/// A change of a directory's entry: the directory is what is written.
#[inline(always)]
fn of_entry(standing: &Standing<'_>, place: Place) -> Decision {
    let (subject, state) = match file::subject(&KernelLookup, standing) {
        Ok(found) => found,
        Err(decision) => return decision,
    };
    let directory = Place { dentry: place.dentry.parent(), mount: place.mount };
    let found = directory.search(state, subject);
    if !found.whole {
        return file::too_deep(state);
    }
    file::entry(&found.search, search::is_held(place.dentry, state), state)
}

/// Judges a change of one entry, or of two that change together, and reports a denial.
#[inline(always)]
fn entry(operation: Operation, place: Place, other: Option<Place>) -> bool {
    let standing = subject::standing();
    if matches!(standing, Standing::Outside) {
        return true;
    }
    let (mut judged, mut at) = (Judged::by(&of_entry(&standing, place)), place);
    if let Some(other) = other
        && judged.is_allowed()
    {
        (judged, at) = (Judged::by(&of_entry(&standing, other)), other);
    }
    report(&standing, judged, operation, WRITE, at);
    judged.goes_on()
}

/// Denials are reported one by one; what is allowed is counted, or reported too, as the sandbox's
/// audit level wants it. Gives where it was counted; zero is nowhere.
#[inline(always)]
fn report<D: Dentry>(
    standing: &Standing<'_>,
    judged: Judged,
    operation: Operation,
    access: u32,
    place: Place<D>,
) -> u32 {
    let subject = if let Standing::Subject(subject) = standing { Some(*subject) } else { None };
    let what = u64::from(access) << 32 | operation as u64;
    report_what(subject, judged, what, place.dentry, place.mount)
}

/// With a part of the stack of its own. `what` is the access and the operation.
#[inline(never)]
fn report_what<D: Dentry>(
    subject: Option<&Subject>,
    judged: Judged,
    what: u64,
    dentry: D,
    mount: u64,
) -> u32 {
    let (mut operation, access) = (what as u32, (what >> 32) as u32);
    let (mut dentry, mut tally) = (dentry, 0);
    if judged.is_allowed() && judged.flags() & REPORT_ALLOWS == 0 {
        let Some(subject) = subject else { return 0 };
        if judged.flags() & TALLY_ALLOWS == 0 {
            return 0;
        }
        dentry = dentry.parent();
        operation = Operation::Tally as u32;
        let counted;
        (counted, tally) = tally::add(subject, dentry.identity(), access);
        if matches!(counted, Counted::Lost) {
            emit::lost(subject.sandbox, Kind::File);
        }
        if !matches!(counted, Counted::First) {
            return tally;
        }
    }
    let (object, dentry) = (dentry.identity(), dentry.untyped().0);
    let kind = Kind::File as u32;
    let deed = DeedNumbers { object, operation, access, other: 0, kind, dentry, mount };
    emit::used_by(subject, judged, &deed);
    tally
}

/// `(file)`.
#[lsm(hook = "file_open")]
pub fn file_open(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a file.
    let file = unsafe { argument(&ctx, 0) };
    eacces(opened(Operation::Open, kernel_read::open_mode(file), file))
}

/// `(file)`: from another process, by `SCM_RIGHTS` and the like.
#[lsm(hook = "file_receive")]
pub fn file_receive(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a file.
    let file = unsafe { argument(&ctx, 0) };
    eacces(object(Operation::Receive, kernel_read::open_mode(file), Place::of_file(file)))
}

/// `(directory, dentry, …)`.
macro_rules! entry_hook {
    ($($hook:ident = $operation:ident)*) => {
        $(
            #[lsm]
            pub fn $hook(ctx: LsmContext) -> i32 {
                // SAFETY: the arguments are a path and a dentry.
                let place = unsafe { Place::of_entry(argument(&ctx, 0), argument(&ctx, 1)) };
                eacces(entry(Operation::$operation, place, None))
            }
        )*
    };
}

entry_hook! {
    path_mknod = Create
    path_mkdir = MakeDirectory
    path_symlink = MakeSymlink
    path_unlink = Unlink
    path_rmdir = RemoveDirectory
}

/// `(directory, dentry)`: for everybody, because an allow is remembered with the object.
#[lsm(hook = "inode_unlink")]
pub fn inode_unlink(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a dentry.
    if kernel_read::has_several_names(unsafe { argument(&ctx, 1) }) {
        allowed::one_name_less();
    }
    0
}

/// `(old_dentry, new_directory, new_dentry)`: what is linked can be changed by its new name, so it
/// must be writable by the old one.
#[lsm(hook = "path_link")]
pub fn path_link(ctx: LsmContext) -> i32 {
    // SAFETY: the arguments are a dentry, a path and a dentry.
    let (old, directory, new) =
        unsafe { (argument(&ctx, 0), argument(&ctx, 1), argument(&ctx, 2)) };
    let new = Place::of_entry(directory, new);
    // Both are on one mount: link(2) fails with EXDEV otherwise.
    let old = Place { dentry: Untyped(old.address()), mount: new.mount };
    let standing = subject::standing();
    if matches!(standing, Standing::Outside) {
        return 0;
    }
    let (mut judged, mut at) = (Judged::by(&of_object(&standing, WRITE, old)), old);
    if judged.is_allowed() {
        (judged, at) = (Judged::by(&of_entry(&standing, new)), new);
    }
    report(&standing, judged, Operation::Link, WRITE, at);
    eacces(judged.goes_on())
}

/// `(old_directory, old_dentry, new_directory, new_dentry, …)`.
#[lsm(hook = "path_rename")]
pub fn path_rename(ctx: LsmContext) -> i32 {
    // SAFETY: the arguments are a path, a dentry, a path and a dentry.
    let (old, new) = unsafe {
        (
            Place::of_entry(argument(&ctx, 0), argument(&ctx, 1)),
            Place::of_entry(argument(&ctx, 2), argument(&ctx, 3)),
        )
    };
    eacces(entry(Operation::Rename, old, Some(new)))
}

/// `(path, …)`.
macro_rules! path_hook {
    ($($hook:ident = $operation:ident)*) => {
        $(
            #[lsm]
            pub fn $hook(ctx: LsmContext) -> i32 {
                // SAFETY: the argument is a path.
                let place = unsafe { Place::of_path(argument(&ctx, 0)) };
                eacces(object(Operation::$operation, WRITE, place))
            }
        )*
    };
}

path_hook! {
    path_truncate = Truncate
    path_chmod = Chmod
    path_chown = Chown
}

/// `(file)`: ftruncate, since 6.2; before, it came by `path_truncate`.
#[lsm(hook = "file_truncate")]
pub fn file_truncate(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a file.
    let place = Place::of_file(unsafe { argument(&ctx, 0) });
    eacces(object(Operation::Truncate, WRITE, place))
}

/// `FS_IOC_SETFLAGS`, `FS_IOC_FSSETXATTR` and the first one's form for 32 bits, uapi/linux/fs.h: a
/// file's attribute flags, its quota's project.
const SET_FLAGS: [u32; 3] = [0x4008_6602, 0x401c_5820, 0x4004_6602];

/// `(file, command, argument)`: what an ioctl sets of a file itself needs no descriptor that was
/// opened to be written.
#[lsm(hook = "file_ioctl")]
pub fn file_ioctl(ctx: LsmContext) -> i32 {
    let command: u32 = ctx.arg(1);
    if command != SET_FLAGS[0] && command != SET_FLAGS[1] && command != SET_FLAGS[2] {
        return 0;
    }
    // SAFETY: the argument is a file.
    let place = Place::of_file(unsafe { argument(&ctx, 0) });
    eacces(object(Operation::Attributes, WRITE, place))
}

/// For hooks without a path. What overlayfs does to a layer was judged at the merged file.
#[inline(always)]
fn by_dentry(operation: Operation, dentry: Kernel) -> i32 {
    if kernel_read::acts_for_another(kernel_read::current()) {
        return 0;
    }
    eacces(object(operation, WRITE, Place::of_dentry(dentry)))
}

/// `(dentry, attributes)`, before 6.2.
#[lsm(hook = "inode_setattr")]
pub fn inode_setattr_2(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a dentry.
    by_dentry(Operation::Attributes, unsafe { argument(&ctx, 0) })
}

/// `(idmap, dentry, attributes)`.
#[lsm(hook = "inode_setattr")]
pub fn inode_setattr_3(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a dentry.
    by_dentry(Operation::Attributes, unsafe { argument(&ctx, 1) })
}

/// `(idmap, dentry, …)`.
macro_rules! attribute_hook {
    ($($hook:ident)*) => {
        $(
            #[lsm]
            pub fn $hook(ctx: LsmContext) -> i32 {
                // SAFETY: the argument is a dentry.
                by_dentry(Operation::ExtendedAttribute, unsafe { argument(&ctx, 1) })
            }
        )*
    };
}

attribute_hook! { inode_setxattr inode_removexattr inode_set_acl inode_remove_acl }

/// Executable mappings and program starts, for `hooks/exec.rs`.
#[inline(always)]
pub fn execution(operation: Operation, file: Kernel) -> i32 {
    eacces(judged::<Untyped>(operation, EXECUTE, file))
}
