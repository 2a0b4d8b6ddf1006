//! What peers know of each other: a link for small messages and a watch that can prove a death.
//!
//! Every peer opens two connections to every other. On the *link* it sends (beacons, queries,
//! goodbyes) and the other listens. On the *watch* only the watched side sends, a byte every
//! [`HEARTBEAT_MS`]; so the kernel of a host whose brickd was killed closes it with FIN, which a
//! firewall, making RSTs and silence, does not do. FIN and then a refused connect, or a new
//! process in the old one's place, is proof of death; everything else is only "unreachable".

mod connect;
mod outgoing;
mod watch;

use std::collections::HashMap;
use std::net::TcpStream;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use mortar_common::{Incarnation, PeerId};
use mortar_proto::data::{Goodbye, LinkMessage, link_message};
use mortar_proto::frame::{self, FrameError};
use mortar_proto::registry::Peer;
use tracing::debug;

pub use connect::{CONNECT_TIMEOUT, Hail, Stop, open, open_at};

/// A watched process sends one byte this often.
pub const HEARTBEAT_MS: u64 = 500;
/// A watch that hears nothing for this long is reported as unreachable.
pub const SILENCE_MS: u64 = 2_000;
/// Messages waiting for one link; more are dropped, as a lost one would be (all are repeated).
const QUEUE_MAX: usize = 1024;

/// What happens to other peers, reported from the links' own threads. Do not block.
pub trait Events: Send + Sync {
    /// A message of another peer's.
    fn message(&self, message: LinkMessage);
    /// The peer answers (again); this process of it.
    fn reachable(&self, peer: PeerId, process: Incarnation);
    /// No word from it, and no proof of anything.
    fn unreachable(&self, peer: PeerId);
    /// The process is dead for certain. `replaced`: another one runs in its place already, so the
    /// peer's registry vote lives.
    fn died(&self, peer: PeerId, process: Incarnation, replaced: bool);
}

/// All links of this process.
pub struct Links {
    me: PeerId,
    process: Incarnation,
    events: Arc<dyn Events>,
    peers: Mutex<HashMap<PeerId, Entry>>,
}

struct Entry {
    address: (String, u32),
    queue: SyncSender<LinkMessage>,
    stop: Arc<connect::Stop>,
}

impl Links {
    /// Links of the peer `me`, whose process is `process`; nobody is linked yet.
    pub fn new(me: PeerId, process: Incarnation, events: Arc<dyn Events>) -> Arc<Self> {
        Arc::new(Links {
            me,
            process,
            events,
            peers: Mutex::default(),
        })
    }

    /// This process's own incarnation, as its Hello answers give it.
    pub fn process(&self) -> Incarnation {
        self.process
    }

    /// Links exactly these peers (others than this one), at their present addresses.
    pub fn set_peers(&self, peers: impl IntoIterator<Item = Peer>) {
        let mut wanted: HashMap<PeerId, Peer> = peers
            .into_iter()
            .map(|peer| (PeerId(peer.id), peer))
            .collect();
        wanted.remove(&self.me);
        let mut linked = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        linked.retain(|id, entry| {
            let stays = wanted
                .get(id)
                .is_some_and(|peer| (peer.host.clone(), peer.port) == entry.address);
            if !stays {
                entry.stop.stop();
            }
            stays
        });
        for (id, peer) in wanted {
            linked.entry(id).or_insert_with(|| self.start(id, &peer));
        }
    }

    /// Sends without waiting; a message to a peer that cannot be reached is dropped.
    pub fn send(&self, to: PeerId, message: link_message::What) {
        let linked = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = linked.get(&to) {
            match entry.queue.try_send(LinkMessage {
                what: Some(message),
            }) {
                Ok(()) => {}
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                    debug!(peer = %to, "a link message was dropped: the peer takes none");
                }
            }
        }
    }

    /// Tells every peer that a brick (or, with brick 0, this process) stops in order.
    pub fn goodbye(&self, goodbye: Goodbye) {
        let ids: Vec<PeerId> = {
            let linked = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
            linked.keys().copied().collect()
        };
        for id in ids {
            self.send(id, link_message::What::Goodbye(goodbye));
        }
    }

    /// Serves an incoming link in the calling thread until it ends.
    pub fn serve_link(&self, mut connection: TcpStream) -> Result<(), FrameError> {
        loop {
            let frame = frame::receive(&mut connection)?;
            self.events.message(frame.decode()?);
        }
    }

    /// Serves an incoming watch in the calling thread until the watcher goes.
    pub fn serve_watch(&self, connection: TcpStream) -> Result<(), FrameError> {
        watch::serve(connection)
    }

    /// Ends every link.
    pub fn stop(&self) {
        for (_, entry) in self
            .peers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain()
        {
            entry.stop.stop();
        }
    }

    fn start(&self, id: PeerId, peer: &Peer) -> Entry {
        let (queue, messages) = sync_channel(QUEUE_MAX);
        let stop = Arc::new(connect::Stop::default());
        let hail = Hail {
            host: peer.host.clone(),
            port: peer.port,
            from_peer: self.me,
            from_process: self.process,
        };
        outgoing::start(hail.clone(), messages, Arc::clone(&stop));
        watch::start(id, hail, Arc::clone(&self.events), Arc::clone(&stop));
        Entry {
            address: (peer.host.clone(), peer.port),
            queue,
            stop,
        }
    }
}
