//! The `clawbox` command: parse, dispatch, print an error once, exit with a documented status.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::CompleteEnv;
use clawbox::cli::approvals::ApprovalsCommand;
use clawbox::cli::attach::Attach;
use clawbox::cli::audit::AuditCommand;
use clawbox::cli::config::ConfigCommand;
use clawbox::cli::daemon::{DaemonCommand, Uninstall};
use clawbox::cli::doctor::Doctor;
use clawbox::cli::exec::ExecCommand;
use clawbox::cli::failure::{self, Failure};
use clawbox::cli::fleet::FleetCommand;
use clawbox::cli::frequent::Asked;
use clawbox::cli::learn::Learn;
use clawbox::cli::logs::Logs;
use clawbox::cli::manual::{COMPLETE, ManualCommand};
use clawbox::cli::policy::PolicyCommand;
use clawbox::cli::preset::PresetCommand;
use clawbox::cli::profile::ProfileCommand;
use clawbox::cli::run::{self, RunCommand};
use clawbox::cli::sandboxes::{List, Show, Stop};
use clawbox::cli::status::Status;
use clawbox::cli::term::Term;
use clawbox::cli::why::Why;

/// Enforces one policy per AI-agent sandbox in the kernel
#[derive(Debug, Parser)]
#[command(
    name = "clawbox",
    version,
    after_help = "\
Begin with `clawbox doctor`, which says what this host can enforce, and `clawbox policy check`,
which says what of a policy it does. CLAWBOX_LOG=debug shows what clawbox itself does."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(RunCommand),
    Attach(Attach),
    Exec(ExecCommand),
    Learn(Box<Learn>),
    List(List),
    Show(Show),
    Stop(Stop),
    Logs(Logs),
    Why(Box<Why>),
    Policy(PolicyCommand),
    Preset(PresetCommand),
    Profile(ProfileCommand),
    Approvals(ApprovalsCommand),
    Term(Term),
    Audit(AuditCommand),
    Fleet(FleetCommand),
    Doctor(Doctor),
    Daemon(DaemonCommand),
    Status(Status),
    Uninstall(Uninstall),
    Config(ConfigCommand),
    Manual(ManualCommand),
}

fn main() -> ExitCode {
    // A shell asks what it may offer; then nothing else is done.
    CompleteEnv::with_factory(Cli::command).var(COMPLETE).complete();
    log_to_stderr();
    if let Some(asked) = Asked::of_arguments() {
        return asked.run().status();
    }
    let verb = match Cli::try_parse() {
        Ok(cli) => cli.verb,
        Err(error) => return usage(&error),
    };
    let (result, failed) = match verb {
        Verb::Run(command) => (Box::new(command).run(), run::failed()),
        Verb::Attach(command) => (command.run(), ExitCode::from(2)),
        Verb::Exec(command) => (command.run(), run::failed()),
        Verb::Learn(command) => (command.run(), ExitCode::from(2)),
        Verb::List(command) => (command.run(), ExitCode::from(2)),
        Verb::Show(command) => (command.run(), ExitCode::from(2)),
        Verb::Stop(command) => (command.run(), ExitCode::from(2)),
        Verb::Logs(command) => (command.run(), ExitCode::from(2)),
        Verb::Why(command) => (command.run(), ExitCode::from(2)),
        Verb::Daemon(command) => (command.run(), ExitCode::from(2)),
        Verb::Uninstall(command) => (command.run(), ExitCode::from(2)),
        Verb::Status(command) => (command.run(), ExitCode::from(2)),
        Verb::Config(command) => (command.run(), ExitCode::from(2)),
        Verb::Manual(command) => (command.run(&Cli::command()), ExitCode::from(2)),
        Verb::Policy(command) => (command.run(), ExitCode::from(2)),
        Verb::Preset(command) => (command.run(), ExitCode::from(2)),
        Verb::Profile(command) => (command.run(), ExitCode::from(2)),
        Verb::Approvals(command) => (command.run(), ExitCode::from(2)),
        Verb::Term(command) => (command.run(), ExitCode::from(2)),
        Verb::Audit(command) => (command.run(), ExitCode::from(2)),
        Verb::Fleet(command) => (command.run(), ExitCode::from(2)),
        Verb::Doctor(command) => (command.run(), ExitCode::from(2)),
    };
    result.unwrap_or_else(|error| failure::tell(&error, || failure::place(&Cli::command()), failed))
}

/// Prints help or what is wrong with the arguments. `run` has statuses of its own, so that its
/// mistakes are told from the command's.
fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && failure::is_json() {
        let place = failure::place(&Cli::command());
        failure::print(&[Failure::of_usage(error, place)]);
    } else {
        let _ = error.print();
    }
    match error.use_stderr() {
        false => ExitCode::SUCCESS,
        true if std::env::args_os().nth(1).is_some_and(|verb| verb == "run" || verb == "exec") => {
            run::failed()
        }
        true => ExitCode::from(2),
    }
}

fn log_to_stderr() {
    // The daemon's operator reads in the journal what came of a start or a reload; who runs a command
    // wants to see that command's own output.
    let is_daemon = std::env::args_os().nth(1).is_some_and(|verb| verb == "daemon");
    let usual = if is_daemon { "clawbox=info,error" } else { "clawbox=warn,error" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("CLAWBOX_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(usual));
    let refuses_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && !refuses_colour)
        .with_target(false)
        .without_time()
        .init();
}
