//! One life of the session: an id and its slots. A fence ends it; the next life has a new id.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mortar_common::{FsError, SessionId, Signal};
use mortar_proto::SLOTS_PER_SESSION;

/// A slot whose request was given up unanswered rests this long: the request may still arrive.
const REST: Duration = Duration::from_secs(60);
/// A caller that waits for a slot is asked this often whether it still wants to.
const TICK: Duration = Duration::from_millis(100);

/// Lives of one session are counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct LifeNumber(u64);

impl LifeNumber {
    /// Of the life after this one.
    pub fn next(self) -> LifeNumber {
        LifeNumber(self.0 + 1)
    }
}

/// An id and its numbered slots.
#[derive(Debug)]
pub struct Life {
    id: SessionId,
    number: LifeNumber,
    slots: Mutex<Slots>,
    freed: Signal,
}

#[derive(Debug, Default)]
struct Slots {
    /// The last seq used in each slot.
    seqs: Vec<u64>,
    /// Lowest last, so that few slots are used.
    free: Vec<u32>,
    /// Given up unanswered, oldest first.
    resting: VecDeque<(Instant, u32)>,
}

/// A slot that is this request's until it is answered or given up.
#[derive(Debug)]
pub struct SlotGuard {
    life: Arc<Life>,
    slot: u32,
    seq: u64,
    answered: bool,
}

impl Life {
    /// A life with a random id.
    pub fn new(number: LifeNumber) -> Self {
        Life {
            id: SessionId::random(),
            number,
            slots: Mutex::default(),
            freed: Signal::default(),
        }
    }

    /// The session's id on the wire.
    pub fn id(&self) -> u64 {
        self.id.0
    }

    /// The how manieth of its session it is.
    pub fn number(&self) -> LifeNumber {
        self.number
    }

    /// Takes a free slot with its next seq; waits for one as long as `may_wait` is content.
    pub fn take_slot(
        self: &Arc<Self>,
        may_wait: impl Fn() -> Result<(), FsError>,
    ) -> Result<SlotGuard, FsError> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some((slot, seq)) = slots.take() {
                return Ok(SlotGuard {
                    life: self.clone(),
                    slot,
                    seq,
                    answered: false,
                });
            }
            may_wait()?;
            slots = self.freed.wait_timeout(slots, TICK);
        }
    }
}

impl Slots {
    fn take(&mut self) -> Option<(u32, u64)> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if (self.seqs.len() as u32) < SLOTS_PER_SESSION => {
                self.seqs.push(0);
                self.seqs.len() as u32 - 1
            }
            None => match self.resting.front() {
                Some((since, slot)) if since.elapsed() >= REST => {
                    let slot = *slot;
                    self.resting.pop_front();
                    slot
                }
                _ => return None,
            },
        };
        let seq = &mut self.seqs[slot as usize];
        *seq += 1;
        Some((slot, *seq))
    }
}

impl SlotGuard {
    /// (slot, seq).
    pub fn number(&self) -> (u32, u64) {
        (self.slot, self.seq)
    }

    /// Frees the slot: its request was answered.
    pub fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for SlotGuard {
    fn drop(&mut self) {
        let mut slots = self
            .life
            .slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.answered {
            slots.free.push(self.slot);
        } else {
            slots.resting.push_back((Instant::now(), self.slot));
        }
        drop(slots);
        self.life.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_counts_on_and_rests_when_it_was_not_answered() {
        let life = Arc::new(Life::new(LifeNumber::default()));
        let first = life.take_slot(|| Ok(())).unwrap();
        assert_eq!(first.number(), (0, 1));
        first.answered();
        let second = life.take_slot(|| Ok(())).unwrap();
        assert_eq!(second.number(), (0, 2));
        drop(second);
        assert_eq!(life.take_slot(|| Ok(())).unwrap().number(), (1, 1));
    }

    #[test]
    fn when_all_slots_are_taken_the_caller_decides_how_long_it_waits() {
        let life = Arc::new(Life::new(LifeNumber::default()));
        let held: Vec<_> = (0..SLOTS_PER_SESSION)
            .map(|_| life.take_slot(|| Ok(())).unwrap())
            .collect();
        let refusal = life.take_slot(|| Err(FsError::TimedOut)).unwrap_err();
        assert_eq!(refusal, FsError::TimedOut);
        drop(held);
    }
}
