//! From what the probe saw to what it means: pure, so that every kind of host can be tested.
//! A layer that this build does not use yet is called unused, whatever the kernel has.

use serde::Serialize;

use crate::kernel::boot;
use crate::kernel::lsm;
use crate::kernel::probe::{Answer, Capability, Kernel, LOCKED_DOWN, LOCKED_DOWN_FIX};
use crate::sandbox::launch::landlock::{NEWEST_ABI, since};
use crate::sandbox::launch::syscalls;

/// All findings about one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// Whether `clawbox run` can work.
    pub ready: bool,
    /// The kernel's release, if it could be read.
    pub kernel: Option<String>,
    /// One entry per layer, the deciding ones first.
    pub layers: Vec<Finding>,
}

/// What there is of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its stable name.
    pub layer: &'static str,
    /// In one word.
    pub state: State,
    /// Whether `clawbox run` refuses without it.
    pub required: bool,
    /// What was found, in one line.
    pub found: String,
    /// What is missing.
    pub gaps: Vec<Gap>,
    /// What holds less finely without it.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub coarser: &'static [&'static str],
}

/// In one word, how a layer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All of it can be enforced.
    Ready,
    /// Some of it can.
    Partial,
    /// None of it can.
    Missing,
}

/// Something that is missing and how to get it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// What is missing, or what cannot be told.
    pub what: String,
    /// What to do.
    pub fix: String,
}

fn gap(what: impl Into<String>, fix: impl Into<String>) -> Gap {
    Gap { what: what.into(), fix: fix.into() }
}

/// The oldest kernel whose hooks do all that is needed.
const OLDEST: (u32, u32) = (6, 1);

/// Turns what was probed into findings.
pub fn diagnose(kernel: &Kernel) -> Diagnosis {
    let layers = vec![
        version(kernel),
        privileges(kernel),
        socket_hooks(kernel),
        landlock(kernel),
        seccomp(kernel),
        process(kernel),
        namespaces(kernel),
        bpf_lsm(kernel),
        pinning(kernel),
    ];
    let blocked = layers.iter().any(|layer| layer.required && layer.state == State::Missing);
    Diagnosis { ready: !blocked, kernel: kernel.release.yes().cloned(), layers }
}

fn required(layer: &'static str, found: String, gaps: Vec<Gap>) -> Finding {
    let state = if gaps.is_empty() { State::Ready } else { State::Missing };
    Finding { layer, state, required: true, found, gaps, coarser: &[] }
}

fn version(kernel: &Kernel) -> Finding {
    let found = kernel.release.yes().cloned().unwrap_or_else(|| "unknown".to_owned());
    let (major, minor) = OLDEST;
    let fix = format!("boot Linux {major}.{minor} or newer (Debian 12 has 6.1)");
    let gaps = match (kernel.version(), kernel.release.why()) {
        (Some(version), _) if version >= OLDEST => vec![],
        (Some(_), _) => vec![gap(format!("Linux {found} is older than {major}.{minor}"), fix)],
        (None, why) => vec![gap(why.unwrap_or("the release cannot be read"), "mount /proc")],
    };
    required("kernel", found, gaps)
}

fn privileges(kernel: &Kernel) -> Finding {
    let mut gaps = Vec::new();
    let as_root = "run clawbox as root, for example with sudo";
    if let Some(why) = kernel.capabilities.why() {
        gaps.push(gap(why, "mount /proc"));
    }
    let has = |capability| kernel.has(capability) != Some(false);
    let bpf = has(Capability::SysAdmin) || (has(Capability::Bpf) && has(Capability::Perfmon));
    let needed = [
        (bpf, "CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN), to load programs"),
        (has(Capability::NetAdmin), "CAP_NET_ADMIN, to attach them to network hooks"),
        (
            has(Capability::Setuid) && has(Capability::Setgid),
            "CAP_SETUID and CAP_SETGID, to change to the sandbox's user",
        ),
    ];
    gaps.extend(needed.iter().filter(|(has, _)| !has).map(|(_, what)| gap(*what, as_root)));
    if let Some(why) = kernel.initial_user_namespace.why() {
        gaps.push(gap(why, "run clawbox on the host itself, as the host's root"));
    }
    let found = if gaps.is_empty() { "all that is needed" } else { "too few" };
    required("privileges", found.to_owned(), gaps)
}

fn socket_hooks(kernel: &Kernel) -> Finding {
    let mut gaps = Vec::new();
    if let Some(why) = kernel.cgroup2.why() {
        gaps.push(gap(
            why,
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup, or where version 1 is mounted there: mkdir \
             -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified; for \
             good, boot with systemd.unified_cgroup_hierarchy=1",
        ));
    }
    if let Some(why) = kernel.btf.why() {
        gaps.push(gap(
            why,
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y (every Debian kernel since 12 has it); if \
             /sys is not mounted: mount -t sysfs sysfs /sys",
        ));
    }
    if kernel.keeps_memory_from_bpf() {
        gaps.push(gap(LOCKED_DOWN, LOCKED_DOWN_FIX));
    }
    if let (Answer::No(why), Some((7.., _))) = (&kernel.cmpxchg16b, kernel.version()) {
        gaps.push(gap(
            format!("since Linux 7 socket storage needs cmpxchg16b: {why}"),
            "give the virtual machine a CPU model that has cx16 (QEMU: -cpu host)",
        ));
    }
    let found = match kernel.cgroup2.yes() {
        Some(path) => format!("cgroup v2 at {}; egress, DNS, bind", path.display()),
        None => "egress, DNS and bind cannot be judged".to_owned(),
    };
    required("cgroup socket hooks", found, gaps)
}

/// What each Landlock ABI adds, and the kernel it came with.
const LANDLOCK: [(i32, &str, &str); 8] = [
    (since::REFER, "5.19", "moving files between directories (refused everywhere before)"),
    (since::TRUNCATE, "6.2", "truncate on read-only files"),
    (since::TCP, "6.7", "TCP ports, also when the BPF hooks are gone"),
    (since::IOCTL, "6.10", "ioctl on devices"),
    (since::SCOPES, "6.12", "abstract Unix sockets and signals to the outside"),
    (since::LOG, "6.15", "denials in the kernel's audit log"),
    (since::UNIX_SOCKETS, "7.1", "Unix sockets by path"),
    (since::UDP, "7.2", "UDP ports, also when the BPF hooks are gone"),
];

fn landlock(kernel: &Kernel) -> Finding {
    let layer = "landlock";
    let abi = match &kernel.landlock_abi {
        Answer::Yes(abi) => *abi,
        Answer::No(why) | Answer::Unknown(why) => {
            let fix = format!(
                "boot a kernel with CONFIG_SECURITY_LANDLOCK=y and with landlock among its active \
                 modules: {}",
                boot_with(kernel, "landlock")
            );
            let found = "no filesystem layer: `run` refuses".to_owned();
            return required(layer, found, vec![gap(why, fix)]);
        }
    };
    let found = if abi > NEWEST_ABI {
        format!("ABI {abi}, of which this build uses {NEWEST_ABI}")
    } else {
        format!("ABI {abi}")
    };
    let newer = LANDLOCK.iter().filter(|(since, ..)| abi < *since);
    let gaps: Vec<Gap> = newer
        .map(|(since, kernel, what)| {
            gap(format!("ABI {since} adds {what}"), format!("Linux {kernel} or newer"))
        })
        .collect();
    let state = if gaps.is_empty() { State::Ready } else { State::Partial };
    Finding { layer, state, required: true, found, gaps, coarser: &[] }
}

fn seccomp(kernel: &Kernel) -> Finding {
    let (found, gaps) = match kernel.seccomp.why() {
        None => {
            let count = syscalls::denials().count();
            (format!("{count} system calls refused, whole or by argument"), vec![])
        }
        Some(why) => {
            let fix = "boot a kernel with CONFIG_SECCOMP_FILTER=y";
            ("no filter".to_owned(), vec![gap(why, fix)])
        }
    };
    required("seccomp", found, gaps)
}

fn process(kernel: &Kernel) -> Finding {
    let mut gaps = Vec::new();
    if kernel.has(Capability::Setpcap) == Some(false) {
        gaps.push(gap(
            "without CAP_SETPCAP the bounding set stays (no_new_privs still holds)",
            "run clawbox as root",
        ));
    }
    let state = if gaps.is_empty() { State::Ready } else { State::Partial };
    let found = "no capabilities, no_new_privs, own user".to_owned();
    Finding { layer: "process", state, required: false, found, gaps, coarser: &[] }
}

fn namespaces(kernel: &Kernel) -> Finding {
    let mut gaps = Vec::new();
    if let Some(why) = kernel.namespaces.why() {
        let fix = "boot a kernel with CONFIG_PID_NS, CONFIG_IPC_NS, CONFIG_UTS_NS and \
                   CONFIG_CGROUPS (every Debian kernel has them)";
        gaps.push(gap(why, fix));
    }
    if kernel.has(Capability::SysAdmin) == Some(false) {
        gaps.push(gap(
            "without CAP_SYS_ADMIN a sandbox sees the host's processes, mounts and /tmp, and those \
             of one user share System V memory",
            "run clawbox as root",
        ));
    }
    let state = if gaps.is_empty() { State::Ready } else { State::Partial };
    let found = "own pid, mount, IPC, UTS and cgroup namespaces, own /proc and /tmp; whether the \
                 host allows the mounts is seen when a run starts"
        .to_owned();
    Finding { layer: "namespaces", state, required: false, found, gaps, coarser: &[] }
}

fn bpf_lsm(kernel: &Kernel) -> Finding {
    let layer = "bpf lsm";
    let active = |modules: &Vec<String>| modules.iter().any(|name| name == "bpf");
    let missing = match (&kernel.security_modules, &kernel.bpf_lsm_refusal) {
        (Answer::Yes(modules), None) if active(modules) => {
            let found = "files, execution and other processes by binary".to_owned();
            return Finding {
                layer,
                state: State::Ready,
                required: false,
                found,
                gaps: vec![],
                coarser: &[],
            };
        }
        (Answer::Yes(modules), Some(why)) if active(modules) => {
            gap(why.as_str(), "ask whoever runs this kernel to let BPF LSM programs load")
        }
        (Answer::Yes(_), _) => gap(
            "`bpf` is not among the active modules",
            format!("{}; `clawbox doctor --fix` has the steps", boot_with(kernel, "bpf")),
        ),
        (Answer::No(why) | Answer::Unknown(why), _) => {
            gap(why.as_str(), "mount -t securityfs securityfs /sys/kernel/security")
        }
    };
    let (found, gaps) = ("files are Landlock's alone".to_owned(), vec![missing]);
    Finding { layer, state: State::Missing, required: false, found, gaps, coarser: lsm::COARSER }
}

fn pinning(kernel: &Kernel) -> Finding {
    let (found, gaps) = match (kernel.bpffs.yes(), kernel.bpffs.why()) {
        (Some(path), _) => (format!("BPF file system at {}", path.display()), vec![]),
        (None, why) => {
            let what = why.unwrap_or("the BPF file system cannot be found");
            ("no BPF file system".to_owned(), vec![gap(what, "mount -t bpf bpf /sys/fs/bpf")])
        }
    };
    let state = if gaps.is_empty() { State::Ready } else { State::Partial };
    let found = format!("enforcement outlives a killed clawbox; {found}");
    Finding { layer: "pinning", state, required: false, found, gaps, coarser: &[] }
}

/// The boot parameter that adds a security module to those that are active.
fn boot_with(kernel: &Kernel, module: &str) -> String {
    let list = match &kernel.security_modules {
        Answer::Yes(active) => boot::list_with(module, active),
        Answer::No(_) | Answer::Unknown(_) => format!("<the present list>,{module}"),
    };
    format!("boot with lsm={list} among the kernel's parameters")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn able() -> Kernel {
        Kernel {
            release: Answer::Yes("6.12.9-amd64".to_owned()),
            cgroup2: Answer::Yes("/sys/fs/cgroup".into()),
            btf: Answer::Yes("/sys/kernel/btf/vmlinux".into()),
            bpffs: Answer::Yes("/sys/fs/bpf".into()),
            capabilities: Answer::Yes(u64::MAX),
            initial_user_namespace: Answer::Yes(()),
            security_modules: Answer::Yes(vec!["capability".to_owned(), "landlock".to_owned()]),
            bpf_lsm_refusal: None,
            lockdown: Answer::Yes("none".to_owned()),
            cmpxchg16b: Answer::Yes(()),
            landlock_abi: Answer::Yes(6),
            seccomp: Answer::Yes(()),
            namespaces: Answer::Yes(()),
        }
    }

    fn no<T>() -> Answer<T> {
        Answer::No("it is not there".to_owned())
    }

    fn finding(kernel: &Kernel, layer: &str) -> Finding {
        diagnose(kernel).layers.into_iter().find(|finding| finding.layer == layer).unwrap()
    }

    #[test]
    fn an_able_host_is_ready_and_still_told_what_it_lacks() {
        let diagnosis = diagnose(&able());
        assert!(diagnosis.ready);
        let landlock = finding(&able(), "landlock");
        assert_eq!(landlock.state, State::Partial);
        assert_eq!(landlock.gaps.len(), 3, "{:?}", landlock.gaps);
        let newest = Kernel { landlock_abi: Answer::Yes(NEWEST_ABI + 1), ..able() };
        assert_eq!(finding(&newest, "landlock").state, State::Ready);
        assert_eq!(finding(&newest, "landlock").found, "ABI 11, of which this build uses 10");
        let lsm = finding(&able(), "bpf lsm");
        assert_eq!(lsm.state, State::Missing);
        assert!(lsm.gaps[0].fix.contains("lsm=bpf,landlock "), "{}", lsm.gaps[0].fix);
        assert!(lsm.coarser.iter().any(|line| line.contains("no islands")), "{lsm:?}");
        let with = |modules: [&str; 2]| {
            let security_modules = Answer::Yes(modules.map(str::to_owned).to_vec());
            finding(&Kernel { security_modules, ..able() }, "bpf lsm")
        };
        let ready = with(["bpf", "landlock"]);
        assert_eq!((ready.state, ready.coarser), (State::Ready, &[][..]));
        let late = with(["landlock", "bpf"]);
        assert_eq!((late.state, late.gaps.len()), (State::Ready, 0));
    }

    #[test]
    fn what_run_cannot_do_without_makes_a_host_not_ready() {
        let cases = [
            ("kernel", Kernel { release: Answer::Yes("5.10.0".into()), ..able() }),
            ("kernel", Kernel { release: no(), ..able() }),
            ("privileges", Kernel { capabilities: Answer::Yes(0), ..able() }),
            ("privileges", Kernel { initial_user_namespace: no(), ..able() }),
            ("cgroup socket hooks", Kernel { cgroup2: no(), ..able() }),
            ("cgroup socket hooks", Kernel { btf: no(), ..able() }),
            (
                "cgroup socket hooks",
                Kernel { lockdown: Answer::Yes("confidentiality".into()), ..able() },
            ),
            (
                "cgroup socket hooks",
                Kernel { cmpxchg16b: no(), release: Answer::Yes("7.3.4".into()), ..able() },
            ),
            ("landlock", Kernel { landlock_abi: no(), ..able() }),
            ("seccomp", Kernel { seccomp: no(), ..able() }),
        ];
        for (layer, kernel) in cases {
            assert!(!diagnose(&kernel).ready, "{layer}");
            let finding = finding(&kernel, layer);
            assert_eq!(finding.state, State::Missing, "{layer}");
            assert!(finding.gaps.iter().all(|gap| gap.fix.len() > 8), "{layer}");
        }
    }

    #[test]
    fn what_run_can_do_without_only_makes_it_partial() {
        let old_cpu = Kernel { cmpxchg16b: no(), ..able() };
        assert!(diagnose(&old_cpu).ready, "6.12 does not need cmpxchg16b");
        let without = Kernel { bpffs: no(), namespaces: no(), ..able() };
        assert!(diagnose(&without).ready);
        assert_eq!(finding(&without, "namespaces").state, State::Partial);
        let unknown = Kernel { security_modules: Answer::Unknown("cannot read".into()), ..able() };
        assert!(finding(&unknown, "bpf lsm").gaps[0].fix.contains("securityfs"));
    }

    #[test]
    fn bpf_and_perfmon_stand_in_for_sys_admin() {
        let bits = |all: &[Capability]| all.iter().fold(0, |mask, one| mask | 1u64 << *one as u32);
        use Capability::{Bpf, NetAdmin, Perfmon, Setgid, Setpcap, Setuid};
        let mask = bits(&[Bpf, Perfmon, NetAdmin, Setuid, Setgid, Setpcap]);
        let kernel = Kernel { capabilities: Answer::Yes(mask), ..able() };
        assert_eq!(finding(&kernel, "privileges").state, State::Ready);
        assert_eq!(finding(&kernel, "namespaces").state, State::Partial);
    }
}
