//! What both sides hold, and what is called how.

use bytes::Bytes;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::{Object, ReadDir};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{MergeError, Merger, PAGE_BYTES};
use crate::brick::BrickError;
use crate::split::version::Version;

impl Merger<'_> {
    /// Whether this side has that object too, and it is not the one in question.
    pub(super) fn is_elsewhere(&self, there: Gfid, mine: Gfid) -> bool {
        let known = self.source.object(there);
        there != mine && known.is_ok_and(|known| known.nlink > 0)
    }

    /// Whether the base got a copy of an object of this side.
    pub(super) fn is_copied(&self, gfid: Gfid) -> bool {
        self.brought.get(&gfid).is_some_and(|copy| *copy != gfid)
    }

    pub(super) fn at_side(&self, parent: Gfid, name: &[u8]) -> Result<Option<Object>, MergeError> {
        match self.source.lookup(parent, name) {
            Ok(object) => Ok(Some(object)),
            Err(BrickError::Refused { .. }) => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    pub(super) fn name_of(&self, parent: Gfid, gfid: Gfid) -> Result<Bytes, MergeError> {
        let mut page = ReadDir {
            gfid: Some(parent),
            max_bytes: PAGE_BYTES,
            ..Default::default()
        };
        loop {
            let listed = self.source.read_dir(&page)?;
            if let Some(entry) = listed.entries.iter().find(|it| it.gfid == Some(gfid)) {
                return Ok(entry.name.clone());
            }
            let last = listed.entries.last().filter(|_| !listed.end);
            let last = last.ok_or(FsError::Stale)?;
            (page.after_hash, page.after_name) = (last.hash, last.name.clone());
        }
    }

    /// The id of what is brought for an object that the base has too: the same in every attempt.
    pub(super) fn id_of(&self, mine: Gfid) -> Gfid {
        self.id_for(mine, 0)
    }

    pub(super) fn id_for(&self, mine: Gfid, seed: u64) -> Gfid {
        let seed = self.side.epoch.id ^ seed;
        Gfid {
            hi: mine.hi,
            lo: xxh3_64_with_seed(&mine.to_bytes(), seed) | 2,
        }
    }

    pub(super) fn version(&self, base: Gfid, other: Gfid) -> Version {
        Version {
            base,
            brick: self.side.brick,
            other,
        }
    }

    pub(super) fn restless(&self, gfid: Gfid) -> MergeError {
        let path = self.source.path_of(gfid);
        MergeError::Restless(path.unwrap_or_else(|| gfid.to_string()))
    }
}
