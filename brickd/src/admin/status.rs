//! `volume status`: what the registry wants of each brick beside what its host says of it.

use std::collections::HashMap;

use mortar_proto::control::{BrickState, CopyRole, Done, VolumeStatusReply};
use mortar_proto::registry::{Brick, BrickStatus, View, Volume, VolumeStatus};

use super::AdminService;
use super::reach::no_answer;

impl AdminService {
    /// One volume, or (empty name) all of them in `others`, sorted by name.
    pub(super) async fn volume_status(&self, name: &str) -> VolumeStatusReply {
        let view = self.registry.view();
        if !name.is_empty() {
            let Some(volume) = view.volumes.get(name) else {
                return VolumeStatusReply {
                    problem: refused(format!("Volume {name} does not exist")),
                    ..Default::default()
                };
            };
            let states = self.brick_states(&view, name).await;
            return of_volume(&view, volume, &states);
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
            ..Default::default()
        }
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
        others: Vec::new(),
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

fn refused(message: String) -> Option<Done> {
    Some(Done {
        failed: true,
        message,
    })
}
