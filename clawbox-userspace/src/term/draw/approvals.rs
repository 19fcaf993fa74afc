//! Approval cards: a row each, and all of the one that is chosen.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Wrap};

use super::super::cards::Card;
use super::super::events::Kind;
use super::super::layout;
use super::super::plain::plain;
use super::super::state::State;
use super::{List, Look, over, sign};

pub(super) fn draw(frame: &mut Frame<'_>, state: &State, area: Rect, look: Look) {
    let [list, below] = layout::approvals(area);
    let (shown, place) = (state.cards.shown(), state.cards.place);
    let height = usize::from(layout::rows(list).height);
    let rows = shown.iter().skip(place.top).take(height).map(|card| row(card, look)).collect();
    let head = format!("  {:12}  {:28}  {:24}  HOW OFTEN", "SANDBOX", "TO", "PROGRAM");
    let nothing = "nothing waits, and nothing that a rule could allow was denied".to_owned();
    List {
        title: format!(" {} waiting, {} in all ", state.cards.waiting(), shown.len()),
        head: Some(if shown.is_empty() { nothing } else { head }),
        rows,
        chosen: (!shown.is_empty()).then(|| place.at.saturating_sub(place.top)),
        is_active: true,
    }
    .draw(frame, list, look);
    if let Some(card) = state.cards.chosen() {
        let block = Block::bordered().title(" card ").border_style(look.strong());
        let text = Paragraph::new(whole(card, look)).wrap(Wrap { trim: false });
        frame.render_widget(text.block(block), below);
    }
    if let Some((_, ways, at)) = &state.ways {
        let lines = ways.iter().enumerate().map(|(number, way)| {
            let style = if number == *at { look.chosen() } else { Default::default() };
            Line::styled(format!("{} {}", number + 1, way.text), style)
        });
        let mut lines: Vec<Line<'_>> = lines.collect();
        if let Some(way) = ways.get(*at).filter(|way| !way.rule.is_empty()) {
            lines.push(Line::raw(""));
            lines.extend(way.rule.lines().map(|line| Line::styled(plain(line), look.aside())));
        }
        over(frame, area, " how narrowly? Enter approves, Esc does not ", lines);
    }
}

fn state_of(card: &Card) -> (Kind, String) {
    match card.held.first() {
        Some(first) => {
            (Kind::Waits, format!("{} waiting, {}s left", card.held.len(), first.seconds_left))
        }
        None => (Kind::Denied, times(card.denied)),
    }
}

fn times(count: u64) -> String {
    if count == 1 { "denied once".to_owned() } else { format!("denied {count} times") }
}

fn row(card: &Card, look: Look) -> Line<'static> {
    let (kind, often) = state_of(card);
    let program = card.program();
    let program = program.rsplit('/').next().unwrap_or_default();
    let cut = |text: &str, most: usize| text.chars().take(most).collect::<String>();
    Line::from(vec![
        Span::styled(format!("{} ", sign(kind)), look.kind(kind)),
        Span::raw(format!("{:12}  ", cut(&plain(&card.key.sandbox), 12))),
        Span::styled(format!("{:28}  ", cut(&card.endpoint(), 28)), look.kind(kind)),
        Span::raw(format!("{:24}  {often}", cut(program, 24))),
    ])
}

fn whole(card: &Card, look: Look) -> Vec<Line<'static>> {
    let named = |name: &str, text: String| {
        Line::from(vec![Span::styled(format!("{name:10} "), look.strong()), Span::raw(text)])
    };
    let (kind, often) = state_of(card);
    let mut lines = vec![
        named("who", format!("{} in {}", card.program(), plain(&card.key.sandbox))),
        named("what", format!("connect to {}", card.endpoint())),
    ];
    lines.extend(card.ip.map(|ip| named("where", ip.to_string())));
    let mut told = format!("{} {often}", sign(kind));
    if !card.held.is_empty() && card.denied > 0 {
        told.push_str(&format!(", {}", times(card.denied)));
    }
    if !card.last.is_empty() {
        told.push_str(&format!(", last {}", plain(card.last.get(..19).unwrap_or(&card.last))));
    }
    lines.push(named("how often", told));
    let says = card.advice.as_ref().map(|advice| advice.says.clone());
    for (at, said) in says.unwrap_or_else(|| vec!["…".to_owned()]).into_iter().enumerate() {
        lines.push(named(if at == 0 { "policy" } else { "" }, said));
    }
    for (at, risk) in card.risks().into_iter().enumerate() {
        let line = named(if at == 0 { "risks" } else { "" }, format!("! {risk}"));
        lines.push(line.style(look.kind(Kind::Denied)));
    }
    if let Some(rule) = card.entry(false) {
        for (at, line) in rule.lines().enumerate() {
            lines.push(named(if at == 0 { "rule" } else { "" }, plain(line)).style(look.aside()));
        }
    }
    lines
}
