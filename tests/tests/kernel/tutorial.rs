//! The tutorial: every command of `docs/tutorial.md`, as of any text, is run and prints what stands below it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clawbox_tests::clawbox::program;
use clawbox_tests::names::Names;
use clawbox_tests::network::{NAMESERVER, SITE, World};
use clawbox_tests::services::Service;
use nix::mount::{MsFlags, mount};

use crate::real_programs::has;

/// The text, and not a file of this machine: a guest has no sources.
const TEXT: &str = include_str!("../../../docs/tutorial.md");

/// Where trails go if nothing else is said.
const TRAILS: &str = "/var/log/clawbox";

/// A command as it is typed, and the lines that it is to print.
#[derive(Debug, Default)]
struct Step {
    command: String,
    expected: Vec<String>,
}

/// The commands of all blocks, in order.
fn steps(text: &str) -> Vec<Step> {
    let mut all: Vec<Step> = Vec::new();
    let (mut in_block, mut in_text) = (false, false);
    for line in text.lines() {
        match (in_block, line) {
            (false, "```console") => in_block = true,
            (true, "```") => in_block = false,
            (false, _) => {}
            (true, _) => {
                let begins = line.strip_prefix("# ").filter(|_| !in_text && is_command(&all, line));
                if let Some(command) = begins {
                    in_text = command.ends_with("<<'END'");
                    all.push(Step { command: command.to_owned(), expected: Vec::new() });
                    continue;
                }
                let step = all.last_mut().expect("a block begins with a command");
                if in_text {
                    in_text = line != "END";
                    step.command.push('\n');
                    step.command.push_str(line);
                } else {
                    step.expected.push(line.to_owned());
                }
            }
        }
    }
    all
}

/// A policy that is printed has comments, which begin as commands do.
fn is_command(before: &[Step], line: &str) -> bool {
    let prints_a_policy = before.last().is_some_and(|step| step.command == "cat agent.yaml");
    !(prints_a_policy && (line.starts_with("# Learned") || line.starts_with("# Left out")))
}

/// A directory of a world in the place of one of the host's.
pub fn instead(command: &mut Command, ours: PathBuf, theirs: &'static str) {
    // SAFETY: the closure makes one system call on values that it owns.
    unsafe {
        command.pre_exec(move || {
            let (nothing, bind) = (None::<&str>, MsFlags::MS_BIND);
            Ok(mount(Some(&ours), Path::new(theirs), nothing, bind, nothing)?)
        });
    }
}

/// Whether lines are there in this order; `…` stands for anything, alone for any lines.
fn is_there(expected: &[String], printed: &str) -> Result<(), String> {
    let mut left = printed.lines();
    let mut may_skip = false;
    for line in expected {
        if line == "…" {
            may_skip = true;
            continue;
        }
        let found = if may_skip {
            left.any(|found| fits(line, found))
        } else {
            left.next().is_some_and(|found| fits(line, found))
        };
        if !found {
            return Err(format!("no line like `{line}`"));
        }
        may_skip = false;
    }
    match left.next() {
        Some(more) if !may_skip => Err(format!("nobody expected `{more}`")),
        _ => Ok(()),
    }
}

fn fits(expected: &str, found: &str) -> bool {
    let parts: Vec<&str> = expected.split('…').collect();
    let Some((first, rest)) = parts.split_first() else { return false };
    let Some(mut left) = found.strip_prefix(first) else { return false };
    for (number, part) in rest.iter().enumerate() {
        let is_last = number + 1 == rest.len();
        let at = if is_last {
            left.len()
                .checked_sub(part.len())
                .filter(|at| left.is_char_boundary(*at) && left[*at..] == **part)
        } else {
            left.find(part)
        };
        let Some(at) = at else { return false };
        left = &left[at + part.len()..];
    }
    left.is_empty()
}

/// Runs a text's commands in one shell and compares what they print. `prepare` may set up the shell.
pub fn goes_as_written(
    text: &str,
    world: &World,
    directory: &Path,
    prepare: impl FnOnce(&mut Command),
) {
    let steps = steps(text);
    assert!(steps.len() > 5, "{steps:?}");
    let (trails, resolv) = (world.private().join("trails"), world.private().join("resolv.conf"));
    fs::create_dir(&trails).unwrap();
    fs::create_dir_all(TRAILS).unwrap();
    fs::write(&resolv, format!("nameserver {NAMESERVER}\n")).unwrap();
    let script: String = steps
        .iter()
        .map(|step| format!("printf '\\001'\n{{ {}\n}} 2>&1\n", step.command))
        .collect();
    let bin = directory.join("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(program(), bin.join("clawbox")).unwrap();
    let mut shell = Command::new("/bin/bash");
    shell.args(["-c", &script]).current_dir(directory).env_remove("LD_LIBRARY_PATH");
    let path = format!("{}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", bin.display());
    shell.env("PATH", path).env_remove("CLAWBOX_LOG").env_remove("CLAWBOX_POLICY");
    world.enter(&mut shell);
    instead(&mut shell, trails, TRAILS);
    instead(&mut shell, resolv, "/etc/resolv.conf");
    prepare(&mut shell);
    let output = shell.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let printed: Vec<&str> = text.split('\u{1}').skip(1).collect();
    assert_eq!(printed.len(), steps.len(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    for (step, printed) in steps.iter().zip(printed) {
        // What this host lacks is said in a warning, which the text does not repeat.
        let lines: Vec<&str> = printed.lines().filter(|line| !line.contains(" WARN ")).collect();
        if let Err(what) = is_there(&step.expected, &lines.join("\n")) {
            panic!("{what}\n# {}\n{printed}", step.command);
        }
    }
}

#[test]
fn every_command_of_the_tutorial_prints_what_stands_below_it() {
    if !has(&["/usr/bin/curl", "/bin/bash"]) {
        return;
    }
    let world = World::new();
    let names = Names::serve(&world);
    names.host("example.com", &[SITE.into()]);
    let _site = world.outside(|| Service::http(80));
    let directory = world.bin().join("tutorial");
    fs::create_dir(&directory).unwrap();
    goes_as_written(TEXT, &world, &directory, |_| {});
}

#[test]
fn what_a_block_expects_is_compared_line_by_line() {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(is_there(&lines("a…c\n…\nd"), "abbc\nx\ny\nd"), Ok(()));
    for (expected, printed) in
        [("a", "b"), ("a", "a\nb"), ("a\n…\nd", "a\nx"), ("a…", "b"), ("…c", "cd")]
    {
        assert!(is_there(&lines(expected), printed).is_err(), "{expected} {printed}");
    }
}
