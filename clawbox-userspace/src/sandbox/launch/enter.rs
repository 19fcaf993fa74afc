//! What the child does between fork and exec: system calls in a fixed order, and nothing else.
//! No allocation, no lock, no panic: another thread may have held the allocator at the fork.

use std::sync::OnceLock;

use nix::errno::Errno;
use nix::libc::{self, c_long, gid_t, uid_t};
use seccompiler::{BpfProgram, BpfProgramRef};

use super::capabilities;
use super::joined::Joined;
use super::namespaces::Namespaces;
use super::seccomp;
use crate::sandbox::init;

/// The steps, in their order; each needs what the ones after it take away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Step {
    InheritedFiles,
    CoreLimit,
    Hide,
    Join,
    PrivateIpc,
    PrivateUts,
    PrivateCgroup,
    PrivateMounts,
    Propagation,
    OwnProc,
    OwnTmp,
    Workdir,
    LateRules,
    Securebits,
    BoundingSet,
    Groups,
    Gid,
    Uid,
    Capabilities,
    Check,
    NoNewPrivileges,
    Landlock,
    Seccomp,
    Init,
}

impl Step {
    const ALL: [Self; 24] = [
        Self::InheritedFiles,
        Self::CoreLimit,
        Self::Hide,
        Self::Join,
        Self::PrivateIpc,
        Self::PrivateUts,
        Self::PrivateCgroup,
        Self::PrivateMounts,
        Self::Propagation,
        Self::OwnProc,
        Self::OwnTmp,
        Self::Workdir,
        Self::LateRules,
        Self::Securebits,
        Self::BoundingSet,
        Self::Groups,
        Self::Gid,
        Self::Uid,
        Self::Capabilities,
        Self::Check,
        Self::NoNewPrivileges,
        Self::Landlock,
        Self::Seccomp,
        Self::Init,
    ];

    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step as u8 == byte)
    }

    /// What it does, and what to look at when it fails.
    pub(super) fn describe(self) -> (&'static str, &'static str) {
        match self {
            Self::InheritedFiles => ("close inherited files", "needs Linux 5.11 or newer"),
            Self::CoreLimit => ("set the core file limit to 0", "check the container's seccomp"),
            Self::Hide => {
                ("keep its memory from other processes", "check the host's security modules")
            }
            Self::Join => (
                "enter the namespaces of its first process",
                "check that clawbox has CAP_SYS_ADMIN and CAP_SYS_CHROOT",
            ),
            Self::PrivateIpc
            | Self::PrivateUts
            | Self::PrivateCgroup
            | Self::PrivateMounts
            | Self::Propagation
            | Self::OwnProc
            | Self::OwnTmp => self.describe_own(),
            Self::Workdir => (
                "enter the directory to start in",
                "name one with --workdir that is still there below the sandbox's own mounts",
            ),
            Self::LateRules => (
                "add the Landlock rules for its own /proc and /tmp",
                "take paths that only the host's /proc has out of filesystem_policy, or set \
                 `landlock.compatibility: best_effort`",
            ),
            Self::Securebits => ("lock the securebits", "run clawbox as root"),
            Self::BoundingSet => ("empty the capability bounding set", "run clawbox as root"),
            Self::Groups => ("set the supplementary groups", "run clawbox as root"),
            Self::Gid => ("set the group", "run clawbox as root"),
            Self::Uid => (
                "set the user",
                "run clawbox as root, and check that the user's process limit is not reached",
            ),
            Self::Capabilities => ("give up capabilities", "check the host's security modules"),
            Self::Check => (
                "confirm that privileges are gone",
                "do not run anything: report this with the output of `clawbox doctor`",
            ),
            Self::NoNewPrivileges => ("set no_new_privs", "check the container's seccomp"),
            Self::Landlock => (
                "apply the Landlock ruleset",
                "check that no more than 15 Landlock sandboxes are already nested",
            ),
            Self::Seccomp => ("apply the seccomp filter", "check the container's seccomp"),
            Self::Init => (
                "start the command beside its process 1",
                "check that the user's process limit is not reached, or run with --share pid",
            ),
        }
    }

    /// The same for what the sandbox gets one of its own of.
    fn describe_own(self) -> (&'static str, &'static str) {
        match self {
            Self::PrivateIpc => (
                "make a private IPC namespace",
                "check that user.max_ipc_namespaces is not reached, or run with --share ipc",
            ),
            Self::PrivateUts => (
                "make a UTS namespace of its own",
                "check that user.max_uts_namespaces is not reached, or run with --share uts",
            ),
            Self::PrivateCgroup => (
                "make a cgroup namespace of its own",
                "check that user.max_cgroup_namespaces is not reached, or run with --share cgroup",
            ),
            Self::PrivateMounts => (
                "make a mount namespace of its own",
                "check that user.max_mnt_namespaces is not reached, or run with --share mount",
            ),
            Self::Propagation => (
                "part its mounts from the host's",
                "check the host's security modules, or run with --share mount",
            ),
            Self::OwnProc => (
                "mount a /proc of its own",
                "check the host's security modules, set `landlock.compatibility: best_effort`, or \
                 run with --share pid",
            ),
            // A `/tmp`.
            _ => (
                "mount a /tmp of its own",
                "check the host's security modules, set `landlock.compatibility: best_effort`, or \
                 run with --share tmp",
            ),
        }
    }
}

/// Everything that the steps need, as plain numbers and ready-made buffers.
#[derive(Debug)]
pub(super) struct Plan {
    /// What of the host it does not see.
    pub(super) namespaces: Namespaces,
    /// Namespaces of a sandbox that runs, which are entered in place of making any.
    pub(super) joined: Option<Joined>,
    /// Whether CAP_SETPCAP is there to empty the bounding set.
    pub(super) drop_bounding_set: bool,
    /// Whom to become.
    pub(super) user: Option<Credentials>,
    /// The Landlock ruleset and its flags.
    pub(super) ceiling: super::landlock::Ceiling,
    /// The seccomp filters.
    pub(super) filters: Filters,
}

/// The seccomp filters of a sandbox: there are two kinds of them, each compiled once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filters {
    /// Whether sockets for echo requests are left.
    pub(super) ping: bool,
    pub(super) all: BpfProgramRef<'static>,
    /// For process 1, on top of the other.
    pub(super) init: BpfProgramRef<'static>,
}

impl Filters {
    /// `ping`: leave sockets for echo requests.
    pub(super) fn of(ping: bool) -> Result<Self, seccompiler::BackendError> {
        static ALL: [OnceLock<BpfProgram>; 2] = [OnceLock::new(), OnceLock::new()];
        static INIT: OnceLock<BpfProgram> = OnceLock::new();
        let once = |place: &'static OnceLock<BpfProgram>, compile: &dyn Fn() -> _| {
            let made = match place.get() {
                Some(made) => made,
                None => {
                    let made: BpfProgram = compile()?;
                    place.get_or_init(|| made)
                }
            };
            Ok::<_, seccompiler::BackendError>(made.as_slice())
        };
        let all = once(&ALL[usize::from(ping)], &|| seccomp::compile(ping))?;
        Ok(Self { ping, all, init: once(&INIT, &seccomp::compile_for_init)? })
    }
}

/// Numeric credentials.
#[derive(Debug)]
pub(super) struct Credentials {
    pub(super) uid: uid_t,
    pub(super) gid: gid_t,
    pub(super) groups: Vec<gid_t>,
}

/// Goes through all steps; on failure says which one and the errno. What can be gone without is
/// told as it happens, with a number: the errno, or for a rule its position.
///
/// With a pid namespace the caller is process 1 of it: it stays behind, and what returns is its
/// child.
pub(super) fn run(plan: &Plan, went_without: &dyn Fn(Step, u8)) -> Result<(), (Step, Errno)> {
    let at = |step: Step| move |errno: Errno| (step, errno);
    hide_inherited_files().map_err(at(Step::InheritedFiles))?;
    forbid_core_files().map_err(at(Step::CoreLimit))?;
    if let Some(joined) = &plan.joined {
        // Others are there already, and see it. Landlock keeps them from tracing what is not of their
        // domain; this keeps everybody without capabilities.
        hide().map_err(at(Step::Hide))?;
        joined.enter().map_err(at(Step::Join))?;
    }
    let own_tmp = plan.namespaces.make(went_without)?;
    plan.ceiling.add_late(own_tmp, went_without).map_err(at(Step::LateRules))?;
    if plan.drop_bounding_set {
        capabilities::lock_securebits().map_err(at(Step::Securebits))?;
        capabilities::empty_bounding_set().map_err(at(Step::BoundingSet))?;
    }
    if let Some(user) = &plan.user {
        let (count, list) = (user.groups.len() as c_long, user.groups.as_ptr() as c_long);
        call2(libc::SYS_setgroups, count, list).map_err(at(Step::Groups))?;
        set_all_ids(libc::SYS_setresgid, user.gid).map_err(at(Step::Gid))?;
        set_all_ids(libc::SYS_setresuid, user.uid).map_err(at(Step::Uid))?;
    }
    capabilities::empty().map_err(at(Step::Capabilities))?;
    check(plan).map_err(at(Step::Check))?;
    if let Some(joined) = &plan.joined {
        // Another user may be seen again, where `fs.suid_dumpable` says so.
        hide().map_err(at(Step::Hide))?;
        joined.go_to_workdir().map_err(at(Step::Workdir))?;
    }
    capabilities::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(at(Step::NoNewPrivileges))?;
    restrict(&plan.ceiling).map_err(at(Step::Landlock))?;
    filter(plan.filters.all).map_err(at(Step::Seccomp))?;
    if plan.namespaces.pid {
        init::start(plan.filters.init).map_err(at(Step::Init))?;
    }
    Ok(())
}

/// Marks everything but stdin, stdout and stderr to be closed by exec.
fn hide_inherited_files() -> Result<(), Errno> {
    // SAFETY: numbers only; CLOSE_RANGE_CLOEXEC closes nothing before exec.
    let answer =
        unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(answer).map(drop)
}

/// Until its exec nobody without capabilities may look at its memory and descriptors.
fn hide() -> Result<(), Errno> {
    capabilities::prctl(libc::PR_SET_DUMPABLE, 0).map(drop)
}

fn forbid_core_files() -> Result<(), Errno> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel only reads `none`, which outlives the call.
    Errno::result(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) }).map(drop)
}

/// Real, effective and saved id at once, for this thread: after fork there is no other.
fn set_all_ids(number: c_long, id: u32) -> Result<(), Errno> {
    // SAFETY: setresuid and setresgid take three numbers.
    Errno::result(unsafe { libc::syscall(number, id, id, id) }).map(drop)
}

/// For calls whose arguments are numbers, or a pointer and its length that the plan owns.
fn call2(number: c_long, first: c_long, second: c_long) -> Result<(), Errno> {
    // SAFETY: the callers pass numbers, or the plan's own buffer together with its true length.
    Errno::result(unsafe { libc::syscall(number, first, second) }).map(drop)
}

/// Does not trust that dropping worked: looks, and tries to go back.
fn check(plan: &Plan) -> Result<(), Errno> {
    if !capabilities::are_empty()? {
        return Err(Errno::EPERM);
    }
    let Some(user) = &plan.user else {
        return Ok(());
    };
    let (mut real, mut effective, mut saved) = (0, 0, 0);
    // SAFETY: getresuid writes three ids to three live variables.
    Errno::result(unsafe { libc::getresuid(&mut real, &mut effective, &mut saved) })?;
    if [real, effective, saved] != [user.uid; 3] {
        return Err(Errno::EPERM);
    }
    // SAFETY: getresgid writes three ids to three live variables.
    Errno::result(unsafe { libc::getresgid(&mut real, &mut effective, &mut saved) })?;
    if [real, effective, saved] != [user.gid; 3] {
        return Err(Errno::EPERM);
    }
    match (set_all_ids(libc::SYS_setresuid, 0), set_all_ids(libc::SYS_setresgid, 0)) {
        (Err(Errno::EPERM), Err(Errno::EPERM)) => Ok(()),
        _ => Err(Errno::EPERM),
    }
}

fn restrict(ceiling: &super::landlock::Ceiling) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    // SAFETY: a descriptor that the plan owns, and a number.
    let answer = unsafe {
        libc::syscall(libc::SYS_landlock_restrict_self, ceiling.ruleset.as_raw_fd(), ceiling.flags)
    };
    Errno::result(answer).map(drop)
}

fn filter(program: BpfProgramRef<'_>) -> Result<(), Errno> {
    // seccompiler sets no_new_privs once more and calls seccomp(2); it does not allocate.
    seccompiler::apply_filter(program).map_err(|error| match error {
        seccompiler::Error::Seccomp(error) | seccompiler::Error::Prctl(error) => {
            Errno::from_raw(error.raw_os_error().unwrap_or(libc::EINVAL))
        }
        _ => Errno::EINVAL,
    })
}
