//! Fields of kernel structures that programs read, by number. Where they are is each kernel's own:
//! programs carry the number in their instructions, and the agent puts the offset in its place
//! (`patch.rs`).

/// Where a field is to be looked for in the kernel's own types.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The structure.
    pub structure: &'static str,
    /// The field, or a path of fields, through anonymous members too.
    pub path: &'static str,
    /// Whether a kernel may lack it. Its offset is zero then, where none of these is.
    pub is_optional: bool,
}

macro_rules! fields {
    (always { $($name:ident = $structure:literal $path:literal,)* }
     where_present { $($optional:ident = $optional_structure:literal $optional_path:literal,)* }) => {
        #[allow(non_camel_case_types, reason = "the names of constants")]
        #[repr(u16)]
        enum Number { $($name,)* $($optional,)* }
        $(
            #[doc = concat!("`", $structure, ".", $path, "`")]
            pub const $name: u16 = Number::$name as u16;
        )*
        $(
            #[doc = concat!("`", $optional_structure, ".", $optional_path, "`, where a kernel has it")]
            pub const $optional: u16 = Number::$optional as u16;
        )*
        /// All of them, by number.
        pub const ALL: &[Field] = &[
            $(Field { structure: $structure, path: $path, is_optional: false },)*
            $(Field {
                structure: $optional_structure,
                path: $optional_path,
                is_optional: true,
            },)*
        ];
    };
}

fields! {
    always {
        TASK_TGID = "task_struct" "tgid",
        TASK_SIGNAL = "task_struct" "signal",
        TASK_REAL_PARENT = "task_struct" "real_parent",
        TASK_LEADER = "task_struct" "group_leader",
        TASK_BORN = "task_struct" "start_boottime",
        TASK_EXECS = "task_struct" "self_exec_id",
        SIGNAL_LIVE = "signal_struct" "live",
        BPRM_FILE = "linux_binprm" "file",
        BPRM_FILENAME = "linux_binprm" "filename",
        BPRM_INTERP = "linux_binprm" "interp",
        FILE_DENTRY = "file" "f_path.dentry",
        DENTRY_INODE = "dentry" "d_inode",
        INODE_SB = "inode" "i_sb",
        INODE_INO = "inode" "i_ino",
        SB_DEV = "super_block" "s_dev",
        SB_FLAGS = "super_block" "s_flags",
        FILE_MNT = "file" "f_path.mnt",
        FILE_INODE = "file" "f_inode",
        INODE_NLINK = "inode" "i_nlink",
        INODE_MODE = "inode" "i_mode",
        DENTRY_FLAGS = "dentry" "d_flags",
        FILE_MODE = "file" "f_mode",
        FILE_FLAGS = "file" "f_flags",
        PATH_MNT = "path" "mnt",
        PATH_DENTRY = "path" "dentry",
        DENTRY_PARENT = "dentry" "d_parent",
        DENTRY_NAME = "dentry" "d_name.name",
        MOUNT_MNT = "mount" "mnt",
        MOUNT_PARENT = "mount" "mnt_parent",
        MOUNT_POINT = "mount" "mnt_mountpoint",
        MOUNT_NS = "mount" "mnt_ns",
        SB_MOUNTS = "super_block" "s_mounts",
        SOCKET_SOCK = "socket" "sk",
        SOCK_FAMILY = "sock" "__sk_common.skc_family",
        SOCK_PORT = "sock" "__sk_common.skc_num",
        SOCK_PROTOCOL = "sock" "sk_protocol",
        MESSAGE_NAME = "msghdr" "msg_name",
        MESSAGE_FLAGS = "msghdr" "msg_flags",
        MESSAGE_CONTROL = "msghdr" "msg_control",
        MESSAGE_CONTROL_LENGTH = "msghdr" "msg_controllen",
        SOCK_PEER_PORT = "sock" "__sk_common.skc_dport",
        SOCK_PEER_V4 = "sock" "__sk_common.skc_daddr",
        SOCK_PEER_V6 = "sock" "__sk_common.skc_v6_daddr",
        SOCK_LOCAL_V4 = "sock" "__sk_common.skc_rcv_saddr",
        SOCK_LOCAL_V6 = "sock" "__sk_common.skc_v6_rcv_saddr",
        SOCK_CGROUP = "sock" "sk_cgrp_data.cgroup",
        UNIX_DENTRY = "unix_sock" "path.dentry",
        UNIX_MNT = "unix_sock" "path.mnt",
        CGROUP_LEVEL = "cgroup" "level",
        CGROUP_ANCESTORS = "cgroup" "ancestors",
        CGROUP_NODE = "cgroup" "kn",
        CGROUP_ITSELF = "cgroup" "self.cgroup",
        NODE_ID = "kernfs_node" "id",
        NODE_NAME = "kernfs_node" "name",
        TASK_CGROUPS = "task_struct" "cgroups",
        SET_CGROUP = "css_set" "dfl_cgrp",
        TASK_MEMORY = "task_struct" "mm",
        MEMORY_PROGRAM = "mm_struct" "exe_file",
        MEMORY_ARGUMENTS = "mm_struct" "arg_start",
        MEMORY_ARGUMENTS_END = "mm_struct" "arg_end",
        FILE_PATH = "file" "f_path",
        VMA_FILE = "vm_area_struct" "vm_file",
        VMA_FLAGS = "vm_area_struct" "vm_flags",
        TASK_CRED = "task_struct" "cred",
        TASK_REAL_CRED = "task_struct" "real_cred",
        CRED_USER = "cred" "uid",
        TASK_FS = "task_struct" "fs",
        FS_PWD_DENTRY = "fs_struct" "pwd.dentry",
        FS_PWD_MNT = "fs_struct" "pwd.mnt",
        TASK_FILES = "task_struct" "files",
        FILES_TABLE = "files_struct" "fdt",
        TABLE_SIZE = "fdtable" "max_fds",
        TABLE_FILES = "fdtable" "fd",
        REGS_NUMBER = "pt_regs" "orig_ax",
        REGS_1 = "pt_regs" "di",
        REGS_2 = "pt_regs" "si",
        REGS_3 = "pt_regs" "dx",
        REGS_4 = "pt_regs" "r10",
        REGS_5 = "pt_regs" "r8",
        REGS_6 = "pt_regs" "r9",
    }
    where_present {
        // Until 6.5.
        PROTO_SEND_PAGE = "proto_ops" "sendpage",
        // Until 6.17 the mounts of a filesystem are in a `list_head`, since then in a list of pointers.
        MOUNT_INSTANCE = "mount" "mnt_instance",
        MOUNT_NEXT = "mount" "mnt_next_for_sb",
        // Since 6.15.
        REQUEST_KIND = "landlock_request" "type",
        REQUEST_OBJECT = "landlock_request" "audit.type",
        REQUEST_DENTRY = "landlock_request" "audit.u.path.dentry",
        REQUEST_MOUNT = "landlock_request" "audit.u.path.mnt",
        REQUEST_ACCESS = "landlock_request" "access",
        REQUEST_TASK = "landlock_request" "audit.u.tsk",
        REQUEST_IOCTL = "landlock_request" "audit.u.op",
        IOCTL_DENTRY = "lsm_ioctlop_audit" "path.dentry",
        IOCTL_MOUNT = "lsm_ioctlop_audit" "path.mnt",
    }
}
