//! What the client knows of the registry: one volume, its bricks, its primary.
//!
//! A thread of its own follows `Pool.WatchView` from any peer, bootstrap hosts first, and goes to
//! the next one when the stream ends; everybody else reads what it has learned.

mod follow;

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mortar_common::BrickId;
use mortar_proto::data::EpochRef;
use mortar_proto::registry::{View, VolumeStatus};

/// A mount waits this long for a first view from any host.
pub const FIRST_VIEW_WAIT: Duration = Duration::from_secs(5);

/// A brick and where its peer listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BrickAddress {
    /// The brick.
    pub brick: BrickId,
    /// Its peer's name, as probed.
    pub host: String,
    /// Its peer's port.
    pub port: u16,
}

impl fmt::Display for BrickAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// One peer to ask for the view.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// Name or address.
    pub name: String,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

/// What a view says of the mounted volume.
#[derive(Clone, PartialEq, Debug)]
pub struct VolumeView {
    /// 16 bytes.
    pub id: Vec<u8>,
    /// Started, stopped or never started.
    pub status: VolumeStatus,
    /// Bricks of the replica set, in the order of `volume create`.
    pub bricks: Vec<BrickAddress>,
    /// The primary of the newest epoch this view knows.
    pub primary: Option<BrickId>,
    /// That epoch.
    pub epoch: EpochRef,
    /// Replica sets of the volume.
    pub sets: usize,
    /// The volume's `client.io-timeout`; `None` = wait for ever.
    pub io_timeout: Option<Duration>,
    /// The volume's `client.inode-limit`, if it was set.
    pub inode_limit: Option<usize>,
}

/// What is known of the volume.
#[derive(Clone, PartialEq, Debug)]
pub enum Volume {
    /// It is in the view.
    Present(Arc<VolumeView>),
    /// The view knows no such volume.
    Absent,
}

/// Follows the registry until it is dropped.
#[derive(Debug)]
pub struct ViewWatch {
    shared: Arc<Shared>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    volume: Option<Volume>,
    hosts: Vec<Host>,
    pool: u64,
    /// (generation, index) of the newest view seen: an older one is passed over.
    newest: (u64, u64),
    /// Grows with each change of `volume`.
    version: u64,
    /// Why the last host asked gave no view.
    problem: Option<String>,
}

impl ViewWatch {
    /// Starts following the volume called `name`, asking these hosts first.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be made.
    pub fn start(name: &str, bootstrap: Vec<Host>) -> std::io::Result<ViewWatch> {
        let state = State {
            hosts: bootstrap.clone(),
            ..Default::default()
        };
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("view".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = follow::forever(&for_thread, &bootstrap) => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(ViewWatch {
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Waits for the first view.
    ///
    /// # Errors
    /// In words, when no host gave one within [`FIRST_VIEW_WAIT`].
    pub fn first(&self) -> Result<Volume, String> {
        let deadline = Instant::now() + FIRST_VIEW_WAIT;
        let mut state = self.shared.lock();
        loop {
            if let Some(volume) = &state.volume {
                return Ok(volume.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(state
                    .problem
                    .clone()
                    .unwrap_or_else(|| "no host of the pool answers".to_owned()));
            }
            state = wait(&self.shared.changed, state, left);
        }
    }

    /// The volume as last seen, and a number that grows with each change.
    pub fn current(&self) -> (Volume, u64) {
        let state = self.shared.lock();
        (
            state.volume.clone().unwrap_or(Volume::Absent),
            state.version,
        )
    }

    /// Waits until the view is newer than `version`, at most `timeout`; returns its version.
    pub fn wait_newer(&self, version: u64, timeout: Duration) -> u64 {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.lock();
        while state.version <= version {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = wait(&self.shared.changed, state, left);
        }
        state.version
    }
}

impl Drop for ViewWatch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn wait<'a, T>(
    condvar: &Condvar,
    guard: std::sync::MutexGuard<'a, T>,
    timeout: Duration,
) -> std::sync::MutexGuard<'a, T> {
    condvar
        .wait_timeout(guard, timeout)
        .unwrap_or_else(PoisonError::into_inner)
        .0
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a view unless it is older than one seen before or of another pool.
    fn learn(&self, view: &View) -> Result<(), String> {
        let mut state = self.lock();
        if state.pool != 0 && state.pool != view.pool {
            return Err("it belongs to another pool now".to_owned());
        }
        if state.volume.is_some() && (view.generation, view.index) < state.newest {
            return Ok(());
        }
        state.pool = view.pool;
        state.newest = (view.generation, view.index);
        state.hosts = view
            .peers
            .values()
            .map(|peer| Host {
                name: peer.host.clone(),
                port: peer.port as u16,
            })
            .collect();
        let volume = match read_volume(view, &self.name) {
            Some(volume) => Volume::Present(Arc::new(volume)),
            None => Volume::Absent,
        };
        if state.volume.as_ref() != Some(&volume) {
            state.volume = Some(volume);
            state.version += 1;
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    fn failed(&self, problem: String) {
        self.lock().problem = Some(problem);
    }
}

fn read_volume(view: &View, name: &str) -> Option<VolumeView> {
    let volume = view.volumes.get(name)?;
    let set = volume.sets.first();
    let in_set = |brick: u64| set.is_none_or(|set| set.bricks.contains(&brick));
    let bricks = volume
        .bricks
        .iter()
        .filter(|brick| in_set(brick.id))
        .filter_map(|brick| {
            let peer = view.peers.get(&brick.peer)?;
            Some(BrickAddress {
                brick: BrickId(brick.id),
                host: peer.host.clone(),
                port: peer.port as u16,
            })
        })
        .collect();
    let epoch = set.and_then(|set| set.epoch.as_ref());
    Some(VolumeView {
        id: volume.id.clone(),
        status: volume.status(),
        bricks,
        primary: epoch
            .filter(|epoch| epoch.primary != 0)
            .map(|epoch| BrickId(epoch.primary)),
        epoch: epoch.map_or(EpochRef::default(), |epoch| EpochRef {
            number: epoch.number,
            id: epoch.id,
        }),
        sets: volume.sets.len(),
        io_timeout: number(volume, "client.io-timeout").map(Duration::from_secs),
        inode_limit: number(volume, "client.inode-limit").map(|limit| limit as usize),
    })
}

/// An option that is a number, with or without the unit of seconds. 0 is as if it were not set.
fn number(volume: &mortar_proto::registry::Volume, option: &str) -> Option<u64> {
    let value = volume.options.get(option)?.trim().trim_end_matches('s');
    value.parse().ok().filter(|number| *number != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_proto::registry;

    fn view(index: u64, primary: u64) -> View {
        let peer = registry::Peer {
            id: 5,
            host: "gfs01".into(),
            port: 7,
            ..Default::default()
        };
        let epoch = registry::Epoch {
            number: index,
            id: 1,
            primary,
            ..Default::default()
        };
        let set = registry::ReplicaSet {
            bricks: vec![9],
            epoch: Some(epoch),
            ..Default::default()
        };
        let brick = registry::Brick {
            id: 9,
            peer: 5,
            ..Default::default()
        };
        let volume = registry::Volume {
            name: "v".into(),
            id: vec![1; 16],
            status: VolumeStatus::VolumeStarted.into(),
            bricks: vec![brick],
            sets: vec![set],
            ..Default::default()
        };
        View {
            index,
            pool: 3,
            peers: [(5, peer)].into(),
            volumes: [("v".to_owned(), volume)].into(),
            ..Default::default()
        }
    }

    #[test]
    fn an_older_view_is_passed_over() {
        let shared = Shared {
            name: "v".to_owned(),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        shared.learn(&view(2, 9)).unwrap();
        shared.learn(&view(1, 0)).unwrap();
        let state = shared.lock();
        let Some(Volume::Present(volume)) = &state.volume else {
            panic!("no volume")
        };
        assert_eq!(volume.primary, Some(BrickId(9)));
        assert_eq!(volume.bricks[0].to_string(), "gfs01:7");
        assert_eq!(state.version, 1);
        drop(state);
        assert!(
            shared
                .learn(&View {
                    pool: 4,
                    ..view(3, 9)
                })
                .is_err()
        );
    }
}
