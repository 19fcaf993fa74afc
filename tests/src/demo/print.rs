//! What a person sees: the policy, a line that shows progress, and one table.
//! Colour on a terminal, unless `NO_COLOR` (no-color.org) says otherwise.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use terminal_size::{Width, terminal_size_of};

/// Where there is no terminal nothing is cut off.
const UNBOUNDED: usize = 400;
/// As much of the first column must be seen before another is folded away.
const ROOM: usize = 44;
/// As much of it is always shown.
const LEAST: usize = 20;

/// Whether and how to colour, and how wide.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    colour: bool,
    width: usize,
}

/// How a table's cell looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// As it is.
    Plain,
    /// As it should be.
    Good,
    /// Not as it should be.
    Bad,
    /// Less important.
    Aside,
    /// A heading.
    Strong,
}

/// A cell of a table.
#[derive(Clone, Debug)]
pub struct Cell {
    /// What it says.
    pub text: String,
    /// How it looks.
    pub look: Look,
}

/// A row, and a line that belongs to it.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// One for each column.
    pub cells: Vec<Cell>,
    /// Below the row, indented.
    pub notes: Vec<Cell>,
}

impl Cell {
    /// A cell.
    pub fn new(text: impl Into<String>, look: Look) -> Self {
        Self { text: text.into(), look }
    }
}

impl Style {
    /// For standard output.
    #[must_use]
    pub fn of_output() -> Self {
        let out = io::stdout();
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colour = out.is_terminal() && !refused;
        let width = terminal_size_of(&out).map(|(Width(width), _)| usize::from(width));
        // A terminal that does not know its width says zero.
        Self { colour, width: width.filter(|width| *width >= 40).unwrap_or(UNBOUNDED) }
    }

    /// Text with a look.
    #[must_use]
    pub fn paint(self, look: Look, text: impl Display) -> String {
        let code = match look {
            Look::Plain => return text.to_string(),
            Look::Good => 32,
            Look::Bad => 31,
            Look::Aside => 2,
            Look::Strong => 1,
        };
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    /// A table whose last column becomes a note of each row where the terminal is too narrow. The
    /// first row is the heading.
    #[must_use]
    pub fn foldable_table(self, rows: &[Row]) -> String {
        let needed = |rows: &[Row]| {
            let widths = widths(rows);
            let others: usize = widths.iter().skip(1).map(|width| width + 2).sum();
            others + widths.first().copied().unwrap_or_default().min(ROOM)
        };
        if needed(rows) <= self.width {
            return self.table(rows);
        }
        self.table(&folded(rows))
    }

    /// Lays rows out in columns. The first gives way where the terminal is too narrow.
    #[must_use]
    pub fn table(self, rows: &[Row]) -> String {
        let mut widths = widths(rows);
        let others: usize = widths.iter().skip(1).map(|width| width + 2).sum();
        if let Some(first) = widths.first_mut() {
            *first = (*first).min(self.width.saturating_sub(others).max(LEAST));
        }
        let mut text = String::new();
        for row in rows {
            let mut line = String::new();
            for (cell, &width) in row.cells.iter().zip(&widths) {
                let shown = cut(&cell.text, width);
                let padding = " ".repeat(width - length(&shown) + 2);
                line.push_str(&self.paint(cell.look, shown));
                line.push_str(&padding);
            }
            text.push_str(line.trim_end());
            text.push('\n');
            for note in &row.notes {
                let shown = cut(&note.text, self.width.saturating_sub(6));
                text.push_str("      ");
                text.push_str(&self.paint(note.look, shown));
                text.push('\n');
            }
        }
        text
    }
}

/// What is being done, where somebody watches: overwritten by what comes next.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    width: usize,
}

impl Progress {
    /// For standard error.
    #[must_use]
    pub fn start() -> Self {
        let error = io::stderr();
        let width = terminal_size_of(&error).map_or(80, |(Width(width), _)| usize::from(width));
        Self { shown: error.is_terminal(), width }
    }

    /// Says what is being done now.
    pub fn say(&self, text: impl Display) {
        if self.shown {
            let text = cut(&text.to_string(), self.width.saturating_sub(1));
            let mut error = io::stderr().lock();
            let _ = write!(error, "\r\x1b[K{text}").and_then(|()| error.flush());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.say("");
    }
}

fn widths(rows: &[Row]) -> Vec<usize> {
    let columns = rows.iter().map(|row| row.cells.len()).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.cells.get(column));
        cells.map(|cell| length(&cell.text)).max().unwrap_or_default()
    };
    (0..columns).map(width).collect()
}

/// The last column as a note of each row but the heading.
fn folded(rows: &[Row]) -> Vec<Row> {
    let mut rows = rows.to_vec();
    let mut title = None;
    for row in &mut rows {
        let Some(last) = row.cells.pop() else {
            continue;
        };
        match &title {
            None => title = Some(last.text),
            Some(title) => {
                let text = format!("{title}: {}", last.text);
                row.notes.insert(0, Cell::new(text, last.look));
            }
        }
    }
    rows
}

/// Every character here is one column wide.
fn length(text: &str) -> usize {
    text.chars().count()
}

fn cut(text: &str, width: usize) -> String {
    if length(text) <= width {
        return text.to_owned();
    }
    let mut shown: String = text.chars().take(width.saturating_sub(1)).collect();
    shown.push('…');
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str], note: &str) -> Row {
        let cells = cells.iter().map(|text| Cell::new(*text, Look::Plain)).collect();
        Row { cells, notes: vec![Cell::new(note, Look::Aside)] }
    }

    #[test]
    fn the_first_column_gives_way_and_notes_keep_to_the_width() {
        let style = Style { colour: false, width: 40 };
        let rows = [
            row(&["an attempt with a very long description", "200", "200"], "short"),
            row(&["short", "no such name", "200"], &"n".repeat(80)),
        ];
        let text = style.foldable_table(&rows);
        assert!(text.lines().all(|line| length(line) <= 40), "{text}");
        assert!(text.starts_with("an attempt with a very lo…  200\n"), "{text}");
        assert!(text.contains("\n      200: 200\n"), "{text}");
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn colour_does_not_shift_columns() {
        let style = Style { colour: true, width: 100 };
        let cells = |look| vec![Cell::new("a", look), Cell::new("b", Look::Plain)];
        let rows = [Row { cells: cells(Look::Good), notes: vec![] }];
        assert_eq!(style.table(&rows), "\x1b[32ma\x1b[0m  b\n");
    }
}
