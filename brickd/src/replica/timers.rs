//! What happens without being asked: the core's clock, periodic syncs, expiry of sessions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Replica;

/// The core's clock ticks this often.
const TICK: Duration = Duration::from_millis(50);
/// Copies make what they have durable this often ([`SYNC_BYTES`] written make it sooner).
const SYNC_EVERY: Duration = Duration::from_secs(30);
/// See [`SYNC_EVERY`].
const SYNC_BYTES: u64 = 1 << 30;
/// … and when nothing has changed for this long since a change: then a copy that goes out lacks
/// only what changes afterwards.
const SYNC_QUIET: Duration = Duration::from_secs(3);
/// Sessions are looked over this often.
const SESSIONS_EVERY: Duration = Duration::from_millis(500);

pub(super) fn start(replica: &Arc<Replica>) {
    spawn(replica, "clock", TICK, |replica| {
        replica.begin_postponed();
        replica.event(|core, now| core.tick(now));
    });
    spawn(replica, "sessions", SESSIONS_EVERY, |replica| {
        replica.look_over_sessions()
    });
    let mut due = SyncDue::new();
    spawn(replica, "syncer", Duration::from_secs(1), move |replica| {
        replica.look_at_brick();
        let number = replica.newest_number();
        let written = replica.written_bytes();
        if due.look(number, written) || replica.absent.wants_sync() {
            replica.sync_and_confirm();
            due.synced(number, written);
        }
        replica.forget_replaced();
        replica.settle_touched();
    });
}

/// When a copy is to make durable what it has.
struct SyncDue {
    synced_at: Instant,
    synced_bytes: u64,
    synced_number: u64,
    newest_number: u64,
    changed_at: Instant,
}

impl SyncDue {
    fn new() -> Self {
        SyncDue {
            synced_at: Instant::now(),
            synced_bytes: 0,
            synced_number: 0,
            newest_number: 0,
            changed_at: Instant::now(),
        }
    }

    /// Whether it is time, with the newest change and the bytes written so far.
    fn look(&mut self, number: u64, written_bytes: u64) -> bool {
        if number != self.newest_number {
            self.newest_number = number;
            self.changed_at = Instant::now();
        }
        let is_quiet = number != self.synced_number && self.changed_at.elapsed() >= SYNC_QUIET;
        is_quiet
            || self.synced_at.elapsed() >= SYNC_EVERY
            || written_bytes - self.synced_bytes >= SYNC_BYTES
    }

    fn synced(&mut self, number: u64, written_bytes: u64) {
        self.synced_at = Instant::now();
        self.synced_number = number;
        self.synced_bytes = written_bytes;
    }
}

fn spawn(
    replica: &Arc<Replica>,
    name: &str,
    every: Duration,
    mut work: impl FnMut(&Arc<Replica>) + Send + 'static,
) {
    let stop = Arc::clone(&replica.stop);
    let weak = Arc::downgrade(replica);
    let spawned = std::thread::Builder::new()
        .name(format!("{name}-{}", replica.setting.volume_name))
        .spawn(move || {
            while !stop.sleep(every) {
                let Some(replica) = weak.upgrade() else {
                    return;
                };
                work(&replica);
            }
        })
        .map(drop);
    if let Err(error) = spawned {
        tracing::error!(%error, name, "no thread for a timer");
    }
}
