//! Colour for people: on a terminal, unless `NO_COLOR` (no-color.org) says otherwise.

use std::fmt::Display;
use std::io::IsTerminal;

/// Whether `NO_COLOR` says that there is to be none.
pub(super) fn refuses_colour() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Whether and how to colour what goes to one stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    colour: bool,
}

impl Style {
    /// For a stream.
    pub(super) fn of(stream: &impl IsTerminal) -> Self {
        Self { colour: stream.is_terminal() && !refuses_colour() }
    }

    fn paint(self, code: u8, text: impl Display) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    pub(super) fn good(self, text: impl Display) -> String {
        self.paint(32, text)
    }

    pub(super) fn bad(self, text: impl Display) -> String {
        self.paint(31, text)
    }

    pub(super) fn doubtful(self, text: impl Display) -> String {
        self.paint(33, text)
    }

    pub(super) fn aside(self, text: impl Display) -> String {
        self.paint(2, text)
    }

    pub(super) fn strong(self, text: impl Display) -> String {
        self.paint(1, text)
    }
}
