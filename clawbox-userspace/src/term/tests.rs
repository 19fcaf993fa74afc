//! Each screen as it is drawn, what keys and the mouse do, and that nothing a sandbox writes is more than
//! text on the screen.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers, MouseButton, MouseEvent, MouseEventKind};
use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::style::Color;

use super::cards::{Advice, Denied, Key, Scope};
use super::events::{Event, KEPT, Kind};
use super::state::{Deed, Done, Effect, Message, Order, Poll, Revision, Row, Screen, State, Told};
use super::tree::Process;
use super::{draw, plain};
use crate::sandbox::control::Connection;

const SIZE: (u16, u16) = (100, 30);

fn row(id: &str, waiting: u32, counts: (u64, u64)) -> Row {
    Row {
        id: id.to_owned(),
        owner: "agent".to_owned(),
        policy: format!("/etc/clawbox/{id}.yaml"),
        revision: 2,
        waiting,
        allowed: counts.0,
        denied: counts.1,
        processes: Some(4),
        ..Row::default()
    }
}

fn connection(id: u32, host: &str) -> Connection {
    Connection {
        id,
        host: host.to_owned(),
        port: 443,
        program: Some("/usr/bin/curl".to_owned()),
        pid: 7,
        seconds: 3,
        seconds_left: 57,
        rule: crate::sandbox::held::rule(host, 443, "/usr/bin/curl", false).unwrap_or_default(),
    }
}

fn poll(at: u64, counts: (u64, u64), waiting: Vec<Connection>) -> Message {
    let held = u32::try_from(waiting.len()).unwrap();
    let mut other = row("other-2", 0, (7, 0));
    (other.audit_only, other.processes) = (true, None);
    let rows = vec![other, row("agent-1", held, counts)];
    let waiting = vec![("agent-1".to_owned(), waiting)];
    Message::Poll(Poll { at, rows, waiting, not_followed: 0 })
}

fn key_of(host: &str, port: u16) -> Key {
    let (sandbox, program) = ("agent-1".to_owned(), "/usr/bin/python3".to_owned());
    Key { sandbox, program, host: host.to_owned(), port }
}

fn event(kind: Kind, line: &str) -> Event {
    Event { sandbox: "agent-1".to_owned(), kind, line: line.to_owned(), denied: None }
}

fn denied(host: &str, port: u16, times: u64) -> Event {
    let time = "2026-01-02T03:04:05.000006Z".to_owned();
    let ip = host.parse().ok();
    let (is_name, is_answer) = (false, false);
    let denied = Denied { key: key_of(host, port), ip, time, times, is_name, is_answer };
    let line = format!("2026-01-02T03:04:05  deny   connect   {host} port {port}/tcp");
    Event { denied: Some(denied), ..event(Kind::Denied, &line) }
}

/// A host with two sandboxes, of which one asks and was denied.
fn scene() -> State {
    let mut state = State::new(SIZE, false);
    state.update(poll(0, (0, 0), Vec::new()));
    state.update(poll(2_000, (2_469, 3), vec![connection(4, "api.github.com")]));
    let line = "2026-01-02T03:04:04  allow  connect   api.test (203.0.113.9) port 443/tcp  by /usr/bin/pip[9]";
    let events = vec![
        event(Kind::Allowed, line),
        denied("10.0.0.5", 5432, 12),
        denied("cdn.fastly.net", 80, 1),
    ];
    state.update(Message::Events(events, 0));
    state
}

fn told() -> Told {
    let revision = |number| Revision {
        number,
        author: "root".to_owned(),
        time: "2026-01-02T03:04:05Z".to_owned(),
        text: format!("# policy.yaml\nversion: 1\n# of revision {number}\n"),
    };
    let process = |pid, parent, name: &str| Process { pid, parent, name: name.to_owned() };
    Told {
        sandbox: "agent-1".to_owned(),
        text: "# policy.yaml\nversion: 1\nunknown_endpoints: ask\n".to_owned(),
        approved: "  \"approved curl a.test 443\":\n".to_owned(),
        revisions: vec![revision(2), revision(1)],
        processes: vec![process(9, 1, "/bin/sh"), process(10, 9, "/usr/bin/curl https://a.test")],
    }
}

fn press(state: &mut State, code: KeyCode) -> Vec<Effect> {
    state.update(Message::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

fn typed(state: &mut State, text: &str) -> Vec<Effect> {
    text.chars().flat_map(|character| press(state, KeyCode::Char(character))).collect()
}

fn drawn(state: &State) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(state.size.0, state.size.1)).unwrap();
    let frame = terminal.draw(|frame| {
        draw::draw(frame, state);
        plain::clear(frame.buffer_mut());
    });
    frame.unwrap().buffer.clone()
}

fn text(state: &State) -> String {
    let buffer = drawn(state);
    let rows = buffer.content.chunks(usize::from(buffer.area.width).max(1));
    let rows = rows.map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>());
    rows.map(|row| row.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[test]
fn each_screen_says_what_there_is_with_signs_and_words() {
    let mut state = scene();
    insta::assert_snapshot!("sandboxes", text(&state));
    typed(&mut state, "2/deny 10.0.0");
    insta::assert_snapshot!("events", text(&state));
    press(&mut state, KeyCode::Esc);
    typed(&mut state, "3");
    state.update(Message::Told(told()));
    insta::assert_snapshot!("one", text(&state));
    typed(&mut state, "4");
    let (key, advice) = (
        Key { program: "/usr/bin/curl".to_owned(), ..key_of("api.github.com", 443) },
        Advice {
            says: vec![
                "deny (held): it waits for an answer".to_owned(),
                "nearest: github; port 443 is not 22".to_owned(),
            ],
            names_program: false,
            program: "/usr/bin/curl".to_owned(),
            revision: 2,
        },
    );
    state.update(Message::Advice(key, advice));
    insta::assert_snapshot!("approvals", text(&state));
    typed(&mut state, "n");
    press(&mut state, KeyCode::Down);
    insta::assert_snapshot!("ways", text(&state));
    press(&mut state, KeyCode::Esc);
    typed(&mut state, "?");
    insta::assert_snapshot!("help", text(&state));
}

#[test]
fn rates_are_of_the_last_looks_and_who_is_chosen_stays_so() {
    let mut state = scene();
    assert_eq!(state.rates("agent-1"), (1234.5, 1.5));
    press(&mut state, KeyCode::Down);
    state.update(Message::Poll(Poll {
        at: 3_000,
        rows: vec![row("other-2", 0, (7, 0)), row("new-1", 0, (0, 0)), row("agent-1", 0, (0, 0))],
        ..Poll::default()
    }));
    assert_eq!(state.sandboxes[state.place.at].id, "other-2");
    assert!(state.cards.shown().iter().all(|card| card.held.is_empty()));
}

/// The chosen card's order, whatever it is.
fn order(effects: Vec<Effect>) -> Order {
    let found = effects.into_iter().find_map(|effect| match effect {
        Effect::Do(order) => Some(order),
        _ => None,
    });
    found.expect("something is to be done")
}

#[test]
fn a_card_is_approved_for_so_long_denied_and_taken_back() {
    for (key, scope, verified) in [
        ("a", Scope::Once, false),
        ("s", Scope::Session, false),
        ("p", Scope::Policy, false),
        ("n2", Scope::Session, true),
    ] {
        let mut state = scene();
        typed(&mut state, "4");
        let order = order(typed(&mut state, key));
        let Deed::Approve(way, ids) = &order.deed else { panic!("{order:?}") };
        assert_eq!((way.scope, ids.as_slice()), (scope, &[4][..]), "{key}");
        assert_eq!(way.rule.contains("sni: verify"), verified, "{key}");
        assert_eq!(way.rule.is_empty(), scope == Scope::Once);
        let rule = way.rule.clone();
        state.update(Message::Done(Done {
            order,
            outcome: Ok((scope != Scope::Once).then_some((2, 3))),
        }));
        assert!(state.notice.starts_with("approved api.github.com:443"), "{}", state.notice);
        let undo = typed(&mut state, "u");
        match scope {
            Scope::Once => {
                assert!(undo.is_empty() && state.notice.contains("nothing to take back"))
            }
            Scope::Session => assert_eq!(self::order(undo).deed, Deed::Withdraw(rule)),
            Scope::Policy => assert_eq!(self::order(undo).deed, Deed::Rollback(2, 3)),
        }
    }
    let mut state = scene();
    typed(&mut state, "4");
    let order = order(typed(&mut state, "d"));
    assert_eq!(order.deed, Deed::Deny(vec![4]));
    assert!(
        state.cards.shown().iter().all(|card| card.held.is_empty()),
        "it is out of sight at once"
    );
    state.update(Message::Done(Done { order: order.clone(), outcome: Ok(None) }));
    state.update(poll(3_000, (0, 0), Vec::new()));
    let mut told = denied("api.github.com", 443, 1);
    let record = told.denied.as_mut().unwrap();
    (record.key, record.is_answer) = (order.key.clone(), true);
    state.update(Message::Events(vec![told], 0));
    assert!(state.cards.shown().iter().all(|card| card.key != order.key), "the trail says no news");
    typed(&mut state, "u");
    assert!(state.cards.shown().iter().any(|card| card.key == order.key));
    // What was denied is only put out of sight, and comes back.
    for at in [3_500, 4_000] {
        state.update(poll(at, (0, 0), Vec::new()));
    }
    let chosen = state.cards.chosen().unwrap().key.clone();
    assert!(typed(&mut state, "d").iter().all(|effect| !matches!(effect, Effect::Do(_))));
    assert!(state.cards.shown().iter().all(|card| card.key != chosen));
    typed(&mut state, "u");
    assert!(state.cards.shown().iter().any(|card| card.key == chosen));
}

#[test]
fn a_key_for_a_card_that_has_gone_is_not_taken_for_the_one_in_its_place() {
    let mut state = scene();
    typed(&mut state, "4");
    // It is no longer waited for, and nobody has pressed anything.
    state.update(poll(3_000, (0, 0), Vec::new()));
    assert_eq!(state.cards.chosen().unwrap().key.host, "10.0.0.5");
    for key in ["p", "s", "n", "d"] {
        assert!(typed(&mut state, key).iter().all(|effect| !matches!(effect, Effect::Do(_))));
        assert!(state.ways.is_none() && state.notice.contains("look at this one"), "{key}");
    }
    state.update(poll(3_500, (0, 0), Vec::new()));
    state.update(poll(4_000, (0, 0), Vec::new()));
    assert_eq!(order(typed(&mut state, "p")).key.host, "10.0.0.5");
}

#[test]
fn what_was_not_done_is_said_and_nothing_is_there_to_take_back() {
    let mut state = scene();
    typed(&mut state, "4");
    let order = order(typed(&mut state, "p"));
    let outcome = Err("revision 3 is in force, not 2\u{1b}[2J".to_owned());
    state.update(Message::Done(Done { order, outcome }));
    assert_eq!(state.notice, r"not done: revision 3 is in force, not 2\u{1b}[2J");
    typed(&mut state, "u");
    assert!(state.notice.contains("nothing to take back"));
}

#[test]
fn the_policy_is_asked_once_about_the_card_that_is_looked_at() {
    let mut state = scene();
    let effects = typed(&mut state, "4");
    let [Effect::Ask(first)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(first.host, "api.github.com");
    assert!(state.update(poll(2_500, (0, 0), vec![connection(4, "api.github.com")])).is_empty());
    let other = press(&mut state, KeyCode::Down);
    assert!(matches!(&other[..], [Effect::Ask(key)] if key != first), "{other:?}");
}

#[test]
fn the_mouse_chooses_screens_and_rows_and_the_wheel_turns() {
    let mut state = scene();
    let at = |kind, column, row| {
        Message::Mouse(MouseEvent { kind, column, row, modifiers: KeyModifiers::NONE })
    };
    let click = |column, row| at(MouseEventKind::Down(MouseButton::Left), column, row);
    state.update(click(3, 4));
    assert_eq!(state.sandboxes[state.place.at].id, "other-2");
    let effects = state.update(click(3, 4));
    assert_eq!((state.screen, effects), (Screen::One, vec![Effect::Look("other-2".to_owned())]));
    state.update(click(18, 0));
    assert_eq!(state.screen, Screen::Events);
    state.update(Message::Events(
        (0..100).map(|at| event(Kind::Allowed, &at.to_string())).collect(),
        0,
    ));
    let last = state.events.place.at;
    state.update(at(MouseEventKind::ScrollUp, 5, 5));
    assert_eq!((state.events.place.at, state.events.follow), (last - 3, false));
    // What comes meanwhile does not move what is looked at, and `f` goes on with it.
    state.update(Message::Events(vec![event(Kind::Allowed, "new"); KEPT], 9));
    assert_eq!(state.events.shown().len(), KEPT);
    assert!(text(&state).contains("9 skipped"));
    typed(&mut state, "f");
    assert_eq!(state.events.place.at, KEPT - 1);
}

#[test]
fn a_filter_takes_letters_that_are_keys_elsewhere() {
    let mut state = scene();
    assert!(typed(&mut state, "2/q 10").is_empty());
    assert_eq!(state.events.filter, "q 10");
    assert!(state.events.shown().is_empty());
    press(&mut state, KeyCode::Backspace);
    press(&mut state, KeyCode::Enter);
    press(&mut state, KeyCode::Esc);
    assert_eq!(state.events.shown().len(), 3);
    assert_eq!(typed(&mut state, "q"), [Effect::Quit]);
    let control = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(state.update(Message::Key(control)), [Effect::Quit]);
}

#[test]
fn nothing_is_told_by_colour_alone() {
    for screen in ["1", "2", "4"] {
        let mut state = scene();
        typed(&mut state, screen);
        assert!(drawn(&state).content.iter().all(|cell| cell.fg == Color::Reset), "NO_COLOR");
        let plain = text(&state);
        state.colour = true;
        assert_eq!(text(&state), plain, "colours change no letter");
        assert!(drawn(&state).content.iter().any(|cell| cell.fg != Color::Reset));
        assert!(
            !drawn(&state).content.iter().any(|cell| matches!(cell.fg, Color::Red | Color::Green))
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn no_text_of_a_sandbox_brings_a_control_character_to_the_screen(
        hostile in "(\\PC|\u{1b}\\[[0-9;]*[A-Za-z]|[\\x00-\\x1f\\x7f-\\x9f]|[\u{202a}-\u{202e}\u{200b}-\u{200f}\u{2066}-\u{2069}]|[a-z漢é/.]){0,60}",
        width in 0_u16..140,
        height in 0_u16..45,
    ) {
        let mut state = scene();
        let mut policy = row(&hostile, 1, (1, 1));
        (policy.policy, policy.owner) = (hostile.clone(), hostile.clone());
        let mut waits = connection(9, &hostile);
        waits.program = Some(hostile.clone());
        let waiting = vec![(hostile.clone(), vec![waits])];
        state.update(Message::Poll(Poll { at: 1, rows: vec![policy], waiting, not_followed: 3 }));
        let mut told = told();
        (told.sandbox, told.text) = (hostile.clone(), hostile.clone());
        told.processes[1].name = hostile.clone();
        told.revisions[0].author = hostile.clone();
        state.one.wanted = hostile.clone();
        state.update(Message::Told(told));
        let mut event = denied(&hostile, 1, 1);
        (event.line, event.sandbox) = (hostile.clone(), hostile.clone());
        state.update(Message::Events(vec![event], 0));
        state.update(Message::Trouble(Some(hostile.clone())));
        state.update(Message::Resize(width, height));
        for keys in ["1", "2", "2/", "3", "4", "n", "?"] {
            typed(&mut state, keys);
            for cell in &drawn(&state).content {
                prop_assert!(!cell.symbol().chars().any(plain::is_unfit), "{:?}", cell.symbol());
            }
            if state.events.typing {
                press(&mut state, KeyCode::Esc);
            }
        }
    }
}
