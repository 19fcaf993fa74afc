//! What this kernel can enforce, read from /proc and /sys and asked by system call.
//! Files are read below a root directory, so that tests can show it any host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::libc;
use serde::Serialize;

use crate::sandbox::launch::landlock;
use crate::sandbox::launch::namespaces::Part;

/// An answer that can say that it does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer<T> {
    /// The kernel has it.
    Yes(T),
    /// The kernel does not have it, and this is how one can tell.
    No(String),
    /// It cannot be told, and this is why.
    Unknown(String),
}

impl<T> Answer<T> {
    /// What there is, if there is.
    pub fn yes(&self) -> Option<&T> {
        match self {
            Self::Yes(value) => Some(value),
            Self::No(_) | Self::Unknown(_) => None,
        }
    }

    /// Why there is not, if there is not.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Yes(_) => None,
            Self::No(why) | Self::Unknown(why) => Some(why),
        }
    }
}

/// What is known about the running kernel and this process's rights on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// The release, as `uname -r` prints it.
    pub release: Answer<String>,
    /// Where cgroup v2 is mounted.
    pub cgroup2: Answer<PathBuf>,
    /// The kernel's own type information.
    pub btf: Answer<PathBuf>,
    /// Where the BPF file system is mounted.
    pub bpffs: Answer<PathBuf>,
    /// Effective capabilities of this process, as a mask.
    pub capabilities: Answer<u64>,
    /// Whether those capabilities count outside a container's user namespace.
    pub initial_user_namespace: Answer<()>,
    /// Active security modules, in their order.
    pub security_modules: Answer<Vec<String>>,
    /// Why BPF LSM programs cannot be loaded, where that was tried.
    pub bpf_lsm_refusal: Option<String>,
    /// The lockdown mode: `none`, `integrity` or `confidentiality`.
    pub lockdown: Answer<String>,
    /// The instruction that socket storage needs on x86-64 since Linux 7.
    pub cmpxchg16b: Answer<()>,
    /// The newest Landlock ABI.
    pub landlock_abi: Answer<i32>,
    /// seccomp filters that answer with an errno.
    pub seccomp: Answer<()>,
    /// Every kind of namespace that a sandbox gets.
    pub namespaces: Answer<()>,
}

/// What [`Kernel::keeps_memory_from_bpf`] means, and what to do.
pub const LOCKED_DOWN: &str = "lockdown=confidentiality keeps BPF from reading kernel memory";
/// See [`LOCKED_DOWN`].
pub const LOCKED_DOWN_FIX: &str = "boot with lockdown=integrity, or without a lockdown parameter";

/// The part that only system calls can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calls {
    /// The newest Landlock ABI.
    pub landlock_abi: Answer<i32>,
    /// seccomp filters that answer with an errno.
    pub seccomp: Answer<()>,
    /// Active security modules, asked since Linux 6.8; `None` on older kernels.
    pub security_modules: Option<Vec<String>>,
}

impl Kernel {
    /// This host as it was when it was first asked about: what does not change while a process runs.
    pub fn here() -> &'static Self {
        static HERE: OnceLock<Kernel> = OnceLock::new();
        HERE.get_or_init(Self::probe)
    }

    /// Probes this host.
    pub fn probe() -> Self {
        Self::read(Path::new("/"), Calls::ask())
    }

    /// Reads the files of the host whose root directory is `root`.
    pub fn read(root: &Path, calls: Calls) -> Self {
        let host = Host { root };
        let mounts = host.mounts();
        Self {
            release: host.text("proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
            cgroup2: mounts.clone().and(cgroup2),
            btf: host.exists("sys/kernel/btf/vmlinux", "the kernel was built without BTF"),
            bpffs: mounts.and(bpffs),
            capabilities: host.text("proc/self/status").and(|status| capabilities(&status)),
            initial_user_namespace: host.text("proc/self/uid_map").and(|map| user_namespace(&map)),
            security_modules: host.security_modules(calls.security_modules),
            bpf_lsm_refusal: None,
            lockdown: host.lockdown(),
            cmpxchg16b: host.text("proc/cpuinfo").and(|text| cmpxchg16b(&text)),
            landlock_abi: calls.landlock_abi,
            seccomp: calls.seccomp,
            namespaces: Part::ALL
                .into_iter()
                .filter_map(Part::kernel_name)
                .map(|kind| {
                    let absent = format!("the kernel was built without {kind} namespaces");
                    host.exists(&format!("proc/self/ns/{kind}"), &absent).map(drop)
                })
                .find(|answer| answer.yes().is_none())
                .unwrap_or(Answer::Yes(())),
        }
    }

    /// Major and minor version.
    pub fn version(&self) -> Option<(u32, u32)> {
        let mut numbers = self.release.yes()?.split(|c: char| !c.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }

    /// Whether it is locked down so far that BPF programs may not read its memory.
    pub fn keeps_memory_from_bpf(&self) -> bool {
        self.lockdown.yes().is_some_and(|mode| mode == "confidentiality")
    }

    /// Whether the effective set has this capability; `None` if that cannot be told.
    pub fn has(&self, capability: Capability) -> Option<bool> {
        self.capabilities.yes().map(|mask| mask & (1 << capability as u32) != 0)
    }
}

/// The capabilities that clawbox itself needs; numbers from linux/capability.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// Change the group of the sandboxed program.
    Setgid = 6,
    /// Change the user of the sandboxed program.
    Setuid = 7,
    /// Empty its bounding set.
    Setpcap = 8,
    /// Attach to cgroups' network hooks.
    NetAdmin = 12,
    /// Everything; stands in for Bpf and Perfmon.
    SysAdmin = 21,
    /// Read kernel memory from tracing programs.
    Perfmon = 38,
    /// Load programs.
    Bpf = 39,
}

impl<T> Answer<T> {
    fn map<U>(self, convert: impl FnOnce(T) -> U) -> Answer<U> {
        self.and(|value| Answer::Yes(convert(value)))
    }

    fn and<U>(self, next: impl FnOnce(T) -> Answer<U>) -> Answer<U> {
        match self {
            Self::Yes(value) => next(value),
            Self::No(why) => Answer::No(why),
            Self::Unknown(why) => Answer::Unknown(why),
        }
    }
}

struct Host<'a> {
    root: &'a Path,
}

impl Host<'_> {
    fn text(&self, path: &str) -> Answer<String> {
        match fs::read(self.root.join(path)) {
            Ok(bytes) => Answer::Yes(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => Answer::Unknown(format!("cannot read /{path}: {error}")),
        }
    }

    /// Yes with the path as the host has it, no if it is not there, unknown if one may not look.
    fn exists(&self, path: &str, otherwise: &str) -> Answer<PathBuf> {
        match self.root.join(path).try_exists() {
            Ok(true) => Answer::Yes(Path::new("/").join(path)),
            Ok(false) if self.root.join(parent_mount(path)).exists() => {
                Answer::No(format!("{otherwise} (no /{path})"))
            }
            Ok(false) => Answer::Unknown(format!("/{} is not mounted", parent_mount(path))),
            Err(error) => Answer::Unknown(format!("cannot look at /{path}: {error}")),
        }
    }

    fn mounts(&self) -> Answer<Vec<Mount>> {
        self.text("proc/self/mountinfo").map(|text| text.lines().filter_map(Mount::parse).collect())
    }

    fn security_modules(&self, asked: Option<Vec<String>>) -> Answer<Vec<String>> {
        match fs::read_to_string(self.root.join("sys/kernel/security/lsm")) {
            Ok(text) => Answer::Yes(text.trim().split(',').map(str::to_owned).collect()),
            Err(error) => match asked {
                Some(modules) => Answer::Yes(modules),
                None => Answer::Unknown(format!("cannot read /sys/kernel/security/lsm: {error}")),
            },
        }
    }

    fn lockdown(&self) -> Answer<String> {
        match self.text("sys/kernel/security/lockdown") {
            // `none [integrity] confidentiality`: the one in brackets holds.
            Answer::Yes(text) => {
                match text.split_whitespace().find_map(|mode| mode.strip_prefix('[')) {
                    Some(mode) => Answer::Yes(mode.trim_end_matches(']').to_owned()),
                    None => Answer::Unknown(format!("lockdown reads `{}`", text.trim())),
                }
            }
            _ if self.root.join("sys/kernel/security/lsm").exists() => {
                Answer::No("the kernel was built without lockdown".to_owned())
            }
            unknown => unknown,
        }
    }
}

/// Of a path below /proc or /sys, the directory that is only there if that is mounted.
fn parent_mount(path: &str) -> &str {
    if path.starts_with("proc/") { "proc/self" } else { "sys/kernel" }
}

/// One line of /proc/self/mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    /// What of the file system is mounted.
    root: String,
    point: PathBuf,
    kind: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let root = unescape(before.next()?);
        let point = PathBuf::from(unescape(before.next()?));
        Some(Self { root, point, kind: after.split(' ').next()?.to_owned() })
    }
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                whole.push(byte.into());
                whole.push_str(&part[3..]);
            }
            None => {
                whole.push('\\');
                whole.push_str(part);
            }
        }
    }
    whole
}

/// The usual places first; a whole hierarchy before a container's part of one.
fn cgroup2(mounts: Vec<Mount>) -> Answer<PathBuf> {
    let usual = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let rank = |mount: &&Mount| {
        let place = usual.iter().position(|usual| mount.point == Path::new(usual));
        (mount.root != "/", place.unwrap_or(usual.len()))
    };
    match mounts.iter().filter(|mount| mount.kind == "cgroup2").min_by_key(rank) {
        Some(mount) => Answer::Yes(mount.point.clone()),
        None => Answer::No("cgroup v2 is not mounted".to_owned()),
    }
}

fn bpffs(mounts: Vec<Mount>) -> Answer<PathBuf> {
    match mounts.iter().find(|mount| mount.kind == "bpf") {
        Some(mount) => Answer::Yes(mount.point.clone()),
        None => Answer::No("the BPF file system is not mounted".to_owned()),
    }
}

fn capabilities(status: &str) -> Answer<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    match mask.map(|mask| u64::from_str_radix(mask.trim(), 16)) {
        Some(Ok(mask)) => Answer::Yes(mask),
        _ => Answer::Unknown("/proc/self/status has no CapEff".to_owned()),
    }
}

fn user_namespace(map: &str) -> Answer<()> {
    if map.split_whitespace().eq(["0", "0", "4294967295"]) {
        Answer::Yes(())
    } else {
        Answer::No("this process runs in a user namespace (a rootless container?)".to_owned())
    }
}

fn cmpxchg16b(cpuinfo: &str) -> Answer<()> {
    // Only x86 has `flags`; other architectures do not need the instruction.
    let flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
    let mut flags = flags.map(|line| line.split_whitespace().any(|flag| flag == "cx16"));
    if flags.all(|has| has) {
        Answer::Yes(())
    } else {
        Answer::No("the CPU, or the virtual machine's CPU model, lacks cx16".to_owned())
    }
}

impl Calls {
    /// Asks the running kernel.
    pub fn ask() -> Self {
        Self {
            landlock_abi: ask_landlock(),
            seccomp: ask_seccomp(),
            security_modules: ask_security_modules(),
        }
    }
}

fn ask_landlock() -> Answer<i32> {
    match landlock::kernel_abi() {
        Ok(abi) => Answer::Yes(abi),
        Err(error) => {
            let (why, _) = landlock::explain_absence(&error);
            match error.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::ENOSYS) => Answer::No(why.to_owned()),
                _ => Answer::Unknown(format!("{why}: {error}")),
            }
        }
    }
}

fn ask_seccomp() -> Answer<()> {
    let action: u32 = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads the action from a live u32 and changes nothing.
    let answer = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action)
    };
    match (answer, io::Error::last_os_error()) {
        (0, _) => Answer::Yes(()),
        (_, error) => match error.raw_os_error() {
            Some(libc::ENOSYS | libc::EINVAL | libc::EOPNOTSUPP) => {
                Answer::No("the kernel was built without seccomp filters".to_owned())
            }
            _ => Answer::Unknown(format!("seccomp(2): {error}")),
        },
    }
}

/// lsm_list_modules(2), which needs no securityfs. `None` before Linux 6.8.
fn ask_security_modules() -> Option<Vec<String>> {
    const LSM_LIST_MODULES: libc::c_long = 461;
    let mut ids = [0u64; 32];
    let mut size = size_of_val(&ids) as u32;
    // SAFETY: the kernel writes at most `size` bytes into `ids`, and the size used into `size`.
    let count = unsafe { libc::syscall(LSM_LIST_MODULES, ids.as_mut_ptr(), &raw mut size, 0u32) };
    let ids = ids.get(..usize::try_from(count).ok()?)?;
    Some(ids.iter().map(|id| security_module(*id)).collect())
}

/// Names as in /sys/kernel/security/lsm; numbers from linux/lsm.h.
fn security_module(id: u64) -> String {
    const NAMES: [&str; 14] = [
        "capability",
        "selinux",
        "smack",
        "tomoyo",
        "apparmor",
        "yama",
        "loadpin",
        "safesetid",
        "lockdown",
        "bpf",
        "landlock",
        "ima",
        "evm",
        "ipe",
    ];
    let index = id.checked_sub(100).and_then(|index| usize::try_from(index).ok());
    let name = index.and_then(|index| NAMES.get(index));
    name.map_or_else(|| format!("#{id}"), |name| (*name).to_owned())
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
