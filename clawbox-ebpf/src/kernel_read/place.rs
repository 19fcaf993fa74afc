//! Dentries and where they are mounted, by typed loads or by address.

use super::*;

/// A dentry, typed or by its address.
///
/// Typed loads are cheap to run and dear to verify: for each pointer that is loaded from an argument,
/// a kernel from 6.4 to 6.19 looks up to four times through all its types for what it may be trusted
/// with (`btf_nested_type_is_trusted`). So they are for opens; whatever is rarer reads by address.
pub trait Dentry: Copy + PartialEq {
    /// The object; zero for one that does not exist (yet).
    fn identity(self) -> FileId;
    /// The directory; itself at the top.
    fn parent(self) -> Self;
    /// The flags of its filesystem; zero where the object does not exist.
    fn filesystem_flags(self) -> u64;
    fn untyped(self) -> Untyped;

    /// Whether it has no place in any directory.
    #[inline(always)]
    fn is_placeless(self) -> bool {
        self.filesystem_flags() & SB_NOUSER != 0
    }
}

impl Dentry for Kernel {
    #[inline(always)]
    fn identity(self) -> FileId {
        let inode = self.pointer::<DENTRY_INODE>();
        if inode.0.is_null() {
            return FileId::default();
        }
        let device: u32 = inode.pointer::<INODE_SB>().field::<SB_DEV, _>();
        FileId { inode: inode.field::<INODE_INO, _>(), device, zero: 0 }
    }

    #[inline(always)]
    fn parent(self) -> Self {
        self.pointer::<DENTRY_PARENT>()
    }

    #[inline(always)]
    fn filesystem_flags(self) -> u64 {
        let inode = self.pointer::<DENTRY_INODE>();
        if inode.0.is_null() {
            return 0;
        }
        inode.pointer::<INODE_SB>().field::<SB_FLAGS, _>()
    }

    #[inline(always)]
    fn untyped(self) -> Untyped {
        Untyped(self.address())
    }
}

impl Dentry for Untyped {
    #[inline(always)]
    fn identity(self) -> FileId {
        let inode = self.inode();
        if inode.0 == 0 {
            return FileId::default();
        }
        let device = inode.filesystem().read::<SB_DEV, _>();
        FileId { inode: inode.read::<INODE_INO, _>(), device, zero: 0 }
    }

    #[inline(always)]
    fn parent(self) -> Self {
        Self(self.read::<DENTRY_PARENT, _>())
    }

    #[inline(always)]
    fn filesystem_flags(self) -> u64 {
        let inode = self.inode();
        if inode.0 == 0 { 0 } else { inode.filesystem().read::<SB_FLAGS, _>() }
    }

    #[inline(always)]
    fn untyped(self) -> Untyped {
        self
    }
}

/// `SB_NOUSER`, linux/fs.h: no path leads into this filesystem, so what is in it (pipes, sockets,
/// memfds) can only be had by a descriptor that its maker passed on.
const SB_NOUSER: u64 = 1 << 31;

/// Where an object is: a dentry, and the address of its `struct vfsmount`, zero where the hook does
/// not know it.
#[derive(Clone, Copy)]
pub struct Place<D = Untyped> {
    pub dentry: D,
    pub mount: u64,
}

impl Place<Kernel> {
    #[inline(always)]
    pub fn of_open_file(file: Kernel) -> Self {
        Self { dentry: file.pointer::<FILE_DENTRY>(), mount: mount_of(file) }
    }
}

impl<D: Dentry> Place<D> {
    #[inline(always)]
    pub fn by_address(self) -> Reached {
        (self.dentry.untyped().0, self.mount)
    }
}

impl Place {
    #[inline(always)]
    pub fn of_file(file: Kernel) -> Self {
        let file = Untyped(file.address());
        Self { dentry: Untyped(file.read::<FILE_DENTRY, _>()), mount: file.read::<FILE_MNT, _>() }
    }

    #[inline(always)]
    pub fn of_path(path: Kernel) -> Self {
        let path = Untyped(path.address());
        Self { dentry: Untyped(path.read::<PATH_DENTRY, _>()), mount: path.read::<PATH_MNT, _>() }
    }

    /// An entry, under the path of its directory.
    #[inline(always)]
    pub fn of_entry(directory: Kernel, dentry: Kernel) -> Self {
        let mount = Untyped(directory.address()).read::<PATH_MNT, _>();
        Self { dentry: Untyped(dentry.address()), mount }
    }

    /// For hooks that are given no path: the way up ends at the filesystem's root, unless there is
    /// but one place where that can be, as for a sandbox's own `/tmp`.
    #[inline(always)]
    pub fn of_dentry(dentry: Kernel) -> Self {
        let dentry = Untyped(dentry.address());
        Self { dentry, mount: dentry.inode().filesystem().only_mount() }
    }
}
