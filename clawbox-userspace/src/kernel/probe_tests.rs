//! The probe on hosts made of a few files, and once on the running kernel.
//! Each host is a directory that holds what the test is about and nothing else.

use super::*;

fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    root
}

fn calls() -> Calls {
    Calls { landlock_abi: Answer::Yes(6), seccomp: Answer::Yes(()), security_modules: None }
}

fn probe(files: &[(&str, &str)]) -> Kernel {
    Kernel::read(host(files).path(), calls())
}

const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
";

const UNIFIED: &str = "\
29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate
30 23 0:27 / /sys/fs/bpf rw,nosuid shared:5 - bpf bpf rw,mode=700
";

#[test]
fn cgroup2_is_found_in_unified_and_in_hybrid_mode() {
    let unified = probe(&[("proc/self/mountinfo", UNIFIED)]);
    assert_eq!(unified.cgroup2, Answer::Yes("/sys/fs/cgroup".into()));
    assert_eq!(unified.bpffs, Answer::Yes("/sys/fs/bpf".into()));
    let hybrid = probe(&[("proc/self/mountinfo", HYBRID)]);
    assert_eq!(hybrid.cgroup2, Answer::Yes("/sys/fs/cgroup/unified".into()));
    assert!(matches!(hybrid.bpffs, Answer::No(_)));
}

#[test]
fn a_whole_cgroup2_is_preferred_to_a_part_of_one() {
    let part = "50 23 0:26 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    let whole = "51 23 0:26 / /run/my\\040cgroup rw - cgroup2 cgroup2 rw\n";
    let both = probe(&[("proc/self/mountinfo", &format!("{part}{whole}"))]);
    assert_eq!(both.cgroup2, Answer::Yes("/run/my cgroup".into()));
    let only = probe(&[("proc/self/mountinfo", part)]);
    assert_eq!(only.cgroup2, Answer::Yes("/sys/fs/cgroup".into()));
}

#[test]
fn an_unreadable_file_is_unknown_and_not_no() {
    let empty = probe(&[]);
    for why in [empty.release.why(), empty.cgroup2.why(), empty.capabilities.why()] {
        assert!(why.unwrap().starts_with("cannot read /proc/"), "{why:?}");
    }
    assert!(matches!(empty.btf, Answer::Unknown(_)), "/sys is not mounted there");
    assert!(matches!(empty.security_modules, Answer::Unknown(_)));
    assert!(matches!(empty.lockdown, Answer::Unknown(_)));
    assert_eq!(empty.version(), None);
    assert_eq!(empty.has(Capability::Bpf), None);
}

#[test]
fn btf_is_absent_only_where_sysfs_is_there_to_say_so() {
    let without = probe(&[("sys/kernel/notes", "")]);
    assert!(matches!(without.btf, Answer::No(_)), "{:?}", without.btf);
    let with = probe(&[("sys/kernel/btf/vmlinux", "")]);
    assert_eq!(with.btf, Answer::Yes("/sys/kernel/btf/vmlinux".into()));
}

#[test]
fn security_modules_are_items_of_a_list() {
    let file = probe(&[("sys/kernel/security/lsm", "lockdown,capability,landlock,notbpf\n")]);
    let modules = file.security_modules.yes().unwrap();
    assert!(modules.iter().any(|name| name == "landlock"));
    assert!(!modules.iter().any(|name| name == "bpf"));
    assert!(matches!(file.lockdown, Answer::No(_)));

    let asked = Calls { security_modules: Some(vec!["bpf".into()]), ..calls() };
    let kernel = Kernel::read(host(&[]).path(), asked);
    assert_eq!(kernel.security_modules, Answer::Yes(vec!["bpf".into()]));
}

#[test]
fn numbers_of_security_modules_have_names() {
    let named = [(100, "capability"), (109, "bpf"), (110, "landlock"), (113, "ipe"), (7, "#7")];
    for (id, name) in named {
        assert_eq!(security_module(id), name);
    }
    assert_eq!(security_module(114), "#114");
}

#[test]
fn the_lockdown_mode_is_the_one_in_brackets() {
    let kernel = probe(&[("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")]);
    assert_eq!(kernel.lockdown, Answer::Yes("integrity".into()));
}

#[test]
fn rights_are_those_of_the_effective_set() {
    let status = "Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t0000008000001000\n";
    let kernel = probe(&[("proc/self/status", status)]);
    assert_eq!(kernel.has(Capability::Bpf), Some(true));
    assert_eq!(kernel.has(Capability::NetAdmin), Some(true));
    assert_eq!(kernel.has(Capability::SysAdmin), Some(false));
}

#[test]
fn a_container_s_root_is_told_from_the_host_s() {
    let host = probe(&[("proc/self/uid_map", "         0          0 4294967295\n")]);
    assert_eq!(host.initial_user_namespace, Answer::Yes(()));
    let container = probe(&[("proc/self/uid_map", "         0     100000      65536\n")]);
    assert!(matches!(container.initial_user_namespace, Answer::No(_)));
}

#[test]
fn every_cpu_must_have_the_instruction() {
    let with = "processor: 0\nflags\t\t: fpu cx8 cx16 sse\n";
    let without = "processor: 1\nflags\t\t: fpu cx8 sse\n";
    assert_eq!(probe(&[("proc/cpuinfo", with)]).cmpxchg16b, Answer::Yes(()));
    let mixed = probe(&[("proc/cpuinfo", &format!("{with}{without}"))]);
    assert!(matches!(mixed.cmpxchg16b, Answer::No(_)));
    let arm = probe(&[("proc/cpuinfo", "Features\t: fp asimd\n")]);
    assert_eq!(arm.cmpxchg16b, Answer::Yes(()));
}

#[test]
fn versions_are_read_out_of_any_release() {
    for (release, version) in
        [("6.1.0-56-cloud-amd64\n", (6, 1)), ("6.18.44-fc\n", (6, 18)), ("7.3-rc1\n", (7, 3))]
    {
        let kernel = probe(&[("proc/sys/kernel/osrelease", release)]);
        assert_eq!(kernel.version(), Some(version));
    }
}

#[test]
fn this_kernel_answers() {
    let kernel = Kernel::probe();
    assert!(kernel.version().is_some());
    assert!(kernel.capabilities.yes().is_some());
    assert!(!matches!(kernel.landlock_abi, Answer::Unknown(_)), "{:?}", kernel.landlock_abi);
    assert_eq!(kernel.seccomp, Answer::Yes(()));
    if let (Some(modules), Answer::Yes(_)) = (kernel.security_modules.yes(), &kernel.landlock_abi) {
        assert!(modules.iter().any(|name| name == "landlock"), "{modules:?}");
    }
}
