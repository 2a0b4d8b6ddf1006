//! A source, a copy, and a driver between them: deterministic, with live changes and losses of the
//! copy wherever the real driver could have them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use mortar_common::{BrickId, FsError, Gfid};
use mortar_proto::data::change::Step;
use mortar_proto::data::{self, Change, EpochRef, Op, Time};

use super::changes::{Random, random_step};
use super::double::Double;
use super::tree::Tree;
use crate::brick::Store;
use crate::heal::{
    Gone, HealControl, HealError, HealPort, Healer, Key, PartnerMarks, Progress, Recent, Verdict,
    Writer, answer,
};

/// No test needs so many calls of the healer.
const CALLS_MAX: usize = 1_000_000;

pub const PARTNER: BrickId = BrickId(0xb);
pub const EPOCH: EpochRef = EpochRef { number: 3, id: 33 };

pub fn writer() -> Writer {
    Writer {
        boot: "boot".to_owned(),
        mount: 7,
    }
}

/// What stands between source and copy.
pub struct Line {
    pub number: u64,
    /// Sent and not yet applied on the copy.
    queue: VecDeque<(Change, Vec<u8>)>,
    /// The copy as it would be after a power cut.
    synced: Tree,
    synced_number: u64,
    pub recent: Recent,
    pub random: Random,
    /// Live changes still to come.
    pub live_left: usize,
    /// Calls of the healer until the copy is lost.
    pub lost_in: Option<usize>,
    stopped: bool,
    /// Calls of the healer until this change is made, and the change.
    pub later: Option<(usize, Step)>,
    /// Calls of the healer.
    calls: usize,
    pub sent_bytes: u64,
    pub sent_changes: u64,
    pub refused_live: u64,
}

pub struct Rig {
    pub source: Arc<Double>,
    pub copy: Double,
    pub marks: PartnerMarks,
    pub line: Mutex<Line>,
}

impl Rig {
    /// Both hold `tree`, and the copy has just gone out.
    pub fn new(tree: Tree, seed: u64) -> Self {
        let source = Arc::new(Double::new(tree.clone()));
        let store: Arc<dyn Store> = source.clone();
        let marks =
            PartnerMarks::begin(store, PARTNER, EPOCH, &writer(), crate::heal::Marks::new())
                .unwrap();
        let line = Line {
            number: 0,
            queue: VecDeque::new(),
            synced: tree.clone(),
            synced_number: 0,
            recent: Recent::new(),
            random: Random(seed),
            live_left: 0,
            lost_in: None,
            stopped: false,
            later: None,
            calls: 0,
            sent_bytes: 0,
            sent_changes: 0,
            refused_live: 0,
        };
        Rig {
            source,
            copy: Double::new(tree),
            marks,
            line: Mutex::new(line),
        }
    }

    /// The copy holds this, durably, and nothing is marked.
    pub fn copy_holds(&self, tree: Tree) {
        self.line.lock().unwrap().synced = tree.clone();
        *self.copy.tree.lock().unwrap() = tree;
        self.marks
            .carried(|marks| *marks = crate::heal::Marks::new());
    }

    /// A change while the copy is absent; whether it was valid.
    pub fn change(&self, step: Step, payload: &[u8]) -> Result<(), FsError> {
        let mut line = self.line.lock().unwrap();
        let change = self.order(&mut line, step, payload)?;
        self.marks.mark(&change).unwrap();
        Ok(())
    }

    /// Some random changes while the copy is absent.
    pub fn random_changes(&self, count: usize) {
        for _ in 0..count {
            let (step, payload) = {
                let mut line = self.line.lock().unwrap();
                random_step(&mut line.random, &self.source.tree.lock().unwrap())
            };
            let _invalid = self.change(step, &payload);
        }
    }

    fn order(&self, line: &mut Line, step: Step, payload: &[u8]) -> Result<Change, FsError> {
        let number = line.number + 1;
        let time = Some(Time {
            secs: number as i64,
            nanos: 5,
        });
        let change = Change {
            number,
            time,
            step: Some(step),
            ..Default::default()
        };
        self.source.tree.lock().unwrap().apply(&change, payload)?;
        line.number = number;
        Ok(change)
    }

    /// Random changes under the healer's eyes.
    fn live(&self, line: &mut Line) {
        while line.live_left > 0 && line.random.below(3) > 0 {
            line.live_left -= 1;
            let (step, payload) = random_step(&mut line.random, &self.source.tree.lock().unwrap());
            self.change_live(line, step, payload);
        }
        match line.later.take() {
            Some((0, step)) => self.change_live(line, step, Vec::new()),
            Some((calls, step)) => line.later = Some((calls - 1, step)),
            None => {}
        }
        let some = line.random.below(line.queue.len() as u64 + 1);
        self.drain(line, some as usize);
    }

    fn change_live(&self, line: &mut Line, step: Step, payload: Vec<u8>) {
        let Ok(change) = self.order(line, step, &payload) else {
            return;
        };
        line.recent.note(&change);
        if self.marks.judge(&change).unwrap() == Verdict::Send {
            line.queue.push_back((change, payload));
        }
    }

    /// The copy applies some of what it was sent.
    fn drain(&self, line: &mut Line, count: usize) {
        for (change, payload) in line.queue.drain(..count) {
            let is_heal = matches!(
                change.step,
                Some(Step::HealObject(_) | Step::HealName(_) | Step::HealData(_))
            );
            match self.copy.apply(&change, &payload) {
                Ok(()) => {}
                Err(error) if is_heal => panic!("a heal change was refused: {error}"),
                Err(_) => {
                    line.refused_live += 1;
                    self.marks.mark(&change).unwrap();
                }
            }
        }
    }

    fn event(&self) -> Result<std::sync::MutexGuard<'_, Line>, Gone> {
        let mut line = self.line.lock().unwrap();
        if let Some(left) = line.lost_in {
            if left == 0 {
                return Err(Gone);
            }
            line.lost_in = Some(left - 1);
        }
        line.calls += 1;
        assert!(line.calls < CALLS_MAX, "healing does not come to an end");
        self.live(&mut line);
        Ok(line)
    }

    /// Heals until the copy is in sync; when the copy is lost on the way, what it has is cut back,
    /// and it comes again.
    pub fn heal(&self) -> Arc<Progress> {
        let (control, progress) = (HealControl::default(), Arc::new(Progress::new()));
        for _ in 0..1_000 {
            {
                let mut line = self.line.lock().unwrap();
                let confirmed = line.number;
                line.recent.follow(PARTNER, confirmed);
            }
            match Healer::new(self, &control, &progress).run() {
                HealError::Stopped => return progress,
                HealError::Gone(_) => self.lose_copy(),
                error => panic!("{error}"),
            }
        }
        panic!("healing does not come to an end");
    }

    /// The copy dies: by a kill (it keeps what it had applied) or a power cut (only what was
    /// synced).
    fn lose_copy(&self) {
        let mut line = self.line.lock().unwrap();
        line.queue.clear();
        if line.random.below(2) == 0 {
            *self.copy.tree.lock().unwrap() = line.synced.clone();
        }
        self.marks.lost(&line.recent.since(PARTNER)).unwrap();
        line.recent.forget(PARTNER);
        let next = line.random.below(400) as usize;
        line.lost_in = (line.random.below(4) > 0).then_some(next);
    }

    pub fn assert_equal(&self) {
        let (source, copy) = (
            self.source.tree.lock().unwrap(),
            self.copy.tree.lock().unwrap(),
        );
        for (gfid, node) in &source.nodes {
            assert_eq!(Some(node), copy.nodes.get(gfid), "{gfid} differs");
        }
        assert_eq!(
            source.nodes.len(),
            copy.nodes.len(),
            "the copy has more objects"
        );
    }

    pub fn sent(&self) -> (u64, u64) {
        let line = self.line.lock().unwrap();
        (line.sent_changes, line.sent_bytes)
    }
}

thread_local! {
    /// The line, while the healer holds queues: it is locked then.
    static HELD: RefCell<Option<u64>> = const { RefCell::new(None) };
}

impl HealPort for Rig {
    fn source(&self) -> &dyn crate::brick::HealSource {
        &*self.source
    }
    fn marks(&self) -> &PartnerMarks {
        &self.marks
    }
    fn with_keys(&self, _: &[Key], work: &mut dyn FnMut()) -> Result<(), Gone> {
        drop(self.event()?);
        HELD.with(|held| assert!(held.replace(Some(0)).is_none(), "queues are held already"));
        work();
        HELD.with(|held| held.replace(None));
        Ok(())
    }
    fn send(&self, step: Step, payload: Vec<u8>) -> Result<u64, Gone> {
        HELD.with(|held| assert!(held.borrow().is_some(), "sent without holding a queue"));
        let mut line = self.line.lock().unwrap();
        line.number += 1;
        line.sent_changes += 1;
        line.sent_bytes += payload.len() as u64;
        let change = Change {
            number: line.number,
            step: Some(step),
            ..Default::default()
        };
        line.queue.push_back((change, payload));
        Ok(line.number)
    }
    fn make_room(&self, _: u64) -> Result<(), Gone> {
        HELD.with(|held| assert!(held.borrow().is_none(), "waits while it holds queues"));
        self.event().map(drop)
    }
    fn ask(&self, ops: Vec<Op>) -> Result<Vec<data::Result>, Gone> {
        let mut line = self.event()?;
        let all = line.queue.len();
        self.drain(&mut line, all);
        let mut answers = Vec::new();
        for op in &ops {
            let answered = answer(&self.copy, op).expect("a question of a healer");
            let failed = answered.errno != 0;
            answers.push(answered);
            if failed {
                break;
            }
        }
        drop(line);
        drop(self.event()?);
        Ok(answers)
    }
    fn confirmed_sync(&self, up_to: u64) -> Result<(), Gone> {
        let mut line = self.event()?;
        let all = line.queue.len();
        self.drain(&mut line, all);
        assert!(up_to <= line.number);
        line.synced = self.copy.tree.lock().unwrap().clone();
        line.synced_number = line.number;
        let number = line.number;
        line.recent.confirmed(PARTNER, number);
        Ok(())
    }
    fn stopped(&self) -> bool {
        self.line.lock().unwrap().stopped
    }
    fn quiet(&self) {
        let mut line = self.line.lock().unwrap();
        let all = line.queue.len();
        self.drain(&mut line, all);
        if self.marks.is_empty() && line.live_left == 0 {
            line.stopped = true;
        }
        if line.live_left > 0 {
            self.live(&mut line);
        }
    }
}

/// A gfid with a clock, so that the walk has an order.
pub fn gfid(number: u64) -> Gfid {
    Gfid {
        hi: number,
        lo: 0xf000 + number,
    }
}
