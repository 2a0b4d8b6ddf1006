//! Connections to other peers, kept and shared: few, opened when first used, closed when silent.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mortar_proto::registry::Peer;
use tokio::runtime::Handle;
use tonic::transport::{Channel, Endpoint};

use super::network::{address, host_port};

/// Longest wait for a connection, in milliseconds.
pub const CONNECT_TIMEOUT_MS: u64 = 1000;
/// Connections kept; the one unused for longest goes first. More than a pool has voters.
const CHANNELS_MAX: usize = 64;
/// How often a silent connection is asked whether it lives, in milliseconds: after a cut in the
/// network TCP alone would wait for minutes.
const PING_EVERY_MS: u64 = 2000;
/// How long that question may stay unanswered, in milliseconds.
const PING_TIMEOUT_MS: u64 = 2000;

/// A cache of channels, newest used last. Clones share it.
///
/// A channel connects when it is first used and again when the connection is lost; a call fails at
/// once while the peer refuses, and after [`CONNECT_TIMEOUT_MS`] while it is silent.
#[derive(Clone)]
pub struct Connections {
    runtime: Handle,
    channels: Arc<Mutex<VecDeque<(String, Channel)>>>,
}

impl Connections {
    /// An empty cache whose connections live on `runtime`.
    pub fn new(runtime: Handle) -> Self {
        Connections {
            runtime,
            channels: Arc::default(),
        }
    }

    /// The channel to a peer.
    ///
    /// # Errors
    /// A sentence, when the peer's host and port make no address.
    pub fn channel(&self, peer: &Peer) -> Result<Channel, String> {
        self.to_address(&address(peer))
    }

    /// The channel to a host's port.
    ///
    /// # Errors
    /// A sentence, when host and port make no address.
    pub fn to_host(&self, host: &str, port: u16) -> Result<Channel, String> {
        self.to_address(&host_port(host, u32::from(port)))
    }

    /// The channel to HOST:PORT.
    ///
    /// # Errors
    /// A sentence, when that is no address.
    pub fn to_address(&self, address: &str) -> Result<Channel, String> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = channels.iter().position(|(known, _)| known == address)
            && let Some(found) = channels.remove(at)
        {
            let channel = found.1.clone();
            channels.push_back(found);
            return Ok(channel);
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| format!("'{address}' is no address: {error}"))?
            .connect_timeout(Duration::from_millis(CONNECT_TIMEOUT_MS))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_millis(PING_EVERY_MS))
            .keep_alive_timeout(Duration::from_millis(PING_TIMEOUT_MS))
            .keep_alive_while_idle(true);
        let channel = {
            let _on_the_registrys_threads = self.runtime.enter();
            endpoint.connect_lazy()
        };
        if channels.len() >= CHANNELS_MAX {
            channels.pop_front();
        }
        channels.push_back((address.to_owned(), channel.clone()));
        Ok(channel)
    }
}
