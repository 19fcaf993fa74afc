//! BPF LSM programs: which hooks this kernel has, in which form, and whether they are all in place.
//! All or none: a set with a hole would be taken for the whole.

use aya::programs::{FEntry, FExit, Lsm, ProgramError};
use aya::{Btf, Ebpf};
use serde::Serialize;
use serde_json::{Value, json};

use super::boot;
use super::btf::KernelTypes;
use super::load::{AttachError, LoadError, NamedLink, attach};
use super::probe::Kernel;

/// A program and its hook.
struct Hook {
    program: &'static str,
    hook: &'static str,
    /// With how many arguments, where kernels differ.
    arguments: Option<usize>,
    /// What covers for it on a kernel that does not have it; without that, the kernel is too old.
    covered: Option<&'static str>,
}

const fn hook(name: &'static str) -> Hook {
    Hook { program: name, hook: name, arguments: None, covered: None }
}

const fn newer(name: &'static str, covered: &'static str) -> Hook {
    Hook { covered: Some(covered), ..hook(name) }
}

const fn form(program: &'static str, hook: &'static str, arguments: usize) -> Hook {
    let arguments = Some(arguments);
    Hook { program, hook, arguments, covered: Some("another form of it") }
}

/// What passes by the hooks of sockets.
const SPLICE: Hook = Hook { program: "socket_splice", ..hook("file_permission") };

const HOOKS: &[Hook] = &[
    hook("file_open"),
    hook("file_receive"),
    hook("path_mknod"),
    hook("path_mkdir"),
    hook("path_symlink"),
    hook("path_unlink"),
    hook("path_rmdir"),
    hook("path_link"),
    hook("path_rename"),
    hook("path_truncate"),
    newer("file_truncate", "path_truncate, which ftruncate came by before 6.2"),
    hook("path_chmod"),
    hook("path_chown"),
    hook("file_ioctl"),
    form("inode_setattr_2", "inode_setattr", 2),
    form("inode_setattr_3", "inode_setattr", 3),
    hook("inode_setxattr"),
    hook("inode_removexattr"),
    newer("inode_set_acl", "inode_setxattr, which ACLs came by before 6.2"),
    newer("inode_remove_acl", "inode_removexattr, which ACLs came by before 6.2"),
    hook("bprm_creds_for_exec"),
    hook("bprm_check_security"),
    hook("bprm_committed_creds"),
    hook("mmap_file"),
    hook("file_mprotect"),
    hook("socket_create"),
    hook("socket_listen"),
    hook("sock_graft"),
    hook("socket_sendmsg"),
    hook("socket_recvmsg"),
    hook("socket_setsockopt"),
    SPLICE,
    hook("ptrace_access_check"),
    hook("task_kill"),
    hook("sb_mount"),
    hook("sb_umount"),
    hook("sb_remount"),
    hook("sb_pivotroot"),
    hook("move_mount"),
    newer("userns_create", "seccomp"),
    hook("bpf"),
    hook("perf_event_open"),
    hook("kernel_read_file"),
    hook("kernel_load_data"),
    newer("uring_override_creds", "seccomp"),
    newer("uring_sqpoll", "seccomp"),
    newer("uring_cmd", "seccomp"),
    newer("uring_allowed", "seccomp, and before 6.18 uring_sqpoll and uring_cmd"),
    hook("path_chroot"),
    hook("inode_unlink"),
    hook("unix_stream_connect"),
    hook("unix_may_send"),
    hook("task_setrlimit"),
    hook("task_setnice"),
    hook("task_setioprio"),
    hook("task_setscheduler"),
    hook("task_setpgid"),
    hook("task_movememory"),
    hook("task_prctl"),
    newer("key_alloc", "seccomp; a kernel built without keys has none"),
    newer("key_permission", "seccomp; a kernel built without keys has none"),
];

/// Whether BPF LSM programs decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LsmState {
    /// Hooks that are in place; none if the layer is absent.
    pub hooks: Vec<&'static str>,
    /// Why the layer is absent; empty if it is not.
    pub why: String,
    /// Why what the backstops refuse is not recorded, or, where the layer is there, not all of it.
    pub unrecorded: Option<String>,
}

/// What is coarser where BPF LSM programs do not decide. One list for `doctor`, `policy check` and
/// the first record of a run.
pub const COARSER: &[&str] = &[
    "every program of a sandbox may use the same files: `filesystem_policy.rules` stay closed for \
     all",
    "no islands: a closed or read-only path below a writable one stays writable",
    "what a sandbox can write it can also execute, `execution.from_writable` notwithstanding",
    "what a running sandbox may use of files can be narrowed or widened only by starting it again",
    "refusals are recorded only with `run --refusals`, when the system call returns, with the path \
     as the program gave it; whether Landlock or the file's own permissions refused cannot be told",
];

impl LsmState {
    pub(super) fn absent(why: impl Into<String>) -> Self {
        Self { hooks: Vec::new(), why: why.into(), unrecorded: None }
    }

    /// What the first record of a run says of files: the layer that decides, or what is coarser
    /// without it and who tells refusals then.
    #[must_use]
    pub fn layers(&self) -> Vec<Value> {
        if self.is_active() {
            let lsm = json!({
                "layer": "lsm",
                "state": "full",
                "actual": self.hooks,
                "self_test": "denied",
            });
            let refusals = self.unrecorded.as_ref();
            let refusals =
                refusals.map(|why| json!({ "layer": "refusals", "state": "partial", "why": why }));
            return [lsm].into_iter().chain(refusals).collect();
        }
        let refusals = match &self.unrecorded {
            None => json!({ "layer": "refusals", "state": "full", "actual": "system-call exit" }),
            Some(why) => json!({ "layer": "refusals", "state": "absent", "why": why }),
        };
        let lsm = json!({ "layer": "lsm", "state": "absent", "why": self.why, "coarser": COARSER });
        vec![lsm, refusals]
    }

    /// Whether files, execution and other processes are decided per binary.
    #[must_use]
    pub fn is_active(&self) -> bool {
        !self.hooks.is_empty()
    }
}

/// Why this kernel runs no BPF LSM programs, as far as one can tell without loading one. A program
/// that is attached while `bpf` is not in the list is never run, and nobody says so.
#[must_use]
pub fn refusal() -> Option<String> {
    match &Kernel::here().security_modules {
        super::probe::Answer::Yes(modules) => {
            (!modules.iter().any(|module| module == "bpf")).then(|| {
                "`bpf` is not among the kernel's active security modules; `clawbox doctor` says \
                 how to add it"
                    .to_owned()
            })
        }
        super::probe::Answer::No(why) | super::probe::Answer::Unknown(why) => Some(why.clone()),
    }
}

/// As [`refusal`], but for root by trying: a kernel may have `bpf` in its list and still refuse.
#[must_use]
pub fn refusal_when_tried() -> Option<String> {
    if let Some(why) = refusal() {
        return Some(why);
    }
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let types = Btf::from_sys_fs().ok()?;
    let mut ebpf = aya::EbpfLoader::new().btf(Some(&types)).load(super::load::OBJECT).ok()?;
    let program: &mut Lsm = ebpf.program_mut("path_chroot")?.try_into().ok()?;
    match program.load("path_chroot", &types) {
        // Without this kernel's offsets the verifier may refuse the program: that is another error.
        Err(error) if is_forbidden(&error) => Some(refused("path_chroot", &error)),
        _ => None,
    }
}

fn is_forbidden(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. }
        if io_error.raw_os_error() == Some(nix::libc::EPERM))
}

/// Attaches every hook, or none.
///
/// # Errors
/// The object lacks a program.
pub fn attach_all(
    ebpf: &mut Ebpf,
    types: &Btf,
    kernel: &KernelTypes,
) -> Result<(Vec<NamedLink>, LsmState), LoadError> {
    if let Some(why) = refusal() {
        return Ok((Vec::new(), LsmState::absent(why)));
    }
    let (mut links, mut hooks) = (Vec::new(), Vec::new());
    for Hook { program, hook, arguments, covered } in HOOKS {
        let has = kernel.hook_arguments(hook);
        if has.is_none() && covered.is_none() {
            let why = format!("this kernel has no LSM hook `{hook}`");
            return Ok((Vec::new(), LsmState::absent(why)));
        }
        let is_other = arguments.is_some_and(|wanted| has != Some(wanted));
        if has.is_none() || is_other {
            continue;
        }
        let attached = attach(ebpf, program, |program| {
            let program: &mut Lsm = program.try_into()?;
            program.load(hook, types)?;
            let id = program.attach()?;
            Ok::<_, AttachError>(program.take_link(id)?.into())
        });
        match attached {
            Ok(link) => links.push((*program, link)),
            Err(LoadError::Program { source, .. }) => {
                return Ok((Vec::new(), LsmState::absent(refused(hook, &source))));
            }
            Err(other) => return Err(other),
        }
        hooks.push(*hook);
    }
    let modules = Kernel::probe().security_modules;
    let is_asked_late = modules.yes().is_some_and(|active| boot::is_landlock_first(active));
    let mut unrecorded = None;
    if is_asked_late {
        match attach_ceiling(ebpf, types, kernel) {
            Ok(watching) => links.extend(watching),
            // Enforcement does not depend on them; that the trail lacks something is said.
            Err(error) => {
                unrecorded = Some(format!(
                    "the kernel asks Landlock before BPF LSM programs, and its functions that would \
                     tell what it refuses cannot be watched ({error}): with `bpf` before `landlock` \
                     in the boot parameter `lsm=`, the programs are asked first"
                ));
            }
        }
    }
    Ok((links, LsmState { hooks, why: String::new(), unrecorded }))
}

/// Programs that tell what Landlock refuses, with the functions of the kernel that they watch: its
/// hooks, as far as this kernel has them.
const CEILING: &[(&str, &str)] = &[
    ("ceiling_mknod", "hook_path_mknod"),
    ("ceiling_mkdir", "hook_path_mkdir"),
    ("ceiling_symlink", "hook_path_symlink"),
    ("ceiling_unlink", "hook_path_unlink"),
    ("ceiling_rmdir", "hook_path_rmdir"),
    ("ceiling_rename", "hook_path_rename"),
    ("ceiling_link", "hook_path_link"),
    ("ceiling_truncate", "hook_path_truncate"),
    ("ceiling_file_truncate", "hook_file_truncate"),
    ("ceiling_unix_socket", "hook_unix_find"),
];

/// The rest: by what is called for a refusal alone, or, before 6.15, by the hooks.
const CEILING_DENIAL: (&str, &str) = ("ceiling_denial", "landlock_log_denial");
const CEILING_BEFORE: &[(&str, &str)] = &[
    ("ceiling_open", "hook_file_open"),
    ("ceiling_ioctl", "hook_file_ioctl"),
    ("ceiling_trace", "hook_ptrace_access_check"),
    ("ceiling_signal", "hook_task_kill"),
    ("ceiling_abstract_stream", "hook_unix_stream_connect"),
    ("ceiling_abstract_datagram", "hook_unix_may_send"),
];

/// Attaches the programs that tell what Landlock refuses before ours are asked.
fn attach_ceiling(
    ebpf: &mut Ebpf,
    types: &Btf,
    kernel: &KernelTypes,
) -> Result<Vec<NamedLink>, LoadError> {
    let rest: &[_] =
        if kernel.has_function(CEILING_DENIAL.1) { &[CEILING_DENIAL] } else { CEILING_BEFORE };
    // Without the first, which tells opens, none is attached, and that is said.
    let is_wanted = |function| function == rest[0].1 || kernel.has_function(function);
    let wanted = rest.iter().chain(CEILING).filter(|(_, function)| is_wanted(function));
    let watched = wanted.map(|&(program, function)| {
        let link = attach(ebpf, program, |found| {
            if (program, function) == CEILING_DENIAL {
                let program: &mut FEntry = found.try_into()?;
                program.load(function, types)?;
                let id = program.attach()?;
                return Ok::<_, AttachError>(program.take_link(id)?.into());
            }
            let program: &mut FExit = found.try_into()?;
            program.load(function, types)?;
            let id = program.attach()?;
            Ok(program.take_link(id)?.into())
        })?;
        Ok((program, link))
    });
    watched.collect()
}

/// Programs that judge the use of files that are open already, with their hooks.
const OPEN_FILES: &[(&str, &str)] = &[
    ("file_permission", "file_permission"),
    ("mmap_file_again", "mmap_file"),
    ("file_mprotect_again", "file_mprotect"),
];

/// Attaches the programs that are needed from the first change of a policy on. All or none.
///
/// # Errors
/// The kernel refuses one, though it has taken those of [`attach_all`].
pub(super) fn attach_for_open_files(ebpf: &mut Ebpf) -> Result<Vec<NamedLink>, LoadError> {
    let types = Btf::from_sys_fs()?;
    let attached = OPEN_FILES.iter().map(|&(program, hook)| {
        let link = attach(ebpf, program, |program| {
            let program: &mut Lsm = program.try_into()?;
            program.load(hook, &types)?;
            let id = program.attach()?;
            Ok::<_, AttachError>(program.take_link(id)?.into())
        })?;
        Ok((program, link))
    });
    attached.collect()
}

fn refused(hook: &str, error: &ProgramError) -> String {
    if is_forbidden(error) {
        format!("the kernel refuses BPF LSM programs (`{hook}`: permission denied)")
    } else {
        format!("the kernel refused the program for `{hook}`: {error}")
    }
}
