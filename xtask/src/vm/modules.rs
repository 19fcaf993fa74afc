//! The few kernel modules a guest needs, with what they depend on, in loading order.
//! Dependencies are read from the modules themselves; there is no depmod on the way.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::kernel::find;
use crate::process;

/// What the tests use that Debian builds as modules: overlay file systems, and links between
/// network namespaces.
const WANTED: [&str; 4] = ["overlay", "veth", "dummy", "tcp_diag"];
/// What a root directory on a disk takes. ext4 asks for its checksum by a name that is no
/// dependency of the module's.
const FOR_A_DISK: [&str; 4] = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];

/// File names of modules in the order to load them.
pub struct Modules {
    /// For every guest.
    pub always: Vec<String>,
    /// After those, for one with a disk.
    pub for_a_disk: Vec<String>,
}

/// Names everything wanted: where it changes, directories made before are stale.
pub fn wanted() -> String {
    [&WANTED[..], &FOR_A_DISK[..]].concat().join(" ")
}

/// Copies the wanted modules below `unpacked` into `directory`, uncompressed.
pub fn extract(unpacked: &Path, directory: &Path) -> Result<Modules> {
    let mut seen = BTreeSet::new();
    let mut extract = |names: &[&str]| -> Result<Vec<String>> {
        let mut order = Vec::new();
        for name in names {
            extract_one(name, unpacked, directory, &mut seen, &mut order)?;
        }
        Ok(order)
    };
    Ok(Modules { always: extract(&WANTED)?, for_a_disk: extract(&FOR_A_DISK)? })
}

fn extract_one(
    name: &str,
    unpacked: &Path,
    directory: &Path,
    seen: &mut BTreeSet<String>,
    order: &mut Vec<String>,
) -> Result<()> {
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }
    // Built into some kernels, a module of others: absent is fine, insmod would only repeat it.
    let Some(source) = find(unpacked, &|file| module_name(file).as_deref() == Some(name)) else {
        return Ok(());
    };
    let plain = format!("{name}.ko");
    let target = directory.join(&plain);
    match source.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => {
            fs::copy(&source, &target)
                .with_context(|| format!("cannot copy `{}`", source.display()))?;
        }
        Some("xz") => {
            process::output(Command::new("xz").arg("-d").arg(&source))?;
            fs::rename(source.with_extension(""), &target)
                .with_context(|| format!("cannot move `{}`", source.display()))?;
        }
        _ => bail!("`{}` is compressed in a way this does not know", source.display()),
    }
    let bytes = fs::read(&target).with_context(|| format!("cannot read `{}`", target.display()))?;
    for dependency in depends(&bytes) {
        extract_one(&dependency, unpacked, directory, seen, order)?;
    }
    order.push(plain);
    Ok(())
}

/// `some_module` for `some-module.ko.xz`.
fn module_name(file: &str) -> Option<String> {
    let (stem, extension) = file.split_once('.')?;
    matches!(extension, "ko" | "ko.xz" | "ko.zst" | "ko.gz").then(|| stem.replace('-', "_"))
}

/// What a module names in its `depends=` line.
fn depends(module: &[u8]) -> Vec<String> {
    let key = b"depends=";
    let Some(value) = module.split(|&byte| byte == 0).find_map(|text| text.strip_prefix(key))
    else {
        return Vec::new();
    };
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_module() {
        assert_eq!(
            depends(b"\x7fELF..\0license=GPL\0depends=fscache,net-fs\0x"),
            ["fscache", "net_fs"]
        );
        assert!(depends(b"\x7fELF..\0depends=\0").is_empty());
        assert!(depends(b"\x7fELF..").is_empty());
    }

    #[test]
    fn module_files_are_known_by_their_ends() {
        assert_eq!(module_name("inet-diag.ko.xz").as_deref(), Some("inet_diag"));
        assert_eq!(module_name("modules.order"), None);
    }
}
