//! `volume heal`: launching, switching, and the reports of all bricks put together.

use std::collections::HashMap;

use futures::future::join_all;
use mortar_proto::control::{
    BrickHeal, BrickState, Done, HealAction, VolumeHealReply, VolumeHealRequest, VolumeSetRequest,
};
use mortar_proto::registry::{Peer, View, Volume, VolumeStatus};

use super::options::{Options, SELF_HEAL_KEY, SelfHeal};
use super::reach::holders;
use super::volumes::find_brick;
use super::{AdminService, Refusal};
use crate::host::SPLIT_WORDS;
use crate::replica::UNKNOWN_WORDS;

/// What stands for a brick whose host gives no answer, as `heal info` prints it.
const NOT_CONNECTED: &str = "Transport endpoint is not connected";

impl AdminService {
    pub(super) async fn heal_volume(&self, request: VolumeHealRequest) -> VolumeHealReply {
        match self.heal_or_refuse(request).await {
            Ok(reply) => reply,
            Err(refusal) => VolumeHealReply {
                done: Some(Done {
                    failed: true,
                    message: refusal.0,
                }),
                bricks: Vec::new(),
            },
        }
    }

    async fn heal_or_refuse(&self, request: VolumeHealRequest) -> Result<VolumeHealReply, Refusal> {
        let action = HealAction::try_from(request.action)
            .map_err(|_| Refusal::new("this brickd does not know that heal command"))?;
        let volume = self.volume(&request.volume)?;
        let name = &volume.name;
        if volume.replica < 2 {
            return Err(Refusal(format!(
                "This command is supported for only volume of replicated type. Volume {name} is \
                 not of type replicate"
            )));
        }
        let value = match action {
            HealAction::HealEnable => "on",
            HealAction::HealDisable => "off",
            HealAction::HealSplitLatestMtime
            | HealAction::HealSplitBiggerFile
            | HealAction::HealSplitSourceBrick => return self.settle_split(&volume, request).await,
            _ => return self.ask_bricks(&volume, action, request).await,
        };
        let options = HashMap::from([(SELF_HEAL_KEY.to_owned(), value.to_owned())]);
        let message = self
            .set_options(VolumeSetRequest {
                volume: name.clone(),
                options,
            })
            .await?;
        Ok(VolumeHealReply {
            done: Some(Done {
                failed: false,
                message,
            }),
            bricks: Vec::new(),
        })
    }

    /// `volume heal V split-brain …`: about a file, about every file in conflict, or, when the two
    /// sides are not merged, about the whole volume.
    async fn settle_split(
        &self,
        volume: &Volume,
        mut request: VolumeHealRequest,
    ) -> Result<VolumeHealReply, Refusal> {
        let view = self.registry.view();
        let mut at = self.registry.local();
        if request.action() == HealAction::HealSplitSourceBrick {
            let spec = request.brick.parse()?;
            let brick = find_brick(&view, volume, &spec).ok_or_else(|| {
                Refusal(format!(
                    "\"{spec}\"- No such brick available in the volume."
                ))
            })?;
            request.brick_id = brick.id;
            let states = self.brick_states(&view, &volume.name).await;
            let apart = |state: &BrickState| {
                let of_this = state.id == request.brick_id;
                state.detail.starts_with(SPLIT_WORDS)
                    || of_this && state.detail.starts_with(UNKNOWN_WORDS)
            };
            if request.argument.is_empty() && states.values().any(apart) {
                request.set_action(HealAction::HealSplitTrust);
                at = view.peers.get(&brick.peer).cloned().ok_or_else(|| {
                    Refusal::new("the brick's host is no peer of this pool any more")
                })?;
            }
        }
        let trusts = request.action() == HealAction::HealSplitTrust;
        let mut reply = self.heal_at(&at, request).await?;
        if trusts && let Some(done) = &mut reply.done {
            done.message = "the volume goes on with this brick; the others are healed from it, \
                            and what they changed alone is given up"
                .to_owned();
        }
        Ok(reply)
    }

    async fn ask_bricks(
        &self,
        volume: &Volume,
        action: HealAction,
        request: VolumeHealRequest,
    ) -> Result<VolumeHealReply, Refusal> {
        let name = &volume.name;
        if volume.status() != VolumeStatus::VolumeStarted {
            return Err(Refusal(format!("Volume {name} is not started")));
        }
        let launches = matches!(action, HealAction::HealLaunch | HealAction::HealFull);
        if launches && Options::of(volume).self_heal == SelfHeal::Off {
            return Err(Refusal(format!(
                "Self-heal-daemon is disabled. Heal will not be triggered on volume {name}"
            )));
        }
        let (view, note) = self.newest_view().await;
        let request = &request;
        let asks = holders(&view, name)
            .into_iter()
            .map(|peer| async move { (peer, self.heal_at(peer, request.clone()).await) });
        let answers = join_all(asks).await;
        let message = match launches {
            true => launched(&answers)?,
            false => note,
        };
        let done = Done {
            failed: false,
            message,
        };
        let bricks = if launches {
            Vec::new()
        } else {
            merged(&view, volume, answers)
        };
        Ok(VolumeHealReply {
            done: Some(done),
            bricks,
        })
    }
}

type Answers<'a> = Vec<(&'a Peer, Result<VolumeHealReply, Refusal>)>;

/// The words for the peers that did not take a launch; refused when none did.
fn launched(answers: &Answers<'_>) -> Result<String, Refusal> {
    let refusals: Vec<String> = answers
        .iter()
        .filter_map(|(_, answer)| match answer {
            Err(refusal) => Some(format!("{refusal}: it heals when it is back")),
            Ok(reply) => reply
                .done
                .as_ref()
                .filter(|done| done.failed)
                .map(|done| done.message.clone()),
        })
        .collect();
    let words = refusals.join("; ");
    if refusals.len() == answers.len() {
        Err(Refusal(words))
    } else {
        Ok(words)
    }
}

/// One report a brick, in the order of the volume; those that nobody speaks for included.
fn merged(view: &View, volume: &Volume, answers: Answers<'_>) -> Vec<BrickHeal> {
    let mut reports: HashMap<(u64, String), BrickHeal> = HashMap::new();
    for (peer, answer) in answers {
        for report in answer.map(|reply| reply.bricks).unwrap_or_default() {
            reports.insert((peer.id, report.path.clone()), report);
        }
    }
    let of_brick = |brick: &mortar_proto::registry::Brick| {
        let host = view
            .peers
            .get(&brick.peer)
            .map_or("?", |peer| peer.host.as_str());
        let report = reports.remove(&(brick.peer, brick.path.clone()));
        let mut report = report.unwrap_or_else(|| BrickHeal {
            path: brick.path.clone(),
            status: NOT_CONNECTED.to_owned(),
            ..Default::default()
        });
        report.host = host.to_owned();
        report
    };
    volume.bricks.iter().map(of_brick).collect()
}
