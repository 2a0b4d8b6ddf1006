//! Bricks that closed themselves, as their disk failed, run again when the administrator says so.
//!
//! Never by themselves: a disk that fails now and then would be put out and healed for ever.

use mortar_proto::control::BrickState;
use mortar_proto::registry::{Brick, BrickStatus, Volume, VolumeStatus};

use super::replace::FOLDER_WAIT_MAX;
use super::volumes::START_POLL;
use super::{AdminService, Refusal};

impl AdminService {
    /// Starts the bricks of a volume (or the one meant) anew that run and have closed themselves;
    /// returns how many these were.
    pub(super) async fn restart_closed(
        &self,
        volume: &Volume,
        only: Option<u64>,
    ) -> Result<usize, Refusal> {
        if volume.status() != VolumeStatus::VolumeStarted {
            return Ok(0);
        }
        let view = self.registry.view();
        let states = self.brick_states(&view, &volume.name).await;
        let meant = |brick: &&Brick| only.is_none_or(|only| brick.id == only);
        let closed = |brick: &&Brick| states.get(&brick.id).is_some_and(is_closed);
        let mut restarted = 0;
        for brick in volume.bricks.iter().filter(meant).filter(closed) {
            if brick.status() != BrickStatus::BrickUp {
                continue;
            }
            self.set_brick(&volume.name, brick.id, BrickStatus::BrickDown)
                .await?;
            // One that does not end in time is started as soon as it has.
            let ended = self.wait_until_closed_brick_ends(volume, brick);
            let _ = tokio::time::timeout(FOLDER_WAIT_MAX, ended).await;
            self.set_brick(&volume.name, brick.id, BrickStatus::BrickUp)
                .await?;
            restarted += 1;
        }
        Ok(restarted)
    }

    async fn wait_until_closed_brick_ends(&self, volume: &Volume, brick: &Brick) {
        loop {
            let view = self.registry.view();
            let states = self.brick_states(&view, &volume.name).await;
            if !states.get(&brick.id).is_some_and(is_closed) {
                return;
            }
            tokio::time::sleep(START_POLL).await;
        }
    }
}

/// Whether a brick's process has it open, and answers nothing: it closed itself.
fn is_closed(state: &BrickState) -> bool {
    !state.online && state.incarnation != 0
}
