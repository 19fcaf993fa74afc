//! What of the host a sandbox does not see: its own namespaces, `/proc` and `/tmp`. Decided in the
//! parent, made in the child by system calls alone. Nothing that is enforced depends on any of it.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc::{self, c_int, c_ulong};

use super::Request;
use super::enter::Step;
use super::report::Layer;

/// Where the sandbox's own processes are shown.
pub(super) const PROC: &str = "/proc";

/// Where programs put what they do not want to keep.
pub const TMP: &str = "/tmp";

/// A part of the host that a sandbox gets one of its own of, unless it is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Process numbers and /proc
    Pid,
    /// Mounts, and with them /proc and /tmp
    Mount,
    /// System V and POSIX message IPC
    Ipc,
    /// Host name
    Uts,
    /// The root of control groups
    Cgroup,
    /// /tmp
    Tmp,
}

/// What the layer of [`Part::Pid`] holds beside its namespace.
pub(super) const OWN_PROC: &str = "a /proc of its own processes";

/// Why a layer gives less than it could: the operator wants it so.
const ASKED: &str = "shared: asked for";

impl Part {
    /// Every part, in the order in which they are reported.
    pub const ALL: [Self; 6] =
        [Self::Pid, Self::Mount, Self::Ipc, Self::Uts, Self::Cgroup, Self::Tmp];

    /// The layer's stable name.
    pub const fn layer(self) -> &'static str {
        match self {
            Self::Pid => "namespaces.pid",
            Self::Mount => "namespaces.mount",
            Self::Ipc => "namespaces.ipc",
            Self::Uts => "namespaces.uts",
            Self::Cgroup => "namespaces.cgroup",
            Self::Tmp => "namespaces.tmp",
        }
    }

    pub(super) const fn gives(self) -> &'static str {
        match self {
            Self::Pid => "own process numbers",
            Self::Mount => "own mounts",
            Self::Ipc => "private System V and POSIX message IPC",
            Self::Uts => "own host name",
            Self::Cgroup => "own root of control groups",
            Self::Tmp => "a private /tmp",
        }
    }

    /// Its name in `/proc/self/ns`; `/tmp` is no namespace.
    pub const fn kernel_name(self) -> Option<&'static str> {
        match self {
            Self::Pid => Some("pid"),
            Self::Mount => Some("mnt"),
            Self::Ipc => Some("ipc"),
            Self::Uts => Some("uts"),
            Self::Cgroup => Some("cgroup"),
            Self::Tmp => None,
        }
    }
}

/// What the child makes.
#[derive(Debug)]
pub(super) struct Namespaces {
    /// Not made by the child: it is born in it.
    pub(super) pid: bool,
    pub(super) ipc: bool,
    pub(super) uts: bool,
    pub(super) cgroup: bool,
    pub(super) mount: bool,
    /// A procfs over `/proc`.
    pub(super) proc: bool,
    /// A tmpfs over `/tmp`, with these options.
    pub(super) tmp: Option<CString>,
    /// Entered once more after the mounts: a descriptor of the host's `/proc` would lead past them.
    pub(super) workdir: Option<CString>,
    /// A mount that the host refuses is an error, not a lack to report.
    pub(super) required: bool,
}

/// Decides what is made for a request and reports it. `privileged` is whether CAP_SYS_ADMIN is
/// there, without which nothing is.
pub(super) fn plan(request: &Request, privileged: bool) -> (Namespaces, Vec<Layer>) {
    let is_shared = |part: Part| request.shared.contains(&part);
    let has = |part: Part| {
        let name = part.kernel_name().unwrap_or_default();
        !is_shared(part) && privileged && Path::new("/proc/self/ns").join(name).exists()
    };
    let (pid, mount) = (has(Part::Pid), has(Part::Mount));
    let proc = pid && mount;
    let tmp = if mount { host_tmp(request) } else { Some(NEEDS_MOUNTS.to_owned()) };
    let own_tmp = tmp.is_none();
    let layers = Part::ALL
        .into_iter()
        .map(|part| {
            let mut requested = vec![part.gives()];
            let given = if part == Part::Tmp { own_tmp } else { has(part) };
            let mut actual = if given { requested.clone() } else { Vec::new() };
            let mut why = lack(part);
            if part == Part::Pid {
                requested.push(OWN_PROC);
                actual.extend(proc.then_some(OWN_PROC));
                why = if pid && !mount { NEEDS_MOUNTS.to_owned() } else { why };
            }
            why = if part == Part::Tmp { tmp.clone().unwrap_or_default() } else { why };
            why = if is_shared(part) { ASKED.to_owned() } else { why };
            Layer::new(part.layer(), requested, actual, why)
        })
        .collect();
    let made = Namespaces {
        pid,
        mount,
        ipc: has(Part::Ipc),
        uts: has(Part::Uts),
        cgroup: has(Part::Cgroup),
        proc,
        tmp: own_tmp.then(|| tmp_options(request)),
        workdir: CString::new(request.workdir.as_os_str().as_bytes()).ok(),
        required: request.hard_requirement,
    };
    (made, layers)
}

const NEEDS_MOUNTS: &str = "it needs mounts of its own, which the sandbox does not have";

fn lack(part: Part) -> String {
    let kind = part.kernel_name().unwrap_or_default();
    format!("clawbox lacks CAP_SYS_ADMIN, or the kernel has no {kind} namespaces")
}

/// Whether the operator has said that a layer need not be whole.
pub(super) fn is_waived(request: &Request, layer: &str) -> bool {
    let given_up = |part: Part| request.shared.contains(&part) && part.layer() == layer;
    let without_mounts = request.shared.contains(&Part::Mount) && layer == Part::Pid.layer();
    Part::ALL.into_iter().any(given_up) || without_mounts
}

/// Why `/tmp` is the host's; `None` where the sandbox gets its own.
pub(super) fn host_tmp(request: &Request) -> Option<String> {
    if request.shared.contains(&Part::Tmp) {
        return Some(ASKED.to_owned());
    }
    if request.shared.contains(&Part::Mount) {
        return Some(NEEDS_MOUNTS.to_owned());
    }
    let Ok(tmp) = fs::canonicalize(TMP) else {
        return Some("there is no /tmp on this host".to_owned());
    };
    // By its own name and by what it leads to: either may be what a program uses.
    let spelled = |path: &Path| -> Vec<PathBuf> {
        [Some(path.to_owned()), fs::canonicalize(path).ok()].into_iter().flatten().collect()
    };
    let below = |path: &PathBuf| path.starts_with(&tmp) || path.starts_with(TMP);
    let listed = request.read_only.iter().chain(&request.read_write);
    for path in listed {
        if spelled(path).iter().any(|path| below(path) || tmp.starts_with(path)) {
            return Some(format!("the policy lists `{}`", path.display()));
        }
    }
    let mut needed = [&request.workdir].into_iter().chain(&request.needed);
    let needed = needed.find(|path| spelled(path).iter().any(below));
    needed.map(|path| format!("the run needs `{}`", path.display()))
}

/// A quarter of the memory: what is in a tmpfs leaves memory only for swap, and with the kernel's
/// own limit of a half two sandboxes could fill the host. The files cost memory of the kernel's.
fn tmp_options(request: &Request) -> CString {
    let owner = request.user.as_ref().map_or((0, 0), |user| (user.uid(), user.gid()));
    let text = format!("mode=1777,size=25%,nr_inodes=400k,uid={},gid={}", owner.0, owner.1);
    // Never the default: the text has no zero byte.
    CString::new(text).unwrap_or_default()
}

impl Namespaces {
    /// For a process that makes none.
    pub(super) fn none() -> Self {
        let (pid, ipc, uts, cgroup, mount, proc) = Default::default();
        let (tmp, workdir) = (None, None);
        Self { pid, ipc, uts, cgroup, mount, proc, tmp, workdir, required: true }
    }

    /// Makes all but the pid namespace. Says whether `/tmp` is the sandbox's own, and reports what
    /// the host refuses. For the forked child, as root: system calls only.
    pub(super) fn make(&self, went_without: &dyn Fn(Step, u8)) -> Result<bool, (Step, Errno)> {
        let wanted = [
            (self.ipc, libc::CLONE_NEWIPC, Step::PrivateIpc),
            (self.uts, libc::CLONE_NEWUTS, Step::PrivateUts),
            // It begins at the cgroup that the process is in: entered or born in before this.
            (self.cgroup, libc::CLONE_NEWCGROUP, Step::PrivateCgroup),
            (self.mount, libc::CLONE_NEWNS, Step::PrivateMounts),
        ];
        for (_, flag, step) in wanted.into_iter().filter(|(wanted, ..)| *wanted) {
            unshare(flag).map_err(|errno| (step, errno))?;
        }
        if !self.mount {
            return Ok(false);
        }
        // The host's later mounts and unmounts come here, nothing of here goes there.
        mount(c"none", c"/", None, libc::MS_REC | libc::MS_SLAVE, None)
            .map_err(|errno| (Step::Propagation, errno))?;
        let closed = libc::MS_NOSUID | libc::MS_NODEV;
        let or_without = |step: Step, outcome: Result<(), Errno>| match outcome {
            Ok(()) => Ok(true),
            Err(errno) if self.required => Err((step, errno)),
            Err(errno) => {
                went_without(step, errno as u8);
                Ok(false)
            }
        };
        if self.proc {
            let outcome = mount(c"proc", c"/proc", Some(c"proc"), closed | libc::MS_NOEXEC, None);
            or_without(Step::OwnProc, outcome)?;
        }
        let own_tmp = match &self.tmp {
            Some(options) => {
                let outcome = mount(c"tmpfs", c"/tmp", Some(c"tmpfs"), closed, Some(options));
                or_without(Step::OwnTmp, outcome)?
            }
            None => false,
        };
        if let Some(workdir) = self.workdir.as_deref().filter(|path| !path.is_empty()) {
            // SAFETY: a string that the plan owns.
            Errno::result(unsafe { libc::chdir(workdir.as_ptr()) })
                .map_err(|errno| (Step::Workdir, errno))?;
        }
        Ok(own_tmp)
    }
}

fn unshare(flag: c_int) -> Result<(), Errno> {
    // SAFETY: takes a number.
    Errno::result(unsafe { libc::unshare(flag) }).map(drop)
}

fn mount(
    source: &CStr,
    target: &CStr,
    kind: Option<&CStr>,
    flags: c_ulong,
    options: Option<&CStr>,
) -> Result<(), Errno> {
    let or_null = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: strings that outlive the call, or null where the kernel takes null.
    let answer = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), or_null(kind), flags, or_null(options).cast())
    };
    Errno::result(answer).map(drop)
}

#[cfg(test)]
mod tests {
    use super::super::LayerState;
    use super::*;

    fn reported(request: &Request, part: Part) -> (LayerState, String) {
        let (_, layers) = plan(request, true);
        let layer = layers.into_iter().find(|layer| layer.layer == part.layer()).unwrap();
        (layer.state, layer.why)
    }

    #[test]
    fn all_parts_are_the_sandbox_s_own_unless_they_are_shared() {
        for part in Part::ALL {
            let own = reported(&Request::default(), part);
            assert_eq!(own, (LayerState::Full, String::new()), "{part:?}");
            let request = Request { shared: vec![part], ..Request::default() };
            assert_eq!(reported(&request, part), (LayerState::Absent, ASKED.to_owned()));
        }
    }

    #[test]
    fn shared_mounts_leave_the_host_s_proc_and_tmp() {
        let request = Request { shared: vec![Part::Mount], ..Request::default() };
        assert_eq!(reported(&request, Part::Pid), (LayerState::Partial, NEEDS_MOUNTS.to_owned()));
        assert_eq!(reported(&request, Part::Tmp), (LayerState::Absent, NEEDS_MOUNTS.to_owned()));
        let (made, _) = plan(&request, true);
        assert!(made.pid && !made.proc && made.tmp.is_none());
    }

    #[test]
    fn without_privileges_there_is_nothing_of_its_own() {
        let (made, layers) = plan(&Request::default(), false);
        assert!(!made.pid && !made.mount && made.tmp.is_none());
        assert!(layers.iter().all(|layer| layer.state == LayerState::Absent));
    }

    #[test]
    fn tmp_is_private_unless_something_of_the_run_is_there() {
        let paths = |text: &[&str]| text.iter().map(PathBuf::from).collect::<Vec<_>>();
        let tmp = |read_only: &[&str], workdir: &str, needed: &[&str]| {
            host_tmp(&Request {
                read_only: paths(read_only),
                workdir: workdir.into(),
                needed: paths(needed),
                ..Request::default()
            })
        };
        assert_eq!(tmp(&["/usr", "/tmpfiles"], "/", &["/usr/bin/true"]), None);
        for (read_only, workdir, needed) in [
            (&["/tmp"][..], "/usr", &[][..]),
            (&["/tmp/below"], "/usr", &[]),
            (&["/"], "/usr", &[]),
            (&[], "/tmp/below", &[]),
            (&[], "/usr", &["/tmp/tool"]),
        ] {
            let why = tmp(read_only, workdir, needed).unwrap();
            assert!(why.contains("`/"), "{why}");
        }
    }

    #[test]
    fn a_link_that_leads_to_tmp_counts_as_what_it_leads_to() {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(TMP, &link).unwrap();
        let request = Request { read_write: vec![link], ..Request::default() };
        assert!(host_tmp(&request).unwrap().contains("the policy lists"));
    }
}
