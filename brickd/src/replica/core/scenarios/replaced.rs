//! A brick takes the place of another one while the copies of the set run.

use mortar_common::{BrickId, Incarnation};
use mortar_proto::data::EpochRef;

use super::super::testing::{Bench, life, members, named, proposal};
use super::super::{Answer, Command, Gone, Proposed, RegistryView, Votes};
use super::{A, B, C, order};

/// The registry shows the same epoch with these bricks in the set.
fn view_with(bench: &mut Bench, bricks: &[BrickId]) -> Vec<Command> {
    let view = RegistryView {
        epoch: bench.core.epoch().clone(),
        history: bench.core.history().to_vec(),
        bricks: bricks.to_vec(),
        votes: bench.votes,
        linearizable: false,
    };
    bench.core.view(view, bench.now)
}

/// A primary of three that goes on with B; C answers, and is being healed.
fn primary_that_heals_c() -> Bench {
    let mut a = Bench::primary(3, Votes::Quorum);
    let commands = a.core.gone(C, life(3), Gone::ProcessDied, a.now);
    a.commit(&commands);
    let (second, history) = (a.core.epoch_ref(), a.core.history().to_vec());
    a.state(3, Incarnation(900), second, &history);
    let opened = a.pass(300);
    assert!(opened.iter().any(|command| matches!(
        command,
        Command::OpenStream { to, joined: false, .. } if *to == C
    )));
    let started = a.core.stream_up(C, Incarnation(900), 0, a.now);
    assert_eq!(started, [Command::StartHeal(C)]);
    a
}

#[test]
fn a_running_primary_heals_the_brick_that_takes_anothers_place_and_forgets_the_other() {
    let mut a = primary_that_heals_c();
    let d = BrickId(4);
    let commands = view_with(&mut a, &[A, B, d]);
    assert!(commands.contains(&Command::StopHeal(C)), "{commands:?}");
    assert!(commands.contains(&Command::CloseStream(C)), "{commands:?}");
    assert_eq!(a.core.syncing(), []);
    let asked = a.pass(600);
    assert!(asked.contains(&Command::Query(d)), "{asked:?}");
    assert!(!asked.contains(&Command::Query(C)), "{asked:?}");
    // It starts with nothing: no epoch was ever stored there.
    a.answer_beacons();
    a.state(4, Incarnation(44), EpochRef::default(), &[]);
    let opened = a.pass(300);
    assert!(opened.contains(&Command::OpenStream {
        to: d,
        incarnation: Incarnation(44),
        joined: false
    }));
    // A late word of the one that left changes nothing.
    let epoch = a.core.epoch_ref();
    a.state(3, Incarnation(901), epoch, &[]);
    let later = a.pass(300);
    let to_c = |command: &Command| matches!(command, Command::OpenStream { to, .. } if *to == C);
    assert!(!later.iter().any(to_c), "{later:?}");
}

#[test]
fn a_copy_on_its_way_in_that_is_replaced_is_waited_for_no_more() {
    let mut a = primary_that_heals_c();
    a.core.heal_quiet(C, a.now);
    let commands = a.core.table_held(C, a.now);
    assert_eq!(
        members(&proposal(&commands).expect("proposed").1),
        [1, 2, 3]
    );
    let number = a.core.last_number();
    let epoch = a.core.epoch().clone();
    // The registry gave its place away first: the proposal is refused.
    view_with(&mut a, &[A, B, BrickId(4)]);
    a.core
        .proposed(named(&epoch), Proposed::Refused(epoch.clone()), a.now);
    assert_eq!(a.core.required(), [B]);
    let next = order(&mut a);
    assert_eq!(next, number + 1);
    let commands = a.core.answered(B, next, Answer::Applied, a.now);
    assert_eq!(commands, [Command::Apply(next)]);
}

#[test]
fn a_copy_in_sync_that_a_view_lacks_stays_until_it_is_put_out() {
    let mut a = Bench::primary(2, Votes::Quorum);
    view_with(&mut a, &[A, C]);
    assert_eq!(a.core.required(), [B]);
}
