//! What the scripted brickd has to tell.

use mortar_proto::registry::{
    Brick, BrickStatus, Copy, Epoch, Peer, ReplicaSet, View, Volume, VolumeStatus,
};
use serde_json::Value;

use crate::fixture::{Fake, Ran};

/// A peer as the registry holds it.
pub fn peer(id: u64, host: &str) -> Peer {
    Peer {
        id,
        uuid: format!("{id:08}-aaaa-bbbb-cccc-dddddddddddd"),
        host: host.to_owned(),
        port: 24017,
        other_names: Vec::new(),
    }
}

/// A started replica-2 volume over peers 1 and 2.
pub fn volume(name: &str) -> Volume {
    let brick = |id: u64, peer| Brick {
        id,
        peer,
        path: format!("/data/{name}"),
        status: BrickStatus::BrickUp.into(),
    };
    let epoch = Epoch {
        number: 3,
        id: u64::MAX,
        in_sync: vec![Copy {
            brick: 11,
            incarnation: 5,
        }],
        primary: 11,
    };
    Volume {
        name: name.to_owned(),
        id: (0..16).collect(),
        status: VolumeStatus::VolumeStarted.into(),
        replica: 2,
        bricks: vec![brick(11, 1), brick(12, 2)],
        sets: vec![ReplicaSet {
            bricks: vec![11, 12],
            epoch: Some(epoch),
            ..Default::default()
        }],
        options: [("network.ping-timeout".to_owned(), "10".to_owned())].into(),
        ..Default::default()
    }
}

/// Two peers, gfs01 (asked) and gfs02, and the volume gv0.
pub fn two_peers() -> Fake {
    let view = View {
        peers: [(1, peer(1, "gfs01")), (2, peer(2, "gfs02"))].into(),
        volumes: [("gv0".to_owned(), volume("gv0"))].into(),
        ..Default::default()
    };
    Fake::start(move |script| script.view = view.clone())
}

/// What a run with --json printed.
pub fn json_of(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}
