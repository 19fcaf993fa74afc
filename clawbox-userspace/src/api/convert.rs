//! Between the API's messages and what a sandbox answers.

use super::proto;
use crate::audit::AuditLevel;
use crate::policy::model::Mode;
use crate::sandbox::control::{Answer, Connection, Text};

/// Files, as the API has them.
#[must_use]
pub fn texts(texts: &[Text]) -> Vec<proto::Text> {
    let text = |text: &Text| proto::Text { name: text.name.clone(), text: text.text.clone() };
    texts.iter().map(text).collect()
}

/// Files from the API.
#[must_use]
pub fn own_texts(texts: Vec<proto::Text>) -> Vec<Text> {
    texts.into_iter().map(|text| Text { name: text.name, text: text.text }).collect()
}

fn connection(connection: Connection) -> proto::Connection {
    let Connection { id, host, port, program, pid, seconds, seconds_left, rule } = connection;
    let (port, program) = (u32::from(port), program.unwrap_or_default());
    proto::Connection { id, host, port, program, pid, seconds, seconds_left, rule }
}

fn own_connection(connection: proto::Connection) -> Connection {
    let proto::Connection { id, host, port, program, pid, seconds, seconds_left, rule } =
        connection;
    let port = u16::try_from(port).unwrap_or_default();
    let program = (!program.is_empty()).then_some(program);
    Connection { id, host, port, program, pid, seconds, seconds_left, rule }
}

impl From<Answer> for proto::Answer {
    fn from(answer: Answer) -> Self {
        use proto::answer::Outcome;
        let outcome = match answer {
            Answer::Changed { generation, microseconds, connections_reset, warnings } => {
                let connections_reset = connections_reset as u64;
                let revision = generation;
                Outcome::Changed(proto::Changed {
                    revision,
                    microseconds,
                    connections_reset,
                    warnings,
                })
            }
            Answer::Waiting { connections } => {
                let connections = connections.into_iter().map(connection).collect();
                Outcome::Waiting(proto::Connections { connections })
            }
            Answer::Approved { connection: which, generation } => {
                Outcome::Approved(proto::Approved {
                    connection: Some(connection(which)),
                    revision: generation.unwrap_or_default(),
                })
            }
            Answer::Denied { connection: which } => Outcome::Denied(connection(which)),
            Answer::Refused { why, parts } => Outcome::Refused(proto::Refused { why, parts }),
            Answer::DoesNotLoad { errors } => Outcome::DoesNotLoad(proto::Mistakes { errors }),
        };
        Self { outcome: Some(outcome) }
    }
}

/// An answer from the API; `None` where it is not one that this version knows.
#[must_use]
pub fn own_answer(answer: proto::Answer) -> Option<Answer> {
    use proto::answer::Outcome;
    Some(match answer.outcome? {
        Outcome::Changed(changed) => Answer::Changed {
            generation: changed.revision,
            microseconds: changed.microseconds,
            connections_reset: usize::try_from(changed.connections_reset).unwrap_or(usize::MAX),
            warnings: changed.warnings,
        },
        Outcome::Waiting(waiting) => Answer::Waiting {
            connections: waiting.connections.into_iter().map(own_connection).collect(),
        },
        Outcome::Approved(approved) => Answer::Approved {
            connection: own_connection(approved.connection?),
            generation: (approved.revision != 0).then_some(approved.revision),
        },
        Outcome::Denied(connection) => Answer::Denied { connection: own_connection(connection) },
        Outcome::Refused(refused) => Answer::Refused { why: refused.why, parts: refused.parts },
        Outcome::DoesNotLoad(mistakes) => Answer::DoesNotLoad { errors: mistakes.errors },
    })
}

/// What of the allowed goes into a trail.
#[must_use]
pub fn audit_level(level: proto::AuditLevel) -> AuditLevel {
    match level {
        proto::AuditLevel::Denials => AuditLevel::Denials,
        proto::AuditLevel::All => AuditLevel::All,
        proto::AuditLevel::Unspecified | proto::AuditLevel::Summary => AuditLevel::Summary,
    }
}

/// The same, to be sent.
#[must_use]
pub fn to_audit_level(level: AuditLevel) -> proto::AuditLevel {
    match level {
        AuditLevel::Denials => proto::AuditLevel::Denials,
        AuditLevel::Summary => proto::AuditLevel::Summary,
        AuditLevel::All => proto::AuditLevel::All,
    }
}

/// What stands in place of a policy's own mode.
#[must_use]
pub fn mode(mode: proto::Mode) -> Option<Mode> {
    match mode {
        proto::Mode::Unspecified => None,
        proto::Mode::Enforce => Some(Mode::Enforce),
        proto::Mode::Audit => Some(Mode::Audit),
    }
}

/// The same, to be sent.
#[must_use]
pub fn to_mode(mode: Option<Mode>) -> proto::Mode {
    match mode {
        None => proto::Mode::Unspecified,
        Some(Mode::Enforce) => proto::Mode::Enforce,
        Some(Mode::Audit) => proto::Mode::Audit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_back_as_it_was() {
        let connection = Connection {
            id: 3,
            host: "a.test".to_owned(),
            port: 443,
            program: None,
            pid: 7,
            seconds: 1,
            seconds_left: 59,
            rule: "rule".to_owned(),
        };
        for answer in [
            Answer::Changed {
                generation: 2,
                microseconds: 9,
                connections_reset: 1,
                warnings: vec!["w".to_owned()],
            },
            Answer::Waiting { connections: vec![connection.clone()] },
            Answer::Approved { connection: connection.clone(), generation: None },
            Answer::Approved { connection: connection.clone(), generation: Some(4) },
            Answer::Denied { connection },
            Answer::Refused { why: "no".to_owned(), parts: vec!["part".to_owned()] },
            Answer::DoesNotLoad { errors: vec!["p.yaml:1:1: error: x".to_owned()] },
        ] {
            assert_eq!(own_answer(answer.clone().into()), Some(answer));
        }
        assert_eq!(own_answer(proto::Answer { outcome: None }), None);
    }
}
