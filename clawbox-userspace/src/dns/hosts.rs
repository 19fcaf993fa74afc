//! The host's own table of names, /etc/hosts, always as it is at the moment.
//! The file is kept as text and searched: a long list of blocked names costs its own size only.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use super::lock;

/// How often at most the file is looked at.
const RECHECK: Duration = Duration::from_secs(1);
/// Bytes of the file that are read; the lines after that do not count.
const MAX_BYTES: u64 = 1 << 20;

/// A hosts file.
#[derive(Debug)]
pub(super) struct Hosts {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    looked: Option<Instant>,
    stamp: Option<(SystemTime, u64)>,
    text: String,
}

impl Hosts {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, state: Mutex::default() }
    }

    /// The addresses of a name in either family, or none if the file does not have the name.
    ///
    /// The file is local and small, and looked at once a second at most, so reading it here
    /// holds nobody up.
    pub(super) fn find(&self, name: &str) -> Option<Vec<IpAddr>> {
        let state = &mut *lock(&self.state);
        if state.looked.is_none_or(|at| at.elapsed() >= RECHECK) {
            state.looked = Some(Instant::now());
            state.reload(&self.path);
        }
        let found: Vec<_> = state.text.lines().filter_map(|l| address(l, name)).collect();
        (!found.is_empty()).then_some(found)
    }
}

impl State {
    fn reload(&mut self, path: &PathBuf) {
        let Ok(metadata) = std::fs::metadata(path) else {
            *self = Self { looked: self.looked, ..Self::default() };
            return;
        };
        let stamp = metadata.modified().ok().map(|at| (at, metadata.len()));
        if stamp.is_some() && stamp == self.stamp {
            return;
        }
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|f| f.take(MAX_BYTES).read_to_end(&mut bytes));
        if read.is_ok() {
            self.stamp = stamp;
            self.text = String::from_utf8_lossy(&bytes).into_owned();
        }
    }
}

/// The address of a line that has the name.
fn address(line: &str, name: &str) -> Option<IpAddr> {
    let line = line.split_once('#').map_or(line, |(before, _)| before);
    let mut words = line.split_ascii_whitespace();
    let first = words.next()?;
    words
        .any(|word| word.strip_suffix('.').unwrap_or(word).eq_ignore_ascii_case(name))
        .then(|| first.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_column_and_case_and_comments_are_not_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        std::fs::write(
            &path,
            "# c.test\n10.0.0.1 A.test b.test # d.test\n::1 ip6\nnonsense a.test\nfd00::1 a.test.\n",
        )
        .unwrap();
        let hosts = Hosts::new(path);
        let ips = |list: &[&str]| Some(list.iter().map(|ip| ip.parse().unwrap()).collect());
        assert_eq!(hosts.find("a.test"), ips(&["10.0.0.1", "fd00::1"]));
        assert_eq!(hosts.find("b.test"), ips(&["10.0.0.1"]));
        for absent in ["c.test", "d.test", "10.0.0.1", "test", ""] {
            assert_eq!(hosts.find(absent), None, "{absent}");
        }
    }

    #[test]
    fn a_missing_or_binary_file_has_no_names() {
        assert_eq!(Hosts::new("/nonexistent/hosts".into()).find("a.test"), None);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        std::fs::write(&path, [0xff, 0, 10, 0xfe]).unwrap();
        assert_eq!(Hosts::new(path).find("a.test"), None);
    }
}
