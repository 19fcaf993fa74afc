//! What the file hooks cost, and those of sockets in use, in instructions of a guest that counts them,
//! beside Landlock and beside nothing; and what a sandbox's maps hold. For a machine of its own: it
//! makes files at the root.

mod connection;
mod maps;
mod table;
mod tree;
pub mod worker;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::instructions;
use table::Table;
use worker::Role;

/// Whom the counted processes run as, everywhere.
const USER: u32 = 65534;
/// Where sandboxes' cgroups are in the guest.
const SANDBOXES: &str = "/sys/fs/cgroup/clawbox";
const POLICY: &str = "/run/bench-policy.yaml";
const TRAIL: &str = "/run/bench-trail.jsonl";

/// The guest's time for what a boot, or the end of a sandbox, leaves the kernel to do. It costs next
/// to nothing: such a guest does not wait out what it sleeps.
const SETTLE: Duration = Duration::from_secs(1);

/// Instructions by operation.
type Counts = BTreeMap<String, f64>;

/// What is around the operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Around {
    /// Nothing.
    Nothing,
    /// Nothing, while a sandbox runs beside it.
    Outside,
    /// Landlock, put on by the process itself.
    Landlock,
    /// `clawbox run --lsm off`: Landlock, seccomp and the programs that need no LSM.
    LsmOff,
    /// The programs of `clawbox run` and nothing else: a process that was put into a sandbox's
    /// cgroup from outside, with neither Landlock nor seccomp.
    Hooks,
    /// The same, of a sandbox that does not count what is allowed.
    Denials,
    /// `clawbox run`: the programs, Landlock and seccomp.
    Clawbox,
}

impl Around {
    const ALL: [Self; 7] = [
        Self::Nothing,
        Self::Outside,
        Self::Landlock,
        Self::LsmOff,
        Self::Hooks,
        Self::Denials,
        Self::Clawbox,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Outside => "outside",
            Self::Landlock => "Landlock",
            Self::LsmOff => "--lsm off",
            Self::Hooks => "hooks",
            Self::Denials => "hooks, no counts",
            Self::Clawbox => "clawbox run",
        }
    }

    const fn options(self) -> &'static [&'static str] {
        match self {
            Self::LsmOff => &["--lsm", "off"],
            Self::Denials => &["--lsm", "require", "--audit-level", "denials"],
            _ => &["--lsm", "require"],
        }
    }
}

/// Counts everything.
pub fn measure(clawbox: &Path) -> Result<Table> {
    instructions::prove()?;
    tree::make()?;
    let peer = connection::serve()?;
    let bench = Bench { clawbox: clawbox.to_owned(), program: std::env::current_exe()?, peer };
    tree::write_policy(Path::new(POLICY), &bench.program, peer)?;
    let mut table = Table::new();
    for around in [Around::Nothing, Around::Landlock, Around::LsmOff, Around::Clawbox] {
        told(around);
        let mut command = match around {
            Around::Nothing => bench.plain(Role::Work),
            Around::Landlock => bench.plain(Role::Landlocked),
            _ => bench.sandboxed(around, Role::Work),
        };
        table.add(around, counts(&mut command)?);
    }
    // Loading the programs takes most of the time, so one sandbox is there for two columns.
    bench.beside_a_sandbox(Around::Hooks, &mut table)?;
    bench.beside_a_sandbox(Around::Denials, &mut table)?;
    Ok(table)
}

fn told(around: Around) {
    eprintln!("bench: lsm, {}", around.name());
}

struct Bench {
    clawbox: PathBuf,
    program: PathBuf,
    /// The other end of connections, outside.
    peer: SocketAddr,
}

impl Bench {
    /// This program's arguments for a role.
    fn arguments(role: Role) -> [OsString; 3] {
        let role = role.to_possible_value().map_or_else(String::new, |it| it.get_name().to_owned());
        ["lsm-worker".into(), "--role".into(), role.into()]
    }

    fn plain(&self, role: Role) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(Self::arguments(role))
            .uid(USER)
            .gid(USER)
            .current_dir(tree::TOP)
            .stdin(Stdio::null())
            .env(connection::PEER, self.peer.to_string());
        command
    }

    fn sandboxed(&self, around: Around, role: Role) -> Command {
        let mut command = Command::new(&self.clawbox);
        command
            .args(["run", "--name", "bench", "--user", "nobody", "--workdir", tree::TOP])
            .args(["--policy", POLICY, "--audit", TRAIL, "--dns", "127.0.0.1"])
            .args(around.options())
            .arg("--")
            .arg(&self.program)
            .args(Self::arguments(role))
            .stdin(Stdio::null())
            .env(connection::PEER, self.peer.to_string())
            .env("CLAWBOX_LOG", "error");
        command
    }

    /// The same, in the cgroup of a sandbox that is there. By a shell, whose exec gives it an identity
    /// as any exec in that cgroup does; the kernel lets who opened the file decide who may join.
    fn joining(&self, sandbox: &Path) -> Result<Command> {
        let members = OpenOptions::new().write(true).open(sandbox.join("cgroup.procs"))?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "echo 0 >&0 && exec \"$0\" \"$@\""])
            .arg(&self.program)
            .args(Self::arguments(Role::Work))
            .uid(USER)
            .gid(USER)
            .current_dir(tree::TOP)
            .stdin(members)
            .env(connection::PEER, self.peer.to_string());
        Ok(command)
    }

    /// Counts while a sandbox is there: in its cgroup, for the first of them outside too. And what
    /// its maps hold.
    fn beside_a_sandbox(&self, around: Around, table: &mut Table) -> Result<()> {
        let mut waiting = self
            .sandboxed(around, Role::Wait)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start clawbox")?;
        let counted = is_ready(&mut waiting).and_then(|()| self.beside(around, &waiting, table));
        // The end of its input is what it waits for.
        drop(waiting.stdin.take());
        let status = waiting.wait()?;
        counted?;
        if !status.success() {
            bail!("the sandbox beside the count ended with {status}");
        }
        Ok(())
    }

    fn beside(&self, around: Around, sandbox: &Child, table: &mut Table) -> Result<()> {
        if around == Around::Hooks {
            table.maps = maps::of_process(sandbox.id())?;
            told(Around::Outside);
            table.add(Around::Outside, counts(&mut self.plain(Role::Work))?);
        }
        told(around);
        let cgroup = format!("{SANDBOXES}/bench-{}", sandbox.id());
        table.add(around, counts(&mut self.joining(Path::new(&cgroup))?)?);
        Ok(())
    }
}

fn is_ready(waiting: &mut Child) -> Result<()> {
    let output = waiting.stdout.take().context("a sandbox without output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    if line.trim_end() != "ready" {
        bail!("the sandbox beside the count says `{line}`");
    }
    Ok(())
}

fn counts(command: &mut Command) -> Result<Counts> {
    std::thread::sleep(SETTLE);
    let output = command.stderr(Stdio::inherit()).output().context("cannot start a worker")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("a worker ended with {}, after `{text}`", output.status);
    }
    text.lines()
        .map(|line| {
            let (operation, count) = line.split_once(' ').context("a line has two words")?;
            Ok((operation.to_owned(), count.parse()?))
        })
        .collect()
}
