//! `cargo xtask test`: everything that says whether clawbox works, here and on other kernels.
//! Stages go on after a failure, so that one run shows all of them; the sum is the last line.

use std::fs;
use std::iter;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::agents;
use crate::attacks::{self, Observed};
use crate::build;
use crate::packages;
use crate::process;
use crate::setup::{self, Purpose};
use crate::tidy;
use crate::vm::{self, Copy, Guest, Kernel, Limits};
use crate::workspace::Workspace;

/// The slowest kernel takes some fifteen minutes of it on a two-core machine with three VMs; the rest is
/// for a busier one.
const VM_TIME: Duration = Duration::from_secs(2400);
/// A test that says nothing for two minutes gives up by itself.
const VM_SILENCE: Duration = Duration::from_secs(300);
const VM_MEMORY_MIB: u32 = 1536;
/// Tests of programs and of containers that take an emulated machine minutes. Of several kernels each runs its own,
/// unless a filter asks for them; the newest, which verifies longest, the fewest.
const REAL_PROGRAMS: [(Kernel, &[&str]); 3] = [
    (Kernel::V6_1, &["real_programs::a_repository_is_cloned", "real_programs::a_package_is"]),
    (
        Kernel::V6_12,
        &[
            "attached::a_cgroup_that_is_made_while",
            "real_programs::a_wheel_is_installed",
            "real_programs::files_in_a_private",
        ],
    ),
    (
        Kernel::Latest,
        &[
            "attached::a_container_has_its_own_files",
            "ping::ping_itself",
            "real_programs::a_server_answers",
        ],
    ),
];
/// Tests of what the agent does by itself, whatever the kernel: each on this machine's and on one other, or
/// all would take an emulated machine half as long again.
const OF_THE_AGENT: [(Kernel, &[&str]); 3] = [
    (
        Kernel::V6_1,
        &[
            "audit_reading::",
            "bad_input::",
            "clients::",
            "launcher::",
            "names::",
            "operator::",
            "term::",
            "tutorial::",
            "watchdog::",
            "widened::",
        ],
    ),
    (
        Kernel::V6_12,
        &[
            "ask::",
            "audit::",
            "coarse::",
            "daemon::",
            "full_store::",
            "global::",
            "reliability::",
            "reload::",
            "soak::",
        ],
    ),
    (
        Kernel::Latest,
        &[
            "audit_store::",
            "exec::",
            "faults::",
            "lifecycle::",
            "limits::",
            "live::",
            "logs::",
            "metrics::",
            "namespaces::",
            "own_network::",
            "ship::",
            "ship_logs::",
        ],
    ),
];
/// Tests whose programs no guest has.
const HERE_ALONE: &[&str] = &["agents::"];
/// Where the tests are in a guest.
const GUEST_TESTS: &str = "/opt/clawbox/tests";
/// The test binary: enforcement as seen from inside sandboxes.
const ENFORCEMENT: [&str; 4] = ["--package", "clawbox-tests", "--test", "kernel"];

/// Which enforcement tests.
#[derive(Clone, Copy)]
pub enum Which<'a> {
    /// All; of those of real programs and of the agent by itself each VM its own.
    All,
    /// Those with one of these in their name; divided among VMs in the same way.
    AnyOf(&'a [&'a str]),
    /// Those with this in their name.
    Named(&'a str),
}

impl<'a> Which<'a> {
    fn of(filter: Option<&'a str>) -> Self {
        filter.map_or(Self::All, Self::Named)
    }

    fn names(&self) -> &[&'a str] {
        match self {
            Self::All => &[],
            Self::AnyOf(names) => names,
            Self::Named(name) => std::slice::from_ref(name),
        }
    }

    /// What a VM is not to run because another one does.
    fn others(&self, kernel: Kernel) -> Vec<&'static str> {
        if matches!(self, Self::Named(_)) { Vec::new() } else { left_to_others(kernel) }
    }
}

#[derive(clap::Args)]
pub struct Args {
    /// Only the enforcement tests on this machine's kernel.
    #[arg(long, conflicts_with = "vm")]
    host: bool,
    /// Only the enforcement tests in VMs: on one kernel, or on all without a name.
    #[arg(long, value_name = "KERNEL", num_args = 0..=1, require_equals = false)]
    vm: Option<Option<Kernel>>,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// One stage's end.
pub struct Stage {
    name: String,
    time: Duration,
    tests: Tests,
    failure: Option<String>,
    /// The VM's kernel; none where it was this machine's.
    pub kernel: Option<Kernel>,
    /// Where attacks ended.
    pub attacks: Observed,
}

/// What a stage came to.
#[derive(Default)]
pub struct Judged {
    /// The tests that ran.
    pub tests: Tests,
    /// The names of those that failed.
    pub failures: Vec<String>,
    /// What they told of attacks.
    pub attacks: Observed,
    /// The first line that says that clawbox itself could not start here, whatever was tested.
    pub unstarted: Option<String>,
}

/// What the test summary lines of a stage add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tests {
    /// Those that passed.
    pub passed: u32,
    /// Those that did not.
    pub failed: u32,
}

/// Runs the stages; fails if any failed.
pub fn run(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    let on_host = args.vm.is_none();
    if on_host && !process::is_root() {
        bail!(
            "enforcement tests load programs into the kernel: run `cargo xtask test` as root; \
             `cargo xtask test --vm` needs no root"
        );
    }
    let filter = args.filter.as_deref();
    let mut stages = vec![stage("setup and build", || {
        let toolchain = setup::ensure(workspace, Purpose::Test)?;
        build::both(workspace, &toolchain, build::Args::default())?;
        Ok(Judged::default())
    })];
    if stages[0].failure.is_none() {
        if on_host && !args.host {
            stages.push(stage("unit tests", || unit_tests(workspace, filter)));
            stages.push(stage("tidy", || tidy_stage(workspace)));
        }
        if on_host {
            stages.push(enforcement_here(workspace, Which::of(filter)));
        }
        if !args.host {
            let kernels = chosen_kernels(args.vm.flatten());
            stages.extend(on_other_kernels(workspace, &kernels, Which::of(filter)));
        }
        let seen = attacks::seen(&stages);
        // Of a part of the tests no cell of the table is whole.
        if filter.is_none() {
            stages.push(stage("table of attacks", || {
                attacks::compare(workspace, &seen).map(|()| Judged::default())
            }));
        }
    }
    Ok(summary(&stages))
}

fn chosen_kernels(one: Option<Kernel>) -> Vec<Kernel> {
    one.map_or_else(|| Kernel::ALL.to_vec(), |kernel| vec![kernel])
}

/// The enforcement tests on this machine's kernel.
pub fn enforcement_here(workspace: &Workspace, which: Which<'_>) -> Stage {
    stage("enforcement, this kernel", || on_host(workspace, &workspace.clawbox(false), which))
}

fn stage(name: &str, run: impl FnOnce() -> Result<Judged>) -> Stage {
    println!("══ {name}");
    let start = Instant::now();
    let result = run();
    let time = start.elapsed();
    let (Judged { tests, attacks, .. }, failure) = match result {
        Ok(judged) if judged.tests.failed > 0 => {
            let failure = format!("{} failed: {}", judged.tests.failed, judged.failures.join(", "));
            (judged, Some(failure))
        }
        Ok(judged) => (judged, None),
        // Nothing counted, or the stage itself broke: one failure, so that no sum hides it.
        Err(error) => {
            let tests = Tests { passed: 0, failed: 1 };
            (Judged { tests, ..Judged::default() }, Some(format!("{error:#}")))
        }
    };
    Stage { name: name.to_owned(), time, tests, failure, kernel: None, attacks }
}

impl Stage {
    /// Whether anything of it did not go well.
    pub fn has_failed(&self) -> bool {
        self.failure.is_some()
    }
}

/// Prints how the stages ended, and gives the status of all.
pub fn summary(stages: &[Stage]) -> ExitCode {
    println!("══ summary");
    let mut sum = Tests::default();
    for Stage { name, time, tests, failure, .. } in stages {
        let seconds = time.as_secs_f32();
        let counts = format!("{} passed, {} failed", tests.passed, tests.failed);
        match failure {
            None => println!("ok      {name:<26} {seconds:>6.1} s  {counts}"),
            Some(reason) => println!("FAILED  {name:<26} {seconds:>6.1} s  {counts}  ({reason})"),
        }
        sum = sum.plus(*tests);
    }
    println!("{} passed, {} failed", sum.passed, sum.failed);
    if stages.iter().all(|stage| stage.failure.is_none()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn unit_tests(workspace: &Workspace, filter: Option<&str>) -> Result<Judged> {
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--no-fail-fast"]);
    for package in ["clawbox-common", "clawbox-userspace", "xtask"] {
        cargo.args(["--package", package]);
    }
    cargo.arg("--").args(filter);
    let (status, output) = process::tee(&mut cargo)?;
    judged(&output, status.success(), Which::of(filter))
}

fn tidy_stage(workspace: &Workspace) -> Result<Judged> {
    let failed = tidy::check(workspace)?;
    if !failed.is_empty() {
        bail!("{}", failed.join(", "));
    }
    Ok(Judged::default())
}

/// The package of `rsyslogd`, and the libraries that only it needs.
const RSYSLOG: &[&str] = &["rsyslog", "libestr0", "libfastjson4"];

/// The enforcement tests of a clawbox on this kernel.
pub fn on_host(workspace: &Workspace, clawbox: &Path, which: Which<'_>) -> Result<Judged> {
    on_host_with(workspace, clawbox, None, which)
}

/// The same where each daemon that takes over is of the other one of two builds.
pub fn on_host_with(
    workspace: &Workspace,
    clawbox: &Path,
    other: Option<&Path>,
    which: Which<'_>,
) -> Result<Judged> {
    require_tests(workspace)?;
    let mut cargo = workspace.cargo();
    cargo.envs(other.map(|other| ("CLAWBOX_TESTS_OTHER", other)));
    cargo
        .arg("test")
        .args(ENFORCEMENT)
        .arg("--")
        .args(which.names())
        .env("CLAWBOX", clawbox)
        .env("CLAWBOX_TESTS", workspace.target().join("debug"))
        // Too large for a guest, and no other there than here.
        .env(
            "CLAWBOX_TESTS_PROMETHEUS",
            packages::unpacked(workspace, &["prometheus"], "prometheus")?,
        )
        .env("CLAWBOX_TESTS_NATS", packages::unpacked(workspace, &["nats-server"], "nats-server")?)
        .env("CLAWBOX_TESTS_RSYSLOG", packages::unpacked(workspace, RSYSLOG, "rsyslogd")?)
        .env("CLAWBOX_TESTS_READERS", packages::readers(workspace)?)
        .envs(agents::variables(workspace, which));
    let (status, output) = process::tee(&mut cargo)?;
    judged(&output, status.success(), which)
}

/// One VM for each kernel, as many at once as there is memory for. More than there are processors,
/// each of which it takes to emulate one: where a run with LSM ends or the next one begins, a guest is
/// idle for seconds, while its kernel waits for all tasks before it takes a hook away.
pub fn on_other_kernels(workspace: &Workspace, kernels: &[Kernel], which: Which<'_>) -> Vec<Stage> {
    let guest = match guest(workspace, which) {
        Ok(guest) => guest,
        Err(error) => return vec![stage("enforcement, in VMs", || Err(error))],
    };
    let several = kernels.len() > 1;
    let run = |kernel: Kernel| {
        let guest = guest.leaving_out(&which.others(kernel));
        let run = || in_vm(workspace, kernel, &guest, which, several);
        let name = format!("enforcement, kernel {}", kernel.name());
        Stage { kernel: Some(kernel), ..stage(&name, run) }
    };
    if matches!(which, Which::All) {
        println!(
            "vm: each test of a real program or of the agent by itself runs on one kernel; `cargo xtask \
             test --vm KERNEL MODULE` runs all of a module there"
        );
    }
    let next = Mutex::new(kernels.iter());
    let take = || next.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || iter::from_fn(take).map(|&kernel| run(kernel)).collect::<Vec<_>>();
    let at_once = memory_available().map_or(1, |mib| mib / u64::from(VM_MEMORY_MIB)).max(1);
    let mut stages: Vec<Stage> = thread::scope(|scope| {
        let workers = kernels.len().min(usize::try_from(at_once).unwrap_or(1));
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        running.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect()
    });
    stages.sort_by_key(|stage| kernels.iter().position(|kernel| stage.kernel == Some(*kernel)));
    // A worker that broke off has lost its stages: that is a failure, not a shorter list.
    if stages.len() < kernels.len() {
        stages.push(stage("enforcement, in VMs", || bail!("a VM's thread broke off; see above")));
    }
    stages
}

/// One VM, with more in it.
pub fn in_a_vm(
    workspace: &Workspace,
    kernel: Kernel,
    which: Which<'_>,
    add: impl FnOnce(&mut Guest) -> Result<()>,
) -> Stage {
    stage(&format!("enforcement, kernel {}", kernel.name()), || {
        let mut guest = guest(workspace, which)?;
        add(&mut guest)?;
        in_vm(workspace, kernel, &guest, which, false)
    })
}

/// In MiB; `None` where this machine does not say.
fn memory_available() -> Option<u64> {
    let told = fs::read_to_string("/proc/meminfo").ok()?;
    let line = told.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib / 1024)
}

/// The tests that one other kernel runs in place of this one.
fn left_to_others(kernel: Kernel) -> Vec<&'static str> {
    let all = REAL_PROGRAMS.iter().chain(&OF_THE_AGENT);
    let others = all.filter(|(runs, _)| *runs != kernel);
    others.flat_map(|(_, names)| *names).chain(HERE_ALONE).copied().collect()
}

/// The tests, their programs and clawbox, for any kernel.
pub fn guest(workspace: &Workspace, which: Which<'_>) -> Result<Guest> {
    require_tests(workspace)?;
    let mut cargo = workspace.cargo();
    cargo.arg("test").args(ENFORCEMENT);
    cargo.args(["--no-run", "--message-format", "json-render-diagnostics"]);
    cargo.stderr(Stdio::inherit());

    let built = programs(&process::output(&mut cargo)?);
    let test = format!("{GUEST_TESTS}/kernel");
    let names = || which.names().iter().map(|name| (*name).to_owned());
    let mut guest = Guest::new([test.clone()].into_iter().chain(names()).collect());
    // What leaves the machine good for nothing else.
    let last = ["--ignored", "--test-threads=1"].map(str::to_owned);
    guest.afterwards = [test].into_iter().chain(last).chain(names()).collect();
    for (name, path) in built {
        guest.copies.push(Copy::new(path, PathBuf::from(GUEST_TESTS).join(name))?);
    }
    guest.has_disk = true;
    guest.copies.push(Copy::new(workspace.clawbox(false), PathBuf::from(vm::CLAWBOX))?);
    for (name, value) in [
        ("CLAWBOX", vm::CLAWBOX),
        ("CLAWBOX_TESTS", GUEST_TESTS),
        ("CLAWBOX_TESTS_LSM", "1"),
        ("RUST_BACKTRACE", "1"),
    ] {
        guest.variables.push((name.to_owned(), value.to_owned()));
    }
    Ok(guest)
}

fn in_vm(
    workspace: &Workspace,
    kernel: Kernel,
    guest: &Guest,
    which: Which<'_>,
    is_labelled: bool,
) -> Result<Judged> {
    let label = is_labelled.then(|| kernel.name());
    let limits = Limits {
        memory_mib: VM_MEMORY_MIB,
        time: VM_TIME,
        silence: Some(VM_SILENCE),
        label,
        // The newest kernel takes longest: the others wait for it, not it for them.
        yields: is_labelled && kernel != Kernel::Latest,
        counts_instructions: false,
    };
    let outcome = vm::boot(workspace, kernel, guest, limits)?;
    judged(&outcome.output, outcome.status == 0, which)
}

fn require_tests(workspace: &Workspace) -> Result<()> {
    if !workspace.root().join("tests/Cargo.toml").exists() {
        bail!("the package `tests/` is missing; is this a complete checkout?");
    }
    Ok(())
}

/// Names and paths of the programs in cargo's messages: the test, and the package's own binaries.
fn programs(messages: &str) -> Vec<(String, PathBuf)> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| {
            let path = message["executable"].as_str()?;
            Some((message["target"]["name"].as_str()?.to_owned(), PathBuf::from(path)))
        })
        .collect()
}

/// The counts in a test run's output. A run of nothing is a failure where all were to run.
pub fn judged(output: &str, success: bool, which: Which<'_>) -> Result<Judged> {
    let tests = output
        .lines()
        .filter_map(|line| line.trim().strip_prefix("test result: "))
        .filter_map(counts)
        .fold(Tests::default(), Tests::plus);
    if !success && tests.failed == 0 {
        bail!("the test run broke off; see its output above");
    }
    if tests == Tests::default() && matches!(which, Which::All) {
        bail!("no test ran");
    }
    let (failures, attacks) = (failures(output), Observed::read(output)?);
    Ok(Judged { tests, failures, attacks, unstarted: unstarted(output) })
}

/// The names in the list that each binary's output ends with.
fn failures(output: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_list = false;
    for line in output.lines().map(str::trim_end) {
        let name = line.strip_prefix("    ").filter(|name| is_list && !name.contains(' '));
        names.extend(name.map(str::to_owned));
        is_list = name.is_some() || line == "failures:";
    }
    names
}

/// The kernel takes no program, or no more of them: every test fails then, and says nothing.
fn unstarted(output: &str) -> Option<String> {
    const SAID: [&str; 3] = [
        "the kernel refused program",
        "the kernel refused clawbox's maps",
        "`bpf_link_create` failed",
    ];
    let line = output.lines().find(|line| SAID.iter().any(|said| line.contains(said)))?;
    Some(line.trim().to_owned())
}

/// `ok. 3 passed; 0 failed; …`
fn counts(line: &str) -> Option<Tests> {
    let number = |word: &str| -> Option<u32> {
        let before = line.split(word).next()?;
        before.split_whitespace().next_back()?.parse().ok()
    };
    Some(Tests { passed: number(" passed")?, failed: number(" failed;")? })
}

impl Tests {
    fn plus(self, other: Self) -> Self {
        Self { passed: self.passed + other.passed, failed: self.failed + other.failed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; finished\r\n";

    #[test]
    fn summary_lines_are_added_up_and_what_failed_has_its_name() {
        let broken = "failures:\n\n---- a::b stdout ----\n    indented\n\nfailures:\r\n    a::b\r\n    a::c\r\n\r\n\
                      test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured\n";
        let found = judged(&format!("{LINE}noise\n{broken}"), false, Which::All).unwrap();
        assert_eq!(found.tests, Tests { passed: 7, failed: 2 });
        assert_eq!(found.failures, ["a::b", "a::c"]);
    }

    #[test]
    fn a_run_that_broke_off_or_ran_nothing_is_no_success() {
        assert!(judged(LINE, false, Which::All).is_err());
        assert!(judged("", true, Which::All).is_err());
        assert_eq!(judged("", true, Which::Named("name")).unwrap().tests, Tests::default());
    }

    #[test]
    fn a_clawbox_that_cannot_start_is_told_from_a_test_that_fails() {
        let failed = "test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured\n";
        let judged = |said: &str| judged(&format!("{said}\n{failed}"), false, Which::All).unwrap();
        assert_eq!(judged("assertion failed: it went through").unstarted, None);
        let line = "  clawbox: the kernel refused program `connect4`: no space left\r";
        assert_eq!(judged(line).unstarted.as_deref(), Some(line.trim()));
        assert!(judged("cannot attach: `bpf_link_create` failed: EBUSY").unstarted.is_some());
    }

    #[test]
    fn each_test_of_real_programs_is_one_kernels() {
        let source = include_str!("../../tests/tests/kernel/real_programs.rs");
        let tests =
            source.split("#[test]\nfn ").skip(1).map(|rest| rest.split('(').next().unwrap());
        for test in tests {
            let name = format!("real_programs::{test}");
            let runs = |kernel: &&Kernel| {
                !left_to_others(**kernel).iter().any(|other| name.contains(other))
            };
            assert_eq!(Kernel::ALL.iter().filter(runs).count(), 1, "{test}");
        }
    }

    #[test]
    fn each_module_of_the_agents_tests_is_there_and_one_kernels() {
        let source = include_str!("../../tests/tests/kernel/main.rs");
        for (kernel, modules) in OF_THE_AGENT {
            for module in modules {
                let name = module.strip_suffix("::").unwrap();
                assert!(source.contains(&format!("\nmod {name};")), "{name}");
                let left = |other: &&Kernel| left_to_others(**other).contains(module);
                assert_eq!(Kernel::ALL.iter().filter(left).count(), 2, "{name}");
                assert!(!left_to_others(kernel).contains(module), "{name}");
            }
        }
    }

    #[test]
    fn programs_are_read_from_cargos_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"kernel\"},\
                        \"executable\":\"/x/kernel-1\"}\n{\"executable\":null}\nnoise\n";
        assert_eq!(programs(messages), [("kernel".to_owned(), PathBuf::from("/x/kernel-1"))]);
    }
}
