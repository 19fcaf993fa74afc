//! Draws the state: no screen knows another, and none keeps anything.

mod approvals;
mod events;
mod help;
mod one;
mod sandboxes;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph};

use super::events::Kind;
use super::layout;
use super::state::{Screen, State};

/// How things look. Nothing is told by colour alone: where there is one, there is a sign and a word too.
#[derive(Clone, Copy)]
struct Look {
    colour: bool,
}

impl Look {
    fn colour(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    fn aside(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    fn chosen(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// Blue, yellow and magenta are told apart by those who do not see red and green as two.
    fn kind(self, kind: Kind) -> Style {
        match kind {
            Kind::Allowed => self.colour(Color::Cyan),
            Kind::Denied => self.colour(Color::Yellow).add_modifier(Modifier::BOLD),
            Kind::Would => self.colour(Color::Yellow),
            Kind::Waits => self.colour(Color::Magenta).add_modifier(Modifier::BOLD),
            Kind::Other => self.aside(),
        }
    }
}

/// The sign of each kind.
const fn sign(kind: Kind) -> &'static str {
    match kind {
        Kind::Allowed => "+",
        Kind::Denied => "x",
        Kind::Would => "~",
        Kind::Waits => "?",
        Kind::Other => " ",
    }
}

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, state: &State) {
    let look = Look { colour: state.colour };
    let areas = layout::areas(state.size).within(frame.area());
    tabs(frame, state, areas.tabs, look);
    match state.screen {
        Screen::Sandboxes => sandboxes::draw(frame, state, areas.body, look),
        Screen::Events => events::draw(frame, state, areas.body, look),
        Screen::One => one::draw(frame, state, areas.body, look),
        Screen::Approvals => approvals::draw(frame, state, areas.body, look),
    }
    foot(frame, state, areas.foot, look);
    if state.help {
        help::draw(frame, areas.body);
    }
}

fn tabs(frame: &mut Frame<'_>, state: &State, area: Rect, look: Look) {
    let mut spans: Vec<Span<'_>> = layout::tabs(state)
        .into_iter()
        .map(|(screen, text, ..)| {
            let style = if screen == state.screen { look.chosen() } else { Style::new() };
            Span::styled(text, style)
        })
        .collect();
    let waiting = state.cards.waiting();
    if waiting > 0 {
        let text = format!("  ? {waiting} waiting for an answer");
        spans.push(Span::styled(text, look.kind(Kind::Waits)));
    }
    frame.render_widget(Line::from(spans), area);
}

fn foot(frame: &mut Frame<'_>, state: &State, area: Rect, look: Look) {
    let said = match &state.trouble {
        Some(why) => Line::styled(format!("! {why}"), look.kind(Kind::Denied)),
        None => Line::raw(state.notice.clone()),
    };
    let keys = match state.screen {
        Screen::Sandboxes => "Enter look at it  e its events",
        Screen::Events if state.events.typing => "Enter keep it  Esc no filter",
        Screen::Events => "/ filter  f follow  Esc no filter",
        Screen::One => "←→ part  Enter that revision  Esc back",
        Screen::Approvals => "a once  s session  p to policy  n narrower  d deny  u undo",
    };
    let keys = Line::styled(format!("{keys}  ? help  q quit"), look.aside());
    frame.render_widget(Paragraph::new(vec![said, keys]), area);
}

/// A list in a frame: the line that names the columns, then the rows from `top` on, one of them chosen.
struct List<'a> {
    title: String,
    head: Option<String>,
    rows: Vec<Line<'a>>,
    chosen: Option<usize>,
    is_active: bool,
}

impl List<'_> {
    fn draw(self, frame: &mut Frame<'_>, area: Rect, look: Look) {
        let edge = if self.is_active { look.strong() } else { look.aside() };
        frame.render_widget(Block::bordered().title(self.title).border_style(edge), area);
        let inside = layout::inside(area);
        let mut lines = Vec::new();
        lines.extend(self.head.map(|head| Line::styled(head, look.strong())));
        for (at, row) in self.rows.into_iter().enumerate() {
            let row = if Some(at) == self.chosen { row.style(look.chosen()) } else { row };
            lines.push(row);
        }
        frame.render_widget(Paragraph::new(lines), inside);
    }
}

/// A frame over what is there.
fn over(frame: &mut Frame<'_>, body: Rect, title: &str, lines: Vec<Line<'_>>) {
    let wide = lines.iter().map(Line::width).max().unwrap_or(0);
    let width = u16::try_from(wide + 4).unwrap_or(u16::MAX).min(body.width);
    let height = u16::try_from(lines.len() + 2).unwrap_or(u16::MAX).min(body.height);
    let (x, y) = (body.x + (body.width - width) / 2, body.y + (body.height - height) / 2);
    let area = Rect { x, y, width, height };
    frame.render_widget(Clear, area);
    let block = Block::bordered().title(title.to_owned());
    frame.render_widget(Paragraph::new(lines).block(block), area);
}
