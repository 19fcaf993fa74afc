//! What each of clawbox's kernel programs takes by the kernel's own count, inside a sandbox and
//! outside. It explains the ratios; the counting itself adds some 20 ns to each run.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::libc;

use crate::figures::Spread;
use crate::operation::Operation;
use crate::report::{Progress, Report, Row, Unit};
use crate::room::{Mode, Room};
use crate::worker::Worker;

/// Where clawbox pins the links of its runs, a directory each.
const PINS: &str = "/sys/fs/bpf/clawbox";

/// `BPF_OBJ_GET` and `BPF_ENABLE_STATS`, from linux/bpf.h.
const OBJ_GET: libc::c_long = 7;
const ENABLE_STATS: libc::c_long = 32;

const BATCH: u32 = 1000;

/// Runs of a program and the nanoseconds they took.
#[derive(Clone, Copy, Debug, Default)]
struct Runs {
    count: u64,
    nanoseconds: u64,
}

/// By the program's name, as its link is pinned.
type Counts = BTreeMap<String, Runs>;

/// Measures and reports.
pub fn measure(room: &Room, rounds: u32, report: &mut Report) -> Result<()> {
    // SAFETY: `BPF_STATS_RUN_TIME` is 0.
    let _counting = unsafe { bpf(ENABLE_STATS, &[0]) }.context("cannot count programs' runs")?;
    let mut inside = room.sandboxed(Mode::Enforce)?;
    let mut outside = room.outside()?;
    let programs = Programs::of(inside.pid())?;
    let mut seen: BTreeMap<(String, &str), Vec<f64>> = BTreeMap::new();
    let mut progress = Progress::of("hooks", rounds);
    for number in 0..rounds {
        progress.reached(number);
        let mut sides = [("in a sandbox", &mut inside), ("outside", &mut outside)];
        sides.rotate_left(number as usize % 2);
        for (side, worker) in sides {
            let before = programs.counts()?;
            every_operation(worker)?;
            for (name, after) in programs.counts()? {
                let before = before.get(&name).copied().unwrap_or_default();
                let count = after.count - before.count;
                // Fewer are somebody else's: the programs see the whole host.
                if count >= u64::from(BATCH) {
                    let each = (after.nanoseconds - before.nanoseconds) as f64 / count as f64;
                    seen.entry((name, side)).or_default().push(each);
                }
            }
        }
    }
    progress.done();
    inside.stop()?;
    outside.stop()?;
    room.take_trail()?;
    for ((program, side), samples) in seen {
        let Some(value) = Spread::of(samples) else {
            continue;
        };
        report.add(Row {
            bench: "hooks",
            what: format!("{program}, {side}"),
            unit: Unit::Nanoseconds,
            value,
            target: None,
            note: String::new(),
        });
    }
    Ok(())
}

fn every_operation(worker: &mut Worker) -> Result<()> {
    for &operation in Operation::PLAIN {
        worker.perform(operation, BATCH)?;
        // The reader empties the ring.
        std::thread::sleep(Duration::from_millis(30));
    }
    Ok(())
}

/// The programs of one clawbox, which holds their descriptors.
struct Programs {
    /// Names by program id.
    names: BTreeMap<u64, String>,
    /// Where the clawbox's descriptors are described.
    descriptors: PathBuf,
}

impl Programs {
    fn of(pid: u32) -> Result<Self> {
        let ending = format!("-{pid}");
        let entries = fs::read_dir(PINS).with_context(|| format!("cannot read `{PINS}`"))?;
        let run = entries
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.to_string_lossy().ends_with(&ending))
            .with_context(|| format!("the clawbox with process id {pid} has pinned nothing"))?;
        let mut names = BTreeMap::new();
        for link in fs::read_dir(run)? {
            let link = link?;
            let description = describe(&open_pin(&link.path())?)?;
            if let Some(id) = field(&description, "prog_id") {
                names.insert(id, link.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(Self { names, descriptors: format!("/proc/{pid}/fdinfo").into() })
    }

    fn counts(&self) -> Result<Counts> {
        let mut counts = Counts::new();
        for descriptor in fs::read_dir(&self.descriptors)? {
            let Ok(description) = fs::read_to_string(descriptor?.path()) else {
                continue;
            };
            let (Some(id), Some(count), Some(nanoseconds)) = (
                field(&description, "prog_id"),
                field(&description, "run_cnt"),
                field(&description, "run_time_ns"),
            ) else {
                continue;
            };
            if let Some(name) = self.names.get(&id) {
                counts.insert(name.clone(), Runs { count, nanoseconds });
            }
        }
        Ok(counts)
    }
}

fn open_pin(path: &Path) -> Result<OwnedFd> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the first word is a pointer to a string that outlives the call.
    let opened = unsafe { bpf(OBJ_GET, &[text.as_ptr() as u64, 0, 0]) };
    opened.with_context(|| format!("cannot open `{}`", path.display()))
}

fn describe(descriptor: &OwnedFd) -> Result<String> {
    Ok(fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd()))?)
}

fn field(description: &str, name: &str) -> Option<u64> {
    let line = description.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line?.trim().parse().ok()
}

/// A bpf command that makes a descriptor.
///
/// # Safety
/// The words are what the command expects, with pointers that live as long as the call.
unsafe fn bpf(command: libc::c_long, words: &[u64]) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads the words, which live; the caller vouches for what they say.
    let made = unsafe { libc::syscall(libc::SYS_bpf, command, words.as_ptr(), size_of_val(words)) };
    match i32::try_from(made) {
        // SAFETY: a new descriptor that nobody else knows.
        Ok(descriptor @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}
