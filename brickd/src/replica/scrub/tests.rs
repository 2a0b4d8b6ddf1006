//! What a comparison changes, and what is known of it when a copy goes out.

use bytes::Bytes;
use mortar_common::SessionId;
use mortar_proto::data::WriteStep;
use mortar_proto::data::change::Step;

use super::rig::{Copy, file, wait_until};
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
