//! Becoming primary: everything received is applied, and with more than two copies the longest
//! tail among them is shared out, before anything new is ordered.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::info;

use super::Replica;
use super::streams::Numbered;

/// Changes kept after they are complete, for a copy that asks a little late.
const KEPT_MAX: usize = 4096;

/// Changes that some in-sync copy may not have: kept until all of them have confirmed.
#[derive(Default)]
pub struct Tail {
    changes: Mutex<BTreeMap<u64, Arc<Numbered>>>,
}

impl Tail {
    /// Keeps a change; lets go of those up to `complete`.
    pub fn keep(&self, numbered: &Arc<Numbered>, complete: u64) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.insert(numbered.change.number, Arc::clone(numbered));
        while changes
            .first_key_value()
            .is_some_and(|(first, _)| *first <= complete)
            || changes.len() > KEPT_MAX
        {
            changes.pop_first();
        }
    }

    /// Those of these changes that are still kept.
    pub fn get(&self, numbers: &[u64]) -> Vec<Arc<Numbered>> {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        numbers
            .iter()
            .filter_map(|number| changes.get(number).cloned())
            .collect()
    }

    /// Everything kept above `number`, in order.
    pub fn above(&self, number: u64) -> Vec<Arc<Numbered>> {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes
            .range(number + 1..)
            .map(|(_, numbered)| Arc::clone(numbered))
            .collect()
    }
}

impl Replica {
    /// Carries out [`super::core::Command::Recover`], in a thread of its own.
    pub(super) fn recover(self: &Arc<Self>) {
        self.follower.shut();
        while !self.follower.drained(Duration::from_millis(100)) {
            if self.is_stopped() {
                return;
            }
        }
        if let Err(failure) = self.ensure_marks() {
            return self.disk_failed(&failure.to_string());
        }
        let last = self.lock_core().last_number();
        info!(
            volume = self.setting().volume_name,
            last, "everything received is applied"
        );
        self.event(|core, now| core.recovered(last, now));
    }
}
