//! A sandbox's audit trail for who has a say in it. The loop only says whose it is; the file is read beside
//! it, a piece at a time, and who follows one is woken by its writer.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use tokio::sync::{mpsc, watch};
use tonic::Status;

use super::Daemon;
use super::request::{Refusal, refuse};
use crate::api::peer::Peer;
use crate::api::proto;
use crate::audit::trail::before;

/// Read at one time; between two pieces everybody else has their turn.
const PIECE: usize = 64 << 10;

/// A line that is longer is no record.
const LONGEST: usize = 2 << 20;

/// How every record of a denial has its verdict, and no other can: quotes in texts are escaped.
const DENIED: &[u8] = br#""verdict":"deny""#;

/// A trail that is to be read.
pub struct Source {
    path: PathBuf,
    /// Which of the trail's files is read.
    file: File,
    /// Told after each write, and closed at the sandbox's end; `None` where what is there is all.
    grown: Option<watch::Receiver<()>>,
    denials: bool,
    /// Lines to begin with; zero is all.
    last: u64,
}

impl Daemon {
    /// The trail of a sandbox that runs, or of one that has ended.
    ///
    /// # Errors
    /// There is none, or the caller has no say in it.
    pub(super) fn logs(
        &mut self,
        peer: &Peer,
        request: &proto::LogsRequest,
    ) -> Result<Source, Refusal> {
        let (path, grown) = match self.find(peer, &request.sandbox) {
            Ok(number) => {
                let path = self.members.get(&number).map(|member| member.trail.clone());
                (PathBuf::from(path.unwrap_or_default()), self.host.trail_grows(number))
            }
            Err(refusal) if refusal.code() == tonic::Code::NotFound => {
                let ended = self.store.last_started(&request.sandbox);
                let ended = ended.map_err(|error| refuse(Status::internal(error.to_string())))?;
                let own = ended.into_iter().find(|(_, owner)| peer.manages() || *owner == peer.uid);
                let (id, _) = own.ok_or(refusal)?;
                (self.config.trails.join(format!("{id}.jsonl")), None)
            }
            Err(refusal) => return Err(refusal),
        };
        let file = open(&path).map_err(|error| {
            let why = format!("the trail `{}` cannot be read: {error}", path.display());
            refuse(Status::not_found(why))
        })?;
        let grown = grown.filter(|_| request.follow);
        Ok(Source { path, file, grown, denials: request.denials, last: request.last })
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

fn is_one(file: &File, other: &File) -> io::Result<bool> {
    let (file, other) = (file.metadata()?, other.metadata()?);
    Ok((file.dev(), file.ino()) == (other.dev(), other.ino()))
}

/// Where what is asked for.
struct Piece {
    from: u64,
    bytes: Vec<u8>,
}

/// Whether a line is a sandbox's first: what is before it is of another one, perhaps somebody else's.
fn is_first(line: &[u8]) -> bool {
    let rest = line.strip_prefix(br#"{"time":""#).unwrap_or_default();
    let end = rest.iter().position(|byte| *byte == b'"').unwrap_or(rest.len());
    rest[end..].starts_with(br#"","seq":1,"#)
}

fn contains(line: &[u8], wanted: &[u8]) -> bool {
    line.windows(wanted.len()).any(|window| window == wanted)
}

impl Source {
    fn is_wanted(&self, line: &[u8]) -> bool {
        !self.denials || contains(line, DENIED)
    }

    /// Sends what is asked for, until there is nothing more or nobody listens.
    pub async fn tell(mut self, told: mpsc::Sender<Result<proto::LogLines, Status>>) {
        if let Err(error) = self.tell_all(&told).await {
            let _ =
                told.send(Err(Status::internal(format!("cannot read the trail: {error}")))).await;
        }
    }

    async fn tell_all(
        &mut self,
        told: &mpsc::Sender<Result<proto::LogLines, Status>>,
    ) -> io::Result<()> {
        let mut at = self.beginning().await?;
        loop {
            let mut is_last = self.grown.is_none();
            if let Some(grown) = &mut self.grown {
                // Before the read: what is written after it wakes the next turn.
                is_last = grown.has_changed().is_err();
                grown.mark_unchanged();
            }
            at = self.tell_from(at, told).await?;
            while let Some(next) = self.next()? {
                // What is read was put aside since then, and is whole now.
                self.tell_from(at, told).await?;
                self.file = next;
                at = self.tell_from(0, told).await?;
            }
            if is_last || told.is_closed() {
                return Ok(());
            }
            if let Some(grown) = &mut self.grown {
                tokio::select! {
                    // Its end is told as an error, after which the rest is read.
                    _ = grown.changed() => {}
                    () = told.closed() => return Ok(()),
                }
            }
        }
    }

    /// Sends whole lines from an offset to the end, and gives that.
    async fn tell_from(
        &self,
        mut at: u64,
        told: &mpsc::Sender<Result<proto::LogLines, Status>>,
    ) -> io::Result<u64> {
        let mut room = PIECE;
        loop {
            let Piece { bytes, .. } = self.read(at, room)?;
            let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else {
                // Half a line, or one that is longer.
                if bytes.len() < room || room >= LONGEST {
                    return Ok(at);
                }
                room = (room * 4).min(LONGEST);
                continue;
            };
            room = PIECE;
            let whole = &bytes[..=end];
            at += whole.len() as u64;
            let lines = whole.split_inclusive(|byte| *byte == b'\n');
            let lines: Vec<u8> =
                lines.filter(|line| self.is_wanted(line)).flatten().copied().collect();
            if !lines.is_empty() && told.send(Ok(proto::LogLines { lines })).await.is_err() {
                return Ok(at);
            }
            tokio::task::yield_now().await;
        }
    }

    /// The file that follows the one that is read.
    fn next(&self) -> io::Result<Option<File>> {
        let newest = match open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            newest => newest?,
        };
        if is_one(&newest, &self.file)? {
            return Ok(None);
        }
        // Who is slow may have two to read.
        match open(&before(&self.path)) {
            Ok(older) if !is_one(&older, &self.file)? => Ok(Some(older)),
            _ => Ok(Some(newest)),
        }
    }

    fn read(&self, from: u64, room: usize) -> io::Result<Piece> {
        let mut bytes = vec![0; room];
        let mut length = 0;
        while length < room {
            match self.file.read_at(&mut bytes[length..], from + length as u64) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(length);
        Ok(Piece { from, bytes })
    }

    /// Where the first line stands that is to be sent: going back from the end, the last of so many, and
    /// not before the sandbox's own first. It may be in the file before this one.
    async fn beginning(&mut self) -> io::Result<u64> {
        let mut found = 0;
        if let Some(begins) = self.begins_here(&mut found).await? {
            return Ok(begins);
        }
        let Ok(older) = open(&before(&self.path)) else { return Ok(0) };
        let newer = std::mem::replace(&mut self.file, older);
        // It may be what another sandbox has left.
        let goes_on =
            self.last_number()?.is_some_and(|last| first_number(&newer) == Some(last + 1));
        if !goes_on {
            self.file = newer;
            return Ok(0);
        }
        Ok(self.begins_here(&mut found).await?.unwrap_or(0))
    }

    /// The number of the last line.
    fn last_number(&self) -> io::Result<Option<u64>> {
        let length = self.file.metadata()?.len();
        let from = length.saturating_sub(LONGEST as u64);
        let Piece { mut bytes, .. } = self.read(from, LONGEST)?;
        let line = before_last(&bytes).map_or(0, |newline| newline + 1);
        Ok(number(&bytes.split_off(line)))
    }

    /// [`Source::beginning`] in the file that is read; `None` where it is in none of its lines.
    async fn begins_here(&self, found: &mut u64) -> io::Result<Option<u64>> {
        let mut at = self.file.metadata()?.len();
        // The beginning of a line whose rest has been seen.
        let mut rest: Vec<u8> = Vec::new();
        let mut seen = 0;
        while at > 0 {
            let from = at.saturating_sub(PIECE as u64);
            let Piece { mut bytes, from } =
                self.read(from, usize::try_from(at - from).unwrap_or(PIECE))?;
            at = from;
            bytes.append(&mut rest);
            while let Some(begin) = begin_of_last(&bytes, from) {
                let line = bytes.split_off(begin);
                let begins = from + bytes.len() as u64;
                seen += 1;
                *found += u64::from(self.is_wanted(&line));
                if is_first(&line) || (self.last > 0 && *found >= self.last) {
                    return Ok(Some(begins));
                }
            }
            rest = bytes;
            if rest.len() > LONGEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if seen % 8 == 0 || at > 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(None)
    }
}

/// Where the last line begins: behind a newline, or where the file begins.
fn begin_of_last(bytes: &[u8], from: u64) -> Option<usize> {
    let begin = before_last(bytes).map(|newline| newline + 1);
    begin.or((from == 0 && !bytes.is_empty()).then_some(0))
}

fn number(line: &[u8]) -> Option<u64> {
    serde_json::from_slice::<serde_json::Value>(line).ok()?["seq"].as_u64()
}

/// The number of a file's first line.
fn first_number(file: &File) -> Option<u64> {
    let mut bytes = vec![0; LONGEST];
    let length = file.read_at(&mut bytes, 0).ok()?;
    number(bytes.get(..length)?.split(|byte| *byte == b'\n').next()?)
}

/// The newline before the last line.
fn before_last(bytes: &[u8]) -> Option<usize> {
    let end = bytes.len().checked_sub(1)?;
    bytes.get(..end)?.iter().rposition(|byte| *byte == b'\n')
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn line(seq: u64, verdict: &str, text: &str) -> String {
        let text = serde_json::to_string(text).unwrap();
        format!(
            r#"{{"time":"2026-01-01T00:00:00.000000Z","seq":{seq},"verdict":"{verdict}","text":{text}}}"#
        ) + "\n"
    }

    async fn told(text: &str, denials: bool, last: u64) -> String {
        told_of(["", text], denials, last).await
    }

    /// Of a trail and of what was put aside, where that is anything.
    async fn told_of([aside, text]: [&str; 2], denials: bool, last: u64) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trail.jsonl");
        std::fs::write(&path, text).unwrap();
        if !aside.is_empty() {
            std::fs::write(before(&path), aside).unwrap();
        }
        let (tell, mut told) = mpsc::channel(1024);
        let file = File::open(&path).unwrap();
        Source { path, file, grown: None, denials, last }.tell(tell).await;
        let mut all = Vec::new();
        while let Some(lines) = told.recv().await {
            all.extend(lines.unwrap().lines);
        }
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn a_trail_begins_with_its_own_sandboxs_first_line_and_not_with_another_ones() {
        let earlier = line(1, "deny", "theirs") + &line(2, "deny", "theirs");
        // As long as several pieces, and with texts that look like what is looked for.
        let forged = r#"{"time":"2026","seq":1,"verdict":"deny""#;
        let long = "x".repeat(PIECE);
        let own: Vec<String> = (1..=20)
            .map(|seq| {
                let verdict = if seq % 5 == 0 { "deny" } else { "allow" };
                line(seq, verdict, if seq % 3 == 0 { &long } else { forged })
            })
            .collect();
        let all = earlier + &own.concat();
        assert_eq!(told(&all, false, 0).await, own.concat());
        assert_eq!(told(&all, false, 3).await, own[17..].concat());
        assert_eq!(told(&all, false, 100).await, own.concat());
        let denied = |from: usize| [4, 9, 14, 19][from..].iter().map(|at| own[*at].as_str());
        assert_eq!(told(&all, true, 0).await, denied(0).collect::<String>());
        assert_eq!(told(&all, true, 2).await, denied(2).collect::<String>());
        // Half a line is not told, and a file without its beginning is all of the one sandbox.
        assert_eq!(told(&(own[3..].concat() + "{\"time"), false, 0).await, own[3..].concat());
        assert_eq!(told("", false, 5).await, "");
    }

    #[tokio::test]
    async fn what_was_put_aside_is_told_where_the_trail_goes_on_from_it() {
        let lines = |from, to| (from..=to).map(|seq| line(seq, "deny", "own")).collect::<String>();
        let theirs = |seq| line(seq, "deny", "theirs");
        let (aside, newer) = (theirs(7) + &lines(1, 4), lines(5, 6));
        assert_eq!(told_of([&aside, &newer], false, 0).await, lines(1, 6));
        assert_eq!(told_of([&aside, &newer], false, 3).await, lines(4, 6));
        assert_eq!(told_of([&aside, &newer], true, 2).await, lines(5, 6));
        assert_eq!(told_of([&lines(3, 4), &newer], false, 0).await, lines(3, 6));
        // What another sandbox has left, or nobody knows who.
        assert_eq!(told_of([&theirs(9), &newer], false, 0).await, newer);
        assert_eq!(told_of([&theirs(9), &lines(1, 2)], false, 0).await, lines(1, 2));
        assert_eq!(told_of([&aside, ""], false, 0).await, "");
    }

    #[tokio::test]
    async fn who_follows_a_trail_goes_on_in_the_file_that_takes_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trail.jsonl");
        let write = |seq| {
            let mut out = File::options().create(true).append(true).open(&path).unwrap();
            out.write_all(line(seq, "allow", "a").as_bytes()).unwrap();
        };
        let aside = || std::fs::rename(&path, before(&path)).unwrap();
        let (grow, grown) = watch::channel(());
        let (tell, mut told) = mpsc::channel(16);
        write(1);
        let file = File::open(&path).unwrap();
        let source =
            Source { path: path.clone(), file, grown: Some(grown), denials: false, last: 0 };
        let reader = tokio::spawn(source.tell(tell));
        let mut all = told.recv().await.unwrap().unwrap().lines;
        // Once, and twice before it looks.
        let steps: [&[u64]; 2] = [&[2], &[3, 4]];
        for numbers in steps {
            for seq in numbers {
                aside();
                write(*seq);
            }
            grow.send_replace(());
            for _ in numbers {
                all.extend(told.recv().await.unwrap().unwrap().lines);
            }
        }
        drop(grow);
        assert!(told.recv().await.is_none());
        reader.await.unwrap();
        let wanted: String = (1..=4).map(|seq| line(seq, "allow", "a")).collect();
        assert_eq!(String::from_utf8(all).unwrap(), wanted);
    }

    #[tokio::test]
    async fn who_follows_a_trail_has_each_line_once_until_its_writer_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trail");
        let mut out = File::options().create(true).append(true).open(&path).unwrap();
        let (grow, grown) = watch::channel(());
        let (tell, mut told) = mpsc::channel(4);
        let file = File::open(&path).unwrap();
        out.write_all(line(1, "allow", "a").as_bytes()).unwrap();
        let source = Source { path, file, grown: Some(grown), denials: false, last: 0 };
        let reader = tokio::spawn(source.tell(tell));
        for seq in 2..=30 {
            let lines = told.recv().await.unwrap().unwrap().lines;
            assert_eq!(String::from_utf8(lines).unwrap(), line(seq - 1, "allow", "a"));
            out.write_all(line(seq, "allow", "a").as_bytes()).unwrap();
            grow.send_replace(());
        }
        drop(grow);
        assert!(told.recv().await.unwrap().unwrap().lines.starts_with(b"{"));
        assert!(told.recv().await.is_none());
        reader.await.unwrap();
    }
}
