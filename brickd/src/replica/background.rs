//! Work on a thread of its own. A host may have no thread to give for a moment; what the core has
//! ordered must happen all the same, or a stream, an epoch or a takeover would wait for ever.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Replica;

type Does<With> = Box<dyn FnOnce(&With) + Send>;
type Work = Does<Arc<Replica>>;

/// Work that waits for a thread. Bounded by what the core orders at a time: one stream and one heal
/// a copy, one of each other kind.
#[derive(Default)]
pub struct Postponed(Mutex<Vec<(String, Work)>>);

impl Postponed {
    fn lock(&self) -> MutexGuard<'_, Vec<(String, Work)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Replica {
    /// Does it on a thread of this name; later, if none can be started now.
    pub(super) fn in_background(
        self: &Arc<Self>,
        name: &str,
        work: impl FnOnce(&Arc<Replica>) + Send + 'static,
    ) {
        if let Some(error) = self.begin(name.to_owned(), Box::new(work)) {
            // Of the host, and over when it has threads again: no reason to put this copy out.
            tracing::warn!(%error, name, "no thread could be started; it is tried again");
        }
    }

    /// Tries again what no thread could be started for.
    pub(super) fn begin_postponed(self: &Arc<Self>) {
        for (name, work) in std::mem::take(&mut *self.postponed.lock()) {
            self.begin(name, work);
        }
    }

    /// The error, if it is postponed.
    fn begin(self: &Arc<Self>, name: String, work: Work) -> Option<io::Error> {
        let replica = Arc::clone(self);
        let spawn = |body: Box<dyn FnOnce() + Send>| {
            let builder = std::thread::Builder::new().name(name.clone());
            builder.spawn(body).map(drop)
        };
        let (error, work) = hand_over(spawn, work, replica).err()?;
        self.postponed.lock().push((name, work));
        Some(error)
    }
}

/// Gives the work to a thread, or back when there is none.
fn hand_over<With: Send + 'static>(
    spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> io::Result<()>,
    work: Does<With>,
    with: With,
) -> Result<(), (io::Error, Does<With>)> {
    // A closure that is not started is dropped with all it holds, so it holds a share of the work.
    let shared = Arc::new(Mutex::new(Some(work)));
    let taken = Arc::clone(&shared);
    let take = move |from: &Mutex<Option<_>>| {
        let mut work = from.lock().unwrap_or_else(PoisonError::into_inner);
        work.take()
    };
    let body = move || {
        if let Some(work) = take(&taken) {
            work(&with);
        }
    };
    let Err(error) = spawn(Box::new(body)) else {
        return Ok(());
    };
    match take(&shared) {
        Some(work) => Err((error, work)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn work_that_gets_no_thread_is_given_back_and_done_once() {
        let done = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&done);
        let work = Box::new(move |by: &u32| {
            counted.fetch_add(*by, Ordering::Relaxed);
        });
        let none = |_| Err(io::Error::from(io::ErrorKind::WouldBlock));
        let Err((_, work)) = hand_over(none, work, 1) else {
            panic!("it was started");
        };
        assert_eq!(done.load(Ordering::Relaxed), 0);
        let at_once = |body: Box<dyn FnOnce() + Send>| {
            body();
            Ok(())
        };
        assert!(hand_over(at_once, work, 3).is_ok());
        assert_eq!(done.load(Ordering::Relaxed), 3);
    }
}
