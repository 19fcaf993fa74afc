//! Attempts, one after the other in one sandbox. After each the attacker leaves a mark in the trail,
//! so that a denial's record belongs to one attempt, whatever process it names.

use clawbox_tests::clawbox::{Clawbox, Finished, Running};
use clawbox_tests::layer::{self, Layer};
use serde_json::Value;

/// Tries one thing a line: a name, and a Python expression or statement.
pub const ATTACKER: &str = r#"
import ctypes, errno, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *words):
    if libc.syscall(number, *words) < 0:
        raise OSError(ctypes.get_errno(), "")
def exchange(one, two):
    call(316, -100, one.encode(), -100, two.encode(), 2)
def mapped(path):
    with open(path, "rb") as file:
        mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
def write(path, flags=0):
    os.close(os.open(path, os.O_WRONLY | flags))
def read(path):
    with open(path, "rb") as file:
        return file.read()
def start(*command):
    status = os.spawnv(os.P_WAIT, command[0], command)
    if status == 127:
        raise OSError(errno.EACCES, "")
    if status < 0:
        raise OSError(errno.ENOEXEC, "")
def copied(path):
    made = os.memfd_create("program")
    os.write(made, read(path))
    return made
def mark(number):
    import socket
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("240.0.0.1", number))
for line in sys.stdin:
    name, _, code = line.rstrip("\n").partition(": ")
    try:
        exec(code)
        print(name, "ok", flush=True)
    except OSError as error:
        print(name, errno.errorcode[error.errno], flush=True)
"#;

pub const PYTHON: &str = "/usr/bin/python3";

/// An address that nobody may reach under any policy. Its port is the number of the mark from the
/// first one on: port 53 leads everybody to the sandbox's resolver.
const MARK: &str = "240.0.0.1";
pub const FIRST_MARK: usize = 1000;

/// Something that is tried.
pub struct Attempt {
    /// The row of the threat model; none for what must work.
    row: Option<u8>,
    pub name: String,
    code: String,
    /// What is done on the host before it.
    before: Option<Box<dyn Fn()>>,
    /// Whether it is known to get through whatever the kernel has.
    is_known: bool,
    /// Where it ends if no hook tells and its errno would be taken for something else.
    unrecorded: Option<Layer>,
}

/// An attack of a row.
pub fn hostile(row: u8, name: &str, code: impl Into<String>) -> Attempt {
    let (name, code) = (name.to_owned(), code.into());
    Attempt { row: Some(row), name, code, before: None, is_known: false, unrecorded: None }
}

/// What must work beside the attacks, so that they do not fail for another reason.
pub fn harmless(name: &str, code: impl Into<String>) -> Attempt {
    Attempt { row: None, ..hostile(0, name, code) }
}

impl Attempt {
    /// The same under another name.
    pub fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// The same where the policy lets it through.
    pub fn now_harmless(self) -> Self {
        Self { row: None, ..self }
    }

    /// A gap that the threat model names: nothing stops it yet. It changes nothing that the next attempt
    /// would find.
    pub fn known_if(self, is_known: bool) -> Self {
        Self { is_known, ..self }
    }

    /// The host does something before it.
    pub fn after(mut self, before: impl Fn() + 'static) -> Self {
        self.before = Some(Box::new(before));
        self
    }

    /// Where no hook has decided, it is this layer that refused.
    pub fn or(mut self, layer: Layer) -> Self {
        self.unrecorded = Some(layer);
        self
    }
}

/// Attempts before the first of which the host does something, such as to change the policy: a start
/// loads all programs, and an emulated machine takes long for it.
pub fn from_then_on(before: impl Fn() + 'static, mut tries: Vec<Attempt>) -> Vec<Attempt> {
    if let Some(first) = tries.first_mut() {
        first.before = Some(Box::new(before));
    }
    tries
}

/// What came of an attempt.
#[derive(Debug)]
pub struct Tried {
    pub name: String,
    pub outcome: String,
    pub denials: Vec<Value>,
    pub layer: Layer,
    /// The trail says of its sandbox that the kernel left out returns of system calls: a kernel that
    /// is preempted inside a tracing program (7.x) leaves out the program's next run on that CPU.
    pub has_gap: bool,
}

impl Tried {
    /// Whether a denial with this action and reason is recorded for it.
    pub fn has(&self, action: &str, reason: &str) -> bool {
        self.denials.iter().any(|record| record["action"] == action && record["reason"] == reason)
    }

    /// The paths of its denials.
    pub fn paths(&self) -> Vec<&str> {
        self.denials.iter().filter_map(|record| record["object"]["path"].as_str()).collect()
    }
}

/// Tries everything in sandboxes that `sandbox` sets up, and tells where each attack ended. One that
/// got through has changed what the next would find: that one is tried in a sandbox of its own.
#[track_caller]
pub fn attempts<'w>(sandbox: impl Fn() -> Clawbox<'w>, tries: &[Attempt]) -> Vec<Tried> {
    let mut tried = Vec::new();
    let mut left = tries;
    while !left.is_empty() {
        let (some, run) = in_one_sandbox(sandbox(), left);
        left = &left[some.len()..];
        super::explained::check(&run);
        let is_gap = |record: &Value| record["object"]["kind"] == "system-call-hook";
        let has_gap = run.trail.iter().any(is_gap);
        tried.extend(some.into_iter().zip(marked(&run)).map(|((attempt, outcome), denials)| {
            let layer = layer_of(attempt, &outcome, &denials);
            if let Some(row) = attempt.row {
                layer::tell(row, &attempt.name, layer);
            } else {
                assert_eq!(outcome, "ok", "{}: {denials:?}\n{}", attempt.name, run.stderr);
            }
            Tried { name: attempt.name.clone(), outcome, denials, layer, has_gap }
        }));
    }
    assert_eq!(tried.len(), tries.len(), "each has a mark in the trail");
    tried
}

fn layer_of(attempt: &Attempt, outcome: &str, denials: &[Value]) -> Layer {
    let denials: Vec<&Value> = denials.iter().collect();
    let told = ["EPERM", "EACCES", "EXDEV", "EBADF", "ok"];
    let has_reason = attempt.unrecorded.is_some() || !denials.is_empty();
    assert!(has_reason || told.contains(&outcome), "{}: {outcome}, without a record", attempt.name);
    // Told by the system call that returns, which does not know who refused.
    let is_refused = |record: &&Value| record["reason"] == "refused";
    match attempt.unrecorded {
        Some(layer) if outcome != "ok" && denials.iter().all(is_refused) => layer,
        _ => Layer::observed(outcome, &denials),
    }
}

/// Tries until an attack gets through.
fn in_one_sandbox<'t>(
    clawbox: Clawbox<'_>,
    tries: &'t [Attempt],
) -> (Vec<(&'t Attempt, String)>, Finished) {
    let mut running = clawbox.spawn(&[PYTHON, "-c", ATTACKER]);
    let mut tried = Vec::new();
    for (attempt, number) in tries.iter().zip(FIRST_MARK..) {
        if let Some(before) = &attempt.before {
            before();
        }
        let outcome = answer(&mut running, &attempt.code);
        let marked = answer(&mut running, &format!("mark({number})"));
        assert_eq!(marked, "EPERM", "after {}: {outcome}", attempt.name);
        let got_through = outcome == "ok" && attempt.row.is_some() && !attempt.is_known;
        tried.push((attempt, outcome));
        if got_through {
            break;
        }
    }
    (tried, running.wait())
}

/// Has the attacker try one thing.
#[track_caller]
pub fn answer(running: &mut Running, code: &str) -> String {
    running.say(&format!("it: {code}"));
    let line = running.line();
    line.strip_prefix("it ").unwrap_or_else(|| panic!("{code}: {line}")).to_owned()
}

/// The denials before each mark.
pub fn marked(run: &Finished) -> Vec<Vec<Value>> {
    let is_mark = |record: &Value| record["object"]["ip"] == MARK;
    let mut groups = vec![Vec::new()];
    for record in run.denials() {
        if is_mark(record) {
            let number = FIRST_MARK + groups.len() - 1;
            assert_eq!(record["object"]["port"], number, "no mark is lost");
            groups.push(Vec::new());
        } else if let Some(group) = groups.last_mut() {
            group.push(record.clone());
        }
    }
    groups.pop();
    groups
}

/// Finds an attempt by its name.
#[track_caller]
pub fn find<'t>(tried: &'t [Tried], name: &str) -> &'t Tried {
    tried.iter().find(|tried| tried.name == name).unwrap_or_else(|| panic!("`{name}` was tried"))
}

/// The attacks among the attempts that were let through, without those that are known to be.
pub fn got_through<'t>(tries: &'t [Attempt], tried: &'t [Tried]) -> impl Iterator<Item = &'t str> {
    let of_attacks =
        tries.iter().zip(tried).filter(|(attempt, _)| attempt.row.is_some() && !attempt.is_known);
    let through = of_attacks.filter(|(_, tried)| tried.layer == Layer::NotStopped);
    through.map(|(_, tried)| tried.name.as_str())
}
