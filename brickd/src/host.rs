//! All bricks of this host: starts and stops them as the registry says, and answers for them.

mod events;
mod ports;
mod report;
mod scrub;
mod split;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use mortar_common::{BrickId, Incarnation, PeerId, VolumeId};
use mortar_proto::control::{
    BrickState, CheckPage, CheckRequest, PrepareBrickReply, PrepareBrickRequest, PrepareStep,
    VolumeHealReply, VolumeHealRequest,
};
use mortar_proto::data::{EpochRef, Goodbye, Hello, Role};
use mortar_proto::registry::{self as reg, BrickStatus, View, Volume, VolumeStatus};
use tracing::{error, info};

pub use report::{SPLIT_WORDS, STOPPING_WORDS};

use crate::admin::options::Options;
use crate::brick::{Brick, BrickIdentity, HealSource, Reserve};
use crate::link::{Hail, Links};
use crate::registry::Registry;
use crate::replica::core::{RegistryView, Timing, Votes};
use crate::replica::{Replica, Setting};

/// A brick that could not be started is tried again after this.
const RETRY: Duration = Duration::from_secs(5);

/// A brick that is to start while its last life still comes to an end is looked at again after
/// this.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What the control plane may ask of this host's bricks. Calls may block on the disk: call them
/// from a thread that may.
pub trait LocalBricks: Send + Sync {
    /// The state of this host's bricks of `volume` (empty = of all volumes).
    fn states(&self, volume: &str) -> Vec<BrickState>;
    /// Checks, makes or undoes a brick folder for `volume create`.
    fn prepare(&self, request: &PrepareBrickRequest) -> PrepareBrickReply;
    /// Starts a heal, or reports on it, for this host's bricks of a volume.
    fn heal(&self, request: &VolumeHealRequest) -> VolumeHealReply;
    /// What a brick of this host holds, a page of it: for `volume check`.
    fn check(&self, request: &CheckRequest) -> CheckPage;
}

/// All bricks of this host.
pub struct BrickHost {
    /// Itself, for its threads.
    this: Weak<BrickHost>,
    me: PeerId,
    registry: Registry,
    control: tokio::runtime::Handle,
    links: OnceLock<Arc<Links>>,
    running: Mutex<HashMap<BrickId, Arc<Replica>>>,
    problems: Mutex<HashMap<BrickId, Problem>>,
    /// What each brick opened here holds of its folder; after its stop that takes a while to end.
    holds: Mutex<HashMap<BrickId, Weak<()>>>,
    /// The folders of the bricks that run, for `volume check`.
    bricks: Mutex<HashMap<BrickId, Weak<Brick>>>,
    /// Which start of a brick of this process is the next.
    starts: AtomicU32,
    /// Which process each peer last showed, so that its goodbye can be told from an older one's.
    processes: Mutex<HashMap<PeerId, Incarnation>>,
    /// Bricks that merge what they changed alone.
    merging: Mutex<HashSet<BrickId>>,
    stop: crate::link::Stop,
    /// Wakes the thread that follows the registry, to end.
    wake: tokio::sync::Notify,
    follower: Mutex<Option<std::thread::JoinHandle<()>>>,
}

/// How far the running bricks are what the registry wants.
enum Adopted {
    /// But for those that have a problem.
    All,
    /// A brick waits for the end of its last life.
    SomeStillEnd,
}

struct Problem {
    words: String,
    since: Instant,
}

impl BrickHost {
    /// Starts following the registry; bricks that should run are started from a thread of its own.
    pub fn start(
        registry: Registry,
        control: tokio::runtime::Handle,
        process: Incarnation,
    ) -> Arc<Self> {
        let me = PeerId(registry.local().id);
        let host = Arc::new_cyclic(|this| BrickHost {
            this: Weak::clone(this),
            me,
            registry,
            control,
            links: OnceLock::new(),
            running: Mutex::default(),
            problems: Mutex::default(),
            holds: Mutex::default(),
            bricks: Mutex::default(),
            starts: AtomicU32::new(1),
            processes: Mutex::default(),
            merging: Mutex::default(),
            stop: crate::link::Stop::default(),
            wake: tokio::sync::Notify::new(),
            follower: Mutex::default(),
        });
        let links = Links::new(me, process, events::LinkEvents::new(&host));
        let _ = host.links.set(links);
        let follower = Arc::clone(&host);
        let spawned = std::thread::Builder::new()
            .name("host".to_owned())
            .spawn(move || follower.follow_registry());
        match spawned {
            Ok(thread) => *lock(&host.follower) = Some(thread),
            Err(error) => error!(%error, "no thread to follow the registry"),
        }
        host
    }

    /// This peer.
    pub fn me(&self) -> PeerId {
        self.me
    }

    /// The links to other peers.
    ///
    /// # Panics
    /// Never: they are made before the host is handed out.
    pub fn links(&self) -> &Arc<Links> {
        self.links
            .get_or_init(|| unreachable!("links are set in start"))
    }

    /// The running replica a connection is meant for, or the sentence that refuses it.
    pub fn replica(&self, hello: &Hello) -> Result<Arc<Replica>, String> {
        let brick = BrickId(hello.to_brick);
        let replica = self
            .lock_running()
            .get(&brick)
            .cloned()
            .ok_or_else(|| format!("brick {brick} does not run on this host"))?;
        if replica.setting().volume.0 != hello.volume[..] {
            return Err(format!("brick {brick} belongs to another volume"));
        }
        Ok(replica)
    }

    /// The peer of a brick that a client names and that does not run here, if another brick of its
    /// set does: then the client is connected through this host.
    pub fn way_around(&self, hello: &Hello) -> Option<Hail> {
        if hello.role() != Role::Client || hello.relayed {
            return None;
        }
        let view = self.registry.view();
        let volume = view
            .volumes
            .values()
            .find(|volume| volume.id[..] == hello.volume[..])?;
        let set = volume
            .sets
            .iter()
            .find(|set| set.bricks.contains(&hello.to_brick))?;
        let running = self.lock_running();
        if !set
            .bricks
            .iter()
            .any(|id| running.contains_key(&BrickId(*id)))
        {
            return None;
        }
        drop(running);
        let brick = volume
            .bricks
            .iter()
            .find(|brick| brick.id == hello.to_brick)?;
        let peer = view.peers.get(&brick.peer)?;
        (peer.id != self.me.0).then(|| Hail {
            host: peer.host.clone(),
            port: peer.port,
            from_peer: self.me,
            from_process: self.links().process(),
        })
    }

    /// Why a peer's link is refused; `None` = it is welcome.
    pub fn refusal_of_peer(&self, hello: &Hello) -> Option<String> {
        let known = self.registry.view().peers.contains_key(&hello.from_peer);
        (!known).then(|| "this pool knows no such peer".to_owned())
    }

    /// Runs `work` inside a tokio context, for what must be registered with one.
    pub fn on_control<T>(&self, work: impl FnOnce() -> T) -> T {
        let _entered = self.control.enter();
        work()
    }

    /// Halts every brick: nothing is answered any more.
    pub fn halt(&self) -> Vec<Arc<Replica>> {
        self.stop.stop();
        self.wake.notify_one();
        if let Some(thread) = lock(&self.follower).take()
            && thread.join().is_err()
        {
            error!("the thread that follows the registry panicked");
        }
        let running: Vec<Arc<Replica>> = self.lock_running().drain().map(|(_, r)| r).collect();
        for replica in &running {
            replica.halt();
        }
        running
    }

    /// Says goodbye, so that other copies take over at once, and brings the bricks to an end. The
    /// registry of this process must have stopped: its vote is counted as gone.
    pub fn leave(&self, halted: Vec<Arc<Replica>>) {
        self.links().goodbye(Goodbye {
            brick: 0,
            incarnation: self.links().process().0,
        });
        for replica in halted {
            replica.finish_stop();
        }
        self.links().stop();
    }

    fn follow_registry(self: &Arc<Self>) {
        let mut views = self.registry.subscribe();
        while !self.stop.is_stopped() {
            let view = Arc::clone(&views.borrow_and_update());
            let pause = match self.adopt(&view) {
                Adopted::All => RETRY,
                Adopted::SomeStillEnd => LOOK_AGAIN,
            };
            let waited = self.control.block_on(async {
                tokio::select! {
                    () = self.wake.notified() => Ok(Ok(())),
                    waited = tokio::time::timeout(pause, views.changed()) => waited,
                }
            });
            if matches!(waited, Ok(Err(_))) {
                return;
            }
        }
    }

    /// Makes the running bricks be what the registry wants.
    fn adopt(self: &Arc<Self>, view: &View) -> Adopted {
        self.links().set_peers(view.peers.values().cloned());
        let mut wanted = Vec::new();
        for volume in view.volumes.values() {
            for brick in &volume.bricks {
                let runs = volume.status() == VolumeStatus::VolumeStarted
                    && brick.status() == BrickStatus::BrickUp;
                if brick.peer == self.me.0 && runs {
                    wanted.push((volume, brick));
                }
            }
        }
        let stopped: Vec<Arc<Replica>> = {
            let mut running = self.lock_running();
            let gone: Vec<BrickId> = running
                .keys()
                .filter(|id| !wanted.iter().any(|(_, brick)| brick.id == id.0))
                .copied()
                .collect();
            gone.iter().filter_map(|id| running.remove(id)).collect()
        };
        for replica in stopped {
            self.stop_brick(&replica);
        }
        let mut adopted = Adopted::All;
        for (volume, brick) in wanted {
            let running = self.lock_running().get(&BrickId(brick.id)).cloned();
            match running {
                Some(replica) => {
                    replica.set_limits(volume.limits.unwrap_or_default());
                    if let Some(set) = view_of_set(view, volume, replica.setting().set, false) {
                        replica.view(set);
                    }
                    self.look_after_split(volume, &replica);
                }
                None if self.still_ends(BrickId(brick.id)) => adopted = Adopted::SomeStillEnd,
                None => self.start_brick(view, volume, brick),
            }
        }
        adopted
    }

    fn stop_brick(&self, replica: &Arc<Replica>) {
        let setting = replica.setting();
        info!(volume = setting.volume_name, brick = %setting.me, "the brick stops");
        replica.halt();
        self.links().goodbye(Goodbye {
            brick: setting.me.0,
            incarnation: setting.incarnation.0,
        });
        replica.finish_stop();
    }

    fn still_ends(&self, brick: BrickId) -> bool {
        let mut holds = lock(&self.holds);
        holds.retain(|_, hold| hold.strong_count() > 0);
        holds.contains_key(&brick)
    }

    fn start_brick(self: &Arc<Self>, view: &View, volume: &Volume, brick: &reg::Brick) {
        let id = BrickId(brick.id);
        if self
            .lock_problems()
            .get(&id)
            .is_some_and(|problem| problem.since.elapsed() < RETRY)
        {
            return;
        }
        let Some(set) = volume
            .sets
            .iter()
            .find(|set| set.bricks.contains(&brick.id))
        else {
            return;
        };
        let options = Options::of(volume);
        let identity = identity(volume, brick, set.index);
        let reserve = Reserve {
            percent: options.reserve_percent.min(100) as u8,
            ..Reserve::default()
        };
        let Some(store) = self.open_brick(volume, brick, &identity, reserve) else {
            return;
        };
        self.lock_problems().remove(&id);
        info!(volume = volume.name, path = brick.path, "the brick starts");
        let setting = Setting {
            me: id,
            incarnation: Incarnation::of_start(
                self.links().process(),
                self.starts.fetch_add(1, Ordering::Relaxed),
            ),
            volume: identity.volume,
            volume_name: volume.name.clone(),
            set: set.index,
            folder: std::path::PathBuf::from(&brick.path),
            timing: Timing::with_timeouts(options.ping_timeout_ms, options.stall_timeout_ms),
        };
        let ports = ports::SetPorts::new(self, &volume.name, set.index);
        let replica = Replica::start(
            setting,
            volume.limits.unwrap_or_default(),
            store,
            ports,
            view_of_set(view, volume, set.index, false),
        );
        self.lock_running().insert(id, replica);
    }

    /// Opens a brick's folder; why it does not is noted and logged once.
    fn open_brick(
        &self,
        volume: &Volume,
        brick: &reg::Brick,
        identity: &BrickIdentity,
        reserve: Reserve,
    ) -> Option<Arc<dyn HealSource>> {
        let id = BrickId(brick.id);
        let failure = match Brick::open(std::path::Path::new(&brick.path), identity, reserve) {
            Ok(opened) => {
                lock(&self.holds).insert(id, opened.hold());
                let brick = Arc::new(opened);
                let mut bricks = lock(&self.bricks);
                bricks.retain(|_, brick| brick.strong_count() > 0);
                bricks.insert(id, Arc::downgrade(&brick));
                return Some(brick);
            }
            Err(failure) => failure,
        };
        let words = failure.to_string();
        let problem = Problem {
            words: words.clone(),
            since: Instant::now(),
        };
        let old = self.lock_problems().insert(id, problem);
        if old.is_none_or(|old| old.words != words) {
            error!(
                volume = volume.name,
                path = brick.path,
                words,
                "a brick does not start"
            );
        }
        None
    }

    fn lock_running(&self) -> MutexGuard<'_, HashMap<BrickId, Arc<Replica>>> {
        lock(&self.running)
    }

    fn lock_problems(&self) -> MutexGuard<'_, HashMap<BrickId, Problem>> {
        lock(&self.problems)
    }
}

impl LocalBricks for BrickHost {
    fn states(&self, volume: &str) -> Vec<BrickState> {
        report::states(self, volume)
    }

    fn prepare(&self, request: &PrepareBrickRequest) -> PrepareBrickReply {
        let path = std::path::Path::new(&request.path);
        let Some(volume) = VolumeId::from_slice(&request.volume_id) else {
            let refusal = "the request names no volume id".to_owned();
            return PrepareBrickReply {
                refusal,
                limits: None,
            };
        };
        let identity = BrickIdentity {
            volume,
            volume_name: request.volume.clone(),
            brick: BrickId(request.brick),
            set: 0,
        };
        let done = match request.step() {
            PrepareStep::PrepareCheck => Brick::check(path, request.force).map(Some),
            PrepareStep::PrepareMake => Brick::make(path, &identity, request.force).map(|()| None),
            PrepareStep::PrepareUndo => Brick::unmake(path, &identity).map(|()| None),
        };
        match done {
            Ok(limits) => PrepareBrickReply {
                refusal: String::new(),
                limits,
            },
            Err(refusal) => PrepareBrickReply {
                refusal: refusal.to_string(),
                limits: None,
            },
        }
    }

    fn heal(&self, request: &VolumeHealRequest) -> VolumeHealReply {
        report::heal(self, request)
    }

    fn check(&self, request: &CheckRequest) -> CheckPage {
        let id = BrickId(request.brick);
        let brick = lock(&self.bricks).get(&id).and_then(Weak::upgrade);
        let replica = self.lock_running().get(&id).cloned();
        let (Some(brick), Some(replica)) = (brick, replica) else {
            return CheckPage {
                refusal: format!("brick {id} does not run on this host"),
                ..CheckPage::default()
            };
        };
        let page = crate::check::page(&brick, &|gfid| replica.is_open(gfid), request);
        let page = page.unwrap_or_else(|failure| CheckPage {
            refusal: failure.to_string(),
            ..CheckPage::default()
        });
        let (ordered, complete) = replica.progress();
        CheckPage {
            ordered,
            complete,
            ..page
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn identity(volume: &Volume, brick: &reg::Brick, set: u32) -> BrickIdentity {
    BrickIdentity {
        volume: VolumeId::from_slice(&volume.id).unwrap_or(VolumeId([0; 16])),
        volume_name: volume.name.clone(),
        brick: BrickId(brick.id),
        set,
    }
}

/// What a view says of one replica set.
fn view_of_set(view: &View, volume: &Volume, set: u32, linearizable: bool) -> Option<RegistryView> {
    let set = volume
        .sets
        .iter()
        .find(|candidate| candidate.index == set)?;
    Some(RegistryView {
        epoch: set.epoch.clone().unwrap_or_default(),
        history: set
            .history
            .iter()
            .map(|epoch| EpochRef {
                number: epoch.number,
                id: epoch.id,
            })
            .collect(),
        bricks: set.bricks.iter().copied().map(BrickId).collect(),
        votes: if view.peers.len() == 2 {
            Votes::Two
        } else {
            Votes::Quorum
        },
        linearizable,
    })
}
