//! Kernel events to records: numbers become paths, names and rules again.

use std::net::{IpAddr, Ipv6Addr};
use std::time::SystemTime;

use clawbox_common::address::Address;
use clawbox_common::decide::Route;
use clawbox_common::event::{FileEvent, Header, Kind, NetworkEvent, Operation, TaskEvent};
use clawbox_common::file::{EXECUTE, READ, TallyKey, WRITE};
use clawbox_common::flow::{Flow, FlowKey};
use clawbox_common::rule::{ICMP, TCP, UDP};
use clawbox_common::subject::FileId;
use clawbox_common::verdict::{Reason, Verdict};

use super::clock::Clock;
use super::mask;
use super::programs::Programs;
use super::record::{
    Class, Endpoint, FileObject, Object, Privilege, Program, Rule, Socket, Subject, Summary,
    VerdictName,
};
use super::refused_call;
use super::trail::Draft;
use crate::events::{Decoded, Event, arguments, exec_path, told_path};
use crate::gateway::Outcome;
use crate::kernel::tallies::Uses;

/// What the numbers in an event stand for.
pub trait Meaning {
    /// The rule that admitted a subject: host pattern, port, transport and the meeting slots.
    fn rule(&self, event: &NetworkEvent) -> Option<Rule>;
    /// The name behind a synthetic address.
    fn name(&self, number: u32) -> Option<String>;
}

/// Of events that are no sandbox's.
pub struct NoMeaning;

impl Meaning for NoMeaning {
    fn rule(&self, _: &NetworkEvent) -> Option<Rule> {
        None
    }

    fn name(&self, _: u32) -> Option<String> {
        None
    }
}

/// The address for people: IPv4 where it is one.
#[must_use]
pub fn ip(address: Address) -> IpAddr {
    Ipv6Addr::from(address.octets()).to_canonical()
}

/// A transport's name.
#[must_use]
pub fn transport(number: u8) -> &'static str {
    match number {
        TCP => "tcp",
        UDP => "udp",
        ICMP => "icmp",
        _ => "other",
    }
}

/// The record of an event. Program starts are learnt from first, so that their own record and
/// all later ones can name the program.
/// `None` for what turns out to be no denial.
pub fn draft(
    event: &Event,
    programs: &mut Programs,
    meaning: &dyn Meaning,
    clock: &Clock,
) -> Option<Draft> {
    let draft = match event {
        Event::Call(decoded, event) => refused_call::draft(*decoded, event, programs)?,
        Event::Exec(decoded, event) => {
            programs.started(event);
            exec(*decoded, event, programs)
        }
        Event::File(decoded, operation, event) => file(*decoded, *operation, event, programs),
        Event::Network(decoded, event) => {
            if event.route == Route::Resolver as u8 {
                programs.asked(&event.header);
            }
            network(*decoded, event, programs, meaning)
        }
    };
    Some(Draft { time: clock.at(event.header().time), ..draft })
}

/// The process of a kernel event's header.
#[must_use]
pub fn subject(header: &Header, programs: &Programs) -> Subject {
    Subject {
        pid: header.tgid,
        uid: header.uid,
        exe: programs.path(header.exe).map(|path| path.to_string_lossy().into_owned()),
        exe_id: file_id(header.exe),
        script: (header.is_script == 1)
            .then(|| programs.script(header.tgid).map(str::to_owned))
            .flatten(),
    }
}

pub(super) fn begun(
    decoded: Decoded,
    header: &Header,
    programs: &Programs,
    class: Class,
    object: Object,
) -> Draft {
    Draft {
        time: None,
        class,
        action: decoded.kind.name(),
        verdict: decoded.verdict.into(),
        reason: decoded.reason.name(),
        let_through: decoded.verdict == Verdict::Deny && header.audit_only == 1,
        rule: None,
        subject: Some(subject(header, programs)),
        object,
    }
}

fn exec(decoded: Decoded, event: &TaskEvent, programs: &Programs) -> Draft {
    let (told, is_cut) = arguments(event);
    let object = Object::Program(Program {
        path: String::from_utf8_lossy(exec_path(event)).into_owned(),
        parent: event.parent,
        args: mask::arguments(told, is_cut),
    });
    begun(decoded, &event.header, programs, Class::Process, object)
}

fn file(decoded: Decoded, operation: Operation, event: &FileEvent, programs: &Programs) -> Draft {
    let (class, object) = match decoded.kind {
        Kind::File => {
            let path = told_path(event);
            let access = access(event.access);
            let id = file_id(event.object);
            let object = FileObject { path, id, access, other_path: None, errno: None };
            (Class::File, Object::File(object))
        }
        _ => {
            let other = (event.other != 0).then_some(event.other);
            (Class::Privilege, Object::Privilege(Privilege { other_pid: other, system_call: None }))
        }
    };
    let action = operation.name();
    Draft { action, ..begun(decoded, &event.header, programs, class, object) }
}

/// The record of what a program was allowed in a directory.
pub fn summary(
    key: &TallyKey,
    uses: &Uses,
    directory: Option<&str>,
    programs: &Programs,
    clock: &Clock,
) -> Draft {
    let at = |nanoseconds| {
        let time = clock.at(nanoseconds).unwrap_or(SystemTime::UNIX_EPOCH);
        humantime::format_rfc3339_micros(time).to_string()
    };
    Draft {
        time: None,
        class: Class::File,
        action: Operation::Tally.name(),
        verdict: VerdictName::Allow,
        reason: Reason::Rule.name(),
        let_through: false,
        rule: None,
        subject: None,
        object: Object::Summary(Summary {
            program: programs.path(key.exe).map(|path| path.to_string_lossy().into_owned()),
            program_id: file_id(key.exe),
            directory: directory.map(str::to_owned),
            directory_id: file_id(key.directory),
            reads: uses.tally.reads,
            writes: uses.tally.writes,
            executes: uses.tally.executes,
            first: at(uses.first),
            last: at(uses.last),
        }),
    }
}

fn access(bits: u32) -> Vec<String> {
    let names = [(READ, "read"), (WRITE, "write"), (EXECUTE, "execute")];
    names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| (*name).to_owned()).collect()
}

/// Device and inode, as the kernel sees them.
pub(super) fn file_id(file: FileId) -> String {
    format!("{}:{}:{}", file.device >> 20, file.device & 0x000f_ffff, file.inode)
}

/// The record of a connection that the agent has seen: `verify`, `approve` or `refuse`.
pub fn seen_by_agent(
    outcome: Outcome,
    action: &'static str,
    programs: &Programs,
    meaning: &dyn Meaning,
    is_let_through: bool,
) -> Draft {
    let Outcome { time, event, verdict, reason, named, is_hidden: hidden } = outcome;
    let decoded = Decoded { kind: Kind::Connect, verdict, reason };
    let draft = network(decoded, &event, programs, meaning);
    let object = match draft.object {
        Object::Endpoint(endpoint) => Object::Endpoint(Endpoint { named, hidden, ..endpoint }),
        other => other,
    };
    let let_through = is_let_through && verdict == Verdict::Deny;
    Draft { time: Some(time), action, let_through, object, ..draft }
}

/// The record of so many more connects or sends that were allowed as one that was told. `None` where the
/// kernel's numbers stand for nothing.
pub fn counted(
    key: &FlowKey,
    flow: &Flow,
    programs: &Programs,
    meaning: &dyn Meaning,
) -> Option<Draft> {
    let (kind, reason) = (Kind::try_from(key.kind).ok()?, Reason::try_from(key.reason).ok()?);
    let decoded = Decoded { kind, verdict: Verdict::Allow, reason };
    let header = Header {
        kind: key.kind,
        verdict: Verdict::Allow as u8,
        reason: key.reason,
        sandbox: flow.sandbox,
        uid: key.uid,
        is_script: flow.is_script,
        exe: flow.exe,
        ..Header::default()
    };
    let event = NetworkEvent {
        header,
        asked: key.asked,
        real: key.real,
        port: key.port,
        transport: key.transport,
        route: key.route,
        host: flow.host,
        matched: flow.matched,
        matched_word: flow.matched_word,
        name: flow.name,
        policy: key.policy,
        ..NetworkEvent::default()
    };
    let draft = network(decoded, &event, programs, meaning);
    let object = match draft.object {
        Object::Endpoint(endpoint) => {
            Object::Endpoint(Endpoint { times: Some(flow.again), ..endpoint })
        }
        other => other,
    };
    Some(Draft { object, ..draft })
}

fn network(
    decoded: Decoded,
    event: &NetworkEvent,
    programs: &Programs,
    meaning: &dyn Meaning,
) -> Draft {
    let object = if decoded.kind == Kind::Socket || decoded.reason == Reason::SocketKind {
        let family = (event.host != 0).then_some(event.host);
        Object::Socket(Socket { family, socket_type: event.port, protocol: event.protocol })
    } else {
        let (real, asked) = (ip(event.real), ip(event.asked));
        Object::Endpoint(Endpoint {
            host: meaning.name(event.name),
            ip: real,
            asked: (asked != real).then_some(asked),
            port: event.port,
            transport: transport(event.transport).to_owned(),
            named: None,
            hidden: false,
            times: None,
        })
    };
    let rule = (decoded.reason == Reason::Rule).then(|| meaning.rule(event)).flatten();
    let draft = begun(decoded, &event.header, programs, Class::Network, object);
    // It goes nowhere yet.
    let verdict = if decoded.reason == Reason::Held { VerdictName::None } else { draft.verdict };
    Draft { rule, verdict, ..draft }
}
