//! Every bound that kernel and agent share, in one place and asserted against each other.
//! A policy that does not fit is refused when it is compiled, never truncated.

/// Binary entries one sandbox's policy may name (a bit each in [`crate::subject::Mask`]).
pub const BINARY_SLOTS: usize = 256;

/// 64-bit words in a [`crate::subject::Mask`].
pub const MASK_WORDS: usize = 4;

/// Host patterns of one policy that one name or one address may match.
pub const PATTERNS_PER_HOST: usize = 4;

/// Bytes of a script's path as exec opened it, with the terminating NUL.
pub const SCRIPT_PATH: usize = 256;

/// Sandboxes one loaded set of programs may serve.
pub const SANDBOXES: u32 = 4096;

/// How the names and paths of cgroups begin that standing rules are for, over all rules.
pub const SELECTORS: u32 = 1_024;

/// Rules over all policies that are loaded at one time.
pub const RULES: u32 = 524_288;

/// Literal addresses and address ranges over all policies.
pub const ADDRESSES: u32 = 262_144;

/// Connections that the agent has been given and not looked at yet; what is older is refused.
pub const REDIRECTS: u32 = 4_096;

/// Synthetic addresses alive at one time, over all sandboxes.
pub const SYNTHETICS: u32 = 65_536;

/// Synthetic addresses one sandbox may hold; a sandbox at its bound gets SERVFAIL.
pub const SYNTHETICS_PER_SANDBOX: u32 = 8_192;

/// Of [`SYNTHETICS`], room that is left to sandboxes which hold no more than [`SYNTHETICS_FOR_EACH`]: those
/// that hold many never take it from them.
pub const SYNTHETICS_RESERVED: u32 = 16_384;

/// Synthetic addresses that a sandbox gets whatever the others hold, as long as there is any room.
pub const SYNTHETICS_FOR_EACH: u32 = 64;

/// Thread groups inside sandboxes alive at one time.
pub const SUBJECTS: u32 = 65_536;

/// Seats, by which a thread group's identity, or that it has none, is told without a search. A power
/// of two, so that numbers share seats evenly where there are more than these.
pub const SEATS: u32 = 32_768;

/// Kinds of subjects whose number is known; of the one that was asked for longest ago it is forgotten,
/// and another one is given the next time.
pub const KINDS: u32 = 4_096;

/// Files named as binaries, over all sandboxes.
pub const BINARIES: u32 = 65_536;

/// Scripts named as binaries, over all sandboxes.
pub const SCRIPTS: u32 = 8_192;

/// Program starts under way at one time whose script is remembered; of the oldest beyond that it is
/// forgotten, and the script is then known by its path alone.
pub const SCRIPT_STARTS: u32 = 4_096;

/// Objects that policies have rules for, over all policies.
pub const FILES: u32 = 131_072;

/// Names that policies have rules for, over all policies.
pub const NAMES: u32 = 32_768;

/// Pairs of program and directory that allowed uses are counted for; one less, because no pair has
/// the first place.
pub const TALLIES: u32 = 65_536;

/// Bytes of a name that a rule may stand at, with the terminating NUL.
pub const FILE_NAME: usize = 64;

/// Directories between an object and the root of its mount; what is deeper is denied.
pub const FILE_DEPTH: usize = 64;

/// Names of a path that a denial's record tells, from the object upwards.
pub const TOLD_NAMES: usize = 16;

/// Bytes of a path that a refused system call was given, with the terminating NUL.
pub const CALL_PATH: usize = 512;

/// Bytes of what a program was started with that its record tells; the rest is told to be missing.
pub const ARGUMENTS: usize = 512;

/// Numbers of system calls that a table by number holds; x86-64 has none above 470 yet.
pub const CALL_NUMBERS: u32 = 512;

/// Kinds of allowed connects and sends that are counted at one time; of those beyond it each is told.
pub const FLOWS: u32 = 65_536;

/// Cgroups beyond the table's room that are held without a question to the agent, and not mistaken for
/// others: a set of this size tells one of 32 wrong when it has so many.
pub const UNASKED: u32 = 1 << 16;

/// Bytes of the event ring, for what is denied, held or started. A core makes about 23,000 connections a
/// second at most, so this holds more than 300 ms of the worst case; what does not fit is counted, not
/// waited for.
pub const EVENT_RING: u32 = 1 << 20;

/// Bytes of the ring for what is allowed, however much that is: it takes no room from the other. It holds what
/// two busy cores make in 13 ms, in which whoever reads it is given a processor.
pub const ALLOW_RING: u32 = 2 << 20;

/// Fill level in bytes of either at which crossing it wakes the reader, which otherwise reads on a timer.
pub const EVENT_WAKE: u64 = EVENT_RING as u64 / 4;

/// Counters of losses for each sandbox: by kind, of what was denied and of what was allowed, and how much of
/// each was told.
pub const LOSS_KINDS: u32 = 64;

const _: () = assert!(MASK_WORDS * 64 == BINARY_SLOTS);
const _: () = assert!(SEATS.is_power_of_two());
const _: () = assert!(EVENT_RING.is_power_of_two() && EVENT_WAKE < EVENT_RING as u64);
const _: () = assert!(ALLOW_RING.is_power_of_two() && EVENT_WAKE < ALLOW_RING as u64);
const _: () = assert!(SYNTHETICS_PER_SANDBOX <= SYNTHETICS - SYNTHETICS_RESERVED);
const _: () = assert!(SYNTHETICS_FOR_EACH <= SYNTHETICS_PER_SANDBOX);
const _: () = assert!(SCRIPT_PATH.is_multiple_of(8));
const _: () = assert!(ARGUMENTS.is_power_of_two());
