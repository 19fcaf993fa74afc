//! A host that refuses a system call, as a container in front of clawbox may: a filter that
//! `clawbox run` is started under.

use std::io;

use nix::errno::Errno;
use nix::libc::{self, c_long, sock_filter, sock_fprog};

/// A system call, with what its arguments must be, that fails.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// Its number.
    pub number: c_long,
    /// Positions and values of arguments, 32 bits of them.
    pub arguments: &'static [(u32, u32)],
    /// What it fails with.
    pub errno: i32,
}

/// `mount` of a procfs, as clawbox calls it: closed to set-user-id, devices and programs, and
/// without options.
pub const PROC_MOUNT: Refusal =
    Refusal { number: libc::SYS_mount, arguments: &[(3, 0b1110), (4, 0)], errno: libc::EPERM };

/// `mount` of a tmpfs, as clawbox calls it: closed to set-user-id and devices.
pub const TMP_MOUNT: Refusal =
    Refusal { number: libc::SYS_mount, arguments: &[(3, 0b0110)], errno: libc::EACCES };

/// `clone3`, by which a process is born in a cgroup.
pub const CLONE3: Refusal =
    Refusal { number: libc::SYS_clone3, arguments: &[], errno: libc::ENOSYS };

/// `bpf` with `BPF_PROG_LOAD`, as lockdown refuses it.
pub const PROGRAM_LOAD: Refusal =
    Refusal { number: libc::SYS_bpf, arguments: &[(0, 5)], errno: libc::EPERM };

/// The same as a verifier refuses it.
pub const PROGRAM_REJECTED: Refusal =
    Refusal { number: libc::SYS_bpf, arguments: &[(0, 5)], errno: libc::EINVAL };

/// `bpf` with `BPF_LINK_CREATE`.
pub const LINK: Refusal =
    Refusal { number: libc::SYS_bpf, arguments: &[(0, 28)], errno: libc::EPERM };

/// `lsm_list_modules`, as before Linux 6.8. By its number: libc has no name for it.
pub const LIST_MODULES: Refusal = Refusal { number: 461, arguments: &[], errno: libc::ENOSYS };

/// `landlock_create_ruleset`, on a kernel that has none.
pub const LANDLOCK: Refusal =
    Refusal { number: libc::SYS_landlock_create_ruleset, arguments: &[], errno: libc::EOPNOTSUPP };

// Classic BPF, from linux/bpf_common.h, and what a filter answers, from linux/seccomp.h.
const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const FAIL: u32 = 0x0005_0000;

impl Refusal {
    /// The filter's instructions.
    #[must_use]
    pub fn filter(&self) -> Vec<sock_filter> {
        let number = [(0, self.number as u32)];
        let arguments = self.arguments.iter().map(|(position, value)| (16 + 8 * position, *value));
        let tests: Vec<(u32, u32)> = number.into_iter().chain(arguments).collect();
        let mut filter = Vec::new();
        for (place, (offset, value)) in tests.iter().enumerate() {
            filter.push(sock_filter { code: LOAD, jt: 0, jf: 0, k: *offset });
            // To the last instruction: past the rest of the tests and the refusal.
            let past = u8::try_from(2 * (tests.len() - place - 1) + 1).expect("a few tests");
            filter.push(sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: past, k: *value });
        }
        let answers = [FAIL | self.errno.unsigned_abs(), ALLOW];
        filter.extend(answers.map(|k| sock_filter { code: RETURN, jt: 0, jf: 0, k }));
        filter
    }
}

/// Puts the calling thread, which may administer the system, under a filter. For a forked child:
/// makes one system call.
///
/// # Errors
/// The kernel does not take the filter.
pub fn apply(filter: &mut [sock_filter]) -> io::Result<()> {
    let length = u16::try_from(filter.len()).map_err(io::Error::other)?;
    let program = sock_fprog { len: length, filter: filter.as_mut_ptr() };
    let (mode, program) = (libc::SECCOMP_MODE_FILTER, &raw const program);
    // SAFETY: the kernel reads the program, which outlives the call.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, program) })?;
    Ok(())
}
