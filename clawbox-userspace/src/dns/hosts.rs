//! The host's own table of names, /etc/hosts, always as it is at the moment.
//! The file is kept as text, with a number for each name in it: a long list of blocked names costs not
//! much more than its own size, and no question reads all of it.

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
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
    /// What a name hashes to and where its line begins, in that order.
    names: Vec<(u32, u32)>,
}

/// The host's own.
pub(super) const HOSTS: &str = "/etc/hosts";

/// What the host's own table says at the moment, to be read by [`lines_of`]; nothing where there is none.
#[must_use]
pub fn hosts_file() -> String {
    read(Path::new(HOSTS)).unwrap_or_else(|error| {
        tracing::debug!("{HOSTS} is not read: {error}");
        String::new()
    })
}

/// The names of a hosts file, each with its address.
pub fn lines_of(text: &str) -> impl Iterator<Item = (IpAddr, &str)> {
    text.lines().flat_map(|line| {
        let mut words = words(line);
        let address: Option<IpAddr> = words.next().and_then(|word| word.parse().ok());
        words.filter_map(move |name| Some((address?, undotted(name))))
    })
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
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
        let found = state.find(name);
        (!found.is_empty()).then_some(found)
    }
}

impl State {
    fn find(&self, name: &str) -> Vec<IpAddr> {
        let number = number(name);
        let first = self.names.partition_point(|(other, _)| *other < number);
        let mut lines: Vec<u32> =
            self.names[first..].iter().take_while(|it| it.0 == number).map(|it| it.1).collect();
        // A line may have a name twice.
        lines.dedup();
        let line = |at: u32| self.text.get(at as usize..)?.lines().next();
        // Other names have the same number.
        lines.into_iter().filter_map(|at| address(line(at)?, name)).collect()
    }

    fn reload(&mut self, path: &Path) {
        let Ok(metadata) = std::fs::metadata(path) else {
            *self = Self { looked: self.looked, ..Self::default() };
            return;
        };
        let stamp = metadata.modified().ok().map(|at| (at, metadata.len()));
        if stamp.is_some() && stamp == self.stamp {
            return;
        }
        if let Ok(text) = read(path) {
            self.stamp = stamp;
            self.text = text;
            self.names = numbered(&self.text);
        }
    }
}

/// The names of a text, each by number and the place of its line.
fn numbered(text: &str) -> Vec<(u32, u32)> {
    let mut names = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if let Ok(place) = u32::try_from(at) {
            names.extend(words(line).skip(1).map(|word| (number(word), place)));
        }
        at += line.len();
    }
    names.sort_unstable();
    names.shrink_to_fit();
    names
}

/// A name's number, in any case and with or without the trailing dot.
fn number(name: &str) -> u32 {
    // FNV-1a: every question's name is counted, and nobody gains by two names with one number.
    undotted(name).bytes().fold(0x811c_9dc5, |number, byte| {
        (number ^ u32::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0193)
    })
}

fn undotted(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// Address and names of a line.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split_once('#').map_or(line, |(before, _)| before).split_ascii_whitespace()
}

/// The address of a line that has the name.
fn address(line: &str, name: &str) -> Option<IpAddr> {
    let mut words = words(line);
    let first = words.next()?;
    words.any(|word| undotted(word).eq_ignore_ascii_case(name)).then(|| first.parse().ok())?
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
    fn each_name_of_a_line_has_its_address() {
        let text =
            "# c.test\n10.0.0.1 A.test\tb.test. # d.test\nnonsense a.test\n::1\nfd00::1 a.test\r\n";
        let lines: Vec<(String, &str)> =
            lines_of(text).map(|(ip, name)| (ip.to_string(), name)).collect();
        let expected = [("10.0.0.1", "A.test"), ("10.0.0.1", "b.test"), ("fd00::1", "a.test")];
        assert_eq!(lines, expected.map(|(ip, name)| (ip.to_owned(), name)));
    }

    #[test]
    fn a_long_list_is_searched_for_the_name_alone_and_told_in_its_order() {
        let mut text = String::from("10.0.0.9 many.test MANY.test\r\n");
        (0..20_000).for_each(|n| text += &format!("0.0.0.0 n{n}.test m{n}.test\n"));
        text += "10.0.0.1 many.test";
        let state = State { names: numbered(&text), text, ..State::default() };
        let ips =
            |list: &[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(state.find("many.test"), ips(&["10.0.0.9", "10.0.0.1"]));
        for number in [0, 777, 19_999] {
            assert_eq!(state.find(&format!("m{number}.test")), ips(&["0.0.0.0"]));
        }
        assert_eq!(state.find("n20000.test"), ips(&[]));
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
