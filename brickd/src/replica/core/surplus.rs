//! What a copy that goes out may hold and this one never received.

use mortar_common::BrickId;

use super::testing::{Bench, epoch, life, named};
use super::{Command, Role, Votes};

const C: BrickId = BrickId(3);
fn doubts(commands: &[Command]) -> Vec<(BrickId, Option<BrickId>)> {
    let doubt = |command: &Command| match command {
        Command::Doubt {
            brick, cleared_by, ..
        } => Some((*brick, *cleared_by)),
        _ => None,
    };
    commands.iter().filter_map(doubt).collect()
}

#[test]
fn a_backup_lost_with_its_primary_may_hold_what_the_other_never_got() {
    let mut b = Bench::backup(3, Votes::Quorum);
    let first = b.core.epoch_ref();
    b.core
        .received(BrickId(1), 8, first, 7, b.now)
        .expect("received");
    // Not the primary: it has applied nothing that this copy does not hold.
    let commands = b.learn(&epoch(2, 2, &[2], 2), &[first]);
    assert_eq!(doubts(&commands), [(C, None)]);
}

#[test]
fn a_primary_that_goes_on_clears_the_doubt_of_a_backup_about_another() {
    let mut b = Bench::backup(3, Votes::Quorum);
    let first = b.core.epoch_ref();
    let commands = b.learn(&epoch(2, 2, &[1, 2], 1), &[first]);
    assert_eq!(doubts(&commands), [(C, Some(BrickId(1)))]);
}

#[test]
fn a_new_primary_lost_before_it_shared_its_tail_may_hold_more() {
    for heard in [false, true] {
        let mut b = Bench::backup(3, Votes::Quorum);
        let first = b.core.epoch_ref();
        let second = epoch(2, 2, &[2, 3], 3);
        b.learn(&second, &[first]);
        let stream = b
            .core
            .accepts_stream(C, life(3), named(&second), true, b.now);
        stream.expect("stream");
        let of = if heard { named(&second) } else { first };
        b.core.received(C, 8, of, 7, b.now).expect("received");
        let commands = b.learn(&epoch(3, 3, &[2], 2), &[first, named(&second)]);
        let expected = if heard { vec![] } else { vec![(C, None)] };
        assert_eq!(doubts(&commands), expected, "heard: {heard}");
    }
}

#[test]
fn a_copy_lost_before_it_gave_its_tail_may_hold_more() {
    let mut b = Bench::backup(3, Votes::Quorum);
    let first = b.core.epoch_ref();
    let second = epoch(2, 2, &[2, 3], 2);
    b.learn(&second, &[first]);
    assert_eq!(b.core.role(), &Role::Recovering);
    let commands = b.learn(&epoch(3, 3, &[2], 2), &[first, named(&second)]);
    assert_eq!(doubts(&commands), [(C, None)]);
}
