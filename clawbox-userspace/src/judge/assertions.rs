//! Assertions about a policy, in a file beside it, and whether they hold.
//! An assertion about a name holds if it does for every program of that name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::statement::Statement;
use super::{Judge, Judged, RuleTold, Who};
use crate::policy::yaml::{self, At, Given};
use crate::policy::{Diagnostic, Origin};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// The policy, relative to this file.
    #[serde(default)]
    policy: Given<At<String>>,
    /// Presets to merge into it.
    #[serde(default)]
    presets: Given<Vec<String>>,
    tests: Vec<At<Assertion>>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Assertion {
    #[serde(default)]
    allow: Given<At<String>>,
    #[serde(default)]
    deny: Given<At<String>>,
    /// The reason's name, as records have it.
    #[serde(default)]
    reason: Given<At<String>>,
    /// The key under `network_policies` that has to decide.
    #[serde(default)]
    rule: Given<At<String>>,
}

/// A file of assertions.
#[derive(Debug)]
pub struct Assertions {
    /// The policy, where the file says one.
    pub policy: Option<PathBuf>,
    /// Presets to merge into it.
    pub presets: Vec<String>,
    tests: Vec<Test>,
}

#[derive(Debug)]
struct Test {
    origin: Origin,
    is_allowed: bool,
    written: String,
    reason: Option<String>,
    rule: Option<String>,
}

/// What came of an assertion.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// Where it stands.
    #[serde(flatten)]
    pub origin: Origin,
    /// `allow` or `deny`.
    pub expected: &'static str,
    /// As written.
    pub statement: String,
    /// Whether it holds.
    pub holds: bool,
    /// What differs, for the first program of that name that it does not hold for; else what was found
    /// for the last.
    pub found: Found,
}

/// What the policy says.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// The program.
    pub program: PathBuf,
    /// `allow` or `deny`.
    pub verdict: &'static str,
    /// Why.
    pub reason: &'static str,
    /// The rule that decided, where one of the network did.
    pub rule: Option<RuleTold>,
    /// What else to know.
    pub remarks: Vec<String>,
}

impl Assertions {
    /// Parses a file of assertions.
    ///
    /// # Errors
    /// Every mistake of its structure.
    pub fn parse(file: &Arc<str>, text: &str) -> Result<Self, Vec<Diagnostic>> {
        let document: Document = yaml::parse(file, text).map_err(|error| vec![error])?;
        let mut errors = Vec::new();
        let mut tests = Vec::with_capacity(document.tests.len());
        for at in &document.tests {
            let Assertion { allow, deny, reason, rule } = &at.value;
            let (is_allowed, written) = match (allow.get(), deny.get()) {
                (Some(written), None) => (true, written),
                (None, Some(written)) => (false, written),
                _ => {
                    errors.push(Diagnostic::error(
                        at.origin(file),
                        "an assertion has either `allow` or `deny`",
                        "write `- allow: curl → api.github.com:443`",
                    ));
                    continue;
                }
            };
            let text = |given: &Given<At<String>>| given.get().map(|at| at.value.clone());
            tests.push(Test {
                origin: written.origin(file),
                is_allowed,
                written: written.value.clone(),
                reason: text(reason),
                rule: text(rule),
            });
        }
        if tests.is_empty() && errors.is_empty() {
            errors.push(Diagnostic::error(
                Origin::file(file),
                "the file asserts nothing",
                "write `tests:` with `- allow: curl → api.github.com:443` below it",
            ));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            policy: document.policy.get().map(|at| PathBuf::from(&at.value)),
            presets: document.presets.get().cloned().unwrap_or_default(),
            tests,
        })
    }

    /// Asks each of them; `home` is what `~` stands for.
    ///
    /// # Errors
    /// Each that is no statement.
    pub fn check(
        &self,
        judge: &Judge,
        home: Option<&Path>,
    ) -> Result<Vec<Checked>, Vec<Diagnostic>> {
        let mut errors = Vec::new();
        let mut all = Vec::with_capacity(self.tests.len());
        for test in &self.tests {
            match Statement::parse(&test.written, home) {
                Ok(statement) => all.push(test.check(judge, &statement)),
                Err((message, fix)) => {
                    errors.push(Diagnostic::error(test.origin.clone(), message, fix));
                }
            }
        }
        if errors.is_empty() { Ok(all) } else { Err(errors) }
    }
}

impl Test {
    fn check(&self, judge: &Judge, statement: &Statement) -> Checked {
        let ancestors: Vec<PathBuf> =
            statement.ancestors.iter().filter_map(|word| judge.programs(word).pop()).collect();
        let mut holds = true;
        let mut found = None;
        for program in judge.programs(&statement.program) {
            let who = Who { program, script: None, ancestors: ancestors.clone() };
            let judged = judge.ask(&who, &statement.deed);
            holds = self.holds(&judged);
            found = Some(Found::of(who.program, judged));
            if !holds {
                break;
            }
        }
        Checked {
            origin: self.origin.clone(),
            expected: if self.is_allowed { "allow" } else { "deny" },
            statement: self.written.clone(),
            holds,
            found: found.unwrap_or_else(Found::nothing),
        }
    }

    fn holds(&self, judged: &Judged) -> bool {
        let rule = judged.rule.as_ref().map(|rule| &rule.policy);
        judged.is_allowed() == self.is_allowed
            && self.reason.as_ref().is_none_or(|reason| reason == judged.reason.name())
            && self.rule.as_ref().is_none_or(|expected| Some(expected) == rule)
    }
}

impl Found {
    fn of(program: PathBuf, judged: Judged) -> Self {
        let (verdict, reason) = (judged.verdict_name(), judged.reason.name());
        Self { program, verdict, reason, rule: judged.rule, remarks: judged.remarks }
    }

    /// A word always means a program.
    fn nothing() -> Self {
        let remarks = vec!["no program of that name".to_owned()];
        Self { program: PathBuf::new(), verdict: "deny", reason: "unset", rule: None, remarks }
    }
}
