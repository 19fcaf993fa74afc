//! Addresses of the two kernel variables that say when an object may have another path: the kernel
//! counts moved dentries and changed mount trees, whoever makes the change.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Where the kernel lists its symbols, for root.
const KALLSYMS: &str = "/proc/kallsyms";

/// Addresses of `rename_lock` and `mount_lock`. `None` where the kernel does not list its variables
/// (`CONFIG_KALLSYMS_ALL`) or hides addresses: nothing is remembered then.
///
/// On another machine than x86 none: what is remembered is read without a lock, and relies on stores
/// and loads that are seen in order.
#[must_use]
pub fn tree_counts() -> Option<(u64, u64)> {
    if cfg!(target_arch = "x86_64") { find(Path::new(KALLSYMS)) } else { None }
}

fn find(list: &Path) -> Option<(u64, u64)> {
    let (mut renames, mut mounts) = (None, None);
    let mut lines = BufReader::with_capacity(1 << 20, File::open(list).ok()?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line).ok()? == 0 {
            return None;
        }
        let found = if line.ends_with(b" rename_lock\n") {
            &mut renames
        } else if line.ends_with(b" mount_lock\n") {
            &mut mounts
        } else {
            continue;
        };
        // A second one of a name would be some other variable's: whose count it is is not known.
        if found.replace(address(&line)?).is_some() {
            return None;
        }
        if let (Some(renames), Some(mounts)) = (renames, mounts) {
            return Some((renames, mounts));
        }
    }
}

/// The address at the start of a line; none where the kernel shows zeros.
fn address(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?.split(' ').next()?;
    u64::from_str_radix(text, 16).ok().filter(|address| *address != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(list: &str) -> Option<(u64, u64)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), list).unwrap();
        find(file.path())
    }

    #[test]
    fn both_or_none() {
        let both = "ffffffff81000000 T _text\nffffffff82000040 B rename_lock\n\
                    ffffffff82000080 B mount_lock\n";
        assert_eq!(of(both), Some((0xffff_ffff_8200_0040, 0xffff_ffff_8200_0080)));
        assert_eq!(of("ffffffff82000040 B rename_lock\n"), None);
        assert_eq!(of("0000000000000000 B rename_lock\n0000000000000000 B mount_lock\n"), None);
        assert_eq!(of("ffffffff82000040 b my_rename_lock\nffffffff82000080 B mount_lock\n"), None);
        assert_eq!(of(""), None);
    }
}
