//! From a `clawbox run -- /bin/true` to its end, beside bubblewrap and beside nothing, in turn.
//! Loading the programs is told apart: an agent that stays does it once, not for every sandbox.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::figures::{Spread, median};
use crate::report::{Progress, Report, Row, Unit};
use crate::room::{Mode, Room};

const TRUE: &str = "/bin/true";

/// The steps that a `clawbox run` tells under `CLAWBOX_LOG`, see its module `sandbox::run`.
const STEPS: &str = "clawbox::sandbox::run=debug,error";

/// Steps that come with the programs' load and unload, and not with each sandbox.
const ONCE: &[&str] = &["loaded", "removed"];

/// Milliseconds of one start of everything.
#[derive(Debug)]
struct Start {
    plain: f64,
    bwrap: Option<f64>,
    clawbox: f64,
    steps: BTreeMap<String, f64>,
}

impl Start {
    /// What is left of clawbox's time without the steps that an agent would have done before.
    fn each(&self) -> f64 {
        let once = ONCE.iter().filter_map(|step| self.steps.get(*step));
        self.clawbox - once.sum::<f64>()
    }
}

/// Measures and reports.
pub fn measure(room: &Room, rounds: u32, report: &mut Report) -> Result<()> {
    let bwrap = find("bwrap");
    if bwrap.is_none() {
        report.note("bwrap is not installed, so the start stands beside nothing".to_owned());
    }
    let mut progress = Progress::of("startup", rounds);
    let mut starts = Vec::new();
    for number in 0..rounds {
        progress.reached(number);
        room.root.wait_for(0)?;
        starts.push(start(room, bwrap.as_deref(), number)?);
    }
    progress.done();
    rows(&starts, report);
    Ok(())
}

fn start(room: &Room, bwrap: Option<&Path>, number: u32) -> Result<Start> {
    let mut start = Start { plain: 0.0, bwrap: None, clawbox: 0.0, steps: BTreeMap::new() };
    for place in 0..3 {
        match (place + number) % 3 {
            0 => start.plain = timed(&mut Command::new(TRUE))?.0,
            1 => {
                if let Some(bwrap) = bwrap {
                    let mut command = Command::new(bwrap);
                    command.args(["--unshare-all", "--ro-bind", "/", "/", TRUE]);
                    start.bwrap = Some(timed(&mut command)?.0);
                }
            }
            _ => {
                let mut clawbox = room.clawbox(Mode::Enforce, "startup", &[TRUE]);
                clawbox.env("CLAWBOX_LOG", STEPS).env("NO_COLOR", "1");
                let (took, said) = timed(&mut clawbox)?;
                start.clawbox = took;
                start.steps = said.lines().filter_map(step).collect();
                if !ONCE.iter().all(|step| start.steps.contains_key(*step)) {
                    bail!("clawbox does not tell its steps; it says\n{said}");
                }
            }
        }
    }
    Ok(start)
}

/// Milliseconds until the command ended well, and its standard error.
fn timed(command: &mut Command) -> Result<(f64, String)> {
    let began = Instant::now();
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("cannot start `{}`", command.get_program().display()))?;
    let took = milliseconds(began.elapsed());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        let program = command.get_program().display();
        bail!("`{program}` ended with {}: {}", output.status, said.trim());
    }
    Ok((took, said))
}

/// `DEBUG done step="loaded" micros=1234`
fn step(line: &str) -> Option<(String, f64)> {
    let (_, rest) = line.split_once("step=\"")?;
    let (name, rest) = rest.split_once("\" micros=")?;
    let micros: f64 = rest.trim().parse().ok()?;
    Some((name.to_owned(), micros / 1000.0))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|it| it.is_file())
}

fn rows(starts: &[Start], report: &mut Report) {
    let mut add = |what: &str, unit, value: Option<Spread>, note: String| {
        if let Some(value) = value {
            let (bench, what) = ("startup", what.to_owned());
            report.add(Row { bench, what, unit, value, target: None, note });
        }
    };
    let of = |pick: &dyn Fn(&Start) -> Option<f64>| Spread::of(starts.iter().filter_map(pick));
    let ms = Unit::Milliseconds;
    add("fork, exec and wait alone", ms, of(&|it| Some(it.plain)), String::new());
    add("bwrap --unshare-all --ro-bind / /", ms, of(&|it| it.bwrap), String::new());
    add("clawbox run, whole", ms, of(&|it| Some(it.clawbox)), steps(starts));
    let each = of(&|it| Some(it.each()));
    add("clawbox run, without loading and unloading", ms, each, String::new());
    let against = of(&|it| it.bwrap.map(|bwrap| it.clawbox / bwrap));
    add("clawbox run, whole, against bwrap", Unit::Ratio, against, String::new());
    let against = of(&|it| it.bwrap.map(|bwrap| it.each() / bwrap));
    let note = "the number to watch: what each sandbox costs once an agent has loaded".to_owned();
    add("clawbox run, without loading, against bwrap", Unit::Ratio, against, note);
}

/// The median of each step, for a note.
fn steps(starts: &[Start]) -> String {
    let names = ["prepared", "loaded", "started", "ended", "recorded", "removed"];
    let shown: Vec<String> = names
        .iter()
        .filter_map(|name| {
            let times = starts.iter().filter_map(|start| start.steps.get(*name).copied());
            median(times).map(|median| format!("{name} {median:.1}"))
        })
        .collect();
    format!("ms until: {}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_read_from_its_line() {
        let line = r#"DEBUG done step="loaded" micros=41250"#;
        assert_eq!(step(line), Some(("loaded".to_owned(), 41.25)));
        assert_eq!(step("WARN no access below `/x`"), None);
    }
}
