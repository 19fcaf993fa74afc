//! `clawbox learn`: runs a command that is held back from little, and writes the policy that it needs.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use nix::unistd::{Uid, User};
use serde::Serialize;

use super::Format;
use super::edited::{Asking, change};
use super::policy::refused;
use super::run::{TRAILS, parse_server};
use super::style::Style;
use crate::audit::AuditLevel;
use crate::audit::line::harmless;
use crate::audit::lines::Lines;
use crate::learn::observed::{Observed, Trail};
use crate::learn::watch::Watch;
use crate::learn::{Learned, LeftOut, Place, learn, written};
use crate::policy::model::Mode;
use crate::policy::{parse_str, source};
use crate::presets::{Home, Named};
use crate::sandbox::control::Text;
use crate::sandbox::limits::{Limits, Wanted};
use crate::sandbox::order::Order;
use crate::sandbox::run::{LsmUse, run};
use crate::why::word_of_shell;

/// Learn the policy that a command needs, by running it
///
/// The command runs with its connections let through, every file readable, and its directory, its home and
/// `/tmp` writable: use it for what you trust as far as that. Then a policy is written that allows what it
/// did, hosts by name and paths folded to sensible directories, each with what was seen. Secrets, and what no
/// policy should open, are left out and told. Needs root; the daemon is not asked.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 written; 1 not wanted; 2 the command was not started, or nothing can be written. How the
command itself ended is told.

Examples:
  clawbox learn --user agent -o agent.yaml -- ./agent --once
  clawbox learn --user agent --merge agent.yaml -- ./agent --another-task
  clawbox learn -o - -- git clone https://git.example.com/project | less")]
pub struct Learn {
    /// Where the policy goes, a new file; `-` is standard output
    #[arg(short, long, value_name = "FILE", required_unless_present = "merge")]
    output: Option<PathBuf>,
    /// A policy that is widened by what it lacks, comments kept
    #[arg(long, value_name = "POLICY", conflicts_with = "output")]
    merge: Option<PathBuf>,
    #[command(flatten)]
    asking: Asking,
    /// Whom to run as, which the policy then says too
    #[arg(long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Where to start [default: the current directory]
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// What else the command may write while it is learned from; may be repeated
    #[arg(long, value_name = "PATH")]
    writable: Vec<PathBuf>,
    /// The sandbox's name in the audit trail [default: the command's name]
    #[arg(long)]
    name: Option<String>,
    /// Where the audit trail goes [default: /var/log/clawbox/NAME.jsonl]
    #[arg(long, value_name = "FILE")]
    audit: Option<PathBuf>,
    /// Name server to ask, in place of the host's; may be repeated
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = parse_server)]
    dns: Vec<SocketAddr>,
    /// How to print what was learned
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What is printed.
#[derive(Serialize)]
struct Report<'a> {
    /// How the command ended, as the shell counts.
    status: u8,
    policy: String,
    paths: usize,
    endpoints: usize,
    sockets: usize,
    left_out: &'a [LeftOut],
    remarks: &'a [String],
    /// Names that were asked for and not spoken to.
    only_asked: Vec<&'a str>,
}

/// Devices that programs expect to be able to write.
const DEVICES: [&str; 7] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/shm"];

impl Learn {
    /// Runs the command and writes the policy.
    ///
    /// # Errors
    /// The command cannot be started, or the policy not be written.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if !nix::unistd::geteuid().is_root() {
            bail!("clawbox learn loads programs into the kernel and needs root; run it with sudo");
        }
        if let Some(output) = self.output.as_ref().filter(|output| output.exists()) {
            bail!(
                "`{}` is there already; widen it with --merge, or name another file",
                output.display()
            );
        }
        let place = self.place()?;
        let command: Vec<String> =
            self.command.iter().map(|word| word_of_shell(&word.to_string_lossy())).collect();
        let (status, observed) = self.observe(&place)?;
        let learned = learn(&observed, &place);
        let written = self.write(&learned, &place, &command.join(" "))?;
        if written == ExitCode::SUCCESS {
            self.tell(&learned, &observed, status)?;
        }
        Ok(written)
    }

    fn place(&self) -> anyhow::Result<Place> {
        let workdir = match &self.workdir {
            Some(directory) => directory.clone(),
            None => std::env::current_dir().context("the current directory is gone")?,
        };
        let workdir = std::fs::canonicalize(&workdir)
            .with_context(|| format!("cannot start in `{}`", workdir.display()))?;
        let user = self.user.as_ref().map(|user| user.split(':').next().unwrap_or(user));
        let account = match user {
            None => User::from_uid(Uid::effective()),
            Some(user) => match user.parse::<u32>() {
                Ok(number) => User::from_uid(Uid::from_raw(number)),
                Err(_) => User::from_name(user),
            },
        };
        let home = account.ok().flatten().map(|account| account.dir);
        let program = self.command.first().and_then(|program| Path::new(program).file_name());
        Ok(Place {
            workdir,
            home: home.filter(|home| home.is_dir() && home.parent().is_some()),
            program: program.map(|name| name.to_string_lossy().into_owned()),
        })
    }

    /// The policy that holds back as little as one can.
    fn wide(&self, place: &Place) -> anyhow::Result<String> {
        let mut readable: Vec<PathBuf> = std::fs::read_dir("/")?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path != Path::new("/tmp"))
            .collect();
        readable.sort();
        let mut writable: Vec<PathBuf> =
            DEVICES.iter().map(PathBuf::from).filter(|path| path.exists()).collect();
        writable.extend(place.home.clone());
        writable
            .extend(self.writable.iter().map(std::path::absolute).collect::<Result<Vec<_>, _>>()?);
        if place.workdir.starts_with("/tmp") {
            writable.push("/tmp".into());
        }
        let list = |paths: &[PathBuf]| {
            let quoted = paths.iter().map(|path| serde_json::Value::from(path.to_string_lossy()));
            quoted.map(|path| path.to_string()).collect::<Vec<_>>().join(", ")
        };
        Ok(format!(
            "version: 1\nfilesystem_policy:\n  include_workdir: true\n  read_only: [{}]\n  \
             read_write: [{}]\nexecution: {{ from_writable: allow }}\nmode: audit\n",
            list(&readable),
            list(&writable)
        ))
    }

    /// Runs the command; gives its status, and what it did.
    fn observe(&self, place: &Place) -> anyhow::Result<(u8, Observed)> {
        let text = self.wide(place)?;
        let order = Order {
            texts: vec![Text { name: "learning".to_owned(), text }],
            global: None,
            name: self.name.clone(),
            user: self.user.clone(),
            workdir: place.workdir.clone(),
            audit: self.audit.clone(),
            audit_level: AuditLevel::Denials,
            mode: Some(Mode::Audit),
            lsm: LsmUse::Off,
            refusals: false,
            learning: true,
            share: Vec::new(),
            dns: self.dns.clone(),
            patience: Duration::ZERO,
            command: self.command.clone(),
            trails: TRAILS.into(),
            run_as: None,
            limits: Wanted { asked: Limits::default(), default: Limits::default() },
            most_rules: None,
            inherit: None,
        };
        let prepared = order.prepare(1)?;
        let trail = prepared.audit.clone();
        let before = std::fs::metadata(&trail).map_or(0, |file| file.len());
        let cgroup = format!("/clawbox/{}-{}", prepared.name, std::process::id());
        let watch = Watch::begin(cgroup).context("cannot watch which files are opened")?;
        let outcome = run(prepared);
        let watched = watch.end().context("cannot read which files were opened")?;
        let outcome = outcome?;
        let lines = Lines::of(&trail, before)
            .with_context(|| format!("cannot read the trail `{}`", trail.display()))?;
        let mut told = Trail::default();
        for line in lines {
            told.line(&line?);
        }
        Ok((outcome.status, told.with(watched)))
    }

    fn write(&self, learned: &Learned, place: &Place, command: &str) -> anyhow::Result<ExitCode> {
        if let Some(policy) = &self.merge {
            let before: Named = match source::read(policy) {
                Ok(text) => (source::name(policy), text),
                Err(diagnostic) => return refused(&[diagnostic]),
            };
            let home = Home::Of(self.user.clone());
            return match written::merged(learned, &before, home, &place.workdir) {
                Ok(after) if after == before.1 => Ok(ExitCode::SUCCESS),
                Ok(after) => change(policy, &before, &after, self.asking),
                Err(diagnostics) => refused(&diagnostics),
            };
        }
        let text = written::policy(learned, self.user.as_deref(), command);
        if let Err(diagnostics) = parse_str("the learned policy", &text) {
            return refused(&diagnostics);
        }
        match &self.output {
            Some(path) if path != Path::new("-") => {
                let file = OpenOptions::new().write(true).create_new(true).open(path);
                let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
                written.with_context(|| format!("cannot write `{}`", path.display()))?;
            }
            _ => std::io::stdout().lock().write_all(text.as_bytes())?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn tell(&self, learned: &Learned, observed: &Observed, status: u8) -> anyhow::Result<()> {
        let policy = self.output.as_ref().or(self.merge.as_ref());
        let policy = policy.map(|path| path.display().to_string()).unwrap_or_default();
        let report = Report {
            status,
            paths: learned.paths.len(),
            endpoints: learned.entries.iter().map(|entry| entry.endpoints.len()).sum(),
            sockets: learned.sockets.len(),
            left_out: &learned.left_out,
            remarks: &learned.remarks,
            only_asked: observed.asked.iter().map(String::as_str).collect(),
            policy,
        };
        if self.format == Format::Json {
            println!("{}", serde_json::to_string_pretty(&report)?);
            return Ok(());
        }
        // The command's own output is on the other one.
        let mut err = std::io::stderr().lock();
        Ok(report.print(&mut err, Style::of(&std::io::stderr()))?)
    }
}

impl Report<'_> {
    fn print(&self, out: &mut impl Write, style: Style) -> std::io::Result<()> {
        let Self { status, policy, paths, endpoints, sockets, left_out, remarks, only_asked } =
            self;
        let sockets = match sockets {
            0 => String::new(),
            1 => ", and 1 Unix socket".to_owned(),
            many => format!(", and {many} Unix sockets"),
        };
        writeln!(
            out,
            "clawbox: the command ended with {status}; {paths} paths and {endpoints} endpoints are in \
             {}{sockets}",
            style.strong(policy)
        )?;
        for LeftOut { what, because, options } in *left_out {
            writeln!(out, "{} {}: {because}", style.bad("left out"), harmless(what))?;
            if let Some(options) = options.as_ref().filter(|_| policy != "-") {
                let options: Vec<String> = options.iter().map(|word| word_of_shell(word)).collect();
                let command =
                    format!("clawbox policy allow {} {}", word_of_shell(policy), options.join(" "));
                writeln!(out, "         if you mean it: {}", harmless(&command))?;
            }
        }
        for remark in *remarks {
            writeln!(out, "{} {}", style.doubtful("look at"), harmless(remark))?;
        }
        for name in only_asked {
            let name = harmless(name);
            writeln!(
                out,
                "{} {name} was asked for and not spoken to: it is not allowed",
                style.doubtful("look at")
            )?;
        }
        Ok(())
    }
}
