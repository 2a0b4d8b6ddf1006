//! A copy is healed over a stream and switched into the epoch.

use mortar_common::{BrickId, Incarnation};
use mortar_proto::data::EpochRef;

use super::super::testing::{Bench, life, members, named, proposal};
use super::super::{Answer, Command, Gone, NotNow, Proposed, Votes, WaitFor};
use super::{B, C};

fn healing() -> Bench {
    let mut a = Bench::primary(2, Votes::Quorum);
    let commands = a.core.gone(B, life(2), Gone::ProcessDied, a.now);
    let (next, _) = a.commit(&commands);
    a.state(2, Incarnation(902), named(&next), &[]);
    let commands = a.pass(300);
    let to = Incarnation(902);
    assert!(commands.contains(&Command::OpenStream {
        to: B,
        incarnation: to,
        joined: false
    }));
    assert_eq!(a.core.stream_up(B, to, 0, a.now), [Command::StartHeal(B)]);
    a
}

#[test]
fn a_syncing_copy_is_sent_changes_and_not_waited_for() {
    let mut a = healing();
    let ordered = a.core.order(WaitFor::Everyone, a.now).expect("ordered");
    assert_eq!(ordered.to, [B]);
    assert_eq!(ordered.commands, [Command::Apply(ordered.number)]);
    assert_eq!(
        a.core.applied(ordered.number, a.now),
        [Command::Answer(ordered.number)]
    );
    let commands = a.core.stream_down(B, a.now);
    assert!(commands.contains(&Command::StopHeal(B)));
    assert!(
        matches!(&commands[0], Command::Mark { unanswered, .. } if *unanswered == [ordered.number])
    );
}

#[test]
fn the_switch_pauses_drains_sends_the_table_and_then_proposes() {
    let mut a = healing();
    let block = a
        .core
        .order(WaitFor::Heal(B), a.now)
        .expect("ordered")
        .number;
    assert_eq!(a.core.heal_quiet(B, a.now), []);
    assert_eq!(a.core.order(WaitFor::Everyone, a.now), Err(NotNow::Wait));
    let commands = a.core.answered(B, block, Answer::Applied, a.now);
    assert_eq!(commands, [Command::SendTable(B)]);
    let commands = a.core.table_held(B, a.now);
    let (next, commands) = a.commit(&commands);
    assert_eq!(members(&next), [1, 2]);
    assert!(commands.contains(&Command::StopHeal(B)));
    let ordered = a.core.order(WaitFor::Everyone, a.now).expect("goes on");
    assert_eq!(ordered.commands, [], "its answer is required now");
}

#[test]
fn a_stream_that_breaks_with_the_table_on_its_way_is_not_the_next_one() {
    let mut a = healing();
    assert_eq!(a.core.heal_quiet(B, a.now), [Command::SendTable(B)]);
    assert!(a.core.awaits_table(B));
    let commands = a.core.stream_down(B, a.now);
    assert!(commands.contains(&Command::CloseStream(B)), "{commands:?}");
    assert!(
        !a.core.awaits_table(B),
        "what is sent late is sent to nobody"
    );
    assert_eq!(a.core.table_held(B, a.now), []);
}

#[test]
fn a_join_whose_outcome_is_unknown_keeps_its_answers_required() {
    let mut a = healing();
    a.core.heal_quiet(B, a.now);
    let commands = a.core.table_held(B, a.now);
    let (expect, ..) = proposal(&commands).expect("proposed");
    a.core.proposed(expect, Proposed::NoQuorum, a.now);
    let ordered = a
        .core
        .order(WaitFor::Everyone, a.now)
        .expect("numbering goes on");
    assert_eq!(ordered.commands, []);
    let commands = a.core.answered(B, ordered.number, Answer::Applied, a.now);
    assert_eq!(commands, [Command::Apply(ordered.number)]);
}

#[test]
fn a_stream_is_taken_from_the_primary_of_the_epoch_alone() {
    let mut b = Bench::backup(2, Votes::Quorum);
    let now = b.now;
    let mine = b.core.epoch_ref();
    assert!(
        b.core
            .accepts_stream(BrickId(1), Incarnation(5), mine, true, now)
            .is_err()
    );
    assert!(
        b.core
            .accepts_stream(BrickId(1), life(1), mine, false, now)
            .is_err()
    );
    let newer = EpochRef { number: 2, id: 2 };
    assert!(
        b.core
            .accepts_stream(BrickId(1), life(1), newer, true, now)
            .is_err()
    );
    assert!(b.core.tick(now).contains(&Command::ReadRegistry));
    assert!(b.core.received(C, 5, mine, 0, now).is_err());
}
