//! `volume replace-brick` and `volume reset-brick`: a new, empty copy takes an old one's place.
//!
//! The old copy is stopped first, and whoever is primary puts it out of the epoch as it does with
//! any copy that is gone: only the set itself knows what was acknowledged where, and with two
//! voters an epoch that somebody else made could be committed after a copy went on alone. Then the
//! registry gives its place to a brick with a new id, which was never in sync and is filled by the
//! heal like any other.

use std::time::Duration;

use mortar_common::{BrickId, VolumeId};
use mortar_proto::control::{
    PrepareBrickRequest, PrepareStep, ResetBrickStep, VolumeReplaceBrickRequest,
    VolumeResetBrickRequest,
};
use mortar_proto::registry::command::What;
use mortar_proto::registry::{
    Brick, BrickStatus, Copy, Limits, Peer, ReplaceBrick, ReplicaSet, View, Volume, VolumeStatus,
};

use super::bricks::{self, BrickSpec};
use super::volumes::{START_POLL, find_brick, place};
use super::{AdminService, Options, ProposeError, Refusal};
use crate::host::{SPLIT_WORDS, STOPPING_WORDS};

/// A stopped brick is out of its set's epoch after the ping timeout and this at the latest: its
/// host may be gone without a word, and the registry may need a new leader.
const OUT_WAIT_MAX: Duration = Duration::from_secs(20);
/// A stopped brick lets go of its folder within this: it writes everything back first.
pub(super) const FOLDER_WAIT_MAX: Duration = Duration::from_secs(20);

/// What is to be replaced.
struct Leaving {
    volume: Volume,
    id: VolumeId,
    brick: Brick,
    peer: Option<Peer>,
    spec: BrickSpec,
}

/// What takes its place.
struct Coming {
    peer: Peer,
    spec: BrickSpec,
    id: BrickId,
}

impl AdminService {
    pub(super) async fn replace_brick(
        &self,
        request: VolumeReplaceBrickRequest,
    ) -> Result<String, Refusal> {
        let leaving = self.leaving(&request.volume, &request.brick)?;
        let coming = self.coming(&request.with).await?;
        if is_same(&leaving, &coming) {
            return Err(Refusal(format!(
                "{0} is to be replaced by itself; to fill the same folder anew use 'mortar volume \
                 reset-brick {1} {0} start'",
                leaving.spec, leaving.volume.name
            )));
        }
        let view = self.registry.view();
        let new_place = [(coming.peer.clone(), coming.spec.clone())];
        bricks::check_places(&view, &new_place)?;
        self.check_not_needed(&leaving).await?;
        let limits = self.check_folder(&leaving, &coming, true).await?;
        self.make_folder(&leaving, &coming, true).await?;
        if let Err(refusal) = self.put_out(&leaving).await {
            return Err(self.take_back(&leaving, &coming, refusal).await);
        }
        match self.commit(&leaving, &coming, limits).await {
            Ok(()) => {}
            Err(ProposeError::NotMade(why)) => {
                self.let_run_again(&leaving).await;
                return Err(self.take_back(&leaving, &coming, Refusal(why)).await);
            }
            // It may have been done: the new folder must be in place then.
            Err(ProposeError::Unknown(why)) => return Err(Refusal(why)),
        }
        let done = "replace-brick commit force operation successful".to_owned();
        match self.give_folder_back(&leaving).await {
            Ok(()) => Ok(done),
            Err(why) => Ok(format!(
                "{done}; {} is not part of the volume any more, but its .mortar could not be \
                 removed: {why}",
                leaving.spec
            )),
        }
    }

    pub(super) async fn reset_brick(
        &self,
        request: VolumeResetBrickRequest,
    ) -> Result<String, Refusal> {
        let leaving = self.leaving(&request.volume, &request.brick)?;
        match request.step() {
            ResetBrickStep::ResetBrickStart => {
                self.check_not_needed(&leaving).await?;
                self.put_out(&leaving).await?;
                // Who empties the folder next must not meet the brick in it.
                let _ = tokio::time::timeout(FOLDER_WAIT_MAX, self.wait_ended(&leaving)).await;
                Ok("reset-brick start operation successful".to_owned())
            }
            ResetBrickStep::ResetBrickCommit => {
                let coming = self.coming(&request.with).await?;
                self.reset_commit(&leaving, &coming, request.force).await
            }
        }
    }

    async fn reset_commit(
        &self,
        leaving: &Leaving,
        coming: &Coming,
        force: bool,
    ) -> Result<String, Refusal> {
        let name = &leaving.volume.name;
        if !is_same(leaving, coming) {
            return Err(Refusal::new(
                "When destination brick is new, please use replace-brick command.",
            ));
        }
        if leaving.brick.status() != BrickStatus::BrickDown {
            return Err(Refusal(format!(
                "Source brick must be stopped. Please use mortar volume reset-brick {name} {} \
                 start.",
                leaving.spec
            )));
        }
        self.check_not_needed(leaving).await?;
        self.put_out(leaving).await?;
        if force {
            // What the brick was is given up: it is not in sync, and is asked to be filled anew.
            self.give_folder_back(leaving).await?;
        }
        let limits = self.check_folder(leaving, coming, force).await?;
        self.make_folder(leaving, coming, force).await?;
        match self.commit(leaving, coming, limits).await {
            Ok(()) if force => Ok("reset-brick commit force operation successful".to_owned()),
            Ok(()) => Ok("reset-brick commit operation successful".to_owned()),
            Err(ProposeError::NotMade(why)) => {
                Err(self.take_back(leaving, coming, Refusal(why)).await)
            }
            Err(ProposeError::Unknown(why)) => Err(Refusal(why)),
        }
    }

    /// The brick that goes, of a volume that runs.
    fn leaving(&self, volume: &str, brick: &str) -> Result<Leaving, Refusal> {
        let spec: BrickSpec = brick.parse()?;
        let volume = self.volume(volume)?;
        let name = &volume.name;
        if volume.status() != VolumeStatus::VolumeStarted {
            return Err(Refusal(format!(
                "Volume {name} is not in the started state"
            )));
        }
        let view = self.registry.view();
        let found = find_brick(&view, &volume, &spec)
            .cloned()
            .ok_or_else(|| Refusal(format!("brick: {spec} does not exist in volume: {name}")))?;
        let id = VolumeId::from_slice(&volume.id)
            .ok_or_else(|| Refusal(format!("volume {name} has no id")))?;
        Ok(Leaving {
            peer: view.peers.get(&found.peer).cloned(),
            volume,
            id,
            brick: found,
            spec,
        })
    }

    async fn coming(&self, brick: &str) -> Result<Coming, Refusal> {
        let spec: BrickSpec = brick.parse()?;
        let peers = self.known_peers(&self.registry.view());
        let placed = place(&peers, vec![spec]).await?;
        let (peer, spec) = placed
            .into_iter()
            .next()
            .ok_or_else(|| Refusal::new("no new brick given"))?;
        Ok(Coming {
            peer,
            spec,
            id: BrickId::random(),
        })
    }

    /// Refuses to let a copy go that holds what no other one holds.
    async fn check_not_needed(&self, leaving: &Leaving) -> Result<(), Refusal> {
        let view = self.registry.view();
        let in_sync = set_of(&view, leaving).and_then(|set| set.epoch.as_ref());
        let others: Vec<_> = in_sync
            .map_or(&[][..], |epoch| &epoch.in_sync)
            .iter()
            .filter(|copy| copy.brick != leaving.brick.id)
            .collect();
        if others.is_empty() {
            return Err(Refusal(format!(
                "{} cannot be replaced: it holds the only up-to-date copy; wait until 'mortar \
                 volume heal {} info' lists nothing on another brick",
                leaving.spec, leaving.volume.name
            )));
        }
        let states = self.brick_states(&view, &leaving.volume.name).await;
        let apart = |id: u64| {
            states
                .get(&id)
                .is_some_and(|state| state.detail.starts_with(SPLIT_WORDS))
        };
        // One that is dead already and not put out yet could not go on without this one.
        let lives = |copy: &&Copy| {
            states
                .get(&copy.brick)
                .is_some_and(|state| state.online && state.incarnation == copy.incarnation)
        };
        if !others.iter().any(lives) {
            return Err(Refusal(format!(
                "{} cannot be replaced: no other up-to-date copy answers; look at 'mortar volume \
                 status {}'",
                leaving.spec, leaving.volume.name
            )));
        }
        if apart(leaving.brick.id) {
            return Err(Refusal(format!(
                "{} cannot be replaced: it went on alone and holds changes that no other copy \
                 has; decide the split-brain first ('mortar volume heal {} info split-brain')",
                leaving.spec, leaving.volume.name
            )));
        }
        Ok(())
    }

    /// Stops the old brick and waits until its set goes on without it. If that does not come to
    /// be, it runs again.
    async fn put_out(&self, leaving: &Leaving) -> Result<(), Refusal> {
        let name = &leaving.volume.name;
        let runs = leaving.brick.status() == BrickStatus::BrickUp;
        if runs {
            self.set_brick(name, leaving.brick.id, BrickStatus::BrickDown)
                .await?;
        }
        let ping = Duration::from_millis(Options::of(&leaving.volume).ping_timeout_ms);
        let out = tokio::time::timeout(ping + OUT_WAIT_MAX, self.wait_out(leaving)).await;
        if out.is_ok() {
            return Ok(());
        }
        self.let_run_again(leaving).await;
        Err(Refusal(format!(
            "the other copies of volume {name} do not go on without {}: it may hold what they \
             lack, or they are not reachable; look at 'mortar volume status {name}'",
            leaving.spec
        )))
    }

    async fn wait_out(&self, leaving: &Leaving) {
        loop {
            let view = self.registry.view();
            let listed = set_of(&view, leaving)
                .and_then(|set| set.epoch.as_ref())
                .is_some_and(|epoch| {
                    let mut in_sync = epoch.in_sync.iter();
                    in_sync.any(|copy| copy.brick == leaving.brick.id)
                });
            if !listed {
                return;
            }
            tokio::time::sleep(START_POLL).await;
        }
    }

    async fn wait_ended(&self, leaving: &Leaving) {
        let Some(peer) = &leaving.peer else { return };
        loop {
            let states = self.states_of(peer, &leaving.volume.name).await;
            let runs = states.unwrap_or_default().iter().any(|state| {
                state.id == leaving.brick.id && (state.online || state.detail == STOPPING_WORDS)
            });
            if !runs {
                return;
            }
            tokio::time::sleep(START_POLL).await;
        }
    }

    /// As it was before [`AdminService::put_out`]. A registry that cannot take this either is told
    /// of by the refusal that led here; `brick start` does the same later.
    async fn let_run_again(&self, leaving: &Leaving) {
        if leaving.brick.status() != BrickStatus::BrickUp {
            return;
        }
        let up = BrickStatus::BrickUp;
        let done = self.set_brick(&leaving.volume.name, leaving.brick.id, up);
        if let Err(refusal) = done.await {
            tracing::info!(brick = %leaving.spec, %refusal, "the brick stays stopped");
        }
    }

    async fn check_folder(
        &self,
        leaving: &Leaving,
        coming: &Coming,
        force: bool,
    ) -> Result<Option<Limits>, Refusal> {
        let check = coming.request(leaving, PrepareStep::PrepareCheck, force);
        let reply = self.prepare(&coming.peer, check).await;
        reply
            .map(|reply| reply.limits)
            .map_err(|refusal| coming.named(refusal))
    }

    async fn make_folder(
        &self,
        leaving: &Leaving,
        coming: &Coming,
        force: bool,
    ) -> Result<(), Refusal> {
        let make = coming.request(leaving, PrepareStep::PrepareMake, force);
        match self.prepare(&coming.peer, make).await {
            Ok(_) => Ok(()),
            // A host that did not answer in time may have made it.
            Err(refusal) => Err(self.take_back(leaving, coming, coming.named(refusal)).await),
        }
    }

    async fn commit(
        &self,
        leaving: &Leaving,
        coming: &Coming,
        limits: Option<Limits>,
    ) -> Result<(), ProposeError> {
        let name = &leaving.volume.name;
        let with = Brick {
            id: coming.id.0,
            peer: coming.peer.id,
            path: coming.spec.path.clone(),
            status: BrickStatus::BrickUp.into(),
        };
        let command = ReplaceBrick {
            volume: name.clone(),
            brick: leaving.brick.id,
            with: Some(with),
            limits,
        };
        self.propose(What::ReplaceBrick(command)).await?;
        tracing::info!(volume = name, old = %leaving.spec, new = %coming.spec, "brick replaced");
        Ok(())
    }

    /// Frees the new folder again, and adds to the refusal why it could not be freed.
    async fn take_back(&self, leaving: &Leaving, coming: &Coming, refusal: Refusal) -> Refusal {
        let undo = coming.request(leaving, PrepareStep::PrepareUndo, false);
        match self.prepare(&coming.peer, undo).await {
            Ok(_) => refusal,
            Err(why) => Refusal(format!(
                "{refusal}; {} could not be given back: {why}",
                coming.spec
            )),
        }
    }

    /// The old folder is no brick any more; its files stay. A brick that still comes to an end is
    /// waited for.
    async fn give_folder_back(&self, leaving: &Leaving) -> Result<(), Refusal> {
        let Some(peer) = &leaving.peer else {
            return Ok(());
        };
        let request = PrepareBrickRequest {
            volume: leaving.volume.name.clone(),
            volume_id: leaving.id.0.to_vec(),
            brick: leaving.brick.id,
            path: leaving.brick.path.clone(),
            force: false,
            step: PrepareStep::PrepareUndo.into(),
        };
        let began = tokio::time::Instant::now();
        loop {
            match self.prepare(peer, request.clone()).await {
                Err(_) if began.elapsed() < FOLDER_WAIT_MAX && self.is_connected(peer).await => {
                    tokio::time::sleep(START_POLL).await;
                }
                done => return done.map(drop),
            }
        }
    }
}

impl Coming {
    fn request(&self, leaving: &Leaving, step: PrepareStep, force: bool) -> PrepareBrickRequest {
        PrepareBrickRequest {
            volume: leaving.volume.name.clone(),
            volume_id: leaving.id.0.to_vec(),
            brick: self.id.0,
            path: self.spec.path.clone(),
            force,
            step: step.into(),
        }
    }

    fn named(&self, refusal: Refusal) -> Refusal {
        if refusal.0.contains(&self.spec.path) {
            refusal
        } else {
            Refusal(format!("{}: {refusal}", self.spec))
        }
    }
}

fn is_same(leaving: &Leaving, coming: &Coming) -> bool {
    leaving.brick.peer == coming.peer.id && leaving.brick.path == coming.spec.path
}

fn set_of<'a>(view: &'a View, leaving: &Leaving) -> Option<&'a ReplicaSet> {
    let volume = view.volumes.get(&leaving.volume.name)?;
    volume
        .sets
        .iter()
        .find(|set| set.bricks.contains(&leaving.brick.id))
}
