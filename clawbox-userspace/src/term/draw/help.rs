//! The keys.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;

use super::over;

/// Keys, and what they do.
pub const KEYS: [(&str, &str); 21] = [
    ("1 2 3 4", "sandboxes, events, one sandbox, approvals"),
    ("Tab, Shift-Tab", "the next screen, the one before"),
    ("up down j k", "a row; PgUp PgDn a page, g G the ends"),
    ("mouse", "a click chooses, the wheel turns"),
    ("? q", "these keys; the end (Ctrl-C too)"),
    ("", ""),
    ("Enter", "sandboxes: look at it"),
    ("e", "sandboxes: its events alone"),
    ("/", "events: only lines with these words"),
    ("f", "events: follow, or stand still"),
    ("left right h l", "one sandbox: text, revisions, processes"),
    ("Enter", "one sandbox: that revision's text; Esc back"),
    ("", ""),
    ("a", "approvals: once, what waits now"),
    ("s", "approvals: as long as the sandbox runs"),
    ("p", "approvals: to policy, a revision of it"),
    ("n, Enter", "approvals: choose how narrowly"),
    ("d", "approvals: deny; a card that does not wait goes"),
    ("u", "approvals: take the last one back"),
    ("", ""),
    ("+ x ~ ?", "allowed, denied, would be denied, waits"),
];

pub(super) fn draw(frame: &mut Frame<'_>, body: Rect) {
    let lines = KEYS.iter().map(|(key, does)| Line::raw(format!("{key:15} {does}"))).collect();
    over(frame, body, " keys ", lines);
}
