//! The state alone: what is applied, what is refused, in which words.

use mortar_proto::registry::{
    BrickStatus, Copy, DeleteVolume, FoundPool, Limits, ReplaceBrick, ResetOptions, SetOptions,
    SlotRange,
};

use super::*;

fn command(what: What) -> Command {
    Command { what: Some(what) }
}

fn peer(id: u64, host: &str) -> Peer {
    Peer {
        id,
        uuid: format!("uuid-{id}"),
        host: host.to_owned(),
        port: 24017,
        other_names: vec![],
    }
}

fn put(id: u64, host: &str) -> Command {
    command(What::PutPeer(PutPeer {
        peer: Some(peer(id, host)),
        replaces: 0,
    }))
}

fn volume(name: &str, first_brick: u64) -> Volume {
    let brick = |at: u64| Brick {
        id: first_brick + at,
        peer: 1 + at,
        path: format!("/bricks/{name}"),
        status: BrickStatus::BrickUp as i32,
    };
    Volume {
        name: name.to_owned(),
        id: vec![first_brick as u8; 16],
        replica: 2,
        bricks: vec![brick(0), brick(1)],
        sets: vec![ReplicaSet {
            index: 0,
            bricks: vec![first_brick, first_brick + 1],
            ..ReplicaSet::default()
        }],
        layout: vec![SlotRange {
            first: 0,
            last: 16383,
            set: 0,
        }],
        ..Volume::default()
    }
}

fn create(volume: Volume) -> Command {
    command(What::CreateVolume(CreateVolume {
        volume: Some(volume),
    }))
}

fn set_status(name: &str, status: VolumeStatus) -> Command {
    let volume = name.to_owned();
    command(What::SetVolumeStatus(SetVolumeStatus {
        volume,
        status: status as i32,
    }))
}

/// A view with two peers and the volume v01, created.
fn two_peers() -> View {
    let mut view = View::default();
    for command in [
        command(What::FoundPool(FoundPool { pool: 9 })),
        put(1, "gfs01"),
        put(2, "gfs02"),
        create(volume("v01", 10)),
    ] {
        done(&mut view, &command);
    }
    view
}

#[track_caller]
fn done(view: &mut View, command: &Command) {
    let index = view.index;
    let outcome = apply(view, command);
    assert_eq!(outcome.refusal, "");
    assert_eq!((outcome.index, view.index), (index + 1, index + 1));
}

#[track_caller]
fn refused(view: &mut View, command: &Command, words: &str) {
    let before = view.clone();
    let outcome = apply(view, command);
    assert!(
        outcome.refusal.contains(words),
        "{:?} lacks {words:?}",
        outcome.refusal
    );
    assert_eq!(*view, before, "a refusal changes nothing");
}

#[test]
fn a_volume_lives_from_create_to_delete() {
    let mut view = two_peers();
    let delete = command(What::DeleteVolume(DeleteVolume {
        volume: "v01".to_owned(),
    }));
    refused(
        &mut view,
        &set_status("v01", VolumeStatus::VolumeStopped),
        "not in the started state",
    );
    done(&mut view, &set_status("v01", VolumeStatus::VolumeStarted));
    refused(
        &mut view,
        &set_status("v01", VolumeStatus::VolumeStarted),
        "Volume v01 already started",
    );
    refused(
        &mut view,
        &delete,
        "Volume v01 has been started.Volume needs to be stopped before deletion.",
    );
    done(&mut view, &set_status("v01", VolumeStatus::VolumeStopped));
    done(&mut view, &delete);
    refused(&mut view, &delete, "Volume v01 does not exist");
}

#[test]
fn create_refuses_what_cannot_be_served() {
    let mut view = two_peers();
    let mut other = volume("v01", 20);
    refused(
        &mut view,
        &create(other.clone()),
        "Volume v01 already exists",
    );
    other.name = "v02".to_owned();
    refused(
        &mut view,
        &create(other),
        "gfs01:/bricks/v01 is already part of a volume: v01",
    );
    refused(
        &mut view,
        &create(volume("a/b", 20)),
        "may hold only letters",
    );
    let mut stranger = volume("v03", 20);
    stranger.bricks[1].peer = 7;
    refused(
        &mut view,
        &create(stranger),
        "is on a host that is not part of the pool",
    );
    let mut twice = volume("v03", 20);
    twice.bricks[1].peer = 1;
    refused(
        &mut view,
        &create(twice),
        "Found duplicate exports gfs01:/bricks/v03",
    );
    let mut loose = volume("v03", 20);
    loose.sets[0].bricks.pop();
    refused(&mut view, &create(loose), "belongs to one replica set");
    let mut nowhere = volume("v03", 20);
    nowhere.layout[0].set = 1;
    refused(
        &mut view,
        &create(nowhere),
        "the layout names a replica set",
    );
    // The same volume again is the same command sent twice.
    done(&mut view, &create(volume("v01", 10)));
}

#[test]
fn options_are_set_and_reset() {
    let mut view = two_peers();
    let volume = "v01".to_owned();
    let options = [("a", "1"), ("b", "2"), ("c", "3")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let set = SetOptions {
        volume: volume.clone(),
        options: options.into(),
    };
    done(&mut view, &command(What::SetOptions(set)));
    let reset = |keys: Vec<String>| {
        command(What::ResetOptions(ResetOptions {
            volume: volume.clone(),
            keys,
        }))
    };
    done(&mut view, &reset(vec!["a".to_owned()]));
    assert_eq!(view.volumes["v01"].options.len(), 2);
    done(&mut view, &reset(vec![]));
    assert!(view.volumes["v01"].options.is_empty());
}

#[test]
fn a_brick_is_taken_down_and_up() {
    let mut view = two_peers();
    let set = |brick, status: BrickStatus| {
        let volume = "v01".to_owned();
        command(What::SetBrickStatus(SetBrickStatus {
            volume,
            brick,
            status: status as i32,
        }))
    };
    done(&mut view, &set(10, BrickStatus::BrickDown));
    assert_eq!(
        view.volumes["v01"].bricks[0].status(),
        BrickStatus::BrickDown
    );
    refused(
        &mut view,
        &set(99, BrickStatus::BrickUp),
        "is not part of volume v01",
    );
}

fn epoch(number: u64, id: u64, bricks: &[u64]) -> Epoch {
    Epoch {
        number,
        id,
        in_sync: bricks
            .iter()
            .map(|brick| Copy {
                brick: *brick,
                incarnation: 1,
            })
            .collect(),
        primary: bricks[0],
    }
}

fn change_to(expect: (u64, u64), next: Epoch, lone: Vec<Epoch>) -> Command {
    command(What::ChangeEpoch(ChangeEpoch {
        volume: "v01".to_owned(),
        set: 0,
        expect_number: expect.0,
        expect_id: expect.1,
        next: Some(next),
        lone,
    }))
}

#[test]
fn an_epoch_changes_only_from_the_one_expected() {
    let mut view = two_peers();
    done(
        &mut view,
        &change_to((0, 0), epoch(1, 100, &[10, 11]), vec![]),
    );
    let second = change_to((1, 100), epoch(2, 200, &[10]), vec![]);
    done(&mut view, &second);
    refused(
        &mut view,
        &change_to((1, 100), epoch(2, 201, &[11]), vec![]),
        "is 2 (00000000000000c8), not 1 (0000000000000064): another change came first",
    );
    // Sent again, also after a later change, it is answered as applied and changes nothing.
    done(&mut view, &second);
    done(
        &mut view,
        &change_to((2, 200), epoch(3, 300, &[10, 11]), vec![]),
    );
    done(&mut view, &second);
    let set = &view.volumes["v01"].sets[0];
    assert_eq!(set.epoch.as_ref().unwrap().number, 3);
    assert_eq!(
        set.history.iter().map(|past| past.id).collect::<Vec<_>>(),
        [100, 200]
    );
}

#[test]
fn an_epoch_that_makes_no_sense_is_refused() {
    let mut view = two_peers();
    done(
        &mut view,
        &change_to((0, 0), epoch(5, 100, &[10, 11]), vec![]),
    );
    refused(
        &mut view,
        &change_to((5, 100), epoch(5, 101, &[10]), vec![]),
        "higher number",
    );
    refused(
        &mut view,
        &change_to((5, 100), epoch(6, 0, &[10]), vec![]),
        "and an id",
    );
    refused(
        &mut view,
        &change_to((5, 100), epoch(6, 1, &[77]), vec![]),
        "is not part of set 0",
    );
    let mut nobody = epoch(6, 1, &[10]);
    nobody.primary = 11;
    refused(
        &mut view,
        &change_to((5, 100), nobody, vec![]),
        "its primary among them",
    );
}

#[test]
fn lone_epochs_enter_the_history_which_is_bounded() {
    let mut view = two_peers();
    done(
        &mut view,
        &change_to((0, 0), epoch(1, 100, &[10, 11]), vec![]),
    );
    let lone = vec![epoch(2, 777, &[11])];
    done(&mut view, &change_to((1, 100), epoch(3, 300, &[11]), lone));
    let history = &view.volumes["v01"].sets[0].history;
    assert_eq!(
        history.iter().map(|past| past.id).collect::<Vec<_>>(),
        [100, 777]
    );
    for number in 4..200 {
        let expect = (number - 1, 100 * (number - 1));
        done(
            &mut view,
            &change_to(expect, epoch(number, 100 * number, &[10, 11]), vec![]),
        );
    }
    let history = &view.volumes["v01"].sets[0].history;
    assert_eq!(history.len(), HISTORY_MAX);
    assert_eq!(history.last().unwrap().number, 198);
}

#[test]
fn a_peer_with_bricks_stays() {
    let mut view = two_peers();
    done(&mut view, &put(3, "gfs03"));
    let remove = |id| command(What::RemovePeer(RemovePeer { id }));
    refused(
        &mut view,
        &remove(2),
        "Peer gfs02 hosts one or more bricks.",
    );
    done(&mut view, &remove(3));
    refused(&mut view, &remove(3), "is not part of cluster");
}

fn change(id: u64, command: Command) -> Change {
    Change { id, command }
}

#[test]
fn a_proposal_sent_twice_is_answered_twice_and_applied_once() {
    let mut state = State {
        view: two_peers(),
        ..State::default()
    };
    let start = change(5, set_status("v01", VolumeStatus::VolumeStarted));
    let first = state.apply(1, &start);
    assert_eq!(first.refusal, "");
    assert_eq!(state.apply(2, &start), first);
    let again = change(6, set_status("v01", VolumeStatus::VolumeStarted));
    assert!(state.apply(3, &again).refusal.contains("already started"));
    for id in 100..100 + 2 * ANSWERS_MAX as u64 {
        state.apply(4, &change(id, put(1, "gfs01")));
    }
    assert_eq!(state.answers.len(), ANSWERS_MAX);
}

#[test]
fn members_follow_the_peers_and_a_new_generation_begins_with_none() {
    let mut state = State::default();
    state.apply(
        1,
        &change(1, command(What::FoundPool(FoundPool { pool: 9 }))),
    );
    state.apply(2, &change(2, put(1, "gfs01")));
    state.apply(3, &change(3, put(2, "gfs02")));
    state.apply(4, &change(4, put(3, "gfs03")));
    state.apply(
        5,
        &change(5, command(What::RemovePeer(RemovePeer { id: 3 }))),
    );
    assert_eq!(state.members, BTreeSet::from([1, 2]));
    assert_eq!(state.detached_at(3), Some(5));
    // A host that lost its data directory is a new peer, and the old one goes first.
    for host in ["gfs02", "GFS02"] {
        let refusal = state.apply(6, &change(0, put(4, host))).refusal;
        assert!(refusal.contains("probe it again"), "{refusal}");
    }

    let view = state.view.clone();
    let index = view.index;
    let next = NewGeneration {
        generation: 2,
        view: Some(view),
    };
    let outcome = state.apply(1, &change(7, command(What::NewGeneration(next.clone()))));
    assert_eq!((outcome.refusal.as_str(), outcome.index), ("", index + 1));
    assert_eq!((state.view.generation, state.view.peers.len()), (2, 2));
    assert!(state.members.is_empty() && state.detached_at(3).is_none());
    let again = state.apply(2, &change(8, command(What::NewGeneration(next))));
    assert!(again.refusal.contains("is not newer"), "{}", again.refusal);
    assert_eq!(state.apply(3, &change(9, put(4, "gfs02"))).refusal, "");
}

#[test]
fn what_an_older_version_wrote_stays_readable() {
    let state: State = serde_json::from_str(r#"{"view":{"index":3,"pool":9}}"#).unwrap();
    assert_eq!((state.view.index, state.view.pool), (3, 9));
    let json = serde_json::to_vec(&State {
        view: two_peers(),
        ..State::default()
    })
    .unwrap();
    assert_eq!(
        serde_json::from_slice::<State>(&json).unwrap().view,
        two_peers()
    );
}

// ------------------------------------------------------------ replace-brick

fn put_in_epoch(view: &mut View, in_sync: &[u64]) {
    let now = view.volumes["v01"].sets[0]
        .epoch
        .clone()
        .unwrap_or_default();
    let copy = |brick: &u64| Copy {
        brick: *brick,
        incarnation: brick * 11,
    };
    let next = Epoch {
        number: now.number + 1,
        id: now.number + 100,
        in_sync: in_sync.iter().map(copy).collect(),
        primary: in_sync[0],
    };
    let change = command(What::ChangeEpoch(ChangeEpoch {
        volume: "v01".to_owned(),
        set: 0,
        expect_number: now.number,
        expect_id: now.id,
        next: Some(next),
        lone: vec![],
    }));
    done(view, &change);
}

fn replace(brick: u64, with: Brick) -> Command {
    command(What::ReplaceBrick(ReplaceBrick {
        volume: "v01".to_owned(),
        brick,
        with: Some(with),
        limits: Some(Limits {
            links: 500,
            xattr_bytes: 0,
            file_bytes: 1 << 40,
        }),
    }))
}

fn new_brick(id: u64, peer: u64, path: &str) -> Brick {
    Brick {
        id,
        peer,
        path: path.to_owned(),
        status: BrickStatus::BrickUp as i32,
    }
}

/// v01 runs on bricks 10 and 11, both in sync; gfs03 is there too.
fn started_with_a_spare() -> View {
    let mut view = two_peers();
    done(&mut view, &put(3, "gfs03"));
    done(&mut view, &set_status("v01", VolumeStatus::VolumeStarted));
    put_in_epoch(&mut view, &[10, 11]);
    view
}

#[test]
fn a_brick_that_is_out_is_replaced_in_its_place() {
    let mut view = started_with_a_spare();
    view.volumes.get_mut("v01").unwrap().limits = Some(Limits {
        links: 65_000,
        xattr_bytes: 4_000,
        file_bytes: 1 << 30,
    });
    let spare = replace(10, new_brick(77, 3, "/b"));
    refused(&mut view, &spare, "is still in sync");
    put_in_epoch(&mut view, &[11]);
    let epoch = view.volumes["v01"].sets[0].epoch.clone();
    done(&mut view, &spare);
    let volume = view.volumes["v01"].clone();
    assert_eq!(volume.sets[0].bricks, [77, 11]);
    assert_eq!(volume.bricks[0], new_brick(77, 3, "/b"));
    assert_eq!(volume.sets[0].epoch, epoch, "the new copy is not in sync");
    let limits = volume.limits.unwrap();
    assert_eq!(
        (limits.links, limits.xattr_bytes, limits.file_bytes),
        (500, 4_000, 1 << 30),
        "what all disks can hold"
    );
    // Sent again it is answered as done; the peer of the old brick can go.
    done(&mut view, &spare);
    assert_eq!(view.volumes["v01"], volume);
    done(&mut view, &command(What::RemovePeer(RemovePeer { id: 1 })));
    // And the old brick is in no epoch any more.
    let back = ChangeEpoch {
        volume: "v01".to_owned(),
        set: 0,
        expect_number: 2,
        expect_id: 101,
        next: Some(Epoch {
            number: 3,
            id: 1,
            in_sync: vec![Copy {
                brick: 10,
                incarnation: 110,
            }],
            primary: 10,
        }),
        lone: vec![],
    };
    refused(
        &mut view,
        &command(What::ChangeEpoch(back)),
        "not part of set 0",
    );
}

#[test]
fn the_same_folder_under_a_new_id_is_a_new_brick() {
    let mut view = started_with_a_spare();
    put_in_epoch(&mut view, &[10]);
    done(&mut view, &replace(11, new_brick(78, 2, "/bricks/v01")));
    assert_eq!(view.volumes["v01"].sets[0].bricks, [10, 78]);
}

#[test]
fn replace_brick_refuses_what_would_lose_data_or_is_wrong() {
    let mut view = started_with_a_spare();
    put_in_epoch(&mut view, &[11]);
    let spare = || new_brick(77, 3, "/b");
    refused(
        &mut view,
        &replace(11, spare()),
        "it holds the only up-to-date copy",
    );
    refused(&mut view, &replace(9, spare()), "is not part of volume v01");
    refused(
        &mut view,
        &replace(10, new_brick(77, 4, "/b")),
        "not part of the pool",
    );
    refused(
        &mut view,
        &replace(10, new_brick(77, 2, "/bricks/v01")),
        "gfs02:/bricks/v01 is already part of a volume: v01",
    );
    for id in [0, 10] {
        refused(
            &mut view,
            &replace(10, new_brick(id, 3, "/b")),
            "has no id of its own",
        );
    }
    refused(
        &mut view,
        &replace(10, new_brick(11, 3, "/b")),
        "already part of a volume",
    );
    done(&mut view, &set_status("v01", VolumeStatus::VolumeStopped));
    refused(&mut view, &replace(10, spare()), "not in the started state");
    let mut never_served = two_peers();
    done(
        &mut never_served,
        &set_status("v01", VolumeStatus::VolumeStarted),
    );
    refused(
        &mut never_served,
        &replace(10, new_brick(77, 2, "/b")),
        "only up-to-date copy",
    );
}
