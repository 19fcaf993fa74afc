//! What most attacks need: a far side with a name server and echoing services, an attacker that a
//! policy can name, and the attacker's own account of what happened.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use clawbox_tests::capture::Packet;
use clawbox_tests::clawbox::{Clawbox, Finished, tool};
use clawbox_tests::layer::{self, Layer};
use clawbox_tests::names::{self, Names};
use clawbox_tests::network::{NAMESERVER, PRIVATE, SITE, SITE_V6, World};
use clawbox_tests::services::Service;
use serde_json::Value;

use crate::attacks::attempt::{ATTACKER, PYTHON};

/// The port of every echo service, by TCP and by UDP.
pub const ECHO: u16 = 7;

/// Whether this is a guest: what does not depend on the kernel is tested on the machine's own alone.
pub fn in_guest() -> bool {
    std::env::var_os("CLAWBOX_TESTS_LSM").is_some()
}

/// A world with services.
pub struct Scene {
    pub world: World,
    pub names: Names,
    pub echo: Service,
    pub datagrams: Service,
    /// The attacker; a policy names it or does not.
    pub attack: PathBuf,
}

impl Scene {
    pub fn new() -> Self {
        let world = World::new();
        let names = Names::serve(&world);
        let site: [IpAddr; 2] = [SITE.into(), SITE_V6.into()];
        names.host("api.test", &site).host("other.test", &site);
        names.host("v4.test", &site[..1]).host("private.test", &[PRIVATE.into()]);
        let echo = world.outside(|| Service::echo(ECHO));
        let datagrams = world.outside(|| Service::datagrams(ECHO));
        let attack = world.install(&tool("attack"), "attack");
        Self { world, names, echo, datagrams, attack }
    }

    /// A policy whose files are what a program needs to start, and the rest as given.
    pub fn policy(&self, rest: &str) -> String {
        format!(
            "version: 1\n\
             filesystem_policy:\n  \
               include_workdir: true\n  \
               read_only: [/usr, /lib, /lib64, /bin, /etc, /proc, {bin}]\n  \
               read_write: [/dev/null]\n\
             execution: {{ from_writable: allow }}\n\
             {rest}\n",
            bin = self.world.bin().display()
        )
    }

    /// A policy that lets one binary reach these endpoints, in YAML's flow style.
    pub fn allowing(&self, binary: &str, endpoints: &str) -> String {
        self.policy(&format!(
            "network_policies:\n  the_rule:\n    endpoints: [{endpoints}]\n    \
             binaries: [{{ path: {binary} }}]"
        ))
    }

    /// A policy that lets the attacker reach these endpoints.
    pub fn allowing_attack(&self, endpoints: &str) -> String {
        self.allowing(&self.attack(), endpoints)
    }

    /// The attacker's path.
    pub fn attack(&self) -> String {
        self.attack.display().to_string()
    }

    /// A copy of the attacker under another name.
    pub fn copy(&self, name: &str) -> String {
        self.world.install(&self.attack, name).display().to_string()
    }

    /// Runs the attacker with these steps.
    pub fn attack_with(&self, policy: &str, steps: &[&str]) -> Account {
        let attack = self.attack();
        let command: Vec<&str> =
            [attack.as_str()].into_iter().chain(steps.iter().copied()).collect();
        Account::of(Clawbox::new(&self.world, policy).run(&command))
    }

    /// Runs a shell script.
    pub fn shell(&self, policy: &str, script: &str) -> Account {
        Account::of(Clawbox::new(&self.world, policy).run(&["/bin/sh", "-c", script]))
    }

    /// Whether this kernel runs BPF LSM programs. In the VMs it must; where it does not, a run that
    /// requires them is refused.
    pub fn has_lsm(&self) -> bool {
        if std::env::var_os("CLAWBOX_TESTS_LSM").is_some() {
            return true;
        }
        let clawbox = Clawbox::new(&self.world, &self.policy("")).with_lsm();
        let run = clawbox.argument("--lsm").argument("require").run(&["/bin/true"]);
        if run.status == 125 {
            assert!(run.stderr.contains("no BPF LSM programs"), "{}", run.stderr);
            return false;
        }
        assert_eq!(run.status, 0, "{}", run.stderr);
        true
    }

    /// What arrived on the far side from anybody but clawbox's own questions to the name server.
    pub fn arrived(&self) -> Vec<Packet> {
        let server = IpAddr::from(NAMESERVER);
        let mut packets = self.world.arrived();
        packets.retain(|packet| packet.to != server || packet.port != names::PORT);
        packets
    }

    /// Asserts that nothing at all arrived.
    pub fn nothing_arrived(&self) {
        let arrived = self.arrived();
        assert!(arrived.is_empty(), "arrived: {arrived:?}");
    }

    /// Asserts that nothing arrived but for this one address.
    pub fn nothing_arrived_but_at(&self, allowed: &[IpAddr]) {
        let mut arrived = self.arrived();
        arrived.retain(|packet| !allowed.contains(&packet.to));
        assert!(arrived.is_empty(), "arrived: {arrived:?}");
    }
}

/// A finished run and what the attacker said of each step.
#[derive(Debug)]
pub struct Account {
    pub run: Finished,
    pub steps: Vec<Value>,
}

impl Account {
    pub fn of(run: Finished) -> Self {
        let steps = run
            .stdout
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(|line: &Value| line["step"].is_string())
            .collect();
        Self { run, steps }
    }

    /// Each step with its outcome, in the order in which they ended.
    pub fn outcomes(&self) -> Vec<(&str, &str)> {
        self.steps
            .iter()
            .map(|step| (step["step"].as_str().unwrap(), step["outcome"].as_str().unwrap()))
            .collect()
    }

    /// Asserts the outcome of every step.
    #[track_caller]
    pub fn expect(&self, expected: &[(&str, &str)]) {
        assert_eq!(self.outcomes(), expected, "{:#?}\n{}", self.steps, self.run.stderr);
    }

    /// What the attacker learnt in a step that was let through.
    #[track_caller]
    pub fn detail(&self, step: &str) -> &Value {
        let found = self.steps.iter().find(|found| found["step"] == step);
        let found = found
            .unwrap_or_else(|| panic!("no step `{step}`: {:?}\n{}", self.steps, self.run.stderr));
        assert_eq!(found["outcome"], "ok", "{found}");
        &found["detail"]
    }

    /// Asserts that there is a record of this action and reason about this address, made by this
    /// program, and gives the first.
    #[track_caller]
    pub fn record(&self, action: &str, reason: &str, exe: &str, to: (IpAddr, u16)) -> &Value {
        let exe =
            std::fs::canonicalize(exe).map_or(exe.to_owned(), |path| path.display().to_string());
        let wanted = |record: &&Value| {
            record["action"] == action
                && record["reason"] == reason
                && record["subject"]["exe"] == exe.as_str()
                && record["object"]["ip"] == to.0.to_string()
                && record["object"]["port"] == to.1
        };
        let found = self.run.trail.iter().find(wanted);
        found.unwrap_or_else(|| {
            panic!("no record of {action} {to:?} by {exe} for {reason}: {:#?}", self.run.trail)
        })
    }

    /// Tells where each step ended that is an attack: a row and what was tried, a step; row 0 is for
    /// what may. Each step that was refused has one record, in the order of the steps.
    #[track_caller]
    pub fn tell(&self, attacks: &[(u8, &str)]) {
        assert_eq!(attacks.len(), self.steps.len());
        let mut refused = 0;
        for ((row, attack), (_, outcome)) in attacks.iter().zip(self.outcomes()) {
            if *row != 0 {
                self.tell_one(*row, attack, outcome, refused);
            }
            refused += usize::from(outcome != "ok");
        }
    }

    /// Tells where an attack ended that is refused by the n-th denial of a connection.
    #[track_caller]
    pub fn tell_one(&self, row: u8, attack: &str, outcome: &str, denial: usize) {
        let denials = self.run.denials();
        let record = denials.iter().filter(|record| record["action"] == "connect").nth(denial);
        let records = if outcome == "ok" { None } else { record };
        assert!(outcome == "ok" || records.is_some(), "{attack}: no record");
        layer::tell(
            row,
            attack,
            Layer::observed(outcome, &records.copied().into_iter().collect::<Vec<_>>()),
        );
    }

    /// The reasons of all denials, with the action.
    pub fn denials(&self) -> Vec<(&str, &str)> {
        self.run
            .denials()
            .into_iter()
            .filter_map(|record| Some((record["action"].as_str()?, record["reason"].as_str()?)))
            .collect()
    }
}

/// Runs what is to be tried in a sandbox and gives the outcomes by name, and the run.
pub fn attempts(
    scene: &Scene,
    policy: &str,
    tries: &[(&str, &str)],
) -> (BTreeMap<String, String>, Finished) {
    let clawbox = Clawbox::new(&scene.world, policy).with_lsm();
    let mut running = clawbox.spawn(&[PYTHON, "-c", ATTACKER]);
    for (name, code) in tries {
        running.say(&format!("{name}: {code}"));
    }
    let run = running.wait();
    let outcomes: BTreeMap<String, String> = run
        .stdout
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, outcome)| (name.to_owned(), outcome.to_owned()))
        .collect();
    assert_eq!(outcomes.len(), tries.len(), "{run:?}");
    (outcomes, run)
}

/// Denials of files: action, reason and path.
pub fn denials(run: &Finished) -> Vec<(&str, &str, &str)> {
    run.trail
        .iter()
        .filter(|record| record["verdict"] == "deny" && record["class"] == "file")
        .filter_map(|record| {
            Some((
                record["action"].as_str()?,
                record["reason"].as_str()?,
                record["object"]["path"].as_str()?,
            ))
        })
        .collect()
}

/// The only user of tests' sandboxes, as records say it.
pub fn by_nobody(record: &Value) -> bool {
    record["subject"]["uid"] == clawbox_tests::network::NOBODY
        && record["subject"]["pid"].as_u64().is_some_and(|pid| pid > 0)
}
