//! How much the tests do: the sizes that CI has time for, or the full ones.

use std::time::Duration;

/// The full sizes when `MORTAR_TEST_SCALE=full`, else those of CI.
pub fn pick<T>(ci: T, full: T) -> T {
    if is_full() { full } else { ci }
}

/// Whether `MORTAR_TEST_SCALE=full`.
pub fn is_full() -> bool {
    std::env::var_os("MORTAR_TEST_SCALE").is_some_and(|scale| scale == "full")
}

/// A limit on throughput work, stated for an optimised build: three times as long without
/// optimisation. Limits on stalls are not stretched: they are timeouts, not speed.
pub fn build_time(limit: Duration) -> Duration {
    if cfg!(debug_assertions) {
        limit * 3
    } else {
        limit
    }
}
