//! The admin service: every command an administrator can give, carried out over the registry,
//! the other peers and this host's bricks.
//!
//! It decides nothing about epochs or data. A command either does what it says or refuses with a
//! sentence and leaves nothing half-done. All calls are offered on the admin socket (root only)
//! and, for now, on the port too, so that `mortar --host` works; the port is therefore to be
//! reached by the pool's own network alone.

pub mod bricks;
mod check;
mod heal;
pub mod options;
mod peers;
pub mod reach;
mod replace;
mod restart;
mod serve;
mod service;
mod status;
mod volumes;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use mortar_common::PeerId;
use mortar_proto::control::RegistryStatusReply;
use mortar_proto::control::admin_server::AdminServer;
use mortar_proto::registry::{Command, Outcome, Peer, View, Volume};
use tokio::sync::Semaphore;
use tonic::transport::Channel;

use crate::host::LocalBricks;

pub use bricks::BrickSpec;
pub use options::Options;
pub use reach::DirectPeers;
pub use serve::{ServeError, serve_socket};

/// Name of the admin socket in the data directory.
pub const SOCKET_NAME: &str = "admin.sock";
/// Where brickd keeps its data unless told otherwise.
pub const DATA_DIR: &str = "/var/lib/mortar";
/// The port of brickd unless told otherwise.
pub const PORT: u16 = 24017;
/// Largest message of the control plane: a heal report holds 1000 paths of up to 4 KiB a brick.
pub const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// How long one question to a peer (or to this host's disks) may take. A frozen peer delays a
/// command by this much and then counts as offline.
const PEER_ANSWER_MAX: Duration = Duration::from_millis(2500);
/// How long a change of the registry may take: an election and a commit fit in easily.
const REGISTRY_ANSWER_MAX: Duration = Duration::from_secs(15);
/// How long `volume start` waits for the bricks to be up before it answers all the same.
const START_WAIT_MAX: Duration = Duration::from_secs(3);
/// Calls to this host's bricks under way at once; a hung disk must not eat every thread.
const LOCAL_CALLS_MAX: usize = 16;

/// A boxed future, so that the traits below can be used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a command is not carried out: one sentence for the administrator. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

impl Refusal {
    /// From any sentence or error.
    pub fn new(sentence: impl ToString) -> Self {
        Refusal(sentence.to_string())
    }
}

/// Why a change of the registry was not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It was not made and will not be ("no quorum: 1 of 2 voters reachable").
    #[error("{0}")]
    NotMade(String),
    /// It may have been made, or may yet be: the answer was lost.
    #[error("{0}")]
    Unknown(String),
}

/// What became of an invitation to the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invited {
    /// It was alone and is now in the pool.
    Joined,
    /// It had lost its data directory and takes its old place; the words for it.
    Returned(String),
    /// It is in this pool already, with this port.
    AlreadyMember(u32),
    /// It is the host that was asked.
    Itself,
}

/// What the admin service needs of the registry.
pub trait Registry: Send + Sync + 'static {
    /// The applied state of this peer; needs no quorum.
    fn view(&self) -> Arc<View>;
    /// The view as it is or became after this was called: needs a quorum. An error says why not.
    fn current_view(&self) -> BoxFuture<'_, Result<Arc<View>, String>>;
    /// This host, as the pool knows it, or would if there were one yet.
    fn local(&self) -> Peer;
    /// Makes one change. A refusal by the state itself is in the outcome.
    fn propose(&self, command: Command) -> BoxFuture<'_, Result<Outcome, ProposeError>>;
    /// Who leads, who follows, who lags.
    fn status(&self) -> BoxFuture<'_, RegistryStatusReply>;
    /// Brings the brickd at `host` (HOST or HOST:PORT) into the pool.
    fn invite(&self, host: String) -> BoxFuture<'_, Result<Invited, Refusal>>;
    /// Takes a peer out of the pool; with `force` also one that does not answer.
    fn remove(&self, peer: PeerId, force: bool) -> BoxFuture<'_, Result<(), Refusal>>;
    /// Starts a new generation of the pool from this peer's state alone. The sentence says what
    /// was done.
    fn recover(&self) -> BoxFuture<'_, Result<String, Refusal>>;
}

/// The way to another peer's `Pool` service.
pub trait Peers: Send + Sync + 'static {
    /// A channel to the peer's port; it may be connected only at its first use.
    fn channel(&self, peer: &Peer) -> Result<Channel, Refusal>;
}

/// The admin service of one brickd. Cheap to clone.
#[derive(Clone)]
pub struct AdminService {
    registry: Arc<dyn Registry>,
    peers: Arc<dyn Peers>,
    local: Arc<dyn LocalBricks>,
    local_calls: Arc<Semaphore>,
}

impl AdminService {
    /// Puts the service together.
    pub fn new(
        registry: Arc<dyn Registry>,
        peers: Arc<dyn Peers>,
        local: Arc<dyn LocalBricks>,
    ) -> Self {
        let local_calls = Arc::new(Semaphore::new(LOCAL_CALLS_MAX));
        AdminService {
            registry,
            peers,
            local,
            local_calls,
        }
    }

    /// The tonic service, for the socket and for the port.
    pub fn server(&self) -> AdminServer<AdminService> {
        AdminServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn volume(&self, name: &str) -> Result<Volume, Refusal> {
        self.registry
            .view()
            .volumes
            .get(name)
            .cloned()
            .ok_or_else(|| Refusal(format!("Volume {name} does not exist")))
    }

    /// Makes one change, bounded in time; a refusal of the state is a `NotMade`.
    async fn propose(
        &self,
        what: mortar_proto::registry::command::What,
    ) -> Result<(), ProposeError> {
        let command = Command { what: Some(what) };
        match tokio::time::timeout(REGISTRY_ANSWER_MAX, self.registry.propose(command)).await {
            Err(_) => Err(ProposeError::Unknown(format!(
                "the registry did not answer in {} s, so it is not known whether the change was \
                 made: look at 'mortar registry status' and 'mortar volume info'",
                REGISTRY_ANSWER_MAX.as_secs()
            ))),
            Ok(Err(error)) => Err(error),
            Ok(Ok(outcome)) if outcome.refusal.is_empty() => Ok(()),
            Ok(Ok(outcome)) => Err(ProposeError::NotMade(outcome.refusal)),
        }
    }
}

impl From<ProposeError> for Refusal {
    fn from(error: ProposeError) -> Self {
        Refusal(error.to_string())
    }
}

#[cfg(test)]
mod tests;
