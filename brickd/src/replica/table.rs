//! Sessions, opens, locks and results as they travel to a copy that joins: in parts, each of which
//! fits into a frame, however much clients hold open.

use mortar_proto::data::{Ordered, Recorded, SessionState};
use prost::Message;

/// A part is not longer than this by more than one piece of a session.
const PART_BYTES_MAX: usize = 1 << 20;
/// Opens, locks and slots of a session that travel together: some 100 bytes each at most.
const PIECE_ITEMS_MAX: usize = 4_096;
/// Tag and length of an element, at most.
const ELEMENT_BYTES: usize = 8;

/// The parts, in the order in which [`super::memory::Memory::import`] takes them: sessions first.
/// There is at least one.
pub fn parts(results: Vec<Recorded>, sessions: Vec<SessionState>) -> Vec<Ordered> {
    let mut parts = Parts::default();
    for piece in sessions.into_iter().flat_map(pieces) {
        let bytes = piece.encoded_len();
        parts.with_room(bytes).sessions.push(piece);
    }
    for recorded in results {
        let bytes = recorded.encoded_len();
        parts.with_room(bytes).table.push(recorded);
    }
    parts.finish()
}

#[derive(Default)]
struct Parts {
    full: Vec<Ordered>,
    last: Ordered,
    last_bytes: usize,
}

impl Parts {
    fn with_room(&mut self, bytes: usize) -> &mut Ordered {
        if self.last_bytes >= PART_BYTES_MAX {
            self.full.push(std::mem::take(&mut self.last));
            self.last_bytes = 0;
        }
        self.last_bytes += bytes + ELEMENT_BYTES;
        &mut self.last
    }

    fn finish(mut self) -> Vec<Ordered> {
        self.last.table_ends = true;
        self.full.push(self.last);
        if let Some(first) = self.full.first_mut() {
            first.table_begins = true;
        }
        self.full
    }
}

/// A session's state in pieces, each of which says whose it is.
fn pieces(state: SessionState) -> Vec<SessionState> {
    let whose = SessionState {
        opens: Vec::new(),
        locks: Vec::new(),
        slots: Vec::new(),
        ..state.clone()
    };
    let mut pieces = Vec::new();
    for opens in state.opens.chunks(PIECE_ITEMS_MAX) {
        pieces.push(SessionState {
            opens: opens.to_vec(),
            ..whose.clone()
        });
    }
    for locks in state.locks.chunks(PIECE_ITEMS_MAX) {
        pieces.push(SessionState {
            locks: locks.to_vec(),
            ..whose.clone()
        });
    }
    for slots in state.slots.chunks(PIECE_ITEMS_MAX) {
        pieces.push(SessionState {
            slots: slots.to_vec(),
            ..whose.clone()
        });
    }
    if pieces.is_empty() {
        pieces.push(whose);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use mortar_common::{Gfid, SessionId};
    use mortar_proto::data::change::Step;
    use mortar_proto::data::{
        Change, HeldLock, Lock, LockType, OpenStep, SessionOpenStep, SlotSeq,
    };
    use mortar_proto::frame::HEADER_BYTES_MAX;

    use super::*;
    use crate::replica::memory::Memory;

    fn of(number: u64) -> Gfid {
        Gfid { hi: 7, lo: number }
    }

    fn takes_all(parts: &[Ordered]) -> Memory {
        let mut copy = Memory::new();
        for part in parts {
            assert!(
                part.encoded_len() < HEADER_BYTES_MAX,
                "{}",
                part.encoded_len()
            );
            copy.import(&part.table, &part.sessions);
        }
        copy
    }

    /// A copy never joined while clients had more files open than one frame can name.
    #[test]
    fn however_much_is_open_it_comes_over_in_parts_that_fit() {
        let mut memory = Memory::new();
        for session in [1, 2] {
            let opened = SessionOpenStep {
                session,
                host: "client".repeat(40),
                mount_point: "/mnt".repeat(1_000),
                ..Default::default()
            };
            memory.apply(&Change {
                step: Some(Step::SessionOpen(opened)),
                ..Default::default()
            });
        }
        for number in 0..300_000 {
            let open = OpenStep {
                session: 1,
                gfid: Some(of(number)),
            };
            memory.apply(&Change {
                session: 1,
                slot: (number % 500) as u32,
                seq: number,
                step: Some(Step::Open(open)),
                ..Default::default()
            });
        }
        let (results, sessions) = memory.export();
        let parts = parts(results, sessions);
        assert!(parts.len() > 4, "{}", parts.len());
        let begins = parts.iter().map(|part| part.table_begins);
        assert_eq!(begins.filter(|begins| *begins).count(), 1);
        assert!(parts[0].table_begins && parts[parts.len() - 1].table_ends);
        let ends = parts.iter().map(|part| part.table_ends);
        assert_eq!(ends.filter(|ends| *ends).count(), 1);
        let copy = takes_all(&parts);
        assert_eq!(copy.export(), memory.export());
        assert!(copy.has_open(SessionId(1), of(299_999)));
    }

    #[test]
    fn locks_and_slots_are_cut_too_and_nothing_is_one_part() {
        let [nothing] = &parts(Vec::new(), Vec::new())[..] else {
            panic!("one part");
        };
        assert!(nothing.table_begins && nothing.table_ends);
        let lock = |start: u64| HeldLock {
            gfid: Some(of(1)),
            lock: Some(Lock {
                session: 9,
                owner: 1,
                r#type: LockType::LockRead.into(),
                start: 2 * start,
                end: 2 * start,
                ..Default::default()
            }),
        };
        let slot = |slot| SlotSeq { slot, seq: 3 };
        let items = PIECE_ITEMS_MAX as u64 + 1;
        let state = SessionState {
            session: 9,
            locks: (0..items).map(lock).collect(),
            slots: (0..items as u32).map(slot).collect(),
            ..Default::default()
        };
        let pieces = pieces(state.clone());
        assert_eq!(pieces.len(), 4);
        assert!(pieces.iter().all(|piece| piece.session == 9));
        let locks: Vec<_> = pieces
            .iter()
            .flat_map(|piece| piece.locks.clone())
            .collect();
        let slots: Vec<_> = pieces
            .iter()
            .flat_map(|piece| piece.slots.clone())
            .collect();
        assert_eq!((locks, slots), (state.locks, state.slots));
    }
}
