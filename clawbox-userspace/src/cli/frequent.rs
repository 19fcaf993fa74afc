//! The verbs that stand on the way of every command that is run, or of many policies, by themselves: to build
//! the arguments of all verbs, their help and their checks, takes as long as all else before the daemon is asked.

use std::process::ExitCode;

use clap::{Args, Parser};

use super::exec::ExecCommand;
use super::failure;
use super::policy::Set;
use super::run::{self, RunCommand};

/// One verb's arguments.
#[derive(Debug, Parser)]
struct Of<T: Args> {
    #[command(flatten)]
    command: T,
}

/// Those of this process behind its verb. `None` where they are not plain, which is for the parser of all verbs
/// to say.
fn parsed<T: Args>(verb: usize) -> Option<T> {
    // The first word is taken for the program's name.
    Of::try_parse_from(std::env::args_os().skip(verb)).ok().map(|of: Of<T>| of.command)
}

/// What is asked of this process, where it is one of these verbs.
#[derive(Debug)]
pub enum Asked {
    /// `clawbox run`.
    Run(Box<RunCommand>),
    /// `clawbox exec`.
    Exec(ExecCommand),
    /// `clawbox policy set`.
    Set(Set),
}

/// How one of these verbs ended.
#[derive(Debug)]
pub struct Ended {
    /// The status, or why there is none.
    pub result: anyhow::Result<ExitCode>,
    /// The verb as it is typed.
    pub place: &'static str,
    /// The status for an error.
    pub failed: ExitCode,
}

impl Ended {
    /// The status; an error is said.
    #[must_use]
    pub fn status(self) -> ExitCode {
        let Self { result, place, failed } = self;
        result.unwrap_or_else(|error| failure::tell(&error, || place.to_owned(), failed))
    }
}

impl Asked {
    /// Of this process's arguments. `None`: another verb, or mistakes.
    #[must_use]
    pub fn of_arguments() -> Option<Self> {
        let words: Vec<_> = std::env::args_os().skip(1).take(2).collect();
        let is = |at: usize, word: &str| words.get(at).is_some_and(|given| given == word);
        if is(0, "run") {
            return Some(Self::Run(Box::new(parsed(1)?)));
        }
        if is(0, "exec") {
            return Some(Self::Exec(parsed(1)?));
        }
        (is(0, "policy") && is(1, "set")).then(|| parsed(2).map(Self::Set)).flatten()
    }

    /// Whether nothing of it takes the host's accounts. The C library looks them up by modules that it loads, which
    /// a program with its libraries inside should not do.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        match self {
            Self::Run(command) => command.is_plain(),
            Self::Exec(_) => true,
            Self::Set(command) => command.is_plain(),
        }
    }

    /// Does it.
    #[must_use]
    pub fn run(self) -> Ended {
        match self {
            Self::Run(command) => by_run(command.run()),
            Self::Exec(command) => by_exec(command),
            Self::Set(command) => by_set(command),
        }
    }

    /// Asks the daemon. `None`: there is none that is to run a command.
    #[must_use]
    pub fn by_daemon(self) -> Option<Ended> {
        Some(match self {
            Self::Run(command) => by_run(command.by_daemon().ok()?),
            Self::Exec(command) => by_exec(command),
            Self::Set(command) => by_set(command),
        })
    }
}

fn by_run(result: anyhow::Result<ExitCode>) -> Ended {
    Ended { result, place: "clawbox run", failed: run::failed() }
}

fn by_exec(command: ExecCommand) -> Ended {
    Ended { result: command.run(), place: "clawbox exec", failed: run::failed() }
}

fn by_set(command: Set) -> Ended {
    Ended { result: command.run(), place: "clawbox policy set", failed: ExitCode::from(2) }
}
