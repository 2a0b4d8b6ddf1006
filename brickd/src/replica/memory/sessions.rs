//! Mounted clients, and the fences of those that have ended.

use std::collections::{BTreeMap, HashSet, VecDeque};

use mortar_common::SessionId;

use super::results::Results;

/// Sessions of one set at a time.
pub const SESSIONS_MAX: usize = 10_000;
/// Ended sessions remembered; an older one is unknown, and refused for that.
pub const FENCES_MAX: usize = 65_536;

/// What is known of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Open.
    Known,
    /// Expired or closed: whatever it sends is refused, for ever.
    Fenced,
    /// Never heard of: it must begin with a SessionOpen.
    Unknown,
}

/// One mounted client.
#[derive(Debug, Default)]
pub(super) struct Session {
    pub(super) host: String,
    pub(super) pid: u32,
    pub(super) mount_point: String,
    /// By this copy's clock; `None` = not since this copy began to listen.
    pub(super) heard_ms: Option<u64>,
    pub(super) results: Results,
}

#[derive(Debug, Default)]
pub(super) struct Sessions {
    known: BTreeMap<SessionId, Session>,
    ended: HashSet<SessionId>,
    /// The ended ones, oldest first.
    ended_order: VecDeque<SessionId>,
    /// Silence before this moment is nobody's fault.
    silence_from_ms: u64,
}

impl Sessions {
    pub(super) fn open(&mut self, id: SessionId, host: &str, pid: u32, mount_point: &str) {
        if self.ended.contains(&id) {
            return;
        }
        let session = self.known.entry(id).or_default();
        session.host = host.to_owned();
        session.pid = pid;
        session.mount_point = mount_point.to_owned();
    }

    pub(super) fn end(&mut self, id: SessionId) {
        self.known.remove(&id);
        if self.ended.insert(id) {
            self.ended_order.push_back(id);
        }
        while self.ended_order.len() > FENCES_MAX {
            if let Some(oldest) = self.ended_order.pop_front() {
                self.ended.remove(&oldest);
            }
        }
    }

    pub(super) fn standing(&self, id: SessionId) -> Standing {
        if self.known.contains_key(&id) {
            Standing::Known
        } else if self.ended.contains(&id) {
            Standing::Fenced
        } else {
            Standing::Unknown
        }
    }

    pub(super) fn get(&self, id: SessionId) -> Option<&Session> {
        self.known.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.known.get_mut(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    pub(super) fn ids(&self) -> Vec<SessionId> {
        self.known.keys().copied().collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.known.iter().map(|(id, session)| (*id, session))
    }

    pub(super) fn ended(&self) -> impl Iterator<Item = SessionId> + '_ {
        self.ended_order.iter().copied()
    }

    pub(super) fn start_hearing(&mut self, now_ms: u64) {
        for session in self.known.values_mut() {
            session.heard_ms = Some(session.heard_ms.unwrap_or(0).max(now_ms));
        }
    }

    pub(super) fn forgive_silence(&mut self, now_ms: u64) {
        self.silence_from_ms = now_ms;
    }

    pub(super) fn last_heard_ms(&self) -> Option<u64> {
        self.known
            .values()
            .filter_map(|session| session.heard_ms)
            .max()
    }

    pub(super) fn silent(&self, now_ms: u64, limit_ms: u64) -> Vec<SessionId> {
        let is_silent = |session: &Session| {
            session.heard_ms.is_some_and(|heard_ms| {
                now_ms.saturating_sub(heard_ms.max(self.silence_from_ms)) > limit_ms
            })
        };
        self.iter()
            .filter(|(_, session)| is_silent(session))
            .map(|(id, _)| id)
            .collect()
    }
}
