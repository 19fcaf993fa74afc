//! Asks the daemon. A verb of the command line is one question; the command line waits for the answer on
//! a runtime of its own.

use std::io;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::proto::agent_client::AgentClient;
use super::proto::audit_client::AuditClient;
use super::proto::sandboxes_client::SandboxesClient;
use super::{LARGEST, SOCKET, convert, proto};
use crate::sandbox::control::{Answer, Request};

/// Says where the daemon's socket is, if not at [`SOCKET`].
pub const VARIABLE: &str = "CLAWBOX_SOCKET";

/// Why the daemon has not answered as asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It is not there.
    #[error(
        "no answer from `{}`: {source}; is the daemon running? `systemctl status clawbox`, or `clawbox \
         daemon` starts one", path.display()
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Cause.
        source: tonic::transport::Error,
    },
    /// It says no.
    #[error("{}", .0.message())]
    Refused(Status),
    /// It hangs up.
    #[error(
        "the daemon hung up: it has just ended, or this is a process of a sandbox, which has no say"
    )]
    Closed,
    /// It speaks another version's language.
    #[error("the daemon's answer is not of this version of clawbox; upgrade the older of the two")]
    Unknown,
    /// It has gone while a command ran under it.
    #[error("the daemon has ended; the command is enforced on as long as it runs")]
    Ended,
    /// The runtime.
    #[error("cannot wait for the daemon: {0}")]
    Runtime(#[from] io::Error),
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        use std::error::Error as _;
        // What the daemon itself says has no cause here.
        if status.source().is_some() { Self::Closed } else { Self::Refused(status) }
    }
}

impl ClientError {
    /// Whether there is no such sandbox, or none that the caller may see.
    #[must_use]
    pub fn is_unknown_sandbox(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code() == tonic::Code::NotFound)
    }
}

/// The daemon's socket, where there is one.
#[must_use]
pub fn socket() -> Option<PathBuf> {
    let path = std::env::var_os(VARIABLE).map_or_else(|| SOCKET.into(), PathBuf::from);
    path.exists().then_some(path)
}

/// A connection to the daemon.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens.
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        let to = path.to_owned();
        let connector = tower::service_fn(move |_| {
            let to = to.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(to).await?)) }
        });
        // The name is of no use to a Unix socket, and HTTP wants one.
        let endpoint = Endpoint::from_static("http://clawbox.invalid");
        let channel = endpoint.connect_with_connector(connector).await;
        let channel =
            channel.map_err(|source| ClientError::Unreachable { path: path.to_owned(), source })?;
        Ok(Self { channel })
    }

    /// What is about sandboxes.
    #[must_use]
    pub fn sandboxes(&self) -> SandboxesClient<Channel> {
        SandboxesClient::new(self.channel.clone())
            .max_decoding_message_size(LARGEST)
            .max_encoding_message_size(LARGEST)
    }

    /// What the host's audit store has.
    #[must_use]
    pub fn audit(&self) -> AuditClient<Channel> {
        AuditClient::new(self.channel.clone())
    }

    /// What is about the daemon itself.
    #[must_use]
    pub fn agent(&self) -> AgentClient<Channel> {
        AgentClient::new(self.channel.clone())
    }

    /// Asks something of a sandbox.
    ///
    /// # Errors
    /// There is none of this name, or the caller has no say in it.
    pub async fn ask(&self, sandbox: &str, request: Request) -> Result<Answer, ClientError> {
        let mut sandboxes = self.sandboxes();
        let sandbox = sandbox.to_owned();
        let answer = match request {
            Request::SetPolicy(texts) => {
                let texts = convert::texts(&texts);
                sandboxes
                    .set_policy(proto::SetPolicyRequest { sandbox, texts, expected_revision: 0 })
                    .await?
            }
            Request::Waiting => sandboxes.waiting(proto::WaitingRequest { sandbox }).await?,
            Request::Approve { id, lasting } => {
                sandboxes.approve(proto::ApproveRequest { sandbox, id, lasting }).await?
            }
            Request::Deny { id } => sandboxes.deny(proto::DenyRequest { sandbox, id }).await?,
            Request::ApproveRule { rule } => {
                sandboxes.approve_rule(proto::ApprovedRuleRequest { sandbox, rule }).await?
            }
            Request::WithdrawRule { rule } => {
                sandboxes.withdraw_rule(proto::ApprovedRuleRequest { sandbox, rule }).await?
            }
        };
        convert::own_answer(answer.into_inner()).ok_or(ClientError::Unknown)
    }
}

/// Runs one question to its end.
///
/// # Errors
/// As the question.
pub fn wait<T>(question: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(question)
}
