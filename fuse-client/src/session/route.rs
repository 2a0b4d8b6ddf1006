//! Who is asked: the primary as the view, the bricks' hints and their answers tell it, and the
//! order in which the others are tried when it is gone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mortar_common::BrickId;
use mortar_proto::data::EpochRef;

use crate::view::{BrickAddress, VolumeView};

/// Pause after a round in which no brick served: begins here …
const PAUSE_FIRST: Duration = Duration::from_millis(20);
/// … and grows by half up to this, so that a failover is noticed soon after it is done.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// A brick that is reached through another is tried straight again this often.
const STRAIGHT_EVERY: Duration = Duration::from_secs(5);
/// A brick that is not known to be primary has this long to answer.
const TRY_TIMEOUT: Duration = Duration::from_secs(1);

/// What is believed about the primary.
#[derive(Debug)]
pub struct Route {
    state: Mutex<State>,
    changed: Condvar,
    started: Instant,
    /// When a primary last answered, in ms since `started`, plus one; 0 = never.
    heard_ms: AtomicU64,
    version: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    primary: Option<BrickId>,
    epoch: u64,
    detours: Vec<Detour>,
}

/// A brick that this client reaches through another only.
#[derive(Debug)]
struct Detour {
    brick: BrickId,
    since: Instant,
    tried_straight: Instant,
}

/// One request's search for a brick that serves.
#[derive(Debug)]
pub struct Hunt {
    failed: Vec<BrickId>,
    pause: Duration,
    problem: Option<String>,
}

impl Default for Hunt {
    fn default() -> Self {
        Hunt {
            failed: Vec::new(),
            pause: PAUSE_FIRST,
            problem: None,
        }
    }
}

impl Hunt {
    /// This brick does not serve now; it is passed over for the rest of the round.
    pub fn failed(&mut self, brick: BrickId, problem: String) {
        self.problem = Some(problem);
        if !self.failed.contains(&brick) {
            self.failed.push(brick);
        }
    }

    /// Why the last brick did not serve.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}

impl Default for Route {
    fn default() -> Self {
        Route {
            state: Mutex::default(),
            changed: Condvar::new(),
            started: Instant::now(),
            heard_ms: AtomicU64::new(0),
            version: AtomicU64::new(0),
        }
    }
}

impl Route {
    /// The brick to ask next; `None` = all have failed in this round: pause.
    pub fn choose(&self, volume: &VolumeView, hunt: &mut Hunt) -> Option<BrickAddress> {
        let primary = self.lock().primary;
        let open = |address: &&BrickAddress| !hunt.failed.contains(&address.brick);
        volume
            .bricks
            .iter()
            .find(|address| Some(address.brick) == primary && open(address))
            .or_else(|| volume.bricks.iter().find(open))
            .cloned()
    }

    /// Waits a little, or until something is learned, and begins a new round.
    pub fn pause(&self, hunt: &mut Hunt) {
        let state = self.lock();
        let _unlocked = self
            .changed
            .wait_timeout(state, hunt.pause)
            .unwrap_or_else(PoisonError::into_inner);
        hunt.failed.clear();
        hunt.pause = (hunt.pause * 3 / 2).min(PAUSE_MAX);
    }

    /// What the registry says. An epoch older than one known is passed over.
    pub fn learn(&self, primary: Option<BrickId>, epoch: &EpochRef) {
        let Some(primary) = primary else { return };
        let mut state = self.lock();
        let newer = epoch.number > state.epoch;
        if newer || state.primary.is_none() {
            self.set(&mut state, primary, epoch.number);
        }
    }

    /// What a brick that is not the primary says; 0 = it does not know.
    pub fn hint(&self, primary: u64, epoch: Option<&EpochRef>) {
        let epoch = epoch.copied().unwrap_or_default();
        self.learn((primary != 0).then_some(BrickId(primary)), &epoch);
    }

    /// A brick has answered as primary.
    pub fn confirm(&self, brick: BrickId, epoch: Option<&EpochRef>) {
        let now_ms = self.started.elapsed().as_millis() as u64 + 1;
        self.heard_ms.store(now_ms, Ordering::Relaxed);
        let number = epoch.map_or(0, |epoch| epoch.number);
        let mut state = self.lock();
        if number >= state.epoch && (state.primary != Some(brick) || number > state.epoch) {
            self.set(&mut state, brick, number);
        }
    }

    /// Grows when another brick is taken for primary.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether an answer from this brick, asked at `sent_at` under `version`, is not to be waited
    /// for any more: another has become primary, it is reached through another since, or it was
    /// only tried and stays silent.
    pub fn left(&self, brick: BrickId, version: u64, sent_at: Instant) -> bool {
        if self.version() == version && sent_at.elapsed() < TRY_TIMEOUT {
            return false;
        }
        let state = self.lock();
        let is_detoured = |detour: &Detour| detour.brick == brick && detour.since > sent_at;
        state.primary != Some(brick) || state.detours.iter().any(is_detoured)
    }

    /// Whether this brick is reached through another.
    pub fn is_detoured(&self, brick: BrickId) -> bool {
        let state = self.lock();
        state.detours.iter().any(|detour| detour.brick == brick)
    }

    /// This brick is reached through another from now on: true the first time. Who waits for an
    /// answer of its own connection stops waiting.
    pub fn detour(&self, brick: BrickId) -> bool {
        let mut state = self.lock();
        if state.detours.iter().any(|detour| detour.brick == brick) {
            return false;
        }
        let now = Instant::now();
        state.detours.push(Detour {
            brick,
            since: now,
            tried_straight: now,
        });
        drop(state);
        self.version.fetch_add(1, Ordering::Release);
        self.changed.notify_all();
        true
    }

    /// This brick is reached itself again, or not through another any more.
    pub fn straight(&self, brick: BrickId) {
        self.lock().detours.retain(|detour| detour.brick != brick);
    }

    /// Whether it is time to try a brick straight that is reached through another.
    pub fn may_try_straight(&self, brick: BrickId) -> bool {
        let mut state = self.lock();
        let detour = state
            .detours
            .iter_mut()
            .find(|detour| detour.brick == brick);
        detour.is_some_and(|detour| {
            let is_time = detour.tried_straight.elapsed() >= STRAIGHT_EVERY;
            if is_time {
                detour.tried_straight = Instant::now();
            }
            is_time
        })
    }

    /// The believed primary and how long ago one last answered, in ms.
    pub fn heard(&self) -> (Option<BrickId>, u64) {
        let heard_ms = self.heard_ms.load(Ordering::Relaxed);
        let now_ms = self.started.elapsed().as_millis() as u64 + 1;
        (self.lock().primary, now_ms.saturating_sub(heard_ms))
    }

    /// Wakes everybody who pauses.
    pub fn wake(&self) {
        self.changed.notify_all();
    }

    /// Waits, at most `timeout`, for something to be learned.
    pub fn sleep(&self, timeout: Duration) {
        let state = self.lock();
        let _unlocked = self
            .changed
            .wait_timeout(state, timeout)
            .unwrap_or_else(PoisonError::into_inner);
    }

    fn set(&self, state: &mut State, primary: BrickId, epoch: u64) {
        state.epoch = epoch.max(state.epoch);
        if state.primary != Some(primary) {
            tracing::info!("brick {primary} is primary in epoch {epoch}");
            state.primary = Some(primary);
            self.version.fetch_add(1, Ordering::AcqRel);
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_proto::registry::VolumeStatus;

    fn volume() -> VolumeView {
        let brick = |id| BrickAddress {
            brick: BrickId(id),
            host: "h".into(),
            port: 1,
        };
        VolumeView {
            id: vec![0; 16],
            status: VolumeStatus::VolumeStarted,
            bricks: vec![brick(1), brick(2), brick(3)],
            primary: None,
            epoch: EpochRef::default(),
            sets: 1,
            io_timeout: None,
            inode_limit: None,
        }
    }

    fn epoch(number: u64) -> EpochRef {
        EpochRef { number, id: number }
    }

    #[test]
    fn the_primary_is_asked_first_then_the_others_then_a_pause() {
        let (route, mut hunt, volume) = (Route::default(), Hunt::default(), volume());
        route.learn(Some(BrickId(2)), &epoch(1));
        let mut asked = Vec::new();
        while let Some(address) = route.choose(&volume, &mut hunt) {
            asked.push(address.brick.0);
            hunt.failed(address.brick, "gone".into());
        }
        assert_eq!(asked, [2, 1, 3]);
        route.pause(&mut hunt);
        assert_eq!(route.choose(&volume, &mut hunt).unwrap().brick, BrickId(2));
    }

    #[test]
    fn a_detour_ends_the_wait_for_what_was_sent_straight() {
        let route = Route::default();
        route.learn(Some(BrickId(1)), &epoch(1));
        let (version, sent_at) = (route.version(), Instant::now());
        assert!(!route.left(BrickId(1), version, sent_at));
        std::thread::sleep(Duration::from_millis(2));
        assert!(route.detour(BrickId(1)) && !route.detour(BrickId(1)));
        assert!(route.left(BrickId(1), version, sent_at));
        assert!(!route.left(BrickId(1), route.version(), Instant::now()));
        assert!(route.is_detoured(BrickId(1)) && !route.may_try_straight(BrickId(1)));
        route.straight(BrickId(1));
        assert!(!route.is_detoured(BrickId(1)));
    }

    #[test]
    fn a_newer_epoch_wins_and_an_older_one_is_passed_over() {
        let route = Route::default();
        route.learn(Some(BrickId(1)), &epoch(5));
        let version = route.version();
        route.hint(2, Some(&epoch(4)));
        assert!(!route.left(BrickId(1), version, Instant::now()));
        route.confirm(BrickId(2), Some(&epoch(6)));
        assert!(route.left(BrickId(1), version, Instant::now()));
        route.learn(Some(BrickId(1)), &epoch(5));
        assert_eq!(route.heard().0, Some(BrickId(2)));
    }
}
