//! Work in parts that this thread and a second one share. Who begins late finds nothing left and is not waited
//! for: a new thread may get its first turn milliseconds later, behind whatever its processor is at.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::errno::Errno;

/// A part: done whole by one of them.
pub(super) type Part = Box<dyn FnOnce() -> Result<(), Errno> + Send>;

/// Parts of which some may be under way.
pub struct Parts(Arc<Shared>);

#[derive(Default)]
struct Shared {
    progress: Mutex<Progress>,
    none_busy: Condvar,
}

#[derive(Default)]
struct Progress {
    left: VecDeque<Part>,
    /// Parts that are being done.
    busy: usize,
    failed: Option<Errno>,
}

impl Parts {
    /// Has a second thread begin. Where there can be none, [`Parts::end`] does all of it.
    pub(super) fn begin(parts: impl IntoIterator<Item = Part>) -> Self {
        let left: VecDeque<Part> = parts.into_iter().collect();
        let is_empty = left.is_empty();
        let progress = Mutex::new(Progress { left, ..Progress::default() });
        let shared = Arc::new(Shared { progress, ..Shared::default() });
        if !is_empty {
            let theirs = Arc::clone(&shared);
            let _ = thread::Builder::new().spawn(move || theirs.work());
        }
        Self(shared)
    }

    /// Does what is left, and waits for what is under way.
    ///
    /// # Errors
    /// The first one of a part; those after it are not done.
    pub fn end(self) -> Result<(), Errno> {
        self.0.work();
        let mut progress = self.0.progress();
        while progress.busy > 0 {
            progress = self.0.none_busy.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        progress.failed.map_or(Ok(()), Err)
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Parts").field("left", &self.0.progress().left.len()).finish()
    }
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut progress = self.progress();
        while let Some(part) = progress.left.pop_front() {
            progress.busy += 1;
            drop(progress);
            let done = part();
            progress = self.progress();
            progress.busy -= 1;
            if let Err(errno) = done {
                progress.failed.get_or_insert(errno);
                progress.left.clear();
            }
        }
        if progress.busy == 0 {
            self.none_busy.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn each_part_is_done_once_before_the_end() {
        for count in [0, 1, 2, 100] {
            let done = Arc::new(AtomicUsize::new(0));
            let parts = (0..count).map(|_| {
                let done = Arc::clone(&done);
                Box::new(move || {
                    done.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                }) as Part
            });
            Parts::begin(parts).end().unwrap();
            assert_eq!(done.load(Ordering::Relaxed), count);
        }
    }

    #[test]
    fn what_the_second_thread_has_begun_is_waited_for() {
        let (begun, is_begun) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        let done = Arc::new(AtomicUsize::new(0));
        let slow = {
            let done = Arc::clone(&done);
            Box::new(move || {
                begun.send(()).unwrap();
                may_go_on.recv().unwrap();
                done.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }) as Part
        };
        let parts = Parts::begin([slow]);
        is_begun.recv().unwrap();
        let ended = thread::spawn({
            let done = Arc::clone(&done);
            move || parts.end().map(|()| done.load(Ordering::Relaxed))
        });
        go_on.send(()).unwrap();
        assert_eq!(ended.join().unwrap(), Ok(1));
    }

    #[test]
    fn nothing_is_begun_after_a_part_that_failed() {
        let shared = Shared::default();
        let parts = [Ok(()), Err(Errno::E2BIG), Ok(()), Err(Errno::EPERM)];
        let done = Arc::new(AtomicUsize::new(0));
        shared.progress().left.extend(parts.map(|outcome| {
            let done = Arc::clone(&done);
            Box::new(move || {
                done.fetch_add(1, Ordering::Relaxed);
                outcome
            }) as Part
        }));
        let parts = Parts(Arc::new(shared));
        assert_eq!(parts.end(), Err(Errno::E2BIG));
        assert_eq!(done.load(Ordering::Relaxed), 2);
    }
}
