//! The services of the control socket. Each request is looked at here as far as who asks goes, and handed
//! to the daemon's one loop, which alone touches sandboxes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::peer::{Peer, PeerStream};
use super::proto::{self, agent_server, audit_server, sandboxes_server};
use super::{LARGEST, convert};
use crate::daemon::logs::Source;
use crate::daemon::reading::Reading;
use crate::sandbox::control;

/// Requests that wait for the daemon's loop.
const WAITING: usize = 64;

/// Events of one run that wait for their reader.
const EVENTS: usize = 16;

/// A pause after an error that may last, such as a lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Where the answer to a request goes.
pub type Reply<T> = oneshot::Sender<Result<T, Status>>;

/// Where the events of a run go; who reads them is the command's user. A channel has room for some dozens,
/// and there are as many as there are sandboxes: each event is somewhere else.
pub type Events = mpsc::Sender<Box<Told>>;

/// An event, or why there is none.
pub type Told = Result<proto::RunEvent, Status>;

/// The events as they are sent.
type Telling = Pin<Box<dyn Stream<Item = Told> + Send>>;

/// Says that somebody has stopped waiting, once their events have nowhere to go any more: fields are dropped in
/// their order.
struct Waiting {
    events: ReceiverStream<Box<Told>>,
    _said: SaysSo,
}

struct SaysSo(Arc<Notify>);

impl Drop for SaysSo {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Stream for Waiting {
    type Item = Told;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Told>> {
        Pin::new(&mut self.events).poll_next(context).map(|told| told.map(|told| *told))
    }
}

/// What the daemon is asked for.
pub enum Asked {
    /// Start a sandbox.
    Run(Box<proto::RunRequest>, Events),
    /// Start a further command in one.
    Exec(proto::ExecRequest, Events),
    /// Whose trail is it, and where?
    Logs(proto::LogsRequest, Reply<Source>),
    /// What of the audit store may they have, and is there room for one more who reads it?
    ReadAudit(Reply<Reading>),
    /// Tell of the end of a sandbox.
    Wait(String, Events),
    /// Make a cgroup a sandbox.
    Attach(Box<proto::AttachRequest>, Reply<proto::Sandbox>),
    /// Which sandboxes are there?
    List(proto::ListRequest, Reply<proto::ListReply>),
    /// Send a signal.
    Signal(proto::SignalRequest, Reply<proto::SignalReply>),
    /// End a sandbox.
    Stop(proto::StopRequest, Reply<proto::StopReply>),
    /// Do something about a sandbox of this name.
    Ask(String, control::Request, Reply<proto::Answer>),
    /// The same where the policy in force is this revision; zero is any.
    Change(String, control::Request, u32, Reply<proto::Answer>),
    /// Which policies were?
    Revisions(String, Reply<proto::RevisionsReply>),
    /// Put one of them in force again.
    Rollback(proto::RollbackRequest, Reply<proto::Answer>),
    /// Set the host's policy, or end it.
    SetGlobal(proto::SetGlobalPolicyRequest, Reply<proto::Answer>),
    /// Which policies had the host?
    Global(Reply<proto::GlobalPolicyReply>),
    /// Which policy is in force?
    Policy(String, Reply<proto::PolicyReply>),
    /// How is the host?
    Status(Reply<proto::StatusReply>),
}

/// A request, and who makes it.
pub type Call = (Peer, Asked);

/// What comes from a socket that is served.
pub struct Served {
    /// The requests.
    pub calls: mpsc::Receiver<Call>,
    /// Whoever waited for a run's end has gone, some time since this was heard last.
    pub departures: Arc<Notify>,
}

/// Serves a socket until the receiver is dropped: nobody who is confined, and others where there is room for
/// them.
///
/// # Errors
/// The socket cannot be watched.
pub fn serve(
    listener: std::os::unix::net::UnixListener,
    is_confined: impl Fn(&Peer) -> bool + Send + 'static,
    has_room: impl Fn(&Peer) -> bool + Send + 'static,
) -> io::Result<Served> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let (calls, asked) = mpsc::channel(WAITING);
    let departures = Arc::new(Notify::new());
    let service = Service { calls, departures: Arc::clone(&departures) };
    let (accepted, connections) = mpsc::channel(WAITING);
    tokio::spawn(accept(listener, accepted, is_confined, has_room));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTION)
        .build_v1()
        .map_err(io::Error::other)?;
    let limited = |service: Service| {
        sandboxes_server::SandboxesServer::new(service).max_decoding_message_size(LARGEST)
    };
    let server = tonic::transport::Server::builder()
        .add_service(reflection)
        .add_service(limited(service.clone()))
        .add_service(audit_server::AuditServer::new(service.clone()))
        .add_service(agent_server::AgentServer::new(service))
        .serve_with_incoming(ReceiverStream::new(connections).map(Ok::<_, io::Error>));
    tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!("the control socket is served no longer: {error}");
        }
    });
    Ok(Served { calls: asked, departures })
}

/// Takes connections of whoever may have one.
async fn accept(
    listener: UnixListener,
    accepted: mpsc::Sender<PeerStream>,
    is_confined: impl Fn(&Peer) -> bool,
    has_room: impl Fn(&Peer) -> bool,
) {
    loop {
        let stream = tokio::select! {
            stream = listener.accept() => stream,
            () = accepted.closed() => return,
        };
        match stream.and_then(|(stream, _)| PeerStream::new(stream)) {
            // Nothing is even read of what a sandbox has to say.
            Ok(stream) if is_confined(stream.peer()) => {
                tracing::warn!("process {} of a sandbox has no say here", stream.peer().pid);
            }
            Ok(stream) if !has_room(stream.peer()) => {
                tracing::debug!("no room for process {} here", stream.peer().pid);
            }
            Ok(stream) => {
                if accepted.send(stream).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!("a client of the control socket: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[derive(Clone)]
struct Service {
    calls: mpsc::Sender<Call>,
    departures: Arc<Notify>,
}

fn gone() -> Status {
    Status::unavailable("the daemon is stopping")
}

fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    let peer = request.extensions().get::<Peer>().cloned();
    peer.ok_or_else(|| Status::unauthenticated("the kernel does not say who asks"))
}

impl Service {
    fn telling(&self, events: mpsc::Receiver<Box<Told>>) -> Telling {
        let said = SaysSo(Arc::clone(&self.departures));
        Box::pin(Waiting { events: ReceiverStream::new(events), _said: said })
    }

    async fn ask<T, R>(
        &self,
        request: Request<T>,
        asked: impl FnOnce(T, Reply<R>) -> Asked,
    ) -> Result<Response<R>, Status> {
        let peer = peer(&request)?;
        let (reply, answer) = oneshot::channel();
        let asked = asked(request.into_inner(), reply);
        self.calls.send((peer, asked)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map(Response::new)
    }
}

#[tonic::async_trait]
impl sandboxes_server::Sandboxes for Service {
    type RunStream = Telling;

    async fn run(
        &self,
        request: Request<proto::RunRequest>,
    ) -> Result<Response<Self::RunStream>, Status> {
        let peer = peer(&request)?;
        let (events, stream) = mpsc::channel(EVENTS);
        let asked = Asked::Run(Box::new(request.into_inner()), events);
        self.calls.send((peer, asked)).await.map_err(|_| gone())?;
        Ok(Response::new(self.telling(stream)))
    }

    type ExecStream = Telling;

    async fn exec(
        &self,
        request: Request<proto::ExecRequest>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let peer = peer(&request)?;
        let (events, stream) = mpsc::channel(EVENTS);
        let asked = Asked::Exec(request.into_inner(), events);
        self.calls.send((peer, asked)).await.map_err(|_| gone())?;
        Ok(Response::new(self.telling(stream)))
    }

    type LogsStream = ReceiverStream<Result<proto::LogLines, Status>>;

    async fn logs(
        &self,
        request: Request<proto::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let source = self.ask(request, Asked::Logs).await?.into_inner();
        let (told, stream) = mpsc::channel(EVENTS);
        tokio::spawn(source.tell(told));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type WaitStream = Telling;

    async fn wait(
        &self,
        request: Request<proto::WaitRequest>,
    ) -> Result<Response<Self::WaitStream>, Status> {
        let peer = peer(&request)?;
        let (events, stream) = mpsc::channel(EVENTS);
        let asked = Asked::Wait(request.into_inner().sandbox, events);
        self.calls.send((peer, asked)).await.map_err(|_| gone())?;
        Ok(Response::new(self.telling(stream)))
    }

    async fn attach(
        &self,
        request: Request<proto::AttachRequest>,
    ) -> Result<Response<proto::Sandbox>, Status> {
        self.ask(request, |request, reply| Asked::Attach(Box::new(request), reply)).await
    }

    async fn list(
        &self,
        request: Request<proto::ListRequest>,
    ) -> Result<Response<proto::ListReply>, Status> {
        self.ask(request, Asked::List).await
    }

    async fn signal(
        &self,
        request: Request<proto::SignalRequest>,
    ) -> Result<Response<proto::SignalReply>, Status> {
        self.ask(request, Asked::Signal).await
    }

    async fn stop(
        &self,
        request: Request<proto::StopRequest>,
    ) -> Result<Response<proto::StopReply>, Status> {
        self.ask(request, Asked::Stop).await
    }

    async fn set_policy(
        &self,
        request: Request<proto::SetPolicyRequest>,
    ) -> Result<Response<proto::Answer>, Status> {
        let asked = |request: proto::SetPolicyRequest, reply| {
            let texts = convert::own_texts(request.texts);
            let expected = request.expected_revision;
            Asked::Change(request.sandbox, control::Request::SetPolicy(texts), expected, reply)
        };
        self.ask(request, asked).await
    }

    async fn list_revisions(
        &self,
        request: Request<proto::ListRevisionsRequest>,
    ) -> Result<Response<proto::RevisionsReply>, Status> {
        self.ask(request, |request, reply| Asked::Revisions(request.sandbox, reply)).await
    }

    async fn rollback(
        &self,
        request: Request<proto::RollbackRequest>,
    ) -> Result<Response<proto::Answer>, Status> {
        self.ask(request, Asked::Rollback).await
    }

    async fn set_global_policy(
        &self,
        request: Request<proto::SetGlobalPolicyRequest>,
    ) -> Result<Response<proto::Answer>, Status> {
        self.ask(request, Asked::SetGlobal).await
    }

    async fn get_global_policy(
        &self,
        request: Request<proto::GetGlobalPolicyRequest>,
    ) -> Result<Response<proto::GlobalPolicyReply>, Status> {
        self.ask(request, |_, reply| Asked::Global(reply)).await
    }

    async fn get_policy(
        &self,
        request: Request<proto::GetPolicyRequest>,
    ) -> Result<Response<proto::PolicyReply>, Status> {
        self.ask(request, |request, reply| Asked::Policy(request.sandbox, reply)).await
    }

    async fn waiting(
        &self,
        request: Request<proto::WaitingRequest>,
    ) -> Result<Response<proto::Answer>, Status> {
        let asked = |request: proto::WaitingRequest, reply| {
            Asked::Ask(request.sandbox, control::Request::Waiting, reply)
        };
        self.ask(request, asked).await
    }

    async fn approve(
        &self,
        request: Request<proto::ApproveRequest>,
    ) -> Result<Response<proto::Answer>, Status> {
        let asked = |request: proto::ApproveRequest, reply| {
            let proto::ApproveRequest { sandbox, id, lasting } = request;
            Asked::Ask(sandbox, control::Request::Approve { id, lasting }, reply)
        };
        self.ask(request, asked).await
    }

    async fn deny(
        &self,
        request: Request<proto::DenyRequest>,
    ) -> Result<Response<proto::Answer>, Status> {
        let asked = |request: proto::DenyRequest, reply| {
            Asked::Ask(request.sandbox, control::Request::Deny { id: request.id }, reply)
        };
        self.ask(request, asked).await
    }

    async fn approve_rule(
        &self,
        request: Request<proto::ApprovedRuleRequest>,
    ) -> Result<Response<proto::Answer>, Status> {
        let asked = |request: proto::ApprovedRuleRequest, reply| {
            let proto::ApprovedRuleRequest { sandbox, rule } = request;
            Asked::Ask(sandbox, control::Request::ApproveRule { rule }, reply)
        };
        self.ask(request, asked).await
    }

    async fn withdraw_rule(
        &self,
        request: Request<proto::ApprovedRuleRequest>,
    ) -> Result<Response<proto::Answer>, Status> {
        let asked = |request: proto::ApprovedRuleRequest, reply| {
            let proto::ApprovedRuleRequest { sandbox, rule } = request;
            Asked::Ask(sandbox, control::Request::WithdrawRule { rule }, reply)
        };
        self.ask(request, asked).await
    }
}

#[tonic::async_trait]
impl agent_server::Agent for Service {
    async fn status(
        &self,
        request: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusReply>, Status> {
        self.ask(request, |_, reply| Asked::Status(reply)).await
    }
}

#[tonic::async_trait]
impl audit_server::Audit for Service {
    type ReadStream = ReceiverStream<Result<proto::AuditText, Status>>;

    async fn read(
        &self,
        request: Request<proto::ReadAuditRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let peer = peer(&request)?;
        let (reply, answer) = oneshot::channel();
        self.calls.send((peer, Asked::ReadAudit(reply))).await.map_err(|_| gone())?;
        let reading = answer.await.map_err(|_| gone())??;
        let (told, stream) = mpsc::channel(EVENTS);
        tokio::task::spawn_blocking(move || reading.tell(request.into_inner(), told));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
