//! Threads that apply a backup's slow changes, so that the stream's reader goes on reading.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use tracing::error;

/// Slow changes applied at once: fsyncs of several files that come together share one commit of the
/// disk's journal, if they are there to share it.
const LANES: usize = 16;

/// One slow piece of work.
pub type Job = Box<dyn FnOnce() + Send>;

/// A small pool. Its queue is bounded by the primary's window of unanswered changes.
pub struct Lanes {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    jobs: Mutex<(VecDeque<Job>, bool)>,
    woken: Condvar,
}

impl Lanes {
    /// Starts the threads.
    pub fn start(volume: &str) -> Self {
        let shared = Arc::new(Shared::default());
        for number in 0..LANES {
            let shared = Arc::clone(&shared);
            let spawned = std::thread::Builder::new()
                .name(format!("lane{number}-{volume}"))
                .spawn(move || shared.work())
                .map(drop);
            if let Err(error) = spawned {
                error!(%error, "no thread for a lane");
            }
        }
        Lanes { shared }
    }

    /// Queues a job.
    pub fn run(&self, job: Job) {
        self.shared
            .jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .push_back(job);
        self.shared.woken.notify_one();
    }

    /// Ends the threads once the queue is empty.
    pub fn stop(&self) {
        self.shared
            .jobs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .1 = true;
        self.shared.woken.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        loop {
            let job = {
                let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
                loop {
                    if let Some(job) = jobs.0.pop_front() {
                        break job;
                    }
                    if jobs.1 {
                        return;
                    }
                    jobs = self
                        .woken
                        .wait(jobs)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            };
            job();
        }
    }
}
