//! What a replica reaches of the world: registry, links, connections to other copies.

use std::io;
use std::net::TcpStream;
use std::sync::{Arc, Weak};

use mortar_common::{BrickId, PeerId};
use mortar_proto::data::{EpochRef, Hello, link_message};
use mortar_proto::frame::FrameError;
use mortar_proto::registry::{ChangeEpoch, Command, Epoch, Peer, command::What};
use tracing::{debug, info};

use super::{BrickHost, view_of_set};
use crate::link::{self, Hail};
use crate::registry::StillWanted;
use crate::replica::Ports;
use crate::replica::core::{Proposed, RegistryView};

/// The ports of one replica set's local copy.
pub(super) struct SetPorts {
    host: Weak<BrickHost>,
    volume: String,
    set: u32,
}

impl SetPorts {
    pub(super) fn new(host: &Arc<BrickHost>, volume: &str, set: u32) -> Arc<Self> {
        Arc::new(SetPorts {
            host: Arc::downgrade(host),
            volume: volume.to_owned(),
            set,
        })
    }

    fn peer_of(&self, brick: BrickId) -> Option<Peer> {
        let host = self.host.upgrade()?;
        let view = host.registry.view();
        let volume = view.volumes.get(&self.volume)?;
        let brick = volume
            .bricks
            .iter()
            .find(|candidate| candidate.id == brick.0)?;
        view.peers.get(&brick.peer).cloned()
    }

    fn present(&self, linearizable: bool) -> Option<RegistryView> {
        let host = self.host.upgrade()?;
        let view = host.registry.view();
        let volume = view.volumes.get(&self.volume)?;
        view_of_set(&view, volume, self.set, linearizable)
    }
}

impl Ports for SetPorts {
    fn propose(
        &self,
        expect: EpochRef,
        next: &Epoch,
        lone: &[Epoch],
        wanted: StillWanted,
    ) -> Proposed {
        let Some(host) = self.host.upgrade() else {
            return Proposed::NoQuorum;
        };
        let command = Command {
            what: Some(What::ChangeEpoch(ChangeEpoch {
                volume: self.volume.clone(),
                set: self.set,
                expect_number: expect.number,
                expect_id: expect.id,
                next: Some(next.clone()),
                lone: lone.to_vec(),
            })),
        };
        match host.registry.propose_while(command, wanted) {
            Ok(outcome) if outcome.refusal.is_empty() => Proposed::Committed,
            Ok(outcome) => {
                info!(
                    volume = self.volume,
                    outcome.refusal, "an epoch was not taken"
                );
                match self.read_registry() {
                    Some(view) => Proposed::Refused(view.epoch),
                    None => Proposed::NoQuorum,
                }
            }
            Err(error) => {
                debug!(volume = self.volume, %error, "an epoch could not be proposed");
                Proposed::NoQuorum
            }
        }
    }

    fn read_registry(&self) -> Option<RegistryView> {
        let host = self.host.upgrade()?;
        match host.registry.barrier_blocking() {
            Ok(_) => self.present(true),
            Err(error) => {
                debug!(volume = self.volume, %error, "no linearizable read of the registry");
                None
            }
        }
    }

    fn connect(&self, to: BrickId, mut hello: Hello) -> Result<(TcpStream, Hello), FrameError> {
        let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("brick {to} has no peer"));
        let peer = self.peer_of(to).ok_or_else(unknown)?;
        let host = self.host.upgrade().ok_or_else(unknown)?;
        hello.from_peer = host.me.0;
        let hail = Hail {
            host: peer.host,
            port: peer.port,
            from_peer: host.me,
            from_process: host.links().process(),
        };
        link::open(&hail, &hello)
    }

    fn send(&self, to: BrickId, message: link_message::What) {
        let (Some(host), Some(peer)) = (self.host.upgrade(), self.peer_of(to)) else {
            return;
        };
        if PeerId(peer.id) == host.me {
            host.deliver(message);
        } else {
            host.links().send(PeerId(peer.id), message);
        }
    }

    fn last_in_sync(&self, brick: BrickId) -> Option<EpochRef> {
        let host = self.host.upgrade()?;
        let view = host.registry.view();
        let set = view
            .volumes
            .get(&self.volume)?
            .sets
            .get(self.set as usize)?;
        let mut epochs: Vec<&Epoch> = set.history.iter().chain(&set.epoch).collect();
        epochs.sort_by_key(|epoch| epoch.number);
        epochs
            .into_iter()
            .rev()
            .find(|epoch| epoch.in_sync.iter().any(|copy| copy.brick == brick.0))
            .map(|epoch| EpochRef {
                number: epoch.number,
                id: epoch.id,
            })
    }

    fn bricks(&self) -> Vec<BrickId> {
        self.present(false)
            .map_or_else(Vec::new, |view| view.bricks)
    }

    fn name_of(&self, brick: BrickId) -> String {
        let Some(host) = self.host.upgrade() else {
            return brick.to_string();
        };
        let view = host.registry.view();
        let found = view.volumes.get(&self.volume).and_then(|volume| {
            let found = volume
                .bricks
                .iter()
                .find(|candidate| candidate.id == brick.0)?;
            let peer = view.peers.get(&found.peer)?;
            Some(format!("{}:{}", peer.host, found.path))
        });
        found.unwrap_or_else(|| brick.to_string())
    }
}
