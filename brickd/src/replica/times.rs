//! The time that a change is given: the same on every copy, and never one that a change had before.

use mortar_proto::data::Time;

const NS_PER_SEC: i128 = 1_000_000_000;

/// The newest time that this copy has given to a change or seen on one. A clock that is set back,
/// or another primary's that is ahead, makes no change older than the one before it.
///
/// It begins anew with the process: when no copy lived through, only the clocks are left.
#[derive(Debug, Default)]
pub struct SetTime {
    last_ns: i128,
}

impl SetTime {
    /// The time of the next change, at `wall_ns` (ns since 1970) of this host's clock.
    pub fn next(&mut self, wall_ns: i128) -> Time {
        self.last_ns = wall_ns.max(self.last_ns + 1);
        Time {
            secs: self.last_ns.div_euclid(NS_PER_SEC) as i64,
            nanos: self.last_ns.rem_euclid(NS_PER_SEC) as u32,
        }
    }

    /// A change of this time was seen: the next one here is later.
    pub fn saw(&mut self, time: Time) {
        let seen_ns = i128::from(time.secs) * NS_PER_SEC + i128::from(time.nanos);
        self.last_ns = seen_ns.max(self.last_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_change_is_older_than_one_before_it() {
        let mut here = SetTime::default();
        let first = here.next(5 * NS_PER_SEC);
        assert_eq!((first.secs, first.nanos), (5, 0));
        let after_a_step_back = here.next(3 * NS_PER_SEC);
        assert_eq!((after_a_step_back.secs, after_a_step_back.nanos), (5, 1));
        let mut next_primary = SetTime::default();
        next_primary.saw(after_a_step_back);
        next_primary.saw(first);
        let behind = next_primary.next(0);
        assert_eq!((behind.secs, behind.nanos), (5, 2));
        let ahead = next_primary.next(7 * NS_PER_SEC);
        assert_eq!((ahead.secs, ahead.nanos), (7, 0));
    }
}
