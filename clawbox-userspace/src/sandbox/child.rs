//! The sandbox's first process: born, put into its cgroup, tested, held by the backstops, then
//! the command. And its end, as the exit status of `clawbox run`.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::wait::waitpid;

use super::birth::{self, Born, End, Process};
use super::cgroup::{Cgroup, CgroupError};
use super::entrance::{Entrance, Failure, Parent};
use super::inherit::Inherit;
use super::launch::{Identity, LaunchError, Prepared};
use super::launcher::{Launcher, LauncherError};
use super::oom;
use super::self_test::NOT_ENFORCING;

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

/// Starts the command inside its sandbox: by way of the launcher where there is one, which has less to
/// copy for a child than this process.
///
/// # Errors
/// It did not start; no process is left.
pub fn spawn(
    launcher: &mut Option<Launcher>,
    invocation: &Invocation,
    program: PathBuf,
    cgroup: &Cgroup,
    backstops: &Prepared,
    judges_files: bool,
) -> Result<Process, SpawnError> {
    let Some(name) = invocation.command.first() else {
        return Err(SpawnError::NotFound(String::new()));
    };
    let mut variables: Vec<(OsString, OsString)> =
        vec![("PWD".into(), invocation.workdir.clone().into())];
    if let Some(user) = &invocation.user {
        let named = ["USER", "LOGNAME"].map(|variable| (variable.into(), user.name().into()));
        variables.extend(named);
        variables.extend(home_of(user).map(|home| ("HOME".into(), home.into())));
    }
    let entrance = Entrance {
        program,
        command: invocation.command.clone(),
        workdir: invocation.workdir.clone(),
        variables,
        inherit: invocation.inherit.clone(),
        judges_files,
        cgroup: cgroup.directory()?,
        entry: Arc::clone(&backstops.entry),
    };
    start(launcher, &entrance).map_err(|failure| match failure {
        Failure::SelfTest(error) => SpawnError::SelfTest(error),
        Failure::Streams(error) => SpawnError::Streams(error),
        Failure::PidNamespace(error) => SpawnError::PidNamespace(error),
        Failure::Gone => SpawnError::Gone,
        Failure::Child(error) if error.raw_os_error() == Some(NOT_ENFORCING) => {
            SpawnError::NotEnforcing
        }
        Failure::Child(error) => match backstops.explain(error) {
            LaunchError::Exec(error) if error.kind() == io::ErrorKind::NotFound => {
                SpawnError::NotFound(name.to_string_lossy().into_owned())
            }
            other => SpawnError::Launch(other),
        },
    })
}

/// In the first way that there is: by the launcher, by a birth inside the cgroup, or outside of it.
fn start(launcher: &mut Option<Launcher>, entrance: &Entrance) -> Result<Process, Failure> {
    let mut born = None;
    if let Some(with) = launcher {
        match with.start(entrance) {
            Ok(started) => born = started,
            Err(LauncherError::Refused(failure)) => return Err(failure),
            // Nothing has been asked of it.
            Err(LauncherError::Gone(error)) => {
                tracing::warn!("sandboxes are started by the daemon itself from now on: {error}");
                *launcher = None;
                oom::share();
            }
            Err(LauncherError::Lost(error)) => {
                tracing::error!("what starts sandboxes has ended while it started one: {error}");
                *launcher = None;
                oom::share();
                return Err(Failure::Child(error));
            }
        }
    }
    if born.is_none() && birth::is_single_threaded() {
        born = entrance.bear(Parent::This)?;
    }
    match born {
        None => Ok(Process::new(entrance.fork()?)),
        Some(Born { pid, failed: None }) => Ok(Process::new(pid)),
        Some(Born { pid, failed: Some(error) }) => {
            let _ = waitpid(pid, None);
            Err(Failure::Child(error))
        }
    }
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
