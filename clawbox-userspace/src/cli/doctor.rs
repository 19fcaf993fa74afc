//! `clawbox doctor`: layer by layer, what this host can enforce, what is missing and how to get it.
//! Exit status 0 if `clawbox run` can work here, 1 if it cannot. With `--fix`, what would have to be
//! changed for BPF LSM programs to run, printed and not done: 0 if nothing.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::Format;
use crate::kernel::boot::{self, Boot, Fix};
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
    /// Print how this host gets BPF LSM, which boot parameter and by which steps; changes nothing.
    /// Exit status 0 if there is nothing to fix, 1 if there is.
    #[arg(long, conflicts_with = "system_calls")]
    fix: bool,
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
        if self.fix {
            return self.print_fix();
        }
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
        print(&out)?;
        Ok(if diagnosis.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn print_fix(self) -> anyhow::Result<ExitCode> {
        let kernel = probed();
        let release = kernel.release.yes().map(String::as_str);
        let fix = boot::plan(&kernel, &Boot::read(Path::new("/"), release));
        let mut out = Vec::new();
        match self.format {
            Format::Text => write_fix(&mut out, &fix)?,
            Format::Json => {
                serde_json::to_writer_pretty(&mut out, &fix)?;
                writeln!(out)?;
            }
        }
        print(&out)?;
        let is_fine = matches!(fix, Fix::Nothing { .. });
        Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn print(out: &[u8]) -> io::Result<()> {
    match io::stdout().write_all(out) {
        // The reader has seen enough, as with `| head`; the status still counts.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn write_fix(out: &mut dyn Write, fix: &Fix) -> io::Result<()> {
    match fix {
        Fix::Nothing { why } => writeln!(out, "Nothing to fix: {why}."),
        Fix::Elsewhere { why } => {
            writeln!(out, "BPF LSM programs do not run here: {why}.\n")?;
            write_coarser(out)
        }
        Fix::Parameter { distribution, present, parameter, steps } => {
            writeln!(
                out,
                "BPF LSM programs do not run here: `bpf` is not in the kernel's list.\n"
            )?;
            write_coarser(out)?;
            if let Some(present) = present {
                writeln!(out, "\nBooted with:     lsm={present}")?;
            }
            writeln!(out, "\nBoot parameter:  {parameter}")?;
            writeln!(
                out,
                "It keeps every security module that is active now, and has `bpf` before `landlock`."
            )?;
            writeln!(out, "\nSteps for {distribution}, as root:")?;
            for (number, step) in (1..).zip(steps) {
                writeln!(out, "  {number}. {step}")?;
            }
            writeln!(out, "\nNothing has been changed: this command only prints.")
        }
    }
}

fn write_coarser(out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "Until then, in every sandbox:")?;
    lsm::COARSER.iter().try_for_each(|line| writeln!(out, "  - {line}"))
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
        for line in finding.coarser {
            writeln!(out, "{:30}- {line}", "")?;
        }
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
    fn a_fix_is_printed_with_its_list_its_steps_and_what_is_coarser_until_then() {
        let fix = Fix::Parameter {
            distribution: "Debian GNU/Linux 12".to_owned(),
            present: Some("landlock".to_owned()),
            parameter: "lsm=bpf,landlock".to_owned(),
            steps: vec!["update-grub".to_owned(), "reboot".to_owned()],
        };
        let mut text = Vec::new();
        write_fix(&mut text, &fix).unwrap();
        let text = String::from_utf8(text).unwrap();
        for wanted in
            ["Debian", "not in", "lsm=bpf,landlock", "1. update-grub", "only prints", "islands"]
        {
            assert!(text.contains(wanted), "{wanted}: {text}");
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
