//! `clawbox doctor`: layer by layer, what this host can enforce, what is missing and how to get it.
//! Exit status 0 if `clawbox run` can work here, 1 if it cannot.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::Format;
use crate::kernel::lsm;
use crate::kernel::probe::Kernel;
use crate::sandbox::launch::syscalls;

mod findings;

pub use findings::{Diagnosis, Finding, Gap, State, diagnose};

/// Say what this host can enforce, layer by layer, what is missing and how to get it.
#[derive(Debug, Args)]
pub struct Doctor {
    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Also list every refused system call with its reason.
    #[arg(long)]
    system_calls: bool,
}

/// A row of the list of refused system calls.
#[derive(Debug, Serialize)]
struct RefusedCall {
    name: &'static str,
    refused: &'static str,
    errno: String,
    why: String,
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    diagnosis: &'a Diagnosis,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refused_system_calls: Vec<RefusedCall>,
}

/// What this kernel has, and whether it does what it has.
fn probed() -> Kernel {
    Kernel { bpf_lsm_refusal: lsm::refusal_when_tried(), ..Kernel::probe() }
}

impl Doctor {
    /// Probes, prints, and answers with the exit status.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let diagnosis = diagnose(&probed());
        let calls = if self.system_calls { refused_calls() } else { Vec::new() };
        let mut out = Vec::new();
        match self.format {
            Format::Text => {
                write_text(&mut out, &diagnosis)?;
                write_calls(&mut out, &calls)?;
            }
            Format::Json => {
                let report = Report { diagnosis: &diagnosis, refused_system_calls: calls };
                serde_json::to_writer_pretty(&mut out, &report)?;
                writeln!(out)?;
            }
        }
        match io::stdout().write_all(&out) {
            // The reader has seen enough, as with `| head`; the status still counts.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            other => other?,
        }
        Ok(if diagnosis.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn write_text(out: &mut dyn Write, diagnosis: &Diagnosis) -> io::Result<()> {
    for finding in &diagnosis.layers {
        let state = match finding.state {
            State::Ready => "ready",
            State::Partial => "partial",
            State::Missing if finding.required => "MISSING",
            State::Missing => "missing",
        };
        writeln!(out, "{state:<8} {:<20} {}", finding.layer, finding.found)?;
        for gap in &finding.gaps {
            writeln!(out, "{:30}- {}", "", gap.what)?;
            writeln!(out, "{:32}fix: {}", "", gap.fix)?;
        }
    }
    let verdict = if diagnosis.ready {
        "`clawbox run` can work here. Whether the BPF programs load is tested when it starts."
    } else {
        "`clawbox run` cannot work here: see MISSING above."
    };
    writeln!(out, "\n{verdict}")
}

fn refused_calls() -> Vec<RefusedCall> {
    let row = |denial: &syscalls::Denial| RefusedCall {
        name: denial.name(),
        refused: match denial.when {
            syscalls::When::Always => "always",
            syscalls::When::Any(_) => "by argument",
        },
        errno: format!("{:?}", nix::errno::Errno::from_raw(denial.errno)),
        why: denial.why.to_owned(),
    };
    syscalls::denials().map(row).collect()
}

fn write_calls(out: &mut dyn Write, calls: &[RefusedCall]) -> io::Result<()> {
    if !calls.is_empty() {
        writeln!(out, "\nRefused system calls:")?;
    }
    for RefusedCall { name, refused, errno, why } in calls {
        writeln!(out, "{name:<20} {refused:<12} {errno:<11} {why}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_every_layer_and_every_fix() {
        let diagnosis = diagnose(&Kernel::probe());
        let mut text = Vec::new();
        write_text(&mut text, &diagnosis).unwrap();
        let text = String::from_utf8(text).unwrap();
        for finding in &diagnosis.layers {
            assert!(text.contains(finding.layer), "{}", finding.layer);
            for gap in &finding.gaps {
                assert!(text.contains(&gap.fix), "{}", gap.fix);
            }
        }
    }

    #[test]
    fn the_list_of_calls_has_every_row() {
        let calls = refused_calls();
        assert_eq!(calls.len(), syscalls::denials().count());
        let clone3 = calls.iter().find(|call| call.name == "clone3").unwrap();
        assert_eq!((clone3.refused, clone3.errno.as_str()), ("always", "ENOSYS"));
    }
}
