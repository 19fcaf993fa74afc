//! What `clawbox why` says of every denial that an attack has left: the layer that the trail's own record
//! shows, what the reason means, and, where the policy can be asked, the same verdict again.

use clawbox_tests::clawbox::Finished;
use clawbox_tests::layer::Layer;
use serde_json::Value;

/// Reasons that are no matter of the policy as it is written, but of the moment: what it says of the same
/// deed at another one is another thing.
const OF_THE_MOMENT: [&str; 12] = [
    "forbidden-address",
    "no-identity",
    "no-host",
    "other-host",
    "hidden-host",
    "landlock",
    "refused",
    "stale-name",
    "foreign-socket",
    "other-process",
    "writable-program",
    "held-entry",
];

/// Reasons that a policy has again for the same deed.
const OF_THE_POLICY: [&str; 10] = [
    "unknown-endpoint",
    "other-binary",
    "loopback",
    "link-local",
    "unspecified",
    "multicast",
    "reserved",
    "unknown-file",
    "closed-file",
    "read-only",
];

/// Reasons that no further rule would have changed.
const NO_RULE: [&str; 6] =
    ["forbidden-address", "hidden-host", "name-budget", "no-host", "question-kind", "stale-name"];

/// Explains all of them.
#[track_caller]
pub fn check(run: &Finished) {
    let denials = run.denials();
    if denials.is_empty() {
        return;
    }
    let explained = run.explained();
    let wrong: Vec<String> = explained
        .iter()
        .filter_map(|told| Some(format!("{}: {told:#}", wrong(told, &denials)?)))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let kinds: std::collections::BTreeSet<&str> =
        denials.iter().filter_map(|record| record["reason"].as_str()).collect();
    let told: std::collections::BTreeSet<&str> =
        explained.iter().filter_map(|told| told["reason"].as_str()).collect();
    assert_eq!(kinds, told, "every reason is explained");
}

/// What is wrong with an explanation.
fn wrong(told: &Value, denials: &[&Value]) -> Option<String> {
    let event = &told["event"];
    let is_it = |record: &&&Value| {
        record["time"] == event["time"]
            && record["reason"] == event["reason"]
            && record["action"] == event["action"]
    };
    let Some(record) = denials.iter().find(is_it) else {
        return Some("no record of the trail is meant".to_owned());
    };
    let (layer, reason) = (told["layer"].as_str()?, told["reason"].as_str()?);
    if told["reason"] != event["reason"] {
        return Some(format!("the reason is unknown to it: {}", event["reason"]));
    }
    let expected = expected(record);
    if !expected.iter().any(|word| layer.contains(word)) {
        return Some(format!("`{layer}` is not {expected:?}"));
    }
    if ["meaning", "fix"].iter().any(|key| told[key].as_str().is_none_or(str::is_empty)) {
        return Some("it does not say what that means and what to do".to_owned());
    }
    let verdict = told["explained"]["verdict"].as_str();
    if verdict == Some("allow") && !OF_THE_MOMENT.contains(&reason) {
        return Some("the policy is said to allow it".to_owned());
    }
    let again = told["explained"]["reason"].as_str();
    if OF_THE_POLICY.contains(&reason) && again != Some(reason) && is_asked_about(event) {
        return Some("the policy's own reason is another one".to_owned());
    }
    // A rule that would not have helped is not offered.
    let is_offered = told["command"].is_string();
    (is_offered && NO_RULE.contains(&reason)).then(|| "a rule is offered".to_owned())
}

/// Whether it is a deed of which a policy can be asked.
fn is_asked_about(event: &Value) -> bool {
    let has_file = event["path"].as_str().is_some_and(|path| path.starts_with('/'));
    let has_end = matches!(event["action"].as_str(), Some("connect" | "send"));
    event["program"].is_string() && (has_file || has_end)
}

/// Words of which the layer's name has one.
fn expected(record: &Value) -> &'static [&'static str] {
    // Who refused beneath the hooks is not told by the system call that returns.
    if record["reason"] == "refused" {
        return &["Landlock", "permissions"];
    }
    match Layer::of_record(record) {
        Layer::SocketHooks => &["cgroup hooks"],
        Layer::Resolver => &["resolver"],
        Layer::BpfLsm => &["BPF LSM", "cgroup hooks"],
        Layer::Seccomp => &["seccomp"],
        Layer::Landlock => &["Landlock"],
        Layer::Permissions => &["permissions"],
        Layer::Agent => &["agent", "cgroup hooks"],
        _ => &[],
    }
}
