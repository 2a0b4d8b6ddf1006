//! Work that is interrupted by a power cut, and knows afterwards what must be there: whatever an
//! fsync acknowledged, and nothing that was never written.

mod blocks;
mod database;
mod log;
mod loose;
mod names;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::cluster::wait_until;
use crate::simulator::Random;

pub use loose::files_left;

/// Between two steps of works that were slowed down.
const SLOW: Duration = Duration::from_millis(50);
/// Steps go on within this time, or the file system hangs.
const STEP_WITHIN: Duration = Duration::from_secs(60);

/// One kind of work in a folder of its own. A step that returns is acknowledged: unless the work
/// is [`loose`], everything in it is fsynced.
trait Work: Send {
    /// Its name, and that of its folder.
    fn name(&self) -> &'static str;
    /// Prepares its folder, durably.
    fn begin(&mut self, folder: &Path) -> io::Result<()>;
    /// Does one step. What it tries counts as tried before the first system call.
    fn step(&mut self) -> io::Result<()>;
    /// Compares the folder, found again at this place, with what was acknowledged and tried.
    fn check(&mut self, folder: &Path, expect: Expect) -> Result<(), String>;
}

/// What must be found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    /// All that was done, fsynced or not: no more than one host at a time was lost.
    Everything,
    /// What was fsynced.
    Fsynced,
}

/// All kinds of work at once, each in a thread, below one folder.
pub struct Works {
    workers: Vec<Worker>,
    stop: Arc<AtomicBool>,
    slow: Arc<AtomicBool>,
}

struct Worker {
    name: &'static str,
    steps: Arc<AtomicU64>,
    thread: JoinHandle<(Box<dyn Work>, io::Result<()>)>,
}

/// Works that have ended.
pub struct Done {
    works: Vec<Box<dyn Work>>,
    /// Steps of each.
    pub steps: Vec<(&'static str, u64)>,
    /// The errors they saw.
    pub errors: Vec<String>,
}

impl Works {
    /// Starts them below `folder`, which is made.
    ///
    /// # Panics
    /// When the folder cannot be made.
    #[track_caller]
    pub fn start(folder: &Path, random: &mut Random) -> Self {
        std::fs::create_dir(folder).expect("the works' folder");
        let stop = Arc::new(AtomicBool::new(false));
        let slow = Arc::new(AtomicBool::new(false));
        let works: Vec<Box<dyn Work>> = vec![
            Box::new(log::Log::default()),
            Box::new(names::Names::new(random.id())),
            Box::new(blocks::Blocks::new(random.id())),
            Box::new(loose::Loose::default()),
            Box::new(database::Database::default()),
        ];
        let start = |mut work: Box<dyn Work>| {
            let (steps, stop) = (Arc::new(AtomicU64::new(0)), Arc::clone(&stop));
            let slow = Arc::clone(&slow);
            let (name, folder) = (work.name(), folder.join(work.name()));
            let done = Arc::clone(&steps);
            let thread = std::thread::spawn(move || {
                let mut result = std::fs::create_dir(&folder).and_then(|()| work.begin(&folder));
                while result.is_ok() && !stop.load(Ordering::Relaxed) {
                    result = work.step();
                    done.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
                    if slow.load(Ordering::Relaxed) {
                        std::thread::sleep(SLOW);
                    }
                }
                (work, result)
            });
            Worker {
                name,
                steps,
                thread,
            }
        };
        Works {
            workers: works.into_iter().map(start).collect(),
            stop,
            slow,
        }
    }

    /// From here on each pauses between its steps: a heal on a loaded machine has work to do beside
    /// them, and time to come to its end.
    pub fn slow_down(&self) {
        self.slow.store(true, Ordering::Relaxed);
    }

    /// Waits until each has done so many steps more.
    ///
    /// # Panics
    /// When one does not go on.
    #[track_caller]
    pub fn wait_for_steps(&self, count: u64) {
        let before: Vec<u64> = self.workers.iter().map(Worker::steps).collect();
        for (worker, before) in self.workers.iter().zip(before) {
            wait_until(STEP_WITHIN, &format!("{} goes on", worker.name), || {
                worker.steps() >= before + count || worker.thread.is_finished()
            });
        }
    }

    /// Ends them. The file system below may be gone already: then their errors are no news.
    ///
    /// # Panics
    /// When a thread panicked.
    pub fn stop(self) -> Done {
        self.stop.store(true, Ordering::Relaxed);
        let mut done = Done {
            works: Vec::new(),
            steps: Vec::new(),
            errors: Vec::new(),
        };
        for worker in self.workers {
            let steps = worker.steps();
            let (work, result) = worker.thread.join().expect("a work that does not panic");
            done.steps.push((worker.name, steps));
            if let Err(error) = result {
                done.errors.push(format!("{}: {error}", worker.name));
            }
            done.works.push(work);
        }
        done
    }
}

impl Worker {
    fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }
}

impl Done {
    /// Everything that is wrong below `folder`.
    pub fn check(&mut self, folder: &Path, expect: Expect) -> Vec<String> {
        let checked = self.works.iter_mut().map(|work| {
            let name = work.name();
            let found = work.check(&folder.join(name), expect);
            found.map_err(|what| format!("{name}: {what}"))
        });
        checked.filter_map(Result::err).collect()
    }
}
