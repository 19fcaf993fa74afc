//! Logs of this host that say nothing back: a socket, what is sent to it, and how far that has come. What the
//! socket has taken counts as shipped; of a stream, what the other side's kernel has confirmed.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::libc;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UnixDatagram};
use tokio::time::{sleep, timeout};

use super::{Failure, Receiver, Taker, Way};
use crate::audit::store::event;
use crate::audit::store::read::Row;
use crate::audit::store::schema::Text;

/// A receiver that has taken nothing for so long is connected to anew.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at what the other side has confirmed.
const LOOK: Duration = Duration::from_millis(2);

/// A value is no longer; its end is `…` then. A message fits a datagram so, and most receivers.
const LONGEST: usize = 1_024;

/// Where a log listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A Unix socket.
    Datagrams(PathBuf),
    /// A port of loopback.
    Stream(SocketAddr),
}

/// How an event is said.
pub(super) trait Form {
    fn message(&self, row: Row<'_>) -> Vec<u8>;
}

/// How grave an event is.
pub(super) enum Level {
    Critical,
    Error,
    Warning,
    Info,
}

/// How grave this one is.
pub(super) fn level(row: Row<'_>) -> Level {
    let of = |column| row.text(column).unwrap_or_default();
    match (of(Text::Class), of(Text::Action), of(Text::Verdict)) {
        (_, "alarm", _) => Level::Critical,
        ("gap", ..) => Level::Error,
        (.., "deny") => Level::Warning,
        _ => Level::Info,
    }
}

fn short(text: &str) -> String {
    if text.len() <= LONGEST {
        return text.to_owned();
    }
    let end = (0..=LONGEST).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", text.get(..end).unwrap_or_default())
}

/// An event's line for people, which has no control characters.
pub(super) fn main_line(row: Row<'_>) -> String {
    short(&event::line(row))
}

/// What an event has, each as text.
pub(super) fn fields(row: Row<'_>) -> impl Iterator<Item = (String, String)> {
    let all = event::object(row).into_iter().filter(|(key, _)| key != "time");
    all.map(|(key, value)| {
        let text = match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        (key, short(&text))
    })
}

/// Events on their way.
pub(super) struct Sender<F> {
    pub place: Place,
    pub form: F,
    pub way: Way,
}

enum Socket {
    Datagrams(UnixDatagram),
    Stream(TcpStream),
}

nix::ioctl_read_bad!(unconfirmed_bytes, libc::TIOCOUTQ, libc::c_int);

impl Socket {
    async fn connect(place: &Place) -> io::Result<Self> {
        match place {
            Place::Datagrams(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                Ok(Self::Datagrams(socket))
            }
            Place::Stream(address) => Ok(Self::Stream(TcpStream::connect(address).await?)),
        }
    }

    async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Datagrams(socket) => socket.send(message).await.map(drop),
            Self::Stream(stream) => stream.write_all(message).await,
        }
    }

    /// Waits until the other side has all that was sent.
    async fn confirmed(&mut self) -> io::Result<()> {
        let Self::Stream(stream) = self else { return Ok(()) };
        loop {
            let mut waits = 0;
            // SAFETY: the call writes one number, to which it is given a pointer.
            unsafe { unconfirmed_bytes(stream.as_raw_fd(), &raw mut waits)? };
            // A connection that is reset has nothing waiting either.
            if let Some(error) = stream.take_error()? {
                return Err(error);
            }
            match stream.try_read(&mut [0; 64]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if waits == 0 {
                return Ok(());
            }
            sleep(LOOK).await;
        }
    }
}

/// A log that listens.
struct Log<'f, F> {
    socket: Socket,
    form: &'f F,
}

impl<F: Form> Log<'_, F> {
    async fn say(&mut self, rows: &[Row<'_>]) -> io::Result<()> {
        for row in rows {
            self.socket.send(&self.form.message(*row)).await?;
        }
        self.socket.confirmed().await
    }
}

impl<F: Form> Taker for Log<'_, F> {
    async fn take(&mut self, rows: &[Row<'_>]) -> Result<(), Failure> {
        Ok(timeout(PATIENCE, self.say(rows)).await??)
    }
}

impl<F: Form> Receiver for Sender<F> {
    fn shipped(&self) -> u64 {
        self.way.marks.shipped()
    }

    async fn ship(&mut self) -> Result<Infallible, Failure> {
        let socket = timeout(PATIENCE, Socket::connect(&self.place)).await??;
        self.way.ship(&mut Log { socket, form: &self.form }).await
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::audit::store::columns::Columns;
    use crate::audit::store::limits::Limits;
    use crate::audit::store::read::{Cursor, Everything, Reader};
    use crate::audit::store::row;
    use crate::audit::store::tests::denied;
    use crate::audit::store::writer::Writer;

    /// A denial of this path, as it comes back from a store.
    pub(in crate::ship) fn with_row<T>(path: &str, then: impl FnOnce(Row<'_>) -> T) -> T {
        let place = tempfile::tempdir().unwrap();
        let (store, key) = (place.path().join("audit"), place.path().join("key"));
        let (mut writer, _) = Writer::open(&store, &key, Limits::default()).unwrap();
        let mut columns = Columns::default();
        row::put(&mut columns, "agent-1", Some(3), &denied(path));
        writer.append(&columns.take().into_batch().unwrap().unwrap()).unwrap();
        let mut reader = Reader::at(&store, Cursor::default());
        let batch = reader.next(&mut Everything).unwrap().unwrap();
        then(batch.rows().next().unwrap())
    }

    #[test]
    fn what_is_long_is_cut_between_two_characters() {
        let text = "ä".repeat(LONGEST);
        let cut = short(&text);
        assert_eq!((cut.len(), cut.ends_with('…')), (LONGEST + '…'.len_utf8(), true));
        let long = format!("/{}", "x".repeat(5_000));
        let all: usize = with_row(&long, |row| fields(row).map(|(_, value)| value.len()).sum());
        assert!(all < 3_000, "{all}");
    }
}
