//! A deadline of the kernel's own. The runtime's timers wake a thread that rests once for each level of their
//! wheel that a deadline comes down by, and once for each that is set; this one wakes it when it is due.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// One deadline at a time.
#[derive(Debug)]
pub struct Timer {
    file: AsyncFd<OwnedFd>,
    /// What it is set to, until it has come.
    set: Option<Instant>,
}

impl Timer {
    /// One that is not set. Call it inside the runtime.
    ///
    /// # Errors
    /// There is no descriptor for it.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let file = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // SAFETY: an `OwnedFd` is one descriptor as long as it is there, and closes it only when it is dropped,
        // which `AsyncFd` does after taking it out of the poller.
        let file = unsafe { AsyncFd::register(file) }?;
        Ok(Self { file, set: None })
    }

    /// Until then. Who stops waiting loses nothing.
    pub async fn at(&mut self, deadline: Instant) {
        if let Err(error) = self.wait(deadline).await {
            tracing::debug!("the runtime's clock in place of a timer: {error}");
            tokio::time::sleep_until(deadline.into()).await;
        }
    }

    async fn wait(&mut self, deadline: Instant) -> io::Result<()> {
        if self.set != Some(deadline) {
            let left = deadline.saturating_duration_since(Instant::now());
            // Nothing at all would stop it.
            let left = left.max(Duration::from_nanos(1));
            let it_value = Timespec::try_from(left).map_err(io::Error::other)?;
            let once = Itimerspec { it_interval: Timespec::default(), it_value };
            self.set = None;
            timerfd_settime(&self.file, TimerfdTimerFlags::empty(), &once)?;
            self.set = Some(deadline);
        }
        loop {
            let mut ready = self.file.readable().await?;
            let read = ready.try_io(|file| Ok(rustix::io::read(file, &mut [0_u8; 8])?));
            if let Ok(read) = read {
                self.set = None;
                return read.map(drop);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_timer_comes_when_it_is_due_and_not_before_also_after_somebody_stopped_waiting() {
        let mut timer = Timer::new().unwrap();
        for wait in [0, 20, 70, 1] {
            let (deadline, long) = (Duration::from_millis(wait), Duration::from_secs(60));
            let gone =
                tokio::time::timeout(Duration::from_millis(1), timer.at(Instant::now() + long));
            assert!(gone.await.is_err());
            let deadline = Instant::now() + deadline;
            // One who is not there any more when it is due.
            drop(tokio::time::timeout(Duration::from_millis(2), timer.at(deadline)).await);
            timer.at(deadline).await;
            assert!(Instant::now() >= deadline);
        }
    }
}
