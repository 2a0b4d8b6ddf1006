//! Becoming primary: everything received is applied, and with more than two copies the longest
//! tail among them is shared out, before anything new is ordered.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mortar_common::BrickId;
use mortar_proto::WIRE_VERSION;
use mortar_proto::data::{EpochRef, Hello, Ordered, Role as HelloRole};
use mortar_proto::frame::{self, FrameError, Kind};
use mortar_proto::registry::Epoch;
use tracing::{debug, info};

use super::Replica;
use super::core::Role;
use super::streams::Numbered;
use crate::brick::BrickError;

/// A copy that does not give its tail is asked again after this.
const RETRY: Duration = Duration::from_millis(50);
/// A copy that stops in the middle of its tail for this long is asked anew.
const TAIL_TIMEOUT: Duration = Duration::from_secs(3);

/// Changes kept after they are complete, for a copy that asks a little late.
const KEPT_MAX: usize = 4096;

/// Changes that some in-sync copy may not have: kept until all of them have confirmed.
#[derive(Default)]
pub struct Tail {
    changes: Mutex<BTreeMap<u64, Arc<Numbered>>>,
}

impl Tail {
    /// Keeps a change; lets go of those up to `complete`.
    pub fn keep(&self, numbered: &Arc<Numbered>, complete: u64) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.insert(numbered.change.number, Arc::clone(numbered));
        while changes
            .first_key_value()
            .is_some_and(|(first, _)| *first <= complete)
            || changes.len() > KEPT_MAX
        {
            changes.pop_first();
        }
    }

    /// Those of these changes that are still kept.
    pub fn get(&self, numbers: &[u64]) -> Vec<Arc<Numbered>> {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        numbers
            .iter()
            .filter_map(|number| changes.get(number).cloned())
            .collect()
    }

    /// Everything kept above `number`, in order.
    pub fn above(&self, number: u64) -> Vec<Arc<Numbered>> {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes
            .range(number + 1..)
            .map(|(_, numbered)| Arc::clone(numbered))
            .collect()
    }

    /// What a copy that is lost may lack, or have more of than this one: the changes the core
    /// names, whatever else is kept, and what it did not answer on its stream.
    ///
    /// Whatever is kept: the lost copy may have applied what it answered and this one has not
    /// applied. Should this process end before, the other has more.
    pub fn concerning_lost(
        &self,
        named: &[u64],
        unanswered: impl IntoIterator<Item = Arc<Numbered>>,
    ) -> Vec<Arc<Numbered>> {
        let mut concerned = self.get(named);
        concerned.extend(self.above(0));
        concerned.extend(unanswered);
        concerned
    }
}

impl Replica {
    /// Carries out [`super::core::Command::Recover`], in a thread of its own. When the epoch
    /// changes meanwhile this one ends: another has been started.
    pub(super) fn recover(self: &Arc<Self>) {
        self.follower.shut();
        let (_, epoch) = self.role();
        while !self.follower.drained(Duration::from_millis(100)) {
            if self.is_stopped() {
                return;
            }
        }
        for copy in &epoch.in_sync {
            let from = BrickId(copy.brick);
            if from != self.setting().me && !self.fetch_tail(from, &epoch) {
                return;
            }
        }
        if let Err(failure) = self.ensure_marks() {
            return self.disk_failed(&failure.to_string());
        }
        let last = self
            .lock_core()
            .last_number()
            .max(self.follower.received_max());
        info!(
            volume = self.setting().volume_name,
            last, "everything received is applied"
        );
        self.event(|core, now| core.recovered(last, now));
    }

    /// Applies what another in-sync copy received and this one did not; asks until it answers.
    /// `false`: the epoch has changed, because the copy is gone, or this copy stops.
    fn fetch_tail(self: &Arc<Self>, from: BrickId, epoch: &Epoch) -> bool {
        while !self.is_stopped() && self.role() == (Role::Recovering, epoch.clone()) {
            match self.ask_tail(from, epoch) {
                Ok(changes) => {
                    for numbered in changes {
                        if let Err(failure) = self.apply_fetched(&numbered) {
                            self.disk_failed(&failure.to_string());
                            return false;
                        }
                    }
                    return true;
                }
                Err(error) => debug!(copy = self.ports.name_of(from), %error, "no tail yet"),
            }
            if self.stop.sleep(RETRY) {
                return false;
            }
        }
        false
    }

    fn ask_tail(&self, from: BrickId, epoch: &Epoch) -> Result<Vec<Arc<Numbered>>, FrameError> {
        let hello = Hello {
            wire_version: WIRE_VERSION,
            role: HelloRole::Tail.into(),
            volume: self.volume_bytes(),
            to_brick: from.0,
            from_brick: self.setting().me.0,
            epoch: Some(EpochRef {
                number: epoch.number,
                id: epoch.id,
            }),
            last_number: self.follower.received_max(),
            ..Default::default()
        };
        let (mut connection, answer) = self.ports.connect(from, hello)?;
        if !answer.refusal.is_empty() {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, answer.refusal).into());
        }
        connection.set_read_timeout(Some(TAIL_TIMEOUT))?;
        let mut changes = Vec::new();
        loop {
            let frame = frame::receive(&mut connection)?;
            let ordered: Ordered = frame.decode()?;
            let Some(change) = ordered.change else {
                return Ok(changes);
            };
            let payload = frame.payload;
            changes.push(Arc::new(Numbered { change, payload }));
        }
    }

    fn apply_fetched(&self, numbered: &Arc<Numbered>) -> Result<(), BrickError> {
        if self.follower.note_fetched(numbered.change.number) {
            self.apply_here(numbered)?;
            self.tail.keep(numbered, 0);
        }
        Ok(())
    }

    /// Serves a new primary that asks what this copy received: in the calling thread. Only in the
    /// epoch that it names, in which nothing is taken from the old primary any more.
    pub fn give_tail(&self, mut to: TcpStream, hello: &Hello) -> Result<(), FrameError> {
        let refusal = {
            let core = self.lock_core();
            let known = Some(core.epoch_ref()) == hello.epoch;
            if known && *core.role() == Role::Backup {
                String::new()
            } else {
                format!(
                    "this copy is {:?} in epoch {}",
                    core.role(),
                    core.epoch().number
                )
            }
        };
        let accepted = refusal.is_empty();
        let answer = Hello {
            wire_version: WIRE_VERSION,
            role: HelloRole::Tail.into(),
            from_brick: self.setting().me.0,
            from_incarnation: self.setting().incarnation.0,
            refusal,
            ..Default::default()
        };
        frame::send(&mut to, Kind::Hello, &answer, &[])?;
        if !accepted {
            return Ok(());
        }
        to.set_write_timeout(Some(TAIL_TIMEOUT))?;
        for numbered in self.tail.above(hello.last_number) {
            let change = Some(numbered.change.clone());
            let ordered = Ordered {
                change,
                ..Default::default()
            };
            frame::send(&mut to, Kind::Ordered, &ordered, &[&numbered.payload])?;
        }
        frame::send(&mut to, Kind::Ordered, &Ordered::default(), &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_proto::data::Change;

    fn numbered(number: u64) -> Arc<Numbered> {
        Arc::new(Numbered {
            change: Change {
                number,
                ..Default::default()
            },
            payload: bytes::Bytes::new(),
        })
    }

    fn numbers(changes: Vec<Arc<Numbered>>) -> Vec<u64> {
        let mut numbers: Vec<u64> = changes.iter().map(|kept| kept.change.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    #[test]
    fn what_all_copies_have_is_let_go_of() {
        let tail = Tail::default();
        (1..=5).for_each(|number| tail.keep(&numbered(number), number.saturating_sub(3)));
        assert_eq!(numbers(tail.above(0)), [3, 4, 5]);
        assert_eq!(numbers(tail.above(4)), [5]);
        assert_eq!(numbers(tail.get(&[1, 3, 9])), [3]);
    }

    /// The lost copy answered 4 as applied, and this one has not applied it: nobody names it, and
    /// it is marked all the same.
    #[test]
    fn a_lost_copy_may_have_what_it_answered_and_this_one_not() {
        let tail = Tail::default();
        (3..=5).for_each(|number| tail.keep(&numbered(number), 2));
        let concerned = tail.concerning_lost(&[5], [numbered(7)]);
        assert_eq!(numbers(concerned), [3, 4, 5, 7]);
    }
}
