//! Measures what enforcement costs: `cargo xtask bench`. Every figure is a ratio between things
//! that were measured in turn in one run, because the machine's own speed drifts by more.

mod attached;
mod audit;
mod bounded;
mod daemon;
mod dns;
mod egress;
mod figures;
mod hooks;
mod instructions;
mod lsm;
mod memory;
mod neighbour;
mod network;
mod operation;
mod proxy;
mod report;
mod room;
mod running;
mod scale;
mod startup;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};

use report::Report;
use room::Room;

/// Measure what clawbox costs, as ratios made in one run
#[derive(Debug, Parser)]
#[command(name = "bench", arg_required_else_help = true)]
struct Cli {
    /// What to measure
    #[arg(value_enum)]
    what: What,
    /// Rounds of each measurement [default: network 60, egress 60, startup 40, hooks 20]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: Option<u32>,
    /// A quarter of the rounds: for a look, not for a claim
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// Of `audit`, this alone; without it all but `large`
    #[arg(long, value_enum)]
    part: Option<audit::Part>,
    /// How to print the figures
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// The clawbox to measure
    #[arg(long, env = "CLAWBOX", value_name = "FILE")]
    clawbox: Option<PathBuf>,
    /// What an `lsm-worker` does
    #[arg(long, value_enum, default_value = "work", hide = true)]
    role: lsm::worker::Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// TCP connect+accept+close and UDP connect inside a sandbox
    Connect,
    /// UDP sends inside a sandbox, unconnected and connected
    Send,
    /// The same by a process outside every sandbox while one exists
    Outside,
    /// From nothing to the end of /bin/true, beside bwrap
    Startup,
    /// Resident memory of a running clawbox
    Memory,
    /// The time in each kernel program, by the kernel's own count
    Hooks,
    /// TCP connect and streams beside two forward proxies, UDP sends, connect under 66 to 100,000 rules
    Egress,
    /// Questions through a sandbox's resolver, beside dnsmasq with the same upstream
    Dns,
    /// One daemon with 1, 10, 100 and 1,000 sandboxes: starts, connects, changes of policy, memory
    Scale,
    /// A sandbox beside one that floods its trail and its resolver, against the same flood from outside
    Neighbour,
    /// A sandbox beside one that has all the processes, memory or processor time that it may; in a guest
    Bounded,
    /// Events from the kernel to the host's store, against a reader that does nothing; queries and checks of it
    Audit,
    /// Everything above
    All,
    /// Instructions for opens, program starts and a walk; in a guest that counts them
    Lsm,
    /// One side of a measurement; started by the others
    #[value(hide = true)]
    Worker,
    /// A CONNECT proxy; started by `egress`
    #[value(hide = true)]
    Proxy,
    /// One side of `lsm`
    #[value(hide = true)]
    LsmWorker,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.what {
        What::Worker => worker::serve(),
        What::Proxy => proxy::serve(),
        What::LsmWorker => lsm::worker::serve(cli.role),
        _ => measure(&cli),
    };
    match outcome {
        // A missed target is a result, not a failure.
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: &Cli) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the benchmarks load programs into the kernel: run them as root");
    }
    let Some(clawbox) = &cli.clawbox else {
        bail!("no clawbox to measure: `cargo xtask bench` builds one, or name it with --clawbox");
    };
    if cli.what == What::Lsm {
        let table = lsm::measure(clawbox)?;
        match cli.format {
            Format::Text => print!("{table}"),
            Format::Json => println!("{}", table.json()),
        }
        return Ok(());
    }
    let rounds = |full: u32| cli.rounds.unwrap_or(if cli.quick { full / 4 } else { full });
    if cli.part.is_some() && cli.what != What::Audit {
        bail!("--part is of `audit`");
    }
    let room = Room::open(clawbox)?;
    let all = cli.what == What::All;
    let mut report = Report::begin();
    if all || matches!(cli.what, What::Connect | What::Send | What::Outside) {
        let asked = match cli.what {
            What::Connect => network::Asked::Connect,
            What::Send => network::Asked::Send,
            What::Outside => network::Asked::Outside,
            _ => network::Asked::All,
        };
        network::measure(&room, asked, rounds(60), &mut report)?;
    }
    if all || cli.what == What::Egress {
        egress::measure(&room, rounds(60), &mut report)?;
    }
    if all || cli.what == What::Dns {
        dns::measure(&room, rounds(20), &mut report)?;
    }
    if all || cli.what == What::Startup {
        startup::measure(&room, rounds(40), &mut report)?;
    }
    if all || cli.what == What::Hooks {
        hooks::measure(&room, rounds(20), &mut report)?;
    }
    if all || cli.what == What::Memory {
        memory::measure(&room, &mut report)?;
    }
    if all || cli.what == What::Scale {
        scale::measure(&room, &mut report)?;
    }
    if all || cli.what == What::Neighbour {
        neighbour::measure(&room, rounds(12), &mut report)?;
    }
    // Hosts may have no controllers in version 2.
    if cli.what == What::Bounded {
        neighbour::measure_bounded(&room, rounds(4), &mut report)?;
    }
    if all || cli.what == What::Audit {
        audit::measure(&room, cli.part, cli.quick, &mut report)?;
    }
    match cli.format {
        Format::Text => print!("{report}"),
        Format::Json => println!("{:#}", report.json()),
    }
    Ok(())
}
