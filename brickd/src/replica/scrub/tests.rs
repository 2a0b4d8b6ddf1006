//! What a comparison changes, and what is known of it when a copy goes out.

use bytes::Bytes;
use mortar_common::SessionId;
use mortar_proto::data::change::Step;
use mortar_proto::data::{EpochRef, SetXattrStep, WriteStep};

use super::rig::{Copy, OTHER, file, wait_until};
use super::*;
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
