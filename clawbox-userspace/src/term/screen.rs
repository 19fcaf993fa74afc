//! The terminal: taken for a while, and given back however that ends.

use std::io::{self, Stdout, StdoutLock, stdout};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use crossterm::cursor::Show;
use crossterm::event::{DisableMouseCapture, EnableMouseCapture};
use crossterm::terminal::{
    BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
    disable_raw_mode, enable_raw_mode,
};
use crossterm::{execute, queue};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;

use super::Wake;
use super::draw;
use super::plain;
use super::state::State;

/// Whether it has to be given back.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal, until this is dropped.
pub struct TakenScreen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl TakenScreen {
    /// Takes it. A panic in any thread gives it back before it says what it has to say, and then ends who
    /// draws: a task's own would not.
    ///
    /// # Errors
    /// The terminal cannot be set.
    pub(crate) fn take(wake: Sender<Wake>) -> io::Result<Self> {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| {
            give_back();
            before(panicked);
            // Where nobody draws any more, nobody has to be told.
            let _ = wake.send(Wake::Panicked);
        }));
        let _alone = alone();
        TAKEN.store(true, Ordering::SeqCst);
        let terminal = enable_raw_mode()
            .and_then(|()| execute!(stdout(), EnterAlternateScreen, EnableMouseCapture))
            .and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        terminal.map(|terminal| Self { terminal }).inspect_err(|_| give_back())
    }

    /// Draws what has changed, as one change where the terminal knows such; nothing once it was given back.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn draw(&mut self, state: &State) -> io::Result<()> {
        let _alone = alone();
        if !TAKEN.load(Ordering::SeqCst) {
            return Ok(());
        }
        queue!(stdout(), BeginSynchronizedUpdate)?;
        self.terminal.draw(|frame| {
            draw::draw(frame, state);
            plain::clear(frame.buffer_mut());
        })?;
        execute!(stdout(), EndSynchronizedUpdate)
    }

    /// Its columns and rows.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn size(&self) -> io::Result<(u16, u16)> {
        self.terminal.size().map(|size| (size.width, size.height))
    }
}

impl Drop for TakenScreen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Whether it is taken and what is on it change together: else a picture that is begun before another thread
/// gives the terminal back is drawn over what was there. The thread that has it may take it once more, as one
/// that panics while it draws does.
fn alone() -> StdoutLock<'static> {
    stdout().lock()
}

/// Gives the terminal back, if it was taken; once.
pub fn give_back() {
    let _alone = alone();
    if TAKEN.swap(false, Ordering::SeqCst) {
        // There is nobody to tell that this fails.
        let _ = execute!(
            stdout(),
            EndSynchronizedUpdate,
            DisableMouseCapture,
            LeaveAlternateScreen,
            Show
        );
        let _ = disable_raw_mode();
    }
}

#[cfg(test)]
#[path = "screen_tests.rs"]
mod tests;
