//! The peer registry: a small Raft-replicated state of peers, volumes, bricks, options and epochs.
//!
//! A brickd that was never joined is in no pool: its view is empty. The first proposal or probe
//! made *on* it founds a pool of one; a probe made *of* it joins it to the prober's pool. It also
//! joins when its own pool has no other peer and no volume.
//!
//! The view is the applied state of this peer: it can be read without a quorum, and may be old.
//! [`Registry::barrier`] makes it current. Changes go through [`Registry::propose`] from any peer.
//!
//! Raft runs on two threads of its own and writes through a third, so that neither a busy brick
//! nor a slow disk delays a heartbeat.

mod cleared;
mod connect;
mod disk;
mod error;
mod identity;
mod log;
mod machine;
mod names;
mod network;
mod node;
mod pool;
mod propose;
mod recall;
mod serve;
mod state;
mod status;
mod steward;
mod transport;
mod types;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use mortar_proto::registry::{Command, Outcome, Peer, View};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;

pub use connect::{CONNECT_TIMEOUT_MS, Connections};
pub use error::RegistryError;
pub use names::is_called;
pub use node::Timing;
pub use pool::Invited;
pub use propose::{StillWanted, always};
pub use serve::{RaftService, RegistryService, services};
pub use state::{BRICKS_MAX, HISTORY_MAX, PEERS_MAX, VOLUMES_MAX, apply};

use cleared::{Cleared, Past};
use disk::{Disk, Stored};
use identity::Identity;
use machine::Applied;
use node::Node;
use state::State;
use transport::GrpcTransport;
use types::PoolMeta;

/// Threads that run Raft.
const THREADS: usize = 2;
/// The registry's file in the data directory.
const FILE: &str = "registry.redb";

/// What a registry needs to know of its host.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// Where `identity` and `registry.redb` are kept. An empty one makes a new peer.
    pub data_dir: PathBuf,
    /// The name under which other peers reach this host.
    pub advertise_host: String,
    /// The port under which they reach it.
    pub port: u16,
    /// When Raft acts.
    pub timing: Timing,
}

/// This peer's registry. Clones are handles of the same one.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
    threads: Arc<Threads>,
}

/// Owns the threads, so that the last handle ends them, from wherever it is dropped.
struct Threads(Option<Runtime>);

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// What the parts of the registry share.
pub(crate) struct Inner {
    config: RegistryConfig,
    identity: Mutex<Identity>,
    life: RwLock<Life>,
    connections: Connections,
    /// Raft has connections of its own, so that nothing queues before a heartbeat.
    raft_connections: Connections,
    /// Held while this peer founds, joins, leaves, invites or removes: one at a time.
    pool_lock: tokio::sync::Mutex<()>,
    /// Held while the leader changes Raft's membership: one at a time.
    membership_lock: tokio::sync::Mutex<()>,
    stopping: watch::Sender<bool>,
}

/// What this peer's membership of one generation of one pool consists of.
#[derive(Clone)]
struct Life {
    disk: Disk,
    applied: Applied,
    /// None = in no pool.
    node: Option<Arc<Node>>,
}

impl Registry {
    /// Opens or makes the registry in the data directory and takes part in the pool it belongs to.
    ///
    /// # Errors
    /// [`RegistryError::Storage`] when the data directory cannot be used.
    pub async fn start(config: RegistryConfig) -> Result<Self, RegistryError> {
        std::fs::create_dir_all(&config.data_dir)
            .map_err(|error| RegistryError::storage(&config.data_dir, error))?;
        // A log that is gone is never begun again under the same id.
        let identity = match config.data_dir.join(FILE).exists() {
            true => Identity::load_or_make(&config.data_dir)?,
            false => Identity::renew(&config.data_dir)?,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("registry")
            .enable_all()
            .build()
            .map_err(RegistryError::stopped)?;
        let handle = runtime.handle().clone();
        let threads = Arc::new(Threads(Some(runtime)));
        let inner = on(&handle, Inner::open(config, identity, handle.clone())).await??;
        handle.spawn(steward::run(Arc::downgrade(&inner)));
        Ok(Registry { inner, threads })
    }

    /// The applied state of this peer. Works without a quorum; may be older than the leader's.
    pub fn view(&self) -> Arc<View> {
        self.inner.life().applied.view()
    }

    /// Told of each new view; several changes may come as one.
    pub fn subscribe(&self) -> watch::Receiver<Arc<View>> {
        self.inner.life().applied.subscribe()
    }

    /// This peer, as the pool knows it.
    pub fn local(&self) -> Peer {
        self.inner.local()
    }

    /// The peers' connections, for calls of their services.
    pub fn connections(&self) -> &Connections {
        &self.inner.connections
    }

    /// Changes the registry, from whichever peer leads. Founds a pool of one on a peer that is in
    /// none. When this returns an outcome, this peer's view has it too, if it could catch up in
    /// time. A proposal that has to be sent again is never applied twice.
    ///
    /// # Errors
    /// Within about 2 s: [`RegistryError::NoQuorum`] and [`RegistryError::NoLeader`] when nothing
    /// was changed, [`RegistryError::Unknown`] when that cannot be said. A refusal is no error: it
    /// is in the outcome.
    pub async fn propose(&self, command: Command) -> Result<Outcome, RegistryError> {
        self.run(|inner| async move { inner.propose(command, always()).await })
            .await
    }

    /// A linearizable read: the view as it was, or became, after this was called. On a peer in no
    /// pool it is the empty view.
    ///
    /// # Errors
    /// [`RegistryError::NoQuorum`] or [`RegistryError::NoLeader`] within about 2 s.
    pub async fn barrier(&self) -> Result<Arc<View>, RegistryError> {
        self.run(|inner| async move { inner.barrier().await }).await
    }

    /// As [`Registry::propose`], for a thread that is not async. Once `wanted` says no it is sent
    /// to nobody any more.
    ///
    /// # Errors
    /// As [`Registry::propose`], and [`RegistryError::NotWanted`].
    pub fn propose_while(
        &self,
        command: Command,
        wanted: StillWanted,
    ) -> Result<Outcome, RegistryError> {
        self.run_blocking(|inner| async move { inner.propose(command, wanted).await })
    }

    /// As [`Registry::barrier`], for a thread that is not async.
    ///
    /// # Errors
    /// As [`Registry::barrier`].
    pub fn barrier_blocking(&self) -> Result<Arc<View>, RegistryError> {
        self.run_blocking(|inner| async move { inner.barrier().await })
    }

    /// Stops taking part, and closes the file. The view stays readable.
    pub async fn shutdown(&self) {
        let stopped = self.run(|inner| async move {
            inner.stop().await;
            Ok(())
        });
        // Fails only when the threads have ended already.
        drop(stopped.await);
    }

    /// Runs on the registry's own threads: its timers and connections live there.
    async fn run<T, F, W>(&self, work: W) -> Result<T, RegistryError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RegistryError>> + Send + 'static,
        W: FnOnce(Arc<Inner>) -> F,
    {
        on(&self.handle()?, work(Arc::clone(&self.inner))).await?
    }

    fn run_blocking<T, F, W>(&self, work: W) -> Result<T, RegistryError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RegistryError>> + Send + 'static,
        W: FnOnce(Arc<Inner>) -> F,
    {
        let (done, told) = std::sync::mpsc::sync_channel(1);
        let work = work(Arc::clone(&self.inner));
        self.handle()?.spawn(async move {
            // Whoever asked waits below.
            drop(done.send(work.await));
        });
        told.recv().map_err(RegistryError::stopped)?
    }

    fn handle(&self) -> Result<Handle, RegistryError> {
        let runtime = self.threads.0.as_ref().map(Runtime::handle).cloned();
        runtime.ok_or_else(|| RegistryError::stopped("its threads have ended"))
    }
}

async fn on<T: Send + 'static>(
    handle: &Handle,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, RegistryError> {
    handle.spawn(work).await.map_err(RegistryError::stopped)
}

impl Inner {
    async fn open(
        config: RegistryConfig,
        identity: Identity,
        runtime: Handle,
    ) -> Result<Arc<Self>, RegistryError> {
        let path = config.data_dir.join(FILE);
        let (disk, stored) =
            Disk::open(&path).map_err(|error| RegistryError::storage(&path, error))?;
        // The file has to survive a power cut together with the identity that goes with it.
        std::fs::File::open(&config.data_dir)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| RegistryError::storage(&config.data_dir, error))?;
        let found = stored.pool.clone();
        let peer = identity.peer;
        let inner = Arc::new(Inner {
            config,
            identity: Mutex::new(identity),
            life: RwLock::new(Life {
                disk,
                applied: Applied::default(),
                node: None,
            }),
            connections: Connections::new(runtime.clone()),
            raft_connections: Connections::new(runtime),
            pool_lock: tokio::sync::Mutex::new(()),
            membership_lock: tokio::sync::Mutex::new(()),
            stopping: watch::Sender::new(false),
        });
        match found {
            Some(pool) if pool.peer == peer => {
                let life = inner.life();
                let cleared = Cleared::after(peer, Past::of(&stored));
                inner
                    .take_part(pool, life.disk, life.applied, stored, cleared)
                    .await?;
                if let Some(node) = inner.node() {
                    inner.look_into_past_later(&node);
                }
                inner.finish_founding_later();
            }
            Some(pool) => {
                // The identity was lost: this is a new peer, and the old one's log is not its own.
                tracing::info!("forgetting the log of the former peer {:016x}", pool.peer);
                inner.begin_life(None, State::default()).await?;
            }
            None => {}
        }
        Ok(inner)
    }

    fn life(&self) -> Life {
        self.life
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn node(&self) -> Option<Arc<Node>> {
        self.life().node
    }

    fn identity(&self) -> Identity {
        self.identity
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn file(&self) -> PathBuf {
        self.config.data_dir.join(FILE)
    }

    fn data_dir(&self) -> &Path {
        &self.config.data_dir
    }

    fn local(&self) -> Peer {
        let identity = self.identity();
        let known = self
            .life()
            .applied
            .state()
            .view
            .peers
            .get(&identity.peer)
            .cloned();
        known.unwrap_or_else(|| Peer {
            id: identity.peer,
            uuid: identity.uuid,
            host: self.config.advertise_host.clone(),
            port: u32::from(self.config.port),
            other_names: Vec::new(),
        })
    }

    /// Starts Raft on what the disk holds.
    async fn take_part(
        self: &Arc<Self>,
        pool: PoolMeta,
        disk: Disk,
        applied: Applied,
        stored: Stored,
        cleared: Cleared,
    ) -> Result<(), RegistryError> {
        let transport = GrpcTransport::new(self, &pool, &cleared);
        let timing = &self.config.timing;
        let node = Node::start(
            pool,
            timing,
            disk.clone(),
            stored,
            applied.clone(),
            Arc::new(transport),
            cleared,
        )
        .await
        .map_err(|error| RegistryError::storage(&self.file(), error))?;
        self.set_life(Life {
            disk,
            applied,
            node: Some(Arc::new(node)),
        });
        Ok(())
    }

    /// Ends the membership there is, empties the file, and begins another, or none.
    async fn begin_life(
        self: &Arc<Self>,
        pool: Option<PoolMeta>,
        state: State,
    ) -> Result<(), RegistryError> {
        let old = self.life();
        if let Some(node) = &old.node {
            node.raft.shutdown().await.map_err(RegistryError::stopped)?;
        }
        let disk = old.disk.begin_life(pool.as_ref()).await;
        let disk = disk.map_err(|error| RegistryError::storage(&self.file(), error))?;
        let applied = old.applied.next(state);
        self.set_life(Life {
            disk: disk.clone(),
            applied: applied.clone(),
            node: None,
        });
        match pool {
            Some(pool) => {
                let (stored, cleared) = (Stored::default(), Cleared::at_once());
                self.take_part(pool, disk, applied, stored, cleared).await
            }
            None => Ok(()),
        }
    }

    fn set_life(&self, life: Life) {
        *self.life.write().unwrap_or_else(PoisonError::into_inner) = life;
    }

    async fn stop(&self) {
        self.stopping.send_replace(true);
        let _nobody_joins_meanwhile = self.pool_lock.lock().await;
        let life = self.life();
        if let Some(node) = &life.node
            && let Err(error) = node.raft.shutdown().await
        {
            tracing::info!("Raft had ended already: {error}");
        }
        self.set_life(Life {
            node: None,
            ..life.clone()
        });
        if tokio::task::spawn_blocking(move || life.disk.close())
            .await
            .is_err()
        {
            tracing::info!("the registry's file was closed by the end of its thread");
        }
    }
}

#[cfg(test)]
mod tests;
