//! The lines of a trail's file. Only of a file that keeps what is written to it, or a device without an end
//! would be read for ever, and none longer than any record is.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

/// In bytes. A record has paths and arguments that are bounded, escaped, and what a policy says.
const LONGEST: u64 = 16 << 20;

/// See the module.
#[derive(Debug)]
pub struct Lines(BufReader<File>);

impl Lines {
    /// Those from a byte on.
    ///
    /// # Errors
    /// It cannot be read, or is no regular file.
    pub fn of(path: &Path, from: u64) -> io::Result<Self> {
        // Without waiting for somebody to write to it.
        let is_file = std::fs::metadata(path)?.is_file();
        if !is_file {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it is no regular file"));
        }
        let mut file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(ErrorKind::InvalidInput.into());
        }
        file.seek(SeekFrom::Start(from))?;
        Ok(Self(BufReader::new(file)))
    }

    /// The next line, with its end if it has one; what is too long comes in pieces, which are no records.
    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let read = (&mut self.0).take(LONGEST).read_until(b'\n', &mut line)?;
        Ok((read > 0).then_some(line))
    }
}

impl Iterator for Lines {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_by_lines_from_where_it_is_asked_for_and_a_device_or_a_pipe_is_not() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("trail");
        std::fs::write(&path, "ab\ncd\n\ne").unwrap();
        let read = |from| Lines::of(&path, from).unwrap().map(Result::unwrap).collect::<Vec<_>>();
        assert_eq!(read(3), [&b"cd\n"[..], b"\n", b"e"]);
        assert!(read(99).is_empty());
        let pipe = place.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for other in ["/dev/full", "/dev/zero", "/", pipe.to_str().unwrap()] {
            let refused = Lines::of(Path::new(other), 0).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{other}");
        }
    }

    #[test]
    fn a_line_without_an_end_is_never_in_memory_as_a_whole() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(LONGEST * 2 + 5).unwrap();
        let lengths = Lines::of(file.path(), 0).unwrap().map(|line| line.unwrap().len() as u64);
        assert_eq!(lengths.collect::<Vec<_>>(), [LONGEST, LONGEST, 5]);
    }
}
