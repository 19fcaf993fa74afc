//! Rows 7, 9, 10, 32 and 33 as far as they are system calls: each is refused to root as well, by the
//! filter, and recorded by its name.

use clawbox_tests::clawbox::Clawbox;
use clawbox_tests::layer::Layer;
use clawbox_tests::network::SITE;

use super::attempt::{Attempt, attempts, got_through, hostile};
use crate::scene::Scene;

/// Row, name as the record has it, and how it is called.
const CALLS: [(u8, &str, &str); 55] = [
    (7, "chroot", "call(161, b'/usr')"),
    (7, "pivot_root", "call(155, b'/', b'/')"),
    (7, "mount", "call(165, b'/usr', b'/etc', 0, 4096, 0)"),
    (7, "umount2", "call(166, b'/proc', 2)"),
    (7, "unshare", "call(272, 0x10020000)"),
    (9, "prctl", "call(157, 35, 13, os.open('/usr/bin/true', os.O_RDONLY), 0, 0)"),
    (9, "prctl", "call(157, 35, 14, (ctypes.c_uint64 * 13)(), 104, 0)"),
    (10, "ptrace", "call(101, 16, os.getppid(), 0, 0)"),
    (10, "process_vm_readv", "call(310, os.getppid(), 0, 0, 0, 0, 0)"),
    (10, "process_vm_writev", "call(311, os.getppid(), 0, 0, 0, 0, 0)"),
    (10, "pidfd_getfd", "call(438, os.pidfd_open(os.getpid()), 0, 0)"),
    (10, "kcmp", "call(312, os.getpid(), os.getppid(), 0, 0, 0)"),
    (32, "unshare", "call(272, 0x10000000)"),
    (32, "unshare", "call(272, 0x40000000)"),
    (32, "unshare", "call(272, 0x20000)"),
    (32, "unshare", "call(272, 0x8000000)"),
    (32, "unshare", "call(272, 0x4000000)"),
    (32, "unshare", "call(272, 0x2000000)"),
    (32, "unshare", "call(272, 0x20000000)"),
    (32, "unshare", "call(272, 0x80)"),
    (32, "clone", "call(56, 0x10000011, 0, 0, 0, 0)"),
    (32, "setns", "call(308, os.open('/proc/self/ns/net', 0), 0)"),
    (32, "fsopen", "call(430, b'tmpfs', 0)"),
    (32, "fsconfig", "call(431, 0, 0, 0, 0, 0)"),
    (32, "fsmount", "call(432, 0, 0, 0)"),
    (32, "fspick", "call(433, -100, b'/', 0)"),
    (32, "move_mount", "call(429, -100, b'/usr', -100, b'/etc', 0)"),
    (32, "open_tree", "call(428, -100, b'/usr', 1)"),
    (32, "mount_setattr", "call(442, -100, b'/usr', 0, 0, 0)"),
    (32, "keyctl", "call(250, 0, -3, 1)"),
    (32, "add_key", "call(248, b'user', b'k', b'v', 1, -3)"),
    (32, "request_key", "call(249, b'user', b'k', 0, -3)"),
    (32, "userfaultfd", "call(323, 1)"),
    (32, "perf_event_open", "call(298, (ctypes.c_uint32 * 32)(1, 128), 0, -1, -1, 0)"),
    (32, "bpf", "call(321, 5, (ctypes.c_uint64 * 16)(), 128)"),
    (32, "kexec_load", "call(246, 0, 0, 0, 0)"),
    (32, "kexec_file_load", "call(320, -1, -1, 0, 0, 0)"),
    (32, "init_module", "call(175, 0, 0, b'')"),
    (32, "finit_module", "call(313, os.open('/usr/bin/true', 0), b'', 0)"),
    (32, "delete_module", "call(176, b'veth', 0)"),
    (32, "personality", "call(135, 0x0040000)"),
    (32, "io_uring_setup", "call(425, 8, (ctypes.c_uint8 * 120)())"),
    (32, "fanotify_init", "call(300, 0, 0)"),
    (32, "execveat", "call(322, copied('/bin/true'), b'', 0, 0, 0x1000)"),
    (32, "iopl", "call(172, 3)"),
    (32, "modify_ldt", "call(154, 0, 0, 0)"),
    (32, "reboot", "call(169, 0, 0, 0, 0)"),
    (32, "ioctl", "import fcntl; fcntl.ioctl(0, 0x5412, b'x')"),
    (32, "x32:520", "call(0x40000208, 0, 0, 0)"),
    (32, "x32:0", "call(0x40000000, 0, 0, 0)"),
    (32, "x32:321", "call(0x40000141, 0, 0, 0)"),
    // BPF_LINK_GET_FD_BY_ID, BPF_PROG_GET_FD_BY_ID, BPF_MAP_GET_FD_BY_ID, BPF_LINK_DETACH.
    (33, "bpf", "call(321, 30, (ctypes.c_uint64 * 2)(1), 12)"),
    (33, "bpf", "call(321, 13, (ctypes.c_uint64 * 2)(1), 12)"),
    (33, "bpf", "call(321, 14, (ctypes.c_uint64 * 2)(1), 12)"),
    (33, "bpf", "call(321, 34, (ctypes.c_uint64 * 2)(0), 4)"),
];

/// A call by the 32-bit gate, in a process of its own: the filter kills whoever makes one.
const IA32: &str = "c = mmap.mmap(-1, 4096, prot=7); c.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3'); \
    f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(c))); \
    p = os.fork() or os._exit(f() > 0); s = os.waitpid(p, 0)[1]; \
    call(10**6) if os.WIFSIGNALED(s) and os.WTERMSIG(s) == 31 else None";

#[test]
fn what_the_filter_refuses_is_refused_to_root_too_and_recorded_by_the_name_of_the_call() {
    let scene = Scene::new();
    let tries: Vec<Attempt> = CALLS
        .iter()
        .map(|(row, name, code)| {
            hostile(*row, &format!("{name}: {code}"), *code).or(Layer::Seccomp)
        })
        .chain([hostile(32, "ia32", IA32).or(Layer::Seccomp)])
        .collect();
    for user in [Some("nobody"), None] {
        let sandbox = || Clawbox::new(&scene.world, &scene.policy("")).user(user);
        let tried = attempts(sandbox, &tries);
        assert_eq!(got_through(&tries, &tried).count(), 0, "{tried:#?}");
        for ((_, name, _), tried) in CALLS.iter().zip(&tried) {
            assert_eq!(
                (tried.outcome.as_str(), tried.layer),
                ("EPERM", Layer::Seccomp),
                "{tried:?}"
            );
            if tried.has_gap && tried.denials.is_empty() {
                continue;
            }
            let [record] = tried.denials.as_slice() else { panic!("{tried:#?}") };
            let words = ["class", "action", "reason"].map(|key| record[key].as_str().unwrap());
            assert_eq!(words, ["privilege", "system-call", "system-call"]);
            assert_eq!(record["object"]["system_call"], *name);
        }
    }
}

#[test]
fn the_tools_of_namespaces_and_tracing_do_not_work_inside() {
    let scene = Scene::new();
    let policy = scene.allowing("/usr/bin/true", &format!("{{ host: {SITE}, port: 7 }}"));
    let attack = scene.attack();
    let account = scene.shell(
        &policy,
        &format!(
            "for tool in 'unshare -Ur' 'unshare -n' 'unshare -rn' 'nsenter -t 1 -n' \
             'chroot /usr /bin/true' 'mount -t tmpfs none /tmp' 'mount --bind /usr /etc'; do \
             $tool {attack} tcp={SITE}:7 2>/dev/null && echo \"went through: $tool\"; done; \
             cat /proc/1/environ /proc/1/mem 2>/dev/null && echo read; \
             ls /sys/fs/bpf 2>/dev/null && echo listed; \
             kill -0 {outside} 2>/dev/null && echo signalled; kill -KILL 1; grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' \
             /proc/self/status",
            outside = std::process::id()
        ),
    );
    let said: Vec<&str> = account.run.stdout.lines().collect();
    assert_eq!(
        said,
        ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"],
        "{}",
        account.run.stderr
    );
    scene.nothing_arrived();
}
