//! Two hosts in network namespaces of their own: one where clawbox runs, one with everything else.
//! No route leads out of the pair; what is sent anywhere at all ends in the other namespace.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use tempfile::TempDir;

use crate::capture::{Capture, Packet};

/// The host that clawbox runs on.
pub const HERE: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 10);
/// The same by IPv6.
pub const HERE_V6: Ipv6Addr = Ipv6Addr::new(0x2606, 0x4700, 0x77, 0, 0, 0, 0, 0x10);
/// A public address that tests give to what a policy allows.
pub const SITE: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);
/// The same by IPv6.
pub const SITE_V6: Ipv6Addr = Ipv6Addr::new(0x2606, 0x4700, 0x77, 0, 0, 0, 0, 0x34);
/// A public address that no policy of a test names.
pub const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 35);
/// The same by IPv6.
pub const ELSEWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x2606, 0x4700, 0x77, 0, 0, 0, 0, 0x35);
/// The name server.
pub const NAMESERVER: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 53);
/// A host on a private network.
pub const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 3);
/// The metadata service of clouds.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Every address of the far side.
pub const FAR: [IpAddr; 7] = [
    IpAddr::V4(SITE),
    IpAddr::V4(ELSEWHERE),
    IpAddr::V4(NAMESERVER),
    IpAddr::V4(PRIVATE),
    IpAddr::V4(METADATA),
    IpAddr::V6(SITE_V6),
    IpAddr::V6(ELSEWHERE_V6),
];

/// The user that sandboxes of tests run as.
pub const NOBODY: u32 = 65534;

/// Where clawbox keeps its lock files. Each world has its own, so that no run of another world
/// takes this one's remains for its own to clean up.
const LOCKS: &str = "/run/clawbox";

/// A pair of namespaces and a directory, all gone when it is dropped. The namespaces have no name
/// in the file system: when this process is killed, the kernel takes them down.
pub struct World {
    inside: OwnedFd,
    outside: OwnedFd,
    capture: Capture,
    directory: TempDir,
}

impl World {
    /// Makes a world.
    #[must_use]
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "network namespaces need root");
        share_pins();
        let (inside, outside) = (fresh_namespace(), fresh_namespace());
        for namespace in [&inside, &outside] {
            within(namespace, quiet_ipv6);
        }
        let far = format!("/proc/{}/fd/{}", std::process::id(), outside.as_raw_fd());
        within(&inside, || ip(&near_end(&far)));
        within(&outside, || ip(&far_end()));
        let capture = within(&outside, Capture::start);
        let world = Self { inside, outside, capture, directory: directory() };
        world.flush();
        world
    }

    /// Does something on the host that clawbox runs on, outside every sandbox.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.inside, work)
    }

    /// Does something on the far side.
    pub fn outside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.outside, work)
    }

    /// Makes a command start on the host that clawbox runs on.
    pub fn enter(&self, command: &mut Command) {
        self.entry().enter(command);
    }

    /// The way there, for who cannot borrow the world.
    #[must_use]
    pub fn entry(&self) -> Entry {
        let namespace = self.inside.try_clone().expect("a descriptor can be copied");
        Entry { namespace, locks: self.locks() }
    }

    /// A command that starts on the host that clawbox runs on.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.enter(&mut command);
        command
    }

    /// A command that starts on the far side.
    ///
    /// # Panics
    /// No more descriptors can be had.
    #[must_use]
    pub fn far_command(&self, program: impl AsRef<OsStr>) -> Command {
        let namespace = self.outside.try_clone().expect("a descriptor can be copied");
        let mut command = Command::new(program);
        // SAFETY: the closure makes one system call on a value that it owns.
        unsafe {
            command.pre_exec(move || Ok(setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?));
        }
        command
    }

    /// Every packet that has arrived on the far side. What was sent before the call is in it.
    #[must_use]
    pub fn arrived(&self) -> Vec<Packet> {
        self.flush();
        self.capture.packets()
    }

    /// Waits until everything sent before has arrived.
    fn flush(&self) {
        let mark = self.capture.expect_mark();
        self.inside(|| self.capture.wait_for(mark, SITE));
    }

    /// A directory that everybody may read and nobody but root may write.
    #[must_use]
    pub fn bin(&self) -> PathBuf {
        self.directory.path().join("bin")
    }

    /// A directory of the user that sandboxes run as.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.directory.path().join("work")
    }

    /// A directory for root alone.
    #[must_use]
    pub fn private(&self) -> PathBuf {
        self.directory.path().join("private")
    }

    /// The lock files of this world's runs.
    #[must_use]
    pub fn locks(&self) -> PathBuf {
        self.directory.path().join("locks")
    }

    /// Copies a program to a name of its own in [`World::bin`].
    #[must_use]
    pub fn install(&self, program: &Path, name: &str) -> PathBuf {
        let target = self.bin().join(name);
        copy_program(program, &target);
        target
    }

    /// Writes an executable text to [`World::bin`].
    #[must_use]
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        let target = self.bin().join(name);
        let source = self.directory.path().join("script");
        fs::write(&source, text).expect("the directory of a world can be written");
        copy_program(&source, &target);
        target
    }
}

/// The way to the host of a world.
pub struct Entry {
    namespace: OwnedFd,
    locks: PathBuf,
}

impl Entry {
    /// Makes a command start there.
    ///
    /// # Panics
    /// No more descriptors can be had, or `/run` cannot be written.
    pub fn enter(&self, command: &mut Command) {
        let namespace = self.namespace.try_clone().expect("a descriptor can be copied");
        let locks = self.locks.clone();
        fs::create_dir_all(LOCKS).expect("/run can be written");
        // SAFETY: the closure makes four system calls on values that it owns.
        unsafe {
            command.pre_exec(move || {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                unshare(CloneFlags::CLONE_NEWNS)?;
                let (private, nothing) = (MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>);
                mount(nothing, "/", nothing, private, nothing)?;
                mount(Some(&locks), LOCKS, nothing, MsFlags::MS_BIND, nothing)?;
                Ok(())
            });
        }
    }
}

/// Copies a program, for everybody to run.
///
/// By a process of its own: a child of another test would inherit a descriptor that is open for
/// writing, and until its exec the program could not be started ("text file busy").
///
/// # Panics
///
/// Where it cannot be copied.
pub fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg(from).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "cannot copy `{}`", from.display());
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).expect("just made");
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// Does something in the network of a process.
///
/// # Panics
/// It has ended.
pub fn in_network_of<T: Send>(process: u32, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/proc/{process}/ns/net")).expect("a process");
    within(&namespace.into(), work)
}

/// Runs in a thread of its own: the calling one stays where it is.
fn within<T: Send>(namespace: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).expect("a namespace can be entered");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Where clawbox pins its programs.
const PINS: &str = "/sys/fs/bpf";

/// Mounts bpffs where this machine has not done so. A clawbox would do it for itself, and so in the
/// mount namespace of its world alone, out of the test's sight.
fn share_pins() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let found = statfs(PINS).expect("the kernel has BPF");
        if found.filesystem_type() != BPF_FS_MAGIC {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("bpf"), PINS, Some("bpf"), flags, Some("mode=0700"))
                .expect("bpffs can be mounted");
        }
    });
}

fn fresh_namespace() -> OwnedFd {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("this kernel makes network namespaces");
        File::open("/proc/thread-self/ns/net").expect("proc is mounted").into()
    };
    thread::scope(|scope| scope.spawn(make).join().expect("nothing panics after unshare"))
}

/// No address and no packet of the kernel's own: what is captured was sent by somebody.
fn quiet_ipv6() {
    for (setting, value) in
        [("disable_ipv6", "0"), ("accept_dad", "0"), ("addr_gen_mode", "1"), ("accept_ra", "0")]
    {
        let path = format!("/proc/sys/net/ipv6/conf/default/{setting}");
        fs::write(&path, value)
            .unwrap_or_else(|error| panic!("`{path}`: {error}; the tests need IPv6"));
    }
}

fn near_end(far: &str) -> String {
    format!(
        "link add near type veth peer name far netns {far}\n\
         link set lo up\n\
         link set near up\n\
         addr add {HERE}/24 dev near\n\
         addr add {HERE_V6}/64 dev near nodad\n\
         route add 0.0.0.0/0 via {SITE} dev near\n\
         route add ::/0 via {SITE_V6} dev near\n"
    )
}

fn far_end() -> String {
    let addresses = FAR.iter().map(|address| match address {
        IpAddr::V4(v4) if v4.octets()[0] == SITE.octets()[0] => {
            format!("addr add {v4}/24 dev far\n")
        }
        IpAddr::V4(v4) => format!("addr add {v4}/32 dev far\n"),
        IpAddr::V6(v6) => format!("addr add {v6}/64 dev far nodad\n"),
    });
    let mut lines = "link set lo up\nlink set far up\n".to_owned();
    lines.extend(addresses);
    lines
}

fn ip(lines: &str) {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("`ip` is installed (iproute2)");
    let mut stdin = child.stdin.take().expect("a pipe was asked for");
    stdin.write_all(lines.as_bytes()).expect("ip reads its input");
    drop(stdin);
    let output = child.wait_with_output().expect("ip ends");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip: {complaint}\n{lines}");
}

fn directory() -> TempDir {
    let directory =
        tempfile::Builder::new().prefix("clawbox-test-").tempdir().expect("a directory in /tmp");
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory.path(), open.clone()).expect("just made");
    for name in ["bin", "work", "private", "locks"] {
        let path = directory.path().join(name);
        fs::create_dir(&path).expect("just made");
        fs::set_permissions(&path, open.clone()).expect("just made");
    }
    chown(directory.path().join("work"), Some(NOBODY), Some(NOBODY)).expect("root may");
    for name in ["private", "locks"] {
        let closed = fs::Permissions::from_mode(0o700);
        fs::set_permissions(directory.path().join(name), closed).expect("just made");
    }
    directory
}
