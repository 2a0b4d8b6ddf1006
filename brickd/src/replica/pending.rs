//! Who waits for which ordered change: the thread that ordered it sleeps here until the state
//! machine says that it may apply, and then that it may answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use mortar_common::Signal;

use super::answers::Answers;

/// How far an ordered change of this primary's has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// Sent to the backups.
    Ordered,
    /// Held by every in-sync backup: apply it here.
    MayApply,
    /// Applied everywhere: answer.
    MayAnswer,
    /// This copy may not answer for it any more.
    Abandoned,
}

/// All ordered changes of this primary that are not answered yet.
#[derive(Default)]
pub struct Pending {
    waiters: Mutex<HashMap<u64, Arc<Waiter>>>,
}

/// One change's waiting place.
pub struct Waiter {
    progress: Mutex<Progress>,
    woken: Signal,
    /// Where the answers to the change come from, when they come from one backup alone.
    answers: OnceLock<Arc<Answers>>,
}

struct Progress {
    stage: Stage,
    /// Whoever waits is to read answers itself.
    to_read: bool,
}

/// How a wait that may be ended by having to read came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// The stage, or a further one, is reached.
    Reached {
        /// How far the change has come.
        stage: Stage,
        /// It was also asked to read: somebody else has to.
        to_read: bool,
    },
    /// Not yet: it is to read answers.
    Read,
}

impl Pending {
    /// A place for a change that was ordered this moment.
    pub fn insert(&self, number: u64) -> Arc<Waiter> {
        let waiter = Arc::new(Waiter {
            progress: Mutex::new(Progress {
                stage: Stage::Ordered,
                to_read: false,
            }),
            woken: Signal::default(),
            answers: OnceLock::new(),
        });
        self.lock().insert(number, Arc::clone(&waiter));
        waiter
    }

    /// Moves a change on; a stage never goes back. One that nobody waits for is ignored.
    pub fn advance(&self, number: u64, stage: Stage) {
        let waiter = match stage {
            Stage::MayAnswer | Stage::Abandoned => self.lock().remove(&number),
            Stage::Ordered | Stage::MayApply => self.lock().get(&number).cloned(),
        };
        if let Some(waiter) = waiter {
            let mut present = waiter.lock();
            if present.stage < stage {
                present.stage = stage;
                waiter.woken.notify_all();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Waiter>>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    /// Sleeps until the change has come as far as `stage` (or further), and says how far.
    pub fn wait(&self, stage: Stage) -> Stage {
        let mut present = self.lock();
        while present.stage < stage {
            present = self.woken.wait(present);
        }
        present.stage
    }

    /// As [`Waiter::wait`], or until it is to read answers.
    pub fn wait_or_read(&self, stage: Stage) -> Wait {
        let mut present = self.lock();
        while present.stage < stage && !present.to_read {
            present = self.woken.wait(present);
        }
        let to_read = std::mem::take(&mut present.to_read);
        if present.stage < stage {
            return Wait::Read;
        }
        let stage = present.stage;
        Wait::Reached { stage, to_read }
    }

    /// How far the change has come, if that is `stage` or further.
    pub fn reached(&self, stage: Stage) -> Option<Stage> {
        let present = self.lock().stage;
        (present >= stage).then_some(present)
    }

    /// Asks whoever waits for `stage` to read answers; false when it does not wait any more.
    pub fn offer_reading(&self, stage: Stage) -> bool {
        let mut present = self.lock();
        if present.stage >= stage {
            return false;
        }
        present.to_read = true;
        self.woken.notify_all();
        true
    }

    /// The change goes to one backup alone, whose answers come here.
    pub fn answered_by(&self, answers: Arc<Answers>) {
        // Set once: a change is ordered once.
        let _ = self.answers.set(answers);
    }

    /// Where answers come from that the waiting thread may read itself.
    pub fn answers(&self) -> Option<&Arc<Answers>> {
        self.answers.get()
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_never_goes_back() {
        let pending = Pending::default();
        let waiter = pending.insert(7);
        pending.advance(7, Stage::MayApply);
        assert_eq!(waiter.wait(Stage::MayApply), Stage::MayApply);
        pending.advance(7, Stage::MayAnswer);
        pending.advance(7, Stage::MayApply);
        assert_eq!(waiter.wait(Stage::MayApply), Stage::MayAnswer);
    }
}
