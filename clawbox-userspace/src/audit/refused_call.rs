//! System calls that were refused, or seen while a command was learned from, to records: which call it
//! was, what it was about, and how much of that is known. Paths are told as the program gave them, from
//! the directory that the kernel saw.

use clawbox_common::event::{CallEvent, Kind};
use clawbox_common::limits::CALL_PATH;
use clawbox_common::subject::FileId;
use clawbox_common::verdict::Reason;
use nix::errno::Errno;
use nix::libc;

use super::kernel_event::{begun, file_id};
use super::programs::Programs;
use super::record::{Class, FileObject, Object, Privilege, VerdictName};
use super::trail::Draft;
use crate::events::{Decoded, told_names};
use crate::kernel::calls::{Access, Call, X32, reaching, row};
use crate::sandbox::launch::syscalls;

/// What stands for the part of a path that is not known.
const UNKNOWN: &str = "…";

/// The record; `None` where the kernel refused on its own account what no policy, backstop or
/// permission of a file is about, such as raising a limit.
pub(super) fn draft(decoded: Decoded, event: &CallEvent, programs: &Programs) -> Option<Draft> {
    let errno = Errno::from_raw(event.errno.cast_signed());
    if event.errno == 0 {
        return reached(decoded, event, programs);
    }
    let (class, action, reason, object) = if let Some(name) = filtered(event) {
        let object = Privilege { other_pid: None, system_call: Some(name) };
        (Class::Privilege, Kind::Call.name(), Reason::SystemCall, Object::Privilege(object))
    } else {
        let call = row(event.number, errno as i32)?;
        let object = object(call, event, errno);
        if errno == Errno::EXDEV && is_between_filesystems(&object, event, programs) {
            return None;
        }
        let class = if call.access == Access::Process { Class::Privilege } else { Class::File };
        (class, action(call, event), decoded.reason, object)
    };
    let draft = begun(decoded, &event.header, programs, class, object);
    Some(Draft { action, reason: reason.name(), ..draft })
}

/// The record of a Unix socket that was connected or sent to while a command was learned from.
fn reached(decoded: Decoded, event: &CallEvent, programs: &Programs) -> Option<Draft> {
    let call = reaching(event.number)?;
    let object = match object(call, event, Errno::from_raw(0)) {
        Object::File(file) => Object::File(FileObject { errno: None, ..file }),
        object => object,
    };
    let draft = begun(decoded, &event.header, programs, Class::File, object);
    let (verdict, reason) = (VerdictName::None, Reason::Learning.name());
    Some(Draft { action: call.action, verdict, reason, let_through: false, ..draft })
}

/// The name of a call that the sandbox's filter refuses with these arguments.
fn filtered(event: &CallEvent) -> Option<String> {
    if event.errno.cast_signed() != libc::EPERM {
        return None;
    }
    if event.number >= X32 {
        return Some(format!("x32:{}", event.number - X32));
    }
    let number = i64::from(event.number);
    let denial = syscalls::denials().find(|denial| denial.number == number)?;
    denial.refuses(&event.arguments).then(|| denial.name().to_owned())
}

/// The kernel's own `EXDEV`, which programs expect and go around by copying. Landlock's is for a
/// move or a link that would gain rights.
fn is_between_filesystems(object: &Object, event: &CallEvent, programs: &Programs) -> bool {
    let Object::File(FileObject { path, other_path: Some(other), .. }) = object else {
        return false;
    };
    let other = programs.filesystem(other).or_else(|| device_beside(event, other));
    matches!((programs.filesystem(path), other), (Some(one), Some(other)) if one != other)
}

/// The filesystem of an entry right in a directory that the event does not tell by its path.
fn device_beside(event: &CallEvent, path: &str) -> Option<u64> {
    let is_entry = path.strip_prefix(UNKNOWN).is_some_and(|rest| rest.rfind('/') == Some(0));
    let (major, minor) = (event.other_device >> 20, event.other_device & 0x000f_ffff);
    (is_entry && event.other_device != 0).then(|| libc::makedev(major, minor))
}

/// `unlinkat` removes directories too.
fn action(call: &Call, event: &CallEvent) -> &'static str {
    let removes_directory = i64::from(call.number) == libc::SYS_unlinkat
        && event.arguments[2] & libc::AT_REMOVEDIR as u64 != 0;
    if removes_directory { "rmdir" } else { call.action }
}

fn object(call: &Call, event: &CallEvent, errno: Errno) -> Object {
    if call.access == Access::Process {
        return Object::Privilege(Privilege { other_pid: None, system_call: None });
    }
    let base = told_names(event.base.told, &event.base.names);
    let shape = call.shape;
    let given = Given::of(&event.path, event.path_length);
    let other = (shape.other_path != 0).then(|| Given::of(&event.other_path, event.other_length));
    // The kernel tells one directory: of the path, or if that needs none, of the other.
    let same_base = shape.other_directory != 0
        && (given.is_absolute()
            || directory(event, shape.directory) == directory(event, shape.other_directory));
    Object::File(FileObject {
        path: if shape.skip == 0 { given.from(Some(&base)) } else { given.of_socket(&base) },
        id: file_id(FileId::default()),
        access: access(call, event).iter().map(|name| (*name).to_owned()).collect(),
        other_path: other.map(|other| match shape.other_directory {
            0 => other.text,
            _ => other.from(same_base.then_some(base.as_str())),
        }),
        errno: Some(format!("{errno:?}")),
    })
}

/// Which directory an argument of a [`clawbox_common::event::CallShape`] means.
fn directory(event: &CallEvent, argument: u8) -> i32 {
    let argument = usize::from(argument).checked_sub(1).and_then(|at| event.arguments.get(at));
    argument.map_or(libc::AT_FDCWD, |value| *value as i32)
}

fn access(call: &Call, event: &CallEvent) -> &'static [&'static str] {
    match call.access {
        Access::Write => &["write"],
        Access::Execute => &["execute"],
        Access::Process => &[],
        Access::Flags(at) => {
            let flags = event.arguments.get(at).copied().unwrap_or_default() as i32;
            match flags & libc::O_ACCMODE {
                libc::O_RDONLY if flags & (libc::O_CREAT | libc::O_TRUNC) == 0 => &["read"],
                libc::O_WRONLY => &["write"],
                _ => &["read", "write"],
            }
        }
    }
}

/// A path as the program gave it.
struct Given {
    text: String,
    is_known: bool,
}

impl Given {
    fn of(bytes: &[u8; CALL_PATH], length: i32) -> Self {
        let Ok(length) = usize::try_from(length) else {
            return Self { text: String::new(), is_known: false };
        };
        let bytes = bytes.get(..length.saturating_sub(1)).unwrap_or_default();
        let mut text = String::from_utf8_lossy(bytes).into_owned();
        // A full buffer may hold a cut path.
        if length == CALL_PATH {
            text.push_str(UNKNOWN);
        }
        Self { text, is_known: true }
    }

    fn is_absolute(&self) -> bool {
        self.text.starts_with('/')
    }

    /// From a directory; `None` where that is not known.
    fn from(self, base: Option<&str>) -> String {
        match base.filter(|base| !base.is_empty()) {
            _ if self.is_absolute() => self.text,
            // A descriptor of its own, or no path at all.
            Some(base) if self.text.is_empty() => base.to_owned(),
            Some(base) => format!("{}/{}", base.trim_end_matches('/'), self.text),
            None => format!("{UNKNOWN}/{}", self.text),
        }
    }

    /// Of a Unix socket: one without a path is abstract, and its name is not told.
    fn of_socket(self, base: &str) -> String {
        if self.text.is_empty() && self.is_known { "@".to_owned() } else { self.from(Some(base)) }
    }
}

#[cfg(test)]
mod tests {
    use clawbox_common::event::{Header, Told};
    use clawbox_common::limits::{FILE_NAME, TOLD_NAMES};

    use super::*;

    fn event(number: libc::c_long, errno: i32, arguments: &[u64]) -> CallEvent {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        CallEvent {
            header: Header::default(),
            arguments: all,
            number: number as u32,
            errno: errno.unsigned_abs(),
            path_length: 0,
            other_length: 0,
            other_device: 0,
            base: Told { told: 0, names: [[0; FILE_NAME]; TOLD_NAMES] },
            path: [0; CALL_PATH],
            other_path: [0; CALL_PATH],
        }
    }

    fn written(text: &str) -> ([u8; CALL_PATH], i32) {
        let mut bytes = [0; CALL_PATH];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        (bytes, text.len() as i32 + 1)
    }

    fn in_home(mut event: CallEvent) -> CallEvent {
        for (name, text) in event.base.names.iter_mut().zip(["me", "home", "/"]) {
            name[..text.len()].copy_from_slice(text.as_bytes());
        }
        event.base.told = 3;
        event
    }

    fn file(event: &CallEvent) -> FileObject {
        let call = row(event.number, event.errno.cast_signed()).unwrap();
        match object(call, event, Errno::from_raw(event.errno.cast_signed())) {
            Object::File(file) => file,
            other => panic!("{other:?}"),
        }
    }

    const HERE: u64 = libc::AT_FDCWD as u64;

    #[test]
    fn a_relative_path_is_told_from_its_directory_and_an_absolute_one_as_it_is() {
        let mut open = in_home(event(libc::SYS_openat, libc::EACCES, &[HERE, 0, 0]));
        (open.path, open.path_length) = written("../x");
        assert_eq!(file(&open).path, "/home/me/../x");
        (open.path, open.path_length) = written("/etc/shadow");
        assert_eq!(file(&open).path, "/etc/shadow");
        open.base.told = 0;
        (open.path, open.path_length) = written("x");
        assert_eq!(file(&open).path, "…/x");
        open.path_length = -14;
        assert_eq!(file(&open).path, "…/");
        open.path = [b'y'; CALL_PATH];
        open.path_length = CALL_PATH as i32;
        assert!(file(&open).path.ends_with("y…"));
    }

    #[test]
    fn a_descriptor_alone_is_told_as_what_it_stands_for() {
        let truncate = in_home(event(libc::SYS_ftruncate, libc::EACCES, &[3, 0]));
        assert_eq!(file(&truncate).path, "/home/me");
        assert_eq!(file(&truncate).errno.as_deref(), Some("EACCES"));
    }

    #[test]
    fn two_paths_share_a_directory_only_where_the_call_names_one() {
        let mut rename = in_home(event(libc::SYS_renameat2, libc::EXDEV, &[HERE, 0, HERE, 0]));
        (rename.path, rename.path_length) = written("a");
        (rename.other_path, rename.other_length) = written("b");
        let told = file(&rename);
        assert_eq!(
            (told.path.as_str(), told.other_path.as_deref()),
            ("/home/me/a", Some("/home/me/b"))
        );
        rename.arguments[2] = 7;
        assert_eq!(file(&rename).other_path.as_deref(), Some("…/b"));
        (rename.path, rename.path_length) = written("/a");
        assert_eq!(file(&rename).other_path.as_deref(), Some("/home/me/b"));
    }

    #[test]
    fn a_symbolic_link_s_text_is_told_as_it_was_given() {
        let mut link = in_home(event(libc::SYS_symlinkat, libc::EACCES, &[0, HERE, 0]));
        (link.path, link.path_length) = written("soft");
        (link.other_path, link.other_length) = written("../target");
        let told = file(&link);
        assert_eq!(
            (told.path.as_str(), told.other_path.as_deref()),
            ("/home/me/soft", Some("../target"))
        );
    }

    #[test]
    fn what_was_asked_for_is_in_the_flags() {
        let asked = |flags: i32| {
            file(&event(libc::SYS_openat, libc::EACCES, &[HERE, 0, flags as u64])).access
        };
        assert_eq!(asked(libc::O_RDONLY), ["read"]);
        assert_eq!(asked(libc::O_WRONLY | libc::O_CREAT), ["write"]);
        assert_eq!(asked(libc::O_RDWR), ["read", "write"]);
        assert_eq!(asked(libc::O_CREAT), ["read", "write"]);
    }

    #[test]
    fn a_call_is_the_filter_s_only_with_arguments_that_it_refuses() {
        let socket = |family: i32| event(libc::SYS_socket, libc::EPERM, &[family as u64, 3, 0]);
        assert_eq!(filtered(&socket(libc::AF_PACKET)).as_deref(), Some("socket"));
        assert_eq!(filtered(&socket(libc::AF_UNIX)), None);
        assert_eq!(filtered(&event(libc::SYS_ptrace, libc::EACCES, &[])), None);
        assert_eq!(filtered(&event(libc::SYS_ptrace, libc::EPERM, &[])).as_deref(), Some("ptrace"));
        let x32 = event(i64::from(X32) + 520, libc::EPERM, &[]);
        assert_eq!(filtered(&x32).as_deref(), Some("x32:520"));
    }

    #[test]
    fn directories_are_removed_by_a_flag() {
        let call = row(libc::SYS_unlinkat as u32, libc::EACCES).unwrap();
        let flagged =
            event(libc::SYS_unlinkat, libc::EACCES, &[HERE, 0, libc::AT_REMOVEDIR as u64]);
        assert_eq!(action(call, &flagged), "rmdir");
        assert_eq!(action(call, &event(libc::SYS_unlinkat, libc::EACCES, &[HERE])), "unlink");
    }
}
