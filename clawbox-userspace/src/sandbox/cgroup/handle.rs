//! Where the cgroup of an id is: the kernel opens it by its number, as it does for who serves files.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;

/// `FILEID_KERNFS`, linux/exportfs.h: a handle is the node's id alone.
const FILEID_KERNFS: i32 = 0xfe;

/// `struct file_handle` with room for an id.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    id: [u8; 8],
}

/// The directory of the cgroup of this id, in the hierarchy mounted at `root`; `None` if it is no more.
pub(super) fn directory(root: &Path, id: u64) -> io::Result<Option<PathBuf>> {
    let mount = File::open(root)?;
    let mut handle = Handle { bytes: 8, kind: FILEID_KERNFS, id: id.to_ne_bytes() };
    // SAFETY: a handle with as many bytes as it says, which the call only reads.
    let opened = unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            (&raw mut handle).cast(),
            libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC,
        )
    };
    let fd = match Errno::result(opened) {
        // SAFETY: the kernel has just made it, and nobody else has it.
        Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
        Err(Errno::ESTALE | Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    // One that was removed just now is told with a word behind its path.
    Ok(path.is_dir().then_some(path))
}

#[cfg(test)]
mod tests {
    use super::super::{Cgroup, hierarchy_root};
    use super::*;

    #[test]
    fn a_cgroup_is_found_by_its_id_as_long_as_it_is_there() {
        let root = hierarchy_root().unwrap();
        let made = root.join(format!("clawbox-test-handle-{}", std::process::id()));
        fs::create_dir(&made).unwrap();
        let cgroup = Cgroup::open(made.clone()).unwrap();
        assert_eq!(directory(&root, cgroup.id()).unwrap(), Some(made.clone()));
        assert_eq!(cgroup.below(&root), Path::new("/").join(made.file_name().unwrap()));
        assert!(cgroup.is_there() && cgroup.processes().unwrap().is_empty());
        fs::remove_dir(&made).unwrap();
        assert_eq!(directory(&root, cgroup.id()).unwrap(), None);
        assert!(!cgroup.is_there());
    }
}
