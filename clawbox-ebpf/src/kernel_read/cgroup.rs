//! Cgroups, by address: how deep they are, what is above them and what they are called.

use super::*;

/// The cgroup that a task is in, in the hierarchy of version 2: its address.
#[inline(always)]
pub fn cgroup(task: Kernel) -> u64 {
    Untyped(task.field::<TASK_CGROUPS, _>()).read::<SET_CGROUP, _>()
}

/// The address of a cgroup, as a number that functions with C's linkage take.
#[inline(always)]
pub fn address_of_cgroup(cgroup: Kernel) -> u64 {
    Untyped(cgroup.address()).read::<CGROUP_ITSELF, _>()
}

/// Whether a task is the one that its thread group is called after.
#[inline(always)]
pub fn is_leader(task: Kernel) -> bool {
    task.field::<TASK_LEADER, u64>() == task.address()
}

/// The file that a process runs; zero for one that has ended, or that is the kernel's own.
#[inline(always)]
pub fn running(task: Kernel) -> FileId {
    let memory = Untyped(task.field::<TASK_MEMORY, _>());
    if memory.0 == 0 {
        return FileId::default();
    }
    let file = Untyped(memory.read::<MEMORY_PROGRAM, _>());
    if file.0 == 0 {
        return FileId::default();
    }
    Untyped(file.read::<FILE_DENTRY, _>()).identity()
}

impl Untyped {
    /// Steps from the root to this cgroup.
    #[inline(always)]
    pub fn level(self) -> u64 {
        u64::from(self.read::<CGROUP_LEVEL, u32>())
    }

    /// The id of the cgroup above this one that has this level; its own at its own level.
    #[inline(always)]
    pub fn ancestor(self, level: u64) -> u64 {
        let ancestors = Self(self.0.wrapping_add(level * 8));
        Self(ancestors.read::<CGROUP_ANCESTORS, _>()).id_of_cgroup()
    }

    /// The id of this cgroup.
    #[inline(always)]
    pub fn id_of_cgroup(self) -> u64 {
        Self(self.read::<CGROUP_NODE, _>()).read::<NODE_ID, _>()
    }

    /// Whether it is one of the users' own, in systemd's hierarchy: below `user.slice`.
    #[inline(always)]
    pub fn is_users(self) -> bool {
        const USERS: [u64; 2] =
            [u64::from_le_bytes(*b"user.sli"), u64::from_le_bytes(*b"ce\0\0\0\0\0\0")];
        let top = Self(Self(self.0.wrapping_add(8)).read::<CGROUP_ANCESTORS, _>());
        let mut name = [0_u64; 2];
        // SAFETY: sixteen bytes of ours, of which the helper writes the name's; the helper checks the source.
        unsafe {
            bpf_probe_read_kernel_str(
                (&raw mut name).cast(),
                size_of_val(&name) as u32,
                top.name_of_cgroup() as *const core::ffi::c_void,
            );
        }
        name == USERS
    }

    /// Where the name of this cgroup is.
    #[inline(always)]
    pub fn name_of_cgroup(self) -> u64 {
        Self(self.read::<CGROUP_NODE, _>()).read::<NODE_NAME, _>()
    }
}
