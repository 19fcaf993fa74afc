//! Events as the kernel wrote them, decoded with checks: bytes that are not exactly a record of a
//! known kind, verdict and reason are an error, never a guess.

use clawbox_common::event::{
    CallEvent, FileEvent, Header, Kind, NetworkEvent, Operation, TaskEvent,
};
use clawbox_common::limits::{ARGUMENTS, FILE_NAME, TOLD_NAMES};
use clawbox_common::verdict::{Reason, Verdict};

/// A decoded event.
#[derive(Clone, Debug)]
pub enum Event {
    /// connect, send, bind, socket.
    Network(Decoded, NetworkEvent),
    /// A program start, with the path exec was given.
    Exec(Decoded, Box<TaskEvent>),
    /// A denied use of a file, a process or the kernel.
    File(Decoded, Operation, Box<FileEvent>),
    /// A system call that came back refused.
    Call(Decoded, Box<CallEvent>),
}

/// The numbers of a header as what they stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// What the event is about.
    pub kind: Kind,
    /// The verdict.
    pub verdict: Verdict,
    /// Its cause.
    pub reason: Reason,
}

/// Why bytes are no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not a record's size.
    #[error("an event of {0} bytes, which no kind of event has")]
    Size(usize),
    /// A number outside its range.
    #[error("an event whose {field} is {value}, which means nothing")]
    Value {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u8,
    },
}

impl Event {
    /// The common part.
    #[must_use]
    pub fn header(&self) -> &Header {
        match self {
            Self::Network(_, event) => &event.header,
            Self::Exec(_, event) => &event.header,
            Self::File(_, _, event) => &event.header,
            Self::Call(_, event) => &event.header,
        }
    }

    /// The numbers of its header.
    #[must_use]
    pub fn decoded(&self) -> Decoded {
        match self {
            Self::Network(decoded, _)
            | Self::Exec(decoded, _)
            | Self::File(decoded, ..)
            | Self::Call(decoded, _) => *decoded,
        }
    }

    /// Decodes one record of the ring.
    ///
    /// # Errors
    /// The bytes are not one.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let kind = bytes.first().copied().ok_or(DecodeError::Size(0))?;
        let kind =
            Kind::try_from(kind).map_err(|value| DecodeError::Value { field: "kind", value })?;
        match kind {
            Kind::Exec => {
                // SAFETY: `read` checks the size; every byte pattern is a `TaskEvent`.
                let event: TaskEvent = unsafe { read(bytes) }?;
                Ok(Self::Exec(decoded(kind, &event.header)?, Box::new(event)))
            }
            Kind::File | Kind::Privilege => {
                // SAFETY: `read` checks the size; every byte pattern is a `FileEvent`.
                let event: FileEvent = unsafe { read(bytes) }?;
                let value = |value: u32| DecodeError::Value {
                    field: "operation",
                    value: u8::try_from(value).unwrap_or(u8::MAX),
                };
                let operation = Operation::try_from(event.operation).map_err(value)?;
                Ok(Self::File(decoded(kind, &event.header)?, operation, Box::new(event)))
            }
            Kind::Call => {
                // SAFETY: `read` checks the size; every byte pattern is a `CallEvent`.
                let event: CallEvent = unsafe { read(bytes) }?;
                Ok(Self::Call(decoded(kind, &event.header)?, Box::new(event)))
            }
            Kind::Connect
            | Kind::Send
            | Kind::SendConnected
            | Kind::Receive
            | Kind::Bind
            | Kind::Socket => {
                // SAFETY: `read` checks the size; every byte pattern is a `NetworkEvent`.
                let event: NetworkEvent = unsafe { read(bytes) }?;
                Ok(Self::Network(decoded(kind, &event.header)?, event))
            }
        }
    }
}

fn decoded(kind: Kind, header: &Header) -> Result<Decoded, DecodeError> {
    let value = |field| move |value| DecodeError::Value { field, value };
    Ok(Decoded {
        kind,
        verdict: Verdict::try_from(header.verdict).map_err(value("verdict"))?,
        reason: Reason::try_from(header.reason).map_err(value("reason"))?,
    })
}

/// # Safety
/// `T` is `repr(C)`, made of integers only and without padding, so that every byte pattern of its
/// size is a value.
unsafe fn read<T: Copy>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() != size_of::<T>() {
        return Err(DecodeError::Size(bytes.len()));
    }
    // SAFETY: the length was checked, the read does not need alignment, and the caller vouches
    // for the type.
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// The path of a program start, without its NUL and what the ring held behind it.
#[must_use]
pub fn exec_path(event: &TaskEvent) -> &[u8] {
    until_nul(&event.path)
}

/// The path of the program that exec ended with, where the kernel told one: its own, or that of a
/// script's interpreter.
#[must_use]
pub fn program_path(event: &TaskEvent) -> &[u8] {
    if event.header.is_script == 1 { until_nul(&event.interpreter) } else { exec_path(event) }
}

/// What a program was started with, as far as the kernel told it, and whether that is not all.
#[must_use]
pub fn arguments(event: &TaskEvent) -> (&[u8], bool) {
    let bytes = usize::try_from(event.arguments_bytes).unwrap_or(usize::MAX);
    // The kernel's program leaves the last place free.
    let told = bytes.min(ARGUMENTS - 1);
    (&event.arguments[..told], told < bytes)
}

fn until_nul(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The path of a denied file as far as the kernel told it.
#[must_use]
pub fn told_path(event: &FileEvent) -> String {
    told_names(event.told, &event.names)
}

/// A path that the kernel told name by name, from below. One that goes on above begins with `…/`;
/// bytes that are no text are replaced.
#[must_use]
pub fn told_names(told: u32, names: &[[u8; FILE_NAME]; TOLD_NAMES]) -> String {
    let told = usize::try_from(told).unwrap_or(0).min(names.len());
    let names: Vec<_> = names[..told]
        .iter()
        .map(|name| name.split(|byte| *byte == 0).next().unwrap_or_default())
        .map(String::from_utf8_lossy)
        .collect();
    match names.split_last() {
        None => String::new(),
        Some((root, below)) => {
            let below: Vec<&str> = below.iter().rev().map(AsRef::as_ref).collect();
            if root == "/" {
                format!("/{}", below.join("/"))
            } else {
                format!("…/{root}/{}", below.join("/"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_an_event_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Event::decode(&bytes);
        }
    }

    #[test]
    fn a_record_cut_by_one_byte_is_refused() {
        let mut bytes = vec![0_u8; size_of::<NetworkEvent>()];
        bytes[0] = Kind::Connect as u8;
        assert!(Event::decode(&bytes).is_ok());
        bytes.pop();
        assert_eq!(Event::decode(&bytes).unwrap_err(), DecodeError::Size(127));
    }

    #[test]
    fn a_verdict_that_means_nothing_is_refused() {
        let mut bytes = vec![0_u8; size_of::<NetworkEvent>()];
        bytes[0] = Kind::Connect as u8;
        bytes[1] = 2;
        let error = Event::decode(&bytes).unwrap_err();
        assert_eq!(error, DecodeError::Value { field: "verdict", value: 2 });
    }
}
