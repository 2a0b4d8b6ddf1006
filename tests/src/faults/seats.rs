//! Where programs sit: a mount that may be killed and made anew under them.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::history::{Answer, ClientId, EntryId, History, Op, Outcome};
use crate::cluster::{Cluster, Mount};
use crate::simulator::Random;

/// Mounting comes to its end within this, once everything is let go.
const MOUNT_WITHIN: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Between two operations of one program, ms.
const PACE_MS: (u64, u64) = (2, 25);

/// How long a mount believes names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Belief {
    /// As the defaults are.
    Default,
    /// Not at all: whatever it answers is of now.
    None,
}

/// A mount that comes back after it was killed.
pub(super) struct Client {
    pub id: ClientId,
    pub host: String,
    pub belief: Belief,
    mount: Mutex<Option<Mount>>,
    /// Counts the mounts; odd while there is none.
    generation: AtomicU64,
    /// Operations that were answered.
    done: AtomicU64,
}

/// A mount as a program found it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Root {
    pub path: PathBuf,
    pub generation: u64,
}

impl Client {
    pub fn new(id: u8, host: &str, belief: Belief) -> Self {
        Client {
            id: ClientId(id),
            host: host.to_owned(),
            belief,
            mount: Mutex::new(None),
            generation: AtomicU64::new(1),
            done: AtomicU64::new(0),
        }
    }

    /// Mounts it, again if that is refused: other faults may go on.
    ///
    /// # Errors
    /// What the mount program said last.
    pub fn mount(&self, cluster: &Cluster) -> Result<(), String> {
        let options = match self.belief {
            Belief::Default => "",
            Belief::None => "attribute-timeout=0,entry-timeout=0",
        };
        let start = Instant::now();
        let host = cluster.host(&self.host);
        loop {
            match host.try_mount("gfs01,gfs02,gfs03:/v01", options) {
                Ok(mount) => {
                    *self.lock() = Some(mount);
                    self.generation.fetch_add(1, Ordering::AcqRel);
                    return Ok(());
                }
                Err(ran) if start.elapsed() > MOUNT_WITHIN => return Err(ran.to_string()),
                Err(_) => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    /// SIGKILL, and what is left of the mount is removed.
    pub fn kill(&self) {
        let mount = self.lock().take();
        if let Some(mount) = mount {
            self.generation.fetch_add(1, Ordering::AcqRel);
            mount.kill();
        }
    }

    pub fn unmount(&self) {
        let mount = self.lock().take();
        if let Some(mount) = mount {
            self.generation.fetch_add(1, Ordering::AcqRel);
            mount.unmount();
        }
    }

    /// The process that serves it, if it lives.
    pub fn pid(&self) -> Option<u32> {
        self.lock().as_ref().and_then(Mount::find_pid)
    }

    pub fn root(&self) -> Option<Root> {
        let mount = self.lock();
        let path = mount.as_ref()?.path().to_owned();
        let generation = self.generation.load(Ordering::Acquire);
        Some(Root { path, generation })
    }

    /// Operations that were answered until now.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Mount>> {
        self.mount.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One program's view of the round.
pub(super) struct Seat {
    pub client: Arc<Client>,
    pub history: Arc<History>,
    pub random: Random,
    /// The folder of this round, below the mount.
    pub folder: String,
    pub stop: Arc<AtomicBool>,
}

impl Seat {
    /// The mount, when there is one; none when the round ends.
    pub fn root(&self) -> Option<Root> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(root) = self.client.root() {
                return Some(root);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Does and records one operation.
    pub fn run(&self, op: Op, work: impl FnOnce() -> io::Result<Answer>) -> Option<Answer> {
        self.noted(op, || work().map_err(|error| error.to_string()))
    }

    /// The same, with an error in words.
    pub fn noted(&self, op: Op, work: impl FnOnce() -> Result<Answer, String>) -> Option<Answer> {
        let id = self.history.begin(self.client.id, op);
        self.ended(id, work())
    }

    /// Records how an operation ended that [`History::begin`] noted.
    pub fn ended(&self, id: EntryId, outcome: Result<Answer, String>) -> Option<Answer> {
        match outcome {
            Ok(answer) => {
                self.history.end(id, Outcome::Answered(answer.clone()));
                self.client.done.fetch_add(1, Ordering::Relaxed);
                Some(answer)
            }
            Err(error) => {
                self.history.end(id, Outcome::Failed(error));
                None
            }
        }
    }

    /// Rests a little.
    pub fn pace(&mut self) {
        let ms = self.random.between(PACE_MS.0, PACE_MS.1);
        std::thread::sleep(Duration::from_millis(ms));
    }
}
