//! System calls whose refusal is told when they return, where no BPF LSM programs tell it: what
//! each does to files, and which of its arguments say to what. One row each, for kernel and trail.

use aya::Ebpf;
use aya::maps::Array;
use aya::programs::Program;
use aya::programs::links::FdLink;
use clawbox_common::event::{
    CALL_DONE, CALL_EACCES, CALL_EPERM, CALL_EXDEV, CALL_WORKDIR, CallShape, Operation,
};
use clawbox_common::limits::CALL_NUMBERS;
use nix::libc;

use super::load::{self, AttachError, LoadError, NamedLink};
use crate::sandbox::launch::syscalls;

/// The program that tells.
pub(super) const PROGRAM: &str = "call_exit";
/// Where it is attached.
pub(super) const TRACEPOINT: &str = "sys_exit";
/// The program that tells what was done while a command is learned from.
pub(super) const LEARNING: &str = "call_done";
/// The table that they read.
const SHAPES: &str = "CALL_SHAPES";

/// Numbers from here on are x32 calls, which the filter refuses one and all.
pub const X32: u32 = 0x4000_0000;

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// As the flags of open(2) in this argument, from 0, say.
    Flags(usize),
    /// To change something.
    Write,
    /// To start it.
    Execute,
    /// Nothing that has a name: it is about another process.
    Process,
}

/// A system call by which files or other processes are used.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number.
    pub number: u32,
    /// The action in audit records.
    pub action: &'static str,
    /// What it asks for.
    pub access: Access,
    /// What the kernel program has to know.
    pub shape: CallShape,
}

const fn shape(errnos: u8, directory: u8, path: u8) -> CallShape {
    CallShape {
        errnos,
        directory,
        path,
        other_directory: 0,
        other_path: 0,
        inner: 0,
        skip: 0,
        in_message: 0,
    }
}

const REFUSED: u8 = CALL_EPERM | CALL_EACCES;

/// A path, from the working directory.
const fn path(argument: u8) -> CallShape {
    shape(REFUSED, CALL_WORKDIR, argument)
}

/// A path, from a directory's descriptor.
const fn at(directory: u8, argument: u8) -> CallShape {
    shape(REFUSED, directory, argument)
}

/// A descriptor alone.
const fn descriptor(argument: u8) -> CallShape {
    shape(REFUSED, argument, 0)
}

/// Two paths, each from its own directory.
const fn pair(one: (u8, u8), other: (u8, u8)) -> CallShape {
    let mut shape = shape(REFUSED | CALL_EXDEV, one.0, one.1);
    (shape.other_directory, shape.other_path) = other;
    shape
}

/// A socket's address.
const fn socket_address(argument: u8) -> CallShape {
    let mut shape = shape(REFUSED, CALL_WORKDIR, argument);
    // The family, and behind it the path.
    (shape.inner, shape.skip) = (argument, 2);
    shape
}

/// That of a message; of several the first one's.
const fn message() -> CallShape {
    CallShape { in_message: 1, ..socket_address(2) }
}

/// openat2: its flags are in memory.
const fn open_how() -> CallShape {
    let mut shape = at(1, 2);
    shape.inner = 3;
    shape
}

const fn only(errnos: u8, shape: CallShape) -> CallShape {
    CallShape { errnos, ..shape }
}

const fn call(
    number: libc::c_long,
    action: &'static str,
    access: Access,
    shape: CallShape,
) -> Call {
    Call { number: number as u32, action, access, shape }
}

/// Numbers that libc does not have yet.
const SETXATTRAT: libc::c_long = 463;
const REMOVEXATTRAT: libc::c_long = 466;

const WORKDIR: u8 = CALL_WORKDIR;

/// Every call that is told of beside those that the filter refuses.
#[rustfmt::skip]
pub const CALLS: &[Call] = &[
    call(libc::SYS_open, Operation::Open.name(), Access::Flags(1), path(1)),
    call(libc::SYS_openat, Operation::Open.name(), Access::Flags(2), at(1, 2)),
    call(libc::SYS_openat2, Operation::Open.name(), Access::Flags(5), open_how()),
    call(libc::SYS_creat, Operation::Open.name(), Access::Write, path(1)),
    call(libc::SYS_mknod, Operation::Create.name(), Access::Write, path(1)),
    call(libc::SYS_mknodat, Operation::Create.name(), Access::Write, at(1, 2)),
    call(libc::SYS_mkdir, Operation::MakeDirectory.name(), Access::Write, path(1)),
    call(libc::SYS_mkdirat, Operation::MakeDirectory.name(), Access::Write, at(1, 2)),
    call(libc::SYS_symlink, Operation::MakeSymlink.name(), Access::Write, pair((WORKDIR, 2), (0, 1))),
    call(libc::SYS_symlinkat, Operation::MakeSymlink.name(), Access::Write, pair((2, 3), (0, 1))),
    call(libc::SYS_link, Operation::Link.name(), Access::Write, pair((WORKDIR, 1), (WORKDIR, 2))),
    call(libc::SYS_linkat, Operation::Link.name(), Access::Write, pair((1, 2), (3, 4))),
    call(libc::SYS_unlink, Operation::Unlink.name(), Access::Write, path(1)),
    call(libc::SYS_unlinkat, Operation::Unlink.name(), Access::Write, at(1, 2)),
    call(libc::SYS_rmdir, Operation::RemoveDirectory.name(), Access::Write, path(1)),
    call(libc::SYS_rename, Operation::Rename.name(), Access::Write, pair((WORKDIR, 1), (WORKDIR, 2))),
    call(libc::SYS_renameat, Operation::Rename.name(), Access::Write, pair((1, 2), (3, 4))),
    call(libc::SYS_renameat2, Operation::Rename.name(), Access::Write, pair((1, 2), (3, 4))),
    call(libc::SYS_truncate, Operation::Truncate.name(), Access::Write, path(1)),
    call(libc::SYS_ftruncate, Operation::Truncate.name(), Access::Write, descriptor(1)),
    call(libc::SYS_chmod, Operation::Chmod.name(), Access::Write, path(1)),
    call(libc::SYS_fchmod, Operation::Chmod.name(), Access::Write, descriptor(1)),
    call(libc::SYS_fchmodat, Operation::Chmod.name(), Access::Write, at(1, 2)),
    call(libc::SYS_fchmodat2, Operation::Chmod.name(), Access::Write, at(1, 2)),
    call(libc::SYS_chown, Operation::Chown.name(), Access::Write, path(1)),
    call(libc::SYS_lchown, Operation::Chown.name(), Access::Write, path(1)),
    call(libc::SYS_fchown, Operation::Chown.name(), Access::Write, descriptor(1)),
    call(libc::SYS_fchownat, Operation::Chown.name(), Access::Write, at(1, 2)),
    call(libc::SYS_utime, Operation::Attributes.name(), Access::Write, path(1)),
    call(libc::SYS_utimes, Operation::Attributes.name(), Access::Write, path(1)),
    call(libc::SYS_futimesat, Operation::Attributes.name(), Access::Write, at(1, 2)),
    call(libc::SYS_utimensat, Operation::Attributes.name(), Access::Write, at(1, 2)),
    call(libc::SYS_setxattr, Operation::ExtendedAttribute.name(), Access::Write, path(1)),
    call(libc::SYS_lsetxattr, Operation::ExtendedAttribute.name(), Access::Write, path(1)),
    call(libc::SYS_fsetxattr, Operation::ExtendedAttribute.name(), Access::Write, descriptor(1)),
    call(SETXATTRAT, Operation::ExtendedAttribute.name(), Access::Write, at(1, 2)),
    call(libc::SYS_removexattr, Operation::ExtendedAttribute.name(), Access::Write, path(1)),
    call(libc::SYS_lremovexattr, Operation::ExtendedAttribute.name(), Access::Write, path(1)),
    call(libc::SYS_fremovexattr, Operation::ExtendedAttribute.name(), Access::Write, descriptor(1)),
    call(REMOVEXATTRAT, Operation::ExtendedAttribute.name(), Access::Write, at(1, 2)),
    call(libc::SYS_execve, Operation::Start.name(), Access::Execute, path(1)),
    call(libc::SYS_execveat, Operation::Start.name(), Access::Execute, at(1, 2)),
    // Landlock's answer for a device; EPERM is a driver's own.
    call(libc::SYS_ioctl, Operation::Ioctl.name(), Access::Write, only(CALL_EACCES, descriptor(1))),
    call(libc::SYS_bind, Operation::Create.name(), Access::Write, socket_address(2)),
    call(libc::SYS_connect, Operation::UnixSocket.name(), Access::Write, socket_address(2)),
    call(libc::SYS_sendto, Operation::UnixSocket.name(), Access::Write, socket_address(5)),
    call(libc::SYS_sendmsg, Operation::UnixSocket.name(), Access::Write, message()),
    call(libc::SYS_sendmmsg, Operation::UnixSocket.name(), Access::Write, message()),
    call(libc::SYS_kill, Operation::Signal.name(), Access::Process, shape(CALL_EPERM, 0, 0)),
    call(libc::SYS_tkill, Operation::Signal.name(), Access::Process, shape(CALL_EPERM, 0, 0)),
    call(libc::SYS_tgkill, Operation::Signal.name(), Access::Process, shape(CALL_EPERM, 0, 0)),
    call(libc::SYS_pidfd_send_signal, Operation::Signal.name(), Access::Process, shape(CALL_EPERM, 0, 0)),
];

/// The rows of the calls that reach a socket.
fn all_reaching() -> impl Iterator<Item = &'static Call> {
    CALLS.iter().filter(|call| call.action == Operation::UnixSocket.name())
}

/// The row of such a call.
#[must_use]
pub fn reaching(number: u32) -> Option<&'static Call> {
    all_reaching().find(|call| call.number == number)
}

/// The row of a call, for one of its answers.
#[must_use]
pub fn row(number: u32, errno: i32) -> Option<&'static Call> {
    CALLS.iter().find(|call| call.number == number && call.shape.errnos & bit(errno) != 0)
}

fn bit(errno: i32) -> u8 {
    match errno {
        libc::EPERM => CALL_EPERM,
        libc::EACCES => CALL_EACCES,
        libc::EXDEV => CALL_EXDEV,
        _ => 0,
    }
}

/// What is told at system-call exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// What Landlock, the files' own permissions and the filter refuse.
    All,
    /// What the filter refuses; files and other processes have hooks that tell.
    Filtered,
}

/// The table by number: these calls, and those that the filter refuses. Answers that programs take
/// for "not available" (`ENOSYS` to clone3) are no denials.
fn shapes(told: Told) -> Vec<CallShape> {
    let mut shapes = vec![CallShape::default(); CALL_NUMBERS as usize];
    for call in CALLS.iter().filter(|_| told == Told::All) {
        if let Some(row) = shapes.get_mut(call.number as usize) {
            *row = call.shape;
        }
    }
    let refused = syscalls::denials().filter_map(|denial| {
        let index = usize::try_from(denial.number).ok()?;
        Some((index, bit(denial.errno)))
    });
    let x32 = (shapes.len() - 1, CALL_EPERM);
    for (index, errno) in refused.chain([x32]) {
        if let Some(row) = shapes.get_mut(index) {
            row.errnos |= errno;
        }
    }
    shapes
}

/// The table while a command is learned from: only which Unix sockets it reaches.
fn shapes_of_learning() -> Vec<CallShape> {
    let mut shapes = vec![CallShape::default(); CALL_NUMBERS as usize];
    for call in all_reaching() {
        if let Some(row) = shapes.get_mut(call.number as usize) {
            *row = only(CALL_DONE, call.shape);
        }
    }
    shapes
}

/// Writes the table and attaches the program that reads it.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    told: Told,
    how: impl FnOnce(&mut Program) -> Result<FdLink, AttachError>,
) -> Result<NamedLink, LoadError> {
    write(ebpf, shapes(told))?;
    Ok((PROGRAM, load::attach(ebpf, PROGRAM, how)?))
}

/// The same for what a command that is learned from does.
pub(super) fn attach_learning(
    ebpf: &mut Ebpf,
    how: impl FnOnce(&mut Program) -> Result<FdLink, AttachError>,
) -> Result<NamedLink, LoadError> {
    write(ebpf, shapes_of_learning())?;
    Ok((LEARNING, load::attach(ebpf, LEARNING, how)?))
}

fn write(ebpf: &mut Ebpf, shapes: Vec<CallShape>) -> Result<(), LoadError> {
    let name = SHAPES;
    let map = ebpf.map_mut(name).ok_or(LoadError::Absent { kind: "map", name })?;
    let mut table: Array<_, CallShape> =
        Array::try_from(map).map_err(|source| LoadError::Map { name, source })?;
    for (index, shape) in (0..).zip(shapes) {
        table.set(index, shape, 0).map_err(|source| LoadError::Map { name, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_one_row_and_fits_the_table() {
        let mut numbers: Vec<u32> = CALLS.iter().map(|call| call.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), CALLS.len());
        // The last row is that of x32 calls.
        assert!(numbers.iter().all(|number| *number < CALL_NUMBERS - 1));
        assert!(syscalls::denials().all(|denial| denial.number < i64::from(CALL_NUMBERS) - 1));
    }

    #[test]
    fn what_the_filter_refuses_is_told_unless_the_answer_means_not_available() {
        for who in [Told::All, Told::Filtered] {
            let shapes = shapes(who);
            // Of some calls others refuse more than the filter does.
            let by_others = |number| who == Told::All && row(number as u32, libc::EPERM).is_some();
            for denial in syscalls::denials() {
                let told = shapes[denial.number as usize].errnos & CALL_EPERM != 0;
                let expected = denial.errno == libc::EPERM || by_others(denial.number);
                assert_eq!(told, expected, "{}", denial.name());
            }
            assert_eq!(shapes.last().unwrap().errnos, CALL_EPERM);
        }
    }

    #[test]
    fn what_hooks_tell_is_not_told_again() {
        let shapes = shapes(Told::Filtered);
        for call in CALLS {
            let errnos = shapes[call.number as usize].errnos;
            // The hooks of files answer EACCES, those of processes EPERM, as the filter does.
            let not_told = if call.access == Access::Process { u8::MAX } else { !CALL_EPERM };
            assert_eq!(errnos & not_told, 0, "{}", call.action);
        }
    }

    #[test]
    fn nothing_is_told_of_calls_that_nobody_refuses() {
        let shapes = shapes(Told::All);
        for number in [libc::SYS_read, libc::SYS_write, libc::SYS_stat, libc::SYS_getpid] {
            assert_eq!(shapes[number as usize], CallShape::default());
        }
    }

    #[test]
    fn a_row_is_for_its_answers_alone() {
        let ioctl = libc::SYS_ioctl as u32;
        assert_eq!(row(ioctl, libc::EACCES).unwrap().action, "ioctl");
        assert!(row(ioctl, libc::EPERM).is_none());
        assert!(row(libc::SYS_open as u32, libc::EXDEV).is_none());
        assert!(row(libc::SYS_rename as u32, libc::EXDEV).is_some());
    }
}
