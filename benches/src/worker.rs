//! A process that performs batches of operations when asked, inside a sandbox or outside. It is
//! this same program again, and hears and answers on its standard input, a Unix socket.

use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use crate::operation::{Ends, Operation, Performer, Taken};

/// The argument that makes this program a worker.
pub const ARGUMENT: &str = "worker";

/// A batch takes milliseconds; a start under clawbox less than a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a worker is asked and answers: `OPERATION COUNT` and `WALL PROCESSOR WAIT...`, a line each.
pub fn serve() -> Result<()> {
    let channel = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let performer = Performer::open(receive_ends(&channel)?)?;
    let mut answers = channel.try_clone()?;
    answers.write_all(b"ready\n")?;
    for request in BufReader::new(channel).lines() {
        let request = request?;
        let (operation, count) = request.split_once(' ').context("a request has two words")?;
        let taken = performer.perform(operation.parse()?, count.parse()?)?;
        answers.write_all(written(&taken).as_bytes())?;
    }
    Ok(())
}

/// The line that tells what a batch took, in nanoseconds.
fn written(taken: &Taken) -> String {
    let all = [taken.wall, taken.processor];
    let words = all.iter().chain(&taken.waits).map(|time| time.as_nanos().to_string());
    words.collect::<Vec<_>>().join(" ") + "\n"
}

/// See [`written`].
fn read(line: &str) -> Result<Taken> {
    let mut times = line.split(' ').map(|word| word.parse().map(Duration::from_nanos));
    let mut next = || times.next().context("an answer has two words")?.context("not a time");
    let (wall, processor) = (next()?, next()?);
    Ok(Taken { wall, processor, waits: times.collect::<Result<_, _>>()? })
}

/// The ends come as descriptors, because clawbox closes what a sandboxed program would inherit
/// and a sandbox may not listen.
fn receive_ends(channel: &UnixStream) -> Result<Ends> {
    let mut byte = [0];
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let mut buffer = [IoSliceMut::new(&mut byte)];
    let message =
        recvmsg::<()>(channel.as_raw_fd(), &mut buffer, Some(&mut space), MsgFlags::empty())?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let [listener, sink] = descriptors[..]
        {
            // SAFETY: the kernel has just made these descriptors for this process, and nobody
            // else knows them.
            let (listener, sink) =
                unsafe { (OwnedFd::from_raw_fd(listener), OwnedFd::from_raw_fd(sink)) };
            return Ok(Ends { listener: TcpListener::from(listener), sink: UdpSocket::from(sink) });
        }
    }
    bail!("no descriptors came; this is for the benchmarks to start");
}

/// A running worker, from the other side.
#[derive(Debug)]
pub struct Worker {
    process: Child,
    requests: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Worker {
    /// Starts one by a command that ends up running this program with [`ARGUMENT`].
    pub fn start(command: &mut Command, ends: &Ends) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        let descriptors = [ends.listener.as_raw_fd(), ends.sink.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&descriptors)];
        let byte = [IoSlice::new(b"!")];
        sendmsg::<()>(ours.as_raw_fd(), &byte, &control, MsgFlags::empty(), None)?;
        let process = command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .with_context(|| format!("cannot start `{}`", command.get_program().display()))?;
        // What the command holds of its own end would keep the channel open.
        command.stdin(Stdio::null());
        let answers = BufReader::new(ours.try_clone()?);
        let mut worker = Self { process, requests: ours, answers };
        let answer = worker.answer()?;
        if answer != "ready" {
            bail!("the worker says `{answer}`");
        }
        Ok(worker)
    }

    /// Starts one outside every sandbox.
    pub fn outside(program: &Path, ends: &Ends) -> Result<Self> {
        Self::start(Command::new(program).arg(ARGUMENT), ends)
    }

    /// The process that was started: for a sandboxed worker its clawbox.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Performs a batch.
    pub fn perform(&mut self, operation: Operation, count: u32) -> Result<Taken> {
        writeln!(self.requests, "{} {count}", operation.name())?;
        read(&self.answer()?)
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).context("a worker does not answer")?;
        if line.is_empty() {
            bail!("a worker ended early ({})", self.process.wait()?);
        }
        Ok(line.trim_end().to_owned())
    }

    /// Ends it: it has nothing more to hear.
    pub fn stop(mut self) -> Result<()> {
        let status = self.finish()?;
        if !status.success() {
            bail!("a worker ended with {status}");
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<ExitStatus> {
        // Both halves, or the clone in `answers` would keep the channel open.
        self.requests.shutdown(std::net::Shutdown::Both)?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        bail!("process {} does not end", self.process.id());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // After an error: clawbox takes the signal to its command and cleans up.
        if let Ok(None) = self.process.try_wait() {
            let _ = self.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_tells_is_read_as_it_was_meant() {
        let wait = Duration::from_nanos;
        for waits in [vec![], vec![wait(3), wait(0)]] {
            let taken = Taken { wall: wait(5), processor: wait(4), waits };
            let line = written(&taken);
            assert_eq!(read(line.trim_end()).unwrap(), taken);
        }
        assert!(read("5").is_err() && read("5 x").is_err() && read("").is_err());
    }
}
