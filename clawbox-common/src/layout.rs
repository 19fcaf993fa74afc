//! Sizes and offsets that kernel and agent rely on, checked when either is compiled, and the
//! marker that lets aya copy the records into maps.

use core::mem::{offset_of, size_of};

use crate::address::Address;
use crate::attach::{Selector, Walk};
use crate::event::{CallEvent, CallShape, FileEvent, Header, NetworkEvent, TaskEvent, Told};
use crate::file::{FileKey, FileRule, NameKey, Tally, TallyKey, TallyPlace};
use crate::flow::{Flow, FlowKey};
use crate::limits;
use crate::number::Account;
use crate::rule::{
    ADDRESS_KEY_BITS, ADDRESS_KEY_HEAD, AddressKey, BinaryKey, Granted, HostIds, LossKey,
    Redirected, RuleKey, RuleValue, SandboxState, SandboxStates, ScriptKey, SocketState,
    SyntheticKey, SyntheticValue,
};
use crate::subject::{FileId, Incarnation, Kind, Mask, Seat, Subject};

/// What two builds have to have in common for one to take over the other's tables: sizes of records and of
/// tables, and a number that is raised where the same bytes come to mean something else.
pub const LAYOUT: u64 = {
    const MEANING: usize = 3;
    let parts = [
        MEANING,
        size_of::<Subject>(),
        size_of::<Kind>(),
        size_of::<Seat>(),
        size_of::<RuleKey>(),
        size_of::<RuleValue>(),
        size_of::<HostIds>(),
        size_of::<SyntheticKey>(),
        size_of::<SyntheticValue>(),
        size_of::<AddressKey>(),
        size_of::<SandboxStates>(),
        size_of::<BinaryKey>(),
        size_of::<ScriptKey>(),
        size_of::<SocketState>(),
        size_of::<FileKey>(),
        size_of::<FileRule>(),
        size_of::<NameKey>(),
        size_of::<TallyKey>(),
        size_of::<TallyPlace>(),
        size_of::<Tally>(),
        size_of::<NetworkEvent>(),
        size_of::<TaskEvent>(),
        size_of::<FileEvent>(),
        size_of::<CallEvent>(),
        size_of::<Selector>(),
        size_of::<FlowKey>(),
        size_of::<Flow>(),
        limits::FLOWS as usize,
        limits::UNASKED as usize,
        limits::SANDBOXES as usize,
        limits::RULES as usize,
        limits::ADDRESSES as usize,
        limits::SYNTHETICS as usize,
        limits::SUBJECTS as usize,
        limits::SEATS as usize,
        limits::KINDS as usize,
        limits::BINARIES as usize,
        limits::SCRIPTS as usize,
        limits::FILES as usize,
        limits::NAMES as usize,
        limits::TALLIES as usize,
        limits::EVENT_RING as usize,
        limits::ALLOW_RING as usize,
    ];
    // FNV-1a, by words.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut at = 0;
    while at < parts.len() {
        hash = (hash ^ parts[at] as u64).wrapping_mul(0x0100_0000_01b3);
        at += 1;
    }
    hash
};

/// A record's size is the sum of its fields: no padding, so no uninitialised byte is compared by
/// a map or copied to userspace.
macro_rules! packed {
    ($($record:ty = $size:literal),* $(,)?) => { $(const _: () = assert!(size_of::<$record>() == $size);)* };
}

packed! {
    FlowKey = 64,
    Flow = 56,
    Address = 16,
    FileId = 16,
    Mask = 32,
    Incarnation = 16,
    Subject = 112,
    Kind = 88,
    Seat = 120,
    RuleKey = 12,
    RuleValue = 72,
    HostIds = 16,
    SyntheticKey = 24,
    SyntheticValue = 36,
    AddressKey = 24,
    SandboxState = 20,
    SandboxStates = 88,
    BinaryKey = 24,
    ScriptKey = 264,
    Granted = 40,
    SocketState = 152,
    Redirected = 136,
    LossKey = 8,
    Account = 16,
    Header = 56,
    NetworkEvent = 128,
    TaskEvent = 1088,
    FileEvent = 1112,
    Told = 1028,
    CallEvent = 2176,
    CallShape = 8,
    Selector = 128,
    Walk = 24,
    FileKey = 24,
    NameKey = 88,
    FileRule = 136,
    TallyKey = 40,
    TallyPlace = 16,
    Tally = 24,
}

const _: () = assert!(offset_of!(NetworkEvent, asked) == size_of::<Header>());
// A file's event ends with what is told of its path, so that one program writes both.
const _: () = assert!(size_of::<FileEvent>() - offset_of!(FileEvent, told) == size_of::<Told>());
const _: () = assert!(offset_of!(FileEvent, names) - offset_of!(FileEvent, told) == 4);
const _: () = assert!(offset_of!(TaskEvent, path) == size_of::<Header>() + 8);
const _: () = assert!(offset_of!(AddressKey, address) * 8 == ADDRESS_KEY_HEAD as usize);
const _: () = assert!(size_of::<AddressKey>() * 8 == ADDRESS_KEY_BITS as usize);

#[cfg(feature = "user")]
macro_rules! pod {
    ($($record:ty),* $(,)?) => {
        $(
            // SAFETY: `repr(C)`, integers only, and `packed!` above rules out padding, so every
            // byte is initialised and every byte pattern is a value.
            unsafe impl aya::Pod for $record {}
        )*
    };
}

#[cfg(feature = "user")]
pod! {
    Flow, FlowKey, Tally, TallyKey, TallyPlace,
    Address, FileId, Mask, Seat, Subject, RuleKey, RuleValue, HostIds, SyntheticKey, SyntheticValue,
    AddressKey, SandboxState, SandboxStates, BinaryKey, ScriptKey, SocketState, Redirected, LossKey,
    FileKey, NameKey, FileRule, CallShape, Selector, Walk, Account,
}
