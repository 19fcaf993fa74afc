//! Network events that say what one shortly before has said, at another time: their record is made once. Who
//! floods costs little by it.

use std::time::{Duration, Instant, SystemTime};

use clawbox_common::decide::Route;
use clawbox_common::event::{Header, NetworkEvent};
use clawbox_common::verdict::Reason;

use crate::audit::clock::Clock;
use crate::audit::store::intake::Known;
use crate::audit::trail::{Draft, Trail};
use crate::events::{Decoded, Event};

/// Records that are remembered, by what their events say.
const PLACES: usize = 512;

/// Places that an event has: of sixty that take turns, some would have one place, and be made anew each time.
const WAYS: usize = 4;

/// Records that may be there before all are forgotten.
const MOST: usize = 4 * PLACES;

/// How long one is remembered: what a number means may change.
const LONGEST: Duration = Duration::from_secs(1);

/// A record that is to be written down.
pub(super) enum Waits {
    /// It is like no other. What the kernel has told has a number.
    One(Box<Draft>, Option<u64>),
    /// One that is remembered, at a time, and the number of this.
    Again(SystemTime, u32, u64),
}

impl Waits {
    pub(super) fn time(&self) -> Option<SystemTime> {
        match self {
            Self::One(draft, _) => draft.time,
            Self::Again(time, ..) => Some(*time),
        }
    }
}

impl From<Draft> for Waits {
    fn from(draft: Draft) -> Self {
        Self::One(Box::new(draft), None)
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Repeats {
    known: Vec<(NetworkEvent, Known)>,
    /// The last of them that an event of this place was.
    places: Vec<Option<u32>>,
    since: Option<Instant>,
    is_stale: bool,
}

/// An event without what is another thing each time and in no record.
fn said(event: &NetworkEvent) -> NetworkEvent {
    let header = Header { time: 0, number: 0, tid: 0, ..event.header };
    NetworkEvent { header, cookie: 0, ..*event }
}

/// Whether its record says all there is to do about it.
fn is_plain(decoded: Decoded, event: &NetworkEvent) -> bool {
    decoded.reason != Reason::Held && event.route != Route::Resolver as u8
}

fn places(event: &NetworkEvent) -> impl Iterator<Item = usize> {
    let word = |half: [u8; 8]| u64::from_ne_bytes(half);
    let octets = event.asked.octets();
    let [high, low] = [0, 8].map(|at| octets[at..at + 8].try_into().map_or(0, word));
    let header = &event.header;
    let small =
        u64::from(event.port) | u64::from(header.kind) << 16 | u64::from(header.reason) << 24;
    let words = [high, low, small, header.exe.inode, header.tgid.into(), event.policy.into()];
    let mixed = words.iter().fold(0_u64, |mixed, word| {
        (mixed.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
    });
    let first = (mixed >> 32) as usize;
    (first..first + WAYS).map(|place| place % PLACES)
}

impl Repeats {
    /// The record of an event, if one that says the same is remembered.
    pub(super) fn again(
        &mut self,
        decoded: Decoded,
        event: &NetworkEvent,
        clock: &Clock,
    ) -> Option<Waits> {
        if self.is_stale || !is_plain(decoded, event) {
            return None;
        }
        let said = said(event);
        let number = places(event).map_while(|place| *self.places.get(place)?).find(
            |number| matches!(self.known.get(*number as usize), Some((known, _)) if *known == said),
        )?;
        Some(Waits::Again(clock.at(event.header.time)?, number, event.header.number))
    }

    /// The record of an event, which is remembered if it may come again.
    pub(super) fn first(&mut self, event: &Event, draft: Draft) -> Waits {
        let given = event.header().number;
        let one = |draft| Waits::One(Box::new(draft), Some(given));
        let (Event::Network(decoded, event), Some(time)) = (event, draft.time) else {
            return one(draft);
        };
        if self.is_stale || !is_plain(*decoded, event) {
            return one(draft);
        }
        let Ok(number) = u32::try_from(self.known.len()) else { return one(draft) };
        self.places.resize(PLACES, None);
        let mut all = places(event);
        let (first, free) = (all.next(), places(event).find(|at| self.places[*at].is_none()));
        if let Some(place) = free.or(first) {
            self.places[place] = Some(number);
        }
        self.known.push((said(event), draft.into()));
        self.since.get_or_insert_with(Instant::now);
        Waits::Again(time, number, given)
    }

    /// Writes a record down.
    pub(super) fn add(&self, waits: Waits, trail: &mut Trail) {
        match waits {
            Waits::One(draft, given) => trail.add_event(*draft, given),
            Waits::Again(time, number, given) => {
                if let Some((_, known)) = self.known.get(number as usize) {
                    trail.add_known(known, time, given);
                }
            }
        }
    }

    /// Nothing that comes is like what came.
    pub(super) fn forget(&mut self) {
        self.is_stale = true;
    }

    /// All that waited is written down.
    pub(super) fn look(&mut self) {
        let is_old = self.since.is_some_and(|since| since.elapsed() >= LONGEST);
        if self.is_stale || is_old || self.known.len() > MOST {
            // A thousand sandboxes that do nothing remember nothing.
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use clawbox_common::decide::Decision;
    use clawbox_common::event::Kind;
    use clawbox_common::verdict::Verdict;

    use super::*;
    use crate::audit::record::{Class, Gap, Object};

    fn event(port: u16) -> NetworkEvent {
        let header = Header { kind: Kind::Connect as u8, verdict: 1, ..Header::default() };
        let reason = Decision::refused(Reason::Refused).reason as u8;
        NetworkEvent { header: Header { reason, ..header }, port, ..NetworkEvent::default() }
    }

    #[test]
    fn events_that_would_have_one_place_are_all_remembered() {
        let first = |port: &u16| places(&event(*port)).next();
        let alike: Vec<u16> = (1..u16::MAX).filter(|port| first(port) == first(&1)).collect();
        assert!(alike.len() > WAYS, "{alike:?}");
        let (mut repeats, clock) = (Repeats::default(), Clock::now());
        let (kind, verdict, reason) = (Kind::Connect, Verdict::Allow, Reason::Refused);
        let decoded = Decoded { kind, verdict, reason };
        let again = |repeats: &mut Repeats, port| {
            let again = repeats.again(decoded, &event(port), &clock);
            again.and_then(|waits| match waits {
                Waits::Again(_, number, _) => Some(number),
                Waits::One(..) => None,
            })
        };
        for (number, port) in (0..).zip(&alike[..WAYS]) {
            assert_eq!(again(&mut repeats, *port), None);
            let gap = Object::Gap(Gap { count: 1, kind: String::new(), verdict: None });
            let draft = Draft { class: Class::Gap, ..Draft::of_agent("connect", "rule", gap) };
            let draft = Draft { time: clock.at(1), ..draft };
            let waits = repeats.first(&Event::Network(decoded, event(*port)), draft);
            assert!(matches!(waits, Waits::Again(_, told, 0) if told == number));
        }
        let told: Vec<_> = alike[..WAYS].iter().map(|port| again(&mut repeats, *port)).collect();
        assert_eq!(told, [Some(0), Some(1), Some(2), Some(3)]);
    }
}
