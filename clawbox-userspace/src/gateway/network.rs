//! Where connections are made: in the agent's own network, or in that of a sandbox which has one.
//! A socket stays in the network that it was made in, whoever uses it later.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns};
use tokio::net::{TcpSocket, TcpStream};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Network(Option<Arc<OwnedFd>>);

impl Network {
    /// Of a sandbox that has one of its own.
    #[must_use]
    pub fn of(namespace: OwnedFd) -> Self {
        Self(Some(Arc::new(namespace)))
    }

    /// Does something there.
    ///
    /// # Errors
    /// The network cannot be entered, or what is done fails.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let Some(namespace) = &self.0 else { return work() };
        // A network is a thread's, so that this one's ends with it.
        thread::scope(|scope| {
            let entered = thread::Builder::new().spawn_scoped(scope, || {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                work()
            })?;
            entered.join().unwrap_or_else(|_| Err(io::Error::other("the work has panicked")))
        })
    }

    /// Connects from there.
    ///
    /// # Errors
    /// As [`TcpStream::connect`], or the network cannot be entered.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        if self.0.is_none() {
            return TcpStream::connect(to).await;
        }
        let socket = self.within(|| match to {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        })?;
        socket.connect(to).await
    }
}
