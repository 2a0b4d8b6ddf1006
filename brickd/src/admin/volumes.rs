//! Creating, starting, stopping, deleting and configuring volumes; taking bricks down and up.

use std::collections::HashMap;
use std::time::Duration;

use futures::future::join_all;
use mortar_common::ids::random_id;
use mortar_common::name::volume_name_refusal;
use mortar_common::placement::SLOTS;
use mortar_common::{BrickId, VolumeId};
use mortar_proto::control::{
    CopyRole, PrepareBrickRequest, PrepareStep, VolumeCreateRequest, VolumeResetRequest,
    VolumeSetRequest, VolumeStartRequest,
};
use mortar_proto::registry::command::What;
use mortar_proto::registry::{
    Brick, BrickStatus, ChangeEpoch, Copy, CreateVolume, DeleteVolume, Epoch, Limits, Peer,
    ReplicaSet, ResetOptions, SetBrickStatus, SetOptions, SetVolumeStatus, SlotRange, View, Volume,
    VolumeStatus,
};

use super::bricks::{self, BrickSpec};
use super::{AdminService, ProposeError, Refusal, START_WAIT_MAX, options};
use crate::registry::is_called;

/// How often `volume start` looks whether its bricks are up.
pub(super) const START_POLL: Duration = Duration::from_millis(100);
/// How long the addresses of a brick's host may take to be found.
const RESOLVE_MAX: Duration = Duration::from_secs(2);

/// A brick of the volume being made: where, and with which ids.
struct Planned {
    peer: Peer,
    spec: BrickSpec,
    id: BrickId,
}

impl AdminService {
    pub(super) async fn create_volume(
        &self,
        request: VolumeCreateRequest,
    ) -> Result<String, Refusal> {
        let name = request.volume;
        if let Some(refusal) = volume_name_refusal(&name) {
            return Err(Refusal(refusal));
        }
        let replica = request.replica.max(1);
        let specs = bricks::check_request(replica, &request.transport, &request.bricks)?;
        let view = self.registry.view();
        if view.volumes.contains_key(&name) {
            return Err(Refusal(format!("Volume {name} already exists")));
        }
        let placed = place(&self.known_peers(&view), specs).await?;
        bricks::check_places(&view, &placed)?;
        let shared = |(at, (peer, _)): (usize, &(Peer, BrickSpec))| {
            placed[..at].iter().any(|(other, _)| other.id == peer.id)
        };
        if !request.force && placed.iter().enumerate().any(shared) {
            return Err(Refusal::new(bricks::SAME_HOST));
        }
        let planned: Vec<Planned> = placed
            .into_iter()
            .map(|(peer, spec)| Planned {
                peer,
                spec,
                id: BrickId::random(),
            })
            .collect();
        let making = Making {
            name,
            id: VolumeId::random(),
            force: request.force,
            planned,
        };
        self.make_volume(making, replica).await
    }

    /// The pool's peers. A host in no pool yet is a pool of one as soon as it has a volume.
    pub(super) fn known_peers(&self, view: &View) -> Vec<Peer> {
        if view.peers.is_empty() {
            vec![self.registry.local()]
        } else {
            view.peers.values().cloned().collect()
        }
    }

    async fn make_volume(&self, making: Making, replica: u32) -> Result<String, Refusal> {
        let limits = self.step(&making, PrepareStep::PrepareCheck).await?;
        if let Err(refusal) = self.step(&making, PrepareStep::PrepareMake).await {
            return Err(self.undo(&making, refusal).await);
        }
        let volume = making.volume(replica, limits);
        match self
            .propose(What::CreateVolume(CreateVolume {
                volume: Some(volume),
            }))
            .await
        {
            Ok(()) => {
                tracing::info!(volume = making.name, "volume created");
                Ok("please start the volume to access data".to_owned())
            }
            Err(ProposeError::NotMade(why)) => Err(self.undo(&making, Refusal(why)).await),
            // The volume may exist: its bricks must then be in place, so nothing is undone.
            Err(ProposeError::Unknown(why)) => Err(Refusal(why)),
        }
    }

    /// One step on all bricks at once; the first refusal in the order of the bricks counts. Of a
    /// check: what all of the bricks' disks can hold.
    async fn step(&self, making: &Making, step: PrepareStep) -> Result<Limits, Refusal> {
        let asks = making.planned.iter().map(|planned| async move {
            let named = |refusal: Refusal| {
                Refusal(match refusal.0.contains(&planned.spec.path) {
                    true => refusal.0,
                    false => format!("{}: {refusal}", planned.spec),
                })
            };
            self.prepare(&planned.peer, making.request(planned, step))
                .await
                .map_err(named)
        });
        let mut limits = Limits::default();
        for reply in join_all(asks).await {
            let of_brick = reply?.limits.unwrap_or_default();
            limits.links = smaller(limits.links, of_brick.links);
            limits.xattr_bytes = smaller(limits.xattr_bytes, of_brick.xattr_bytes);
            limits.file_bytes = smaller(limits.file_bytes, of_brick.file_bytes);
        }
        Ok(limits)
    }

    /// Takes back what was made, and adds to the refusal what could not be taken back.
    async fn undo(&self, making: &Making, refusal: Refusal) -> Refusal {
        let left = self.give_back(making).await;
        if left.is_empty() {
            refusal
        } else {
            Refusal(format!("{refusal}; {left}"))
        }
    }

    /// Frees the folders; the sentence names those that could not be freed, empty = none.
    async fn give_back(&self, making: &Making) -> String {
        let asks = making.planned.iter().map(|planned| async move {
            let request = making.request(planned, PrepareStep::PrepareUndo);
            let undone = self.prepare(&planned.peer, request).await;
            undone
                .err()
                .map(|why| format!("{} could not be given back: {why}", planned.spec))
        });
        let left: Vec<String> = join_all(asks).await.into_iter().flatten().collect();
        left.join("; ")
    }

    pub(super) async fn start_volume(
        &self,
        request: VolumeStartRequest,
    ) -> Result<String, Refusal> {
        let name = request.volume;
        let volume = self.volume(&name)?;
        let trusted = match request.trusted_brick.as_str() {
            "" => None,
            text => Some(self.brick_of(&volume, text)?),
        };
        if trusted.is_some() && !request.force {
            return Err(Refusal::new(
                "to trust one brick over the others takes 'force'",
            ));
        }
        let started = volume.status() == VolumeStatus::VolumeStarted;
        if started && !request.force {
            return Err(Refusal(format!("Volume {name} already started")));
        }
        for brick in volume
            .bricks
            .iter()
            .filter(|b| b.status() == BrickStatus::BrickDown)
        {
            if request.force {
                self.set_brick(&name, brick.id, BrickStatus::BrickUp)
                    .await?;
            }
        }
        if !started {
            self.set_status(&name, VolumeStatus::VolumeStarted).await?;
        } else if trusted.is_none() {
            self.restart_closed(&volume, None).await?;
        }
        if let Some(brick) = trusted {
            self.trust(&volume, brick).await?;
            return Ok(String::new());
        }
        // Only a courtesy to what follows in a script: the volume is started either way.
        let _ = tokio::time::timeout(START_WAIT_MAX, self.wait_online(&name)).await;
        Ok(String::new())
    }

    pub(super) async fn stop_volume(&self, name: &str) -> Result<String, Refusal> {
        let volume = self.volume(name)?;
        if volume.status() != VolumeStatus::VolumeStarted {
            return Err(Refusal(format!(
                "Volume {name} is not in the started state"
            )));
        }
        self.set_status(name, VolumeStatus::VolumeStopped).await?;
        Ok(String::new())
    }

    pub(super) async fn delete_volume(&self, name: &str) -> Result<String, Refusal> {
        let volume = self.volume(name)?;
        if volume.status() == VolumeStatus::VolumeStarted {
            return Err(Refusal(format!(
                "Volume {name} has been started.Volume needs to be stopped before deletion."
            )));
        }
        let making = Making::of(&self.registry.view(), &volume)?;
        self.propose(What::DeleteVolume(DeleteVolume {
            volume: name.to_owned(),
        }))
        .await?;
        tracing::info!(volume = name, "volume deleted");
        Ok(self.give_back(&making).await)
    }

    pub(super) async fn set_options(&self, request: VolumeSetRequest) -> Result<String, Refusal> {
        if request.volume == "all" {
            return Err(Refusal::new(
                "there are no options for all volumes: name one",
            ));
        }
        self.volume(&request.volume)?;
        if request.options.is_empty() {
            return Err(Refusal::new("no option given"));
        }
        let mut set = HashMap::new();
        for (key, text) in request.options {
            let spec = options::find(&key)?;
            spec.parse(&text)?;
            if set
                .insert(spec.key.to_owned(), text.trim().to_owned())
                .is_some()
            {
                return Err(Refusal(format!("{} is given twice", spec.key)));
            }
        }
        let command = SetOptions {
            volume: request.volume.clone(),
            options: set.clone(),
        };
        self.propose(What::SetOptions(command)).await?;
        tracing::info!(volume = request.volume, options = ?set, "options set");
        Ok(String::new())
    }

    pub(super) async fn reset_options(
        &self,
        request: VolumeResetRequest,
    ) -> Result<String, Refusal> {
        self.volume(&request.volume)?;
        let found = request
            .keys
            .iter()
            .filter(|key| *key != "all")
            .map(|key| options::find(key));
        let keys = found.map(|spec| spec.map(|spec| spec.key.to_owned()));
        let keys = keys.collect::<Result<Vec<String>, Refusal>>()?;
        let command = ResetOptions {
            volume: request.volume,
            keys,
        };
        self.propose(What::ResetOptions(command)).await?;
        Ok("reset volume successful".to_owned())
    }

    /// `brick stop` and `brick start`.
    pub(super) async fn move_brick(
        &self,
        text: &str,
        status: BrickStatus,
    ) -> Result<String, Refusal> {
        let spec: BrickSpec = text.parse()?;
        let view = self.registry.view();
        for volume in view.volumes.values() {
            let Some(brick) = find_brick(&view, volume, &spec) else {
                continue;
            };
            let up = BrickStatus::BrickUp;
            let again = status == up && brick.status() == up;
            if again && self.restart_closed(volume, Some(brick.id)).await? > 0 {
                return Ok(String::new());
            }
            if brick.status() == status {
                let is = if status == BrickStatus::BrickUp {
                    "not stopped"
                } else {
                    "stopped"
                };
                return Err(Refusal(format!(
                    "{spec} of volume {} is {is} already",
                    volume.name
                )));
            }
            self.set_brick(&volume.name, brick.id, status).await?;
            return Ok(String::new());
        }
        Err(Refusal(format!(
            "\"{spec}\"- No such brick available in any volume."
        )))
    }

    async fn set_status(&self, name: &str, status: VolumeStatus) -> Result<(), Refusal> {
        let command = SetVolumeStatus {
            volume: name.to_owned(),
            status: status.into(),
        };
        self.propose(What::SetVolumeStatus(command)).await?;
        tracing::info!(volume = name, ?status, "volume status changed");
        Ok(())
    }

    pub(super) async fn set_brick(
        &self,
        name: &str,
        brick: u64,
        status: BrickStatus,
    ) -> Result<(), Refusal> {
        let command = SetBrickStatus {
            volume: name.to_owned(),
            brick,
            status: status.into(),
        };
        self.propose(What::SetBrickStatus(command)).await?;
        tracing::info!(volume = name, brick = %BrickId(brick), ?status, "brick status changed");
        Ok(())
    }

    fn brick_of(&self, volume: &Volume, text: &str) -> Result<u64, Refusal> {
        let spec: BrickSpec = text.parse()?;
        find_brick(&self.registry.view(), volume, &spec)
            .map(|brick| brick.id)
            .ok_or_else(|| {
                Refusal(format!(
                    "\"{spec}\"- No such brick available in the volume."
                ))
            })
    }

    /// Makes one brick the only in-sync copy of its set by the administrator's word.
    async fn trust(&self, volume: &Volume, brick: u64) -> Result<(), Refusal> {
        let name = &volume.name;
        let view = self.registry.view();
        let states = self.brick_states(&view, name).await;
        if states
            .values()
            .any(|state| state.role() == CopyRole::CopyPrimary)
        {
            return Err(Refusal(format!(
                "volume {name} serves already: no brick needs trust"
            )));
        }
        let absent = || Refusal::new("the brick to trust does not run: start its host's brickd");
        let place = volume.bricks.iter().find(|of_volume| of_volume.id == brick);
        let peer = place
            .and_then(|place| view.peers.get(&place.peer))
            .ok_or_else(absent)?;
        let waited =
            tokio::time::timeout(START_WAIT_MAX, self.wait_incarnation(peer, name, brick)).await;
        let incarnation = waited.map_err(|_| absent())?;
        let volume = self.volume(name)?;
        let set = volume.sets.iter().find(|set| set.bricks.contains(&brick));
        let set = set.ok_or_else(|| Refusal(format!("volume {name} has no such brick")))?;
        let epoch = set.epoch.clone().unwrap_or_default();
        let next = Epoch {
            number: epoch.number + 1,
            id: random_id(),
            in_sync: vec![Copy { brick, incarnation }],
            primary: brick,
        };
        let command = ChangeEpoch {
            volume: name.clone(),
            set: set.index,
            expect_number: epoch.number,
            expect_id: epoch.id,
            next: Some(next),
            lone: Vec::new(),
        };
        self.propose(What::ChangeEpoch(command)).await?;
        tracing::info!(volume = name, brick = %BrickId(brick), "brick trusted by command");
        Ok(())
    }

    /// Asks only the brick's own host: another that is frozen, which is why trust is needed, must
    /// not use up the time.
    async fn wait_incarnation(&self, peer: &Peer, name: &str, brick: u64) -> u64 {
        loop {
            let states = self.states_of(peer, name).await.unwrap_or_default();
            match states.iter().find(|state| state.id == brick) {
                Some(state) if state.incarnation != 0 => return state.incarnation,
                _ => tokio::time::sleep(START_POLL).await,
            }
        }
    }

    async fn wait_online(&self, name: &str) {
        loop {
            let view = self.registry.view();
            let Some(volume) = view.volumes.get(name) else {
                return;
            };
            let states = self.brick_states(&view, name).await;
            let up = |brick: &Brick| {
                brick.status() == BrickStatus::BrickDown
                    || states.get(&brick.id).is_some_and(|state| state.online)
            };
            if volume.bricks.iter().all(up) {
                return;
            }
            tokio::time::sleep(START_POLL).await;
        }
    }
}

/// A volume's bricks on their way into being, or out of it.
struct Making {
    name: String,
    id: VolumeId,
    force: bool,
    planned: Vec<Planned>,
}

impl Making {
    /// The bricks of a volume that exists; those of a peer that left the pool are left out.
    fn of(view: &View, volume: &Volume) -> Result<Self, Refusal> {
        let id = VolumeId::from_slice(&volume.id)
            .ok_or_else(|| Refusal(format!("volume {} has no id", volume.name)))?;
        let planned = volume.bricks.iter().filter_map(|brick| {
            let peer = view.peers.get(&brick.peer)?.clone();
            let spec = BrickSpec {
                host: peer.host.clone(),
                path: brick.path.clone(),
            };
            Some(Planned {
                peer,
                spec,
                id: BrickId(brick.id),
            })
        });
        Ok(Making {
            name: volume.name.clone(),
            id,
            force: false,
            planned: planned.collect(),
        })
    }

    fn request(&self, planned: &Planned, step: PrepareStep) -> PrepareBrickRequest {
        PrepareBrickRequest {
            volume: self.name.clone(),
            volume_id: self.id.0.to_vec(),
            brick: planned.id.0,
            path: planned.spec.path.clone(),
            force: self.force,
            step: step.into(),
        }
    }

    /// As the registry holds it: one replica set, all slots in it, an epoch that nobody serves.
    fn volume(&self, replica: u32, limits: Limits) -> Volume {
        let brick = |planned: &Planned| Brick {
            id: planned.id.0,
            peer: planned.peer.id,
            path: planned.spec.path.clone(),
            status: BrickStatus::BrickUp.into(),
        };
        let epoch = Epoch {
            number: 0,
            id: 0, // As a brick that was never started has it: the same epoch.
            in_sync: Vec::new(),
            primary: 0,
        };
        Volume {
            name: self.name.clone(),
            id: self.id.0.to_vec(),
            status: VolumeStatus::VolumeCreated.into(),
            replica,
            bricks: self.planned.iter().map(brick).collect(),
            sets: vec![ReplicaSet {
                index: 0,
                bricks: self.planned.iter().map(|planned| planned.id.0).collect(),
                epoch: Some(epoch),
                history: Vec::new(),
            }],
            layout: vec![SlotRange {
                first: 0,
                last: u32::from(SLOTS) - 1,
                set: 0,
            }],
            options: HashMap::new(),
            limits: Some(limits),
            created_secs: now_secs(),
        }
    }
}

pub(super) fn find_brick<'a>(
    view: &View,
    volume: &'a Volume,
    spec: &BrickSpec,
) -> Option<&'a Brick> {
    volume.bricks.iter().find(|brick| {
        let host = view
            .peers
            .get(&brick.peer)
            .is_some_and(|peer| is_called(peer, &spec.host));
        host && brick.path == spec.path
    })
}

/// Finds the peer of each brick: by name, else by address.
pub(super) async fn place(
    peers: &[Peer],
    specs: Vec<BrickSpec>,
) -> Result<Vec<(Peer, BrickSpec)>, Refusal> {
    let mut placed = Vec::with_capacity(specs.len());
    for spec in specs {
        let peer = match peers.iter().find(|peer| is_called(peer, &spec.host)) {
            Some(peer) => peer.clone(),
            None => peer_by_address(peers, &spec.host).await.ok_or_else(|| {
                Refusal(format!(
                    "Host {0} is not in 'Peer in Cluster' state: it is no peer of this pool; run \
                     'mortar peer probe {0}' first",
                    spec.host
                ))
            })?,
        };
        placed.push((peer, spec));
    }
    Ok(placed)
}

/// The one peer that has an address of `host`; none when several do.
async fn peer_by_address(peers: &[Peer], host: &str) -> Option<Peer> {
    let wanted = addresses(host).await;
    let resolved = peers
        .iter()
        .map(|peer| async move { (peer, addresses(&peer.host).await) });
    let mut found = join_all(resolved)
        .await
        .into_iter()
        .filter(|(_, of_peer)| of_peer.iter().any(|address| wanted.contains(address)));
    match (found.next(), found.next()) {
        (Some((peer, _)), None) => Some(peer.clone()),
        _ => None,
    }
}

async fn addresses(host: &str) -> Vec<std::net::IpAddr> {
    let looked_up = tokio::time::timeout(RESOLVE_MAX, tokio::net::lookup_host((host, 0)));
    match looked_up.await {
        Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

/// The smaller of two limits, where 0 = not known.
fn smaller<T: Ord + Default + std::marker::Copy>(one: T, other: T) -> T {
    if one == T::default() || (other != T::default() && other < one) {
        other
    } else {
        one
    }
}

fn now_secs() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}
