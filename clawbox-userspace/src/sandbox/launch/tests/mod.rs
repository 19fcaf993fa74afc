//! Tests of the backstops on the running kernel: a forked child enters them and then tries.
//! Nothing here sends a packet anywhere but to loopback.

mod calls;
mod files;
mod privileges;
mod programs;
mod report;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Uid, fork};

use super::*;

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The call's result, or its errno negated.
    Returned(i64),
    /// The child was killed by this signal.
    Killed(i32),
}

/// Refused with this errno.
const fn refused(errno: i32) -> Outcome {
    Outcome::Returned(-(errno as i64))
}

/// Runs `attempt` in a child that has entered the backstops.
fn inside(prepared: &Prepared, attempt: &dyn Fn() -> i64) -> Outcome {
    in_child(&|| match prepared.entry.enter() {
        Ok(()) => attempt(),
        Err(_) => i64::MIN,
    })
}

/// Runs `attempt` in a child that only has the user's rights: shows that a refusal inside is the
/// backstops' and not that of file modes.
fn control(user: &Identity, attempt: &dyn Fn() -> i64) -> Outcome {
    let (uid, gid) = (i64::from(user.uid()), i64::from(user.gid()));
    in_child(&|| {
        raw(libc::SYS_setgroups, [0; 6]);
        raw(libc::SYS_setresgid, [gid, gid, gid, 0, 0, 0]);
        raw(libc::SYS_setresuid, [uid, uid, uid, 0, 0, 0]);
        attempt()
    })
}

fn in_child(attempt: &dyn Fn() -> i64) -> Outcome {
    let (mut reader, mut writer) = io::pipe().unwrap();
    // SAFETY: the child makes system calls on values made before the fork, then exits.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let result = attempt();
            let _ = writer.write(&result.to_ne_bytes());
            // SAFETY: ends the child without running anything of the test harness.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            let mut bytes = [0; 8];
            let read = reader.read_exact(&mut bytes);
            match waitpid(child, None).unwrap() {
                WaitStatus::Signaled(_, signal, _) => Outcome::Killed(signal as i32),
                WaitStatus::Exited(_, 0) => {
                    read.unwrap();
                    let result = i64::from_ne_bytes(bytes);
                    assert_ne!(result, i64::MIN, "the child could not enter the backstops");
                    Outcome::Returned(result)
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A system call as the kernel answers it.
fn raw(number: libc::c_long, a: [i64; 6]) -> i64 {
    // SAFETY: the tests pass numbers, null, or pointers to values that outlive the call.
    let result = unsafe { libc::syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]) };
    if result < 0 { -i64::from(nix::errno::Errno::last_raw()) } else { result }
}

/// The unprivileged user that every Linux has.
fn nobody() -> Identity {
    identity::resolve(Some("nobody"), None).unwrap().unwrap()
}

/// What a dynamic program needs to start, and `more` to write to.
fn everyday(more: &[&Path]) -> Request {
    let read_only = ["/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/proc", "/dev/urandom"];
    let mut read_write: Vec<PathBuf> = vec!["/dev/null".into()];
    read_write.extend(more.iter().map(|path| path.to_path_buf()));
    Request {
        port_ceiling: true,
        read_only: read_only.iter().map(PathBuf::from).filter(|path| path.exists()).collect(),
        read_write,
        user: Some(nobody()),
        // The tests' children are in no pid namespace; whole sandboxes are tested elsewhere.
        shared: vec![Part::Pid, Part::Mount, Part::Uts, Part::Cgroup, Part::Tmp],
        ..Request::default()
    }
}

/// These tests change users and enter namespaces; a checkout built by an ordinary user skips them.
fn not_root() -> bool {
    let not_root = !Uid::effective().is_root();
    if not_root {
        eprintln!("skipped: needs root");
    }
    not_root
}

/// A directory that every user may enter and write, as /tmp.
fn open_directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    directory
}
