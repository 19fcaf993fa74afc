//! A policy's file is changed: the difference is shown, somebody is asked, and the file is replaced whole.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use similar::TextDiff;

use super::style::Style;
use crate::presets::Named;

/// Whether somebody is asked.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(super) struct Asking {
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
    /// Show the difference, and change nothing
    #[arg(long, conflicts_with = "yes")]
    pub(super) dry_run: bool,
}

/// Shows what would change of a file, asks, and changes it.
///
/// # Errors
/// Nobody is there to ask, or the file cannot be replaced.
pub(super) fn change(
    policy: &Path,
    before: &Named,
    after: &str,
    asking: Asking,
) -> anyhow::Result<ExitCode> {
    show_difference(before, after)?;
    if asking.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    if !asking.yes && !is_wanted(&policy.display().to_string())? {
        return Ok(ExitCode::from(1));
    }
    replace(policy, &before.1, after)
        .with_context(|| format!("cannot replace `{}`", policy.display()))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn show_difference(before: &Named, after: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let style = Style::of(&out);
    for line in difference(&before.0, &before.1, after).lines() {
        match line.chars().next() {
            Some('+') => writeln!(out, "{}", style.good(line))?,
            Some('-') => writeln!(out, "{}", style.bad(line))?,
            _ => writeln!(out, "{line}")?,
        }
    }
    out.flush()
}

pub(super) fn difference(file: &str, before: &str, after: &str) -> String {
    let diff = TextDiff::from_lines(before, after);
    diff.unified_diff().header(file, file).to_string()
}

pub(super) fn is_wanted(what: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("nobody is there to ask; say --yes to change it, or --dry-run to see what would");
    }
    let mut out = std::io::stdout().lock();
    write!(out, "Change `{what}`? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Puts another text in place of a file's, all at once, with its mode and its owner. Not if somebody else
/// has changed it meanwhile.
pub(super) fn replace(file: &Path, before: &str, after: &str) -> anyhow::Result<()> {
    // A link stays one.
    let file = fs::canonicalize(file)?;
    let metadata = fs::metadata(&file)?;
    let mut next = file.clone().into_os_string();
    next.push(format!(".{}.new", std::process::id()));
    let next = PathBuf::from(next);
    let written = || -> anyhow::Result<()> {
        let mut options = OpenOptions::new();
        let mut out = options.write(true).create_new(true).mode(0o600).open(&next)?;
        out.write_all(after.as_bytes())?;
        if metadata.uid() != nix::unistd::geteuid().as_raw()
            || metadata.gid() != nix::unistd::getegid().as_raw()
        {
            std::os::unix::fs::fchown(&out, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        out.set_permissions(fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
        out.sync_all()?;
        if fs::read_to_string(&file)? != before {
            bail!("it has changed meanwhile; look at it and try again");
        }
        Ok(fs::rename(&next, &file)?)
    };
    written().inspect_err(|_| {
        let _ = fs::remove_file(&next);
    })
}

#[cfg(test)]
#[path = "edited_tests.rs"]
mod tests;
