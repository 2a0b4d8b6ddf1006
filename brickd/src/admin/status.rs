//! `volume status`: what the registry wants of each brick beside what its host says of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mortar_proto::control::{BrickState, CopyRole, Done, VolumeStatusReply};
use mortar_proto::registry::{Brick, BrickStatus, View, Volume, VolumeStatus};

use super::AdminService;
use super::reach::no_answer;

/// How long a report waits for the registry.
const NEWEST_VIEW_WITHIN: Duration = Duration::from_millis(1_500);

impl AdminService {
    /// One volume, or (empty name) all of them in `others`, sorted by name.
    pub(super) async fn volume_status(&self, name: &str) -> VolumeStatusReply {
        let (view, note) = self.newest_view().await;
        if !name.is_empty() {
            let Some(volume) = view.volumes.get(name) else {
                return VolumeStatusReply {
                    problem: refused(format!("Volume {name} does not exist")),
                    ..Default::default()
                };
            };
            let states = self.brick_states(&view, name).await;
            return VolumeStatusReply {
                note,
                ..of_volume(&view, volume, &states)
            };
        }
        let states = self.brick_states(&view, "").await;
        let mut volumes: Vec<&Volume> = view.volumes.values().collect();
        volumes.sort_by(|one, other| one.name.cmp(&other.name));
        let others = volumes
            .into_iter()
            .map(|volume| of_volume(&view, volume, &states))
            .collect();
        VolumeStatusReply {
            others,
            note,
            ..Default::default()
        }
    }

    /// The view as a majority of the registry has it; or this peer's own, and the words for that,
    /// when no majority answers. A peer that was cut off believes for some seconds after its return
    /// in copies that went out meanwhile: whoever then takes down another host by what it says
    /// takes down the only copy in sync.
    pub(super) async fn newest_view(&self) -> (Arc<View>, String) {
        let current = self.registry.current_view();
        let why = match tokio::time::timeout(NEWEST_VIEW_WITHIN, current).await {
            Ok(Ok(view)) => return (view, String::new()),
            Ok(Err(why)) => why,
            Err(_) => "no majority has answered in time".to_owned(),
        };
        let note = format!("what this peer knows of the volume may be old: {why}");
        (self.registry.view(), note)
    }
}

fn of_volume(view: &View, volume: &Volume, states: &HashMap<u64, BrickState>) -> VolumeStatusReply {
    let problem = match volume.status() {
        VolumeStatus::VolumeStarted => None,
        VolumeStatus::VolumeCreated | VolumeStatus::VolumeStopped => {
            refused(format!("Volume {} is not started", volume.name))
        }
    };
    let bricks = volume
        .bricks
        .iter()
        .map(|brick| of_brick(view, volume, brick, states))
        .collect();
    VolumeStatusReply {
        volume: Some(volume.clone()),
        bricks,
        problem,
        ..Default::default()
    }
}

fn of_brick(
    view: &View,
    volume: &Volume,
    brick: &Brick,
    states: &HashMap<u64, BrickState>,
) -> BrickState {
    let host = view
        .peers
        .get(&brick.peer)
        .map_or("?", |peer| peer.host.as_str())
        .to_owned();
    let stopped = brick.status() == BrickStatus::BrickDown;
    let stopped_detail = || "stopped with 'mortar brick stop'".to_owned();
    match states.get(&brick.id) {
        Some(state) => {
            let mut state = BrickState {
                host,
                path: brick.path.clone(),
                ..state.clone()
            };
            if state.port == 0 {
                state.port = view.peers.get(&brick.peer).map_or(0, |peer| peer.port);
            }
            if believes_in_sync(&state) && is_put_out(volume, &state) {
                state.set_role(CopyRole::CopyOut);
                state.detail = "not in sync; it has not heard of that yet".to_owned();
            }
            if stopped && !state.online && state.detail.is_empty() {
                state.detail = stopped_detail();
            }
            state
        }
        None => BrickState {
            id: brick.id,
            detail: if volume.status() != VolumeStatus::VolumeStarted {
                String::new()
            } else if stopped {
                stopped_detail()
            } else {
                no_answer(&host)
            },
            host,
            path: brick.path.clone(),
            role: CopyRole::CopyDown.into(),
            ..Default::default()
        },
    }
}

fn believes_in_sync(state: &BrickState) -> bool {
    matches!(state.role(), CopyRole::CopyPrimary | CopyRole::CopyBackup)
}

/// Whether the registry knows an epoch without this life of the brick that is not older than the
/// brick's own.
fn is_put_out(volume: &Volume, state: &BrickState) -> bool {
    let mut sets = volume.sets.iter();
    let set = sets.find(|set| set.bricks.contains(&state.id));
    set.and_then(|set| set.epoch.as_ref()).is_some_and(|epoch| {
        let mut in_sync = epoch.in_sync.iter();
        let is_listed =
            in_sync.any(|copy| copy.brick == state.id && copy.incarnation == state.incarnation);
        epoch.number >= state.epoch_number && !is_listed
    })
}

fn refused(message: String) -> Option<Done> {
    Some(Done {
        failed: true,
        message,
    })
}
