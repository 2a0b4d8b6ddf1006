//! What of the notes is left after a power cut.

use std::path::Path;
use std::sync::Arc;

use super::super::*;
use crate::heal::tests::double::Double;
use crate::heal::tests::tree::Tree;
use mortar_common::Gfid;
use mortar_proto::data::{FsyncStep, WriteStep};

const COPY: BrickId = BrickId(2);
const EPOCH: EpochRef = EpochRef { number: 3, id: 33 };
const FILE: Gfid = Gfid { hi: 1, lo: 7 };

fn write(number: u64, offset: u64, sync: bool) -> Change {
    let step = WriteStep {
        gfid: Some(FILE),
        offset,
        len: 10,
        sync,
        ..Default::default()
    };
    Change {
        number,
        step: Some(Step::Write(step)),
        ..Default::default()
    }
}

fn fsync(number: u64) -> Change {
    let step = FsyncStep {
        gfid: Some(FILE),
        ..Default::default()
    };
    Change {
        number,
        step: Some(Step::Fsync(step)),
        ..Default::default()
    }
}

/// A copy whose partner has just gone out.
fn alone(folder: &Path) -> (Arc<Double>, Absent) {
    let store = Arc::new(Double::new(Tree::new()));
    let absent = Absent::new(store.clone(), BrickId(1), folder);
    absent.follow(COPY, 0);
    absent.went_out(COPY, EPOCH, [].iter()).unwrap();
    (store, absent)
}

/// Where the first bytes begin that are still marked after a power cut at this moment.
fn marked_after_power_cut(store: &Double) -> Option<u64> {
    let left = Arc::new(store.after_power_cut());
    let writer = Writer {
        boot: "another".to_owned(),
        mount: 1,
    };
    let loaded = PartnerMarks::load(left, COPY, &writer, Some(EPOCH)).unwrap();
    let (marks, _) = loaded.expect("the journal was begun durably");
    marks.look(|marks| marks.pending_range(FILE, 0).map(|range| range.start))
}

#[test]
fn an_fsync_makes_the_marks_of_an_absent_copy_durable_too() {
    let folder = tempfile::tempdir().unwrap();
    let (store, absent) = alone(folder.path());
    absent.note(&write(1, 500, false)).unwrap();
    assert_eq!(marked_after_power_cut(&store), None);
    absent.note(&fsync(2)).unwrap();
    assert_eq!(marked_after_power_cut(&store), Some(500));
    absent.note(&write(3, 0, true)).unwrap();
    assert_eq!(marked_after_power_cut(&store), Some(0));
}

#[test]
fn what_others_had_synced_is_remembered_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (_, absent) = alone(folder.path());
    absent.recorded(COPY, 40);
    absent.returned(COPY, 40).unwrap();
    let marks = absent.marks(COPY).unwrap();
    assert_eq!(marks.look(|marks| marks.everything()), None);
    let known = recorded_by(&StoredState {
        recorded: absent.recorded_syncs(),
        ..StoredState::default()
    });
    assert_eq!(known[&COPY].recorded, 40);
    absent.returned(COPY, 39).unwrap();
    assert!(marks.look(|marks| marks.everything()).is_some());
    assert_eq!(marks.look(|marks| marks.scope()), Scope::All);
}
