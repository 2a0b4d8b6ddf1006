//! Marks against a naive model, and random lives of a copy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mortar_common::Gfid;
use mortar_proto::data::Change;

use super::changes::{Random, random_step};
use super::double::Double;
use super::rig::{EPOCH, PARTNER, Rig, writer};
use super::tree::Tree;
use crate::brick::Store;
use crate::heal::Scope;
use crate::heal::links::Held;
use crate::heal::marks::{MARKS_MAX, MarkState, Marks};
use crate::heal::record::MarkRecord;
use crate::heal::touch::{Lacks, Touch, each_touch};
use crate::heal::{PartnerMarks, Touched, Trust, Writer};

/// Pending, or carried by this number; what it held before the first change, and after the last.
type NaiveName = (Option<u64>, Option<Gfid>, Option<Gfid>);

/// Every mark by itself; bytes one by one up to a bound that all random changes stay below, and one
/// that stands for all behind it.
#[derive(Default, Clone)]
struct Naive {
    /// Pending (with what it lacks), or carried by this number.
    objects: BTreeMap<Gfid, (Option<u64>, Lacks)>,
    names: BTreeMap<(Gfid, Vec<u8>), NaiveName>,
    bytes: BTreeMap<(Gfid, u64), Option<u64>>,
}

const GRAIN: u64 = 500;
const LAST: u64 = 100_000;

fn grains(gfid: Gfid, start: u64, end: u64) -> impl Iterator<Item = (Gfid, u64)> {
    (start / GRAIN..end.min(LAST).div_ceil(GRAIN)).map(move |at| (gfid, at))
}

impl Naive {
    fn add(&mut self, change: &Change) {
        each_touch(change, &mut |touch| match touch {
            Touch::Object(gfid, lacks) => {
                let lacks = self
                    .objects
                    .get(&gfid)
                    .map_or(lacks, |(_, before)| lacks.max(*before));
                self.objects.insert(gfid, (None, lacks));
            }
            Touch::Name(parent, name, Held::Known { before, after }) => {
                let key = (parent, name.to_vec());
                let first = match self.names.get(&key) {
                    Some((None, first, _)) => *first,
                    _ => before,
                };
                self.names.insert(key, (None, first, after));
            }
            Touch::Name(_, _, Held::Unknown) => panic!("a change knows what it does"),
            Touch::Bytes(gfid, range) => {
                self.bytes
                    .extend(grains(gfid, range.start, range.end).map(|key| (key, None)));
            }
            Touch::Reads(..) | Touch::Finds(_) | Touch::Takes(_) => {}
        });
    }

    fn touches(&self, change: &Change) -> bool {
        let mut found = false;
        let blocked = |gfid| self.objects.get(&gfid) == Some(&(None, Lacks::Attributes));
        let bytes = |gfid, range: &std::ops::Range<u64>| {
            grains(gfid, range.start, range.end).any(|key| self.bytes.get(&key) == Some(&None))
        };
        each_touch(change, &mut |touch| {
            found |= match touch {
                Touch::Object(gfid, _) | Touch::Finds(gfid) => blocked(gfid),
                Touch::Name(parent, name, _) => {
                    matches!(self.names.get(&(parent, name.to_vec())), Some((None, ..)))
                }
                Touch::Bytes(gfid, range) => bytes(gfid, &range),
                Touch::Reads(gfid, range) => blocked(gfid) || bytes(gfid, &range),
                Touch::Takes(gfid) => {
                    self.names
                        .iter()
                        .any(|((parent, _), (state, first, last))| {
                            let concerns =
                                *parent == gfid || *first == Some(gfid) || *last == Some(gfid);
                            concerns && state.is_none()
                        })
                }
            }
        });
        found
    }

    fn synced(&mut self, up_to: u64) {
        let stays = |state: &Option<u64>| state.is_none_or(|number| number > up_to);
        self.objects.retain(|_, (state, _)| stays(state));
        self.names.retain(|_, (state, ..)| stays(state));
        self.bytes.retain(|_, state| stays(state));
    }
}

/// Offsets and lengths in whole grains, so that the model's bytes are exact.
fn aligned(mut change: Change) -> Change {
    use mortar_proto::data::change::Step;
    let down = |value: &mut u64| *value = *value / GRAIN * GRAIN;
    match &mut change.step {
        Some(Step::Write(step)) => {
            down(&mut step.offset);
            step.len = step.len / GRAIN as u32 * GRAIN as u32;
        }
        Some(Step::Setattr(step)) => step.size.iter_mut().for_each(down),
        Some(Step::Fallocate(step)) => [&mut step.offset, &mut step.len].into_iter().for_each(down),
        Some(Step::CopyRange(step)) => {
            [&mut step.from_offset, &mut step.to_offset, &mut step.len]
                .into_iter()
                .for_each(down);
        }
        _ => {}
    }
    change
}

fn random_change(random: &mut Random, tree: &mut Tree, number: u64) -> Change {
    let (step, payload) = random_step(random, tree);
    let change = Change {
        number,
        step: Some(step),
        ..Default::default()
    };
    let _refused = tree.apply(&change, &payload);
    aligned(change)
}

#[test]
fn marks_agree_with_a_naive_model() {
    for seed in 0..30 {
        let (mut random, mut tree) = (Random(seed), Tree::new());
        let (mut marks, mut naive) = (Marks::new(), Naive::default());
        let mut written = Marks::new();
        for number in 1..600 {
            let change = random_change(&mut random, &mut tree, number);
            assert_eq!(
                marks.touches(&change),
                naive.touches(&change),
                "seed {seed}: {change:?}"
            );
            if random.below(3) > 0 {
                written.restore(&marks.add(&change));
                naive.add(&change);
            }
            carry(&mut random, &mut marks, &mut naive, number);
            if random.below(40) == 0 {
                marks.synced(number - 10.min(number));
                naive.synced(number - 10.min(number));
            }
            assert_eq!(marks.is_empty(), naive_is_empty(&naive), "seed {seed}");
        }
        let probe = random_change(&mut random, &mut tree, 1_000);
        if naive.touches(&probe) {
            assert!(
                written.touches(&probe),
                "a mark was not written down: {probe:?}"
            );
        }
        let mut again = Marks::new();
        marks
            .records()
            .iter()
            .for_each(|record| again.restore(record));
        marks.reset();
        assert_eq!(
            again.len(),
            again.records().iter().map(MarkRecord::len).sum::<usize>()
        );
        for _ in 0..200 {
            let probe = random_change(&mut random, &mut tree, 1_000);
            assert_eq!(marks.touches(&probe), again.touches(&probe));
        }
    }
}

fn naive_is_empty(naive: &Naive) -> bool {
    naive.objects.is_empty() && naive.names.is_empty() && naive.bytes.is_empty()
}

/// Carries something, as a healer would.
fn carry(random: &mut Random, marks: &mut Marks, naive: &mut Naive, number: u64) {
    let Some(gfid) = marks.oldest(3).last().copied() else {
        return;
    };
    match random.below(3) {
        0 => {
            marks.carried_object(gfid, MarkState::Carried(number));
            if let Some(state) = naive.objects.get_mut(&gfid) {
                *state = (Some(number), Lacks::Times);
            }
        }
        1 => {
            for (name, _) in marks.pending_names(gfid, 3) {
                marks.carried_name(gfid, &name, number);
                if let Some((state, ..)) = naive.names.get_mut(&(gfid, name)) {
                    *state = Some(number);
                }
            }
        }
        _ => {
            let (start, end) = (
                random.below(100) * GRAIN,
                100 * GRAIN + random.below(150) * GRAIN,
            );
            marks.carried_bytes(gfid, start..end, number);
            let last = end >= LAST;
            for key in grains(gfid, start, end) {
                if let Some(state) = naive.bytes.get_mut(&key)
                    && state.is_none()
                {
                    *state = Some(number);
                }
            }
            if last {
                marks.carried_bytes(gfid, LAST..u64::MAX, number);
            }
        }
    }
}

#[test]
fn too_many_marks_become_coarser_and_lose_nothing() {
    let (mut marks, mut record) = (Marks::new(), MarkRecord::default());
    let mut written = Marks::new();
    let gfid = |number: u64| Gfid { hi: number, lo: 2 };
    for number in 0..MARKS_MAX as u64 + 5_000 {
        let name = format!("n{number}");
        marks.mark(
            Touch::Name(gfid(number % 100), name.as_bytes(), Held::Unknown),
            &mut record,
        );
        assert!(marks.len() <= MARKS_MAX);
        if record.len() > 1_000 {
            written.restore(&std::mem::take(&mut record));
        }
    }
    written.restore(&std::mem::take(&mut record));
    assert!(
        marks.everything().is_none(),
        "whole directories are enough here"
    );
    for number in 0..100 {
        assert!(marks.wanted(gfid(number)).any() && written.wanted(gfid(number)).any());
    }
    for number in 0..MARKS_MAX as u64 + 5_000 {
        marks.mark(Touch::Object(gfid(number), Lacks::Times), &mut record);
        assert!(marks.len() <= MARKS_MAX);
    }
    assert!(marks.everything().is_some() && record.everything);
}

#[test]
fn a_journal_is_believed_only_where_it_counts() {
    let rig = Rig::new(Tree::new(), 1);
    rig.random_changes(200);
    let load = |writer: &Writer, epoch| {
        PartnerMarks::load(rig.source.clone(), PARTNER, writer, epoch)
            .unwrap()
            .unwrap()
    };
    let (found, trust) = load(&writer(), Some(EPOCH));
    assert_eq!(trust, Trust::Fine);
    let gfids: BTreeSet<Gfid> = found
        .look(|marks| marks.oldest(10_000))
        .into_iter()
        .collect();
    let expected: BTreeSet<Gfid> = rig
        .marks
        .look(|marks| marks.oldest(10_000))
        .into_iter()
        .collect();
    assert_eq!(gfids, expected);
    let other = mortar_proto::data::EpochRef { id: 34, ..EPOCH };
    assert!(matches!(load(&writer(), Some(other)).1, Trust::Doubtful(_)));
    let (found, trust) = load(
        &Writer {
            mount: 8,
            ..writer()
        },
        None,
    );
    assert!(matches!(trust, Trust::Doubtful(_)));
    assert!(found.look(|marks| marks.everything().is_some()));
    rig.marks.end().unwrap();
    assert!(
        PartnerMarks::load(rig.source.clone(), PARTNER, &writer(), None)
            .unwrap()
            .is_none()
    );
}

/// One life: changes while the copy is away, then a heal under live changes, with losses.
fn life(seed: u64, absent: usize, live: usize, lossy: bool) -> Rig {
    let rig = Rig::new(Tree::new(), seed);
    rig.random_changes(100);
    // Both have that much.
    let tree = rig.source.tree.lock().unwrap().clone();
    rig.copy_holds(tree);
    rig.random_changes(absent);
    {
        let mut line = rig.line.lock().unwrap();
        line.live_left = live;
        line.lost_in = lossy.then(|| line.random.below(200) as usize);
    }
    rig.heal();
    rig.assert_equal();
    rig
}

#[test]
fn what_changed_while_the_copy_was_away_is_healed() {
    for seed in 0..40 {
        life(seed, 400, 0, false);
    }
}

#[test]
fn healing_goes_on_under_live_changes() {
    for seed in 100..140 {
        let rig = life(seed, 300, 600, false);
        assert!(rig.line.lock().unwrap().number > 300);
    }
}

#[test]
fn healing_may_be_interrupted_anywhere() {
    for seed in 200..280 {
        life(seed, 200, 400, true);
    }
}

/// A copy of which nothing is known: it has another history altogether.
#[test]
fn an_unknown_copy_is_compared() {
    for seed in 300..360 {
        let rig = Rig::new(Tree::new(), seed);
        rig.random_changes(150);
        let mut theirs = rig.source.tree.lock().unwrap().clone();
        let mut random = Random(seed * 7);
        for number in 0..seed % 3 * 150 {
            let (step, payload) = random_step(&mut random, &theirs);
            let _refused = theirs.apply(
                &Change {
                    number,
                    step: Some(step),
                    ..Default::default()
                },
                &payload,
            );
        }
        rig.random_changes(150);
        rig.copy_holds(if seed % 4 == 0 { Tree::new() } else { theirs });
        rig.marks.mark_everything(Scope::All).unwrap();
        {
            let mut line = rig.line.lock().unwrap();
            line.live_left = 200;
            line.lost_in = (seed % 2 == 0).then(|| line.random.below(200) as usize);
        }
        rig.heal();
        rig.assert_equal();
    }
}

#[test]
fn after_both_lost_their_memory_what_was_touched_is_all_that_differs() {
    let (mut compared, mut objects) = (0, 0);
    for seed in 0..60 {
        let rig = Rig::new(Tree::new(), seed);
        rig.random_changes(300);
        let mut theirs = rig.source.tree.lock().unwrap().clone();
        let mut random = Random(seed * 7 + 1);
        let (ours, noted) = (
            Touched::new(rig.source.clone()),
            Arc::new(Double::new(Tree::new())),
        );
        let touched = Touched::new(noted.clone());
        // Each applies, and keeps through its power cut, changes that the other does not.
        for number in 1..1 + seed % 4 * 4 {
            let now_ms = number * 10_000;
            let (step, payload) = random_step(&mut random, &theirs);
            let change = Change {
                number,
                step: Some(step),
                ..Default::default()
            };
            touched.before(&change, now_ms).unwrap();
            let _refused = theirs.apply(&change, &payload);
            let (step, payload) = random_step(&mut random, &rig.source.tree.lock().unwrap());
            let change = Change {
                number,
                step: Some(step.clone()),
                ..Default::default()
            };
            ours.before(&change, now_ms).unwrap();
            let _refused = rig.change(step, &payload);
        }
        rig.copy_holds(theirs);
        let codes = noted.read_touched().unwrap().unwrap();
        let codes: Vec<u32> = codes.into_iter().map(|(_, code)| code).collect();
        rig.copy.replace_touched(&codes).unwrap();
        rig.marks.mark_everything(Scope::Touched).unwrap();
        rig.line.lock().unwrap().live_left = (seed % 3 * 50) as usize;
        objects += rig.source.tree.lock().unwrap().nodes.len() as u64;
        compared += rig.heal().compared();
        rig.assert_equal();
    }
    assert!(
        compared < objects / 2,
        "{compared} of {objects} objects were compared"
    );
}

#[test]
fn a_copy_that_does_not_know_what_it_touched_is_compared_whole() {
    let rig = Rig::new(Tree::new(), 5);
    rig.random_changes(100);
    rig.copy_holds(Tree::new());
    rig.copy.lose_touched();
    rig.marks.mark_everything(Scope::Touched).unwrap();
    rig.heal();
    rig.assert_equal();
}
