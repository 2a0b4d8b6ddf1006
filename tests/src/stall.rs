//! How long I/O stands still: a thread that works on a mount in a loop and takes the time.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cluster::wait_until;
use crate::report;

/// Files the loop goes round over: each round rewrites one, so nothing grows.
const FILES: u64 = 16;
/// Errors kept; one is enough to fail.
const ERRORS_MAX: usize = 5;
/// A stall longer than any promise; then the meter's owner gives up waiting.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A running measurement. Each step makes a file, writes and reads it back, renames and removes.
pub struct StallMeter {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: JoinHandle<Stalls>,
}

/// What was seen.
#[derive(Debug)]
pub struct Stalls {
    /// The longest time one operation took.
    pub longest: Duration,
    /// What that operation was.
    pub longest_what: &'static str,
    /// Operations done.
    pub operations: u64,
    /// Errors that reached the application, and reads that lied.
    pub errors: Vec<String>,
}

impl StallMeter {
    /// Starts it in a folder of its own below `mount`.
    ///
    /// # Panics
    /// When the folder cannot be made.
    #[track_caller]
    pub fn start(mount: &Path) -> Self {
        let folder = mount.join("stall-meter");
        fs::create_dir(&folder).expect("the meter's folder");
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let work = Work {
            folder,
            stop: Arc::clone(&stop),
            done: Arc::clone(&done),
            seen: Stalls {
                longest: Duration::ZERO,
                longest_what: "nothing",
                operations: 0,
                errors: Vec::new(),
            },
        };
        let thread = std::thread::spawn(move || work.until_stopped());
        let meter = StallMeter { stop, done, thread };
        meter.wait_for_progress();
        meter
    }

    /// Waits until I/O goes on: some operations that began after this call have ended.
    ///
    /// # Panics
    /// When nothing has gone on within a minute.
    #[track_caller]
    pub fn wait_for_progress(&self) {
        let before = self.done.load(Ordering::Relaxed);
        wait_until(WAIT_MAX, "I/O goes on", || {
            self.done.load(Ordering::Relaxed) > before + 2 * FILES || self.thread.is_finished()
        });
    }

    /// Ends it.
    ///
    /// # Panics
    /// When the loop itself has panicked.
    pub fn stop(self) -> Stalls {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Stalls {
    /// Prints what was measured and asserts that it was below `limit`, without any error.
    #[track_caller]
    pub fn assert_below(&self, limit: Duration, what: &str) {
        report::say(&format!(
            "{what}: longest pause {} ms (a {}), limit {} ms, {} operations",
            self.longest.as_millis(),
            self.longest_what,
            limit.as_millis(),
            self.operations
        ));
        assert!(
            self.errors.is_empty(),
            "{what}: an application saw {:#?}",
            self.errors
        );
        assert!(
            self.longest < limit,
            "{what}: I/O stood still for {:?}",
            self.longest
        );
    }
}

struct Work {
    folder: PathBuf,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    seen: Stalls,
}

impl Work {
    fn until_stopped(mut self) -> Stalls {
        for round in 0u64.. {
            if self.stop.load(Ordering::Relaxed) || self.seen.errors.len() >= ERRORS_MAX {
                break;
            }
            self.round(round);
        }
        self.seen
    }

    fn round(&mut self, round: u64) {
        let file = self.folder.join(format!("f{}", round % FILES));
        let moved = self.folder.join(format!("m{}", round % FILES));
        let text = format!("{round:>4096}");
        self.timed("create and write", || {
            let mut to = fs::File::create(&file)?;
            to.write_all(text.as_bytes())
        });
        self.timed("stat", || fs::metadata(&file).map(|_| ()));
        let read = self.timed("read", || fs::read_to_string(&file));
        if read.is_some_and(|read| read != text) {
            self.seen.errors.push(format!(
                "round {round}: read something else than was written"
            ));
        }
        self.timed("fsync", || fs::File::open(&file)?.sync_all());
        self.timed("rename", || fs::rename(&file, &moved));
        let folder = self.folder.clone();
        self.timed("list", || fs::read_dir(folder).map(Iterator::count));
        self.timed("unlink", || fs::remove_file(&moved));
    }

    fn timed<T>(
        &mut self,
        what: &'static str,
        work: impl FnOnce() -> std::io::Result<T>,
    ) -> Option<T> {
        let start = Instant::now();
        let done = work();
        let took = start.elapsed();
        if took > self.seen.longest {
            self.seen.longest = took;
            self.seen.longest_what = what;
        }
        self.seen.operations += 1;
        self.done.fetch_add(1, Ordering::Relaxed);
        done.map_err(|error| {
            self.seen
                .errors
                .push(format!("{what} after {took:?}: {error}"))
        })
        .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_works_has_no_errors_and_one_that_goes_has() {
        let folder = tempfile::tempdir().unwrap();
        let meter = StallMeter::start(folder.path());
        meter.wait_for_progress();
        meter.stop().assert_below(WAIT_MAX, "a local folder");

        let folder = tempfile::tempdir().unwrap();
        let (here, gone) = (folder.path().join("here"), folder.path().join("gone"));
        fs::create_dir(&here).unwrap();
        let meter = StallMeter::start(&here);
        fs::rename(here, gone).unwrap();
        meter.wait_for_progress();
        assert!(!meter.stop().errors.is_empty(), "errors are not seen");
    }
}
