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
/// Sessions are looked over this often.
const SESSIONS_EVERY: Duration = Duration::from_millis(500);

pub(super) fn start(replica: &Arc<Replica>) {
    spawn(replica, "clock", TICK, |replica| {
        replica.event(|core, now| core.tick(now))
    });
    spawn(replica, "sessions", SESSIONS_EVERY, |replica| {
        replica.look_over_sessions()
    });
    let mut synced_at = Instant::now();
    let mut written_then = 0;
    spawn(replica, "syncer", Duration::from_secs(1), move |replica| {
        let written = replica.written_bytes();
        if synced_at.elapsed() >= SYNC_EVERY
            || written - written_then >= SYNC_BYTES
            || replica.absent.wants_sync()
        {
            replica.sync_and_confirm();
            synced_at = Instant::now();
            written_then = written;
        }
    });
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
