//! What a client will read next: a guess from the requests of one connection.
//!
//! Whoever reads a tree of small files looks each up, opens it and reads it. Between the answer to
//! the lookup and the open the request travels twice, in which time a disk could fetch the file.
//! Clients that only look (stat, find) open nothing, and for them nothing is fetched.

use mortar_common::Gfid;
use mortar_proto::data::op::Op as OpKind;
use mortar_proto::data::{self, Op};

/// Larger files are read ahead when they are read.
const SMALL_BYTES_MAX: u64 = 64 << 10;
/// A lookup that an open followed counts as much as this many that none followed.
const OPENED_WEIGHT: u32 = 2;
/// A client that stops reading is believed for this many lookups more.
const TRUST_MAX: u32 = 8;

/// The guesses of one connection.
#[derive(Debug, Default)]
pub struct Foresight {
    looked_up: Option<Gfid>,
    trust: u32,
}

impl Foresight {
    /// A request was answered: the file that is worth fetching now, and its length in bytes.
    pub fn answered(&mut self, ops: &[Op], results: &[data::Result]) -> Option<(Gfid, u64)> {
        match ops.first()?.op.as_ref()? {
            OpKind::Lookup(_) => {
                let object = results.first()?.objects.first()?;
                let small = (1..=SMALL_BYTES_MAX).contains(&object.size);
                self.looked_up = object
                    .gfid
                    .filter(|_| small && object.mode & libc::S_IFMT == libc::S_IFREG);
                let gfid = self.looked_up?;
                let trusted = self.trust > 0;
                self.trust = self.trust.saturating_sub(1);
                trusted.then_some((gfid, object.size))
            }
            OpKind::Open(open) => {
                if open.gfid.is_some() && open.gfid == self.looked_up.take() && ops.len() > 1 {
                    self.trust = (self.trust + OPENED_WEIGHT).min(TRUST_MAX);
                }
                None
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_proto::data::{Lookup, Object, Open, Read};

    fn gfid(lo: u64) -> Gfid {
        Gfid { hi: 1, lo }
    }

    fn look_up(guesses: &mut Foresight, lo: u64, size: u64) -> Option<(Gfid, u64)> {
        let op = Op {
            op: Some(OpKind::Lookup(Lookup::default())),
        };
        let object = Object {
            gfid: Some(gfid(lo)),
            mode: libc::S_IFREG | 0o644,
            size,
            ..Default::default()
        };
        let result = data::Result {
            objects: vec![object],
            ..Default::default()
        };
        guesses.answered(&[op], &[result])
    }

    fn open_and_read(guesses: &mut Foresight, lo: u64) {
        let open = Open {
            gfid: Some(gfid(lo)),
            ..Default::default()
        };
        let ops = [OpKind::Open(open), OpKind::Read(Read::default())].map(|op| Op { op: Some(op) });
        assert_eq!(guesses.answered(&ops, &[]), None);
    }

    #[test]
    fn who_opens_what_it_looks_up_has_the_next_file_fetched() {
        let mut guesses = Foresight::default();
        assert_eq!(look_up(&mut guesses, 1, 100), None);
        open_and_read(&mut guesses, 1);
        assert_eq!(look_up(&mut guesses, 2, 100), Some((gfid(2), 100)));
        open_and_read(&mut guesses, 2);
        assert_eq!(look_up(&mut guesses, 3, SMALL_BYTES_MAX + 1), None);
        assert_eq!(look_up(&mut guesses, 3, 0), None);
    }

    #[test]
    fn who_only_looks_has_nothing_fetched() {
        let mut guesses = Foresight::default();
        for lo in 0..100 {
            look_up(&mut guesses, lo, 100);
            open_and_read(&mut guesses, lo);
        }
        let fetched = (100..200)
            .filter(|lo| look_up(&mut guesses, *lo, 100).is_some())
            .count();
        assert!(fetched <= TRUST_MAX as usize, "{fetched}");
        // An open of something else says nothing.
        open_and_read(&mut guesses, 7);
        assert_eq!(look_up(&mut guesses, 8, 100), None);
    }
}
