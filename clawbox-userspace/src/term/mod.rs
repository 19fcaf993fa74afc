//! `clawbox term`: the daemon's sandboxes on a terminal. Messages come from the keyboard and from the
//! `feed`, the `state` takes them in, and what has changed is drawn, a few times a second at most.

pub mod cards;
pub mod draw;
pub mod events;
mod feed;
mod keys;
mod layout;
mod list;
pub mod plain;
mod screen;
pub mod state;
#[cfg(test)]
mod tests;
pub mod tree;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crossterm::event::{self, Event};

use feed::Feed;
use screen::TakenScreen;
use state::{Effect, Message, State};

/// From one picture to the next.
const FRAME: Duration = Duration::from_millis(66);

/// Nothing is to be drawn.
const LONG: Duration = Duration::from_secs(3600);

/// Inputs that are taken in before there is a picture.
const AT_ONCE: usize = 256;

/// What wakes the one who draws.
#[derive(Debug)]
pub(crate) enum Wake {
    /// Keyboard, mouse, size.
    Input(Event),
    /// The feed has something.
    Fed,
    /// There is no keyboard any more.
    Closed,
    /// A signal says to end.
    Signal(i32),
    /// A thread or a task has panicked, and the terminal was given back.
    Panicked,
}

/// Shows the daemon's sandboxes until somebody wants no more. Gives the status to exit with.
///
/// # Errors
/// The terminal cannot be used.
pub fn run(socket: PathBuf, colour: bool) -> anyhow::Result<ExitCode> {
    let (wake, woken) = channel();
    // Before the terminal is taken: a signal that comes then is not missed.
    let feed = Feed::begin(socket, wake.clone())?;
    let mut screen = TakenScreen::take(wake.clone())?;
    thread::spawn(move || read_input(&wake));
    let mut state = State::new(screen.size()?, colour);
    show(&mut screen, &mut state, &feed, &woken)
}

fn read_input(wake: &Sender<Wake>) {
    loop {
        let said = event::read().map_or(Wake::Closed, Wake::Input);
        let is_last = matches!(said, Wake::Closed);
        if wake.send(said).is_err() || is_last {
            return;
        }
    }
}

fn show(
    screen: &mut TakenScreen,
    state: &mut State,
    feed: &Feed,
    woken: &Receiver<Wake>,
) -> anyhow::Result<ExitCode> {
    let mut drawn = Instant::now();
    screen.draw(state)?;
    let (mut is_changed, mut is_fed) = (false, false);
    loop {
        let is_due = is_changed || is_fed;
        let patience = if is_due { FRAME.saturating_sub(drawn.elapsed()) } else { LONG };
        let first = match woken.recv_timeout(patience) {
            Ok(wake) => Some(wake),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(ExitCode::SUCCESS),
        };
        for wake in first.into_iter().chain(woken.try_iter().take(AT_ONCE)) {
            match wake {
                Wake::Input(input) => {
                    is_changed = true;
                    if take_in(state, feed, message(input)) {
                        return Ok(ExitCode::SUCCESS);
                    }
                }
                Wake::Fed => is_fed = true,
                Wake::Closed => return Ok(ExitCode::SUCCESS),
                // As the process would have ended itself.
                Wake::Panicked => return Ok(ExitCode::from(101)),
                // As a shell counts.
                Wake::Signal(signal) => {
                    return Ok(ExitCode::from(u8::try_from(128 + signal).unwrap_or(1)));
                }
            }
        }
        if (is_changed || is_fed) && drawn.elapsed() >= FRAME {
            // Once for a picture, however often it comes.
            if std::mem::take(&mut is_fed) {
                take_in(state, feed, feed.take());
            }
            screen.draw(state)?;
            (drawn, is_changed) = (Instant::now(), false);
        }
    }
}

/// Takes messages in, and has done what is to be done. Whether it is the end.
fn take_in(state: &mut State, feed: &Feed, messages: impl IntoIterator<Item = Message>) -> bool {
    for effect in messages.into_iter().flat_map(|message| state.update(message)).collect::<Vec<_>>()
    {
        if effect == Effect::Quit {
            return true;
        }
        feed.tell(effect);
    }
    false
}

fn message(input: Event) -> Option<Message> {
    match input {
        Event::Key(key) => Some(Message::Key(key)),
        Event::Mouse(mouse) => Some(Message::Mouse(mouse)),
        Event::Resize(width, height) => Some(Message::Resize(width, height)),
        Event::FocusGained | Event::FocusLost | Event::Paste(_) => None,
    }
}
