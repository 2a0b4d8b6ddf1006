//! What this copy says of itself on the links between peers.

use mortar_common::BrickId;
use mortar_proto::data::{Beacon, BeaconAnswer, CopyState, StateQuery, link_message};

use super::core::Role;
use super::{Replica, now_ms};

impl Replica {
    pub(super) fn beacon(&self, to: BrickId, sent: u64) -> link_message::What {
        link_message::What::Beacon(Beacon {
            volume: self.volume_bytes(),
            set: self.setting.set,
            epoch: Some(self.lock_core().epoch_ref()),
            sent,
            from_brick: self.setting.me.0,
            to_brick: to.0,
            synced: self.absent.news_of_syncs(),
        })
    }

    pub(super) fn beacon_answer(&self, to: BrickId, sent: u64) -> link_message::What {
        link_message::What::BeaconAnswer(BeaconAnswer {
            volume: self.volume_bytes(),
            set: self.setting.set,
            epoch: Some(self.lock_core().epoch_ref()),
            sent,
            from_brick: self.setting.me.0,
            to_brick: to.0,
            free_bytes: self.free_bytes_here(),
        })
    }

    pub(super) fn query(&self, to: BrickId) -> link_message::What {
        link_message::What::Query(StateQuery {
            id: now_ms(),
            volume: self.volume_bytes(),
            set: self.setting.set,
            from_brick: self.setting.me.0,
            to_brick: to.0,
        })
    }

    pub(super) fn copy_state(&self, id: u64) -> CopyState {
        let core = self.lock_core();
        CopyState {
            id,
            volume: self.volume_bytes(),
            set: self.setting.set,
            brick: self.setting.me.0,
            incarnation: self.setting.incarnation.0,
            epoch: Some(core.epoch_ref()),
            history: core.history().to_vec(),
            alone: self.store.stored_state().alone.is_some(),
            serving: matches!(core.role(), Role::Primary | Role::Backup | Role::Recovering),
            last_number: core.last_number(),
            synced: self.store.stored_state().synced,
            client_heard_ms_ago: 0,
            recorded: self.absent.recorded_syncs(),
        }
    }
}
