//! Where what is on the screen: the same answer for who draws and for who is told of a click.

use ratatui::layout::{Constraint, Layout, Rect};

use super::state::{Pane, Screen, State};

/// The parts of the screen.
#[derive(Clone, Copy, Debug)]
pub struct Areas {
    /// The screens' names.
    pub tabs: Rect,
    /// The screen itself.
    pub body: Rect,
    /// What is to be said, and keys.
    pub foot: Rect,
}

/// The parts of a screen of this size.
#[must_use]
pub fn areas((width, height): (u16, u16)) -> Areas {
    let [tabs, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(0), Constraint::Length(2)])
            .areas(Rect::new(0, 0, width, height));
    Areas { tabs, body, foot }
}

/// Approvals: the list, and the card of the one that is chosen.
#[must_use]
pub fn approvals(body: Rect) -> [Rect; 2] {
    Layout::vertical([Constraint::Percentage(40), Constraint::Min(0)]).areas(body)
}

/// One sandbox: its policy's text, the policies it has had, its processes.
#[must_use]
pub fn one(body: Rect) -> [Rect; 3] {
    let [text, right] =
        Layout::horizontal([Constraint::Percentage(55), Constraint::Min(0)]).areas(body);
    let [revisions, processes] =
        Layout::vertical([Constraint::Percentage(35), Constraint::Min(0)]).areas(right);
    [text, revisions, processes]
}

/// What is inside of a frame.
#[must_use]
pub fn inside(frame: Rect) -> Rect {
    let width = frame.width.saturating_sub(2);
    let height = frame.height.saturating_sub(2);
    Rect { x: frame.x.saturating_add(1), y: frame.y.saturating_add(1), width, height }
}

/// The rows of a list in a frame, below the line that names its columns.
#[must_use]
pub fn rows(frame: Rect) -> Rect {
    let inside = inside(frame);
    Rect { y: inside.y.saturating_add(1), height: inside.height.saturating_sub(1), ..inside }
}

/// The rows of the list that keys and wheel move on a screen.
#[must_use]
pub fn list(state: &State) -> Rect {
    let body = areas(state.size).body;
    match state.screen {
        Screen::Sandboxes | Screen::Events => rows(body),
        Screen::Approvals => rows(approvals(body)[0]),
        Screen::One => {
            let [text, revisions, processes] = one(body);
            inside(match state.one.pane {
                Pane::Text => text,
                Pane::Revisions => revisions,
                Pane::Processes => processes,
            })
        }
    }
}

/// The screens' names as they stand side by side, each with its first column and the one behind its last.
#[must_use]
pub fn tabs(state: &State) -> Vec<(Screen, String, u16, u16)> {
    let mut at = 0_u16;
    let mut all = Vec::new();
    for (number, screen) in Screen::ALL.into_iter().enumerate() {
        let count = match screen {
            Screen::Sandboxes => Some(state.sandboxes.len()),
            Screen::Approvals => Some(state.cards.shown().len()),
            Screen::Events | Screen::One => None,
        };
        let count = count.map(|count| format!(" ({count})")).unwrap_or_default();
        let text = format!(" {} {}{count} ", number + 1, screen.title());
        let end = at.saturating_add(u16::try_from(text.len()).unwrap_or(u16::MAX));
        all.push((screen, text, at, end));
        at = end;
    }
    all
}

impl Areas {
    /// The same, none larger than the screen is: it may have become smaller meanwhile.
    #[must_use]
    pub fn within(self, screen: Rect) -> Self {
        let Self { tabs, body, foot } = self;
        let [tabs, body, foot] = [tabs, body, foot].map(|area| area.intersection(screen));
        Self { tabs, body, foot }
    }
}
