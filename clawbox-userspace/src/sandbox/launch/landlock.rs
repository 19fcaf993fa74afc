//! The Landlock ruleset: a ceiling on files, ports, abstract sockets and signals, at the newest ABI
//! of the kernel. The parent builds it; the child gets one descriptor and need not allocate.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath,
    PathFd, PathFdError, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError,
    Scope,
};
use nix::errno::Errno;
use nix::libc;

use super::again::{Applied, Opened};
use super::enter::Step;
use super::late_rules::LateRule;
use super::namespaces::{Namespaces, PROC, TMP};
use super::report::{Layer, RULE_FOR_EVERY_PATH, SOME_SKIPPED, SkippedPath};
use super::{LaunchError, Request};

/// Every DNS question leaves for this port: the kernel hooks send it to clawbox's resolver, but
/// only after Landlock has judged the port that the program asked for.
const DNS_PORT: u16 = 53;

/// LANDLOCK_CREATE_RULESET_VERSION, from linux/landlock.h.
const ASK_VERSION: u32 = 1;
/// LANDLOCK_RESTRICT_SELF_LOG_NEW_EXEC_ON, from linux/landlock.h.
const LOG_AFTER_EXEC: u32 = 2;

/// The newest ABI that this build knows; what a newer kernel adds is not used.
pub const NEWEST_ABI: i32 = ABI::V10 as i32;

/// The ABI that first has something.
pub mod since {
    /// Moving files between directories; before, Landlock refuses it everywhere.
    pub const REFER: i32 = 2;
    /// truncate(2).
    pub const TRUNCATE: i32 = 3;
    /// TCP bind and connect by port.
    pub const TCP: i32 = 4;
    /// ioctl on devices.
    pub const IOCTL: i32 = 5;
    /// Abstract Unix sockets and signals.
    pub const SCOPES: i32 = 6;
    /// Denials in the kernel's audit log.
    pub const LOG: i32 = 7;
    /// Unix sockets that have a path.
    pub const UNIX_SOCKETS: i32 = 9;
    /// UDP bind, connect and send by port.
    pub const UDP: i32 = 10;
}

/// What the child applies.
#[derive(Debug)]
pub(super) struct Ceiling {
    /// The ruleset.
    pub(super) ruleset: OwnedFd,
    /// Flags for landlock_restrict_self(2).
    pub(super) flags: u32,
    /// Rules for paths in the sandbox's own `/proc`.
    pub(super) in_proc: Vec<LateRule>,
    /// The rule that opens the sandbox's own `/tmp`.
    pub(super) in_tmp: Option<LateRule>,
    /// A path that the sandbox's own `/proc` does not have is an error, not a lack to report.
    pub(super) required: bool,
}

fn flags(abi: i32) -> u32 {
    if abi >= since::LOG { LOG_AFTER_EXEC } else { 0 }
}

impl Ceiling {
    /// A ruleset to which nothing has to be added.
    pub(super) fn whole(ruleset: OwnedFd, abi: i32) -> Self {
        let (in_proc, in_tmp) = (Vec::new(), None);
        Self { ruleset, flags: flags(abi), in_proc, in_tmp, required: true }
    }

    /// A ruleset to which the child has to add all of these.
    pub(super) fn of_late_rules(
        ruleset: RulesetCreated,
        abi: i32,
        in_proc: Vec<LateRule>,
    ) -> Result<Self, LaunchError> {
        let ruleset = Option::<OwnedFd>::from(ruleset).ok_or(NO_RULESET)?;
        Ok(Self { in_proc, ..Self::whole(ruleset, abi) })
    }

    /// Adds the rules for what has been mounted since the ruleset was built. Only an own `/tmp` is
    /// opened: the policy says nothing of it, so the host's stays closed. For the forked child:
    /// system calls only.
    pub(super) fn add_late(
        &self,
        own_tmp: bool,
        went_without: &dyn Fn(Step, u8),
    ) -> Result<(), Errno> {
        for (position, rule) in self.in_proc.iter().enumerate() {
            match rule.add(self.ruleset.as_fd()) {
                Err(errno) if self.required => return Err(errno),
                Err(_) => went_without(Step::LateRules, u8::try_from(position).unwrap_or(u8::MAX)),
                Ok(()) => {}
            }
        }
        match self.in_tmp.as_ref().filter(|_| own_tmp) {
            Some(rule) => rule.add(self.ruleset.as_fd()),
            None => Ok(()),
        }
    }
}

/// The outcome of building it.
pub(super) struct Built {
    pub(super) ceiling: Ceiling,
    /// The same in a form that lasts.
    pub(super) applied: Applied,
    pub(super) abi: i32,
    pub(super) layers: Vec<Layer>,
    pub(super) skipped: Vec<SkippedPath>,
    pub(super) islands: Vec<PathBuf>,
}

/// Asks the kernel for its newest Landlock ABI; the error is what it said instead.
pub fn kernel_abi() -> io::Result<i32> {
    // SAFETY: with a null attribute, size 0 and this flag the call only reads its arguments.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0usize,
            ASK_VERSION,
        )
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as i32) }
}

/// Says what an error of [`kernel_abi`] means and what to do about it.
pub fn explain_absence(error: &io::Error) -> (&'static str, &'static str) {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => (
            "Landlock is built into this kernel but was not started at boot",
            "add `landlock` to the `lsm=` boot parameter and reboot",
        ),
        Some(libc::ENOSYS) => (
            "this kernel was built without Landlock",
            "boot a kernel with CONFIG_SECURITY_LANDLOCK=y (every Debian kernel since 12 has it)",
        ),
        _ => (
            "the kernel refused to say whether it has Landlock",
            "check that nothing filters landlock_create_ruleset(2), such as a container's seccomp \
             profile",
        ),
    }
}

/// Builds the ruleset for `request`.
pub(super) fn build(request: &Request, namespaces: &Namespaces) -> Result<Built, LaunchError> {
    let version = kernel_abi().map_err(|error| {
        let (why, fix) = explain_absence(&error);
        LaunchError::NoFilesystemLayer { why, fix }
    })?;
    build_for(request, namespaces, version)
}

fn build_for(
    request: &Request,
    namespaces: &Namespaces,
    version: i32,
) -> Result<Built, LaunchError> {
    let abi = ABI::from(version);
    let mut ruleset = create(abi, request.port_ceiling)?;
    let (mut skipped, mut in_proc, mut opened) = (Vec::new(), Vec::new(), Vec::new());
    let accesses = [
        (&request.read_only, AccessFs::from_read(abi)),
        (&request.read_write, AccessFs::from_all(abi)),
        (&request.unix_sockets, AccessFs::from_all(abi) & AccessFs::ResolveUnix),
    ];
    for (paths, access) in accesses.into_iter().filter(|(_, access)| !access.is_empty()) {
        for path in paths {
            let resolved = fs::canonicalize(path);
            if namespaces.proc && resolved.is_ok_and(|resolved| resolved.starts_with(PROC)) {
                in_proc.extend(late_rule(path, access, abi));
            } else {
                ruleset = add_path(ruleset, path, access, abi, (&mut skipped, &mut opened))?;
            }
        }
    }
    if request.port_ceiling {
        ruleset = add_ports(ruleset, request, abi)?;
    }
    let islands = writable_islands(request);
    let layers = layers(version, &skipped, &islands, request.port_ceiling);
    let ruleset = Option::<OwnedFd>::from(ruleset).ok_or(NO_RULESET)?;
    let flags = flags(version);
    let in_tmp = namespaces.tmp.as_ref();
    let in_tmp = in_tmp.and_then(|_| late_rule(Path::new(TMP), AccessFs::from_all(abi), abi));
    let required = request.hard_requirement;
    let late: Vec<&LateRule> = in_proc.iter().chain(&in_tmp).collect();
    let applied = Applied::new(request, version, opened, &late);
    let ceiling = Ceiling { ruleset, flags, in_proc, in_tmp, required };
    Ok(Built { ceiling, applied, abi: version, layers, skipped, islands })
}

/// What cannot be with a kernel that has Landlock.
const NO_RULESET: LaunchError = LaunchError::NoFilesystemLayer {
    why: "Landlock answered but gave no ruleset",
    fix: "report this with the output of `clawbox doctor`",
};

pub(super) fn create(abi: ABI, ports: bool) -> Result<RulesetCreated, RulesetError> {
    // The rights are chosen for this ABI, so whatever the crate cannot set is an error.
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(abi))?;
    if ports && !AccessNet::from_all(abi).is_empty() {
        ruleset = ruleset.handle_access(AccessNet::from_all(abi))?;
    }
    if !Scope::from_all(abi).is_empty() {
        ruleset = ruleset.scope(Scope::from_all(abi))?;
    }
    ruleset.create()
}

fn late_rule(path: &Path, access: BitFlags<AccessFs>, abi: ABI) -> Option<LateRule> {
    LateRule::new(path, access.bits(), (access & AccessFs::from_file(abi)).bits())
}

fn add_path(
    ruleset: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
    abi: ABI,
    (skipped, opened): (&mut Vec<SkippedPath>, &mut Vec<Opened>),
) -> Result<RulesetCreated, LaunchError> {
    let fd = match PathFd::new(path) {
        Ok(fd) => fd,
        Err(PathFdError::OpenCall { source, .. }) => {
            skipped.push(SkippedPath { path: path.to_owned(), why: source.to_string() });
            return Ok(ruleset);
        }
        Err(other) => {
            skipped.push(SkippedPath { path: path.to_owned(), why: other.to_string() });
            return Ok(ruleset);
        }
    };
    let of_file = nix::sys::stat::fstat(&fd)
        .map(|stat| stat.st_mode & libc::S_IFMT != libc::S_IFDIR)
        .map_err(|errno| LaunchError::Path { path: path.to_owned(), source: errno.into() })?;
    let access = if of_file { access & AccessFs::from_file(abi) } else { access };
    opened.push(Opened::of(path, access.bits(), &fd)?);
    Ok(ruleset.add_rule(PathBeneath::new(fd, access))?)
}

/// Opens the ports, UDP as well as TCP: which transport and which host is for the hooks to say.
pub(super) fn add_ports(
    mut ruleset: RulesetCreated,
    request: &Request,
    abi: ABI,
) -> Result<RulesetCreated, RulesetError> {
    let handled = AccessNet::from_all(abi);
    let connect = handled & (AccessNet::ConnectTcp | AccessNet::ConnectSendUdp);
    let bind = handled & (AccessNet::BindTcp | AccessNet::BindUdp);
    if handled.is_empty() {
        return Ok(ruleset);
    }
    // A sandbox may dial its own listeners.
    let own = request.bind_ports.iter().filter(|port| **port != 0);
    for port in request.connect_ports.iter().chain([&DNS_PORT]).chain(own) {
        ruleset = ruleset.add_rule(NetPort::new(*port, connect))?;
    }
    for port in &request.bind_ports {
        ruleset = ruleset.add_rule(NetPort::new(*port, bind))?;
    }
    if handled.contains(AccessNet::BindUdp) {
        // Every UDP client is bound to a port of the kernel's choice when it first sends; and
        // resolvers connect to port 0 to learn a source address, which sends nothing.
        ruleset = ruleset.add_rule(NetPort::new(0, AccessNet::BindUdp))?;
        ruleset = ruleset.add_rule(NetPort::new(0, AccessNet::ConnectSendUdp))?;
    }
    Ok(ruleset)
}

/// `read_only` paths below a `read_write` one: Landlock adds rights up, so they stay writable.
fn writable_islands(request: &Request) -> Vec<PathBuf> {
    let resolve = |path: &PathBuf| fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    let writable: Vec<PathBuf> = request.read_write.iter().map(resolve).collect();
    let inside = |path: &&PathBuf| writable.iter().any(|parent| resolve(path).starts_with(parent));
    request.read_only.iter().filter(inside).cloned().collect()
}

fn layers(abi: i32, skipped: &[SkippedPath], islands: &[PathBuf], ports: bool) -> Vec<Layer> {
    let given = |rights: &[(&'static str, i32)]| -> (Vec<_>, Vec<_>) {
        let all = rights.iter().map(|(name, _)| *name).collect();
        let have = rights.iter().filter(|(_, since)| abi >= *since).map(|(name, _)| *name);
        (all, have.collect())
    };
    let needs = |since: i32| format!("the kernel has Landlock ABI {abi}; this needs ABI {since}");

    let (mut requested, mut actual) = given(&[
        ("read, write, create, remove and execute by path", 1),
        ("truncate", since::TRUNCATE),
        ("ioctl on devices", since::IOCTL),
    ]);
    let mut why = if abi < since::IOCTL { needs(since::IOCTL) } else { String::new() };
    if !skipped.is_empty() {
        requested.push(RULE_FOR_EVERY_PATH);
        why = join(why, SOME_SKIPPED);
    }
    if !islands.is_empty() {
        requested.push("read-only inside read-write");
        why = join(why, "Landlock adds rights up (writable_islands)");
    }
    if abi < 1 {
        actual.clear();
    }
    let files = Layer::new("landlock.files", requested, actual, why);

    let layer = |name, rights: &[(&'static str, i32)], since| {
        let (requested, actual) = given(rights);
        Layer::new(name, requested, actual, needs(since))
    };
    let port_layer = |name, rights: &[(&'static str, i32)], since| {
        if ports {
            layer(name, rights, since)
        } else {
            Layer::new(name, rights.iter().map(|(name, _)| *name).collect(), vec![], PORTS_LEFT_OUT)
        }
    };
    vec![
        files,
        Layer::new(
            "landlock.metadata",
            vec!["chmod, chown, utime and xattr by path"],
            vec![],
            "Landlock does not judge these: only the files' owner and mode do",
        ),
        port_layer(
            "landlock.tcp_ports",
            &[("connect", since::TCP), ("bind", since::TCP)],
            since::TCP,
        ),
        port_layer("landlock.udp_ports", &[("send", since::UDP), ("bind", since::UDP)], since::UDP),
        layer(
            "landlock.scopes",
            &[("abstract Unix sockets", since::SCOPES), ("signals", since::SCOPES)],
            since::SCOPES,
        ),
        layer(
            "landlock.unix_sockets",
            &[("Unix sockets by path", since::UNIX_SOCKETS)],
            since::UNIX_SOCKETS,
        ),
    ]
}

/// Why ports are not Landlock's unless the policy has `hard_requirement`.
const PORTS_LEFT_OUT: &str = "left to the kernel hooks, so that every attempt is in the audit \
    trail; `landlock.compatibility: hard_requirement` adds it";

fn join(first: String, second: &str) -> String {
    if first.is_empty() { second.to_owned() } else { format!("{first}; {second}") }
}

#[cfg(test)]
mod tests {
    use super::super::LayerState::{Absent, Full, Partial};
    use super::super::namespaces;
    use super::*;

    #[test]
    fn each_layer_is_whole_from_the_abi_that_completes_it() {
        let states = |abi: i32| -> Vec<_> {
            layers(abi, &[], &[], true).iter().map(|layer| (layer.layer, layer.state)).collect()
        };
        let table = [
            (2, [Partial, Absent, Absent, Absent, Absent, Absent]),
            (3, [Partial, Absent, Absent, Absent, Absent, Absent]),
            (4, [Partial, Absent, Full, Absent, Absent, Absent]),
            (5, [Full, Absent, Full, Absent, Absent, Absent]),
            (6, [Full, Absent, Full, Absent, Full, Absent]),
            (9, [Full, Absent, Full, Absent, Full, Full]),
            (10, [Full, Absent, Full, Full, Full, Full]),
            (11, [Full, Absent, Full, Full, Full, Full]),
        ];
        for (abi, want) in table {
            let got: Vec<_> = states(abi).into_iter().map(|(_, state)| state).collect();
            assert_eq!(got, want, "ABI {abi}: {:?}", states(abi));
        }
    }

    #[test]
    fn every_abi_up_to_this_kernel_s_makes_a_ruleset() {
        let request = Request {
            read_only: vec!["/".into(), "/etc/passwd".into()],
            read_write: vec!["/tmp".into(), "/dev/null".into()],
            connect_ports: vec![443],
            bind_ports: vec![0, 8080],
            ..Request::default()
        };
        let (namespaces, _) = namespaces::plan(&request, true);
        for abi in 1..=kernel_abi().unwrap() {
            let built = build_for(&request, &namespaces, abi).unwrap();
            assert!(built.skipped.is_empty(), "ABI {abi}: {:?}", built.skipped);
            assert_eq!(built.ceiling.flags != 0, abi >= since::LOG);
        }
    }

    #[test]
    fn absence_is_explained_by_what_the_kernel_said() {
        for (errno, word) in [(libc::EOPNOTSUPP, "at boot"), (libc::ENOSYS, "without Landlock")] {
            let (why, fix) = explain_absence(&io::Error::from_raw_os_error(errno));
            assert!(why.contains(word) && !fix.is_empty(), "{why}");
        }
    }
}
