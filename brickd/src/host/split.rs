//! This host's part in healing a split: its closed bricks merge, and decisions are carried out.

use std::sync::Arc;
use std::time::Duration;

use fuse_client::session::{Mounted, Session};
use fuse_client::view::{Host, ViewWatch};
use mortar_common::BrickId;
use mortar_proto::control::{Done, HealAction, VolumeHealReply, VolumeHealRequest};
use mortar_proto::data::op::Op as OpKind;
use mortar_proto::data::{EpochRef, MergeEnd, SplitWork};
use mortar_proto::registry::Volume;
use tracing::{info, warn};

use super::{BrickHost, lock};
use crate::admin::options::Options;
use crate::heal::Marks;
use crate::heal::record::MarkRecord;
use crate::replica::Replica;
use crate::split::base::{Base, SessionBase};
use crate::split::decide::Unit;
use crate::split::merge::{MergeError, Merger, Report, Side};
use crate::split::resolve::{Choice, resolve, resolve_all};

/// A request of a merge or of a decision waits this long for the volume to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a merge did not come to its end.
#[derive(Debug, thiserror::Error)]
enum NotMerged {
    #[error("{0}")]
    NoVolume(String),
    #[error(transparent)]
    Merge(#[from] MergeError),
}

impl BrickHost {
    /// A brick that is closed because both sides went on alone merges, in a thread of its own.
    pub(super) fn look_after_split(self: &Arc<Self>, volume: &Volume, replica: &Arc<Replica>) {
        let me = replica.setting().me;
        let others: Vec<u64> = volume.bricks.iter().map(|brick| brick.id).collect();
        let [one, two] = others[..] else {
            return; // Of three copies only two can be compared: the operator chooses.
        };
        let partner = BrickId(if one == me.0 { two } else { one });
        let merges = Options::of(volume).split_unit == Unit::File && replica.is_closed_by_a_split();
        if !merges || !lock(&self.merging).insert(me) {
            return;
        }
        let (host, replica) = (Arc::clone(self), Arc::clone(replica));
        let volume = volume.clone();
        let spawned = std::thread::Builder::new()
            .name("split-merge".to_owned())
            .spawn(move || {
                match host.merge(&volume, &replica, partner) {
                    Ok(report) => info!(
                        volume = volume.name,
                        report.brought,
                        report.removed,
                        report.conflicts,
                        "what this brick changed alone is merged"
                    ),
                    Err(error) => {
                        info!(volume = volume.name, %error, "the merge begins anew later")
                    }
                }
                lock(&host.merging).remove(&me);
            });
        if let Err(error) = spawned {
            warn!(%error, "no thread to merge a split");
            lock(&self.merging).remove(&me);
        }
    }

    fn merge(
        &self,
        volume: &Volume,
        replica: &Replica,
        partner: BrickId,
    ) -> Result<Report, NotMerged> {
        let alone = match replica.changed_alone(partner).map_err(MergeError::from)? {
            Some(alone) => alone.look(Marks::clone),
            None => {
                let mut all = Marks::new();
                all.mark_everything(crate::heal::Scope::All, &mut MarkRecord::default());
                all
            }
        };
        let epoch = replica.role().1;
        let side = Side {
            brick: replica.setting().me,
            epoch: EpochRef {
                number: epoch.number,
                id: epoch.id,
            },
            favorite: Options::of(volume).favorite_child,
        };
        let session = self.session(&volume.name).map_err(NotMerged::NoVolume)?;
        let base = SessionBase(Arc::clone(&session));
        let merged = Merger::new(&**replica.store(), alone, &base, side)
            .run()
            .and_then(|report| {
                let end = MergeEnd {
                    brick: side.brick.0,
                    epoch: Some(side.epoch),
                };
                base.call(SplitWork::SplitMerge, OpKind::MergeEnd(end), &[])?;
                Ok(report)
            });
        session.close();
        Ok(merged?)
    }

    /// A session with the volume, as any client has.
    pub(super) fn session(&self, volume: &str) -> Result<Arc<Session>, String> {
        let local = self.registry.local();
        let own = Host {
            name: local.host.clone(),
            port: local.port as u16,
        };
        let view = ViewWatch::start(volume, vec![own]).map_err(|error| error.to_string())?;
        view.first()?;
        let mounted = Mounted {
            host: local.host,
            mount_point: "split-brain".to_owned(),
            io_timeout: Some(PATIENCE),
        };
        Session::open(view, mounted)
    }

    /// `volume heal V split-brain …` about files.
    pub(super) fn decide(&self, request: &VolumeHealRequest) -> VolumeHealReply {
        let done = match self.try_decide(request) {
            Ok(message) => Done {
                failed: false,
                message,
            },
            Err(message) => Done {
                failed: true,
                message,
            },
        };
        VolumeHealReply {
            done: Some(done),
            bricks: Vec::new(),
        }
    }

    fn try_decide(&self, request: &VolumeHealRequest) -> Result<String, String> {
        let (file, brick) = (&request.argument, BrickId(request.brick_id));
        let choice = match request.action() {
            HealAction::HealSplitLatestMtime => Choice::LatestMtime,
            HealAction::HealSplitBiggerFile => Choice::BiggerFile,
            _ => Choice::Brick(brick),
        };
        let session = self.session(&request.volume)?;
        let base = SessionBase(Arc::clone(&session));
        let decided = if file.is_empty() {
            resolve_all(&base, brick).map(|healed| format!("Number of healed entries: {healed}"))
        } else {
            resolve(&base, file, choice).map(|()| format!("Healed {file}."))
        };
        session.close();
        decided.map_err(|error| match file.is_empty() {
            true => error.to_string(),
            false => format!("Healing {file} failed: {error}."),
        })
    }
}
