//! What `clawbox why` says of every denial that an attack has left, each part of it exactly: the layer that
//! the trail's own record shows, the reason, what the policy says of the same deed again, what differs from the
//! nearest rule, and the command, or that there is none.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use clawbox_tests::clawbox::Finished;
use clawbox_tests::layer::Layer;
use serde_json::Value;

use super::by_the_text;

/// Reasons that a policy has again for the same deed.
const OF_THE_POLICY: [&str; 13] = [
    "unknown-endpoint",
    "other-binary",
    "unknown-name",
    "loopback",
    "link-local",
    "unspecified",
    "multicast",
    "reserved",
    "listen-not-allowed",
    "unknown-file",
    "closed-file",
    "read-only",
    "unlisted-program",
];

/// Reasons that are no matter of the policy as it is written, but of the moment, and what it says of the same
/// deed at another one; `allow` where a rule of it admits that.
const OF_THE_MOMENT: [(&str, &[&str]); 9] = [
    // A question has no port: it is asked about as a connection to 443.
    ("forbidden-address", &["allow", "unknown-endpoint"]),
    ("question-kind", &["allow", "unknown-endpoint"]),
    ("name-budget", &["allow", "unknown-endpoint"]),
    // What is said on a connection is looked at after it was allowed to begin.
    ("no-host", &["allow"]),
    ("hidden-host", &["allow"]),
    // Of the host that was named.
    ("other-host", &["allow", "unknown-endpoint", "unknown-name", "other-binary"]),
    ("source-route", &["allow", "unknown-endpoint", "other-binary"]),
    ("datagram-in-parts", &["allow", "unknown-endpoint", "other-binary"]),
    // Nobody is given this address in a sandbox where nothing runs.
    ("stale-name", &["stale-name"]),
];

/// Reasons of files that are no rule's at their path: beneath the hooks by Landlock or by a file's own permissions,
/// of what is above an entry, or of who it is. What the policy says is then what its text says.
const OF_THE_TEXT: [&str; 6] =
    ["refused", "landlock", "held-entry", "too-deep", "no-identity", "writable-program"];

/// Reasons that no further rule would have changed, or that no rule can be for.
const NO_RULE: [&str; 19] = [
    "forbidden-address",
    "hidden-host",
    "name-budget",
    "no-host",
    "no-identity",
    "question-kind",
    "stale-name",
    "table-full",
    "link-local",
    "unspecified",
    "multicast",
    "reserved",
    "closed-file",
    "socket-kind",
    "other-process",
    "privileged",
    "system-call",
    "foreign-socket",
    "source-route",
];

/// Reasons for which a rule always helps.
const A_RULE: [&str; 4] =
    ["unknown-endpoint", "other-binary", "unknown-name", "listen-not-allowed"];

/// Forms of an address that carry another one, and have no rule of their own: the other's is meant.
const CARRIERS: [&str; 3] = ["[64:ff9b:", "[2002:", "[::ffff:"];

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
    let kinds: BTreeSet<&str> =
        denials.iter().filter_map(|record| record["reason"].as_str()).collect();
    let told: BTreeSet<&str> =
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
    let Some(reason) = told["reason"].as_str().filter(|_| told["reason"] == event["reason"]) else {
        return Some(format!("the reason is unknown to it: {}", event["reason"]));
    };
    let expected = layer(record);
    if told["layer"] != expected {
        return Some(format!("the layer is not `{expected}`"));
    }
    if ["meaning", "fix"].iter().any(|key| told[key].as_str().is_none_or(str::is_empty)) {
        return Some("it does not say what that means and what to do".to_owned());
    }
    of_the_policy(told, reason)
}

/// What is wrong with what the policy says of the same deed.
fn of_the_policy(told: &Value, reason: &str) -> Option<String> {
    let event = &told["event"];
    let deed = Deed::of(event);
    let is_asked = deed.is_some() && event["program"].is_string();
    if is_asked != told["explained"].is_object() && told["policy"].is_string() {
        return Some(format!("whether the policy was asked is not {is_asked}"));
    }
    if !is_asked || !told["policy"].is_string() {
        let is_offered = told["command"].is_string();
        return is_offered
            .then(|| "a command is offered without a policy that was asked".to_owned());
    }
    let again = match told["explained"]["verdict"].as_str() {
        Some("allow") => "allow",
        _ => told["explained"]["reason"].as_str().unwrap_or_default(),
    };
    let of_the_text = deed.as_ref().and_then(|deed| deed.by_the_text(told));
    let expected: &[&str] = match OF_THE_MOMENT.iter().find(|(moment, _)| *moment == reason) {
        Some((_, again)) => again,
        None if OF_THE_POLICY.contains(&reason) => &[reason],
        None if OF_THE_TEXT.contains(&reason) => of_the_text.as_slice(),
        None => return Some("no table has what the policy says of it".to_owned()),
    };
    if !expected.contains(&again) {
        return Some(format!("the policy says {again} of it, not {expected:?}"));
    }
    let differs = told["explained"]["nearest"]["differs"].as_array();
    let differs = differs.into_iter().flatten().filter_map(Value::as_str);
    if let Some(untrue) = differs.clone().find(|differs| !is_true(differs, event, &deed)) {
        return Some(format!("nothing of the kind differs: {untrue}"));
    }
    let must_differ = match reason {
        "other-binary" | "unlisted-program" => Some("program "),
        "read-only" if matches!(deed, Some(Deed::File("--write", _))) => {
            Some("it may be read there and not written")
        }
        "writable-program" if again == reason => {
            Some("what may be written there may not be started")
        }
        _ => None,
    };
    if must_differ.is_some_and(|says| !differs.clone().any(|differs| differs.starts_with(says))) {
        return Some(format!("the nearest rule does not differ in {must_differ:?}"));
    }
    offered(told, reason, again, deed.as_ref())
}

/// What is wrong with the command.
fn offered(told: &Value, reason: &str, again: &str, deed: Option<&Deed>) -> Option<String> {
    let expected = deed.map(|deed| deed.command(told));
    match (told["command"].as_str(), expected) {
        (Some(command), _) if NO_RULE.contains(&reason) || again == "allow" => {
            Some(format!("`{command}` would not have helped"))
        }
        (Some(command), Some(expected)) if expected != as_records_have_it(command) => {
            Some(format!("it is not `{expected}`"))
        }
        (None, Some(expected))
            if A_RULE.contains(&reason) && !CARRIERS.iter().any(|c| expected.contains(c)) =>
        {
            Some(format!("`{expected}` is not offered"))
        }
        _ => None,
    }
}

/// A command with the program by the path that records have: a policy's own may lead there.
fn as_records_have_it(command: &str) -> String {
    let mut words: Vec<String> = command.split(' ').map(str::to_owned).collect();
    let at = words.iter().position(|word| word == "--binary").map(|at| at + 1);
    if let Some(program) = at.and_then(|at| words.get_mut(at))
        && let Ok(found) = std::fs::canonicalize(&*program)
    {
        *program = found.display().to_string();
    }
    words.join(" ")
}

/// What a policy can be asked about an event.
enum Deed {
    Listen(SocketAddr, bool),
    Endpoint(String, u64, String),
    File(&'static str, String),
}

impl Deed {
    fn of(event: &Value) -> Option<Self> {
        let text = |key: &str| event[key].as_str().map(str::to_owned);
        let (class, action) = (event["class"].as_str()?, event["action"].as_str()?);
        let path = text("path").filter(|path| path.starts_with('/'));
        match (class, action) {
            ("network", "bind") => {
                let address: IpAddr = text("ip")?.parse().ok()?;
                let port = u16::try_from(event["port"].as_u64()?).ok().filter(|port| *port > 0)?;
                Some(Self::Listen(SocketAddr::new(address, port), event["transport"] == "udp"))
            }
            ("network", "socket") => None,
            // No rule is for it, and no address is told.
            ("network", _) if event["transport"] == "other" => None,
            ("network", _) => {
                let named = text("named").filter(|_| event["reason"] == "other-host");
                let host = named.or(text("host")).or(text("ip"))?;
                Some(Self::Endpoint(host, event["port"].as_u64()?, text("transport")?))
            }
            ("dns", _) => Some(Self::Endpoint(text("host")?, 443, "tcp".to_owned())),
            ("file", "unix-socket") => Some(Self::File("--socket", path?)),
            ("file", _) => {
                let access = event["access"].as_array()?;
                let has = |name: &str| access.iter().any(|given| given == name);
                let option = if has("write") {
                    "--write"
                } else if has("read") {
                    "--read"
                } else if has("execute") {
                    "--execute"
                } else {
                    return None;
                };
                Some(Self::File(option, path?))
            }
            _ => None,
        }
    }

    /// What the policy's text says of a file.
    fn by_the_text(&self, told: &Value) -> Option<&'static str> {
        let Self::File(option, path) = self else { return None };
        let access = match *option {
            "--read" => "read",
            "--execute" => "execute",
            _ => "write",
        };
        let workdir = told["event"]["workdir"].as_str();
        by_the_text::says(told["policy"].as_str()?, workdir, path, access)
    }

    /// The command that writes a rule for it.
    fn command(&self, told: &Value) -> String {
        let event = &told["event"];
        let program = event["script"].as_str().filter(|script| script.starts_with('/'));
        let program = program.or(event["program"].as_str()).unwrap_or_default();
        let quoted = |word: String| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:=,%".contains(c);
            if word.chars().all(plain) { word } else { format!("'{word}'") }
        };
        let options = match self {
            Self::Listen(at, is_udp) => {
                let udp = if *is_udp { "/udp" } else { "" };
                format!("--listen {}", quoted(format!("{at}{udp}")))
            }
            Self::Endpoint(host, port, transport) => {
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                let place = match transport.as_str() {
                    "icmp" => format!("{host}/icmp"),
                    "tcp" => format!("{host}:{port}"),
                    other => format!("{host}:{port}/{other}"),
                };
                format!("--binary {} --endpoint {}", quoted(program.to_owned()), quoted(place))
            }
            Self::File(option, path) => {
                let also = told["explained"]["change"]["options"].as_array();
                let also =
                    also.is_some_and(|words| words.iter().any(|word| word == "--from-writable"));
                let also = if also && *option == "--execute" { " --from-writable" } else { "" };
                let workdir =
                    event["workdir"].as_str().filter(|workdir| path.starts_with(*workdir));
                let workdir =
                    workdir.map(|workdir| format!(" --workdir {}", quoted(workdir.to_owned())));
                format!("{option} {}{also}{}", quoted(path.clone()), workdir.unwrap_or_default())
            }
        };
        format!("clawbox policy allow {} {options}", told["policy"].as_str().unwrap_or_default())
    }
}

/// Whether what is said to differ is of this event.
fn is_true(differs: &str, event: &Value, deed: &Option<Deed>) -> bool {
    let of = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let (is, words) = match differs.split_once(" is not ") {
        Some((is, not)) => (is, not),
        None => {
            return differs == "it may be read there and not written" && event["class"] == "file"
                || differs == "what may be written there may not be started";
        }
    };
    match is.split_once(' ') {
        Some(("program", program)) => {
            [of("program"), of("script"), of("path")].contains(&program.to_owned())
                && words != program
        }
        Some(("port", port)) => match deed {
            Some(Deed::Listen(at, _)) => at.port().to_string() == port,
            Some(Deed::Endpoint(_, own, _)) => own.to_string() == port,
            _ => false,
        },
        Some(("host", host)) => {
            matches!(deed, Some(Deed::Endpoint(own, ..)) if own == host) && words != host
        }
        Some(("address", address)) => of("ip") == address,
        Some(("socket", path)) => of("path") == path,
        // `PATH is not below it`, `udp is not tcp`.
        _ => {
            is == of("path") && words == "below it"
                || is == of("transport") && ["tcp", "udp", "icmp"].contains(&words)
        }
    }
}

/// The layer as it is told.
fn layer(record: &Value) -> &'static str {
    // Who refused beneath the hooks is not told by the system call that returns.
    if record["reason"] == "refused" {
        return "Landlock or the file's own permissions (kernel)";
    }
    match Layer::of_record(record) {
        Layer::SocketHooks => "cgroup hooks (kernel)",
        Layer::Resolver => "the sandbox's resolver (agent)",
        Layer::BpfLsm => "BPF LSM (kernel)",
        Layer::Seccomp => "seccomp (kernel)",
        Layer::Landlock => "Landlock (kernel), fixed at the start",
        Layer::Agent => "the agent, on the connection",
        _ => "",
    }
}
