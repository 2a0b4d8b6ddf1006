//! Peers: probing, detaching, and how they are.

use futures::future::join_all;
use mortar_proto::control::{PeerDetachRequest, PeerState, PeerStatusReply};
use mortar_proto::registry::Peer;

use super::{AdminService, Invited, REGISTRY_ANSWER_MAX, Refusal};
use crate::registry::is_called;

/// What `peer probe` says of this host itself.
const PROBE_SELF: &str = "Probe on localhost not needed";

impl AdminService {
    pub(super) async fn probe(&self, host: &str) -> Result<String, Refusal> {
        check_host(host)?;
        let view = self.registry.view();
        let known = view.peers.values().find(|peer| is_called(peer, host));
        match known {
            _ if host.eq_ignore_ascii_case("localhost") => return Ok(PROBE_SELF.to_owned()),
            Some(peer) if self.is_local(peer) => return Ok(PROBE_SELF.to_owned()),
            Some(peer) if !self.answers(peer).await => return Ok(in_list(host, peer.port)),
            // Who answers there may be another peer than the one that was, or have been left behind
            // by a recovery: the registry knows.
            Some(_) | None => {}
        }
        let invited =
            tokio::time::timeout(REGISTRY_ANSWER_MAX, self.registry.invite(host.to_owned()));
        match invited.await {
            Err(_) => Err(Refusal(format!(
                "{host} was asked, but joining did not end in {} s: look at 'mortar peer status'",
                REGISTRY_ANSWER_MAX.as_secs()
            ))),
            Ok(Err(refusal)) => Err(refusal),
            Ok(Ok(Invited::Joined)) => Ok(String::new()),
            Ok(Ok(Invited::Returned(words))) => Ok(words),
            Ok(Ok(Invited::AlreadyMember(port))) => Ok(in_list(host, port)),
            Ok(Ok(Invited::Itself)) => Ok(PROBE_SELF.to_owned()),
        }
    }

    pub(super) async fn detach(&self, request: PeerDetachRequest) -> Result<String, Refusal> {
        let host = request.host;
        check_host(&host)?;
        let view = self.registry.view();
        let peer = view.peers.values().find(|peer| is_called(peer, &host));
        if host.eq_ignore_ascii_case("localhost") || peer.is_some_and(|peer| self.is_local(peer)) {
            return Err(Refusal(format!(
                "{host} is localhost: detach it from another peer of the pool"
            )));
        }
        let Some(peer) = peer else {
            return Err(Refusal(format!("{host} is not part of cluster")));
        };
        let mut bricks = view.volumes.values().flat_map(|volume| &volume.bricks);
        if bricks.any(|brick| brick.peer == peer.id) {
            return Err(Refusal(format!(
                "Peer {host} hosts one or more bricks. If the peer is in not recoverable state then \
                 use replace-brick to give their places to bricks of other peers, or delete the \
                 volumes they belong to, and attempt the peer detach again."
            )));
        }
        if !request.force && !self.is_connected(peer).await {
            return Err(Refusal(format!(
                "One of the peers is probably down: {host} does not answer. Check with 'peer \
                 status'; 'force' detaches it all the same"
            )));
        }
        let removed = self
            .registry
            .remove(mortar_common::PeerId(peer.id), request.force);
        match tokio::time::timeout(REGISTRY_ANSWER_MAX, removed).await {
            Ok(done) => done.map(|()| String::new()),
            Err(_) => Err(Refusal(format!(
                "detaching {host} did not end in {} s: look at 'mortar peer status'",
                REGISTRY_ANSWER_MAX.as_secs()
            ))),
        }
    }

    pub(super) async fn peer_status(&self) -> PeerStatusReply {
        let view = self.registry.view();
        let asks = view.peers.values().map(|peer| async move {
            PeerState {
                peer: Some(peer.clone()),
                connected: self.is_connected(peer).await,
                local: self.is_local(peer),
                state: "Peer in Cluster".to_owned(),
            }
        });
        let mut peers = join_all(asks).await;
        peers.sort_by(|one, other| host_of(one).cmp(host_of(other)));
        PeerStatusReply { peers }
    }
}

fn host_of(state: &PeerState) -> &str {
    state
        .peer
        .as_ref()
        .map_or("", |peer: &Peer| peer.host.as_str())
}

fn in_list(host: &str, port: u32) -> String {
    format!("Host {host} port {port} already in peer list")
}

fn check_host(host: &str) -> Result<(), Refusal> {
    let of_host =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    if host.is_empty() || host.len() > 262 || host.starts_with('-') || !host.chars().all(of_host) {
        return Err(Refusal(format!(
            "'{}' is not a host's name",
            host.escape_debug()
        )));
    }
    Ok(())
}
