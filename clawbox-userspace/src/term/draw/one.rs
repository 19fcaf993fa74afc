//! One sandbox: its policy's text, the policies it has had, its processes as a tree.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;

use super::super::layout;
use super::super::list::Place;
use super::super::plain::plain;
use super::super::state::{One, Pane, State, Told};
use super::{List, Look};

pub(super) fn draw(frame: &mut Frame<'_>, state: &State, area: Rect, look: Look) {
    let one = &state.one;
    let [text, revisions, processes] = layout::one(area);
    let Some(told) = &one.told else {
        let said = match one.wanted.is_empty() {
            true => "no sandbox of yours is running".to_owned(),
            false => format!("waiting for what is told of {}", plain(&one.wanted)),
        };
        return frame.render_widget(Line::raw(said), area);
    };
    policy(frame, one, told, text, look);
    let seen = |lines: Vec<String>, place: Place, area: Rect| -> Vec<Line<'static>> {
        let height = usize::from(layout::inside(area).height);
        lines.into_iter().skip(place.top).take(height).map(Line::raw).collect()
    };
    let chosen =
        |pane: Pane, place: Place| (one.pane == pane).then(|| place.at.saturating_sub(place.top));
    let had = told.revisions.iter().map(|revision| {
        format!("{:>4}  {}  by {}", revision.number, revision.time, plain(&revision.author))
    });
    List {
        title: format!(" {} revisions ", told.revisions.len()),
        head: None,
        rows: seen(had.collect(), one.revisions, revisions),
        chosen: chosen(Pane::Revisions, one.revisions),
        is_active: one.pane == Pane::Revisions,
    }
    .draw(frame, revisions, look);
    let tree = one.tree();
    List {
        title: format!(" {} processes ", tree.len()),
        head: None,
        rows: seen(tree, one.processes, processes),
        chosen: chosen(Pane::Processes, one.processes),
        is_active: one.pane == Pane::Processes,
    }
    .draw(frame, processes, look);
}

fn policy(frame: &mut Frame<'_>, one: &One, told: &Told, area: Rect, look: Look) {
    let lines = one.lines();
    let earlier = told.revisions.get(one.revisions.at).filter(|_| one.is_earlier);
    let title = match earlier {
        Some(revision) => format!(" {}: revision {} ", plain(&told.sandbox), revision.number),
        None => format!(" {}: the policy in force ", plain(&told.sandbox)),
    };
    let height = usize::from(layout::inside(area).height);
    let rows = lines.into_iter().skip(one.text.top).take(height).map(Line::raw).collect();
    let is_active = one.pane == Pane::Text;
    List { title, head: None, rows, chosen: None, is_active }.draw(frame, area, look);
}
