//! What dpkg is told about the package: its control file, which of its files the administrator may have
//! changed, and the scripts that run around installing and removing.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{read, sources, tree};
use crate::process;
use crate::workspace::Workspace;

/// Programs that the maintainer scripts run and that are not essential: groupadd and groupdel.
const FOR_SCRIPTS: &str = "passwd";

/// Writes `DEBIAN/` below `root`.
pub fn lay(workspace: &Workspace, root: &Path, control: &str) -> Result<()> {
    tree::file(root, "DEBIAN/control", control.as_bytes(), 0o644)?;
    tree::file(root, "DEBIAN/conffiles", b"/etc/clawbox/agent.yaml\n", 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        let text = read(&sources(workspace).join("debian").join(script))?;
        tree::file(root, &format!("DEBIAN/{script}"), &text, 0o755)?;
    }
    Ok(())
}

/// The control file.
pub fn text(architecture: &str, depends: &str, kibibytes: u64) -> String {
    // Nobody answers at an address that this repository could name, so it names none that exists.
    format!(
        "Package: clawbox\n\
         Version: {version}\n\
         Architecture: {architecture}\n\
         Maintainer: clawbox developers <developers@clawbox.invalid>\n\
         Installed-Size: {kibibytes}\n\
         Depends: {depends}, {FOR_SCRIPTS}\n\
         Section: admin\n\
         Priority: optional\n\
         Homepage: {homepage}\n\
         Description: kernel-enforced sandboxes for AI agents\n \
         Puts AI agents under policies that the kernel enforces: where each of their\n \
         programs may connect, by name, and which files it may use. eBPF programs\n \
         decide; Landlock and seccomp hold underneath; every decision is recorded.\n \
         .\n \
         Needs Linux 6.1 or newer with cgroup v2 and BTF; `clawbox doctor` says what a\n \
         machine has.\n",
        version = env!("CARGO_PKG_VERSION"),
        homepage = env!("CARGO_PKG_REPOSITORY"),
    )
}

/// The libraries of `program`, with the oldest versions that have the symbols it uses.
pub fn depends(scratch: &Path, program: &Path) -> Result<String> {
    // The tool wants to stand in a source package, of which it reads no more than this.
    let control = "Source: clawbox\n\nPackage: clawbox\nArchitecture: any\n";
    let directory = scratch.join("debian");
    fs::create_dir_all(&directory)
        .and_then(|()| fs::write(directory.join("control"), control))
        .with_context(|| format!("cannot write below `{}`", scratch.display()))?;
    let mut command = Command::new("dpkg-shlibdeps");
    command.arg("-O").arg("-e").arg(program).current_dir(scratch);
    let told = process::output(&mut command)?;
    parse_depends(&told)
}

fn parse_depends(told: &str) -> Result<String> {
    match told.lines().find_map(|line| line.strip_prefix("shlibs:Depends=")) {
        Some(depends) if depends.contains("libc6") => Ok(depends.to_owned()),
        _ => bail!("dpkg-shlibdeps does not name libc6 among the libraries: `{}`", told.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_what_the_tool_says() {
        let told = "shlibs:Depends=libc6 (>= 2.34), libgcc-s1 (>= 4.2)\n";
        assert_eq!(parse_depends(told).unwrap(), "libc6 (>= 2.34), libgcc-s1 (>= 4.2)");
        assert!(parse_depends("").is_err());
        assert!(parse_depends("shlibs:Depends=\n").is_err());
    }

    #[test]
    fn a_control_file_has_a_field_on_each_line() {
        let text = text("amd64", "libc6 (>= 2.34)", 7);
        assert!(text.contains("\nDepends: libc6 (>= 2.34), passwd\nSection: admin\n"), "{text}");
        assert!(text.contains("\nInstalled-Size: 7\n") && text.ends_with(".\n"), "{text}");
        for line in text.lines() {
            let is_field = line
                .split_once(": ")
                .is_some_and(|(name, value)| !value.is_empty() && !name.starts_with(' '));
            // What goes on from the line above begins with one space.
            let goes_on = line.starts_with(' ') && !line.starts_with("  ");
            assert!(is_field || goes_on, "`{line}`");
        }
    }
}
