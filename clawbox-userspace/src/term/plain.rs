//! Texts that a sandbox has a say in, made harmless: what a terminal would act on, or what would show a
//! text otherwise than it is, is spelt out.

use ratatui::buffer::Buffer;

/// Characters of a text that are shown: what is longer is no name that anybody reads.
const LONGEST: usize = 4096;

/// Whether a character is more, or less, than a sign on the screen: control characters, marks that turn the
/// direction of a text, and those without width.
#[must_use]
pub fn is_unfit(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// The text on one line, with those spelt out.
#[must_use]
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(LONGEST));
    for character in text.chars().take(LONGEST) {
        match character {
            _ if !is_unfit(character) => out.push(character),
            _ => out.extend(character.escape_default()),
        }
    }
    out
}

/// Lines of a text.
#[must_use]
pub fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| plain(&line.replace('\t', "    "))).collect()
}

/// The last look at what is to be drawn: whatever came here all the same becomes a sign.
pub fn clear(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        if cell.symbol().chars().any(is_unfit) {
            cell.set_symbol("?");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_or_shows_otherwise_is_spelt_out() {
        assert_eq!(plain("/a\x1b[2J\nb\u{9b}"), r"/a\u{1b}[2J\nb\u{9b}");
        assert_eq!(plain("api\u{202e}moc.live"), r"api\u{202e}moc.live");
        assert_eq!(plain("gith\u{200b}ub.com é 漢"), r"gith\u{200b}ub.com é 漢");
        assert_eq!(lines("a\n\tb\r\n"), ["a", "    b"]);
        assert_eq!(plain(&"x".repeat(9_999)).len(), LONGEST);
    }
}
