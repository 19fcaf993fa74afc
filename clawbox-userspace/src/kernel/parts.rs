//! Work in parts that this thread and a second one share. Nobody waits for the second one: it may get its first
//! turn milliseconds late, behind whatever its processor is at, or lose it in the middle of a part.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::errno::Errno;

/// A part: done whole by one of them, or by both, which comes to the same.
pub(super) type Part = Arc<dyn Fn() -> Result<(), Errno> + Send + Sync>;

/// Parts of which some may be under way.
pub struct Parts(Arc<Shared>);

/// Work that is done, at some of which the second thread may still be.
#[must_use = "what it is at may have to be waited for before it is undone"]
pub struct Late(Arc<Shared>);

#[derive(Default)]
struct Shared {
    progress: Mutex<Progress>,
    none_busy: Condvar,
}

#[derive(Default)]
struct Progress {
    left: VecDeque<Part>,
    /// What the second thread is at.
    under_way: Option<Part>,
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
            let second = Arc::clone(&shared);
            let _ = thread::Builder::new().spawn(move || second.work(true));
        }
        Self(shared)
    }

    /// Does what is left, and once more what is under way.
    ///
    /// # Errors
    /// The first one of a part; those after it are not done, and nobody is at any.
    pub fn end(self) -> Result<Late, Errno> {
        self.0.work(false);
        let under_way = self.0.progress().under_way.clone();
        let again = under_way.map_or(Ok(()), |part| part());
        let failed = self.0.progress().failed.or(again.err());
        let late = Late(self.0);
        match failed {
            Some(errno) => {
                late.wait();
                Err(errno)
            }
            None => Ok(late),
        }
    }
}

impl Late {
    /// Whether the second thread has ended, or begins nothing more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.progress().under_way.is_none()
    }

    /// Waits for what the second thread is at.
    pub fn wait(self) {
        let mut progress = self.0.progress();
        while progress.under_way.is_some() {
            progress = self.0.none_busy.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Parts").field("left", &self.0.progress().left.len()).finish()
    }
}

impl fmt::Debug for Late {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Late").field("is_over", &self.is_over()).finish()
    }
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, is_second: bool) {
        let mut progress = self.progress();
        while let Some(part) = progress.left.pop_front() {
            if is_second {
                progress.under_way = Some(Arc::clone(&part));
            }
            drop(progress);
            let done = part();
            progress = self.progress();
            if is_second {
                progress.under_way = None;
            }
            if let Err(errno) = done {
                progress.failed.get_or_insert(errno);
                progress.left.clear();
            }
        }
        if is_second {
            self.none_busy.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    fn counting(done: &Arc<AtomicUsize>, outcome: Result<(), Errno>) -> Part {
        let done = Arc::clone(done);
        Arc::new(move || {
            done.fetch_add(1, Ordering::Relaxed);
            outcome
        })
    }

    #[test]
    fn each_part_is_done_before_the_end() {
        for count in [0, 1, 2, 100] {
            let done: Vec<_> = (0..count).map(|_| Arc::<AtomicUsize>::default()).collect();
            let late = Parts::begin(done.iter().map(|done| counting(done, Ok(())))).end().unwrap();
            assert!(done.iter().all(|done| done.load(Ordering::Relaxed) > 0));
            late.wait();
        }
    }

    #[test]
    fn who_is_late_with_a_part_is_not_waited_for_until_somebody_has_to() {
        let (begun, is_begun) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        let (may_go_on, is_first) = (Mutex::new(may_go_on), AtomicUsize::new(0));
        let slow: Part = Arc::new(move || {
            if is_first.fetch_add(1, Ordering::Relaxed) == 0 {
                begun.send(()).unwrap();
                may_go_on.lock().unwrap().recv().unwrap();
            }
            Ok(())
        });
        let done = Arc::default();
        let parts = Parts::begin([slow]);
        is_begun.recv().unwrap();
        parts.0.progress().left.extend((0..10).map(|_| counting(&done, Ok(()))));
        let late = parts.end().unwrap();
        assert_eq!((done.load(Ordering::Relaxed), late.is_over()), (10, false));
        go_on.send(()).unwrap();
        late.wait();
        assert_eq!(done.load(Ordering::Relaxed), 10);
    }

    #[test]
    fn nothing_is_begun_after_a_part_that_failed() {
        let shared = Shared::default();
        let done = Arc::default();
        let parts = [Ok(()), Err(Errno::E2BIG), Ok(()), Err(Errno::EPERM)];
        shared.progress().left.extend(parts.map(|outcome| counting(&done, outcome)));
        let ended = Parts(Arc::new(shared)).end();
        assert_eq!(ended.err(), Some(Errno::E2BIG));
        assert_eq!(done.load(Ordering::Relaxed), 2);
    }
}
