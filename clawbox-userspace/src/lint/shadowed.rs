//! Rules without effect: without them the decision on what they name is the same.

use std::path::Path;

use crate::compile::question::{Answer, Question, Target, answer};
use crate::compile::{MapImage, compile};
use crate::judge::Deed;
use crate::judge::samples::{deeds, program};
use crate::policy::model::{Located, Policy};
use crate::policy::path::{DenyPattern, SandboxPath};
use crate::policy::{Diagnostic, Origin};

/// A policy of more endpoints is not looked at: each takes a compilation.
const MOST: usize = 1_000;

/// Endpoints that others make superfluous, the later of two that say the same.
pub(super) fn endpoints(policy: &Policy) -> Vec<Diagnostic> {
    let count: usize = policy.network.iter().map(|network| network.endpoints.len()).sum();
    let mut found = Vec::new();
    if count > MOST {
        return found;
    }
    let mut rest = policy.clone();
    let Ok(mut whole) = compile(policy, 1) else { return found };
    for at in (0..policy.network.len()).rev() {
        let Some(network) = policy.network.get(at) else { continue };
        for index in (0..network.endpoints.len()).rev() {
            let Some(endpoint) = network.endpoints.get(index) else { continue };
            let mut without = rest.clone();
            let Some(of_rest) = without.network.get_mut(at) else { continue };
            of_rest.endpoints.retain(|other| other.index() != endpoint.index());
            let Ok(image) = compile(&without, 1) else { continue };
            let programs: Vec<_> =
                network.binaries.iter().filter_map(|binary| program(&binary.pattern)).collect();
            let mut asked = programs
                .iter()
                .flat_map(|who| deeds(endpoint).into_iter().map(move |deed| (who, deed)))
                .peekable();
            if asked.peek().is_none() {
                continue;
            }
            let mut by = None;
            let is_same = asked.all(|(who, deed)| {
                by = same(&whole, &image, who, &deed);
                by.is_some()
            });
            if let (true, Some(by)) = (is_same, by) {
                found.push(Diagnostic::warning(
                    endpoint.origin().clone(),
                    format!("{endpoint} is allowed by {by} already"),
                    "take one of them out",
                ));
                (rest, whole) = (without, image);
            }
        }
    }
    found
}

/// The rule that allows a connection without the endpoint just as it does with it.
fn same(with: &MapImage, without: &MapImage, who: &Path, deed: &Deed) -> Option<String> {
    let Deed::Connect { host, port, transport } = deed else { return None };
    let target = host.parse().map_or_else(|_| Target::Name(host.clone()), Target::Address);
    let question = Question {
        binary: who.to_owned(),
        ancestors: Vec::new(),
        target,
        port: *port,
        transport: *transport,
    };
    let (one, other): (Answer<'_>, Answer<'_>) =
        (answer(with, &question), answer(without, &question));
    let rule = other.rule?;
    let is_same = one.verdict == other.verdict && one.remarks == other.remarks;
    is_same.then(|| format!("network_policies.{}.endpoints[{}]", rule.policy_key, rule.endpoint))
}

/// What a path of a policy gives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Give {
    Read,
    Write,
    Nothing,
}

/// Paths below another that gives the same, with nothing in between.
pub(super) fn paths(policy: &Policy) -> Vec<Diagnostic> {
    let files = &policy.filesystem;
    let located = |list: &[Located<SandboxPath>], give| {
        let entry = |at: &Located<SandboxPath>| (at.value.clone(), give, at.origin.clone());
        list.iter().map(entry).collect::<Vec<_>>()
    };
    let mut all: Vec<(SandboxPath, Give, Origin)> = located(files.read_only(), Give::Read);
    all.extend(located(files.read_write(), Give::Write));
    all.extend(files.deny().iter().filter_map(|at| match &at.value {
        DenyPattern::Path(path) => Some((path.clone(), Give::Nothing, at.origin.clone())),
        DenyPattern::Glob(_) => None,
    }));
    let mut found = Vec::new();
    for (path, give, origin) in &all {
        let around = all.iter().filter(|(other, _, _)| other != path && other.covers(path));
        let nearest = around.max_by_key(|(other, _, _)| other.as_str().len());
        // A group closes what it closes, whatever else is closed around it.
        if let Some((other, same, _)) = nearest
            && same == give
            && *give != Give::Nothing
        {
            found.push(Diagnostic::warning(
                origin.clone(),
                format!("`{path}` is below `{other}`, which gives the same"),
                "take one of them out",
            ));
        }
    }
    found
}
