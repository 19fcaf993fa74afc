//! Ctrl-C and its like: what runs is ended, and the demo leaves by its usual way out, which
//! removes what it made.

use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Result, bail};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

/// Knows whether somebody wants the demo to end.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    told: AtomicBool,
    running: Mutex<Option<Running>>,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    process: Pid,
    has_terminal: bool,
}

/// While it lives, a signal to the demo ends its process too.
#[derive(Debug)]
pub struct Covered(Interrupt);

impl Interrupt {
    /// Takes over the signals. Call it before there are other threads: they inherit the mask,
    /// and a child's mask is emptied by the standard library.
    ///
    /// # Errors
    /// The mask cannot be set.
    pub fn watch() -> Result<Self> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
            signals.add(signal);
        }
        signals.thread_block()?;
        let interrupt = Self::default();
        let shared = Arc::clone(&interrupt.shared);
        thread::spawn(move || {
            while let Ok(signal) = signals.wait() {
                shared.received(signal);
            }
        });
        Ok(interrupt)
    }

    /// # Errors
    /// Somebody wants the demo to end.
    pub fn check(&self) -> Result<()> {
        if self.is_told() {
            bail!("interrupted; everything the demo made is removed");
        }
        Ok(())
    }

    /// Whether somebody wants the demo to end.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.shared.told.load(Ordering::SeqCst)
    }

    /// Ends `child` too if a signal comes. One that reads from the terminal itself gets the
    /// terminal's signals from there, and may want to go on after them.
    #[must_use]
    pub fn cover(&self, child: &Child, has_terminal: bool) -> Covered {
        let process = Pid::from_raw(child.id().cast_signed());
        *self.shared.running() = Some(Running { process, has_terminal });
        Covered(self.clone())
    }
}

impl Drop for Covered {
    fn drop(&mut self) {
        *self.0.shared.running() = None;
    }
}

impl Shared {
    fn running(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn received(&self, signal: Signal) {
        let running = self.running();
        let of_terminal = matches!(signal, Signal::SIGINT | Signal::SIGQUIT);
        if running.is_some_and(|running| running.has_terminal && of_terminal) {
            return;
        }
        self.told.store(true, Ordering::SeqCst);
        if let Some(running) = *running {
            // Nothing is lost where it has just ended by itself: it has not been waited for.
            let _ = kill(running.process, Signal::SIGTERM);
        }
    }
}
