//! `demo`: every attempt twice, once without clawbox and once under it, and what came of it.
//! `demo --shell`: the same sandbox for a person.

use std::collections::BTreeSet;
use std::process::ExitStatus;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::attempt::{Attempt, Outcome};
use super::attempts;
use super::inside::{self, Agent, clawbox_run};
use super::interrupt::Interrupt;
use super::outside::{Certificates, EVIL, FRIENDLY, Outside};
use super::place::Place;
use super::print::{Cell, Look, Progress, Row, Style};
use super::programs::Programs;
use super::stage::Stage;
use super::trail::Trail;

/// Everything an attempt needs.
#[derive(Debug)]
pub struct Scene {
    programs: Programs,
    stage: Stage,
    inside: Place,
    outside: Outside,
    ping: bool,
}

/// Attempts, and what came of them.
#[derive(Debug)]
struct Results {
    attempts: Vec<Attempt>,
    plain: Vec<Outcome>,
    held: Vec<Outcome>,
    trail: Trail,
}

impl Scene {
    /// Sets the scene.
    ///
    /// # Errors
    /// Something is missing on this machine.
    pub fn set(interrupt: &Interrupt) -> Result<Self> {
        let programs = Programs::find()?;
        let stage = Stage::make()?;
        let addresses = [FRIENDLY.into(), EVIL.into()];
        let certificates = Certificates::make(attempts::NAMES, addresses)?;
        attempts::prepare(&stage, &programs, certificates.authority())?;
        stage.write("policy.yaml", &attempts::policy(&stage, &programs), 0o644)?;
        let inside = inside::place(&stage, || Ok(()))?;
        let ports = BTreeSet::from([80, 443]);
        let outside = Outside::start(&inside, attempts::zone(), &certificates, &ports)?;
        let ping = inside::open_ping(&inside);
        interrupt.check()?;
        Ok(Self { programs, stage, inside, outside, ping })
    }

    /// Leaves policy and audit trail where they are, and says where.
    pub fn keep(self) {
        println!("kept: {}", self.stage.keep().display());
    }

    /// Makes all attempts and prints what came of them. Says whether all was as it must be.
    ///
    /// # Errors
    /// They could not be made.
    pub fn show(&self, interrupt: &Interrupt) -> Result<bool> {
        let style = Style::of_output();
        println!("{}", style.paint(Look::Strong, "The policy, in NemoClaw's language:"));
        for line in attempts::policy(&self.stage, &self.programs).lines() {
            println!("  {}", style.paint(Look::Aside, line));
        }
        println!();
        let started = Instant::now();
        let results = self.attempt_all(interrupt)?;
        Ok(results.print(style, started))
    }

    fn attempt_all(&self, interrupt: &Interrupt) -> Result<Results> {
        let attempts = attempts::all(&self.stage, &self.programs, self.ping);
        let progress = Progress::start();
        let mut agent = Agent::start_plain(&self.inside, &self.stage, interrupt)?;
        let plain = self.make(&mut agent, &attempts, &progress, "without clawbox")?;
        agent.end()?;
        progress.say("clawbox run: loading the kernel side");
        let trail = self.stage.path("audit.jsonl");
        let policy = self.stage.path("policy.yaml");
        let run = clawbox_run(&self.programs, &policy, &trail, &self.stage.path("work"));
        let mut agent = Agent::start(&self.inside, run, interrupt)?;
        let held = self.make(&mut agent, &attempts, &progress, "clawbox run")?;
        let said = agent.end()?;
        drop(progress);
        said.lines().for_each(|line| println!("clawbox says: {line}"));
        let trail = Trail::read(&trail)?;
        if trail.attempts.len() != attempts.len() {
            bail!(
                "the audit trail tells of {} attempts and there were {}",
                trail.attempts.len(),
                attempts.len()
            );
        }
        Ok(Results { attempts, plain, held, trail })
    }

    fn make(
        &self,
        agent: &mut Agent,
        attempts: &[Attempt],
        progress: &Progress,
        under: &str,
    ) -> Result<Vec<Outcome>> {
        self.outside.take()?;
        let mut outcomes = Vec::new();
        for (index, attempt) in attempts.iter().enumerate() {
            progress.say(format!("{under} {}/{}: {}", index + 1, attempts.len(), attempt.title));
            let ended = agent.attempt(&attempt.line)?;
            outcomes.push(Outcome::of(&ended, self.outside.take()?));
        }
        Ok(outcomes)
    }

    /// A shell in the sandbox, for somebody who wants to try.
    ///
    /// # Errors
    /// It could not be started.
    pub fn shell(&self, interrupt: &Interrupt) -> Result<ExitStatus> {
        let style = Style::of_output();
        let tools = self.stage.path("tools");
        println!("{}", style.paint(Look::Strong, "A shell under the demo's policy. Try:"));
        for line in [
            "curl https://api.allowed.test/".to_owned(),
            "curl https://evil.test/".to_owned(),
            format!("{}/report", tools.display()),
            format!("cat {}", self.stage.path("secret/token").display()),
        ] {
            println!("  {line}");
        }
        let trail = self.stage.path("audit.jsonl");
        println!("The audit trail is {}; `exit` ends all of it.", trail.display());
        let policy = self.stage.path("policy.yaml");
        let work = self.stage.path("work");
        let mut run = clawbox_run(&self.programs, &policy, &trail, &work);
        run.env("CURL_CA_BUNDLE", tools.join("ca.pem")).args(["/bin/sh", "-i"]);
        let mut child = self.inside.enter(move || run.spawn().context("cannot start clawbox"))?;
        let _covered = interrupt.cover(&child, true);
        Ok(child.wait()?)
    }
}

impl Results {
    fn print(&self, style: Style, started: Instant) -> bool {
        let heading = ["attempt", "no clawbox", "expected", "got", "far side saw"];
        let mut rows = vec![Row {
            cells: heading.map(|text| Cell::new(text, Look::Strong)).to_vec(),
            notes: Vec::new(),
        }];
        let mut different = 0;
        let outcomes = self.plain.iter().zip(&self.held).zip(&self.trail.attempts);
        for (attempt, ((plain, held), records)) in self.attempts.iter().zip(outcomes) {
            let differences = attempt.differences(plain, held, records);
            different += usize::from(!differences.is_empty());
            let look = if differences.is_empty() { Look::Good } else { Look::Bad };
            let mark = if differences.is_empty() { '✓' } else { '✗' };
            let told = attempt.telling(records);
            let told = told.map_or_else(|| "no audit record".to_owned(), ToString::to_string);
            let notes = [Cell::new(told, Look::Aside)]
                .into_iter()
                .chain(differences.into_iter().map(|text| Cell::new(text, Look::Bad)));
            rows.push(Row {
                cells: vec![
                    Cell::new(format!("{mark} {}", attempt.title), look),
                    Cell::new(&plain.got, Look::Plain),
                    Cell::new(attempt.expected, Look::Plain),
                    Cell::new(&held.got, look),
                    Cell::new(held.seen.to_string(), Look::Plain),
                ],
                notes: notes.collect(),
            });
        }
        print!("{}", style.foldable_table(&rows));
        println!();
        let as_expected = different == 0 && self.trail.lost == 0;
        let summary = format!(
            "{} attempts, {} as expected; {} audit records, {} lost; {:.1} s",
            self.attempts.len(),
            self.attempts.len() - different,
            self.trail.lines,
            self.trail.lost,
            started.elapsed().as_secs_f32()
        );
        let look = if as_expected { Look::Good } else { Look::Bad };
        println!("{}", style.paint(look, summary));
        as_expected
    }
}
