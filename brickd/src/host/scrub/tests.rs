//! The other copy's version of a file: brought without its holes, and whole or not at all.

use std::sync::Mutex;

use mortar_proto::data::op::Op as OpKind;

use super::*;
use crate::brick::{Reserve, Store};
use crate::replica::scrub::rig::{Copy, ME, OTHER, file};
use crate::split::base::{Base, Told};
use crate::split::tests::side::Side;

/// Far behind the beginning of a file.
const FAR: u64 = 900 << 30;

/// A volume that takes so many writes, and has then no room.
struct Full {
    volume: Side,
    writes_left: Mutex<u32>,
}

impl Full {
    fn after(writes: u32) -> Self {
        Full {
            volume: Side::new(),
            writes_left: Mutex::new(writes),
        }
    }

    fn keep(&self, scrubber: &Scrubber<'_>, gfid: Gfid) -> Result<(), ScrubError> {
        let differing = Differing {
            gfid,
            ranges: Vec::new(),
        };
        keep(
            scrubber,
            Hands::new(self, SplitWork::SplitResolve),
            &differing,
        )
    }

    /// What the folder of versions holds; `None`: there is none.
    fn versions(&self) -> Option<Vec<Object>> {
        let tree = self.volume.tree();
        let mut names: Vec<&str> = tree
            .keys()
            .filter_map(|path| path.strip_prefix("/.split-brain"))
            .collect();
        let at = names.iter().position(|name| name.is_empty())?;
        names.remove(at);
        let brick = self.volume.brick();
        let held = |name: &&str| brick.lookup(Gfid::SPLIT, &name.as_bytes()[1..]).unwrap();
        Some(names.iter().map(held).collect())
    }
}

impl Base for Full {
    fn call(&self, work: SplitWork, op: OpKind, payload: &[u8]) -> Result<Told, FsError> {
        if matches!(op, OpKind::Write(_)) {
            let mut left = self.writes_left.lock().unwrap();
            *left = left.checked_sub(1).ok_or(FsError::NoSpace)?;
        }
        self.volume.call(work, op, payload)
    }
}

fn refused_for_room(kept: Result<(), ScrubError>) -> bool {
    matches!(kept, Err(ScrubError::Volume(FsError::NoSpace)))
}

#[test]
fn a_version_is_brought_without_its_holes() {
    let other = Copy::new(OTHER, Reserve::default());
    let copy = Copy::with_others(&[&other]);
    let gfid = file();
    copy.has_file(gfid, 1 << 40, &[(0, b"right"), (FAR, b"far")]);
    other.has_file(gfid, 1 << 40, &[(0, b"wrong"), (FAR, b"far")]);
    let volume = Full::after(4);
    volume.keep(&copy.scrubber(), gfid).unwrap();
    let versions = volume.versions().unwrap();
    assert_eq!(versions.len(), 1);
    assert_eq!(versions[0].size, 1 << 40);
    let kept = versions[0].gfid.unwrap();
    let read = |at, len| {
        let mut bytes = Vec::new();
        let brick = volume.volume.brick();
        brick.read(kept, at, len, &mut bytes).unwrap();
        bytes
    };
    assert_eq!(
        (&read(0, 5)[..], &read(FAR, 3)[..]),
        (&b"wrong"[..], &b"far"[..])
    );
}

#[test]
fn of_a_version_that_could_not_be_brought_whole_nothing_is_left() {
    let other = Copy::new(OTHER, Reserve::default());
    let copy = Copy::with_others(&[&other]);
    let gfid = file();
    copy.has_file(gfid, 1 << 40, &[(0, b"right"), (FAR, b"far")]);
    other.has_file(gfid, 1 << 40, &[(0, b"wrong"), (FAR, b"far")]);
    let volume = Full::after(1);
    let kept = volume.keep(&copy.scrubber(), gfid);
    assert!(refused_for_room(kept));
    assert_eq!(*volume.writes_left.lock().unwrap(), 0, "it was begun");
    assert!(volume.versions().is_none(), "{:?}", volume.versions());
}

#[test]
fn a_version_that_there_is_no_room_for_is_not_begun() {
    let other = Copy::new(OTHER, Reserve::default());
    let everything = Reserve {
        percent: 100,
        bytes_min: u64::MAX,
    };
    let copy = Copy::new(ME, everything).beside(&[&other]);
    let gfid = file();
    copy.has_file(gfid, 5, &[(0, b"right")]);
    other.has_file(gfid, 5, &[(0, b"wrong")]);
    let volume = Full::after(1);
    let kept = volume.keep(&copy.scrubber(), gfid);
    assert!(refused_for_room(kept));
    assert_eq!(*volume.writes_left.lock().unwrap(), 1, "it was not begun");
    assert!(volume.versions().is_none());
}
