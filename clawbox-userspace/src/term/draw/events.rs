//! What happens, a line each.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::super::events::{Event, KEPT};
use super::super::layout;
use super::super::plain::plain;
use super::super::state::State;
use super::{List, Look, sign};

pub(super) fn draw(frame: &mut Frame<'_>, state: &State, area: Rect, look: Look) {
    let events = &state.events;
    let shown = events.shown();
    let height = usize::from(layout::rows(area).height);
    let seen = shown.iter().skip(events.place.top).take(height);
    let rows = seen.map(|event| line(event, look)).collect();
    let mut title = format!(" {} of {} events", shown.len(), events.len());
    if events.len() >= KEPT {
        title.push_str(&format!(" (the last {KEPT} are kept)"));
    }
    title.push_str(if events.follow { ", following" } else { ", standing still: f follows" });
    if events.skipped > 0 {
        title.push_str(&format!(", {} skipped: more came than can be shown", events.skipped));
    }
    if state.not_followed > 0 {
        title.push_str(&format!(", {} sandboxes left out", state.not_followed));
    }
    let filter = match (events.typing, events.filter.is_empty()) {
        (true, _) => format!("/{}_", plain(&events.filter)),
        (false, false) => format!("filter: {}", plain(&events.filter)),
        (false, true) => "+ allowed  x denied  ~ would be denied  ? waits".to_owned(),
    };
    List {
        title: format!("{title} "),
        head: Some(filter),
        rows,
        chosen: (!shown.is_empty()).then(|| events.place.at.saturating_sub(events.place.top)),
        is_active: true,
    }
    .draw(frame, area, look);
}

fn line<'a>(event: &'a Event, look: Look) -> Line<'a> {
    let sandbox: String = event.sandbox.chars().take(20).collect();
    Line::from(vec![
        Span::styled(format!("{} ", sign(event.kind)), look.kind(event.kind)),
        Span::raw(format!("{sandbox:12} ")),
        Span::styled(event.line.as_str(), look.kind(event.kind)),
    ])
}
