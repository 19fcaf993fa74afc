//! `clawbox policy test`: do the assertions beside a policy hold?

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::super::Format;
use super::super::complete;
use super::super::style::Style;
use super::{Report, report_each};
use crate::judge::Judge;
use crate::judge::assertions::{Assertions, Checked};
use crate::policy::{Diagnostic, Origin, load_texts, source};
use crate::presets::{First, fill};

/// Check that a policy allows and denies what a file beside it says
///
/// Each assertion is judged by the code that the kernel runs, on this machine's files and without
/// starting anything. `agent.test.yaml` is about `agent.yaml` if neither it nor --policy says otherwise.
#[derive(Debug, Args)]
#[command(after_help = "\
A file of assertions:
  policy: agent.yaml                  # beside it; may be left out
  presets: [github]                   # may be left out
  tests:
    - allow: curl → api.github.com:443
    - deny: any -> 169.254.169.254:80
    - allow: git > git-remote-https → github.com:443   # git-remote-https, started by git
    - deny: any → read ~/.ssh/id_ed25519
      reason: closed-file             # may be left out, as `rule: KEY` of network_policies
    - allow: node → write /srv/agent/state

A program is named by its path, by its file's name, or as `any`, which no rule names.

Exit status: 0 all hold; 1 at least one does not; 2 a file does not load.

Examples:
  clawbox policy test agent.test.yaml
  clawbox policy test agent.test.yaml --policy next.yaml
  clawbox policy test *.test.yaml --format json | jq '.[].tests[] | select(.holds | not)'")]
pub(super) struct Test {
    /// Files of assertions
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The policy, in place of the one that the file names
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Preset to merge into the policy, a built-in one or a file; may be repeated
    #[arg(long, value_name = "NAME|FILE", add = complete::presets())]
    preset: Vec<String>,
    /// Whose home `~` is, in place of the policy's run_as_user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Where the sandbox would start [default: the current directory]
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What is printed about one file.
#[derive(Serialize)]
struct FileReport {
    file: String,
    policy: String,
    tests: Vec<Checked>,
    /// Paths of the policy that are not on this machine.
    notes: Vec<String>,
}

impl FileReport {
    fn failed(&self) -> usize {
        self.tests.iter().filter(|checked| !checked.holds).count()
    }
}

impl Test {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        report_each(&self.files, self.format, |file| self.check(file))
    }

    fn check(&self, file: &Path) -> Result<FileReport, Vec<Diagnostic>> {
        let name = source::name(file);
        let text = source::read(file).map_err(|error| vec![error])?;
        let assertions = Assertions::parse(&name, &text)?;
        let policy = match (&self.policy, &assertions.policy) {
            (Some(policy), _) => policy.clone(),
            (None, Some(policy)) => beside(file, policy),
            (None, None) => usual(file).ok_or_else(|| vec![no_policy(file)])?,
        };
        let presets = [assertions.presets.as_slice(), self.preset.as_slice()].concat();
        let filled = fill(&First::File(policy.clone()), &presets, self.user.as_deref())?;
        let here = std::env::current_dir().ok();
        // Rules stand at whole paths.
        let named = self.workdir.as_deref().and_then(|named| std::path::absolute(named).ok());
        let workdir = named.as_deref().or(here.as_deref());
        let judge = Judge::of(load_texts(&filled.texts)?.policy, workdir)?;
        let tests = assertions.check(&judge, filled.home.as_deref())?;
        let notes = judge.problems().to_vec();
        let (file, policy) = (name.to_string(), policy.display().to_string());
        Ok(FileReport { file, policy, tests, notes })
    }
}

fn beside(file: &Path, policy: &Path) -> PathBuf {
    file.parent().map_or_else(|| policy.to_owned(), |directory| directory.join(policy))
}

/// `agent.test.yaml` is about `agent.yaml`.
fn usual(file: &Path) -> Option<PathBuf> {
    let name = file.file_name()?.to_string_lossy().into_owned();
    name.contains(".test.").then(|| file.with_file_name(name.replacen(".test.", ".", 1)))
}

fn no_policy(file: &Path) -> Diagnostic {
    let fix = "write `policy: FILE` into it, or add --policy FILE";
    Diagnostic::error(Origin::file(&file.to_string_lossy()), "it names no policy", fix)
}

impl Report for FileReport {
    fn is_good(&self) -> bool {
        self.failed() == 0
    }

    fn print(&self, out: &mut impl Write, style: Style) -> std::io::Result<()> {
        for checked in &self.tests {
            let Checked { origin, expected, statement, found, .. } = checked;
            if checked.holds {
                writeln!(out, "{}    {expected}: {statement}", style.good("ok"))?;
                continue;
            }
            writeln!(
                out,
                "{}  {expected}: {statement}  {}",
                style.bad("FAIL"),
                style.aside(origin.to_string())
            )?;
            let by = match &found.rule {
                Some(rule) => format!(" by {rule}"),
                None => String::new(),
            };
            let program = found.program.display();
            writeln!(out, "      it is {}: {} for {program}{by}", found.verdict, found.reason)?;
            for remark in &found.remarks {
                writeln!(out, "      {remark}")?;
            }
        }
        let failed = self.failed();
        if failed > 0 {
            for note in &self.notes {
                writeln!(out, "{}  {note}", style.doubtful("note"))?;
            }
        }
        let (file, all) = (style.strong(&self.file), self.tests.len());
        match failed {
            0 => writeln!(out, "{file}: {} of {all} hold under {}", style.good(all), self.policy),
            _ => writeln!(
                out,
                "{file}: {} of {all} do not hold under {}",
                style.bad(failed),
                self.policy
            ),
        }
    }
}
