//! Running other programs: output passed through or captured, and errors that say what ran.
//! Nothing here goes through a shell.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, bail};

/// Runs `command` with its output passed through; anything but success is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs `command` with its output passed through.
pub fn status(command: &mut Command) -> Result<ExitStatus> {
    command.status().with_context(|| format!("cannot start `{}`", shown(command)))
}

/// Runs `command` and returns what it wrote to standard output, as text.
pub fn output(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&bytes(command)?).into_owned())
}

/// Runs `command` and returns what it wrote to standard output.
pub fn bytes(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let failed = format!("`{}` failed ({})", shown(command), output.status);
        match errors.trim() {
            "" => bail!("{failed}"),
            errors => bail!("{failed}: {errors}"),
        }
    }
    Ok(output.stdout)
}

/// Runs `command`; what it writes to standard output is passed through and returned.
pub fn tee(command: &mut Command) -> Result<(ExitStatus, String)> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    let written = child.stdout.take().map(|stdout| pass_through(stdout, None)).unwrap_or_default();
    let status = child.wait().with_context(|| format!("cannot wait for `{}`", shown(command)))?;
    Ok((status, written))
}

/// Copies a child's output to ours as it comes; returns all of it. With a label it goes line by
/// line, each with the label in front, so that several may write at once.
pub fn pass_through(mut from: impl Read, label: Option<&str>) -> String {
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    let mut told = 0;
    let mut to = io::stdout();
    loop {
        let length = match from.read(&mut chunk) {
            Ok(length @ 1..) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => break,
        };
        all.extend_from_slice(&chunk[..length]);
        // With nobody left to read it, the child still goes on to its status.
        let Some(label) = label else {
            let _ = to.write_all(&chunk[..length]).and_then(|()| to.flush());
            continue;
        };
        while let Some(end) = all[told..].iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&all[told..told + end]);
            let _ = writeln!(to, "{label:>6} | {}", line.trim_end());
            told += end + 1;
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// The exit code a child's end stands for; 128 + signal where it was killed, as shells have it.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// The first `name` on PATH, then in the administrator's directories, which a user's PATH lacks.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

/// Whether `apt-get` and writes outside the home directory may work.
pub fn is_root() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .and_then(|ids| ids.split_whitespace().nth(1))
            == Some("0")
    })
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}
