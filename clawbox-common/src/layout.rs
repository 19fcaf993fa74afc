//! Sizes and offsets that kernel and agent rely on, checked when either is compiled, and the
//! marker that lets aya copy the records into maps.

use core::mem::{offset_of, size_of};

use crate::address::Address;
use crate::event::{CallEvent, CallShape, FileEvent, Header, NetworkEvent, TaskEvent, Told};
use crate::file::{FileKey, FileRule, NameKey, Tally, TallyKey, TallyPlace};
use crate::rule::{
    ADDRESS_KEY_BITS, ADDRESS_KEY_HEAD, AddressKey, BinaryKey, Granted, HostIds, LossKey,
    Redirected, RuleKey, RuleValue, SandboxState, SandboxStates, ScriptKey, SocketState,
    SyntheticKey, SyntheticValue,
};
use crate::subject::{FileId, Incarnation, Kind, Mask, Seat, Subject};

/// A record's size is the sum of its fields: no padding, so no uninitialised byte is compared by
/// a map or copied to userspace.
macro_rules! packed {
    ($($record:ty = $size:literal),* $(,)?) => { $(const _: () = assert!(size_of::<$record>() == $size);)* };
}

packed! {
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
    Redirected = 128,
    LossKey = 8,
    Header = 48,
    NetworkEvent = 120,
    TaskEvent = 568,
    FileEvent = 1104,
    Told = 1028,
    CallEvent = 2168,
    CallShape = 8,
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
    Tally, TallyKey, TallyPlace,
    Address, FileId, Mask, Seat, Subject, RuleKey, RuleValue, HostIds, SyntheticKey, SyntheticValue,
    AddressKey, SandboxState, SandboxStates, BinaryKey, ScriptKey, SocketState, Redirected, LossKey,
    FileKey, NameKey, FileRule, CallShape,
}
