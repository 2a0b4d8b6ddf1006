//! Named scenarios, mostly of traces that break simpler designs.

mod joining;
mod replaced;

use mortar_common::{BrickId, Incarnation};
use mortar_proto::data::{CopyState, CopySynced, EpochRef};
use mortar_proto::registry::Epoch;

use super::testing::{Bench, epoch, life, members, named, proposal, stored};
use super::{Answer, Command, Gone, NotNow, Proposed, Role, TAKEOVER_GAP, Votes, WaitFor};
use crate::brick::store::StoredState;

const A: BrickId = BrickId(1);
const B: BrickId = BrickId(2);
const C: BrickId = BrickId(3);

fn order(bench: &mut Bench) -> u64 {
    let ordered = bench
        .core
        .order(WaitFor::Everyone, bench.now)
        .expect("ordered");
    assert_eq!(ordered.commands, []);
    ordered.number
}

// ------------------------------------------------------------ order and answers

#[test]
fn a_change_is_applied_when_held_and_answered_when_applied_everywhere() {
    let mut a = Bench::primary(3, Votes::Quorum);
    let number = order(&mut a);
    assert_eq!(a.core.answered(B, number, Answer::Held, a.now), []);
    assert_eq!(
        a.core.answered(C, number, Answer::Applied, a.now),
        [Command::Apply(number)]
    );
    assert_eq!(a.core.applied(number, a.now), []);
    assert_eq!(a.core.complete(), number - 1);
    assert_eq!(
        a.core.answered(B, number, Answer::Applied, a.now),
        [Command::Answer(number)]
    );
    assert_eq!(a.core.complete(), number);
}

#[test]
fn an_answer_says_that_all_before_it_is_held() {
    let mut a = Bench::primary(2, Votes::Quorum);
    let (first, second) = (order(&mut a), order(&mut a));
    let commands = a.core.answered(B, second, Answer::Applied, a.now);
    assert_eq!(commands, [Command::Apply(first), Command::Apply(second)]);
    assert_eq!(a.core.applied(second, a.now), [Command::Answer(second)]);
    assert_eq!(a.core.applied(first, a.now), []);
    assert_eq!(
        a.core.answered(B, first, Answer::Applied, a.now),
        [Command::Answer(first)]
    );
}

#[test]
fn an_open_waits_for_nobody_but_needs_the_lease() {
    let mut a = Bench::primary(2, Votes::Quorum);
    let ordered = a.core.order(WaitFor::Nothing, a.now).expect("ordered");
    assert_eq!(ordered.to, [B]);
    assert_eq!(ordered.commands, [Command::Apply(ordered.number)]);
    assert_eq!(
        a.core.applied(ordered.number, a.now),
        [Command::Answer(ordered.number)]
    );
    a.pass(3_000);
    assert_eq!(a.core.order(WaitFor::Nothing, a.now), Err(NotNow::Wait));
}

#[test]
fn a_copy_whose_disk_failed_is_put_out_before_the_change_is_answered() {
    let mut a = Bench::primary(2, Votes::Quorum);
    let number = order(&mut a);
    let commands = a.core.answered(B, number, Answer::Failed, a.now);
    let (next, commands) = a.commit(&commands);
    assert_eq!(members(&next), [1]);
    let epoch = EpochRef { number: 1, id: 1 };
    assert_eq!(
        commands,
        [
            Command::Mark {
                brick: B,
                epoch,
                unanswered: vec![number]
            },
            Command::CloseStream(B),
            Command::Apply(number),
        ]
    );
    assert_eq!(a.core.applied(number, a.now), [Command::Answer(number)]);
    assert_eq!(a.core.may_read(a.now), Ok(()));
}

// ------------------------------------------------------------ lost backups

#[test]
fn a_dead_backup_goes_at_once_and_nothing_is_answered_before_it_is_out() {
    let mut a = Bench::primary(2, Votes::Quorum);
    let number = order(&mut a);
    let commands = a.core.gone(B, life(2), Gone::ProcessDied, a.now);
    assert_eq!(members(&proposal(&commands).expect("proposed").1), [1]);
    let no_quorum = a
        .core
        .proposed(a.core.epoch_ref(), Proposed::NoQuorum, a.now);
    assert_eq!(no_quorum, []);
    let again = a.pass(600);
    assert_eq!(
        proposal(&again),
        proposal(&commands),
        "the same proposal is made again"
    );
    let (_, commands) = a.commit(&again);
    assert!(commands.contains(&Command::Apply(number)));
}

#[test]
fn a_silent_backup_goes_after_the_ping_timeout_unless_its_stream_comes_back() {
    let mut a = Bench::primary(2, Votes::Quorum);
    a.core.stream_down(B, a.now);
    assert_eq!(proposal(&a.pass(4_000)), None);
    a.answer_beacons();
    a.core.stream_up(B, life(2), 0, a.now);
    assert_eq!(proposal(&a.pass(4_000)), None);
    assert!(proposal(&a.pass(1_500)).is_some());
}

#[test]
fn a_backup_that_answers_beacons_and_applies_nothing_is_put_out() {
    let mut a = Bench::primary(2, Votes::Quorum);
    let number = order(&mut a);
    a.core.answered(B, number, Answer::Held, a.now);
    a.core.applied(number, a.now);
    for _ in 0..19 {
        assert_eq!(proposal(&a.pass(1_000)), None);
        a.answer_beacons();
    }
    assert!(proposal(&a.pass(1_500)).is_some());
}

#[test]
fn a_primary_whose_own_disk_hangs_gives_its_place_away() {
    let mut a = Bench::primary(2, Votes::Quorum);
    let number = order(&mut a);
    a.core.answered(B, number, Answer::Applied, a.now);
    let mut commands = Vec::new();
    for _ in 0..21 {
        commands.extend(a.pass(1_000));
        a.answer_beacons();
    }
    let (_, next, _) = proposal(&commands).expect("handed over");
    assert_eq!((members(&next), next.primary), (vec![2], 2));
    assert!(commands.contains(&Command::Abandon(vec![number])));
    assert!(matches!(a.core.role(), Role::Stopped(_)));
}

/// A host that was paused for minutes, with a change on its way to the disk: its copy, which may be
/// the only one in sync, closed itself for good.
#[test]
fn a_pause_is_no_hang_of_the_disk() {
    let mut a = Bench::primary(1, Votes::Quorum);
    let order = |a: &mut Bench| a.core.order(WaitFor::Everyone, a.now).unwrap().number;
    let number = order(&mut a);
    a.pass(500);
    a.now += 120_000;
    let commands = a.core.tick(a.now);
    assert_eq!(a.core.role(), &Role::Primary, "{commands:?}");
    a.pass(19_000);
    assert_eq!(a.core.role(), &Role::Primary);
    let answered = a.core.applied(number, a.now);
    assert!(answered.contains(&Command::Answer(number)), "{answered:?}");
    // A disk that does hang is still seen.
    order(&mut a);
    a.pass(21_000);
    assert!(matches!(a.core.role(), Role::Stopped(_)));
}

#[test]
fn a_primary_that_stood_still_reads_before_it_thinks_anybody_lost() {
    let mut a = Bench::primary(2, Votes::Two);
    a.now += 30_000;
    let commands = a.core.tick(a.now);
    assert_eq!(proposal(&commands), None);
    assert_eq!(stored(&commands), None);
    assert_eq!(a.core.may_read(a.now), Err(NotNow::Wait));
}

// ------------------------------------------------------------ lease and takeover

#[test]
fn a_lease_ends_three_seconds_after_the_answered_beacon_was_sent() {
    let mut a = Bench::primary(2, Votes::Quorum);
    let sent = a.now;
    a.pass(2_900);
    assert_eq!(a.core.may_read(a.now), Ok(()));
    a.core
        .beacon_answer(B, EpochRef { number: 9, id: 0 }, 0, sent);
    assert_eq!(a.core.role(), &Role::Out, "a newer epoch stops it at once");
    let mut a = Bench::primary(2, Votes::Quorum);
    a.pass(3_000);
    assert_eq!(a.core.may_read(a.now), Err(NotNow::Wait));
}

#[test]
fn a_backup_asks_for_the_place_after_its_time_and_vouches_no_more() {
    let mut b = Bench::backup(2, Votes::Quorum);
    let beacon = |b: &mut Bench| b.core.beacon(BrickId(1), b.core.epoch_ref(), 7, b.now);
    assert_eq!(
        beacon(&mut b),
        [Command::AnswerBeacon {
            to: BrickId(1),
            sent: 7
        }]
    );
    assert_eq!(proposal(&b.pass(5_000)), None);
    let commands = b.pass(500);
    assert!(proposal(&commands).is_some());
    assert_eq!(beacon(&mut b), []);
    let (next, commands) = b.commit(&commands);
    assert_eq!((members(&next), next.primary), (vec![2], 2));
    assert!(commands.contains(&Command::Recover));
    assert_eq!(b.core.may_read(b.now), Err(NotNow::Wait));
    b.core.recovered(0, b.now);
    assert_eq!(b.core.role(), &Role::Primary);
    assert!(b.core.last_number() >= TAKEOVER_GAP);
}

#[test]
fn the_second_backup_waits_for_the_first() {
    let die = |bench: &mut Bench| {
        bench
            .core
            .gone(BrickId(1), life(1), Gone::ProcessDied, bench.now)
    };
    let mut b = Bench::backup(3, Votes::Quorum);
    let commands = die(&mut b);
    assert_eq!(members(&proposal(&commands).expect("at once").1), [2, 3]);
    let mut c = Bench::start(3, 3, Votes::Quorum, StoredState::default());
    c.learn(&epoch(1, 1, &[1, 2, 3], 1), &[]);
    assert_eq!(proposal(&die(&mut c)), None);
    assert!(proposal(&c.pass(250)).is_some());
}

#[test]
fn a_backup_is_told_that_another_copy_is_back() {
    let mut b = Bench::backup(3, Votes::Quorum);
    let first = b.core.epoch_ref();
    let without = epoch(2, 2, &[1, 2], 1);
    let commands = b.learn(&without, &[first]);
    let is_mark = |command: &Command| matches!(command, Command::Mark { brick: C, .. });
    assert!(commands.iter().any(is_mark), "{commands:?}");
    let told = Command::RoleChanged(Role::Backup);
    assert!(!commands.contains(&told), "{commands:?}");
    let with = epoch(3, 3, &[1, 2, 3], 1);
    let commands = b.learn(&with, &[first, named(&without)]);
    assert!(commands.contains(&told), "{commands:?}");
    // In another life, in one step.
    let mut again = epoch(4, 4, &[1, 2, 3], 1);
    again.in_sync[2].incarnation += 1;
    let commands = b.learn(&again, &[first, named(&without), named(&with)]);
    assert!(commands.contains(&told), "{commands:?}");
}

/// The watch of a peer that was cut off shows late that its process was another: by then the copy of
/// the new one is healed, or in sync again.
#[test]
fn a_late_word_of_a_dead_process_is_about_its_own_lives() {
    let (old, new) = (Incarnation(0x0a << 32), Incarnation(0x0b << 32));
    let mut a = Bench::primary(2, Votes::Quorum);
    let commands = a.core.gone(B, life(2), Gone::ProcessDied, a.now);
    let (second, _) = a.commit(&commands);
    let lives = Incarnation::of_start(new, 1);
    a.state(2, lives, named(&second), &[]);
    let commands = a.pass(300);
    assert!(has_open(&commands, lives), "{commands:?}");
    let replaced = Gone::Goodbye { process: false };
    let commands = a.core.process_gone(B, old, replaced, a.now);
    assert!(!commands.contains(&Command::CloseStream(B)), "{commands:?}");
    assert_eq!(
        a.core.stream_up(B, lives, 0, a.now),
        [Command::StartHeal(B)]
    );
    // Its own end counts.
    let commands = a.core.process_gone(B, new, Gone::ProcessDied, a.now);
    assert!(commands.contains(&Command::CloseStream(B)), "{commands:?}");
    a.state(2, lives, named(&second), &[]);
    assert!(!has_open(&a.pass(600), lives), "it is dead");
}

fn has_open(commands: &[Command], life: Incarnation) -> bool {
    commands.iter().any(
        |command| matches!(command, Command::OpenStream { incarnation, .. } if *incarnation == life),
    )
}

#[test]
fn a_new_primary_reads_nothing_before_the_others_have_its_tail() {
    let mut b = Bench::backup(3, Votes::Quorum);
    let first = b.core.epoch_ref();
    b.core
        .received(BrickId(1), 8, first, 7, b.now)
        .expect("received");
    let commands = b.core.gone(BrickId(1), life(1), Gone::ProcessDied, b.now);
    let (_, commands) = b.commit(&commands);
    assert!(commands.contains(&Command::Mark {
        brick: BrickId(1),
        epoch: first,
        unanswered: vec![8]
    }));
    b.core.recovered(8, b.now);
    b.core.stream_up(C, life(3), 7, b.now);
    b.answer_beacons();
    assert_eq!(b.core.may_read(b.now), Err(NotNow::Wait));
    b.core.answered(C, 8, Answer::Applied, b.now);
    assert_eq!(b.core.may_read(b.now), Ok(()));
}

#[test]
fn a_primary_that_lost_its_place_answers_nothing_more() {
    let mut a = Bench::primary(2, Votes::Quorum);
    let number = order(&mut a);
    let next = epoch(2, 2, &[2], 2);
    let commands = a.view(&next, &[a.core.epoch_ref()], false);
    assert!(commands.contains(&Command::Abandon(vec![number])));
    assert_eq!(a.core.answered(B, number, Answer::Applied, a.now), []);
    assert!(a.core.order(WaitFor::Everyone, a.now).is_err());
}

// ------------------------------------------------------------ two voters

#[test]
fn a_survivor_of_two_goes_on_alone_with_its_mark_on_the_disk_first() {
    let mut a = Bench::primary(2, Votes::Two);
    let number = order(&mut a);
    let commands = a.core.gone(B, life(2), Gone::ProcessDied, a.now);
    let lone = stored(&commands).expect("stored at once").clone();
    assert!(matches!(
        commands.last(),
        Some(Command::Store { alone: true, .. })
    ));
    assert!(!commands.contains(&Command::Apply(number)));
    let commands = a.core.stored(named(&lone), a.now);
    assert!(commands.contains(&Command::Apply(number)));
    // The registry, once it is back, is told; when it shows the epoch, the mark goes.
    let first = epoch(1, 1, &[1, 2], 1);
    let (expect, next, _) = proposal(&commands).expect("corrects");
    assert_eq!((expect, named(&next)), (named(&first), named(&lone)));
    a.core.proposed(expect, Proposed::Committed, a.now);
    let commands = a.view(&lone, &[named(&first)], true);
    assert!(commands.contains(&Command::Store {
        epoch: lone.clone(),
        history: vec![named(&first)],
        alone: false
    }));
    assert!(!a.core.alone());
}

#[test]
fn a_backup_of_two_asks_the_clients_before_it_goes_alone() {
    let mut b = Bench::backup(2, Votes::Two);
    for _ in 0..10 {
        assert_eq!(stored(&b.pass(1_000)), None, "a client hears the primary");
        b.core.client_heard(b.now);
    }
    assert!(stored(&b.pass(2_500)).is_some());
}

/// The copy under test in its own epoch 2, the other in another, of which it has heard.
fn both_alone(mut bench: Bench, other: BrickId) -> (Bench, Epoch, EpochRef) {
    let first = bench.core.epoch_ref();
    let commands = bench
        .core
        .gone(other, life(other.0), Gone::ProcessDied, bench.now);
    let mine = stored(&commands).expect("alone").clone();
    bench.core.stored(named(&mine), bench.now);
    let theirs = EpochRef { number: 2, id: 99 };
    bench.state(other.0, life(other.0), theirs, &[first]);
    (bench, mine, theirs)
}

#[test]
fn of_two_that_went_on_alone_the_old_primary_goes_on_and_settles_what_is_merged() {
    let (mut a, mine, theirs) = both_alone(Bench::primary(2, Votes::Two), B);
    assert_eq!(a.core.role(), &Role::Primary);
    let (expect, next, _) = proposal(&a.pass(600)).expect("the registry is told");
    assert_eq!(named(&next), named(&mine));
    a.core.proposed(expect, Proposed::Committed, a.now);
    a.view(&mine, &[expect], true);
    let older = EpochRef { number: 2, id: 98 };
    assert!(!a.core.merged(B, older), "it has gone on since");
    assert!(a.core.merged(B, theirs));
    let (_, next, lone) = proposal(&a.pass(50)).expect("its way is named as an ancestor");
    assert_eq!((next.number, next.primary), (3, 1));
    assert!(lone.iter().map(named).any(|epoch| epoch == theirs));
}

#[test]
fn both_alone_is_a_split_until_the_operator_chooses() {
    let (mut a, mine, theirs) = both_alone(Bench::backup(2, Votes::Two), A);
    let first = EpochRef { number: 1, id: 1 };
    assert_eq!(a.core.role(), &Role::Split);
    assert!(matches!(
        a.core.order(WaitFor::Everyone, a.now),
        Err(NotNow::Closed(_))
    ));
    a.view(&epoch(1, 1, &[1, 2], 1), &[], true);
    let (expect, next, lone) =
        proposal(&a.core.operator_trusts_me(a.now)).expect("a new beginning");
    assert_eq!((expect, next.number), (first, 3));
    let named_too: Vec<EpochRef> = lone.iter().map(named).collect();
    assert!(named_too.contains(&theirs) && named_too.contains(&named(&mine)));
}

#[test]
fn a_stale_copy_of_two_waits_for_the_one_that_went_alone() {
    // Trace 1: A went alone and died; B starts, and the registry still shows both.
    let first = epoch(1, 1, &[1, 2], 1);
    let mut b = Bench::restarted(2, 2, Votes::Two, &first, false);
    b.view(&first, &[], true);
    b.core.gone(BrickId(1), life(1), Gone::ProcessDied, b.now);
    assert_eq!(proposal(&b.pass(20_000)), None);
    assert!(matches!(b.core.role(), Role::Waiting(why) if why.contains("newer data")));
    // A is back, in a new life, with the epoch it made alone.
    b.state(
        1,
        Incarnation(901),
        EpochRef { number: 2, id: 5 },
        &[named(&first)],
    );
    assert_eq!(proposal(&b.pass(5_000)), None);
}

#[test]
fn a_copy_of_two_that_had_gone_alone_serves_again_after_a_restart() {
    let lone = epoch(2, 5, &[1], 1);
    for (alone, serves) in [(true, true), (false, false)] {
        let mut a = Bench::restarted(1, 2, Votes::Two, &lone, alone);
        a.view(&epoch(1, 1, &[1, 2], 1), &[], false);
        let commands = a.pass(6_000);
        assert_eq!(stored(&commands).is_some(), serves);
    }
}

// ------------------------------------------------------------ starting

#[test]
fn the_first_brick_begins_the_first_epoch_with_all_that_answer() {
    let mut a = Bench::start(1, 3, Votes::Quorum, StoredState::default());
    a.view(&epoch(0, 0, &[], 0), &[], true);
    a.state(2, life(2), EpochRef::default(), &[]);
    assert_eq!(proposal(&a.pass(2_900)), None);
    let commands = a.pass(200);
    let (next, commands) = a.commit(&commands);
    assert_eq!((next.number, members(&next)), (1, vec![1, 2]));
    assert!(commands.contains(&Command::Recover));
}

#[test]
fn a_restarted_primary_is_out_while_its_backup_lives() {
    let first = epoch(1, 1, &[1, 2], 1);
    let mut a = Bench::restarted(1, 2, Votes::Quorum, &first, false);
    a.view(&first, &[], true);
    a.state(2, life(2), named(&first), &[]);
    assert_eq!(proposal(&a.pass(2_000)), None);
    assert_eq!(a.core.role(), &Role::Out);
    // B takes over; A is healed over its stream.
    let second = epoch(2, 2, &[2], 2);
    a.learn(&second, &[named(&first)]);
    a.core
        .accepts_stream(B, life(2), named(&second), false, a.now)
        .expect("stream");
    assert_eq!(a.core.role(), &Role::Syncing);
}

#[test]
fn when_no_listed_life_is_left_the_old_primary_takes_over_first() {
    let first = epoch(1, 1, &[1, 2], 1);
    let mut a = Bench::restarted(1, 2, Votes::Quorum, &first, false);
    a.view(&first, &[], true);
    let commands = a.state(2, Incarnation(902), named(&first), &[]);
    let (_, next, _) = proposal(&commands).expect("takes over");
    assert_eq!(
        next.in_sync
            .iter()
            .map(|copy| copy.incarnation)
            .collect::<Vec<_>>(),
        [901]
    );
    let mut b = Bench::restarted(2, 2, Votes::Quorum, &first, false);
    b.view(&first, &[], true);
    assert_eq!(
        proposal(&b.state(1, Incarnation(901), named(&first), &[])),
        None
    );
    assert!(proposal(&b.pass(600)).is_some(), "but not for ever");
}

#[test]
fn a_copy_that_was_rolled_back_leaves_the_place_to_who_remembers() {
    let first = epoch(1, 1, &[1, 2], 1);
    for (remembered, takes_over) in [(70, true), (71, false)] {
        let mut a = Bench::restarted(1, 2, Votes::Two, &first, false);
        a.core.synced_at_start = Some(70);
        a.view(&first, &[], true);
        let state = CopyState {
            brick: 2,
            incarnation: 902,
            epoch: Some(named(&first)),
            recorded: vec![CopySynced {
                brick: 1,
                number: remembered,
            }],
            ..CopyState::default()
        };
        let mut commands = a.core.copy_state(state, a.now);
        commands.extend(a.pass(5_000));
        assert_eq!(proposal(&commands).is_some(), takes_over, "{remembered}");
        assert_eq!(a.core.rolled_back, !takes_over);
    }
}

#[test]
fn an_older_registry_is_put_right_and_never_followed() {
    let mut a = Bench::primary(1, Votes::Quorum);
    let second = epoch(2, 2, &[1], 1);
    let first = a.core.epoch_ref();
    a.learn(&second, &[first]);
    assert_eq!(
        a.view(&epoch(1, 1, &[1], 1), &[], false),
        [],
        "a peer's state may lag"
    );
    let commands = a.view(&epoch(1, 1, &[1], 1), &[], true);
    assert_eq!(
        proposal(&commands).map(|(expect, next, _)| (expect, named(&next))),
        Some((first, named(&second)))
    );
    assert_eq!(a.core.epoch_ref(), named(&second));
}
