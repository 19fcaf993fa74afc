//! What the package has and where. Modes are said for every file, so that no umask gets in; owners are
//! the packer's business.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::{read, sources};
use crate::process;
use crate::workspace::Workspace;

const DOCUMENTS: &str = "usr/share/doc/clawbox";
/// Of the repository's `docs/`, for who runs clawbox.
const FOR_OPERATORS: [&str; 4] = ["operations.md", "policy.md", "presets.md", "threat-model.md"];

/// Where the agent is; `usr/bin/clawbox` is what stands in front of it.
pub const AGENT: &str = "usr/lib/clawbox/clawbox";

/// Writes the package's files below `root`.
pub fn lay(
    workspace: &Workspace,
    agent: &Path,
    front: &Path,
    manual: &Path,
    root: &Path,
) -> Result<()> {
    let own = sources(workspace);
    let put = |from: PathBuf, to: &str, mode| file(root, to, &read(&from)?, mode);
    put(agent.to_path_buf(), AGENT, 0o755)?;
    put(front.to_path_buf(), "usr/bin/clawbox", 0o755)?;
    put(own.join("clawbox.service"), "usr/lib/systemd/system/clawbox.service", 0o644)?;
    put(own.join("agent.yaml"), "etc/clawbox/agent.yaml", 0o644)?;
    put(own.join("debian/copyright"), &format!("{DOCUMENTS}/copyright"), 0o644)?;
    put(workspace.root().join("README.md"), &format!("{DOCUMENTS}/README.md"), 0o644)?;
    for name in FOR_OPERATORS {
        let from = workspace.root().join("docs").join(name);
        put(from, &format!("{DOCUMENTS}/{name}"), 0o644)?;
    }
    for example in names(&own.join("examples"))? {
        let to = format!("{DOCUMENTS}/examples/{example}");
        put(own.join("examples").join(&example), &to, 0o644)?;
    }
    for kind in ["presets", "claws"] {
        let from = workspace.root().join("policies").join(kind);
        for policy in names(&from)? {
            let to = format!("{DOCUMENTS}/policies/{kind}/{policy}");
            put(from.join(&policy), &to, 0o644)?;
        }
    }
    let groups = workspace.root().join("policies/groups.yaml");
    put(groups, &format!("{DOCUMENTS}/policies/groups.yaml"), 0o644)?;
    for (written, to) in [
        ("clawbox.bash", "usr/share/bash-completion/completions/clawbox"),
        ("_clawbox", "usr/share/zsh/vendor-completions/_clawbox"),
        ("clawbox.fish", "usr/share/fish/vendor_completions.d/clawbox.fish"),
    ] {
        put(manual.join("completions").join(written), to, 0o644)?;
    }
    for page in names(&manual.join("man"))? {
        let to = format!("usr/share/man/man1/{page}.gz");
        file(root, &to, &compressed(&manual.join("man").join(&page))?, 0o644)?;
    }
    Ok(())
}

/// Writes one file and the directories above it.
pub fn file(root: &Path, to: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let path = root.join(to);
    let failed = || format!("cannot write `{}`", path.display());
    let parents: Vec<&Path> = Path::new(to).ancestors().skip(1).collect();
    for parent in parents.into_iter().rev() {
        let parent = root.join(parent);
        fs::create_dir_all(&parent).with_context(failed)?;
        set_mode(&parent, 0o755)?;
    }
    fs::write(&path, bytes).with_context(failed)?;
    set_mode(&path, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of `{}`", path.display()))
}

/// As dpkg counts what is installed: whole KiB of each file, one for each directory.
pub fn kibibytes(root: &Path) -> Result<u64> {
    let mut sum = 0;
    for name in names(root)? {
        let path = root.join(name);
        let metadata = fs::symlink_metadata(&path)?;
        sum +=
            if metadata.is_dir() { 1 + kibibytes(&path)? } else { metadata.len().div_ceil(1024) };
    }
    Ok(sum)
}

/// The names in a directory, in order.
fn names(directory: &Path) -> Result<Vec<String>> {
    let failed = || format!("cannot read `{}`", directory.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).with_context(failed)? {
        names.push(entry.with_context(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// By gzip without name and time in it.
fn compressed(path: &Path) -> Result<Vec<u8>> {
    let mut gzip = Command::new("gzip");
    gzip.args(["-9", "--no-name", "--stdout"]).arg(path).stdin(Stdio::null());
    process::bytes(&mut gzip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_as_said_and_sizes_as_dpkg_counts() {
        let root = std::env::temp_dir().join(format!("clawbox-tree-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        file(&root, "usr/bin/x", &[0; 1025], 0o755).unwrap();
        file(&root, "usr/y", b"", 0o644).unwrap();
        let mode =
            |name: &str| fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("usr"), mode("usr/bin/x"), mode("usr/y")), (0o755, 0o755, 0o644));
        assert_eq!(kibibytes(&root).unwrap(), 4);
        assert_eq!(names(&root.join("usr")).unwrap(), ["bin", "y"]);
        fs::remove_dir_all(&root).unwrap();
    }
}
