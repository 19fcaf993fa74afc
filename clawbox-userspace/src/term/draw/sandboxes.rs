//! All sandboxes, a row each.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::super::events::Kind;
use super::super::layout;
use super::super::state::{Row, State};
use super::{List, Look};

pub(super) fn draw(frame: &mut Frame<'_>, state: &State, area: Rect, look: Look) {
    let all = &state.sandboxes;
    let width = all.iter().map(|row| row.id.chars().count()).max().unwrap_or(0).clamp(7, 32);
    let height = usize::from(layout::rows(area).height);
    let seen = all.iter().skip(state.place.top).take(height);
    let rows = seen.map(|row| line(state, row, width, look)).collect();
    let head = format!(
        "{:width$}  {:>9}  {:>9}  {:>8}  {:>5}  {:>4}  {:>8}  {:7}  POLICY",
        "SANDBOX", "+ALLOW/s", "xDENY/s", "DENIED", "PROCS", "HELD", "REVISION", "MODE"
    );
    let empty = all.is_empty().then(|| "no sandbox of yours is running".to_owned());
    List {
        title: format!(" {} sandboxes ", all.len()),
        head: Some(empty.unwrap_or(head)),
        rows,
        chosen: (!all.is_empty()).then(|| state.place.at - state.place.top.min(state.place.at)),
        is_active: true,
    }
    .draw(frame, area, look);
}

fn line<'a>(state: &State, row: &'a Row, width: usize, look: Look) -> Line<'a> {
    let (allowed, denied) = state.rates(&row.id);
    let processes = row.processes.map_or_else(|| "?".to_owned(), |count| count.to_string());
    let of = |kind: Kind, is_any: bool| if is_any { look.kind(kind) } else { Style::new() };
    let held = match row.waiting {
        0 => format!("{:>4}", 0),
        waiting => format!("{:>4}", format!("?{waiting}")),
    };
    let revision = match row.is_under_global {
        true => "host's".to_owned(),
        false => row.revision.to_string(),
    };
    let mode = if row.audit_only { "audit" } else { "enforce" };
    let id: String = row.id.chars().take(width).collect();
    Line::from(vec![
        Span::raw(format!("{id:width$}  ")),
        Span::styled(format!("{:>9}  ", rate(allowed)), of(Kind::Allowed, allowed > 0.0)),
        Span::styled(format!("{:>9}  ", rate(denied)), of(Kind::Denied, denied > 0.0)),
        Span::raw(format!("{:>8}  {processes:>5}  ", row.denied)),
        Span::styled(held, of(Kind::Waits, row.waiting > 0)),
        Span::raw(format!("  {revision:>8}  {mode:7}  {} ({})", row.policy, row.owner)),
    ])
}

fn rate(rate: f64) -> String {
    if rate == 0.0 || rate >= 10.0 { format!("{rate:.0}") } else { format!("{rate:.1}") }
}
