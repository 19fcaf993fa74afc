//! `clawbox manual`: manual pages and shell completions, from the same definition as the command line. For
//! who packs clawbox (`cargo xtask dist`); nobody else needs it, so help does not list it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};

/// The variable by which a shell asks for completions.
pub const COMPLETE: &str = "COMPLETE";

/// Write manual pages and shell completions
#[derive(Debug, Args)]
#[command(hide = true)]
pub struct ManualCommand {
    /// Where `man/` and `completions/` go
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl ManualCommand {
    /// Writes them for `command`, all of the command line.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn run(self, command: &Command) -> anyhow::Result<ExitCode> {
        write(&listed(command), &self.directory)
            .with_context(|| format!("cannot write to `{}`", self.directory.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The same command without its hidden verbs: completions would offer them.
fn listed(command: &Command) -> Command {
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    Command::new("clawbox")
        .version(env!("CARGO_PKG_VERSION"))
        .about(command.get_about().cloned().unwrap_or_default())
        .after_help(command.get_after_help().cloned().unwrap_or_default())
        .args(command.get_arguments().cloned())
        .subcommand_required(true)
        .subcommands(verbs.cloned())
}

fn write(command: &Command, to: &Path) -> std::io::Result<()> {
    let (pages, completions) = (to.join("man"), to.join("completions"));
    fs::create_dir_all(&pages)?;
    fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(command.clone(), pages)?;
    // What is offered the program itself says when it is asked: it knows which sandboxes run.
    let shells: [(&dyn EnvCompleter, &str); 3] =
        [(&Bash, "clawbox.bash"), (&Zsh, "_clawbox"), (&Fish, "clawbox.fish")];
    for (shell, name) in shells {
        let mut script = Vec::new();
        shell.write_registration(COMPLETE, "clawbox", "clawbox", "clawbox", &mut script)?;
        fs::write(completions.join(name), script)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_page_but_those_that_help_does_not_list() {
        let command = Command::new("clawbox")
            .version("1")
            .subcommand(Command::new("run").about("Run a command"))
            .subcommand(Command::new("policy").subcommand(Command::new("check")))
            .subcommand(Command::new("inner").hide(true));
        let directory = tempfile::tempdir().unwrap();
        write(&listed(&command), directory.path()).unwrap();
        let names = |part: &str| {
            let entries = fs::read_dir(directory.path().join(part)).unwrap();
            let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
            let mut names: Vec<_> =
                entries.map(|entry| name(entry).into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(
            names("man"),
            ["clawbox-policy-check.1", "clawbox-policy.1", "clawbox-run.1", "clawbox.1"]
        );
        assert_eq!(names("completions"), ["_clawbox", "clawbox.bash", "clawbox.fish"]);
        for file in ["completions/clawbox.bash", "completions/_clawbox", "completions/clawbox.fish"]
        {
            let text = fs::read_to_string(directory.path().join(file)).unwrap();
            assert!(text.contains("COMPLETE") && text.contains("clawbox"), "{file}");
        }
    }
}
