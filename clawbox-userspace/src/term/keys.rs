//! What a key or the mouse does on which screen.

use crossterm::event::{
    KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
};
use ratatui::layout::{Position, Rect};

use super::cards::{Scope, Way};
use super::layout;
use super::state::{Deed, Effect, Order, Pane, Screen, State, Undo};

/// Rows that the wheel turns.
const WHEEL: isize = 3;

/// A key.
pub fn key(state: &mut State, key: KeyEvent) -> Vec<Effect> {
    if key.kind == KeyEventKind::Release {
        return Vec::new();
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    if control && key.code == KeyCode::Char('c') {
        return vec![Effect::Quit];
    }
    if state.events.typing {
        typed(state, key.code);
        return Vec::new();
    }
    if state.help {
        state.help = false;
        return Vec::new();
    }
    if state.ways.is_some() {
        return choose(state, key.code);
    }
    if control {
        return Vec::new();
    }
    state.notice.clear();
    everywhere(state, key.code).unwrap_or_else(|| match state.screen {
        Screen::Sandboxes => on_sandboxes(state, key.code),
        Screen::Events => on_events(state, key.code),
        Screen::One => on_one(state, key.code),
        Screen::Approvals => on_approvals(state, key.code),
    })
}

/// What a key does wherever it is pressed; `None` where that depends on the screen.
fn everywhere(state: &mut State, code: KeyCode) -> Option<Vec<Effect>> {
    let page = isize::try_from(layout::list(state).height).unwrap_or(1).max(1);
    let others = |state: &State, by: usize| {
        let at = Screen::ALL.iter().position(|screen| *screen == state.screen).unwrap_or(0);
        Screen::ALL[(at + by) % Screen::ALL.len()]
    };
    match code {
        KeyCode::Char('q') => return Some(vec![Effect::Quit]),
        KeyCode::Char('?') | KeyCode::F(1) => state.help = true,
        KeyCode::Char(number @ '1'..='4') => {
            state.screen = Screen::ALL[usize::from(number as u8 - b'1')];
        }
        KeyCode::Tab => state.screen = others(state, 1),
        KeyCode::BackTab => state.screen = others(state, Screen::ALL.len() - 1),
        KeyCode::Down | KeyCode::Char('j') => step(state, 1),
        KeyCode::Up | KeyCode::Char('k') => step(state, -1),
        KeyCode::PageDown => step(state, page),
        KeyCode::PageUp => step(state, -page),
        KeyCode::Home | KeyCode::Char('g') => step(state, -isize::MAX),
        KeyCode::End | KeyCode::Char('G') => step(state, isize::MAX),
        _ => return None,
    }
    Some(Vec::new())
}

fn step(state: &mut State, by: isize) {
    let height = usize::from(layout::list(state).height);
    match state.screen {
        Screen::Sandboxes => state.place.step(by, state.sandboxes.len(), height),
        Screen::Events => state.events.step(by, height),
        Screen::Approvals => state.cards.step(by, height),
        Screen::One => {
            let (lines, tree) = (state.one.lines().len(), state.one.tree().len());
            let one = &mut state.one;
            match one.pane {
                // A text has no chosen line: it turns as a whole.
                Pane::Text => {
                    let most = lines.saturating_sub(height);
                    one.text.top = one.text.top.saturating_add_signed(by).min(most);
                    one.text.at = one.text.top;
                }
                Pane::Revisions => {
                    let length = one.told.as_ref().map_or(0, |told| told.revisions.len());
                    one.revisions.step(by, length, height);
                }
                Pane::Processes => one.processes.step(by, tree, height),
            }
        }
    }
}

fn typed(state: &mut State, code: KeyCode) {
    let events = &mut state.events;
    match code {
        KeyCode::Enter => events.typing = false,
        KeyCode::Esc => {
            events.typing = false;
            events.filter.clear();
        }
        KeyCode::Backspace => drop(events.filter.pop()),
        KeyCode::Char(character) if events.filter.len() < 200 => events.filter.push(character),
        _ => {}
    }
}

fn on_sandboxes(state: &mut State, code: KeyCode) -> Vec<Effect> {
    let chosen = state.sandboxes.get(state.place.at).map(|row| row.id.clone());
    match (code, chosen) {
        (KeyCode::Enter | KeyCode::Right | KeyCode::Char('l'), Some(id)) => {
            state.screen = Screen::One;
            state.look(id)
        }
        (KeyCode::Char('e'), Some(id)) => {
            state.screen = Screen::Events;
            (state.events.filter, state.events.follow) = (id, true);
            Vec::new()
        }
        _ => Vec::new(),
    }
}

fn on_events(state: &mut State, code: KeyCode) -> Vec<Effect> {
    match code {
        KeyCode::Char('/') => state.events.typing = true,
        KeyCode::Char('f') => state.events.follow = !state.events.follow,
        KeyCode::Esc => state.events.filter.clear(),
        _ => {}
    }
    Vec::new()
}

fn on_one(state: &mut State, code: KeyCode) -> Vec<Effect> {
    let panes = [Pane::Text, Pane::Revisions, Pane::Processes];
    let at = panes.iter().position(|pane| *pane == state.one.pane).unwrap_or(0);
    match code {
        KeyCode::Right | KeyCode::Char('l') => state.one.pane = panes[(at + 1) % panes.len()],
        KeyCode::Left | KeyCode::Char('h') => state.one.pane = panes[(at + 2) % panes.len()],
        KeyCode::Enter if state.one.pane == Pane::Revisions => {
            state.one.is_earlier = true;
            state.one.text = Default::default();
        }
        KeyCode::Esc if state.one.is_earlier => state.one.is_earlier = false,
        KeyCode::Esc => state.screen = Screen::Sandboxes,
        _ => {}
    }
    Vec::new()
}

fn on_approvals(state: &mut State, code: KeyCode) -> Vec<Effect> {
    if code == KeyCode::Char('u') {
        return undo(state);
    }
    let Some(card) = state.cards.chosen().cloned() else { return Vec::new() };
    if !state.cards.is_read() {
        state.notice = "the card before has gone: look at this one, and press again".to_owned();
        return Vec::new();
    }
    let ids = card.held.iter().map(|held| held.id).collect();
    let scope = match code {
        KeyCode::Char('a') => Scope::Once,
        KeyCode::Char('s') => Scope::Session,
        KeyCode::Char('p') => Scope::Policy,
        KeyCode::Char('n') | KeyCode::Enter => {
            state.ways = Some((card.key.clone(), card.ways(), 0));
            return Vec::new();
        }
        KeyCode::Char('d') if card.held.is_empty() => {
            state.cards.dismiss(&card.key, true);
            state.undo.push(Undo::Dismissed(card.key));
            state.notice = "out of sight until it comes again; it stays denied".to_owned();
            return Vec::new();
        }
        KeyCode::Char('d') => {
            // Before the trail says so too.
            state.cards.refuse(&card.key, true);
            return vec![Effect::Do(Order { key: card.key, deed: Deed::Deny(ids) })];
        }
        _ => return Vec::new(),
    };
    // The last of a scope is the plain rule.
    match card.ways().into_iter().rfind(|way| way.scope == scope) {
        Some(way) => vec![Effect::Do(Order { key: card.key, deed: Deed::Approve(way, ids) })],
        None => {
            state.notice = match scope {
                Scope::Once => "it does not wait any longer: `s` or `p` allows the next one",
                _ => "no rule can name this program",
            }
            .to_owned();
            Vec::new()
        }
    }
}

fn undo(state: &mut State) -> Vec<Effect> {
    match state.undo.pop() {
        Some(Undo::Order(order)) => return vec![Effect::Do(order)],
        Some(Undo::Dismissed(key)) => {
            state.cards.dismiss(&key, false);
            state.notice = "the card is back".to_owned();
        }
        Some(Undo::Refused(key)) => {
            state.cards.refuse(&key, false);
            state.notice =
                "that connection has ended; its card is back, for the next one".to_owned();
        }
        None => state.notice = "nothing to take back: what was let go on once has gone".to_owned(),
    }
    Vec::new()
}

/// A key where one of several ways is to be chosen.
fn choose(state: &mut State, code: KeyCode) -> Vec<Effect> {
    let Some((key, ways, at)) = &mut state.ways else { return Vec::new() };
    let last = ways.len().saturating_sub(1);
    let chosen = match code {
        KeyCode::Down | KeyCode::Char('j') => {
            *at = (*at + 1).min(last);
            return Vec::new();
        }
        KeyCode::Up | KeyCode::Char('k') => {
            *at = at.saturating_sub(1);
            return Vec::new();
        }
        KeyCode::Enter => ways.get(*at).cloned(),
        KeyCode::Char(number @ '1'..='9') => ways.get(usize::from(number as u8 - b'1')).cloned(),
        _ => None,
    };
    let key = key.clone();
    state.ways = None;
    let Some(way): Option<Way> = chosen else { return Vec::new() };
    // What waits by now.
    let held = state.cards.find(&key).map(|card| card.held.iter().map(|held| held.id).collect());
    vec![Effect::Do(Order { key, deed: Deed::Approve(way, held.unwrap_or_default()) })]
}

/// The mouse.
pub fn mouse(state: &mut State, mouse: MouseEvent) -> Vec<Effect> {
    let at = Position::new(mouse.column, mouse.row);
    match mouse.kind {
        MouseEventKind::ScrollDown => step(state, WHEEL),
        MouseEventKind::ScrollUp => step(state, -WHEEL),
        MouseEventKind::Down(MouseButton::Left) => return click(state, at),
        _ => {}
    }
    Vec::new()
}

fn click(state: &mut State, at: Position) -> Vec<Effect> {
    if state.help || state.ways.is_some() {
        (state.help, state.ways) = (false, None);
        return Vec::new();
    }
    let areas = layout::areas(state.size);
    if areas.tabs.contains(at) {
        let tabs = layout::tabs(state);
        let hit = tabs.iter().find(|(_, _, from, to)| (*from..*to).contains(&at.x));
        if let Some((screen, ..)) = hit {
            state.screen = *screen;
        }
        return Vec::new();
    }
    if state.screen == Screen::One {
        let panes = [Pane::Text, Pane::Revisions, Pane::Processes];
        let hit =
            layout::one(areas.body).into_iter().zip(panes).find(|(area, _)| area.contains(at));
        if let Some((_, pane)) = hit {
            state.one.pane = pane;
        }
    }
    let rows: Rect = layout::list(state);
    if !rows.contains(at) {
        return Vec::new();
    }
    let below = usize::from(at.y - rows.y);
    let place = match state.screen {
        Screen::Sandboxes => state.place,
        Screen::Events => state.events.place,
        Screen::Approvals => state.cards.place,
        Screen::One => match state.one.pane {
            Pane::Text => return Vec::new(),
            Pane::Revisions => state.one.revisions,
            Pane::Processes => state.one.processes,
        },
    };
    let to = isize::try_from(place.top + below).unwrap_or(0);
    let from = isize::try_from(place.at).unwrap_or(0);
    // A second click on what is chosen opens it.
    if to == from && state.screen == Screen::Sandboxes {
        return on_sandboxes(state, KeyCode::Enter);
    }
    step(state, to - from);
    Vec::new()
}
