//! What Landlock refuses before the LSM programs are asked: the verdict is Landlock's, and told here.
//! Only attached where the kernel asks Landlock first; whatever comes by here was refused by nobody
//! else, because the first module that refuses is the last that is asked.

use aya_ebpf::{
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use clawbox_common::{
    decide::Decision,
    event::{Kind, Operation},
    file::{EXECUTE, WRITE},
    subject::{FileId, Standing},
    verdict::Reason,
};

use super::privilege::NO_AUDIT;
use crate::{
    emit::{self, Deed, Judged},
    kernel_read::{self, Dentry as _, Kernel, Place, Reached, Untyped},
    subject,
};

#[inline(always)]
fn refused(operation: Operation, access: u32, place: Place) {
    refused_at(operation, access, place.by_address());
}

#[inline(always)]
fn refused_at(operation: Operation, access: u32, at: Reached) {
    let object = Untyped(at.0).identity();
    tell(Deed { kind: Kind::File, operation, access, object, other: 0 }, Some(at));
}

/// A process that was to be traced or signalled, by its thread group.
#[inline(always)]
fn refused_process(operation: Operation, other: u32) {
    let object = FileId::default();
    tell(Deed { kind: Kind::Privilege, operation, access: 0, object, other }, None);
}

/// A Unix socket without a path.
#[inline(always)]
fn refused_socket() {
    let (operation, object) = (Operation::UnixSocket, FileId::default());
    tell(Deed { kind: Kind::File, operation, access: WRITE, object, other: 0 }, None);
}

#[inline(always)]
fn tell(deed: Deed, at: Option<Reached>) {
    let standing = subject::standing();
    if matches!(standing, Standing::Outside) {
        return;
    }
    let judged = Judged::by(&Decision::refused(Reason::Landlock));
    emit::used(&standing, judged, &deed, at);
}

/// Whether the hook has refused.
#[inline(always)]
fn has_refused(ctx: &FExitContext) -> bool {
    matches!(ctx.ret::<i32>(), Ok(result) if result != 0)
}

/// # Safety
/// Argument `n` of the function is a pointer to a kernel structure.
#[inline(always)]
unsafe fn argument(ctx: &FExitContext, n: usize) -> Kernel {
    // SAFETY: the caller's promise.
    unsafe { Kernel::new(ctx.arg(n)) }
}

/// `(file)`: before 6.15, where nothing is called for a refusal alone.
#[fexit(function = "hook_file_open")]
pub fn ceiling_open(ctx: FExitContext) -> i32 {
    // Behind the one argument is the result. Read by itself, and the rest apart: every open of the host
    // comes here, and the helper and the registers to be saved are half of what that costs.
    let result: u64 = ctx.arg(1);
    if result as u32 != 0 {
        // SAFETY: the argument is a file.
        refused_open(unsafe { argument(&ctx, 0) });
    }
    0
}

#[inline(never)]
fn refused_open(file: Kernel) {
    let executes = if kernel_read::is_opened_by_exec(file) { EXECUTE } else { 0 };
    let access = kernel_read::open_mode(file) | executes;
    refused(Operation::Open, access, Place::of_file(file));
}

/// `(domain, request)`: for each refusal, since 6.15. What is asked for by a directory and an entry
/// comes by the hooks below all the same, because a request has the directory alone.
#[fentry(function = "landlock_log_denial")]
pub fn ceiling_denial(ctx: FEntryContext) -> i32 {
    let request: *const u8 = ctx.arg(1);
    let request = Untyped(request as u64);
    if let Some((access, at)) = request.refused_open() {
        refused_at(Operation::Open, access, at);
    } else if let Some(at) = request.refused_ioctl() {
        refused_at(Operation::Ioctl, WRITE, at);
    } else if let Some((operation, other)) = request.refused_process() {
        refused_process(operation, other);
    } else if request.is_of_refused_socket() {
        refused_socket();
    }
    0
}

/// `(file, command, argument)`: before 6.15.
#[fexit(function = "hook_file_ioctl")]
pub fn ceiling_ioctl(ctx: FExitContext) -> i32 {
    if has_refused(&ctx) {
        // SAFETY: the argument is a file.
        let place = Place::of_file(unsafe { argument(&ctx, 0) });
        refused(Operation::Ioctl, WRITE, place);
    }
    0
}

/// `(child, mode)`: before 6.15.
#[fexit(function = "hook_ptrace_access_check")]
pub fn ceiling_trace(ctx: FExitContext) -> i32 {
    let mode: u32 = ctx.arg(1);
    if has_refused(&ctx) && mode & NO_AUDIT == 0 {
        // SAFETY: the argument is a task.
        let other = unsafe { argument(&ctx, 0) };
        refused_process(Operation::Trace, kernel_read::thread_group(other));
    }
    0
}

/// `(task, …)`: before 6.15.
#[fexit(function = "hook_task_kill")]
pub fn ceiling_signal(ctx: FExitContext) -> i32 {
    if has_refused(&ctx) {
        // SAFETY: the argument is a task.
        let other = unsafe { argument(&ctx, 0) };
        refused_process(Operation::Signal, kernel_read::thread_group(other));
    }
    0
}

/// Before 6.15.
macro_rules! abstract_hook {
    ($($program:ident = $function:literal)*) => {
        $(
            #[fexit(function = $function)]
            pub fn $program(ctx: FExitContext) -> i32 {
                if has_refused(&ctx) {
                    refused_socket();
                }
                0
            }
        )*
    };
}

abstract_hook! {
    ceiling_abstract_stream = "hook_unix_stream_connect"
    ceiling_abstract_datagram = "hook_unix_may_send"
}

/// `(file)`.
#[fexit(function = "hook_file_truncate")]
pub fn ceiling_file_truncate(ctx: FExitContext) -> i32 {
    if has_refused(&ctx) {
        // SAFETY: the argument is a file.
        let place = Place::of_file(unsafe { argument(&ctx, 0) });
        refused(Operation::Truncate, WRITE, place);
    }
    0
}

/// `(path, …)`.
macro_rules! path_hook {
    ($($program:ident = $function:literal, $operation:ident)*) => {
        $(
            #[fexit(function = $function)]
            pub fn $program(ctx: FExitContext) -> i32 {
                if has_refused(&ctx) {
                    // SAFETY: the argument is a path.
                    let place = Place::of_path(unsafe { argument(&ctx, 0) });
                    refused(Operation::$operation, WRITE, place);
                }
                0
            }
        )*
    };
}

// A socket's path is looked at since 7.1.
path_hook! {
    ceiling_truncate = "hook_path_truncate", Truncate
    ceiling_unix_socket = "hook_unix_find", UnixSocket
}

/// `(directory, dentry, …)`.
macro_rules! entry_hook {
    ($($program:ident = $function:literal, $operation:ident)*) => {
        $(
            #[fexit(function = $function)]
            pub fn $program(ctx: FExitContext) -> i32 {
                if has_refused(&ctx) {
                    // SAFETY: the arguments are a path and a dentry.
                    let place = unsafe { Place::of_entry(argument(&ctx, 0), argument(&ctx, 1)) };
                    refused(Operation::$operation, WRITE, place);
                }
                0
            }
        )*
    };
}

// Of a rename the entry that was to be moved is told.
entry_hook! {
    ceiling_mknod = "hook_path_mknod", Create
    ceiling_mkdir = "hook_path_mkdir", MakeDirectory
    ceiling_symlink = "hook_path_symlink", MakeSymlink
    ceiling_unlink = "hook_path_unlink", Unlink
    ceiling_rmdir = "hook_path_rmdir", RemoveDirectory
    ceiling_rename = "hook_path_rename", Rename
}

/// `(old_dentry, new_directory, new_dentry)`: the name that was to be made is told, as by `path_link`.
#[fexit(function = "hook_path_link")]
pub fn ceiling_link(ctx: FExitContext) -> i32 {
    if has_refused(&ctx) {
        // SAFETY: the arguments are a dentry, a path and a dentry.
        let place = unsafe { Place::of_entry(argument(&ctx, 1), argument(&ctx, 2)) };
        refused(Operation::Link, WRITE, place);
    }
    0
}
