//! What `check` has to know of this machine, gathered once per policy.
//! A fact that cannot be found out counts against enforcement, never for it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::unistd::{Group, User};

use crate::kernel::probe::Kernel;
use crate::policy::Policy;
use crate::policy::binary_pattern::BinaryPattern;
use crate::policy::enforceability::HostFacts;

/// Directory entries that a glob may look at, so that `/**/x` ends.
const MOST_ENTRIES: usize = 50_000;

/// Gathers the facts about what a policy names; whether BPF LSM programs run here takes so long to
/// find out for certain that the caller decides how.
#[must_use]
pub fn gather(policy: &Policy, bpf_lsm: bool) -> HostFacts {
    let kernel = Kernel::here();
    let abi = kernel.landlock_abi.yes().copied().unwrap_or(0);
    HostFacts {
        cgroup_hooks: kernel.cgroup2.yes().is_some()
            && kernel.version().is_some_and(|version| version >= (6, 1)),
        bpf_lsm,
        landlock_abi: u32::try_from(abi).unwrap_or(0),
        accounts: accounts(policy),
        owners: owners(policy),
        binaries: binaries(policy),
        needed_to_start: needed_to_start(),
    }
}

fn accounts(policy: &Policy) -> BTreeMap<String, u32> {
    let process = &policy.process;
    let user = process.user.as_ref().and_then(|user| user.value.name());
    let group = process.group.as_ref().and_then(|group| group.value.name());
    let user = user.and_then(|name| {
        let user = User::from_name(name).ok().flatten()?;
        Some((name.to_owned(), user.uid.as_raw()))
    });
    let group = group.and_then(|name| {
        let group = Group::from_name(name).ok().flatten()?;
        Some((name.to_owned(), group.gid.as_raw()))
    });
    // Users first: only a user's number is ever compared with a file's owner.
    group.into_iter().chain(user).collect()
}

fn owners(policy: &Policy) -> BTreeMap<PathBuf, u32> {
    let files = &policy.filesystem;
    files
        .read_only()
        .iter()
        .chain(files.read_write())
        .filter_map(|path| {
            let path = path.value.as_path();
            let metadata = std::fs::metadata(path).ok()?;
            Some((path.to_owned(), metadata.uid()))
        })
        .collect()
}

fn binaries(policy: &Policy) -> BTreeMap<String, usize> {
    policy
        .network
        .iter()
        .flat_map(|network| &network.binaries)
        .map(|binary| &binary.pattern)
        .map(|pattern| (pattern.as_str().to_owned(), files_of(pattern)))
        .collect()
}

/// How many files a pattern means here, up to the first for a glob.
fn files_of(pattern: &BinaryPattern) -> usize {
    if let Some(path) = pattern.exact() {
        return usize::from(path.is_file());
    }
    if pattern.is_anybody() {
        return 0;
    }
    let mut directories = vec![pattern.search_root().to_owned()];
    let mut seen = 0;
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            seen += 1;
            if seen > MOST_ENTRIES {
                return 0;
            }
            let path = entry.path();
            // Links to directories are not followed: they may form a circle.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => directories.push(path),
                Ok(_) if pattern.matches(&path) && path.is_file() => return 1,
                _ => {}
            }
        }
    }
    0
}

fn needed_to_start() -> Vec<PathBuf> {
    let architecture = std::env::consts::ARCH;
    let libraries = format!("/lib/{architecture}-linux-gnu/libc.so.6");
    [
        "/lib64/ld-linux-x86-64.so.2",
        "/lib/ld-linux-aarch64.so.1",
        libraries.as_str(),
        "/lib64/libc.so.6",
        "/etc/ld.so.cache",
        "/dev/null",
    ]
    .into_iter()
    .filter_map(|path| std::fs::canonicalize(path).ok())
    .collect::<std::collections::BTreeSet<PathBuf>>()
    .into_iter()
    .collect()
}
