//! What must not be believed of another copy, each a loss that a simulated cluster has shown.

mod power;

use mortar_common::Gfid;
use mortar_proto::data::WriteStep;

use super::*;
use crate::heal::tests::double::Double;
use crate::heal::tests::tree::Tree;

const ME: BrickId = BrickId(1);
const OTHER: BrickId = BrickId(2);
const THIRD: BrickId = BrickId(3);
const LIFE: Incarnation = Incarnation(11);

fn absent() -> (Absent, Arc<Double>) {
    let store = Arc::new(Double::new(Tree::new()));
    let writer = Writer {
        boot: "boot".to_owned(),
        mount: 7,
    };
    let source: Arc<dyn HealSource> = store.clone();
    (Absent::written_by(source, ME, writer), store)
}

fn epoch(number: u64, members: &[(BrickId, Incarnation)], primary: BrickId) -> Epoch {
    let copy = |(brick, life): &(BrickId, Incarnation)| Copy {
        brick: brick.0,
        incarnation: life.0,
    };
    Epoch {
        number,
        id: number * 7,
        in_sync: members.iter().map(copy).collect(),
        primary: primary.0,
    }
}

fn named(number: u64) -> EpochRef {
    EpochRef {
        number,
        id: number * 7,
    }
}

fn write(number: u64, id: u64) -> Change {
    let step = WriteStep {
        gfid: Some(Gfid { hi: 0, lo: id }),
        offset: 0,
        len: 10,
        ..Default::default()
    };
    Change {
        number,
        step: Some(Step::Write(step)),
        ..Default::default()
    }
}

/// In sync with all others from the beginning.
fn in_sync(absent: &Absent) {
    let members = [
        (ME, LIFE),
        (OTHER, Incarnation(22)),
        (THIRD, Incarnation(33)),
    ];
    let first = epoch(1, &members, ME);
    absent
        .in_role(&Role::Backup, &first, LIFE, 0, &[OTHER, THIRD])
        .unwrap();
}

fn everything(absent: &Absent, copy: BrickId) -> bool {
    let marks = absent.marks(copy).expect("marks");
    marks.look(|marks| marks.everything().is_some())
}

#[test]
fn what_the_primary_tells_a_copy_of_itself_is_not_said_on() {
    let (absent, _store) = absent();
    in_sync(&absent);
    absent.confirmed(ME, 40);
    let told = [(ME, 70), (THIRD, 60)].map(|(brick, number)| CopySynced {
        brick: brick.0,
        number,
    });
    absent.heard(&told);
    let mut news = absent.news_of_syncs();
    news.sort_by_key(|synced| synced.brick);
    let news: Vec<_> = news.iter().map(|one| (one.brick, one.number)).collect();
    assert_eq!(news, [(ME.0, 40), (THIRD.0, 60)]);
}

#[test]
fn what_was_noted_before_this_copy_was_healed_counts_for_nothing() {
    let (absent, store) = absent();
    in_sync(&absent);
    absent.went_out(THIRD, named(1), [].iter()).unwrap();
    absent.note(&write(5, 50)).unwrap();
    assert!(absent.may_lack(OTHER).is_some() && !everything(&absent, THIRD));
    assert!(!store.record_files().unwrap().is_empty());
    // Put out, it misses changes; some come to it by heal, which is noted for nobody.
    let second = epoch(2, &[(OTHER, Incarnation(22))], OTHER);
    absent
        .in_role(&Role::Syncing, &second, LIFE, 5, &[OTHER, THIRD])
        .unwrap();
    assert!(absent.may_lack(OTHER).is_none() && absent.may_lack(THIRD).is_none());
    assert!(
        store.record_files().unwrap().is_empty(),
        "nor after a restart"
    );
    let third = epoch(3, &[(ME, LIFE), (OTHER, Incarnation(22))], OTHER);
    absent
        .in_role(&Role::Backup, &third, LIFE, 9, &[OTHER, THIRD])
        .unwrap();
    assert!(
        absent.may_lack(OTHER).is_none(),
        "it has not synced what is here"
    );
    absent.confirmed(OTHER, 9);
    assert!(absent.may_lack(OTHER).is_some());
    absent.ensure(THIRD, Some(named(1))).unwrap();
    assert!(everything(&absent, THIRD));
}

#[test]
fn a_life_that_no_epoch_lists_notes_nothing() {
    let (absent, _) = absent();
    let members = [(ME, Incarnation(10)), (OTHER, Incarnation(22))];
    let first = epoch(1, &members, OTHER);
    let waiting = Role::Waiting("for the other".to_owned());
    absent
        .in_role(&waiting, &first, LIFE, 0, &[OTHER, THIRD])
        .unwrap();
    assert!(absent.may_lack(OTHER).is_none());
    absent.went_out(OTHER, named(1), [].iter()).unwrap();
    assert!(everything(&absent, OTHER));
}

#[test]
fn a_heal_that_is_broken_off_does_not_begin_with_everything() {
    let (absent, _) = absent();
    in_sync(&absent);
    absent.went_out(OTHER, named(1), [].iter()).unwrap();
    absent.note(&write(5, 50)).unwrap();
    absent.heal_begins(OTHER, 5, [].iter()).unwrap();
    absent.note(&write(6, 60)).unwrap();
    // It goes again: what it did not answer is marked first, then the heal is stopped.
    absent.went_out(OTHER, named(2), [].iter()).unwrap();
    absent.heal_ends(OTHER);
    assert!(!everything(&absent, OTHER));
    let marks = absent.marks(OTHER).expect("marks");
    assert!(marks.look(|marks| marks.touches(&write(9, 50)) && marks.touches(&write(9, 60))));
}

#[test]
fn what_a_copy_confirms_while_it_is_healed_is_told_to_nobody() {
    let (absent, _) = absent();
    in_sync(&absent);
    absent.confirmed(THIRD, 3);
    absent.went_out(OTHER, named(1), [].iter()).unwrap();
    absent.heal_begins(OTHER, 5, [].iter()).unwrap();
    absent.confirmed(OTHER, 6);
    let told = |absent: &Absent| -> Vec<u64> {
        absent
            .news_of_syncs()
            .iter()
            .map(|news| news.brick)
            .collect()
    };
    assert_eq!(told(&absent), [THIRD.0]);
    absent.is_back(OTHER);
    absent.confirmed(OTHER, 7);
    assert!(told(&absent).contains(&OTHER.0));
}

#[test]
fn a_doubt_ends_with_a_later_change_of_the_primary_that_goes_on() {
    let (absent, _) = absent();
    in_sync(&absent);
    absent.went_out(OTHER, named(1), [].iter()).unwrap();
    absent.doubt(OTHER, named(1), Some(THIRD)).unwrap();
    assert!(everything(&absent, OTHER));
    absent.received(THIRD, named(1)).unwrap();
    assert!(everything(&absent, OTHER), "ordered before it went out");
    absent.received(THIRD, named(2)).unwrap();
    assert!(!everything(&absent, OTHER));
}

#[test]
fn a_doubt_that_nobody_can_end_stays() {
    let (absent, _) = absent();
    in_sync(&absent);
    absent.went_out(OTHER, named(1), [].iter()).unwrap();
    absent.doubt(OTHER, named(1), None).unwrap();
    absent.received(THIRD, named(2)).unwrap();
    assert!(everything(&absent, OTHER));
}

#[test]
fn what_is_in_flight_when_a_heal_begins_is_marked() {
    let (absent, _) = absent();
    in_sync(&absent);
    absent.went_out(OTHER, named(1), [].iter()).unwrap();
    assert!(absent.lacks_nothing(OTHER));
    // It waits for a slow third copy, and is applied here, and noted, only later.
    let waits = write(5, 50);
    absent.heal_begins(OTHER, 5, [&waits].into_iter()).unwrap();
    assert!(!absent.lacks_nothing(OTHER));
    let marks = absent.marks(OTHER).expect("marks");
    assert!(marks.look(|marks| marks.touches(&waits)));
}

#[test]
fn what_was_sent_to_a_copy_under_heal_is_known_after_a_restart() {
    let (absent, store) = absent();
    in_sync(&absent);
    absent.went_out(OTHER, named(1), [].iter()).unwrap();
    absent.heal_begins(OTHER, 5, [].iter()).unwrap();
    assert!(
        !absent.skips(OTHER, &write(6, 60)),
        "it can be applied there"
    );
    assert!(absent.lacks_nothing(OTHER), "and holds nothing up");
    // This process is killed, the change is lost on its way, and nobody else was in sync.
    let again = Absent::written_by(store, ME, absent.writer.clone());
    again.ensure(OTHER, Some(named(1))).unwrap();
    assert!(!everything(&again, OTHER));
    let marks = again.marks(OTHER).expect("marks");
    assert!(marks.look(|marks| marks.touches(&write(9, 60))));
}

#[test]
fn what_an_earlier_life_wrote_of_a_copy_that_is_back_is_removed() {
    let (absent, store) = absent();
    in_sync(&absent);
    absent.went_out(OTHER, named(1), [].iter()).unwrap();
    let alone = [write(2, 20)];
    absent.goes_on_alone(OTHER, named(1), alone.iter()).unwrap();
    assert_eq!(store.record_files().unwrap().len(), 2);
    // This process starts anew, and the copy comes into sync without that anybody reads them.
    let again = Absent::written_by(store.clone(), ME, absent.writer.clone());
    in_sync(&again);
    assert_eq!(store.record_files().unwrap(), Vec::<String>::new());
    assert!(again.changed_alone(OTHER).unwrap().is_none());
}

#[test]
fn a_change_on_its_way_to_marks_that_end_writes_nothing_down() {
    let (absent, store) = absent();
    in_sync(&absent);
    absent.went_out(OTHER, named(1), [].iter()).unwrap();
    let held = absent.marks(OTHER).expect("marks");
    absent.is_back(OTHER);
    held.mark(&write(7, 70)).unwrap();
    held.make_durable().unwrap();
    assert_eq!(store.record_files().unwrap(), Vec::<String>::new());
}
