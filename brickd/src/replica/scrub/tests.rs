//! What a comparison changes, and what is known of it when a copy goes out.

use std::sync::Mutex;

use bytes::Bytes;
use mortar_common::SessionId;
use mortar_proto::data::change::Step;
use mortar_proto::data::{EpochRef, SetXattrStep, WriteStep};

use super::rig::{Copy, OTHER, THIRD, file, wait_until};
use super::*;
use crate::brick::Reserve;
use crate::replica::core::WaitFor;
use crate::replica::keys::keys_of;
use crate::replica::order::Origin;

fn write(gfid: Gfid, bytes: &[u8]) -> Step {
    Step::Write(WriteStep {
        gfid: Some(gfid),
        offset: 0,
        len: bytes.len() as u32,
        ..Default::default()
    })
}

#[test]
fn an_fsync_does_not_overtake_a_write_that_is_not_applied_here_yet() {
    let copy = Copy::with_others(&[]);
    let replica = &copy.replica;
    let gfid = file();
    copy.has_file(gfid, 5, &[(0, b"right")]);
    // A client's write is ordered, and its thread has not come to apply it.
    let step = write(gfid, b"newer");
    let pass = replica.gate.enter(keys_of(&step, SessionId(7)));
    let (numbered, waiter) = replica
        .order(
            &mut |_| Some(step.clone()),
            Bytes::from_static(b"newer"),
            Origin::default(),
            WaitFor::Everyone,
            PATIENCE,
        )
        .unwrap();
    let last = || replica.lock_core().last_number();
    let ordered = numbered.change.number;
    std::thread::scope(|scope| {
        let syncing = scope.spawn(|| copy.scrubber().sync(gfid));
        wait_until("the fsync waits, or is ordered", || {
            replica.gate.waiting() == 1 || last() > ordered
        });
        assert_eq!(last(), ordered, "what is not written is taken for durable");
        replica.finish(&numbered, &waiter, Some(pass)).unwrap();
        syncing.join().unwrap().unwrap();
    });
    assert_eq!(last(), ordered + 1);
    assert_eq!(copy.read(gfid, 0, 5), b"newer");
}

/// What the other copy would be healed of first, if it went out now and came back.
fn lacked(copy: &Copy, gfid: Gfid) -> Option<Range<u64>> {
    let absent = &copy.replica.absent;
    absent
        .went_out(OTHER, EpochRef::default(), [].iter())
        .unwrap();
    let marks = absent.marks(OTHER).expect("marks");
    assert!(marks.look(|marks| marks.everything()).is_none());
    marks.look(|marks| marks.pending_range(gfid, 0))
}

#[test]
fn what_a_repair_changed_is_marked_for_a_copy_that_goes_out() {
    let copy = Copy::with_others(&[]);
    let gfid = file();
    copy.has_file(gfid, 8, &[(0, b"rightXXX")]);
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let set = SetXattrStep {
        gfid: Some(gfid),
        name: Bytes::from_static(b"security.capability"),
        value: Bytes::from_static(capability),
        ..Default::default()
    };
    copy.apply(Step::Setxattr(set), &[]);
    let before = copy.replica.store().heal_object(gfid).unwrap();
    let scrubber = copy.scrubber();
    scrubber
        .repair(gfid, &(5..8), Bytes::from_static(b"YYY"))
        .unwrap();
    assert_eq!(copy.read(gfid, 0, 9), b"rightYYY");
    assert_eq!(lacked(&copy, gfid), Some(5..8));
    let after = copy.replica.store().heal_object(gfid).unwrap();
    assert_eq!(
        plain_sum(&after),
        plain_sum(&before),
        "nothing but bytes changed"
    );
    let counter =
        |whole: mortar_proto::data::HealObjectStep| whole.object.unwrap_or_default().data_counter;
    assert!(counter(after) > counter(before), "no cache hears of it");
}

#[test]
fn what_is_given_is_marked_to_the_end_for_a_copy_that_went_out_meanwhile() {
    let copy = Copy::with_others(&[]);
    let gfid = file();
    copy.has_file(gfid, 300 << 10, &[(0, &[b'c'; 300 << 10])]);
    let mut scrubber = copy.scrubber();
    // The set is not what it was when the comparison began.
    scrubber.epoch += 1;
    let given = scrubber.give_mine(&Differing {
        gfid,
        ranges: vec![0..100, 10 << 10..300 << 10],
    });
    assert!(matches!(given, Err(ScrubError::Changed)), "{given:?}");
    assert_eq!(lacked(&copy, gfid), Some(0..100));
    let marks = copy.replica.absent.marks(OTHER).expect("marks");
    let next = marks.look(|marks| marks.pending_range(gfid, 100));
    assert_eq!(next, Some(10 << 10..300 << 10));
}

/// Keeps nothing, and remembers what it was asked to keep.
#[derive(Default)]
struct Asked(Mutex<Vec<Vec<Range<u64>>>>);

impl KeepVersions for Asked {
    fn keep(&self, _: &Scrubber<'_>, differing: &Differing) -> Result<(), ScrubError> {
        self.0.lock().unwrap().push(differing.ranges.clone());
        Ok(())
    }
}

#[test]
fn a_file_that_differs_throughout_is_settled_in_bounded_parts() {
    const PART: u64 = PIECES_MAX as u64 * FINE_SUM_BYTES;
    const SIZE: u64 = PART + 2 * SUM_BYTES;
    let other = Copy::new(OTHER, Reserve::default());
    let copy = Copy::with_others(&[&other]);
    let gfid = file();
    let mine = vec![b'm'; SIZE as usize];
    let theirs = vec![b't'; SIZE as usize];
    copy.has_file(gfid, SIZE, &[(0, &mine)]);
    other.has_file(gfid, SIZE, &[(0, &theirs)]);
    let (scrubber, asked) = (copy.scrubber(), Asked::default());
    scrubber.compare(gfid, &asked).unwrap();
    let asked = asked.0.into_inner().unwrap();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked.concat(), [0..PART, PART..SIZE]);
}

#[test]
fn a_comparison_of_a_set_that_changed_repairs_nothing_more() {
    let others = [OTHER, THIRD].map(|id| Copy::new(id, Reserve::default()));
    let copy = Copy::with_others(&[&others[0], &others[1]]);
    let gfid = file();
    copy.has_file(gfid, 5, &[(0, b"wrong")]);
    for other in &others {
        other.has_file(gfid, 5, &[(0, b"right")]);
    }
    let mut scrubber = copy.scrubber();
    scrubber.epoch += 1;
    let (mut seen, what) = (Seen::default(), vec![What::Bytes(0..5)]);
    let looked = scrubber.look_again(gfid, what.clone(), &mut seen, &Asked::default());
    assert!(matches!(looked, Err(ScrubError::Changed)), "{looked:?}");
    assert_eq!(copy.read(gfid, 0, 5), b"wrong");
    // The same copies while they are all there.
    scrubber.epoch -= 1;
    scrubber.compare(gfid, &Asked::default()).unwrap();
    assert_eq!(copy.read(gfid, 0, 5), b"right");
    assert_eq!(scrubber.scrub.counts(), (0, 1));
}

#[test]
fn neighbouring_ranges_are_one() {
    let mut ranges = Vec::new();
    for range in [0..10, 10..20, 30..40, 40..41, 50..60] {
        add_range(&mut ranges, range);
    }
    assert_eq!(ranges, [0..20, 30..41, 50..60]);
}
