//! What the links report, handed to the replicas it concerns.

use std::sync::{Arc, PoisonError, Weak};

use mortar_common::{BrickId, Incarnation, PeerId};
use mortar_proto::data::{Goodbye, LinkMessage, link_message::What};
use tracing::info;

use super::BrickHost;
use crate::link::Events;
use crate::replica::Replica;
use crate::replica::core::Gone;

/// The host as the links see it.
pub(super) struct LinkEvents {
    host: Weak<BrickHost>,
}

impl LinkEvents {
    pub(super) fn new(host: &Arc<BrickHost>) -> Arc<Self> {
        Arc::new(LinkEvents {
            host: Arc::downgrade(host),
        })
    }
}

impl Events for LinkEvents {
    fn message(&self, message: LinkMessage) {
        if let Some(host) = self.host.upgrade()
            && let Some(what) = message.what
        {
            host.deliver(what);
        }
    }

    fn reachable(&self, peer: PeerId, process: Incarnation) {
        if let Some(host) = self.host.upgrade() {
            host.processes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(peer, process);
        }
    }

    fn unreachable(&self, peer: PeerId) {
        let Some(host) = self.host.upgrade() else {
            return;
        };
        host.each_partner_on(peer, |replica, brick| replica.unreachable(brick));
    }

    fn died(&self, peer: PeerId, process: Incarnation, replaced: bool) {
        let Some(host) = self.host.upgrade() else {
            return;
        };
        info!(%peer, %process, replaced, "a peer's brickd has died");
        host.partner_process_gone(
            peer,
            process,
            if replaced {
                Gone::Goodbye { process: false }
            } else {
                Gone::ProcessDied
            },
        );
    }
}

impl BrickHost {
    /// Hands a link message to the replicas it is for.
    pub(super) fn deliver(&self, what: What) {
        let to = match &what {
            What::Beacon(beacon) => beacon.to_brick,
            What::BeaconAnswer(answer) => answer.to_brick,
            What::Query(query) => query.to_brick,
            What::State(_) => 0,
            What::Goodbye(goodbye) => return self.partner_said_goodbye(*goodbye),
        };
        let replicas: Vec<Arc<Replica>> = {
            let running = self.lock_running();
            match &what {
                What::State(state) => running
                    .values()
                    .filter(|replica| {
                        replica.setting().volume.0 == state.volume[..]
                            && replica.setting().set == state.set
                            && replica.setting().me.0 != state.brick
                    })
                    .cloned()
                    .collect(),
                _ => running.get(&BrickId(to)).cloned().into_iter().collect(),
            }
        };
        for replica in replicas {
            replica.message(what.clone());
        }
    }

    fn partner_said_goodbye(&self, goodbye: Goodbye) {
        if goodbye.brick != 0 {
            let (brick, incarnation) = (BrickId(goodbye.brick), Incarnation(goodbye.incarnation));
            for replica in self.partners_of(brick) {
                replica.gone(brick, incarnation, Gone::Goodbye { process: false });
            }
            return;
        }
        let peer = {
            let processes = self
                .processes
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            processes
                .iter()
                .find(|(_, process)| process.0 == goodbye.incarnation)
                .map(|(peer, _)| *peer)
        };
        if let Some(peer) = peer {
            info!(%peer, "a peer's brickd stops");
            let process = Incarnation(goodbye.incarnation);
            self.partner_process_gone(peer, process, Gone::Goodbye { process: true });
        }
    }

    /// The process that ran these bricks is gone, with the lives they had in it.
    fn partner_process_gone(&self, peer: PeerId, process: Incarnation, gone: Gone) {
        self.each_partner_on(peer, |replica, brick| {
            replica.process_gone(brick, process, gone);
        });
    }

    fn each_partner_on(&self, peer: PeerId, each: impl Fn(&Arc<Replica>, BrickId)) {
        let view = self.registry.view();
        for volume in view.volumes.values() {
            for brick in volume.bricks.iter().filter(|brick| brick.peer == peer.0) {
                for replica in self.partners_of(BrickId(brick.id)) {
                    each(&replica, BrickId(brick.id));
                }
            }
        }
    }

    /// Replicas of this host in the same set as a brick.
    fn partners_of(&self, brick: BrickId) -> Vec<Arc<Replica>> {
        let view = self.registry.view();
        let running = self.lock_running();
        view.volumes
            .values()
            .flat_map(|volume| &volume.sets)
            .filter(|set| set.bricks.contains(&brick.0))
            .flat_map(|set| &set.bricks)
            .filter(|other| **other != brick.0)
            .filter_map(|other| running.get(&BrickId(*other)).cloned())
            .collect()
    }
}
