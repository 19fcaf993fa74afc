//! `clawbox why`: what denied something, what is nearest in the policy, and what would allow it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::Format;
use super::audit::{Place, last_denial, shown};
use super::complete;
use super::denials::trail_of;
use super::policy::refused;
use super::policy::revisions::of_revision;
use super::style::Style;
use crate::audit::line::harmless;
use crate::judge::statement::{endpoint, file, listening, socket};
use crate::judge::{Access, Deed, Judge, Who};
use crate::policy::{Diagnostic, Origin, load_texts};
use crate::presets::{Filled, First, fill};
use crate::sandbox::control::Text;
use crate::why::seen::Seen;
use crate::why::trail::{Link, Told};
use crate::why::{Explained, explain, reasons, word_of_shell};

/// Where trails are looked for if nothing else is said.
const TRAILS: &str = "/var/log/clawbox";

/// Explain a denial: the layer, the nearest rule, and the smallest change that would allow it
///
/// Without arguments the last denial of this host; with a number that event of the store; with a program
/// and what it would do, a denial that has not happened. The change that is offered was tried: with it
/// the policy allows it.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 explained; 1 nothing was denied; 2 there is no such event, trail or policy.

Examples:
  clawbox why
  clawbox why --sandbox agent
  clawbox why 4711 --format json
  clawbox why --trail /var/log/clawbox/agent.jsonl
  clawbox why --sandbox agent --all --format json | jq -r '.[].command'
  clawbox why --policy policy.yaml curl api.github.com:443
  clawbox why --policy policy.yaml git --read ~/.ssh/id_ed25519
  clawbox why --policy policy.yaml node --listen 127.0.0.1:8080")]
pub struct Why {
    /// An event's number, the first column of `clawbox audit query`; or a program and HOST:PORT
    #[arg(value_name = "EVENT|PROGRAM", num_args = 0..=2)]
    what: Vec<String>,
    /// Whether it could read this, in place of HOST:PORT
    #[arg(long, value_name = "PATH", conflicts_with_all = ["write", "execute"])]
    read: Option<String>,
    /// Whether it could write this
    #[arg(long, value_name = "PATH", conflicts_with = "execute")]
    write: Option<String>,
    /// Whether it could start this
    #[arg(long, value_name = "PATH")]
    execute: Option<String>,
    /// Whether it could listen there
    #[arg(long, value_name = "[ADDRESS:]PORT", conflicts_with_all = ["read", "write", "execute"])]
    listen: Option<String>,
    /// Whether it could connect to this Unix socket
    #[arg(long, value_name = "PATH", conflicts_with_all = ["read", "write", "execute", "listen"])]
    socket: Option<String>,
    /// A sandbox of the daemon's: its last denial, or its policy
    #[arg(long, value_name = "NAME", conflicts_with = "trail", add = complete::sandboxes())]
    sandbox: Option<String>,
    /// A sandbox's own trail, in place of the host's store
    #[arg(long, value_name = "FILE")]
    trail: Option<PathBuf>,
    /// Every denial of the sandbox or the trail, each kind once, in place of the last
    #[arg(long, conflicts_with_all = ["read", "write", "execute", "listen", "socket", "what"])]
    all: bool,
    /// The policy, in place of the one that the sandbox was started with
    #[arg(long, value_name = "FILE", conflicts_with = "profile")]
    policy: Option<PathBuf>,
    /// A built-in policy for one agent, in place of a file
    #[arg(long, value_name = "NAME", add = complete::profiles())]
    profile: Option<String>,
    /// Preset to merge into the policy, a built-in one or a file; may be repeated
    #[arg(long, value_name = "NAME|FILE", add = complete::presets())]
    preset: Vec<String>,
    /// Whose home `~` is, in place of the policy's run_as_user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    #[command(flatten)]
    place: Place,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A policy, and what it is called in a command.
struct Known {
    texts: Vec<(Arc<str>, String)>,
    home: Option<PathBuf>,
    name: String,
    /// What has to be typed before a command that changes it.
    first: String,
}

/// A denial that has happened.
#[derive(Default)]
struct Happened {
    seen: Seen,
    chain: Vec<Link>,
    /// The policy that the sandbox was started with, and the number of the one in force then.
    policy: Option<String>,
    revision: Option<u32>,
}

/// What is printed.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a Seen>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    what: String,
    reason: &'a str,
    layer: &'a str,
    meaning: &'a str,
    fix: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    /// What the policy says now.
    #[serde(skip_serializing_if = "Option::is_none")]
    explained: Option<&'a Explained>,
    chain: &'a [Link],
}

impl Why {
    /// Explains it.
    ///
    /// # Errors
    /// There is no such event, or nothing can be read.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let id = match self.what.as_slice() {
            [only] if !self.is_about_a_deed() => only.parse::<u64>().ok(),
            _ => None,
        };
        if id.is_none() && !self.what.is_empty() {
            return self.hypothetical();
        }
        let all = if self.all { self.find_all()? } else { self.find(id)?.into_iter().collect() };
        let Some(first) = all.first() else {
            println!("nothing was denied");
            return Ok(ExitCode::from(1));
        };
        let known = match self.policy_of(first) {
            Ok(known) => known,
            Err(diagnostics) => return refused(&diagnostics),
        };
        let can_be_asked = |happened: &Happened| {
            happened.seen.who().is_some() && !happened.seen.deeds().is_empty()
        };
        // Of one trail each run may have been started in another directory.
        let mut judges: BTreeMap<Option<&str>, Judge> = BTreeMap::new();
        for happened in all.iter().filter(|happened| can_be_asked(happened)) {
            let Some(known) = &known else { continue };
            if let Entry::Vacant(missing) = judges.entry(happened.seen.workdir.as_deref()) {
                match known.judge(missing.key().map(Path::new)) {
                    Ok(judge) => drop(missing.insert(judge)),
                    Err(diagnostics) => return refused(&diagnostics),
                }
            }
        }
        let explained = |happened: &Happened| {
            let judge = judges.get(&happened.seen.workdir.as_deref())?;
            happened.explained(known.as_ref()?, judge)
        };
        let explained: Vec<Option<Explained>> = all.iter().map(explained).collect();
        let reports = all.iter().zip(&explained);
        let reports: Vec<Report<'_>> = reports
            .map(|(happened, explained)| report(happened, known.as_ref(), explained.as_ref(), None))
            .collect();
        self.print(&reports)?;
        Ok(ExitCode::SUCCESS)
    }

    fn is_about_a_deed(&self) -> bool {
        self.file().is_some() || self.listen.is_some() || self.socket.is_some()
    }

    fn file(&self) -> Option<(&String, Access)> {
        let all = [
            (&self.read, Access::Read),
            (&self.write, Access::Write),
            (&self.execute, Access::Execute),
        ];
        all.into_iter().find_map(|(path, access)| Some((path.as_ref()?, access)))
    }

    fn hypothetical(&self) -> anyhow::Result<ExitCode> {
        let none = Happened::default();
        let known = match self.policy_of(&none) {
            Ok(Some(known)) => known,
            Ok(None) => {
                bail!("name the policy with --policy FILE, --profile NAME or --sandbox NAME")
            }
            Err(diagnostics) => return refused(&diagnostics),
        };
        let wrong = |(message, fix): (String, String)| {
            refused(&[Diagnostic::error(Origin::file("the command line"), message, fix)])
        };
        let (program, deed) = match (self.what.as_slice(), self.file(), &self.listen, &self.socket)
        {
            ([program], Some((path, access)), None, None) => {
                (program, file(path, access, known.home.as_deref()))
            }
            ([program], None, Some(place), None) => (program, listening(place)),
            ([program], None, None, Some(path)) => (program, socket(path, known.home.as_deref())),
            ([program, to], None, None, None) => (program, endpoint(to)),
            _ => bail!(
                "name a program and HOST:PORT, or a program and --read, --write, --execute, --listen \
                 or --socket"
            ),
        };
        let deed = match deed {
            Ok(deed) => deed,
            Err(error) => return wrong(error),
        };
        let judge = match known.judge(self.workdir().as_deref()) {
            Ok(judge) => judge,
            Err(diagnostics) => return refused(&diagnostics),
        };
        let program = judge.programs(program).remove(0);
        let explained = known.explain(&judge, &Who::from(program.as_path()), &deed);
        let what = format!("{deed} by {}", program.display());
        self.print(&[report(&none, Some(&known), explained.as_ref(), Some(what))])?;
        Ok(ExitCode::SUCCESS)
    }

    /// Where what has not happened would: in a sandbox that runs where that was started, else here.
    fn workdir(&self) -> Option<PathBuf> {
        let told = self.sandbox.as_ref().and_then(|sandbox| trail_of(sandbox, false, 0).ok());
        match told {
            Some(told) => told.workdir.map(PathBuf::from),
            None => std::env::current_dir().ok(),
        }
    }

    /// The denial that is meant.
    fn find(&self, id: Option<u64>) -> anyhow::Result<Option<Happened>> {
        if let Some(sandbox) = &self.sandbox {
            return Ok(Happened::of(trail_of(sandbox, false, 0)?));
        }
        if let Some(trail) = &self.trail {
            let told = Told::read(trail, 0);
            let told = told.with_context(|| format!("cannot read `{}`", trail.display()))?;
            return Ok(Happened::of(told));
        }
        match (self.place.directory(), id) {
            (Ok(directory), Some(id)) => match shown(&directory, id, None)? {
                Some(row) => Ok(Some(Happened::of_row(&row))),
                None => bail!("there is no event {id} in the store"),
            },
            (Ok(directory), None) => {
                let Some(id) = last_denial(&directory)? else { return Ok(None) };
                Ok(shown(&directory, id, None)?.as_ref().map(Happened::of_row))
            }
            (Err(error), Some(_)) => Err(error),
            // No daemon has run here: the trail that was written last.
            (Err(_), None) => Ok(newest(Path::new(TRAILS))),
        }
    }

    /// Every denial of one trail.
    fn find_all(&self) -> anyhow::Result<Vec<Happened>> {
        let told = match (&self.sandbox, &self.trail) {
            (Some(sandbox), _) => trail_of(sandbox, false, 0)?,
            (None, Some(trail)) => {
                let told = Told::read(trail, 0);
                told.with_context(|| format!("cannot read `{}`", trail.display()))?
            }
            (None, None) => bail!("name whose with --sandbox NAME or --trail FILE"),
        };
        let policy = told.policy.clone();
        let happened = |seen: &Seen| Happened {
            seen: seen.clone(),
            chain: told.chain(seen),
            policy: policy.clone(),
            revision: None,
        };
        Ok(told.each.iter().map(happened).collect())
    }

    /// The policy that is asked; `None` where it is not known.
    fn policy_of(&self, happened: &Happened) -> Result<Option<Known>, Vec<Diagnostic>> {
        let filled = |policy: First, name: String| {
            let Filled { texts, home } = fill(&policy, &self.preset, self.user.as_deref())?;
            Ok(Some(Known { texts, home, name, first: String::new() }))
        };
        let of_profile = |profile: &str| {
            let known = filled(First::Profile(profile.to_owned()), format!("{profile}.yaml"))?;
            let first = format!("clawbox profile show {profile} > {profile}.yaml && ");
            Ok(known.map(|known| Known { first, ..known }))
        };
        if let Some(profile) = &self.profile {
            return of_profile(profile);
        }
        if let Some(file) = &self.policy {
            let name = word_of_shell(&file.display().to_string());
            return filled(First::File(file.clone()), name);
        }
        let sandbox = self.sandbox.as_deref().unwrap_or(&happened.seen.sandbox);
        if let Some(known) =
            (!sandbox.is_empty()).then(|| of_revision(sandbox, happened.revision).ok()).flatten()
        {
            let own = |text: Text| (Arc::from(text.name.as_str()), text.text);
            let name = format!("--sandbox {}", word_of_shell(sandbox));
            let texts = known.into_iter().map(own).collect();
            return Ok(Some(Known { texts, home: None, name, first: String::new() }));
        }
        match &happened.policy {
            Some(policy) => match policy.strip_prefix("profile:") {
                Some(profile) => of_profile(profile),
                None if Path::new(policy).is_file() => {
                    filled(First::File(policy.into()), word_of_shell(policy))
                }
                None => Ok(None),
            },
            None => Ok(None),
        }
    }

    fn print(&self, reports: &[Report<'_>]) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        match (self.format, reports) {
            (Format::Json, [report]) if !self.all => {
                writeln!(out, "{}", serde_json::to_string_pretty(report)?)?;
            }
            (Format::Json, all) => writeln!(out, "{}", serde_json::to_string_pretty(all)?)?,
            (Format::Text, all) => {
                let style = Style::of(&std::io::stdout());
                for (at, report) in all.iter().enumerate() {
                    if at > 0 {
                        writeln!(out)?;
                    }
                    report.print(&mut out, style)?;
                }
            }
        }
        Ok(())
    }
}

/// What is told of a denial, or of what has not happened.
fn report<'a>(
    happened: &'a Happened,
    known: Option<&'a Known>,
    explained: Option<&'a Explained>,
    what: Option<String>,
) -> Report<'a> {
    let seen = &happened.seen;
    let is_hypothetical = what.is_some();
    let told = reasons::of(match explained {
        Some(explained) if is_hypothetical => explained.reason,
        _ => &seen.reason,
    });
    let change = explained.and_then(|explained| explained.change.as_ref());
    // Where a rule closes it on purpose the explanation says which.
    let fix = explained.map_or(told.fix, |explained| match explained.reason == told.name {
        true => explained.fix.as_str(),
        false => told.fix,
    });
    Report {
        event: (!is_hypothetical).then_some(seen),
        policy: known.map(|known| known.name.as_str()),
        what: what.unwrap_or_else(|| format!("{} by {}", seen.what(), seen.by())),
        reason: told.name,
        layer: match is_hypothetical {
            true => told.layer,
            false => reasons::layer(&told, &seen.class, &seen.action),
        },
        meaning: told.meaning,
        fix,
        command: change
            .zip(known)
            .map(|(change, known)| format!("{}{}", known.first, change.command(&known.name))),
        explained,
        chain: &happened.chain,
    }
}

impl Known {
    fn judge(&self, workdir: Option<&Path>) -> Result<Judge, Vec<Diagnostic>> {
        Judge::of(load_texts(&self.texts)?.policy, workdir)
    }

    /// `None` where there is no text.
    fn explain(&self, judge: &Judge, who: &Who, deed: &Deed) -> Option<Explained> {
        let (file, text) = self.texts.first().map(|(file, text)| (file, text.as_str()))?;
        Some(explain(judge, (file, text), who, deed))
    }
}

impl Happened {
    fn of(told: Told) -> Option<Self> {
        let seen = told.last.clone()?;
        let chain = told.chain(&seen);
        Some(Self { seen, chain, policy: told.policy, revision: None })
    }

    /// What the policy says of it, where it can be asked.
    fn explained(&self, known: &Known, judge: &Judge) -> Option<Explained> {
        let mut deed = self.seen.deeds().into_iter().next()?;
        // What was named is what may be meant.
        if let (Deed::Connect { host, .. }, Some(named), "other-host") =
            (&mut deed, &self.seen.named, self.seen.reason.as_str())
        {
            host.clone_from(named);
        }
        let explained = known.explain(judge, &self.seen.who()?, &deed)?;
        Some(explained.of_denial(&self.seen.reason))
    }

    fn of_row(row: &Value) -> Self {
        let links = row["chain"].as_array().into_iter().flatten();
        let chain = links.map(|link| Link {
            pid: link["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default(),
            path: link["path"].as_str().unwrap_or_default().to_owned(),
            args: link["args"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|arg| arg.as_str().map(str::to_owned))
                .collect(),
        });
        let revision = row["policy"].as_u64().and_then(|number| u32::try_from(number).ok());
        Self { seen: Seen::of_row(row), chain: chain.collect(), policy: None, revision }
    }
}

/// The last denial of the trail that was written last and has one.
fn newest(directory: &Path) -> Option<Happened> {
    let entries = std::fs::read_dir(directory).ok()?.flatten();
    let mut trails: Vec<_> = entries
        .filter(|entry| entry.path().extension().is_some_and(|ending| ending == "jsonl"))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    trails.sort();
    let trails = trails.iter().rev();
    trails.filter_map(|(_, path)| Told::read(path, 0).ok()).find_map(Happened::of)
}

impl Report<'_> {
    fn print(&self, out: &mut impl Write, style: Style) -> std::io::Result<()> {
        let reason = self.reason;
        // What is said on a connection is looked at after it was allowed to begin.
        let is_looked_at = |explained: &Explained| {
            explained.remarks.iter().any(|remark| remark.starts_with("`sni: verify`"))
        };
        let is_allowed_now = self.explained.is_some_and(|explained| {
            explained.verdict == "allow" && !(self.event.is_some() && is_looked_at(explained))
        });
        let verdict = match (self.event, is_allowed_now) {
            (Some(_), _) | (None, false) => style.bad("denied"),
            (None, true) => style.good("allowed"),
        };
        writeln!(out, "{verdict}: {} ({reason})", harmless(&self.what))?;
        let mut line = |key: &str, text: &str| {
            writeln!(out, "  {} {}", style.aside(format!("{key:8}")), harmless(text))
        };
        if let Some(seen) = self.event {
            let id = seen.id.map(|id| format!(", event {id}")).unwrap_or_default();
            let pid = seen.pid.map(|pid| format!(", process {pid}")).unwrap_or_default();
            line("when", &format!("{}, sandbox {}{pid}{id}", seen.time, seen.sandbox))?;
        }
        line("layer", self.layer)?;
        line("why", self.meaning)?;
        if let Some(explained) = self.explained {
            if let Some(rule) = &explained.rule {
                line("rule", &rule.to_string())?;
            }
            for remark in &explained.remarks {
                line("", remark)?;
            }
            if let Some(nearest) = &explained.nearest {
                line("nearest", &nearest.rule)?;
                nearest.differs.iter().try_for_each(|differs| line("", differs))?;
            }
            if self.event.is_some() && is_allowed_now {
                line("now", "the policy as it is allows it")?;
            }
        }
        for (depth, link) in self.chain.iter().enumerate() {
            let what = if link.args.is_empty() { link.path.clone() } else { link.args.join(" ") };
            let key = if depth == 0 { "process" } else { "" };
            line(key, &format!("{:1$}[{2}] {what}", "", depth * 2, link.pid))?;
        }
        match &self.command {
            Some(command) => line("allow", command),
            None if self.event.is_none() && is_allowed_now => Ok(()),
            None => line("fix", self.fix),
        }
    }
}
