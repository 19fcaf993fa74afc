//! The sandbox's first process: born, put into its cgroup, tested, held by the backstops, then
//! the command. And its end, as the exit status of `clawbox run`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::unistd::Pid;

use super::birth::{self, End, OtherPidNamespace, Process};
use super::cgroup::{Cgroup, CgroupError};
use super::inherit::Inherit;
use super::launch::{Identity, LaunchError, PidNamespace, Prepared};
use super::self_test::{NOT_ENFORCING, SelfTest};
use super::watch;

/// Statuses of `clawbox run` that are not the command's own, as env(1) and docker-run(1) have
/// them.
pub mod status {
    /// clawbox could not enforce, or could not start.
    pub const FAILED: u8 = 125;
    /// The command is there but cannot be executed.
    pub const NOT_EXECUTABLE: u8 = 126;
    /// There is no such command.
    pub const NOT_FOUND: u8 = 127;
}

/// Why the command did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The self-test's call went through.
    #[error(
        "the kernel programs are attached but do not enforce: a call that must be denied was not; \
         nothing was started. Is clawbox running in a cgroup namespace or below another cgroup \
         root? `clawbox doctor` says more"
    )]
    NotEnforcing,
    /// The self-test cannot be made.
    #[error("cannot prepare the self-test: {0}; is the loopback interface up?")]
    SelfTest(#[source] io::Error),
    /// The cgroup cannot be entered.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A backstop or the exec itself failed.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// There is no pid namespace to be had.
    #[error(
        "cannot make a pid namespace: {0}; check that user.max_pid_namespaces is not reached, or \
         run with --share pid"
    )]
    PidNamespace(#[source] io::Error),
    /// The sandbox that another command was to be started in has just ended.
    #[error(
        "the sandbox's first process has ended, and with it the sandbox: nothing more starts in it"
    )]
    Gone,
    /// The asking process's streams cannot be given on.
    #[error("cannot give the command its streams: {0}")]
    Streams(#[source] io::Error),
    /// There is no such command.
    #[error("`{0}`: no such command; name one that is in PATH, or give its path")]
    NotFound(String),
    /// The directory to start in is not there.
    #[error("cannot start in `{}`: {source}; name another with --workdir", path.display())]
    Workdir {
        /// Directory.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

impl SpawnError {
    /// The exit status that tells this error from the command's own.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::NotFound(_) => status::NOT_FOUND,
            Self::Launch(LaunchError::Exec(_)) => status::NOT_EXECUTABLE,
            _ => status::FAILED,
        }
    }
}

/// The command as the user gave it.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// Program and arguments; never empty.
    pub command: Vec<OsString>,
    /// Directory to start in.
    pub workdir: PathBuf,
    /// Whom it runs as, if that is somebody else.
    pub user: Option<Identity>,
    /// Trees that the policy lets it read, symlinks resolved.
    pub readable: Vec<PathBuf>,
    /// What it gets of whoever asked for it, if that is another process than this.
    pub inherit: Option<Arc<Inherit>>,
}

/// Starts the command inside its sandbox.
///
/// # Errors
/// It did not start; no process is left.
pub fn spawn(
    invocation: &Invocation,
    path: &Path,
    cgroup: &Cgroup,
    backstops: &Arc<Prepared>,
    judges_files: bool,
) -> Result<Process, SpawnError> {
    let Some((program, arguments)) = invocation.command.split_first() else {
        return Err(SpawnError::NotFound(String::new()));
    };
    let self_test = SelfTest::prepare(judges_files).map_err(SpawnError::SelfTest)?;
    let procs = cgroup.procs()?;
    let mut command = Command::new(path);
    command.arg0(program).args(arguments);
    let inherit = invocation.inherit.clone();
    match &inherit {
        Some(inherit) => inherit.give(&mut command).map_err(SpawnError::Streams)?,
        None => drop(command.current_dir(&invocation.workdir)),
    }
    command.env("PWD", &invocation.workdir);
    if let Some(user) = &invocation.user {
        command.env("USER", user.name()).env("LOGNAME", user.name());
        if let Some(home) = home_of(user) {
            command.env("HOME", home);
        }
    }
    let entering = Arc::clone(backstops);
    let is_inside = Arc::new(AtomicBool::new(true));
    let born_inside = Arc::clone(&is_inside);
    // SAFETY: the closure makes system calls only: a write, those of `Inherit::take_over`, the self-test's socket calls, and
    // `Prepared::enter`, which is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            if !born_inside.load(Ordering::Relaxed) {
                (&procs).write_all(b"0")?;
            }
            if let Some(inherit) = &inherit {
                inherit.take_over()?;
            }
            self_test.run()?;
            entering.enter()?;
            watch::receive_signals()
        });
    }
    let directory = cgroup.directory()?;
    let process = start(&mut command, &directory, backstops.pid_namespace(), &is_inside)?;
    process.map_err(|error| match error.raw_os_error() {
        Some(NOT_ENFORCING) => SpawnError::NotEnforcing,
        _ => match backstops.explain(error) {
            LaunchError::Exec(error) if error.kind() == io::ErrorKind::NotFound => {
                SpawnError::NotFound(program.to_string_lossy().into_owned())
            }
            other => SpawnError::Launch(other),
        },
    })
}

/// The program that an invocation means.
///
/// # Errors
/// It, or the directory to start in, is not there.
pub fn find_program(invocation: &Invocation) -> Result<PathBuf, SpawnError> {
    check_workdir(&invocation.workdir)?;
    match invocation.command.first() {
        Some(program) => find(invocation, program),
        None => Err(SpawnError::NotFound(String::new())),
    }
}

/// The program that an invocation in a sandbox that runs means. What is named with its path is looked for
/// by the child, in the sandbox's own mounts.
///
/// # Errors
/// No directory of PATH has it.
pub fn find_inside(invocation: &Invocation) -> Result<PathBuf, SpawnError> {
    match invocation.command.first() {
        Some(program) if Path::new(program).components().count() > 1 => {
            Ok(invocation.workdir.join(program).components().collect())
        }
        Some(program) => find(invocation, program),
        None => Err(SpawnError::NotFound(String::new())),
    }
}

/// Finds the program as execvp(3) would, but here, where a directory of PATH that the sandbox may
/// not look into does not turn "not found" into "permission denied". Of several the first that the
/// policy makes readable is meant.
fn find(invocation: &Invocation, program: &OsString) -> Result<PathBuf, SpawnError> {
    let named = Path::new(program);
    if named.components().count() > 1 || named.is_absolute() {
        // Without `.` components: scripts are known by their whole path.
        let from: PathBuf = invocation.workdir.join(named).components().collect();
        return match std::fs::symlink_metadata(&from) {
            Ok(_) => Ok(from),
            Err(_) => Err(SpawnError::NotFound(program.to_string_lossy().into_owned())),
        };
    }
    let path = match &invocation.inherit {
        Some(inherit) => inherit.variable("PATH").cloned(),
        None => std::env::var_os("PATH"),
    };
    let path = path.unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let candidates: Vec<PathBuf> = std::env::split_paths(&path)
        .map(|directory| invocation.workdir.join(directory).join(named))
        .filter(|candidate| is_program(candidate))
        .collect();
    let readable = |candidate: &&PathBuf| {
        let resolved = std::fs::canonicalize(candidate).unwrap_or_else(|_| (*candidate).clone());
        invocation.readable.iter().any(|tree| resolved.starts_with(tree))
    };
    let found = candidates.iter().find(readable).or_else(|| candidates.first());
    found.cloned().ok_or_else(|| SpawnError::NotFound(program.to_string_lossy().into_owned()))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path)
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// Starts a command inside a cgroup; where that cannot be, starts it outside and tells it so. The
/// inner error is the child's own.
fn start(
    command: &mut Command,
    cgroup: &File,
    namespace: PidNamespace<'_>,
    is_inside: &AtomicBool,
) -> Result<io::Result<Process>, SpawnError> {
    let joined = match namespace {
        PidNamespace::Of(there) => Some(OtherPidNamespace::join(there)),
        PidNamespace::Same | PidNamespace::New => None,
    };
    let _joined = joined.transpose().map_err(|_| SpawnError::Gone)?;
    let is_new = matches!(namespace, PidNamespace::New);
    let refused = |error: io::Error| match error.raw_os_error() {
        // The limit of namespaces is the only way to this error.
        Some(nix::libc::ENOSPC) => Err(SpawnError::PidNamespace(error)),
        // Of a pid namespace whose process 1 has ended.
        Some(nix::libc::ENOMEM) if matches!(namespace, PidNamespace::Of(_)) => {
            Err(SpawnError::Gone)
        }
        _ => Ok(Err(error)),
    };
    if birth::is_single_threaded() {
        match birth::spawn_in(cgroup.as_fd(), is_new, command) {
            Ok(Some(process)) => return Ok(Ok(process)),
            Ok(None) => {}
            Err(error) => return refused(error),
        }
    }
    is_inside.store(false, Ordering::Relaxed);
    let apart = is_new.then(OtherPidNamespace::for_children).transpose();
    let _apart = apart.map_err(SpawnError::PidNamespace)?;
    match command.spawn() {
        Ok(child) => Ok(Ok(Process::new(Pid::from_raw(child.id().cast_signed())))),
        Err(error) => refused(error),
    }
}

/// Named before the fork, where the error would be taken for one of exec.
fn check_workdir(path: &Path) -> Result<(), SpawnError> {
    let error = match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => io::ErrorKind::NotADirectory.into(),
        Err(error) => error,
    };
    Err(SpawnError::Workdir { path: path.to_owned(), source: error })
}

fn home_of(user: &Identity) -> Option<PathBuf> {
    nix::unistd::User::from_uid(user.uid().into()).ok().flatten().map(|found| found.dir)
}

/// The command's own status: its exit code, or 128 and the signal that ended it.
#[must_use]
pub fn code(ended: End) -> u8 {
    let End::Status(ended) = ended else { return status::FAILED };
    let code = ended.code().or_else(|| ended.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(status::FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_the_exit_code_or_128_and_the_signal() {
        let code = |status| code(End::Status(std::process::ExitStatus::from_raw(status)));
        assert_eq!(code(7 << 8), 7);
        assert_eq!(code(0), 0);
        assert_eq!(code(9), 137);
    }
}
