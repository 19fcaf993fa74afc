//! Every map, and the decision's view of them. The agent writes the policy maps; the programs
//! write identities, listeners, events and losses.

use aya_ebpf::{
    bindings::{
        BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE,
        bpf_map_type::BPF_MAP_TYPE_SK_STORAGE,
    },
    helpers::generated::bpf_sk_storage_get,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
};
use clawbox_common::{
    address::{Address, Range},
    attach::{Selector, Walk},
    decide::{Admission, Files, Lookup, Placed, RuleQuery, admission},
    event::CallShape,
    file::{FileKey, FileRule, NameKey},
    limits,
    number::Account,
    rule::{
        AddressKey, BinaryKey, HostIds, LossKey, Redirected, RuleKey, RuleValue, STATE_SLOTS,
        SandboxState, SandboxStates, ScriptKey, SocketState, SyntheticKey, SyntheticValue,
    },
    subject::{FileId, Mask, Seat, Subject},
};
use core::{
    ffi::c_void,
    ptr::{self, null, null_mut, read_volatile},
};

/// cgroup id → sandbox, for tasks that have no identity yet. The agent writes it, but for those that
/// it has yet to be asked about: they are written where they are made.
#[map]
pub static CGROUPS: HashMap<u64, u32> = HashMap::with_max_entries(limits::SANDBOXES, 0);

/// How cgroups begin that the agent is asked about, or is not although a shorter selector says so.
#[map]
pub static SELECTORS: LpmTrie<Selector, u32> = LpmTrie::with_max_entries(limits::SELECTORS, 0);

/// A key of [`SELECTORS`], as the kernel has it.
#[repr(C)]
pub struct SelectorKey {
    pub bits: u32,
    pub selector: Selector,
}

/// A key does not fit the stack beside all else.
#[map]
pub static SELECTOR_SCRATCH: PerCpuArray<SelectorKey> = PerCpuArray::with_max_entries(1, 0);

/// The walk that is under way.
#[map]
pub static WALK: Array<Walk> = Array::with_max_entries(1, 0);

/// By sandbox.
#[map]
pub static SANDBOX_STATES: Array<SandboxStates> = Array::with_max_entries(limits::SANDBOXES + 1, 0);

#[map]
pub static RULES: HashMap<RuleKey, RuleValue> =
    HashMap::with_max_entries(limits::RULES, BPF_F_NO_PREALLOC);

#[map]
pub static ADDRESSES: LpmTrie<AddressKey, HostIds> =
    LpmTrie::with_max_entries(limits::ADDRESSES, 0);

#[map]
pub static SYNTHETIC: HashMap<SyntheticKey, SyntheticValue> =
    HashMap::with_max_entries(limits::SYNTHETICS, BPF_F_NO_PREALLOC);

#[map]
pub static BINARIES: HashMap<BinaryKey, Mask> =
    HashMap::with_max_entries(limits::BINARIES, BPF_F_NO_PREALLOC);

#[map]
pub static SCRIPTS: HashMap<ScriptKey, Mask> =
    HashMap::with_max_entries(limits::SCRIPTS, BPF_F_NO_PREALLOC);

/// The named script that a start under way (its `linux_binprm`) was asked for. Every start that LSM
/// programs see writes its own entry or removes what an earlier one left at its address, so what is
/// found by the exec tracepoint is of that very start. Forgetting one only takes an identity.
#[map]
pub static SCRIPT_STARTS: LruHashMap<u64, FileId> =
    LruHashMap::with_max_entries(limits::SCRIPT_STARTS, 0);

/// Rules at objects. Not preallocated: most sandboxes have few.
#[map]
pub static FILES: HashMap<FileKey, FileRule> =
    HashMap::with_max_entries(limits::FILES, BPF_F_NO_PREALLOC);

/// Rules at names.
#[map]
pub static NAMES: HashMap<NameKey, FileRule> =
    HashMap::with_max_entries(limits::NAMES, BPF_F_NO_PREALLOC);

/// Thread group → identity. Keyed by thread group, so that threads and io_uring workers share it
/// and an exec from a thread that is not the leader keeps it.
#[map]
pub static SUBJECTS: HashMap<u32, Subject> =
    HashMap::with_max_entries(limits::SUBJECTS, BPF_F_NO_PREALLOC);

/// Which thread groups `SUBJECTS` may have, by the last bits of their numbers; see `seat.rs`.
#[map]
pub static SEATS: Array<Seat> = Array::with_max_entries(limits::SEATS, 0);

/// As aya's, and copied to the connections that a listener takes.
#[repr(C)]
pub struct SocketStorage<T> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the fields only describe the map, and nothing reads them.
unsafe impl<T> Sync for SocketStorage<T> {}

impl<T> SocketStorage<T> {
    const fn new() -> Self {
        let (r#type, key, value) = (null(), null(), null());
        Self { r#type, key, value, max_entries: null(), map_flags: null() }
    }

    /// What is kept with a socket; null if nothing is, and none was to be made or could be.
    ///
    /// # Safety
    /// A socket, or a context that stands for one, as the program's kind takes it.
    #[inline(always)]
    pub unsafe fn of(&self, socket: *mut c_void, or_make: bool) -> *mut T {
        let flags = if or_make { u64::from(BPF_SK_STORAGE_GET_F_CREATE) } else { 0 };
        let map = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the caller's promise, and a map of this kind.
        unsafe { bpf_sk_storage_get(map, socket, null_mut(), flags) }.cast()
    }
}

/// Connections that were taken to the agent, by the last bits of their number.
#[map]
pub static REDIRECTED: Array<Redirected> = Array::with_max_entries(limits::REDIRECTS, 0);

#[btf_map]
pub static SOCKETS: SocketStorage<SocketState> = SocketStorage::new();

#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(limits::EVENT_RING, 0);

/// What is allowed, so that no flood of it takes the room of what is denied.
#[map]
pub static ALLOWS: RingBuf = RingBuf::with_byte_size(limits::ALLOW_RING, 0);

/// System calls whose refusal is told, by number. Written before the program that reads it runs.
#[map]
pub static CALL_SHAPES: Array<CallShape> = Array::with_max_entries(limits::CALL_NUMBERS, 0);

/// Events that found no room. The agent makes every key before a sandbox starts, so that counting
/// never needs memory.
#[map]
pub static LOSSES: HashMap<LossKey, u64> =
    HashMap::with_max_entries(limits::SANDBOXES * limits::LOSS_KINDS, BPF_F_NO_PREALLOC);

/// Losses that not even `LOSSES` could take; all of them, so that nobody has to look through those to see
/// that there are none; and cgroups that could not be asked about.
#[map]
pub static LOSSES_UNATTRIBUTED: PerCpuArray<u64> = PerCpuArray::with_max_entries(3, 0);

/// Each processor's numbers of the records of both rings.
#[map]
pub static NUMBERS: PerCpuArray<Account> = PerCpuArray::with_max_entries(2, 0);

/// A script path does not fit the 512-byte stack.
#[map]
pub static SCRIPT_SCRATCH: PerCpuArray<ScriptKey> = PerCpuArray::with_max_entries(1, 0);

/// The policy maps as the decision reads them.
pub struct KernelLookup;

impl Lookup for KernelLookup {
    #[inline(always)]
    fn sandbox(&self, sandbox: u32) -> Option<&SandboxState> {
        let states = SANDBOX_STATES.get(sandbox)?;
        // SAFETY: a reference to a word of a map value; volatile, because the agent changes it.
        let current = unsafe { read_volatile(&states.current) };
        // Never the one that the agent writes next; see `SandboxStates`.
        Some(&states.states[current as usize % STATE_SLOTS])
    }

    #[inline(always)]
    fn rule(&self, key: &RuleKey) -> Option<&RuleValue> {
        // SAFETY: rules of a generation are written before any sandbox points at it and are not
        // changed afterwards; RCU keeps a removed one alive until this program ends.
        unsafe { RULES.get(key) }
    }

    #[inline(always)]
    fn synthetic(&self, key: &SyntheticKey) -> Option<&SyntheticValue> {
        // SAFETY: as for `rule`; an address is not handed out again while its entry lives.
        unsafe { SYNTHETIC.get(key) }
    }

    #[inline(always)]
    fn address(&self, key: &AddressKey, bits: u32) -> Option<&HostIds> {
        ADDRESSES.get(Key::new(bits, *key))
    }

    #[inline(always)]
    fn placed_at(&self, address: &Address) -> Placed {
        let mut judged = *address;
        let range = place(&raw mut judged);
        Placed { judged, range }
    }

    #[inline(always)]
    fn admits(&self, subject: &Subject, hosts: &HostIds, query: RuleQuery) -> Admission {
        let mut by = [0_u64; 2];
        let found = admit(&raw const *subject, &raw const *hosts, query.0, &raw mut by);
        let [matched, host] = by;
        Admission {
            matched,
            host: host as u32,
            who: found & 3,
            is_verified: found >> 2 & 1,
            matched_word: found >> 8,
        }
    }
}

/// [`Placed::of`], in place. With C's linkage, as [`crate::search::meet`]: what a decision is made of was
/// verified for every range and for every pattern of a host, and what follows for each of those again: 22,000
/// instructions a hook.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn place(address: *mut Address) -> u32 {
    if address.is_null() {
        // To the verifier it could be. What nobody may reach.
        return Range::Reserved as u32;
    }
    // SAFETY: not null, and the verifier sees to it that each caller has a whole value here.
    unsafe {
        let Placed { judged, range } = Placed::of(&*address);
        address.write(judged);
        range
    }
}

/// [`admission`]. With C's linkage, as [`place`]. What matched and the host are written, the rest is given back:
/// 6.1's stack is full.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admit(
    subject: *const Subject,
    hosts: *const HostIds,
    query: u64,
    into: *mut [u64; 2],
) -> u32 {
    if subject.is_null() || hosts.is_null() || into.is_null() {
        return 0;
    }
    // SAFETY: as in `place`.
    unsafe {
        let found = admission(&KernelLookup, &*subject, &*hosts, RuleQuery(query));
        into.write([found.matched, u64::from(found.host)]);
        found.who | found.is_verified << 2 | found.matched_word << 8
    }
}

impl Files for KernelLookup {
    #[inline(always)]
    fn file(&self, key: &FileKey) -> Option<&FileRule> {
        // SAFETY: as for `rule`.
        unsafe { FILES.get(key) }
    }

    #[inline(always)]
    fn name(&self, key: &NameKey) -> Option<&FileRule> {
        // SAFETY: as for `rule`.
        unsafe { NAMES.get(key) }
    }
}
