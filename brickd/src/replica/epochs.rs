//! Epochs on their way to this copy's disk and to the registry.

use std::sync::{Arc, PoisonError};

use mortar_proto::data::EpochRef;
use mortar_proto::registry::Epoch;

use super::Replica;
use super::core::Proposed;

impl Replica {
    /// Stores an epoch durably; one that is older than what is stored is let be.
    pub(super) fn store_epoch(self: &Arc<Self>, epoch: Epoch, history: Vec<EpochRef>, alone: bool) {
        let reference = EpochRef {
            number: epoch.number,
            id: epoch.id,
        };
        let stored = {
            let mut newest = self
                .stored_epoch
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if epoch.number < *newest {
                return;
            }
            *newest = epoch.number;
            let mut state = self.store.stored_state();
            state.history = history;
            state.alone = alone.then_some(reference);
            state.epoch = Some(epoch);
            state.last_number = state.last_number.max(self.lock_core().last_number());
            self.store.store_state(&state)
        };
        match stored {
            Ok(()) => self.event(|core, now| core.stored(reference, now)),
            Err(error) => self.disk_failed(&error.to_string()),
        }
    }

    /// Stores that everything up to a number is durable here.
    pub(super) fn store_synced(&self, up_to: u64) -> Result<(), crate::brick::BrickError> {
        let _one_at_a_time = self
            .stored_epoch
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut state = self.store.stored_state();
        state.synced = state.synced.max(up_to);
        state.recorded = self.absent.recorded_syncs();
        state.last_number = state.last_number.max(self.lock_core().last_number());
        self.store.store_state(&state)
    }

    /// Proposes an epoch. A copy that is closed meanwhile, because another one went on alone too,
    /// does not have its own way of it made the registry's.
    pub(super) fn propose(
        self: &Arc<Self>,
        expect: EpochRef,
        next: &Epoch,
        lone: &[Epoch],
    ) -> Proposed {
        let replica = Arc::downgrade(self);
        let id = next.id;
        let wanted = move || {
            let replica = replica.upgrade();
            replica.is_some_and(|replica| replica.lock_core().proposes(expect, id))
        };
        self.ports.propose(expect, next, lone, Arc::new(wanted))
    }
}
