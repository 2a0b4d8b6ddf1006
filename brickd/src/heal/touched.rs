//! Coarse marks: in which spans of objects anything has changed since all copies were last known to
//! be equal and durable. Kept by every copy of its own brick, in `.mortar/touched`.
//!
//! A span is a range of the clocks in gfids, at its finest the 268 seconds whose handles share a
//! folder. So what is made now shares one span, whatever it is called, and a comparison of what is
//! touched reads those folders of handles alone; by slot, which is a hash of the name, an unpacked
//! archive would touch everything.
//!
//! A span is durable before the first change in it is applied, and goes when all copies are in
//! sync, have confirmed a sync that covers its last change, and it was quiet since. Two copies that
//! are not known to be equal differ in no object outside the spans of one or the other: each
//! difference comes of a change that one of them applied after it last dropped that span.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mortar_common::Gfid;
use mortar_proto::data::Change;
use mortar_proto::data::change::Step;
use tracing::info;

use super::touch::{Touch, each_touch};
use crate::brick::store::{HANDLE_BUCKET_BITS, TOUCHED_MAX, handle_bucket};
use crate::brick::{BrickError, Store};

/// How many times wider, in bits, a span is than the folder of handles that is the narrowest: 268
/// seconds, 5 hours, 13 days, everything.
const WIDTHS: [u32; 4] = [0, 6, 12, HANDLE_BUCKET_BITS];
/// So many spans of one width are made within [`WINDOW_MS`]; after that wider ones are.
const MADE_MAX: usize = 16;
/// See [`MADE_MAX`].
const WINDOW_MS: u64 = 10_000;
/// A span goes when nothing was changed in it for so long.
const QUIET_MS: u64 = 60_000;
/// Stands for the last change of a span that an earlier life wrote down.
const UNKNOWN: u64 = u64::MAX;

/// A range of the clocks in gfids.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Span(u32);

impl Span {
    /// All objects.
    pub const ALL: Span = Span(3 << HANDLE_BUCKET_BITS);

    fn of(bucket: u32, width: usize) -> Self {
        Span((width as u32) << HANDLE_BUCKET_BITS | bucket >> WIDTHS[width])
    }

    fn width(self) -> usize {
        (self.0 >> HANDLE_BUCKET_BITS) as usize
    }

    /// Whether objects whose handles are in this folder belong to it.
    pub fn holds(self, bucket: u32) -> bool {
        Span::of(bucket, self.width()) == self
    }

    /// The wider span that holds it.
    fn widened(self) -> Self {
        let width = self.width();
        let wider = (width + 1).min(WIDTHS.len() - 1);
        let first = (self.0 & ((1 << HANDLE_BUCKET_BITS) - 1)) << WIDTHS[width];
        Span::of(first, wider)
    }

    /// As the brick keeps it.
    pub fn code(self) -> u32 {
        self.0
    }

    /// The reverse of [`Span::code`]; what is no span stands for all.
    pub fn from_code(code: u32) -> Self {
        if code >> HANDLE_BUCKET_BITS < WIDTHS.len() as u32 {
            Span(code)
        } else {
            Span::ALL
        }
    }
}

/// The spans that a copy has touched; `None` when it does not know.
///
/// # Errors
/// Those of the disk.
pub fn spans_of(store: &dyn Store) -> Result<Option<Vec<Span>>, BrickError> {
    let codes = store.read_touched()?;
    Ok(codes.map(|codes| {
        codes
            .into_iter()
            .map(|(_, code)| Span::from_code(code))
            .collect()
    }))
}

/// What is known of one span.
struct Touching {
    /// Its place in the brick's file.
    slot: u32,
    last_number: u64,
    last_ms: u64,
}

/// The spans of one copy's own brick. All calls may be made from any thread.
pub struct Touched {
    store: Arc<dyn Store>,
    inner: Mutex<Option<Spans>>,
}

#[derive(Default)]
struct Spans {
    spans: HashMap<Span, Touching>,
    /// When spans of each width were made.
    made_ms: [VecDeque<u64>; WIDTHS.len()],
}

impl Touched {
    /// Of this brick; its file is read at the first change.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Touched {
            store,
            inner: Mutex::new(None),
        }
    }

    /// To be called before a change is applied: what it touches is durably known to be touched when
    /// this returns.
    ///
    /// # Errors
    /// Those of the disk: the change must not be applied then.
    pub fn before(&self, change: &Change, now_ms: u64) -> Result<(), BrickError> {
        let mut inner = self.lock();
        let spans = self.loaded(&mut inner)?;
        let mut new = Vec::new();
        each_gfid(change, &mut |gfid| {
            let bucket = handle_bucket(gfid);
            if !spans.touch(bucket, change.number, now_ms) && !new.contains(&bucket) {
                new.push(bucket);
            }
        });
        for bucket in new {
            if !spans.touch(bucket, change.number, now_ms) {
                spans.add(&*self.store, bucket, change.number, now_ms)?;
            }
        }
        Ok(())
    }

    /// All copies are in sync and have confirmed syncs up to this number. What is quiet goes. Spans
    /// of an earlier life need a sync from after the change `in_sync_from`, the last one when this
    /// copy came in sync.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn synced_everywhere(
        &self,
        number: u64,
        in_sync_from: u64,
        now_ms: u64,
    ) -> Result<(), BrickError> {
        let mut inner = self.lock();
        let spans = self.loaded(&mut inner)?;
        spans.know(in_sync_from);
        let goes = |touching: &Touching| {
            touching.last_number <= number && now_ms >= touching.last_ms + QUIET_MS
        };
        let mut failed = Ok(());
        spans.spans.retain(|_, touching| {
            if failed.is_err() || !goes(touching) {
                return true;
            }
            // Not durable: one that comes back after a power cut only costs a comparison.
            failed = self.store.write_touched(touching.slot, None);
            failed.is_err()
        });
        failed
    }

    fn loaded<'a>(&self, inner: &'a mut Option<Spans>) -> Result<&'a mut Spans, BrickError> {
        if inner.is_none() {
            let mut spans = Spans::default();
            match self.store.read_touched()? {
                Some(codes) => {
                    for (slot, code) in codes {
                        spans.insert(Span::from_code(code), slot, UNKNOWN, 0);
                    }
                }
                // A brick of before there were such marks, a copied or a damaged one.
                None => spans.replace(&*self.store, &[(Span::ALL, UNKNOWN, 0)])?,
            }
            *inner = Some(spans);
        }
        Ok(inner.get_or_insert_default())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Spans>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spans {
    /// Whether the folder's objects are touched already; the span remembers the change then.
    fn touch(&mut self, bucket: u32, number: u64, now_ms: u64) -> bool {
        let mut found = false;
        for width in 0..WIDTHS.len() {
            if let Some(touching) = self.spans.get_mut(&Span::of(bucket, width)) {
                if touching.last_number != UNKNOWN {
                    touching.last_number = touching.last_number.max(number);
                }
                touching.last_ms = now_ms;
                found = true;
            }
        }
        found
    }

    /// Spans of an earlier life changed last before `number`.
    fn know(&mut self, number: u64) {
        for touching in self.spans.values_mut() {
            if touching.last_number == UNKNOWN {
                touching.last_number = number;
            }
        }
    }

    fn add(
        &mut self,
        store: &dyn Store,
        bucket: u32,
        number: u64,
        now_ms: u64,
    ) -> Result<(), BrickError> {
        let span = Span::of(bucket, self.width_to_make(now_ms));
        if self.spans.len() >= TOUCHED_MAX as usize {
            self.widen(store)?;
        }
        let slot = (0..TOUCHED_MAX)
            .find(|slot| !self.spans.values().any(|touching| touching.slot == *slot))
            .unwrap_or(0);
        store.write_touched(slot, Some(span.code()))?;
        self.insert(span, slot, number, now_ms);
        Ok(())
    }

    fn insert(&mut self, span: Span, slot: u32, last_number: u64, last_ms: u64) {
        let touching = Touching {
            slot,
            last_number,
            last_ms,
        };
        self.spans.insert(span, touching);
    }

    /// The narrowest width of which not too many were made just now: work all over the volume costs
    /// a few syncs, not one for each place.
    fn width_to_make(&mut self, now_ms: u64) -> usize {
        for (width, made_ms) in self.made_ms.iter_mut().enumerate() {
            while made_ms.front().is_some_and(|at| now_ms >= at + WINDOW_MS) {
                made_ms.pop_front();
            }
            if made_ms.len() < MADE_MAX {
                made_ms.push_back(now_ms);
                return width;
            }
        }
        WIDTHS.len() - 1
    }

    /// The file is full: the spans become wider until half of it is free.
    fn widen(&mut self, store: &dyn Store) -> Result<(), BrickError> {
        let mut spans: HashMap<Span, (u64, u64)> = HashMap::new();
        let mut from: Vec<(Span, u64, u64)> = self
            .spans
            .iter()
            .map(|(span, touching)| (*span, touching.last_number, touching.last_ms))
            .collect();
        while from.len() > TOUCHED_MAX as usize / 2 {
            spans.clear();
            for (span, number, ms) in from {
                let last = spans.entry(span.widened()).or_default();
                *last = (last.0.max(number), last.1.max(ms));
            }
            from = spans
                .iter()
                .map(|(span, (number, ms))| (*span, *number, *ms))
                .collect();
        }
        info!(spans = from.len(), "what is touched is noted more coarsely");
        self.replace(store, &from)
    }

    fn replace(&mut self, store: &dyn Store, with: &[(Span, u64, u64)]) -> Result<(), BrickError> {
        let codes: Vec<u32> = with.iter().map(|(span, ..)| span.code()).collect();
        store.replace_touched(&codes)?;
        self.spans.clear();
        for (slot, (span, number, ms)) in (0..).zip(with) {
            self.insert(*span, slot, *number, *ms);
        }
        Ok(())
    }
}

/// Every object that a change changes, its names counted for their directory.
fn each_gfid(change: &Change, each: &mut dyn FnMut(Gfid)) {
    let mut known = |gfid: Option<Gfid>| {
        if let Some(gfid) = gfid {
            each(gfid);
        }
    };
    match &change.step {
        Some(Step::HealObject(step)) => known(step.object.as_ref().and_then(|object| object.gfid)),
        Some(Step::HealData(step)) => known(step.gfid),
        Some(Step::HealName(step)) => {
            known(step.parent);
            known(step.gfid);
        }
        _ => each_touch(change, &mut |touch| match touch {
            Touch::Object(gfid, _) | Touch::Name(gfid, ..) | Touch::Bytes(gfid, _) => each(gfid),
            Touch::Reads(..) | Touch::Finds(_) | Touch::Takes(_) => {}
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heal::tests::double::Double;
    use crate::heal::tests::tree::Tree;
    use mortar_common::placement::Slot;
    use mortar_proto::data::WriteStep;

    fn gfid(bucket: u64) -> Gfid {
        Gfid::new(Slot::new(5), bucket << 28, 7)
    }

    fn write(number: u64, bucket: u64) -> Change {
        let step = WriteStep {
            gfid: Some(gfid(bucket)),
            len: 1,
            ..Default::default()
        };
        Change {
            number,
            step: Some(Step::Write(step)),
            ..Default::default()
        }
    }

    fn fresh() -> (Arc<Double>, Touched) {
        let store = Arc::new(Double::new(Tree::new()));
        let touched = Touched::new(store.clone());
        (store, touched)
    }

    fn holds(store: &Double, bucket: u64) -> bool {
        let spans = spans_of(store).unwrap().unwrap();
        spans.iter().any(|span| span.holds(bucket as u32))
    }

    #[test]
    fn a_span_is_written_once_and_goes_when_all_have_synced_and_it_is_quiet() {
        let (store, touched) = fresh();
        for number in 1..100 {
            touched.before(&write(number, 77), 1_000).unwrap();
        }
        assert_eq!(store.touched_writes(), 1);
        assert!(holds(&store, 77) && !holds(&store, 78) && !holds(&store, 0));
        let later_ms = 1_000 + QUIET_MS;
        touched.synced_everywhere(98, 0, later_ms).unwrap();
        assert!(
            holds(&store, 77),
            "its last change is not synced everywhere"
        );
        touched.synced_everywhere(99, 0, later_ms - 1).unwrap();
        assert!(holds(&store, 77), "it is not quiet yet");
        touched.synced_everywhere(99, 0, later_ms).unwrap();
        assert!(!holds(&store, 77));
        touched.before(&write(100, 77), later_ms).unwrap();
        assert!(holds(&store, 77));
    }

    #[test]
    fn spans_of_an_earlier_life_stay_until_a_sync_after_the_copy_was_in_sync() {
        let (store, touched) = fresh();
        touched.before(&write(5, 3), 0).unwrap();
        let next = Touched::new(store.clone());
        next.before(&write(6, 9), 0).unwrap();
        next.synced_everywhere(6, 50, QUIET_MS).unwrap();
        assert!(holds(&store, 3) && !holds(&store, 9));
        next.synced_everywhere(50, 50, QUIET_MS).unwrap();
        assert!(!holds(&store, 3));
    }

    #[test]
    fn without_a_file_everything_is_touched() {
        let (store, touched) = fresh();
        store.lose_touched();
        assert_eq!(spans_of(&*store).unwrap(), None);
        touched.before(&write(1, 3), 0).unwrap();
        assert_eq!(spans_of(&*store).unwrap(), Some(vec![Span::ALL]));
        assert!(holds(&store, 1 << 21));
    }

    #[test]
    fn work_all_over_the_volume_costs_a_bounded_number_of_syncs() {
        let (store, touched) = fresh();
        let buckets = (0..20_000u64).map(|number| number * 7919 % (1 << 22));
        for (number, bucket) in (1..).zip(buckets.clone()) {
            touched.before(&write(number, bucket), 1).unwrap();
        }
        let writes = store.touched_writes();
        assert!(writes <= 3 * MADE_MAX + 1, "{writes} syncs");
        assert!(buckets.clone().all(|bucket| holds(&store, bucket)));
        // Slowly, all over the volume: the file stays as small as it is.
        let (store, touched) = fresh();
        for (number, bucket) in (1..).zip(buckets.clone().take(5_000)) {
            touched
                .before(&write(number, bucket), number * 1_000)
                .unwrap();
        }
        assert!(spans_of(&*store).unwrap().unwrap().len() <= TOUCHED_MAX as usize);
        assert!(buckets.take(5_000).all(|bucket| holds(&store, bucket)));
    }

    #[test]
    fn a_wider_span_holds_what_the_narrower_held() {
        for bucket in [0, 1, 63, 64, 4_095, 4_096, (1 << 22) - 1] {
            let mut span = Span::of(bucket, 0);
            for _ in 0..WIDTHS.len() + 1 {
                assert!(span.holds(bucket), "{span:?} {bucket}");
                assert_eq!(Span::from_code(span.code()), span);
                span = span.widened();
            }
            assert_eq!(span, Span::ALL);
        }
        assert_eq!(Span::from_code(u32::MAX), Span::ALL);
    }
}
