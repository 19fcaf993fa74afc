//! The control socket of one run: root of the host asks for changes while the command runs.
//! One question and one answer a connection, a JSON object a line each.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::confined::is_confined;
use super::run_lock;
use crate::kernel::pinned::Identified;

/// The largest question: a policy and presets of 256 KiB each, escaped.
const LARGEST: u64 = 16 << 20;
/// How long a client may take to bring its question.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a change may take until the client gives up waiting.
const ANSWER: Duration = Duration::from_secs(60);
/// Questions that wait while one is being answered.
const WAITING: usize = 8;

/// A file by name and content: what was checked is what is put in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// As diagnostics name it.
    pub name: String,
    /// What it holds.
    pub text: String,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Replace the policy: the first is the policy, the rest are presets.
    SetPolicy(Vec<Text>),
    /// Which connections wait for an answer?
    Waiting,
    /// Let one go on.
    Approve {
        /// Its number in the list.
        id: u32,
        /// All like it, too, as long as the sandbox runs.
        lasting: bool,
    },
    /// Refuse one.
    Deny {
        /// Its number in the list.
        id: u32,
    },
    /// Approve what a rule allows, as long as the sandbox runs.
    ApproveRule {
        /// An entry of `network_policies`.
        rule: String,
    },
    /// Take it back.
    WithdrawRule {
        /// The entry, as it was approved.
        rule: String,
    },
}

/// A connection that waits for an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// By which it is approved or denied.
    pub id: u32,
    /// Where it is to go: a name, or an address where none was asked for.
    pub host: String,
    /// The port there.
    pub port: u16,
    /// The program; `null` where it ended before its path could be read.
    pub program: Option<String>,
    /// The process, as the host sees it.
    pub pid: u32,
    /// How long it has waited.
    pub seconds: u64,
    /// How long it still waits before it is refused.
    pub seconds_left: u64,
    /// What a policy would have to say, under `network_policies`; empty where no rule can name the
    /// program.
    pub rule: String,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum Answer {
    /// The kernel decides by the new policy.
    Changed {
        /// Number of the policy in this run, from 1.
        generation: u32,
        /// From the question to the switch.
        microseconds: u64,
        /// Sockets that the policy does not allow any more.
        #[serde(default)]
        connections_reset: usize,
        /// What of the policy finds nothing on this host.
        warnings: Vec<String>,
    },
    /// What waits.
    Waiting {
        /// The longest first.
        connections: Vec<Connection>,
    },
    /// A connection goes on.
    Approved {
        /// Which.
        connection: Connection,
        /// Number of the policy that says so from now on, if one does.
        generation: Option<u32>,
    },
    /// A connection was refused.
    Denied {
        /// Which.
        connection: Connection,
    },
    /// Nothing has changed.
    Refused {
        /// In one sentence.
        why: String,
        /// What stands in the way, part by part.
        parts: Vec<String>,
    },
    /// The policy has mistakes; nothing has changed.
    DoesNotLoad {
        /// Each mistake with its place.
        errors: Vec<String>,
    },
}

/// A question, and where its answer goes.
pub type Asked = (Request, oneshot::Sender<Answer>);

/// The socket of a run.
#[must_use]
pub fn path_of(run: &str) -> PathBuf {
    Path::new(run_lock::DIRECTORY).join(format!("{run}{SUFFIX}"))
}

/// What a run's socket ends with.
pub const SUFFIX: &str = ".sock";

/// Makes a run's socket. Who connects waits until [`listen`].
///
/// # Errors
/// The socket cannot be made.
pub fn bind(run: &str) -> io::Result<std::os::unix::net::UnixListener> {
    let path = path_of(run);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // In a directory that only root enters; the mode says the same once more.
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Listens for a run until the receiver is dropped. Call it inside the runtime.
///
/// # Errors
/// The socket cannot be watched.
pub fn listen(
    run: &str,
    listener: std::os::unix::net::UnixListener,
) -> io::Result<mpsc::Receiver<Asked>> {
    let listener = UnixListener::from_std(listener)?;
    let (sender, receiver) = mpsc::channel(WAITING);
    let run = run.to_owned();
    tokio::spawn(async move {
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            match stream {
                Ok((stream, _)) => {
                    tokio::spawn(serve(stream, run.clone(), sender.clone()));
                }
                // Such as a lack of descriptors: what lacks is not there at once either.
                Err(error) => {
                    tracing::warn!("the control socket: {error}");
                    tokio::time::sleep(PATIENCE).await;
                }
            }
        }
    });
    Ok(receiver)
}

async fn serve(stream: tokio::net::UnixStream, run: String, sender: mpsc::Sender<Asked>) {
    let outcome = timeout(ANSWER, exchange(stream, &run, sender)).await;
    match outcome {
        Ok(Err(error)) => tracing::debug!("a client of the control socket: {error}"),
        Err(_) => tracing::debug!("a client of the control socket took too long"),
        Ok(Ok(())) => {}
    }
}

async fn exchange(
    stream: tokio::net::UnixStream,
    run: &str,
    sender: mpsc::Sender<Asked>,
) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let (read, mut write) = stream.into_split();
    let answer = if let Some(why) = stranger(peer.uid(), peer.pid(), run) {
        Answer::Refused { why, parts: Vec::new() }
    } else {
        let mut line = String::new();
        let mut read = tokio::io::BufReader::new(read).take(LARGEST);
        timeout(PATIENCE, read.read_line(&mut line))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        match serde_json::from_str(&line) {
            Ok(request) => {
                let (answer, answered) = oneshot::channel();
                let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
                sender.send((request, answer)).await.map_err(|_| gone())?;
                answered.await.map_err(|_| gone())?
            }
            Err(error) => Answer::Refused {
                why: format!("not a question of this version of clawbox: {error}"),
                parts: Vec::new(),
            },
        }
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    write.write_all(&line).await
}

/// Why a peer may not ask. A process of a sandbox may not even as root.
fn stranger(uid: u32, pid: Option<i32>, run: &str) -> Option<String> {
    let Some(pid) = pid.and_then(|pid| u32::try_from(pid).ok()) else {
        return Some("the kernel does not say who asks".to_owned());
    };
    if uid != 0 {
        return Some("only root changes a policy".to_owned());
    }
    // A run whose identities cannot be read is not asked for anything.
    let is_known = matches!(Identified::of_run(run), Ok(Some(_)));
    (!is_known || is_confined(pid)).then(|| "a sandbox has no say in its policy".to_owned())
}

/// Why a question had no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No run of that name.
    #[error("no sandbox `{name}` is running here{}", list(.running))]
    Unknown {
        /// As asked.
        name: String,
        /// Those that are.
        running: Vec<String>,
    },
    /// More than one run of that name.
    #[error("`{name}` is the name of several sandboxes: {}; name one of them", runs.join(", "))]
    Ambiguous {
        /// As asked.
        name: String,
        /// Those that have it.
        runs: Vec<String>,
    },
    /// The run does not answer.
    #[error("`{}` does not answer: {source}; its clawbox may have been stopped or killed", path.display())]
    Silent {
        /// The socket.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("; running: {}", names.join(", ")) }
}

/// Asks a run, by its own name or by its sandbox's, and waits for the answer.
///
/// # Errors
/// There is no such run, or it does not answer.
pub fn ask(name: &str, request: &Request) -> Result<Answer, AskError> {
    let path = path_of(&find(name, &runs())?);
    let silent = |source| AskError::Silent { path: path.clone(), source };
    let answer = || -> io::Result<Answer> {
        let mut stream = connect(&path, PATIENCE)?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(serde_json::from_str(&answer)?)
    };
    answer().map_err(silent)
}

/// Connects, and waits no longer than this for room in the socket's backlog: a clawbox that is
/// stopped takes nobody out of it.
fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket =
        socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // What bounds a send bounds a connect too: unix_stream_connect() in net/unix/af_unix.c.
    let limit = TimeVal::microseconds(i64::try_from(patience.as_micros()).unwrap_or(i64::MAX));
    socket::setsockopt(&socket, sockopt::SendTimeout, &limit)?;
    match socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) => Ok(socket.into()),
        Err(Errno::EAGAIN) => Err(io::ErrorKind::TimedOut.into()),
        Err(error) => Err(error.into()),
    }
}

/// The runs that have a control socket.
fn runs() -> Vec<String> {
    let entries = std::fs::read_dir(run_lock::DIRECTORY).into_iter().flatten().flatten();
    let mut runs: Vec<String> = entries
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(SUFFIX).map(str::to_owned))
        .collect();
    runs.sort();
    runs
}

fn find(name: &str, runs: &[String]) -> Result<String, AskError> {
    if runs.iter().any(|run| run == name) {
        return Ok(name.to_owned());
    }
    let of_sandbox = |run: &&String| run.rsplit_once('-').is_some_and(|(own, _)| own == name);
    let found: Vec<String> = runs.iter().filter(of_sandbox).cloned().collect();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(AskError::Unknown { name: name.to_owned(), running: runs.to_vec() }),
        _ => Err(AskError::Ambiguous { name: name.to_owned(), runs: found }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_found_by_its_own_name_and_by_its_sandboxes_if_that_is_one() {
        let runs = ["agent-12", "agent-7", "other-1-3"].map(str::to_owned);
        assert_eq!(find("agent-7", &runs).unwrap(), "agent-7");
        assert_eq!(find("other-1", &runs).unwrap(), "other-1-3");
        assert!(matches!(find("agent", &runs), Err(AskError::Ambiguous { .. })));
        let unknown = find("nobody", &runs).unwrap_err().to_string();
        assert!(unknown.ends_with("running: agent-12, agent-7, other-1-3"), "{unknown}");
    }

    #[test]
    fn a_clawbox_that_takes_nobody_is_not_waited_for_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("full.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let patience = Duration::from_millis(20);
        let mut held = Vec::new();
        let error = loop {
            match connect(&path, patience) {
                Ok(stream) => held.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "after {} held", held.len());
        // Somebody is taken out, and there is room again.
        listener.accept().unwrap();
        connect(&path, patience).unwrap();
    }

    #[test]
    fn only_root_outside_every_sandbox_may_ask() {
        assert!(stranger(0, None, "x").is_some());
        assert!(stranger(1000, Some(1), "x").unwrap().contains("only root"));
        // A run whose identities cannot be read is not asked for anything.
        assert!(stranger(0, Some(1), "no-such-run").unwrap().contains("no say"));
    }
}
