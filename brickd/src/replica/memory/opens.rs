//! Who has what open: one open per session and object.

use std::collections::{BTreeSet, HashMap};

use mortar_common::{Gfid, SessionId};

/// Objects one session can have open.
pub const OPENS_PER_SESSION_MAX: usize = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Opens {
    sessions: HashMap<SessionId, BTreeSet<Gfid>>,
    /// How many sessions have an object open.
    counts: HashMap<Gfid, usize>,
}

impl Opens {
    pub(super) fn insert(&mut self, session: SessionId, gfid: Gfid) {
        if self.sessions.entry(session).or_default().insert(gfid) {
            *self.counts.entry(gfid).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, session: SessionId, gfid: Gfid) {
        let Some(open) = self.sessions.get_mut(&session) else {
            return;
        };
        if open.remove(&gfid) {
            self.uncount(gfid);
        }
    }

    pub(super) fn end(&mut self, session: SessionId) {
        for gfid in self.sessions.remove(&session).unwrap_or_default() {
            self.uncount(gfid);
        }
    }

    pub(super) fn is_open(&self, gfid: Gfid) -> bool {
        self.counts.contains_key(&gfid)
    }

    pub(super) fn has(&self, session: SessionId, gfid: Gfid) -> bool {
        self.sessions
            .get(&session)
            .is_some_and(|open| open.contains(&gfid))
    }

    pub(super) fn count(&self, session: SessionId) -> usize {
        self.sessions.get(&session).map_or(0, BTreeSet::len)
    }

    pub(super) fn of(&self, session: SessionId) -> Vec<Gfid> {
        self.sessions
            .get(&session)
            .map_or_else(Vec::new, |open| open.iter().copied().collect())
    }

    fn uncount(&mut self, gfid: Gfid) {
        if let Some(count) = self.counts.get_mut(&gfid) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&gfid);
            }
        }
    }
}
