//! The columns of the store. Their names and types are a published format, `docs/audit.md`: a column may be
//! added at the end, none changes.

use std::sync::{Arc, LazyLock};

use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// Which version of the format it is.
pub const VERSION: &str = "1";

/// Columns of text, in the order in which they stand. All share one pool of strings in each batch, so that
/// a small batch has one dictionary and not one for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Text {
    /// NAME-NUMBER of the sandbox; the daemon's own name for what is none's.
    Sandbox,
    /// As [`crate::audit::record::Class`].
    Class,
    /// What was done or asked.
    Action,
    /// `allow`, `deny` or `none`.
    Verdict,
    /// Why.
    Reason,
    /// The program's path.
    Exe,
    /// Its device and inode.
    ExeId,
    /// The script it was started through.
    Script,
    /// What it was started with, one JSON array, credentials masked.
    Args,
    /// The name that was asked for.
    Host,
    /// The real address.
    Ip,
    /// The address that was asked for, where that is another one.
    Asked,
    /// `tcp`, `udp` or `icmp`.
    Transport,
    /// The host that was named on the connection.
    Named,
    /// A file's path, a program's, or of counted uses the directory's.
    Path,
    /// Its device and inode.
    PathId,
    /// `read`, `write`, `execute`, joined by `+`.
    Access,
    /// The second path of a refused system call.
    OtherPath,
    /// What a refused system call answered.
    Errno,
    /// Key of the deciding rule.
    Rule,
    /// Its host.
    RuleHost,
    /// The binary entry that admitted the subject.
    RuleBinary,
    /// What else there is to say, a JSON object as in the sandbox's own trail.
    Detail,
}

/// How many columns of text there are.
pub const TEXTS: usize = 23;

/// Their names.
pub const TEXT_NAMES: [&str; TEXTS] = [
    "sandbox",
    "class",
    "action",
    "verdict",
    "reason",
    "exe",
    "exe_id",
    "script",
    "args",
    "host",
    "ip",
    "asked",
    "transport",
    "named",
    "path",
    "path_id",
    "access",
    "other_path",
    "errno",
    "rule",
    "rule_host",
    "rule_binary",
    "detail",
];

/// Columns of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Number {
    /// Process id, as the host sees it.
    Pid,
    /// User id, as the host sees it.
    Uid,
    /// The process that started this one.
    Parent,
    /// Port.
    Port,
    /// Index of the deciding rule's endpoint.
    RuleEndpoint,
    /// Number of the policy that was in force.
    Policy,
}

/// How many columns of numbers there are.
pub const NUMBERS: usize = 6;

/// Their names.
pub const NUMBER_NAMES: [&str; NUMBERS] =
    ["pid", "uid", "parent", "port", "rule_endpoint", "policy"];

/// The column of the time, before all others: microseconds.
pub const TIME: &str = "time";
/// How many events a row stands for, behind the numbers.
pub const COUNT: &str = "count";
/// A denied operation that went on because the sandbox only records.
pub const LET_THROUGH: &str = "let_through";

/// All columns.
pub const COLUMNS: usize = 1 + TEXTS + NUMBERS + 2;

/// Where a column stands among all.
impl Text {
    /// Its place.
    #[must_use]
    pub const fn at(self) -> usize {
        1 + self as usize
    }
}

impl Number {
    /// Its place.
    #[must_use]
    pub const fn at(self) -> usize {
        1 + TEXTS + self as usize
    }
}

/// The place of [`COUNT`].
pub const COUNT_AT: usize = 1 + TEXTS + NUMBERS;

/// The columns as they are stored: texts are places in the batch's pool. What readers are told is that
/// these are dictionary-encoded strings, which are stored so.
#[must_use]
pub fn stored() -> SchemaRef {
    static STORED: LazyLock<SchemaRef> = LazyLock::new(|| {
        let mut fields = vec![Field::new(TIME, time(), false)];
        fields.extend(TEXT_NAMES.iter().map(|name| Field::new(*name, DataType::Int32, true)));
        fields.extend(NUMBER_NAMES.iter().map(|name| Field::new(*name, DataType::UInt32, true)));
        fields.push(Field::new(COUNT, DataType::UInt64, false));
        fields.push(Field::new(LET_THROUGH, DataType::Boolean, false));
        Arc::new(Schema::new(fields))
    });
    Arc::clone(&STORED)
}

/// The type of [`TIME`].
#[must_use]
pub fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The pool of strings that the texts of a batch are in.
#[must_use]
pub fn pool() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, false)]))
}
