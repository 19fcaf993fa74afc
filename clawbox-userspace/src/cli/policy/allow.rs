//! `clawbox policy allow`: one more endpoint, path, port, program or socket for a policy, in its file or as it
//! runs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;
use clap::Args;
use clawbox_common::verdict::Reason;

use super::super::Format;
use super::super::answer::answered;
use super::super::ask::ask;
use super::super::complete;
use super::super::edited::{Asking, change, is_wanted, show_difference};
use super::refused;
use super::revisions::in_force;
use crate::judge::statement::{endpoint, file, listening, socket};
use crate::judge::{Access, Deed, Judge, Judged, Who};
use crate::policy::{Diagnostic, Origin, load_texts, source};
use crate::presets::{Filler, First, Home, Named, fill, insert};
use crate::sandbox::control::{Request, Text};

/// Allow a program one endpoint more, or everybody a path, a port to listen on, a program or a socket
///
/// The entry is written into the policy, comments kept, and the difference is shown first. What is allowed
/// already, or would still be denied with it, is not written. A name on port 443 gets `sni: verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 written, shown with --dry-run, or allowed already; 1 not wanted; 2 it cannot be allowed.

Examples:
  clawbox policy allow policy.yaml --binary curl --endpoint api.github.com:443
  clawbox policy allow policy.yaml --read /srv/data --write /srv/out --dry-run
  clawbox policy allow policy.yaml --listen 127.0.0.1:8080 --execute /usr/bin/git
  clawbox policy allow --sandbox agent --binary /usr/bin/git --endpoint github.com:22")]
pub(super) struct Allow {
    /// The policy
    #[arg(value_name = "FILE", required_unless_present = "sandbox")]
    policy: Option<PathBuf>,
    /// A running sandbox of the daemon's, whose policy is replaced
    #[arg(long, value_name = "NAME", conflicts_with = "policy", add = complete::sandboxes())]
    sandbox: Option<String>,
    /// The program, by its path or its file's name
    #[arg(long, value_name = "PROGRAM", required_unless_present_any = ["read", "write", "listen", "execute", "socket"])]
    binary: Option<String>,
    /// Where it may connect to: HOST:PORT, maybe with /udp, or HOST/icmp; may be repeated
    #[arg(long, value_name = "HOST:PORT", requires = "binary")]
    endpoint: Vec<String>,
    /// What every program may read, and all below it; may be repeated
    #[arg(long, value_name = "PATH")]
    read: Vec<String>,
    /// What every program may read and write, and all below it; may be repeated
    #[arg(long, value_name = "PATH")]
    write: Vec<String>,
    /// Where every program may listen: PORT of 127.0.0.1 or ADDRESS:PORT, maybe with /udp; may be repeated
    #[arg(long, value_name = "[ADDRESS:]PORT")]
    listen: Vec<String>,
    /// What may be started: it joins `execution.allow` where there is one, and can be read; may be repeated
    #[arg(long, value_name = "PATH")]
    execute: Vec<String>,
    /// Let whatever the sandbox can write be started too, where that is what denies it
    #[arg(long, requires = "execute")]
    from_writable: bool,
    /// A Unix socket that every program may connect to; may be repeated
    #[arg(long, value_name = "PATH")]
    socket: Vec<String>,
    /// Where the sandbox would start, which `include_workdir` opens [default: the current directory]
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    #[command(flatten)]
    asking: Asking,
    /// How to print what came of it in a running sandbox
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Allow {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let of_everybody = [&self.read, &self.write, &self.listen, &self.execute, &self.socket];
        if self.endpoint.is_empty() && of_everybody.iter().all(|given| given.is_empty()) {
            bail!(
                "name what to allow: --endpoint, --read, --write, --listen, --execute or --socket"
            );
        }
        if self.binary.is_some() && self.endpoint.is_empty() {
            bail!(
                "only an endpoint is for one program; for a file write `filesystem_policy.rules`, which \
                 BPF LSM holds"
            );
        }
        if let Some(sandbox) = &self.sandbox {
            return self.in_sandbox(sandbox);
        }
        let Some(path) = &self.policy else { bail!("name a policy") };
        let before: Named = match source::read(path) {
            Ok(text) => (source::name(path), text),
            Err(diagnostic) => return refused(&[diagnostic]),
        };
        match self.widened(&before, path, &[]) {
            Ok(Some(after)) => change(path, &before, &after, self.asking),
            Ok(None) => {
                eprintln!("clawbox: `{}` allows it already", path.display());
                Ok(ExitCode::SUCCESS)
            }
            Err(diagnostics) => refused(&diagnostics),
        }
    }

    fn in_sandbox(&self, sandbox: &str) -> anyhow::Result<ExitCode> {
        let mut texts = in_force(sandbox)?;
        let Some((first, presets)) = texts.split_first_mut() else {
            bail!("`{sandbox}` has no policy");
        };
        let before: Named = (first.name.as_str().into(), first.text.clone());
        let after = match self.widened(&before, Path::new(&first.name), presets) {
            Ok(Some(after)) => after,
            Ok(None) => {
                eprintln!("clawbox: the policy of `{sandbox}` allows it already");
                return Ok(ExitCode::SUCCESS);
            }
            Err(diagnostics) => return refused(&diagnostics),
        };
        show_difference(&before, &after)?;
        if self.asking.dry_run {
            return Ok(ExitCode::SUCCESS);
        }
        if !self.asking.yes && !is_wanted(&format!("the policy of {sandbox}"))? {
            return Ok(ExitCode::from(1));
        }
        first.text = after;
        answered(&ask(sandbox, &Request::SetPolicy(texts))?, sandbox, self.format)
    }

    /// The policy's text with all that is wanted; `None` where it allows that already.
    fn widened(
        &self,
        before: &Named,
        path: &Path,
        presets: &[Text],
    ) -> Result<Option<String>, Vec<Diagnostic>> {
        let is_file = self.policy.is_some();
        let home = match is_file {
            true => fill(&First::File(path.to_owned()), &[], None)?.home,
            false => None,
        };
        let (file_name, mut text) = (Arc::clone(&before.0), before.1.clone());
        let wanted = self.wanted(&file_name, home.as_deref())?;
        let judged = |text: &str| self.judge(&file_name, text, presets, home.as_deref());
        for (program, deed) in &wanted {
            let judge = judged(&text)?;
            let program = program_of(&judge, program);
            let who = Who::from(program.as_path());
            let (mut said, mut lifted) = (judge.ask(&who, deed), Vec::new());
            while !said.is_allowed() {
                // The same again: no rule lifts it.
                let is_left = said.reason == Reason::WritableProgram && !self.from_writable;
                if is_left || lifted.contains(&said.reason) {
                    return Err(still_denied(&file_name, deed, &said));
                }
                lifted.push(said.reason);
                let policy = (&file_name, text.as_str());
                text = insert::deed(policy, &program.display().to_string(), deed, said.reason)?;
                said = judged(&text)?.ask(&who, deed);
            }
        }
        Ok((text != before.1).then_some(text))
    }

    /// The judge of a policy's text with presets, with its homes and groups filled in.
    fn judge(
        &self,
        file: &Arc<str>,
        text: &str,
        presets: &[Text],
        home: Option<&Path>,
    ) -> Result<Judge, Vec<Diagnostic>> {
        let home = home.map_or(Home::Of(None), |home| Home::At(home.to_owned()));
        let text = Filler::here(home).fill(file, text)?;
        let mut texts = vec![(Arc::clone(file), text)];
        let presets = presets.iter();
        texts.extend(presets.map(|preset| (preset.name.as_str().into(), preset.text.clone())));
        let here = std::env::current_dir().ok();
        // Rules stand at whole paths.
        let named = self.workdir.as_deref().and_then(|named| std::path::absolute(named).ok());
        let workdir = named.as_deref().or(here.as_deref());
        Judge::of(load_texts(&texts)?.policy, workdir)
    }

    fn wanted(
        &self,
        name: &Arc<str>,
        home: Option<&Path>,
    ) -> Result<Vec<(String, Deed)>, Vec<Diagnostic>> {
        let binary = self.binary.clone().unwrap_or_else(|| "any".to_owned());
        let of_endpoint = self.endpoint.iter().map(|text| endpoint(text));
        let paths = [
            (&self.read, Access::Read),
            (&self.write, Access::Write),
            (&self.execute, Access::Execute),
        ];
        let of_path = paths
            .into_iter()
            .flat_map(|(paths, access)| paths.iter().map(move |path| file(path, access, home)));
        let of_port = self.listen.iter().map(|text| listening(text));
        let of_socket = self.socket.iter().map(|path| socket(path, home));
        let all = of_endpoint.chain(of_path).chain(of_port).chain(of_socket).map(|deed| {
            let error = |(message, fix): (String, String)| {
                vec![Diagnostic::error(Origin::file(name), message, fix)]
            };
            deed.map(|deed| (binary.clone(), deed)).map_err(error)
        });
        all.collect()
    }
}

fn still_denied(file: &Arc<str>, deed: &Deed, judged: &Judged) -> Vec<Diagnostic> {
    let why = judged.remarks.first().map_or_else(String::new, |said| format!(" ({said})"));
    let fix = match judged.reason {
        Reason::WritableProgram => {
            "put the program where the sandbox cannot write, or add --from-writable"
        }
        reason => crate::why::reasons::of(reason.name()).fix,
    };
    let message = format!("`{deed}` is still denied: {}{why}", judged.reason.name());
    vec![Diagnostic::error(Origin::file(file), message, fix)]
}

/// The program that is written into the policy.
fn program_of(judge: &Judge, word: &str) -> PathBuf {
    let program = judge.programs(word).into_iter().next();
    judge.spelt(&program.unwrap_or_else(|| PathBuf::from(word)))
}
