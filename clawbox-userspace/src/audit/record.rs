//! One line of the audit trail. Field names are a published format: `clawbox audit schema`.

use std::borrow::Cow;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One JSON object a line.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Record {
    /// When it happened, RFC 3339 in UTC with microseconds.
    pub time: String,
    /// Line number within this trail, from 1, without holes.
    pub seq: u64,
    /// Name of the sandbox.
    pub sandbox: String,
    /// What kind of thing it is about.
    pub class: Class,
    /// What was done or asked.
    pub action: Cow<'static, str>,
    /// What the policy says.
    pub verdict: VerdictName,
    /// Why, as a stable name.
    pub reason: Cow<'static, str>,
    /// True where a denied operation went on because the sandbox only records.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub let_through: bool,
    /// The rule that decided, where one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    /// Who acted; absent where no process did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<Subject>,
    /// What was acted on.
    pub object: Object,
}

/// Class of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// connect, send, bind, socket.
    Network,
    /// A DNS question.
    Dns,
    /// A program start.
    Process,
    /// A denied use of a file, and counts of allowed ones.
    File,
    /// A denied use of another process, of the kernel's own rights, or of a system call.
    Privilege,
    /// A sandbox's start and stop.
    Sandbox,
    /// Events that happened and could not be delivered.
    Gap,
    /// Something about the agent itself, in its own trail.
    Agent,
}

/// Verdict, or none where nothing was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VerdictName {
    /// The policy allows it.
    Allow,
    /// The policy denies it.
    Deny,
    /// Nothing was decided: a start, a stop, a gap.
    None,
}

impl From<clawbox_common::verdict::Verdict> for VerdictName {
    fn from(verdict: clawbox_common::verdict::Verdict) -> Self {
        match verdict {
            clawbox_common::verdict::Verdict::Allow => Self::Allow,
            clawbox_common::verdict::Verdict::Deny => Self::Deny,
        }
    }
}

/// The deciding rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rule {
    /// Key under `network_policies`.
    pub policy: String,
    /// Index in its `endpoints`, from 0.
    pub endpoint: usize,
    /// The endpoint's host as the policy writes it.
    pub host: String,
    /// The binary entry that admitted the subject, as the policy writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary: Option<String>,
}

/// The process that acted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Subject {
    /// Process id, as the host sees it.
    pub pid: u32,
    /// User id, as the host sees it.
    pub uid: u32,
    /// Path of the program; `null` where it ended before its path could be read.
    pub exe: Option<String>,
    /// Device and inode of the program, which is what the kernel decided by.
    pub exe_id: String,
    /// The script, where one was started through `#!`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
}

/// What was acted on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Object {
    /// A network endpoint.
    Endpoint(Endpoint),
    /// A DNS question.
    Question(Question),
    /// A program start.
    Program(Program),
    /// A refused socket.
    Socket(Socket),
    /// A file.
    File(FileObject),
    /// Events that were not delivered.
    Gap(Gap),
    /// Allowed uses of files, counted.
    Summary(Summary),
    /// A sandbox.
    Sandbox(Box<SandboxObject>),
    /// Something that was not as the agent has left it.
    Alarm(Alarm),
    /// Another process, or none.
    Privilege(Privilege),
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileObject {
    /// Its path on the host; begins with `…/` where only the end of it is known.
    pub path: String,
    /// Device and inode, which is what the kernel decided by; zeros where it did not exist, or
    /// where a system call was refused beneath the hooks, which tells the path alone.
    pub id: String,
    /// What was asked for: `read`, `write`, `execute`.
    pub access: Vec<String>,
    /// The second path of a refused system call that has two: where it was to be moved or linked
    /// to, or what a symbolic link was to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_path: Option<String>,
    /// What a refused system call answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<String>,
}

/// What one program was allowed in one directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    /// Path of the program; `null` where it ended before its path could be read.
    pub program: Option<String>,
    /// Device and inode of the program.
    pub program_id: String,
    /// The directory's path on the host; `null` where the ring had no room to tell it.
    pub directory: Option<String>,
    /// Device and inode of the directory.
    pub directory_id: String,
    /// Opened or mapped to be read.
    pub reads: u64,
    /// Opened to be written, made, removed, renamed or changed otherwise.
    pub writes: u64,
    /// Started, or mapped to be executed.
    pub executes: u64,
    /// The first of the counted uses, or when the last count ended.
    pub first: String,
    /// The last of them.
    pub last: String,
}

/// What was refused is the action itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Privilege {
    /// The process that was meant, as the host sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_pid: Option<u32>,
    /// The system call that the sandbox's filter refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_call: Option<String>,
}

/// What the watchdog or the store has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Alarm {
    /// `critical` where something may have been allowed that was not to be, `warning` otherwise.
    pub severity: Cow<'static, str>,
    /// The program, the table, or what of a sandbox it is about.
    pub part: String,
    /// Whether it was put right.
    pub repaired: bool,
    /// Why it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Events that are there no longer, of a segment that was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<u64>,
}

/// A network endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Endpoint {
    /// The name the address was handed out for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The real address.
    pub ip: IpAddr,
    /// The address the process asked for, where that is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<IpAddr>,
    /// Port.
    pub port: u16,
    /// `tcp` or `udp`.
    pub transport: String,
    /// The host that was named on the connection, where that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<String>,
    /// Another one is, or may be, encrypted behind that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hidden: bool,
    /// So many like one that was told by itself, by whatever processes, since then; absent where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
}

/// A DNS question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Question {
    /// The name asked for.
    pub name: String,
    /// Record type.
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// `udp` or `tcp`.
    pub transport: Cow<'static, str>,
    /// Real addresses in the answer.
    pub addresses: Vec<IpAddr>,
    /// The addresses given to the client in their place, in the same order.
    pub handed_out: Vec<IpAddr>,
}

/// A program start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Program {
    /// The path exec was given.
    pub path: String,
    /// Parent process, as the host sees it.
    pub parent: u32,
    /// What it was started with, credentials masked; the last ends with `…` where that is not all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
}

/// A socket that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Socket {
    /// Address family as a number, where it is not IPv4 or IPv6: `AF_NETLINK` is 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<u32>,
    /// Socket type as a number, `SOCK_RAW` is 3.
    pub socket_type: u16,
    /// Protocol as a number.
    pub protocol: u32,
}

/// Events that happened and are not in the trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gap {
    /// How many.
    pub count: u64,
    /// What kind of event.
    pub kind: String,
    /// Whether they were allowed or denied, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<VerdictName>,
}

/// What a start, a stop or a change of policy says of the sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SandboxObject {
    /// The command.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub command: Vec<String>,
    /// The directory that it was started in, which is what `include_workdir` means: of a start, and of another
    /// agent's taking it over. None has one in whose cgroup nothing is started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Policy file.
    pub policy: String,
    /// Number of the policy that came into force, where one did in place of another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// `enforce` or `audit`.
    pub mode: String,
    /// Exit status at a stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<i32>,
    /// The user who had a further command started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<u32>,
    /// That command's process, as the host sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<u32>,
    /// Layers asked for and what the kernel gave, at a start.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub layers: Vec<Value>,
}
