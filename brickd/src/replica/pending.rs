//! Who waits for which ordered change: the thread that ordered it sleeps here until the state
//! machine says that it may apply, and then that it may answer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use mortar_common::Signal;

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
    stage: Mutex<Stage>,
    woken: Signal,
}

impl Pending {
    /// A place for a change that was ordered this moment.
    pub fn insert(&self, number: u64) -> Arc<Waiter> {
        let waiter = Arc::new(Waiter {
            stage: Mutex::new(Stage::Ordered),
            woken: Signal::default(),
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
            let mut present = waiter.stage.lock().unwrap_or_else(PoisonError::into_inner);
            if *present < stage {
                *present = stage;
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
        let mut present = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        while *present < stage {
            present = self.woken.wait(present);
        }
        *present
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
