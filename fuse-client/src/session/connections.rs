//! Connections of a session: made, kept while idle, dropped.

use std::sync::PoisonError;

use super::{Idle, Session};
use crate::connection::{Connection, Lost};
use crate::view::{BrickAddress, VolumeView};

/// Idle connections kept per mount: one for each thread of the kernel loop and some to spare.
const IDLE_CONNECTIONS_MAX: usize = 32;

impl Session {
    /// A connection to a brick; where this client cannot reach its host, through another brick's.
    pub(super) fn connect(
        &self,
        volume: &VolumeView,
        to: &BrickAddress,
        session: u64,
        give_up: &dyn Fn() -> bool,
    ) -> Result<Connection, Lost> {
        let mut problem = None;
        if !self.route.is_detoured(to.brick) {
            match Connection::open(to, &volume.id, session) {
                Err(lost) if lost.is_unreachable() && !give_up() => problem = Some(lost),
                outcome => return outcome,
            }
        }
        for through in volume.bricks.iter().filter(|one| one.brick != to.brick) {
            match Connection::open_through(through, to.brick, &volume.id, session, give_up) {
                Ok(connection) => {
                    if self.route.detour(to.brick) {
                        tracing::info!("{to} cannot be reached: it is asked through {through}");
                        self.drop_idle(to);
                    }
                    return Ok(connection);
                }
                Err(lost) => problem = problem.or(Some(lost)),
            }
        }
        self.route.straight(to.brick);
        Err(problem.unwrap_or_else(|| Lost::GivenUp {
            address: to.to_string(),
        }))
    }

    /// A brick that was reached through another, tried itself again.
    pub(super) fn connect_straight(
        &self,
        volume: &[u8],
        to: &BrickAddress,
        session: u64,
    ) -> Option<Connection> {
        if !self.route.may_try_straight(to.brick) {
            return None;
        }
        let connection = Connection::open(to, volume, session).ok()?;
        tracing::info!("{to} can be reached again");
        self.route.straight(to.brick);
        self.drop_idle(to);
        Some(connection)
    }

    /// One that the brick has not closed meanwhile: what is sent over such a one was sent to nobody,
    /// and would count as perhaps done.
    pub(super) fn take_idle(&self, brick: &BrickAddress, session: u64) -> Option<Idle> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let at = idle
                .iter()
                .rposition(|one| one.brick == *brick && one.session == session)?;
            let one = idle.swap_remove(at);
            if one.connection.is_open() {
                return Some(one);
            }
        }
    }

    pub(super) fn keep_idle(&self, one: Idle) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() >= IDLE_CONNECTIONS_MAX {
            idle.swap_remove(0);
        }
        idle.push(one);
    }

    pub(super) fn drop_idle(&self, brick: &BrickAddress) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|one| one.brick != *brick);
    }
}
