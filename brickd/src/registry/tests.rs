//! Raft over the real store and a network double that can be cut.

mod papers;
mod seen;
mod storage;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use mortar_proto::registry::{Command, FoundPool, Outcome, Peer, PutPeer, command::What};
use openraft::BasicNode;
use tempfile::TempDir;

use super::cleared::Cleared;
use super::disk::{Disk, Stored};
use super::machine::Applied;
use super::network::{Rpc, Target, Transport, TransportError};
use super::node::{Node, Timing};
use super::types::{Change, PoolMeta};

/// Longest wait for what a test expects.
const PATIENCE: Duration = Duration::from_secs(60);

/// Slower than the default, so that a busy machine elects nobody by accident.
fn slow() -> Timing {
    Timing {
        heartbeat_ms: 100,
        election_min_ms: 400,
        election_max_ms: 800,
        ..Timing::default()
    }
}

/// All nodes, which links are cut, what was sent.
#[derive(Default)]
struct Network {
    nodes: Mutex<BTreeMap<u64, Arc<Node>>>,
    cut: Mutex<BTreeSet<(u64, u64)>>,
    appends: AtomicUsize,
    snapshots: AtomicUsize,
    /// Requests for a vote that met a cut link.
    votes_cut: AtomicUsize,
    quiet: AtomicBool,
}

impl Network {
    fn cut(&self, one: u64, others: &[u64]) {
        let links = others
            .iter()
            .flat_map(|other| [(one, *other), (*other, one)]);
        self.cut
            .lock()
            .unwrap()
            .extend(links.filter(|(a, b)| a != b));
    }

    fn mend(&self) {
        self.cut.lock().unwrap().clear();
    }

    fn is_cut(&self, from: u64, to: u64) -> bool {
        self.cut.lock().unwrap().contains(&(from, to))
    }
}

/// The network as one node sees it.
struct Wire {
    from: u64,
    network: Arc<Network>,
}

impl Transport for Wire {
    fn call(
        &self,
        to: Target,
        rpc: Rpc,
        body: Vec<u8>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Vec<u8>, TransportError>> {
        let (from, network) = (self.from, Arc::clone(&self.network));
        async move {
            let failed = |why: &str| TransportError::Failed(why.to_owned());
            match rpc {
                Rpc::Append => network.appends.fetch_add(1, Ordering::Relaxed),
                Rpc::Snapshot => network.snapshots.fetch_add(1, Ordering::Relaxed),
                _ => 0,
            };
            let node = network.nodes.lock().unwrap().get(&to.id).cloned();
            if network.is_cut(from, to.id) {
                let votes = usize::from(rpc == Rpc::Vote);
                network.votes_cut.fetch_add(votes, Ordering::Relaxed);
                return Err(failed("cut"));
            }
            let Some(node) = node else {
                return Err(failed("gone"));
            };
            let answer = tokio::time::timeout(timeout, node.answer(rpc, &body)).await;
            let answer = answer.map_err(|_| failed("late"))?;
            // A link that was cut meanwhile loses the answer too.
            if network.is_cut(from, to.id) {
                return Err(failed("cut"));
            }
            answer.map_err(|error| failed(&error.to_string()))
        }
        .boxed()
    }
}

/// One peer of a [`Cluster`].
struct Place {
    dir: TempDir,
    applied: Applied,
    disk: Disk,
}

/// Peers 1 to n of one pool, all voters.
struct Cluster {
    network: Arc<Network>,
    places: BTreeMap<u64, Place>,
    timing: Timing,
}

impl Cluster {
    /// Starts n peers that know of each other; `elect` says whether they may stand at once.
    async fn start(peers: u64, timing: Timing, elect: bool) -> Self {
        let network = Arc::<Network>::default();
        network.quiet.store(!elect, Ordering::Relaxed);
        let mut cluster = Cluster {
            network,
            places: BTreeMap::new(),
            timing,
        };
        for id in 1..=peers {
            cluster.open(id, tempfile::tempdir().unwrap()).await;
        }
        let members: BTreeMap<u64, BasicNode> = (1..=peers)
            .map(|id| (id, BasicNode::new(format!("peer{id}"))))
            .collect();
        // All of them, with the same members, and nobody's vote reaches another meanwhile.
        let all: Vec<u64> = (1..=peers).collect();
        all.iter().for_each(|id| cluster.network.cut(*id, &all));
        for id in 1..=peers {
            cluster
                .node(id)
                .raft
                .initialize(members.clone())
                .await
                .unwrap();
        }
        // Each asks all others at once. What comes after the mending may make one of them leader,
        // with a log that is longer than the others'.
        wait("the first tries to have met the cut links", || async {
            let asked = cluster.network.votes_cut.load(Ordering::Relaxed);
            (asked as u64 >= peers * (peers - 1)).then_some(())
        })
        .await;
        cluster.network.mend();
        cluster
    }

    async fn open(&mut self, id: u64, dir: TempDir) {
        let (disk, stored) = Disk::open(&dir.path().join("registry.redb")).unwrap();
        let applied = Applied::default();
        let node = self.raft(id, disk.clone(), stored, applied.clone()).await;
        self.network
            .nodes
            .lock()
            .unwrap()
            .insert(id, Arc::new(node));
        self.places.insert(id, Place { dir, applied, disk });
    }

    async fn raft(&self, id: u64, disk: Disk, stored: Stored, applied: Applied) -> Node {
        let pool = PoolMeta {
            peer: id,
            pool: 1,
            generation: 1,
            ..PoolMeta::default()
        };
        let wire = Arc::new(Wire {
            from: id,
            network: Arc::clone(&self.network),
        });
        let node = Node::start(
            pool,
            &self.timing,
            disk,
            stored,
            applied,
            wire,
            Cleared::at_once(),
        )
        .await
        .unwrap();
        node.raft
            .runtime_config()
            .elect(!self.network.quiet.load(Ordering::Relaxed));
        node
    }

    /// Stops a peer as a crash would: nothing is told to anybody.
    async fn stop(&mut self, id: u64) -> TempDir {
        let node = self.network.nodes.lock().unwrap().remove(&id).unwrap();
        node.raft.shutdown().await.unwrap();
        let place = self.places.remove(&id).unwrap();
        place.disk.close();
        place.dir
    }

    fn node(&self, id: u64) -> Arc<Node> {
        Arc::clone(&self.network.nodes.lock().unwrap()[&id])
    }

    fn let_all_stand(&self) {
        self.network.quiet.store(false, Ordering::Relaxed);
        for node in self.network.nodes.lock().unwrap().values() {
            node.raft.runtime_config().elect(true);
        }
    }

    /// Waits until exactly these peers agree on a leader among them.
    async fn leader_of(&self, peers: &[u64]) -> u64 {
        wait("a leader", || async {
            let leaders: BTreeSet<Option<u64>> = peers
                .iter()
                .map(|id| self.node(*id).metrics().current_leader)
                .collect();
            match leaders.into_iter().collect::<Vec<_>>()[..] {
                [Some(leader)] if peers.contains(&leader) => Some(leader),
                _ => None,
            }
        })
        .await
    }

    /// Has the leader of `peers` make a change, finding the leader again if it moved.
    async fn write(&self, peers: &[u64], command: Command) -> Outcome {
        let change = Change {
            id: mortar_common::ids::random_id(),
            command,
        };
        wait("a change to be made", || async {
            let leader = self.leader_of(peers).await;
            let raft = self.node(leader).raft.clone();
            let write =
                tokio::time::timeout(Duration::from_secs(5), raft.client_write(change.clone()));
            Some(write.await.ok()?.ok()?.data)
        })
        .await
    }

    fn view_index(&self, id: u64) -> u64 {
        self.places[&id].applied.view().index
    }

    async fn end(mut self) {
        let ids: Vec<u64> = self.places.keys().copied().collect();
        for id in ids {
            self.stop(id).await;
        }
    }
}

/// Waits until `look` finds something.
async fn wait<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn found(pool: u64) -> Command {
    Command {
        what: Some(What::FoundPool(FoundPool { pool })),
    }
}

fn put(id: u64) -> Command {
    let peer = Peer {
        id,
        host: format!("peer{id}"),
        port: 24017,
        ..Peer::default()
    };
    Command {
        what: Some(What::PutPeer(PutPeer {
            peer: Some(peer),
            replaces: 0,
        })),
    }
}
