//! Whose programs a connect passes right now. Another clawbox on the host would be measured along
//! with ours, or in place of nothing, so a figure counts only while the number is as it should be.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::libc;

/// `BPF_PROG_QUERY` and `BPF_CGROUP_INET4_CONNECT`, from linux/bpf.h.
const PROG_QUERY: libc::c_long = 16;
const INET4_CONNECT: u32 = 10;

/// How long another clawbox may keep us waiting.
const PATIENCE: Duration = Duration::from_secs(120);

/// The `query` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    zero: u32,
}

/// The root of the cgroup hierarchy, where clawbox attaches.
#[derive(Debug)]
pub struct Root(File, PathBuf);

impl Root {
    /// Opens it.
    pub fn open() -> Result<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let path = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let path = fields.next()?;
            (fields.next()? == "cgroup2").then_some(path)
        });
        let path = path.context("no cgroup v2 hierarchy is mounted")?;
        let root = File::open(Path::new(path)).with_context(|| format!("cannot open `{path}`"))?;
        Ok(Self(root, path.into()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.1
    }

    /// Programs that every IPv4 connect on this host passes.
    pub fn programs(&self) -> Result<u32> {
        let mut query = Query {
            target: self.0.as_raw_fd().cast_unsigned(),
            attach_type: INET4_CONNECT,
            ..Query::default()
        };
        // SAFETY: the kernel reads and writes `size` bytes of an initialised structure of ours;
        // without room for ids it writes the count alone.
        let failed = unsafe {
            libc::syscall(libc::SYS_bpf, PROG_QUERY, &raw mut query, size_of::<Query>()) != 0
        };
        if failed {
            bail!("cannot ask what is attached: {}", io::Error::last_os_error());
        }
        Ok(query.count)
    }

    /// Waits until exactly `expected` are attached.
    pub fn wait_for(&self, expected: u32) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.programs()? != expected {
            if Instant::now() > deadline {
                bail!(
                    "{} programs are attached to connect where {expected} should be: is another \
                     clawbox running, or did a killed one leave its pins in /sys/fs/bpf/clawbox? \
                     Figures made beside it would mean nothing",
                    self.programs()?
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}
