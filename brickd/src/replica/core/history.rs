//! How two copies' epochs relate, read from their histories only.

use mortar_common::{BrickId, Incarnation};
use mortar_proto::data::EpochRef;
use mortar_proto::registry::{Copy, Epoch};

/// Epochs kept before the newest: what the registry keeps too.
pub const HISTORY_MAX: usize = 64;

/// What another's epoch is to mine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    /// The same epoch.
    Same,
    /// Theirs is an ancestor of mine.
    Older,
    /// Mine is an ancestor of theirs.
    Newer,
    /// Neither: both went their own way.
    Diverged,
}

/// Number and id of an epoch.
pub fn reference(epoch: &Epoch) -> EpochRef {
    EpochRef {
        number: epoch.number,
        id: epoch.id,
    }
}

/// A listed copy as ids.
pub fn pair(copy: &Copy) -> (BrickId, Incarnation) {
    (BrickId(copy.brick), Incarnation(copy.incarnation))
}

/// The incarnation an epoch lists for a brick.
pub fn listed(epoch: &Epoch, brick: BrickId) -> Option<Incarnation> {
    epoch
        .in_sync
        .iter()
        .map(pair)
        .find(|(listed, _)| *listed == brick)
        .map(|(_, life)| life)
}

/// Whether `older` is in the history `(newest, before)`. A history that was cut short is thought
/// to hold what is older than its oldest entry.
fn holds(newest: EpochRef, before: &[EpochRef], older: EpochRef) -> bool {
    if older.number == 0 || newest == older || before.contains(&older) {
        return true;
    }
    before.len() >= HISTORY_MAX && before.iter().all(|epoch| epoch.number > older.number)
}

/// What `theirs` is to `mine`.
pub fn relation(
    mine: EpochRef,
    my_history: &[EpochRef],
    theirs: EpochRef,
    their_history: &[EpochRef],
) -> Relation {
    if mine == theirs {
        Relation::Same
    } else if mine.number > theirs.number && holds(mine, my_history, theirs) {
        Relation::Older
    } else if theirs.number > mine.number && holds(theirs, their_history, mine) {
        Relation::Newer
    } else {
        Relation::Diverged
    }
}

/// A history with `more` at its end, cut to its bound.
pub fn extended(before: &[EpochRef], more: impl IntoIterator<Item = EpochRef>) -> Vec<EpochRef> {
    let mut all = before.to_vec();
    for epoch in more {
        if epoch.number > 0 && !all.contains(&epoch) {
            all.push(epoch);
        }
    }
    let surplus = all.len().saturating_sub(HISTORY_MAX);
    all.drain(..surplus);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u64, id: u64) -> EpochRef {
        EpochRef { number, id }
    }

    #[test]
    fn equal_numbers_with_different_ids_are_two_ways() {
        let before = [at(1, 1)];
        assert_eq!(
            relation(at(2, 7), &before, at(2, 8), &before),
            Relation::Diverged
        );
        assert_eq!(
            relation(at(2, 7), &before, at(2, 7), &before),
            Relation::Same
        );
    }

    #[test]
    fn an_ancestor_is_found_in_the_history() {
        let mine = [at(1, 1), at(2, 2)];
        assert_eq!(
            relation(at(3, 3), &mine, at(2, 2), &mine[..1]),
            Relation::Older
        );
        assert_eq!(
            relation(at(2, 2), &mine[..1], at(3, 3), &mine),
            Relation::Newer
        );
        assert_eq!(
            relation(at(3, 3), &mine, at(2, 9), &mine[..1]),
            Relation::Diverged
        );
        assert_eq!(relation(at(0, 0), &[], at(3, 3), &mine), Relation::Newer);
    }

    #[test]
    fn a_cut_history_is_thought_to_hold_what_is_older() {
        let long = extended(&[], (1..=70).map(|number| at(number, number)));
        assert_eq!(long.len(), HISTORY_MAX);
        assert_eq!(relation(at(71, 71), &long, at(3, 3), &[]), Relation::Older);
        assert_eq!(
            relation(at(71, 71), &long, at(50, 51), &[]),
            Relation::Diverged
        );
    }
}
