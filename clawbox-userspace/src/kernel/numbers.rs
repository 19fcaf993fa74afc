//! Whether each number that the kernel has given to a record of the rings was read, or is counted as lost. Over
//! restarts too: the kernel's numbers are pinned, and how far they are read is told to what outlives the agent.

use std::collections::VecDeque;

use aya::Ebpf;
use aya::maps::{MapData, MapError, PerCpuArray, PerCpuValues};
use clawbox_common::number::{self, Account};

use super::load::LoadError;

/// The kernel's table.
pub(super) const TABLE: &str = "NUMBERS";

/// Holes of which it is known where they are, of each ring and processor.
const HOLES: usize = 64;

/// How far the numbers of a ring and a processor are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Which, as [`number::lane`] has it.
    pub lane: u16,
    /// No greater number was read.
    pub next: u64,
    /// Of those below it, how many were not read, but for those that it was told of that nobody can account
    /// for them. Negative where more was told than was missing by then.
    pub missing: i64,
}

/// What a look has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Events that the kernel has numbered, that were not read and that it does not count as lost either.
    pub unexplained: u64,
    /// Records that were read twice, or of a number that was not given; and losses of none.
    pub impossible: u64,
    /// Below which number each is read or lost, where that is another one than at the last look.
    pub settled: Vec<(u16, u64)>,
}

/// One ring's and one processor's.
#[derive(Clone, Debug, Default)]
struct Lane {
    next: u64,
    missing: i64,
    /// Below `next`, the last of them.
    holes: VecDeque<(u64, u64)>,
    /// Below this nobody knows where the holes are.
    unknown: u64,
    /// Below this an agent has read that has told nobody how far.
    floor: u64,
    /// How many had been given when it was looked last.
    given: u64,
    /// How many could not be accounted for at the last two looks: who is interrupted between its number and
    /// its loss is no event that is missing.
    doubts: [i64; 2],
    /// Below this all is said to be read or lost.
    told: u64,
    is_touched: bool,
}

impl Lane {
    fn resume(&mut self, from: Reached) {
        let (next, missing) = (from.next, from.missing);
        *self = Self { next, missing, unknown: next, given: self.given, ..Self::default() };
    }

    /// Whether there can be a record of this number now.
    fn read(&mut self, count: u64) -> bool {
        if count == self.next {
            self.next += 1;
            return true;
        }
        if count < self.next {
            return self.read_late(count);
        }
        self.missing = self.missing.saturating_add_unsigned(count - self.next);
        self.holes.push_back((self.next, count));
        if self.holes.len() > HOLES
            && let Some((_, to)) = self.holes.pop_front()
        {
            self.unknown = to;
        }
        self.next = count + 1;
        true
    }

    /// Who was interrupted before it took its number stands before the one with the smaller number.
    #[cold]
    fn read_late(&mut self, count: u64) -> bool {
        if count < self.floor {
            return true;
        }
        let hole = self.holes.iter().rposition(|(from, to)| (*from..*to).contains(&count));
        match hole {
            Some(at) => {
                let (from, to) = self.holes[at];
                let rest = [(from, count), (count + 1, to)].into_iter().filter(|(a, b)| a < b);
                self.holes.remove(at);
                for hole in rest.rev() {
                    self.holes.insert(at, hole);
                }
            }
            None if count < self.unknown && self.missing > 0 => {}
            None => return false,
        }
        self.missing -= 1;
        true
    }

    /// So many were given and so many of them are counted as lost. All that had been given at the look before
    /// this one is read, as far as it can be.
    fn look(&mut self, given: u64, lost: u64, found: &mut Found) {
        let lost = i64::try_from(lost).unwrap_or(i64::MAX);
        let reach = self.given.max(self.next);
        let below = i64::try_from(reach - self.next).unwrap_or(i64::MAX);
        let doubt = (self.missing.saturating_add(below).saturating_sub(lost)).max(0);
        let sure = doubt.min(self.doubts[0]).min(self.doubts[1]);
        self.doubts = [doubt - sure, self.doubts[0] - sure];
        let room = i64::try_from(given.saturating_sub(self.next)).unwrap_or(i64::MAX);
        let too_many = lost.saturating_sub(self.missing.saturating_add(room)).max(0);
        let ungiven = self.next.saturating_sub(given);
        self.missing += too_many - sure;
        self.is_touched |= sure + too_many > 0;
        found.unexplained += sure.unsigned_abs();
        found.impossible += too_many.unsigned_abs() + ungiven;
        self.next -= ungiven;
        self.given = given;
        self.told = self.told.max(reach.min(given));
    }
}

/// See the module.
pub struct Numbers {
    table: PerCpuArray<MapData, Account>,
    read: Read,
}

/// What was read, by ring and processor.
#[derive(Default)]
struct Read {
    lanes: Vec<Lane>,
    touched: Vec<u16>,
    impossible: u64,
    /// All that was there when it was looked last is read.
    is_whole: bool,
}

impl Read {
    fn number(&mut self, ring: u32, given: u64) {
        let at = number::lane(given);
        let lane = self.lanes.get_mut(usize::from(at)).filter(|_| u32::from(at & 1) == ring);
        let Some(lane) = lane else {
            self.impossible += 1;
            return;
        };
        if !lane.is_touched {
            lane.is_touched = true;
            self.touched.push(at);
        }
        if !lane.read(number::count(given)) {
            self.impossible += 1;
        }
    }

    fn look(&mut self, accounts: &[PerCpuValues<Account>; 2]) -> Found {
        let mut found =
            Found { impossible: std::mem::take(&mut self.impossible), ..Found::default() };
        if !std::mem::take(&mut self.is_whole) {
            return found;
        }
        for (at, lane) in (0..).zip(&mut self.lanes) {
            let account = accounts[usize::from(at & 1)].get(usize::from(at >> 1));
            let account = account.copied().unwrap_or_default();
            let (was_told, was_touched) = (lane.told, lane.is_touched);
            lane.look(number::count(account.next), account.lost, &mut found);
            if lane.told != was_told {
                found.settled.push((at, lane.told));
            }
            if lane.is_touched && !was_touched {
                self.touched.push(at);
            }
        }
        found
    }
}

/// Gives each processor its first number, where nobody has. To be called before any program runs.
pub(super) fn begin(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let map = ebpf.map_mut(TABLE).ok_or(LoadError::Absent { kind: "map", name: TABLE })?;
    let wrong = |source| LoadError::Map { name: TABLE, source };
    let mut table = PerCpuArray::<_, Account>::try_from(map).map_err(wrong)?;
    for ring in [number::EVENTS, number::ALLOWS] {
        let accounts = table.get(&ring, 0).map_err(wrong)?;
        let first = (0..).zip(accounts.iter()).map(|(processor, account)| {
            let first = number::first(ring, processor);
            let is_new = number::lane(account.next) != number::lane(first);
            if is_new { Account { lost: 0, next: first } } else { *account }
        });
        let first: Vec<Account> = first.collect();
        if first.as_slice() != &accounts[..] {
            let first = PerCpuValues::try_from(first);
            let first = first.map_err(|error| wrong(MapError::IoError(error)))?;
            table.set(ring, first, 0).map_err(wrong)?;
        }
    }
    Ok(())
}

impl Numbers {
    /// Of a load whose rings are read from here on.
    pub(super) fn of(table: PerCpuArray<MapData, Account>) -> Result<Self, MapError> {
        let mut numbers = Self { table, read: Read::default() };
        let accounts = numbers.accounts()?;
        let lanes = 2 * accounts[0].len().min(usize::from(u16::MAX) / 2);
        numbers.read.lanes = (0..lanes)
            .map(|at| {
                let account = accounts[at & 1].get(at >> 1).copied().unwrap_or_default();
                let next = number::count(account.next);
                let missing = i64::try_from(account.lost).unwrap_or(i64::MAX);
                Lane { next, missing, floor: next, given: next, told: next, ..Lane::default() }
            })
            .collect();
        Ok(numbers)
    }

    fn accounts(&self) -> Result<[PerCpuValues<Account>; 2], MapError> {
        Ok([self.table.get(&number::EVENTS, 0)?, self.table.get(&number::ALLOWS, 0)?])
    }

    /// An agent before this one has read so far.
    pub fn resume(&mut self, reached: Reached) {
        if let Some(lane) = self.read.lanes.get_mut(usize::from(reached.lane)) {
            lane.resume(reached);
        }
    }

    /// How many rings and processors there are together.
    #[must_use]
    pub fn lanes(&self) -> usize {
        self.read.lanes.len()
    }

    /// A record of a ring was read.
    #[inline]
    pub fn read(&mut self, ring: u32, number: u64) {
        self.read.number(ring, number);
    }

    /// How far what was read since the last call has come.
    pub fn take_reached(&mut self) -> Vec<Reached> {
        let touched = std::mem::take(&mut self.read.touched);
        let reached = touched.into_iter().filter_map(|lane| {
            let of = self.read.lanes.get_mut(usize::from(lane))?;
            of.is_touched = false;
            Some(Reached { lane, next: of.next, missing: of.missing })
        });
        reached.collect()
    }

    /// Both rings were empty just now.
    pub fn are_read(&mut self) {
        self.read.is_whole = true;
    }

    /// Compares what was read with what the kernel says that it has given. What is found is told once.
    ///
    /// # Errors
    /// The kernel's table cannot be read.
    pub fn look(&mut self) -> Result<Found, MapError> {
        let accounts = self.accounts()?;
        Ok(self.read.look(&accounts))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A kernel of one ring and one processor.
    #[derive(Default)]
    struct Kernel {
        account: Account,
        waiting: VecDeque<u64>,
    }

    impl Kernel {
        fn account(&self) -> [PerCpuValues<Account>; 2] {
            let processors = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_CONF);
            let processors = usize::try_from(processors.unwrap().unwrap()).unwrap();
            let mut accounts = vec![Account::default(); processors];
            accounts[0] = self.account;
            let none = vec![Account::default(); processors];
            [PerCpuValues::try_from(accounts).unwrap(), PerCpuValues::try_from(none).unwrap()]
        }

        fn tell(&mut self) {
            self.waiting.push_back(self.account.next);
            self.account.next += 1;
        }

        /// Who interrupts stands behind and has the smaller number.
        fn tell_interrupted(&mut self) {
            self.waiting.extend([self.account.next + 1, self.account.next]);
            self.account.next += 2;
        }

        fn lose(&mut self) {
            self.account.next += 1;
            self.account.lost += 1;
        }
    }

    struct Agent(Read);

    impl Agent {
        fn new(from: Option<Reached>) -> Self {
            let mut lane = Lane::default();
            from.into_iter().for_each(|from| lane.resume(from));
            Self(Read { lanes: vec![lane, Lane::default()], ..Read::default() })
        }

        fn read(&mut self, kernel: &mut Kernel, most: usize) {
            for _ in 0..most.min(kernel.waiting.len()) {
                self.0.number(0, kernel.waiting.pop_front().unwrap());
            }
            self.0.is_whole |= kernel.waiting.is_empty();
        }

        fn look(&mut self, kernel: &Kernel) -> (u64, u64) {
            let found = self.0.look(&kernel.account());
            (found.unexplained, found.impossible)
        }

        fn reached(&self) -> Reached {
            let lane = &self.0.lanes[0];
            Reached { lane: 0, next: lane.next, missing: lane.missing }
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Tell,
        Interrupted,
        Lose,
        /// The kernel's program gives a number to nobody.
        Skip,
        /// A record is read that was read before.
        Again,
        Read(usize),
        Look,
        /// The agent is killed, and another one reads on.
        Kill,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => Just(Step::Tell),
            1 => Just(Step::Interrupted),
            2 => Just(Step::Lose),
            1 => Just(Step::Skip),
            1 => Just(Step::Again),
            2 => (1..9_usize).prop_map(Step::Read),
            2 => Just(Step::Look),
            1 => Just(Step::Kill),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]
        #[test]
        fn a_number_that_is_neither_read_nor_lost_is_told_once_and_no_other_is(
            steps in prop::collection::vec(step(), 0..120)
        ) {
            let (mut kernel, mut agent) = (Kernel::default(), Agent::new(None));
            let (mut skipped, mut again, mut found) = (0, 0, (0, 0));
            let mut look = |agent: &mut Agent, kernel: &Kernel| {
                let (unexplained, impossible) = agent.look(kernel);
                found = (found.0 + unexplained, found.1 + impossible);
                found
            };
            for step in steps {
                match step {
                    Step::Tell => kernel.tell(),
                    Step::Interrupted => kernel.tell_interrupted(),
                    Step::Lose => kernel.lose(),
                    Step::Skip => {
                        kernel.account.next += 1;
                        skipped += 1;
                    }
                    // Of what is known to be read: a hole that is filled is no second time.
                    Step::Again if agent.0.lanes[0].holes.is_empty()
                        && agent.0.lanes[0].unknown == 0
                        && agent.0.lanes[0].next > 0 =>
                    {
                        agent.0.number(0, agent.0.lanes[0].next - 1);
                        again += 1;
                    }
                    Step::Again => {}
                    Step::Read(most) => agent.read(&mut kernel, most),
                    Step::Look => {
                        let found = look(&mut agent, &kernel);
                        prop_assert!(found.0 <= skipped, "{found:?} of {skipped}");
                        prop_assert!(found.1 <= again, "{found:?} of {again}");
                    }
                    Step::Kill => {
                        // What it had found and not told goes with it.
                        look(&mut agent, &kernel);
                        agent = Agent::new(Some(agent.reached()));
                    }
                }
            }
            // At rest it is exact.
            let mut last = (0, 0);
            for _ in 0..4 {
                agent.read(&mut kernel, usize::MAX);
                last = look(&mut agent, &kernel);
            }
            prop_assert_eq!(last, (skipped, again));
        }
    }

    #[test]
    fn losses_that_are_counted_and_were_none_are_told_once() {
        let (mut kernel, mut agent) = (Kernel::default(), Agent::new(None));
        kernel.tell();
        kernel.account.lost = 2;
        agent.read(&mut kernel, 9);
        assert_eq!([agent.look(&kernel), agent.look(&kernel)], [(0, 2), (0, 0)]);
    }

    #[test]
    fn what_is_settled_is_what_was_given_at_the_look_before() {
        let (mut kernel, mut agent) = (Kernel::default(), Agent::new(None));
        (0..3).for_each(|_| kernel.tell());
        kernel.lose();
        agent.read(&mut kernel, 9);
        let settled = |agent: &mut Agent, kernel: &Kernel| agent.0.look(&kernel.account()).settled;
        assert_eq!(settled(&mut agent, &kernel), [(0, 3)]);
        agent.read(&mut kernel, 9);
        assert_eq!(settled(&mut agent, &kernel), [(0, 4)], "the one that was lost too");
        agent.read(&mut kernel, 9);
        assert_eq!(settled(&mut agent, &kernel), []);
    }

    #[test]
    fn a_number_of_another_ring_or_of_a_processor_that_there_is_not_is_impossible() {
        let mut agent = Agent::new(None);
        agent.0.number(0, number::first(number::ALLOWS, 0));
        agent.0.number(0, number::first(number::EVENTS, 7));
        agent.0.is_whole = true;
        assert_eq!(agent.look(&Kernel::default()), (0, 2));
    }
}
