//! Asking other peers and this host's bricks, each question bounded in time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use mortar_proto::control::pool_client::PoolClient;
use mortar_proto::control::{
    BrickState, CheckPage, CheckRequest, Empty, PrepareBrickReply, PrepareBrickRequest,
    VolumeHealReply, VolumeHealRequest, VolumeName,
};
use mortar_proto::registry::{Peer, View};
use tonic::transport::{Channel, Endpoint};

use super::{AdminService, MESSAGE_BYTES_MAX, PEER_ANSWER_MAX, Peers, Refusal};
use crate::host::LocalBricks;

/// How long connecting to a peer may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// A connection whose other end says nothing to a ping for this long is given up, so that a peer
/// that was cut off is found again at once when it is back.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// How long a page of `volume check` may take: a second of work on a disk that has other work too.
const CHECK_ANSWER_MAX: Duration = Duration::from_secs(60);
/// Channels kept; a pool is far smaller, so beyond this they are those of peers long gone.
const CHANNELS_MAX: usize = 256;

/// Channels to peers, one each, connected at first use and kept.
#[derive(Debug, Default)]
pub struct DirectPeers {
    /// By peer id, with the address it was made for.
    channels: Mutex<HashMap<u64, (String, Channel)>>,
}

impl Peers for DirectPeers {
    fn channel(&self, peer: &Peer) -> Result<Channel, Refusal> {
        let address = address(&peer.host, peer.port);
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, channel)) = channels.get(&peer.id)
            && *known == address
        {
            return Ok(channel.clone());
        }
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| Refusal(format!("'{address}' is not an address: {error}")))?
            .connect_timeout(CONNECT_MAX)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(SILENCE_MAX)
            .keep_alive_timeout(SILENCE_MAX)
            .connect_lazy();
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        channels.insert(peer.id, (address, channel.clone()));
        Ok(channel)
    }
}

/// `HOST:PORT`, with brackets around an IPv6 address.
pub fn address(host: &str, port: u32) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

impl AdminService {
    /// The states of a volume's bricks (empty = all), by brick id, from every peer that answers.
    pub(super) async fn brick_states(&self, view: &View, volume: &str) -> HashMap<u64, BrickState> {
        let ask = holders(view, volume)
            .into_iter()
            .map(|peer| async move { self.states_of(peer, volume).await.unwrap_or_default() });
        join_all(ask)
            .await
            .into_iter()
            .flatten()
            .map(|state| (state.id, state))
            .collect()
    }

    /// What one peer says of its bricks of a volume (empty = all).
    pub(super) async fn states_of(
        &self,
        peer: &Peer,
        volume: &str,
    ) -> Result<Vec<BrickState>, Refusal> {
        if self.is_local(peer) {
            let volume = volume.to_owned();
            return self
                .ask_local(peer, move |local| local.states(&volume))
                .await;
        }
        let request = VolumeName {
            volume: volume.to_owned(),
        };
        let mut client = self.pool_client(peer)?;
        let reply = bounded(peer, client.local_bricks(request)).await?;
        Ok(reply.bricks)
    }

    /// One step of making a brick, on the peer that is to hold it.
    pub(super) async fn prepare(
        &self,
        peer: &Peer,
        request: PrepareBrickRequest,
    ) -> Result<PrepareBrickReply, Refusal> {
        let reply = if self.is_local(peer) {
            self.ask_local(peer, move |local| local.prepare(&request))
                .await?
        } else {
            let mut client = self.pool_client(peer)?;
            bounded(peer, client.prepare_brick(request)).await?
        };
        if reply.refusal.is_empty() {
            Ok(reply)
        } else {
            Err(Refusal(reply.refusal))
        }
    }

    /// Asks one peer to heal, or to report on its bricks' heal.
    pub(super) async fn heal_at(
        &self,
        peer: &Peer,
        request: VolumeHealRequest,
    ) -> Result<VolumeHealReply, Refusal> {
        if self.is_local(peer) {
            return self
                .ask_local(peer, move |local| local.heal(&request))
                .await;
        }
        let mut client = self.pool_client(peer)?;
        bounded(peer, client.local_heal(request)).await
    }

    /// One page of what a brick of a peer holds.
    pub(super) async fn check_at(
        &self,
        peer: &Peer,
        request: CheckRequest,
    ) -> Result<CheckPage, Refusal> {
        let page = if self.is_local(peer) {
            self.ask_local_within(CHECK_ANSWER_MAX, peer, move |local| local.check(&request))
                .await?
        } else {
            let mut client = self.pool_client(peer)?;
            bounded_within(CHECK_ANSWER_MAX, peer, client.local_check(request)).await?
        };
        match page.refusal.is_empty() {
            true => Ok(page),
            false => Err(Refusal(format!("{}: {}", peer.host, page.refusal))),
        }
    }

    /// Whether a peer answers, and is who it should be.
    pub(super) async fn is_connected(&self, peer: &Peer) -> bool {
        if self.is_local(peer) {
            return true;
        }
        let Ok(mut client) = self.pool_client(peer) else {
            return false;
        };
        bounded(peer, client.identify(Empty {}))
            .await
            .is_ok_and(|who| who.peer == peer.id)
    }

    /// Whether a brickd answers at the peer's address, whichever it is.
    pub(super) async fn answers(&self, peer: &Peer) -> bool {
        match self.pool_client(peer) {
            Ok(mut client) => bounded(peer, client.identify(Empty {})).await.is_ok(),
            Err(_) => false,
        }
    }

    pub(super) fn is_local(&self, peer: &Peer) -> bool {
        self.registry.local().id == peer.id
    }

    fn pool_client(&self, peer: &Peer) -> Result<PoolClient<Channel>, Refusal> {
        let channel = self.peers.channel(peer)?;
        Ok(PoolClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Asks this host's bricks, on a thread that may block.
    async fn ask_local<T: Send + 'static>(
        &self,
        peer: &Peer,
        ask: impl FnOnce(&dyn LocalBricks) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        self.ask_local_within(PEER_ANSWER_MAX, peer, ask).await
    }

    async fn ask_local_within<T: Send + 'static>(
        &self,
        within: Duration,
        peer: &Peer,
        ask: impl FnOnce(&dyn LocalBricks) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let local = self.local.clone();
        let calls = self.local_calls.clone();
        let answer = async move {
            let permit = calls.acquire_owned().await.ok()?;
            let job = tokio::task::spawn_blocking(move || {
                let answer = ask(local.as_ref());
                drop(permit);
                answer
            });
            job.await.ok()
        };
        match tokio::time::timeout(within, answer).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Refusal(format!(
                "the bricks of {} could not be asked",
                peer.host
            ))),
            Err(_) => Err(Refusal(format!("the disks of {} do not answer", peer.host))),
        }
    }
}

/// The peers that hold bricks of a volume (empty = of any), each once.
pub(super) fn holders<'a>(view: &'a View, volume: &str) -> Vec<&'a Peer> {
    let mut peers: Vec<&Peer> = Vec::new();
    for (name, of_view) in &view.volumes {
        if !volume.is_empty() && name != volume {
            continue;
        }
        for brick in &of_view.bricks {
            if let Some(peer) = view.peers.get(&brick.peer)
                && !peers.iter().any(|known| known.id == peer.id)
            {
                peers.push(peer);
            }
        }
    }
    peers
}

/// The sentence for a peer that gives no answer.
pub(super) fn no_answer(host: &str) -> String {
    format!("{host} does not answer")
}

async fn bounded<T>(
    peer: &Peer,
    ask: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Refusal> {
    bounded_within(PEER_ANSWER_MAX, peer, ask).await
}

async fn bounded_within<T>(
    within: Duration,
    peer: &Peer,
    ask: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Refusal> {
    match tokio::time::timeout(within, ask).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Err(_) => Err(Refusal(no_answer(&peer.host))),
        Ok(Err(status)) => match status.code() {
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => {
                Err(Refusal(no_answer(&peer.host)))
            }
            _ => Err(Refusal(format!(
                "{} refuses: {}",
                peer.host,
                status.message()
            ))),
        },
    }
}
