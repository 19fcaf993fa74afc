//! The backstops: what is applied to a sandbox's first process before it executes the command.
//! They need no agent and no BPF, cannot be taken off again, and are inherited by every child.

pub mod again;
mod capabilities;
mod enter;
pub mod identity;
pub mod joined;
pub mod landlock;
mod late_rules;
pub mod namespaces;
pub mod report;
mod seccomp;
pub mod syscalls;
#[cfg(test)]
mod tests;
pub mod wire;

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use nix::unistd::Uid;

pub use capabilities::empty_bounding_set;
use enter::{Credentials, Filters, Plan, Step};
pub use identity::{Identity, IdentityError};
use namespaces::Part;
pub use report::{BackstopReport, Layer, LayerState, SkippedPath};

/// What the backstops have to hold.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Paths below which everything may be read, listed and executed.
    pub read_only: Vec<PathBuf>,
    /// Paths below which everything may be done.
    pub read_write: Vec<PathBuf>,
    /// Unix sockets that may be reached where they are.
    pub unix_sockets: Vec<PathBuf>,
    /// Ports that any rule lets some binary connect or send to. 53 is added: DNS is redirected
    /// only after Landlock has judged it.
    pub connect_ports: Vec<u16>,
    /// Ports that the sandbox may listen on, and then also dial; 0 is "any that is free".
    pub bind_ports: Vec<u16>,
    /// Leave sockets for echo requests, whose every send the hooks judge.
    pub ping: bool,
    /// Hold the ports by Landlock too. It judges before the kernel hooks do, so that an attempt it
    /// refuses is missing from the audit trail: for policies that want every layer at that price.
    pub port_ceiling: bool,
    /// Whom to become; `None` keeps the caller's user.
    pub user: Option<Identity>,
    /// Refuse, rather than report, what cannot be applied.
    pub hard_requirement: bool,
    /// What the sandbox does not get one of its own of.
    pub shared: Vec<namespaces::Part>,
    /// Directory that the command starts in; empty keeps the caller's.
    pub workdir: PathBuf,
    /// Files that must be where they are on the host though the policy lists no tree with them:
    /// the command, and the programs and sockets that rules name.
    pub needed: Vec<PathBuf>,
}

impl Request {
    /// The trees that the sandbox may write: those of the policy, and a `/tmp` of its own.
    pub fn writable(&self) -> Vec<PathBuf> {
        self.read_write.iter().cloned().chain(self.own_tmp()).collect()
    }

    /// Where the sandbox has a `/tmp` of its own, if it does.
    pub fn own_tmp(&self) -> Option<PathBuf> {
        namespaces::host_tmp(self).is_none().then(|| namespaces::TMP.into())
    }
}

/// Why the backstops cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Nothing would hold files: refused whatever the policy says about best effort.
    #[error("no filesystem layer can be applied: {why}; {fix}")]
    NoFilesystemLayer {
        /// What the kernel said.
        why: &'static str,
        /// What to do.
        fix: &'static str,
    },
    /// A path of a policy with `hard_requirement` does not open.
    #[error(
        "`{path}` from filesystem_policy cannot be opened: {why}; create it, take it out of the \
         policy, or set `landlock.compatibility: best_effort`", path = path.display()
    )]
    MissingPath {
        /// As the policy spells it.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// A layer of a policy with `hard_requirement` is not whole.
    #[error(
        "`{layer}` would not be fully enforced (missing: {missing}): {why}; run on a kernel that \
         has it (`clawbox doctor` says which), or set `landlock.compatibility: best_effort`"
    )]
    NotFull {
        /// The layer's name.
        layer: &'static str,
        /// What would be missing.
        missing: String,
        /// Why.
        why: String,
    },
    /// A path that exists cannot be examined.
    #[error("cannot examine `{path}`: {source}; check its file system", path = path.display())]
    Path {
        /// As the policy spells it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// clawbox itself may not do what the request asks.
    #[error(
        "clawbox may not change to user `{user}`: it lacks CAP_SETUID and CAP_SETGID; run it \
         as root"
    )]
    NotPrivileged {
        /// Whom to become.
        user: String,
    },
    /// What the start had opened is something else by now.
    #[error(
        "`{path}` is not the file any more that the sandbox was given when it was started, and the agent was \
         restarted since: no further command can have the same backstops; start the sandbox anew",
        path = path.display()
    )]
    Changed {
        /// As the policy spells it.
        path: PathBuf,
    },
    /// The ruleset could not be built.
    #[error("cannot build the Landlock ruleset: {0}; check the paths of filesystem_policy")]
    Landlock(#[from] ::landlock::RulesetError),
    /// The filter could not be built.
    #[error(
        "cannot build the seccomp filter for {arch}: {source}; clawbox supports x86_64 and \
         aarch64",
        arch = std::env::consts::ARCH
    )]
    Seccomp {
        /// What seccompiler said.
        #[from]
        source: seccompiler::BackendError,
    },
    /// The system refused something that needs no privilege.
    #[error("cannot prepare the launch: {0}; check the limit of open files (ulimit -n)")]
    System(#[from] io::Error),
    /// A step failed in the child.
    #[error("the sandbox could not {step}: {source}; {fix}")]
    Step {
        /// What it tried to do.
        step: &'static str,
        /// What to look at.
        fix: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The command could not be executed after every step had succeeded.
    #[error(
        "cannot execute the command: {0}; it must be executable, and it, its interpreter and its \
         libraries below a path of filesystem_policy"
    )]
    Exec(io::Error),
}

/// Backstops that are ready to be applied, any number of times.
#[derive(Debug)]
pub struct Prepared {
    /// What the child has of them.
    pub entry: Arc<Entry>,
    applied: again::Applied,
    failed: io::PipeReader,
}

/// The child's part: all that it needs to apply them, and a way to say what failed.
#[derive(Debug)]
pub struct Entry {
    plan: Plan,
    /// Two bytes for each step that failed, see [`WENT_WITHOUT`]; the parent reads them.
    failed: OwnedFd,
}

/// In the first byte, beside the step's number: it could be gone without, and the second byte says
/// why. Else nothing was started.
const WENT_WITHOUT: u8 = 0x80;

/// Does everything that may fail, allocate or open a path, so that the child need not.
pub fn prepare(request: &Request) -> Result<(Prepared, BackstopReport), LaunchError> {
    let held = capabilities::effective().map_err(io::Error::from)?;
    let has = |capability: u32| held & (1 << capability) != 0;
    let (namespaces, mut layers) = namespaces::plan(request, has(capabilities::SYS_ADMIN));
    let built = landlock::build(request, &namespaces)?;
    if let (true, Some(skipped)) = (request.hard_requirement, built.skipped.first()) {
        let SkippedPath { path, why } = skipped.clone();
        return Err(LaunchError::MissingPath { path, why });
    }
    let user = credentials(request, has(capabilities::SETUID) && has(capabilities::SETGID))?;
    let drop_bounding_set = has(capabilities::SETPCAP);
    layers.splice(0..0, process_layers(request, drop_bounding_set));
    layers.extend(built.layers);
    layers.push(seccomp_layer());
    if request.hard_requirement {
        refuse_incomplete(request, &layers)?;
    }
    let filters = Filters::of(request.ping)?;
    let (ceiling, joined) = (built.ceiling, None);
    let plan = Plan { namespaces, joined, drop_bounding_set, user, ceiling, filters };
    let report = BackstopReport {
        landlock_abi: built.abi,
        landlock_abi_used: built.abi.min(landlock::NEWEST_ABI),
        layers,
        skipped_paths: built.skipped,
        writable_islands: built.islands,
    };
    Ok((Prepared::of(plan, built.applied)?, report))
}

/// The pid namespace that a child has to be born in.
#[derive(Clone, Copy, Debug)]
pub enum PidNamespace<'a> {
    /// The caller's.
    Same,
    /// A new one, as its process 1.
    New,
    /// One that is there.
    Of(&'a OwnedFd),
}

impl Entry {
    /// Applies the backstops to the calling thread, for good. To be called in a forked child,
    /// after it was put into its cgroup, as the last thing before exec: for
    /// [`std::os::unix::process::CommandExt::pre_exec`].
    ///
    /// Async-signal-safe: it makes system calls and does not allocate.
    pub fn enter(&self) -> io::Result<()> {
        // The pipe is empty but for bytes of earlier failures: this cannot block.
        let tell = |what: u8, why: u8| {
            let _ = nix::unistd::write(&self.failed, &[what, why]);
        };
        let went_without = |step: Step, why: u8| tell(step as u8 | WENT_WITHOUT, why);
        enter::run(&self.plan, &went_without).map_err(|(step, errno)| {
            tell(step as u8, errno as u8);
            io::Error::from_raw_os_error(errno as i32)
        })
    }

    /// Where [`Entry::enter`] must be called.
    pub fn pid_namespace(&self) -> PidNamespace<'_> {
        let joined = self.plan.joined.as_ref().and_then(joined::Joined::pid);
        match joined {
            Some(namespace) => PidNamespace::Of(namespace),
            None if self.plan.namespaces.pid => PidNamespace::New,
            None => PidNamespace::Same,
        }
    }
}

impl Prepared {
    fn of(plan: Plan, applied: again::Applied) -> Result<Self, LaunchError> {
        let (reader, writer) = io::pipe()?;
        nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
            .map_err(io::Error::from)?;
        let entry = Arc::new(Entry { plan, failed: writer.into() });
        Ok(Self { entry, applied, failed: reader })
    }

    /// What the child said, oldest first.
    fn told(&self) -> impl Iterator<Item = [u8; 2]> + '_ {
        std::iter::from_fn(|| {
            let mut bytes = [0; 2];
            (&self.failed).read_exact(&mut bytes).is_ok().then_some(bytes)
        })
    }

    /// Takes out of the report what the child, which now runs, went without.
    pub fn correct(&self, report: &mut BackstopReport) {
        for [what, why] in self.told().filter(|[what, _]| what & WENT_WITHOUT != 0) {
            let refused = || {
                let errno = nix::errno::Errno::from_raw(why.into());
                format!("the host refuses to mount it: {}", errno.desc())
            };
            match Step::from_byte(what & !WENT_WITHOUT) {
                Some(Step::OwnProc) => {
                    report.lost(Part::Pid.layer(), namespaces::OWN_PROC, &refused());
                }
                Some(Step::OwnTmp) => {
                    report.lost(Part::Tmp.layer(), Part::Tmp.gives(), &refused());
                }
                Some(Step::LateRules) => {
                    let rule = self.entry.plan.ceiling.in_proc.get(usize::from(why));
                    let path = rule.map(|rule| rule.path().to_owned()).unwrap_or_default();
                    report.skipped(path, "the sandbox's own /proc does not have it");
                }
                _ => {}
            }
        }
    }

    /// Turns the error of a spawn whose child called [`Entry::enter`] into what happened.
    pub fn explain(&self, error: io::Error) -> LaunchError {
        let step = self.told().find_map(|[what, _]| Step::from_byte(what));
        match step.map(Step::describe) {
            Some((step, fix)) => LaunchError::Step { step, fix, source: error },
            None => LaunchError::Exec(error),
        }
    }
}

fn credentials(request: &Request, may_change: bool) -> Result<Option<Credentials>, LaunchError> {
    let Some(user) = &request.user else {
        return Ok(None);
    };
    let already = nix::unistd::getuid().as_raw() == user.uid()
        && nix::unistd::getgid().as_raw() == user.gid();
    if may_change {
        let groups = user.groups().to_vec();
        Ok(Some(Credentials { uid: user.uid(), gid: user.gid(), groups }))
    } else if already {
        Ok(None)
    } else {
        Err(LaunchError::NotPrivileged { user: user.name().to_owned() })
    }
}

fn process_layers(request: &Request, bounding_set: bool) -> Vec<Layer> {
    let given = |on: bool, what: &'static str| if on { vec![what] } else { Vec::new() };
    let sets = "permitted, effective, inheritable and ambient sets empty";
    let bound = "bounding set empty and securebits locked";
    let mut capabilities = vec![sets];
    capabilities.extend(given(bounding_set, bound));
    let unprivileged = "an unprivileged user";
    let dropped = request.user.is_some() || !Uid::effective().is_root();
    let process = vec!["no_new_privs", "no core files", "inherited files closed"];
    vec![
        Layer::new("process", process.clone(), process, ""),
        Layer::new("capabilities", vec![sets, bound], capabilities, "clawbox lacks CAP_SETPCAP"),
        Layer::new(
            "user",
            vec![unprivileged],
            given(dropped, unprivileged),
            "runs as root: not dropped, because neither the policy nor --user names a user",
        ),
    ]
}

fn seccomp_layer() -> Layer {
    let all = vec!["system calls no agent needs", "odd sockets", "foreign ABIs"];
    Layer::new("seccomp", all.clone(), all, "")
}

/// The layers that `hard_requirement` needs whole: those behind a promise of the base language.
/// The others say in the report what they lack.
const HARD: [&str; 9] = [
    "namespaces.pid",
    "namespaces.mount",
    "namespaces.ipc",
    "namespaces.uts",
    "namespaces.cgroup",
    "capabilities",
    "landlock.files",
    "landlock.tcp_ports",
    "landlock.scopes",
];

fn refuse_incomplete(request: &Request, layers: &[Layer]) -> Result<(), LaunchError> {
    let lacks = |layer: &&Layer| layer.state != LayerState::Full && HARD.contains(&layer.layer);
    let waived = |layer: &&Layer| namespaces::is_waived(request, layer.layer);
    match layers.iter().filter(lacks).find(|layer| !waived(layer)) {
        None => Ok(()),
        Some(layer) => Err(LaunchError::NotFull {
            layer: layer.layer,
            missing: layer.missing().join(", "),
            why: layer.why.clone(),
        }),
    }
}
