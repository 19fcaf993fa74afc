//! Questions about a policy, asked of the very decisions that the kernel hooks run, with the objects that
//! this host has. Whatever explains, tests or compares policies asks here.

pub mod assertions;
pub mod compared;
mod programs;
pub mod samples;
pub mod statement;
#[cfg(test)]
mod tests;

use std::cell::OnceCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use clawbox_common::decide::file::{access, remembered};
use clawbox_common::decide::{Decision, Destination, bind, execution, unix};
use clawbox_common::file::{EXECUTE, READ, WRITE};
use clawbox_common::limits::FILE_NAME;
use clawbox_common::rule::BinaryKey;
use clawbox_common::subject::{Mask, Standing, Subject};
use clawbox_common::verdict::{Reason, Verdict};

use crate::compile::files::Give;
use crate::compile::question::{self, Question, Target};
use crate::compile::{AgentPorts, ImageLookup, MapImage, compile};
use crate::kernel::file_id::Mounts;
use crate::policy::address::wire;
use crate::policy::{Diagnostic, Origin, Policy};
use crate::sandbox::identities::Identities;
use crate::sandbox::objects::{Objects, fitting, resolved};
pub use programs::ANY_PROGRAM;

/// The number of the sandbox that is asked about.
const SANDBOX: u32 = 1;

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Deed {
    /// A connection, or a datagram.
    Connect {
        /// Where to: a name or an address.
        host: String,
        /// Port; zero for echo requests.
        port: u16,
        /// [`clawbox_common::rule::TCP`] and its like.
        transport: u8,
    },
    /// A use of a file.
    Use {
        /// Which.
        path: PathBuf,
        /// To read, write or execute.
        access: Access,
    },
    /// A port that is listened on.
    Listen {
        /// At which address of this machine.
        address: IpAddr,
        /// Port.
        port: u16,
        /// [`clawbox_common::rule::TCP`] or [`clawbox_common::rule::UDP`].
        transport: u8,
    },
    /// A Unix socket that is connected or sent to.
    Reach {
        /// Where it is bound.
        path: PathBuf,
    },
}

/// A use of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Read, listed.
    Read,
    /// Written, made, removed.
    Write,
    /// Started.
    Execute,
}

impl Access {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Execute => "execute",
        }
    }

    const fn bit(self) -> u32 {
        match self {
            Self::Read => READ,
            Self::Write => WRITE,
            Self::Execute => EXECUTE,
        }
    }
}

/// Who does it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Who {
    /// The program.
    pub program: PathBuf,
    /// The script that it was started by, where it is an interpreter.
    pub script: Option<PathBuf>,
    /// Programs further up.
    pub ancestors: Vec<PathBuf>,
}

impl From<&Path> for Who {
    fn from(program: &Path) -> Self {
        Self { program: program.to_owned(), script: None, ancestors: Vec::new() }
    }
}

/// A rule as it is told.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RuleTold {
    /// Key under `network_policies`.
    pub policy: String,
    /// Its name.
    pub name: String,
    /// Place of the endpoint, from zero.
    pub endpoint: usize,
    /// The endpoint's host as written.
    pub host: String,
    /// The binary entry that admitted.
    pub binary: String,
    /// Where it was written.
    pub place: String,
}

impl std::fmt::Display for RuleTold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { policy, endpoint, host, binary, place, .. } = self;
        write!(f, "network_policies.{policy}.endpoints[{endpoint}] {host} for {binary} ({place})")
    }
}

/// The verdict and what led to it.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The verdict.
    pub verdict: Verdict,
    /// Its reason.
    pub reason: Reason,
    /// The rule of the network that decided.
    pub rule: Option<RuleTold>,
    /// The path whose rule decided about a file.
    pub at: Option<PathBuf>,
    /// What else to know.
    pub remarks: Vec<String>,
}

impl Judged {
    fn of(decision: &Decision) -> Self {
        let (verdict, reason) = (decision.verdict, decision.reason);
        Self { verdict, reason, rule: None, at: None, remarks: Vec::new() }
    }

    /// Whether it is allowed.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self.verdict, Verdict::Allow)
    }

    /// The verdict's name.
    #[must_use]
    pub fn verdict_name(&self) -> &'static str {
        if self.is_allowed() { "allow" } else { "deny" }
    }
}

/// A policy that is asked about.
pub struct Judge {
    policy: Policy,
    image: MapImage,
    mounts: Mounts,
    objects: Objects,
    identities: OnceCell<Identities>,
    writable: Vec<PathBuf>,
    workdir: Option<PathBuf>,
}

impl Judge {
    /// For a policy, where the sandbox starts in a directory.
    ///
    /// # Errors
    ///
    /// The policy does not compile, or this process's mounts cannot be read.
    pub fn of(policy: Policy, workdir: Option<&Path>) -> Result<Self, Vec<Diagnostic>> {
        let image = compile(&policy, 1)?;
        let mounts = Mounts::read().map_err(|error| vec![no_mounts(&error)])?;
        let included = workdir.filter(|_| policy.filesystem.include_workdir());
        let also: Vec<PathBuf> = included.map(Path::to_owned).into_iter().collect();
        let objects = Objects::find(&image, &mounts, &also);
        let written = image.files.iter().filter(|grant| grant.give == Give::Writing);
        let mut writable: Vec<PathBuf> =
            written.map(|grant| grant.path.as_path().to_owned()).collect();
        writable.extend(also);
        let (identities, workdir) = (OnceCell::new(), workdir.map(Path::to_owned));
        Ok(Self { policy, image, mounts, objects, identities, writable, workdir })
    }

    /// The same for another policy, where the sandbox starts in the same directory.
    ///
    /// # Errors
    ///
    /// As [`Judge::of`].
    pub fn with(&self, policy: Policy) -> Result<Self, Vec<Diagnostic>> {
        Self::of(policy, self.workdir.as_deref())
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Where the sandbox starts, if that is opened to it.
    #[must_use]
    pub fn workdir(&self) -> Option<&Path> {
        self.workdir.as_deref().filter(|_| self.policy.filesystem.include_workdir())
    }

    /// What it was compiled to.
    #[must_use]
    pub fn image(&self) -> &MapImage {
        &self.image
    }

    /// Paths of the policy that are not on this host, and what that means for them.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.objects.problems
    }

    /// Answers a question.
    #[must_use]
    pub fn ask(&self, who: &Who, deed: &Deed) -> Judged {
        let subject = self.subject(who);
        match deed {
            Deed::Connect { host, port, transport } => {
                let question = Question {
                    binary: who.program.clone(),
                    ancestors: who.ancestors.clone(),
                    target: target(host),
                    port: *port,
                    transport: *transport,
                };
                self.connection(&subject, &question)
            }
            Deed::Use { path, access } => self.file(&subject, path, *access),
            Deed::Listen { address, port, transport } => {
                let address = wire(*address);
                let local = Destination {
                    address,
                    port: *port,
                    transport: *transport,
                    zero: 0,
                    receiver: 0,
                };
                let lookup = ImageLookup::new(&self.image, SANDBOX);
                Judged::of(&bind(&lookup, &Standing::Subject(&subject), &local))
            }
            Deed::Reach { path } => self.socket(&subject, path),
        }
    }

    /// What BPF LSM programs decide about a Unix socket: the policy opens it by itself, or it may be written.
    fn socket(&self, subject: &Subject, path: &Path) -> Judged {
        let state = self.image.state(AgentPorts::default(), 0, true);
        let whole = resolved(path);
        let held = |path: &Path| self.mounts.hold(path).map(|held| held.id).unwrap_or_default();
        let directory = whole.parent().map(held).unwrap_or_default();
        let name = |into: &mut [u8; FILE_NAME]| match whole.file_name().and_then(fitting) {
            Some(name) => {
                *into = name;
                true
            }
            None => false,
        };
        if !unix::is_opened(&self.objects, &state, held(&whole), directory, name) {
            return self.file(subject, path, Access::Write);
        }
        let remarks = vec![format!("unix_sockets.allow: lists {}", path.display())];
        Judged { at: Some(whole), remarks, ..Judged::of(&remembered(&state)) }
    }

    /// Who a program is: the very file where it is on this host, else by its path.
    fn subject(&self, who: &Who) -> Subject {
        let mut own = self.slots(&who.program);
        if let Some(script) = &who.script {
            own.extend(&self.slots(script));
        }
        let mut lineage = own;
        for ancestor in &who.ancestors {
            lineage.extend(&self.slots(ancestor));
        }
        Subject { sandbox: SANDBOX, own, lineage, ..Subject::default() }
    }

    fn slots(&self, program: &Path) -> Mask {
        let Ok(held) = self.mounts.hold(program) else { return self.image.slots_of(program) };
        let found = self.identities.get_or_init(|| {
            let patterns = self.image.binaries.iter().map(|entry| &entry.pattern);
            Identities::find(SANDBOX, &self.mounts, patterns, &self.writable)
        });
        let key = BinaryKey { file: held.id, sandbox: SANDBOX, zero: 0 };
        found.binaries.get(&key).copied().unwrap_or_default()
    }

    fn connection(&self, subject: &Subject, question: &Question) -> Judged {
        let answer = question::answer_to(&self.image, subject, question);
        let rule = answer.rule.map(|rule| RuleTold {
            policy: rule.policy_key.to_owned(),
            name: rule.name.to_owned(),
            endpoint: rule.endpoint,
            host: rule.host.to_owned(),
            binary: rule.binary.to_owned(),
            place: rule.origin.to_string(),
        });
        let (verdict, reason) = (answer.verdict, answer.reason);
        Judged { verdict, reason, rule, at: None, remarks: answer.remarks }
    }

    /// What BPF LSM programs decide about a file, by their own steps from this host's objects.
    fn file(&self, subject: &Subject, path: &Path, asked: Access) -> Judged {
        let state = self.image.state(AgentPorts::default(), 0, true);
        let (search, at) = self.objects.search(&state, subject, &self.mounts, path);
        let mut decision = access(&search, asked.bit(), &state);
        let mut remarks: Vec<String> = at
            .iter()
            .map(|at| format!("filesystem_policy: the rule at {} decides", at.display()))
            .collect();
        let is_start = asked == Access::Execute && self.image.lists_programs();
        if is_start && matches!(decision.verdict, Verdict::Allow) {
            let slots = self.slots(path);
            let slots = (!slots.is_empty()).then_some(&slots);
            decision = execution::start(&ImageLookup::new(&self.image, SANDBOX), SANDBOX, slots);
            let is_listed = matches!(decision.verdict, Verdict::Allow);
            let verb = if is_listed { "lists" } else { "does not list" };
            remarks.push(format!("execution.allow: {verb} {}", path.display()));
        }
        let (verdict, reason) = (decision.verdict, decision.reason);
        Judged { verdict, reason, rule: None, at, remarks }
    }
}

fn no_mounts(error: &io::Error) -> Diagnostic {
    Diagnostic::error(
        Origin::file("/proc/self/mountinfo"),
        format!("cannot be read: {error}"),
        "mount /proc",
    )
}

/// `localhost` is a name that no resolver is asked for.
fn target(host: &str) -> Target {
    if let Ok(address) = host.parse() {
        return Target::Address(address);
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.eq_ignore_ascii_case("localhost") {
        return Target::Address(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    Target::Name(host.to_owned())
}
