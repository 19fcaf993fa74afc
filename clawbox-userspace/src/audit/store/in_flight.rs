//! Events that were taken from the rings and are not in the store yet, counted by sandbox, kind and verdict in
//! memory that outlives the agent. Whoever is killed in between leaves these counts, and the next one tells
//! them, exactly: what changes together is first written down as a whole, and whoever comes after finishes it.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use clawbox_common::rule::LossKey;

use crate::kernel::memory::Words;
use crate::kernel::numbers::Reached;

/// What the memory begins with.
const MAGIC: u64 = 0x636c_6177_626f_7801;

/// Counts of one part: more kinds of events under way at one time are counted for nobody in particular.
const COUNTS: usize = 2_048;

/// Of these, room for what is nobody's: each kind of event, allowed and denied.
const NOBODYS: usize = 64;

/// Rings and processors whose numbers are kept, how far they are read.
const LANES: usize = 512;

/// Words that change together, at most: each count is two, and one is the state; and two for each lane.
const CHANGES: usize = 2 * COUNTS + 2 + 2 * LANES;

/// Losses that are told together, at most.
const TOLD: usize = 512;

// Where all of it is.
const STATE: usize = 1;
const PENDING: usize = 2;
const POSITIONS: usize = 3;
const LOAD: usize = 5;
const CHANGE: usize = 8;
const TELLING: usize = CHANGE + 2 * CHANGES;
const PART: usize = TELLING + 2 * TOLD;
const PARTS: u64 = 5;
const PART_WORDS: usize = 1 + 2 * COUNTS;

const REACHED: usize = PART + PARTS as usize * PART_WORDS;

/// Words of the memory.
pub const WORDS: usize = REACHED + 2 * LANES;

/// In a kind: these were counted in the kernel, and no record had a number for them.
pub const UNNUMBERED: u32 = 1 << 16;

/// Numbers of what is told to nobody.
pub const PASSED: u64 = key(u32::MAX, 0);

/// No place in a ring.
const NOWHERE: u64 = u64::MAX;

/// How many events of each kind.
pub type Counts = BTreeMap<u64, u64>;

/// Which part is what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    /// Counts what waits.
    now: u64,
    /// Counts what is being written.
    writing: Option<u64>,
    /// Counts what an agent that was killed has left.
    old: Option<u64>,
    /// The first event of the batch that is being written, and one; zero until that is known.
    batch: u64,
}

impl State {
    fn read(word: u64) -> Self {
        let part = |shift: u32| (word >> shift & 8 != 0).then_some((word >> shift & 7) % PARTS);
        Self { now: part(0).unwrap_or(0), writing: part(4), old: part(8), batch: word >> 12 }
    }

    fn word(self) -> u64 {
        let part = |part: Option<u64>, shift: u32| part.map_or(0, |part| (part | 8) << shift);
        part(Some(self.now), 0) | part(self.writing, 4) | part(self.old, 8) | self.batch << 12
    }

    /// A part that is nothing, but for those.
    fn free(self, taken: Option<u64>) -> u64 {
        let used = [Some(self.now), self.writing, self.old, taken];
        (0..PARTS).find(|part| !used.contains(&Some(*part))).unwrap_or(0)
    }
}

/// What an agent has begun and not finished: the places up to which both rings are read, and losses that are
/// told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unfinished {
    /// Of each ring.
    pub positions: Option<[u64; 2]>,
    /// With how many of each.
    pub told: Vec<(LossKey, u64)>,
}

/// See the module.
pub struct InFlight {
    words: Box<dyn Words>,
    state: State,
    /// Where a kind is counted in the part for what waits.
    places: BTreeMap<u64, usize>,
    is_new: bool,
}

/// Of which events a count is, as the memory has it.
#[must_use]
pub const fn key(sandbox: u32, kind: u32) -> u64 {
    (sandbox as u64) << 32 | kind as u64
}

/// Whose, and of which kind.
#[must_use]
pub const fn loss_key(key: u64) -> LossKey {
    LossKey { sandbox: (key >> 32) as u32, kind: key as u32 & !UNNUMBERED }
}

/// How many of these had a number.
#[must_use]
pub fn numbered(counts: &Counts) -> u64 {
    let with = counts.iter().filter(|(key, _)| **key as u32 & UNNUMBERED == 0 && **key != PASSED);
    with.map(|(_, count)| count).sum()
}

/// What changes together.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// What waits to be stored from now on.
    pub counts: &'a Counts,
    /// Up to where the rings are read.
    pub positions: Option<[u64; 2]>,
    /// How far the numbers of which records are read by that.
    pub reached: &'a [Reached],
    /// Losses that are told, with how many of each.
    pub told: &'a [(LossKey, u64)],
}

const fn part_at(part: u64) -> usize {
    PART + part as usize * PART_WORDS
}

impl InFlight {
    /// Takes up the memory. `next_event` is the number of the store's next event: what it has is not lost.
    /// What is unfinished is to be finished before anything is read; then [`InFlight::finished`].
    pub fn open(words: Box<dyn Words>, next_event: impl FnOnce() -> u64) -> (Self, Unfinished) {
        let (state, places) = (State::read(0), BTreeMap::new());
        let mut flight = Self { words, state, places, is_new: false };
        if flight.words.get(0) != MAGIC {
            flight.words.set(PENDING, 0);
            flight.set_len(0, 0);
            flight.set_state(State { now: 0, writing: None, old: None, batch: 0 });
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            flight.words.set(LOAD, u64::try_from(since.as_micros()).unwrap_or(1));
            flight.is_new = true;
            flight.words.set(0, MAGIC);
        }
        let unfinished = flight.unfinished();
        flight.apply();
        flight.state = State::read(flight.words.get(STATE));
        flight.recover(next_event);
        (flight, unfinished)
    }

    fn unfinished(&self) -> Unfinished {
        let pending = self.words.get(PENDING);
        if pending == 0 {
            return Unfinished::default();
        }
        let positions = [0, 1].map(|ring| self.words.get(POSITIONS + ring));
        let told = (0..(pending >> 32) as usize).map(|number| {
            let at = TELLING + 2 * number;
            (loss_key(self.words.get(at)), self.words.get(at + 1))
        });
        Unfinished {
            positions: (positions[0] != NOWHERE).then_some(positions),
            told: told.collect(),
        }
    }

    /// Makes the changes that are written down, again if some were made before.
    fn apply(&mut self) {
        let changes = (self.words.get(PENDING) & 0xffff_ffff) >> 1;
        for number in 0..(changes as usize).min(CHANGES) {
            let at = CHANGE + 2 * number;
            let (to, value) = (self.words.get(at), self.words.get(at + 1));
            self.words.set(to as usize, value);
        }
    }

    /// What was read and is not in the store becomes what is to be told.
    fn recover(&mut self, next_event: impl FnOnce() -> u64) {
        let State { now, writing, old, batch } = self.state;
        // A batch whose number was not known was not begun either.
        let writing = writing.filter(|_| batch == 0 || next_event() < batch);
        let mut lost = Counts::new();
        for part in [Some(now), writing, old].into_iter().flatten() {
            for (key, count) in self.counts(part) {
                *lost.entry(key).or_default() += count;
            }
        }
        let into = self.state.free(None);
        for (number, (key, count)) in lost.iter().take(COUNTS).enumerate() {
            let at = part_at(into) + 1 + 2 * number;
            self.words.set(at, *key);
            self.words.set(at + 1, *count);
        }
        self.set_len(into, lost.len().min(COUNTS));
        let next = self.state.free(Some(into));
        self.set_len(next, 0);
        let old = (!lost.is_empty()).then_some(into);
        self.set_state(State { now: next, writing: None, old, batch: 0 });
    }

    fn counts(&self, part: u64) -> Counts {
        let at = part_at(part);
        let len = (self.words.get(at) as usize).min(COUNTS);
        let each = (0..len).map(|number| {
            let at = at + 1 + 2 * number;
            (self.words.get(at), self.words.get(at + 1))
        });
        each.filter(|(_, count)| *count > 0).collect()
    }

    fn set_len(&mut self, part: u64, len: usize) {
        self.words.set(part_at(part), len as u64);
    }

    fn set_state(&mut self, state: State) {
        self.words.set(STATE, state.word());
        if state.now != self.state.now {
            self.places.clear();
        }
        self.state = state;
    }

    /// What agents that were killed have read and not stored. It stays until [`InFlight::begin`] is told that
    /// it waits.
    #[must_use]
    pub fn left(&self) -> Counts {
        self.state.old.map(|old| self.counts(old)).unwrap_or_default()
    }

    /// These wait to be stored from now on, and the rings are read up to these places. The caller gives their
    /// room back, says that the losses are told, and then [`InFlight::finished`].
    pub fn begin(&mut self, change: Change<'_>, is_left: bool) {
        let Change { counts, positions, reached, told } = change;
        let part = part_at(self.state.now);
        let mut changes = Vec::with_capacity(2 * counts.len() + 2);
        let mut sums = BTreeMap::<usize, u64>::new();
        for (key, count) in counts {
            let (key, before) = (self.shared(*key), self.places.len());
            let place = *self.places.entry(key).or_insert(before);
            let at = part + 1 + 2 * place;
            let is_new = self.places.len() > before;
            if is_new {
                changes.push((at, key));
            }
            let sum = sums.entry(place);
            let sum = sum.or_insert_with(|| if is_new { 0 } else { self.words.get(at + 1) });
            *sum += count;
        }
        changes.extend(sums.into_iter().map(|(place, sum)| (part + 2 + 2 * place, sum)));
        changes.push((part, self.places.len() as u64));
        for reached in reached.iter().filter(|reached| usize::from(reached.lane) < LANES) {
            let at = REACHED + 2 * usize::from(reached.lane);
            changes.extend([(at, reached.next), (at + 1, reached.missing.cast_unsigned())]);
        }
        if is_left {
            self.state.old = None;
            changes.push((STATE, self.state.word()));
        }
        for (number, (to, value)) in changes.iter().enumerate() {
            let at = CHANGE + 2 * number;
            self.words.set(at, *to as u64);
            self.words.set(at + 1, *value);
        }
        let positions = positions.unwrap_or([NOWHERE; 2]);
        self.words.set(POSITIONS, positions[0]);
        self.words.set(POSITIONS + 1, positions[1]);
        let told = told.get(..TOLD).unwrap_or(told);
        for (number, (of, total)) in told.iter().enumerate() {
            let at = TELLING + 2 * number;
            self.words.set(at, key(of.sandbox, of.kind));
            self.words.set(at + 1, *total);
        }
        // The lowest bit: never zero, however few they are.
        let pending = (told.len() as u64) << 32 | (changes.len() as u64) << 1 | 1;
        self.words.set(PENDING, pending);
        self.apply();
    }

    /// A kind, or where there is no room for more of them, the same of nobody in particular.
    fn shared(&self, of: u64) -> u64 {
        let has_room = self.places.len() < COUNTS - NOBODYS || self.places.contains_key(&of);
        if has_room { of } else { key(0, of as u32) }
    }

    /// Which load of the programs the numbers are of: the moment when this memory was made.
    #[must_use]
    pub fn load(&self) -> u64 {
        self.words.get(LOAD)
    }

    /// How far an agent before has read the numbers; `None` where there was none.
    #[must_use]
    pub fn reached(&self, lane: u16) -> Option<Reached> {
        let at = REACHED + 2 * usize::from(lane);
        let is_kept = !self.is_new && usize::from(lane) < LANES;
        let missing = || self.words.get(at + 1).cast_signed();
        is_kept.then(|| Reached { lane, next: self.words.get(at), missing: missing() })
    }

    /// What was begun is done.
    pub fn finished(&mut self) {
        self.words.set(PENDING, 0);
    }

    /// All that waits is made a batch. False while another one is being written.
    pub fn taken(&mut self) -> bool {
        if self.state.writing.is_some() {
            return false;
        }
        let next = self.state.free(None);
        self.set_len(next, 0);
        let (now, writing) = (next, Some(self.state.now));
        self.set_state(State { now, writing, batch: 0, ..self.state });
        true
    }

    /// That batch is written now, and this is the number of its first event.
    pub fn writes(&mut self, first: u64) {
        if self.state.writing.is_some() {
            self.set_state(State { batch: first + 1, ..self.state });
        }
    }

    /// It is on the disk.
    pub fn is_durable(&mut self) {
        self.set_state(State { writing: None, batch: 0, ..self.state });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;

    /// Memory whose writer dies after so many writes. The rings' positions, what is told and what is on the
    /// disk are words behind it, as they outlive the writer too.
    #[derive(Clone)]
    struct Mortal(Arc<Mutex<(Vec<u64>, usize)>>);

    const READ: usize = WORDS;
    const LOST: usize = WORDS + 1;
    const STORED: usize = WORDS + 2;
    const EVENTS: usize = WORDS + 3;

    impl Words for Mortal {
        fn get(&self, at: usize) -> u64 {
            self.0.lock().unwrap().0[at]
        }

        fn set(&mut self, at: usize, value: u64) {
            let (words, left) = &mut *self.0.lock().unwrap();
            if *left > 0 {
                *left -= 1;
                words[at] = value;
            }
        }
    }

    impl Mortal {
        fn lives(&self, writes: usize) {
            self.0.lock().unwrap().1 = writes;
        }

        fn open(&self) -> InFlight {
            let (mut flight, unfinished) =
                InFlight::open(Box::new(self.clone()), || self.get(EVENTS));
            self.clone().finish(&unfinished.positions, &unfinished.told);
            flight.finished();
            flight
        }

        fn finish(mut self, positions: &Option<[u64; 2]>, told: &[(LossKey, u64)]) {
            if let Some([read, _]) = positions {
                self.set(READ, *read);
            }
            if let Some((_, total)) = told.first() {
                self.set(LOST, *total);
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Read(u32, u64),
        Lose(u64),
        TellLeft,
        Store,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1..4_u32, 1..9_u64).prop_map(|(sandbox, count)| Step::Read(sandbox, count)),
            1 => (1..9_u64).prop_map(Step::Lose),
            1 => Just(Step::TellLeft),
            2 => Just(Step::Store),
        ]
    }

    /// What one agent does until it dies: what it has in memory goes with it.
    fn live(memory: &Mortal, steps: &[Step]) {
        let mut flight = memory.open();
        let mut waiting = 0;
        for step in steps {
            let (read, lost) = (memory.get(READ), memory.get(LOST));
            let told = |total| (LossKey { sandbox: 9, kind: 1 }, total);
            let (counts, positions, told, is_left) = match step {
                Step::Read(sandbox, count) => (
                    Counts::from([(key(*sandbox, 1), *count)]),
                    Some([read + count, 0]),
                    vec![],
                    false,
                ),
                Step::Lose(count) => {
                    (Counts::from([(key(9, 1), *count)]), None, vec![told(lost + count)], false)
                }
                Step::TellLeft => (flight.left(), None, vec![], true),
                Step::Store => {
                    assert!(flight.taken());
                    let first = memory.get(EVENTS);
                    flight.writes(first);
                    // Both at one moment, as a batch is there or is not; an empty one is written too.
                    let mut disk = memory.0.lock().unwrap();
                    if disk.1 > 0 {
                        disk.0[STORED] += waiting;
                        disk.0[EVENTS] = first + 1;
                    }
                    drop(disk);
                    waiting = 0;
                    flight.is_durable();
                    continue;
                }
            };
            waiting += counts.values().sum::<u64>();
            let reached = positions.map(|[next, _]| Reached { lane: 3, next, missing: -1 });
            let (reached, counts, told) = (reached.as_slice(), &counts, told.as_slice());
            flight.begin(Change { counts, positions, reached, told }, is_left);
            memory.clone().finish(&positions, told);
            flight.finished();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn whoever_dies_at_whatever_write_leaves_exactly_what_was_read_and_is_not_stored(
            lives in prop::collection::vec((prop::collection::vec(step(), 0..12), 0..400_usize), 1..5)
        ) {
            let memory = Mortal(Arc::new(Mutex::new((vec![0; WORDS + 4], 0))));
            for (steps, writes) in lives {
                memory.lives(writes);
                live(&memory, &steps);
                // The next one lives long enough to look.
                memory.lives(usize::MAX);
                let flight = memory.open();
                let left: u64 = flight.left().values().sum();
                // The numbers are read as far as the ring is.
                let reached = flight.reached(3).unwrap_or_default();
                prop_assert_eq!((reached.next, flight.reached(4).is_none()), (memory.get(READ), flight.is_new));
                let taken = memory.get(READ) + memory.get(LOST);
                prop_assert_eq!(memory.get(STORED) + left, taken);
            }
        }
    }

    #[test]
    fn more_kinds_than_there_is_room_for_are_counted_for_nobody_and_none_is_missing() {
        let memory = Mortal(Arc::new(Mutex::new((vec![0; WORDS + 4], usize::MAX))));
        let mut flight = memory.open();
        for first in [0, 1_500, 3_000] {
            let counts = (first..first + 1_500).map(|sandbox| (key(sandbox + 1, 2), 1)).collect();
            let change = Change { counts: &counts, positions: None, reached: &[], told: &[] };
            flight.begin(change, false);
            flight.finished();
        }
        let left = memory.open().left();
        assert_eq!(left.values().sum::<u64>(), 4_500);
        assert!(left[&key(0, 2)] > 2_000 && left[&key(1, 2)] == 1, "{left:?}");
    }
}
