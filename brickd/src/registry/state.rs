//! What the registry holds and how a command changes it: pure, deterministic, the same on every
//! peer. No clock, no random number, no disk; a refusal is a sentence and changes nothing.

mod replace;

use std::collections::{BTreeSet, VecDeque};

use mortar_common::name::volume_name_refusal;
use mortar_proto::registry::{
    Brick, ChangeEpoch, Command, CreateVolume, Epoch, NewGeneration, Outcome, Peer, PutPeer,
    RemovePeer, ReplicaSet, SetBrickStatus, SetVolumeStatus, View, Volume, VolumeStatus,
    command::What,
};
use serde::{Deserialize, Serialize};

use super::names::same_host;
use super::types::Change;

/// Former epochs kept of a replica set, oldest dropped first.
pub const HISTORY_MAX: usize = 64;
/// Peers of a pool.
pub const PEERS_MAX: usize = 256;
/// Volumes of a pool.
pub const VOLUMES_MAX: usize = 1024;
/// Bricks of a volume.
pub const BRICKS_MAX: usize = 1024;
/// Answers kept so that a proposal that is sent again is answered, not repeated.
const ANSWERS_MAX: usize = 1024;
/// Detached peers remembered so that their late messages are refused.
const DETACHED_MAX: usize = 1024;

/// The state machine's whole state: the view and what only the registry itself needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// What everybody sees.
    pub view: View,
    /// Peers that belong to Raft's membership. After `registry recover` a peer may still be in
    /// the view, because its bricks are, and be no member until it is probed again.
    pub members: BTreeSet<u64>,
    /// Detached peers with the log index of their removal, oldest first.
    pub detached: VecDeque<(u64, u64)>,
    answers: VecDeque<(u64, Outcome)>,
}

impl State {
    /// A state that shows `view` and knows nothing else.
    pub fn showing(view: View) -> Self {
        State {
            view,
            ..State::default()
        }
    }

    /// Applies one change found at `log_index`. A change whose id was seen is answered again.
    pub fn apply(&mut self, log_index: u64, change: &Change) -> Outcome {
        if change.id != 0
            && let Some((_, outcome)) = self.answers.iter().find(|(id, _)| *id == change.id)
        {
            return outcome.clone();
        }
        let outcome = match self.name_clash(&change.command) {
            Some(refusal) => Outcome {
                refusal,
                index: self.view.index,
            },
            None => apply(&mut self.view, &change.command),
        };
        if outcome.refusal.is_empty() {
            self.follow(log_index, &change.command);
        }
        if change.id != 0 {
            self.answers.push_back((change.id, outcome.clone()));
            if self.answers.len() > ANSWERS_MAX {
                self.answers.pop_front();
            }
        }
        outcome
    }

    /// The log index at which this peer was detached, if it was.
    pub fn detached_at(&self, peer: u64) -> Option<u64> {
        self.detached
            .iter()
            .find(|(id, _)| *id == peer)
            .map(|(_, at)| *at)
    }

    /// Keeps what stands beside the view in step with a command that was applied.
    fn follow(&mut self, log_index: u64, command: &Command) {
        match &command.what {
            Some(What::PutPeer(PutPeer {
                peer: Some(peer),
                replaces,
            })) => {
                self.members.insert(peer.id);
                self.detached.retain(|(id, _)| *id != peer.id);
                if *replaces != 0 {
                    self.detach(*replaces, log_index);
                }
            }
            Some(What::RemovePeer(RemovePeer { id })) => self.detach(*id, log_index),
            Some(What::NewGeneration(_)) => {
                self.members.clear();
                self.detached.clear();
            }
            _ => {}
        }
    }

    fn detach(&mut self, id: u64, log_index: u64) {
        self.members.remove(&id);
        self.detached.push_back((id, log_index));
        if self.detached.len() > DETACHED_MAX {
            self.detached.pop_front();
        }
    }

    /// Two members cannot have one address: a host that lost its data directory is a new peer, which
    /// takes the old one's place or waits until that is detached.
    fn name_clash(&self, command: &Command) -> Option<String> {
        let Some(What::PutPeer(PutPeer {
            peer: Some(peer),
            replaces,
        })) = &command.what
        else {
            return None;
        };
        let old = self.view.peers.values().find(|old| {
            old.id != peer.id
                && old.id != *replaces
                && same_host(&old.host, &peer.host)
                && old.port == peer.port
                && self.members.contains(&old.id)
        })?;
        Some(format!(
            "{} port {} is already in the pool as the peer {}; it seems to have lost its data \
             directory and is a new peer now: probe it again",
            old.host, old.port, old.uuid
        ))
    }
}

/// Applies one command to the view. A command that was applied already is answered as applied.
/// The index of the outcome is the view's.
pub fn apply(view: &mut View, command: &Command) -> Outcome {
    match change(view, command) {
        Ok(()) => {
            view.index += 1;
            Outcome {
                refusal: String::new(),
                index: view.index,
            }
        }
        Err(refusal) => Outcome {
            refusal,
            index: view.index,
        },
    }
}

fn change(view: &mut View, command: &Command) -> Result<(), String> {
    match command
        .what
        .as_ref()
        .ok_or("an empty command: is that peer of a newer version?")?
    {
        What::PutPeer(PutPeer { peer, replaces }) => put_peer(
            view,
            peer.as_ref().ok_or("a peer without content")?,
            *replaces,
        ),
        What::RemovePeer(RemovePeer { id }) => remove_peer(view, *id),
        What::CreateVolume(CreateVolume { volume }) => {
            create_volume(view, volume.as_ref().ok_or("a volume without content")?)
        }
        What::SetVolumeStatus(command) => set_volume_status(view, command),
        What::DeleteVolume(command) => delete_volume(view, &command.volume),
        What::SetOptions(command) => {
            let volume = volume_mut(view, &command.volume)?;
            volume.options.extend(command.options.clone());
            Ok(())
        }
        What::ResetOptions(command) => {
            let volume = volume_mut(view, &command.volume)?;
            volume.options.retain(|key, _| {
                !command.keys.is_empty() && !command.keys.iter().any(|reset| reset == key)
            });
            Ok(())
        }
        What::ChangeEpoch(command) => change_epoch(view, command),
        What::SetBrickStatus(command) => set_brick_status(view, command),
        What::ReplaceBrick(command) => replace::replace_brick(view, command),
        What::FoundPool(command) => {
            if view.pool != 0 {
                return Err("the pool is founded already".to_owned());
            }
            view.pool = command.pool;
            view.generation = 1;
            Ok(())
        }
        What::NewGeneration(command) => new_generation(view, command),
    }
}

fn new_generation(view: &mut View, command: &NewGeneration) -> Result<(), String> {
    if command.generation <= view.generation {
        return Err(format!(
            "generation {} of the pool is not newer than {}",
            command.generation, view.generation
        ));
    }
    if let Some(start) = &command.view {
        *view = start.clone();
    }
    view.generation = command.generation;
    Ok(())
}

fn put_peer(view: &mut View, peer: &Peer, replaces: u64) -> Result<(), String> {
    if peer.id == 0 || peer.host.is_empty() {
        return Err("a peer needs an id and a host".to_owned());
    }
    if let Some(old) = view.peers.get(&replaces) {
        let is_there = same_host(&old.host, &peer.host) && old.port == peer.port;
        if !is_there || old.id == peer.id {
            return Err(format!(
                "{} is not the host of the peer that is replaced",
                peer.host
            ));
        }
        view.peers.remove(&replaces);
        let volumes = view.volumes.values_mut();
        for brick in volumes.flat_map(|volume| &mut volume.bricks) {
            if brick.peer == replaces {
                brick.peer = peer.id;
            }
        }
    }
    if !view.peers.contains_key(&peer.id) && view.peers.len() >= PEERS_MAX {
        return Err(format!(
            "the pool has {PEERS_MAX} peers, which is the most it can have"
        ));
    }
    view.peers.insert(peer.id, peer.clone());
    Ok(())
}

fn remove_peer(view: &mut View, id: u64) -> Result<(), String> {
    let Some(peer) = view.peers.get(&id) else {
        return Err(format!("peer {id:016x} is not part of cluster"));
    };
    let host = &peer.host;
    if view
        .volumes
        .values()
        .any(|volume| volume.bricks.iter().any(|brick| brick.peer == id))
    {
        return Err(format!(
            "Peer {host} hosts one or more bricks. If the peer is in not recoverable state then \
             use either replace-brick or remove-brick command with force to remove all bricks \
             from the peer and attempt the peer detach again."
        ));
    }
    view.peers.remove(&id);
    Ok(())
}

fn create_volume(view: &mut View, volume: &Volume) -> Result<(), String> {
    let name = &volume.name;
    if let Some(refusal) = volume_name_refusal(name) {
        return Err(refusal);
    }
    if let Some(old) = view.volumes.get(name) {
        return if old.id == volume.id && !volume.id.is_empty() {
            Ok(())
        } else {
            Err(format!("Volume {name} already exists"))
        };
    }
    if view.volumes.len() >= VOLUMES_MAX {
        return Err(format!(
            "the pool has {VOLUMES_MAX} volumes, which is the most it can have"
        ));
    }
    check_bricks(view, volume)?;
    check_sets(volume)?;
    view.volumes.insert(name.clone(), volume.clone());
    Ok(())
}

fn check_bricks(view: &View, volume: &Volume) -> Result<(), String> {
    if volume.bricks.is_empty() || volume.bricks.len() > BRICKS_MAX {
        return Err(format!("a volume has 1 to {BRICKS_MAX} bricks"));
    }
    let mut ids = BTreeSet::new();
    let mut places = BTreeSet::new();
    for brick in &volume.bricks {
        let Some(peer) = view.peers.get(&brick.peer) else {
            return Err(format!(
                "the brick {} is on a host that is not part of the pool; probe it first",
                brick.path
            ));
        };
        let place = format!("{}:{}", peer.host, brick.path);
        if brick.id == 0 || !ids.insert(brick.id) {
            return Err(format!("the brick {place} has no id of its own"));
        }
        if !places.insert((brick.peer, &brick.path)) {
            return Err(format!("Found duplicate exports {place}"));
        }
        check_unused(view, brick, None, &place)?;
    }
    Ok(())
}

/// Refuses a brick whose id or place a volume has, but for the brick `beside` that it replaces.
fn check_unused(
    view: &View,
    brick: &Brick,
    beside: Option<u64>,
    place: &str,
) -> Result<(), String> {
    let used = |other: &&Volume| {
        let mut bricks = other.bricks.iter().filter(|old| beside != Some(old.id));
        bricks.any(|old| old.id == brick.id || (old.peer == brick.peer && old.path == brick.path))
    };
    match view.volumes.values().find(used) {
        Some(other) => Err(format!(
            "{place} is already part of a volume: {}",
            other.name
        )),
        None => Ok(()),
    }
}

fn check_sets(volume: &Volume) -> Result<(), String> {
    let known: BTreeSet<u64> = volume.bricks.iter().map(|brick| brick.id).collect();
    let mut placed = BTreeSet::new();
    for set in &volume.sets {
        for brick in &set.bricks {
            if !known.contains(brick) || !placed.insert(*brick) {
                return Err(format!(
                    "set {} of the volume names a wrong brick",
                    set.index
                ));
            }
        }
    }
    if placed != known {
        return Err("every brick of a volume belongs to one replica set".to_owned());
    }
    let sets: BTreeSet<u32> = volume.sets.iter().map(|set| set.index).collect();
    if volume
        .layout
        .iter()
        .any(|range| range.first > range.last || !sets.contains(&range.set))
    {
        return Err("the layout names a replica set that the volume does not have".to_owned());
    }
    Ok(())
}

fn set_volume_status(view: &mut View, command: &SetVolumeStatus) -> Result<(), String> {
    let wanted = command.status();
    let volume = volume_mut(view, &command.volume)?;
    let name = &volume.name;
    match (volume.status(), wanted) {
        (VolumeStatus::VolumeStarted, VolumeStatus::VolumeStarted) => {
            Err(format!("Volume {name} already started"))
        }
        (VolumeStatus::VolumeStarted, VolumeStatus::VolumeStopped)
        | (_, VolumeStatus::VolumeStarted) => {
            volume.set_status(wanted);
            Ok(())
        }
        (_, VolumeStatus::VolumeStopped) => {
            Err(format!("Volume {name} is not in the started state"))
        }
        (_, VolumeStatus::VolumeCreated) => Err(format!(
            "Volume {name} exists; it can be started or stopped"
        )),
    }
}

fn delete_volume(view: &mut View, name: &str) -> Result<(), String> {
    if volume_mut(view, name)?.status() == VolumeStatus::VolumeStarted {
        return Err(format!(
            "Volume {name} has been started.Volume needs to be stopped before deletion."
        ));
    }
    view.volumes.remove(name);
    Ok(())
}

fn set_brick_status(view: &mut View, command: &SetBrickStatus) -> Result<(), String> {
    let wanted = command.status();
    let volume = volume_mut(view, &command.volume)?;
    let brick = volume
        .bricks
        .iter_mut()
        .find(|brick| brick.id == command.brick)
        .ok_or_else(|| {
            format!(
                "brick {:016x} is not part of volume {}",
                command.brick, command.volume
            )
        })?;
    brick.set_status(wanted);
    Ok(())
}

/// Compare-and-set on (number, id). The epoch that is replaced and those a copy made alone go to
/// the history.
fn change_epoch(view: &mut View, command: &ChangeEpoch) -> Result<(), String> {
    let volume = volume_mut(view, &command.volume)?;
    let name = volume.name.clone();
    let set = volume
        .sets
        .iter_mut()
        .find(|set| set.index == command.set)
        .ok_or_else(|| format!("volume {name} has no replica set {}", command.set))?;
    let next = command
        .next
        .as_ref()
        .ok_or("a change of epoch without the next epoch")?;
    let now = set.epoch.clone().unwrap_or_default();
    if now.id == next.id && now.number == next.number
        || set
            .history
            .iter()
            .any(|past| past.id == next.id && past.number == next.number)
    {
        return Ok(());
    }
    if (now.number, now.id) != (command.expect_number, command.expect_id) {
        return Err(format!(
            "the epoch of set {} of {name} is {} ({:016x}), not {} ({:016x}): another change came \
             first",
            command.set, now.number, now.id, command.expect_number, command.expect_id
        ));
    }
    check_epoch(set, &now, next)?;
    if now.id != 0 {
        set.history.push(now);
    }
    set.history.extend(command.lone.iter().cloned());
    let surplus = set.history.len().saturating_sub(HISTORY_MAX);
    set.history.drain(..surplus);
    set.epoch = Some(next.clone());
    Ok(())
}

fn check_epoch(set: &ReplicaSet, now: &Epoch, next: &Epoch) -> Result<(), String> {
    if next.id == 0 || next.number <= now.number {
        return Err(format!(
            "the epoch after {} needs a higher number and an id",
            now.number
        ));
    }
    let listed = |brick: u64| next.in_sync.iter().any(|copy| copy.brick == brick);
    if next.in_sync.is_empty() || next.primary != 0 && !listed(next.primary) {
        return Err("an epoch names the copies in sync, its primary among them".to_owned());
    }
    if let Some(copy) = next
        .in_sync
        .iter()
        .find(|copy| !set.bricks.contains(&copy.brick))
    {
        return Err(format!(
            "brick {:016x} is not part of set {}",
            copy.brick, set.index
        ));
    }
    Ok(())
}

fn volume_mut<'v>(view: &'v mut View, name: &str) -> Result<&'v mut Volume, String> {
    view.volumes
        .get_mut(name)
        .ok_or_else(|| format!("Volume {name} does not exist"))
}

#[cfg(test)]
mod tests;
