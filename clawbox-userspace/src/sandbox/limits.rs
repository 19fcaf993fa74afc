//! How much of the host a sandbox may use: memory, processor time and processes, by the controllers of its
//! cgroup.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cgroup::Cgroup;

/// Processor time is given in parts of this many microseconds, the kernel's own default.
const PERIOD: u64 = 100_000;

/// Less than this nothing can be started with.
const LEAST_MEMORY: u64 = 4 << 20;

/// Bytes: `512M` and so on, by powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Memory(u64);

impl Memory {
    /// So many.
    ///
    /// # Errors
    /// They are too few to start anything.
    pub fn of(bytes: u64) -> Result<Self, String> {
        if bytes < LEAST_MEMORY {
            return Err(format!("at least {}M", LEAST_MEMORY >> 20));
        }
        Ok(Self(bytes))
    }

    /// How many.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl std::str::FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no size; write 512M, 2G or bytes");
        let (number, shift) = match text.char_indices().next_back() {
            Some((at, 'K' | 'k')) => (&text[..at], 10),
            Some((at, 'M' | 'm')) => (&text[..at], 20),
            Some((at, 'G' | 'g')) => (&text[..at], 30),
            _ => (text, 0),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        Self::of(number.checked_mul(1 << shift).ok_or_else(wrong)?)
    }
}

impl TryFrom<String> for Memory {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Memory> for String {
    fn from(memory: Memory) -> Self {
        memory.0.to_string()
    }
}

impl schemars::JsonSchema for Memory {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Memory".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9]+[KMGkmg]?$" })
    }
}

/// Processors, in thousandths: `1.5` is one and a half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cpus(u32);

impl Cpus {
    /// So many thousandths.
    ///
    /// # Errors
    /// The kernel has no smaller part.
    pub fn of(thousandths: u32) -> Result<Self, String> {
        if thousandths < 10 { Err("at least 0.01".to_owned()) } else { Ok(Self(thousandths)) }
    }

    /// How many thousandths.
    #[must_use]
    pub fn thousandths(self) -> u32 {
        self.0
    }
}

impl TryFrom<f64> for Cpus {
    type Error = String;

    fn try_from(number: f64) -> Result<Self, String> {
        if !(0.0..=100_000.0).contains(&number) {
            return Err(format!("`{number}` is no number of processors; write 1.5"));
        }
        // Within bounds, and rounded on purpose.
        Self::of((number * 1000.0).round() as u32)
    }
}

impl std::str::FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse::<f64>().map_err(|_| format!("`{text}` is no number"))?;
        number.try_into()
    }
}

/// Bounds; what is not named has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of memory, the page cache of its files included.
    pub memory: Option<Memory>,
    /// Of processor time.
    pub cpus: Option<Cpus>,
    /// Of processes and threads.
    pub pids: Option<u32>,
}

/// What was asked for, and what stands where nothing was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// By whoever starts the sandbox: to be held, or nothing starts.
    pub asked: Limits,
    /// By the configuration of the host, which is said to be without effect where it is.
    pub default: Limits,
}

/// Why a sandbox cannot be bounded.
#[derive(Debug, thiserror::Error)]
pub enum LimitsError {
    /// More than an ordinary user may have.
    #[error(
        "{what} is bounded to {most} here (`limits` of the agent's configuration); ask for less"
    )]
    TooMuch {
        /// The option.
        what: &'static str,
        /// The bound.
        most: String,
    },
    /// No such controller in the version 2 hierarchy.
    #[error(
        "`--{option}` cannot be held: the {controller} controller is not in the cgroup v2 hierarchy at `{root}` \
         ({why}); boot with systemd.unified_cgroup_hierarchy=1, or leave the option out", root = root.display()
    )]
    NoController {
        /// The option.
        option: &'static str,
        /// What it needs.
        controller: &'static str,
        /// The root of the hierarchy.
        root: PathBuf,
        /// What the host says.
        why: String,
    },
    /// A file of the cgroup does not take it.
    #[error("cannot write `{}`: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

fn write(path: &Path, text: &str) -> Result<(), LimitsError> {
    fs::write(path, text).map_err(|source| LimitsError::Write { path: path.to_owned(), source })
}

impl Wanted {
    /// The bounds of whoever may not have more than `most`.
    ///
    /// # Errors
    /// More was asked for.
    pub fn within(asked: Limits, most: Limits) -> Result<Self, LimitsError> {
        let too_much = |what, most: String| Err(LimitsError::TooMuch { what, most });
        match (asked.memory, most.memory) {
            (Some(asked), Some(most)) if asked > most => {
                return too_much("--memory", format!("{} bytes", most.bytes()));
            }
            _ => {}
        }
        match (asked.cpus, most.cpus) {
            (Some(asked), Some(most)) if asked > most => {
                return too_much("--cpus", format!("{}", f64::from(most.0) / 1000.0));
            }
            _ => {}
        }
        match (asked.pids, most.pids) {
            (Some(asked), Some(most)) if asked > most => {
                return too_much("--pids", most.to_string());
            }
            _ => {}
        }
        Ok(Self { asked, default: most })
    }

    /// Bounds a sandbox's cgroup, in which nobody is yet.
    ///
    /// # Errors
    /// What was asked for cannot be held.
    pub fn apply(&self, cgroup: &Cgroup) -> Result<(), LimitsError> {
        let Self { asked, default } = self;
        let memory = asked.memory.or(default.memory).map(|memory| {
            // What is beyond goes, with all of the sandbox and nobody else.
            let files =
                vec![("memory.max", memory.0.to_string()), ("memory.oom.group", "1".into())];
            (files, asked.memory.is_some())
        });
        let cpus = asked.cpus.or(default.cpus).map(|cpus| {
            let quota = u64::from(cpus.0) * PERIOD / 1000;
            (vec![("cpu.max", format!("{quota} {PERIOD}"))], asked.cpus.is_some())
        });
        let pids = asked
            .pids
            .or(default.pids)
            .map(|pids| (vec![("pids.max", pids.to_string())], asked.pids.is_some()));
        for (option, controller, wanted) in
            [("memory", "memory", memory), ("cpus", "cpu", cpus), ("pids", "pids", pids)]
        {
            let Some((files, is_asked)) = wanted else { continue };
            match enable(cgroup, option, controller) {
                Err(error) if is_asked => return Err(error),
                Err(error) => tracing::warn!("a default limit has no effect: {error}"),
                Ok(()) => {
                    for (file, text) in files {
                        write(&cgroup.path().join(file), &text)?;
                    }
                }
            }
        }
        if asked.memory.or(default.memory).is_some() {
            // Where the kernel keeps account of swap.
            let _ = fs::write(cgroup.path().join("memory.swap.max"), "0");
        }
        Ok(())
    }
}

/// Has the kernel give a sandbox's cgroup the files of a controller, from the root of the hierarchy down.
fn enable(
    cgroup: &Cgroup,
    option: &'static str,
    controller: &'static str,
) -> Result<(), LimitsError> {
    let parent = cgroup.path().parent().unwrap_or(cgroup.path());
    let root = parent.parent().unwrap_or(parent);
    let missing =
        |why: String| LimitsError::NoController { option, controller, root: root.to_owned(), why };
    let there = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    if !there.split_ascii_whitespace().any(|found| found == controller) {
        let why = if there.trim().is_empty() { "none is" } else { "these are: " };
        return Err(missing(format!("{why}{}", there.trim())));
    }
    for directory in [root, parent] {
        let path = directory.join("cgroup.subtree_control");
        fs::write(path, format!("+{controller}")).map_err(|error| missing(error.to_string()))?;
    }
    Ok(())
}

/// What a sandbox uses and may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes; 0 where no controller counts them.
    pub memory: u64,
    /// Bytes; 0 is no bound.
    pub memory_max: u64,
    /// Processes and threads; 0 where no controller counts them.
    pub pids: u64,
    /// 0 is no bound.
    pub pids_max: u64,
    /// Microseconds of processor time so far.
    pub cpu_us: u64,
    /// Thousandths of a processor; 0 is no bound.
    pub cpus_max: u64,
}

impl Usage {
    /// Of a cgroup.
    #[must_use]
    pub fn of(cgroup: &Path) -> Self {
        let read = |file: &str| fs::read_to_string(cgroup.join(file)).unwrap_or_default();
        let number = |file: &str| read(file).trim().parse().unwrap_or(0);
        Self {
            memory: number("memory.current"),
            memory_max: number("memory.max"),
            pids: number("pids.current"),
            pids_max: number("pids.max"),
            cpu_us: spent(&read("cpu.stat")),
            cpus_max: quota(&read("cpu.max")),
        }
    }
}

fn spent(stat: &str) -> u64 {
    let line = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
    line.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// `QUOTA PERIOD` in thousandths; a quota of `max` is none.
fn quota(text: &str) -> u64 {
    let mut numbers = text.split_ascii_whitespace().map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(quota)), Some(Ok(period))) if period > 0 => quota.saturating_mul(1000) / period,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_processors_are_read_as_they_are_written() {
        for (text, bytes) in
            [("512M", 512 << 20), ("2g", 2 << 30), ("8192K", 8 << 20), ("9000000", 9_000_000)]
        {
            assert_eq!(text.parse::<Memory>(), Ok(Memory(bytes)), "{text}");
        }
        for text in ["", "M", "1T", "-1M", "1.5G", "3M", "99999999999999G", "5ä"] {
            assert!(text.parse::<Memory>().is_err(), "{text}");
        }
        assert_eq!("1.5".parse::<Cpus>(), Ok(Cpus(1500)));
        for text in ["0", "-1", "x", "NaN", "inf", "0.001"] {
            assert!(text.parse::<Cpus>().is_err(), "{text}");
        }
    }

    #[test]
    fn nobody_gets_more_than_the_bound_and_who_asks_for_less_gets_less() {
        let of = |memory: &str, pids| Limits { memory: memory.parse().ok(), cpus: None, pids };
        let most = of("1G", Some(100));
        assert!(Wanted::within(of("2G", None), most).unwrap_err().to_string().contains("--memory"));
        assert!(Wanted::within(of("1G", Some(101)), most).is_err());
        let wanted = Wanted::within(of("512M", None), most).unwrap();
        assert_eq!(wanted.asked.memory.or(wanted.default.memory), "512M".parse().ok());
        assert_eq!(wanted.asked.pids.or(wanted.default.pids), Some(100));
    }

    #[test]
    fn the_kernels_files_are_read_with_and_without_a_bound() {
        assert_eq!([quota("150000 100000\n"), quota("max 100000\n"), quota("")], [1500, 0, 0]);
        assert_eq!([spent("usage_usec 42\nuser_usec 1\n"), spent("")], [42, 0]);
    }
}
