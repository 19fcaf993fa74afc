//! Which numbers of ring records the rows of a batch have, as its label says it: runs of them for each ring and
//! processor, and how many numbers are no rows. So that over all batches every number is one or the other.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use arrow_ipc as ipc;
use clawbox_common::number;

/// Runs that a label has at most.
const RUNS: usize = 16_384;

/// Keys of the label: whose numbers they are, the rows', those of what is lost, of what no row is made, and
/// below which each is one of these.
const KEYS: [&str; 5] =
    ["clawbox.load", "clawbox.numbers", "clawbox.lost", "clawbox.passed", "clawbox.settled"];

/// Numbers from one on, and below another.
pub type Run = (u64, u64);

/// Of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// By ring and processor.
    runs: Vec<Vec<Run>>,
    /// What has become of numbers that are no rows.
    pub other: Other,
}

/// Numbers that are no rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Other {
    /// Of events that a gap of this batch counts.
    pub lost: u64,
    /// Of events that are not told: what the agent tries itself, and paths of what is counted.
    pub passed: u64,
    /// Below these, all that are not in this batch or one before are lost or passed there.
    pub settled: Vec<(u16, u64)>,
}

impl Other {
    /// Adds what else has become of numbers.
    pub fn add(&mut self, other: Self) {
        self.lost += other.lost;
        self.passed += other.passed;
        if !other.settled.is_empty() {
            self.settled.extend(other.settled);
        }
    }
}

impl Numbers {
    /// A row is of this record.
    #[inline]
    pub fn has(&mut self, of: u64) {
        let (lane, count) = (number::lane(of), number::count(of));
        let lane = usize::from(lane);
        if lane >= self.runs.len() {
            self.runs.resize_with(lane + 1, Vec::new);
        }
        let runs = &mut self.runs[lane];
        match runs.last_mut() {
            Some(last) if last.1 == count => last.1 += 1,
            _ => runs.push((count, count + 1)),
        }
    }

    /// The pairs of the label.
    #[must_use]
    pub fn pairs(&self, load: u64) -> Vec<(&'static str, String)> {
        let (mut runs, mut unnamed, mut left) = (String::new(), 0, RUNS);
        for (lane, of_lane) in (0..).zip(&self.runs) {
            let joined = joined(of_lane.clone());
            let named = joined.len().min(left);
            left -= named;
            unnamed += joined[named..].iter().map(|(from, to)| to - from).sum::<u64>();
            say(&mut runs, lane, &joined[..named]);
        }
        let mut settled = BTreeMap::<u16, u64>::new();
        for (lane, below) in &self.other.settled {
            let highest = settled.entry(*lane).or_default();
            *highest = (*highest).max(*below);
        }
        let mut marks = String::new();
        settled.iter().for_each(|(lane, below)| say(&mut marks, *lane, &[(0, *below)]));
        let texts = [
            load.to_string(),
            runs,
            self.other.lost.to_string(),
            // More runs than there is room for are not named, and counted.
            (self.other.passed + unnamed).to_string(),
            marks,
        ];
        let pairs: Vec<_> = KEYS
            .into_iter()
            .zip(texts)
            .filter(|(_, text)| !text.is_empty() && text != "0")
            .collect();
        if pairs.len() > 1 { pairs } else { Vec::new() }
    }
}

/// Runs in their order, those that touch as one.
fn joined(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable();
    let mut joined: Vec<Run> = Vec::with_capacity(runs.len().min(RUNS));
    for (from, to) in runs {
        match joined.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ => joined.push((from, to)),
        }
    }
    joined
}

/// `d0=5+3,12+1;`: of the first processor's denials 5 to 7 and 12.
fn say(into: &mut String, lane: u16, runs: &[Run]) {
    if runs.is_empty() {
        return;
    }
    let ring = if u32::from(lane & 1) == number::ALLOWS { 'a' } else { 'd' };
    let separator = if into.is_empty() { "" } else { ";" };
    // To a String: cannot fail.
    let _ = write!(into, "{separator}{ring}{}=", lane >> 1);
    for (at, (from, to)) in runs.iter().enumerate() {
        let separator = if at > 0 { "," } else { "" };
        let _ = write!(into, "{separator}{from}+{}", to - from);
    }
}

fn understood(text: &str) -> Option<Vec<(u16, Vec<Run>)>> {
    let lane = |text: &str| {
        let (name, runs) = text.split_once('=')?;
        let ring = match name.get(..1)? {
            "d" => 0,
            "a" => 1,
            _ => return None,
        };
        let processor: u16 = name.get(1..)?.parse().ok()?;
        let lane = processor.checked_mul(2)? | ring;
        let run = |text: &str| {
            let (from, length) = text.split_once('+')?;
            let from: u64 = from.parse().ok()?;
            Some((from, from.checked_add(length.parse().ok()?)?))
        };
        Some((lane, runs.split(',').map(run).collect::<Option<Vec<_>>>()?))
    };
    text.split(';').filter(|text| !text.is_empty()).map(lane).collect()
}

/// What the label of a batch says of numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labelled {
    load: u64,
    runs: Vec<(u16, Vec<Run>)>,
    other: Other,
}

impl Labelled {
    /// Of a batch's first message; `None` where it says nothing of them that can be understood.
    #[must_use]
    pub fn of(message: &ipc::Message<'_>) -> Option<Self> {
        let pairs = message.custom_metadata()?;
        let value = |key: &str| pairs.iter().find(|pair| pair.key() == Some(key))?.value();
        let number = |key: &str| value(key).map_or(Some(0), |text| text.parse().ok());
        let [load, runs, lost, passed, settled] = KEYS;
        let settled = understood(value(settled).unwrap_or_default())?;
        let settled = settled
            .into_iter()
            .flat_map(|(lane, marks)| marks.into_iter().map(move |(_, below)| (lane, below)));
        Some(Self {
            load: value(load)?.parse().ok()?,
            runs: understood(value(runs).unwrap_or_default())?,
            other: Other {
                lost: number(lost)?,
                passed: number(passed)?,
                settled: settled.collect(),
            },
        })
    }
}

/// What the numbers of a store come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Sum {
    /// Numbers that rows have.
    pub stored: u64,
    /// Numbers of what gaps count as lost.
    pub lost: u64,
    /// Numbers of what is told to nobody: what the agent tries itself.
    pub passed: u64,
    /// Numbers that are none of these.
    pub unexplained: u64,
    /// Numbers that are counted as lost or passed and in no hole.
    pub surplus: u64,
    /// Numbers that two rows have.
    pub twice: u64,
}

/// One ring's and one processor's numbers, of one load of the programs.
#[derive(Default)]
struct Lane {
    /// The first that the store has.
    first: Option<u64>,
    /// By their beginnings; none touches another.
    runs: BTreeMap<u64, u64>,
    settled: u64,
}

impl Lane {
    /// How many of these were there before.
    fn add(&mut self, (from, to): Run) -> u64 {
        self.first = Some(self.first.map_or(from, |first| first.min(from)));
        let (mut from, mut to, mut twice) = (from, to, 0);
        let near: Vec<Run> = self
            .runs
            .range(..=to)
            .rev()
            .take_while(|(_, end)| **end >= from)
            .map(|(from, to)| (*from, *to))
            .collect();
        let (own_from, own_to) = (from, to);
        for (start, end) in near {
            twice += end.min(own_to).saturating_sub(start.max(own_from));
            (from, to) = (from.min(start), to.max(end));
            self.runs.remove(&start);
        }
        self.runs.insert(from, to);
        twice
    }

    /// Numbers below the mark that no row has.
    fn holes(&self) -> u64 {
        let Some(first) = self.first.filter(|first| *first < self.settled) else { return 0 };
        let below = self.runs.range(..self.settled);
        let rows: u64 = below.map(|(from, to)| (*to).min(self.settled) - from).sum();
        (self.settled - first).saturating_sub(rows)
    }
}

#[derive(Default)]
struct Load {
    lanes: BTreeMap<u16, Lane>,
    explained: u64,
    /// At the last two marks, how many more holes there were than what explains them.
    open: [Option<i64>; 2],
}

/// Adds up what batches say, in their order.
#[derive(Default)]
pub struct Total {
    loads: BTreeMap<u64, Load>,
    sum: Sum,
}

impl Total {
    /// The next batch.
    pub fn add(&mut self, said: Labelled) {
        let load = self.loads.entry(said.load).or_default();
        for (lane, runs) in said.runs {
            let lane = load.lanes.entry(lane).or_default();
            for run in runs {
                self.sum.stored = self.sum.stored.saturating_add(run.1.saturating_sub(run.0));
                self.sum.twice = self.sum.twice.saturating_add(lane.add(run));
            }
        }
        let (lost, passed) = (said.other.lost, said.other.passed);
        self.sum.lost = self.sum.lost.saturating_add(lost);
        self.sum.passed = self.sum.passed.saturating_add(passed);
        load.explained = load.explained.saturating_add(lost).saturating_add(passed);
        if said.other.settled.is_empty() {
            return;
        }
        for (lane, below) in said.other.settled {
            let lane = load.lanes.entry(lane).or_default();
            lane.settled = lane.settled.max(below);
        }
        let holes = load.lanes.values().map(Lane::holes).fold(0, u64::saturating_add);
        let open = i128::from(holes) - i128::from(load.explained);
        load.open = [Some(i64::try_from(open).unwrap_or(i64::MAX)), load.open[0]];
    }

    /// What they come to.
    #[must_use]
    pub fn sum(&self) -> Sum {
        let mut sum = self.sum;
        for load in self.loads.values() {
            let [last, before] = load.open.map(Option::unwrap_or_default);
            // Who is interrupted between its number and its loss is told by the next mark: that is one of a
            // processor, or two where another one has interrupted that. What a mark before has counted of
            // losses above it is no answer for more.
            let few = i64::try_from(2 * load.lanes.len()).unwrap_or(i64::MAX);
            let open = if last <= few { last.min(before) } else { last };
            sum.unexplained = sum.unexplained.saturating_add(u64::try_from(open).unwrap_or(0));
            let surplus = u64::try_from(last.saturating_neg()).unwrap_or(0);
            sum.surplus = sum.surplus.saturating_add(surplus);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labelled(numbers: &Numbers, load: u64) -> Labelled {
        let mut said = Labelled { load, ..Labelled::default() };
        for (key, value) in numbers.pairs(load) {
            match key {
                "clawbox.numbers" => said.runs = understood(&value).unwrap(),
                "clawbox.lost" => said.other.lost = value.parse().unwrap(),
                "clawbox.passed" => said.other.passed = value.parse().unwrap(),
                "clawbox.settled" => {
                    let marks = understood(&value).unwrap();
                    said.other.settled =
                        marks.into_iter().map(|(lane, runs)| (lane, runs[0].1)).collect();
                }
                other => assert_eq!(other, "clawbox.load"),
            }
        }
        said
    }

    proptest! {
        #[test]
        fn every_number_is_a_rows_or_told_as_lost_or_it_is_found(
            fates in prop::collection::vec((0..4_u8, 0..3_u16, 0..3_u8), 0..300)
        ) {
            let (mut total, mut batch) = (Total::default(), Numbers::default());
            let mut next = [0_u64; 3];
            let (mut stored, mut lost, mut passed, mut missing) = (0, 0, 0, 0);
            for (fate, lane, end) in fates {
                let number = number::first_of(lane) + next[usize::from(lane)];
                next[usize::from(lane)] += 1;
                // The first of each is a row: before it nothing is known.
                match if next[usize::from(lane)] == 1 { 0 } else { fate } {
                    1 => lost += 1,
                    2 => passed += 1,
                    3 => missing += 1,
                    _ => {
                        batch.has(number);
                        stored += 1;
                    }
                }
                if end == 0 {
                    total.add(labelled(&batch, 5));
                    batch = Numbers::default();
                }
            }
            for _ in 0..2 {
                let settled = (0..).zip(next).collect();
                batch.other = Other { lost, passed, settled };
                total.add(labelled(&batch, 5));
                batch = Numbers::default();
                (lost, passed) = (0, 0);
            }
            let sum = total.sum();
            prop_assert_eq!((sum.stored, sum.unexplained, sum.surplus), (stored, missing, 0));
            prop_assert_eq!(sum.twice, 0);
        }
    }

    #[test]
    fn rows_of_several_sandboxes_that_alternate_are_one_run_and_a_number_twice_is_found() {
        let mut batch = Numbers::default();
        [0, 2, 4, 1, 3, 5, 9].into_iter().for_each(|number| batch.has(number));
        let pairs = batch.pairs(7);
        assert_eq!(
            pairs,
            [("clawbox.load", "7".to_owned()), ("clawbox.numbers", "d0=0+6,9+1".to_owned())]
        );
        let mut total = Total::default();
        total.add(labelled(&batch, 7));
        let mut again = Numbers::default();
        again.has(4);
        total.add(labelled(&again, 7));
        assert_eq!((total.sum().stored, total.sum().twice), (8, 1));
        // Of another load it is another event.
        total.add(labelled(&again, 8));
        assert_eq!((total.sum().stored, total.sum().twice), (9, 1));
    }

    #[test]
    fn losses_above_a_mark_hide_no_hole_below_the_next() {
        let (mut total, mut batch) = (Total::default(), Numbers::default());
        (0..10).for_each(|number| batch.has(2 * number));
        // A hundred were lost behind these, and are counted before the mark has come there.
        batch.other = Other { lost: 100, passed: 0, settled: vec![(0, 19)] };
        total.add(labelled(&batch, 5));
        assert_eq!((total.sum().unexplained, total.sum().surplus), (0, 91));
        let other = Other { settled: vec![(0, 119)], ..Other::default() };
        total.add(labelled(&Numbers { other, ..Numbers::default() }, 5));
        assert_eq!((total.sum().unexplained, total.sum().surplus), (9, 0));
    }

    #[test]
    fn more_runs_than_a_label_has_room_for_are_counted() {
        let mut batch = Numbers::default();
        (0..20_000).for_each(|number| batch.has(2 * number));
        let said = labelled(&batch, 1);
        let named: usize = said.runs.iter().map(|(_, runs)| runs.len()).sum();
        assert_eq!((named, said.other.passed), (RUNS, 20_000 - RUNS as u64));
    }

    #[test]
    fn a_batch_without_records_of_the_kernels_says_nothing_of_numbers() {
        assert_eq!(Numbers::default().pairs(7), []);
        for text in ["x0=1+1", "d=1+1", "d0=1", "d0=18446744073709551615+1", "d70000=1+1", "é=1+1"]
        {
            assert_eq!(understood(text), None, "{text}");
        }
    }
}
