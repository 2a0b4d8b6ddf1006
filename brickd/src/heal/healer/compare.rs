//! Comparing a copy of which too little is known.
//!
//! Every object of the source is compared with the copy's: attributes and xattrs by a sum, a
//! directory's names one by one, a file's content by sums of its ranges. Differences become marks
//! and are carried as they are found, so that not many are there at a time. Meanwhile every change
//! is marked and none is applied on the copy, so it does not matter that objects move during the
//! walk. As a rule only what one of the two copies has touched is compared. The walk goes by object, not by path: youngest objects first, as these differ most likely;
//! it goes on where it was after an interruption.

use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;

use bytes::Bytes;
use mortar_common::Gfid;
use mortar_proto::data::result::Ok as Answer;
use mortar_proto::data::{DirEntry, HealObjectStep, Object, ReadDir};

use super::super::marks::Scope;
use super::super::port::HealError;
use super::super::query::{
    ask_orphans, ask_sum, ask_touched, data_of_any, file_type, found, object_sum, told_data_from,
    touched_of,
};
use super::super::touch::{Lacks, TO_THE_END, Touch};
use super::super::touched::{Span, spans_of};
use super::names::first_page;
use super::{Healer, Origin, STATS_PER_ASK, Seen, Told};
use crate::brick::store::handle_bucket;
use crate::brick::{BrickError, HealSource};

/// Objects of which the ids are kept at a time (16 bytes each).
const CHUNK_OBJECTS: usize = 262_144;
/// After so many objects the copy is asked to sync, and how far the walk came is written down.
const CHECKPOINT_OBJECTS: usize = 8_192;
/// Bytes of one sum.
const SUM_BYTES: u64 = 1 << 20;
/// Bytes of the sums that find out what of such a range differs.
const FINE_SUM_BYTES: u64 = 64 * 1024;
/// Sums asked for in one request.
const SUMS_PER_ASK: usize = 16;
/// With so many names pending in a directory they are carried before the comparison goes on.
const NAMES_PENDING_MAX: usize = 1_024;

/// A walk over all objects of the source.
pub(super) struct Walk {
    generation: u64,
    /// What of the source is compared; `None` = all.
    spans: Option<Vec<Span>>,
    /// The next objects, in the order of the walk.
    queue: VecDeque<Gfid>,
    /// The last object of the queue as it was filled; `None` = the walk begins.
    reached: Option<Gfid>,
    compared: Option<Gfid>,
    since_checkpoint: usize,
}

/// Youngest first; the root, whose clock is 0, comes last.
fn order(gfid: Gfid) -> (u64, Gfid) {
    (u64::MAX - gfid.clock_us(), gfid)
}

/// The next objects of a copy behind `after`, in the order of a walk, of the `wanted` folders of
/// handles.
///
/// # Errors
/// Those of the disk.
pub fn next_chunk(
    source: &dyn HealSource,
    after: Option<Gfid>,
    wanted: &dyn Fn(u32) -> bool,
    stopped: &dyn Fn() -> bool,
) -> Result<VecDeque<Gfid>, BrickError> {
    let after = after.map(order);
    let mut heap: BinaryHeap<(u64, Gfid)> = BinaryHeap::new();
    let mut offer = |gfid: Gfid| {
        let key = order(gfid);
        if after.is_none_or(|after| key > after) {
            heap.push(key);
            if heap.len() > CHUNK_OBJECTS {
                heap.pop();
            }
        }
    };
    if wanted(handle_bucket(Gfid::ROOT)) {
        offer(Gfid::ROOT);
    }
    source.each_handle(wanted, &mut |gfid| {
        if gfid != Gfid::ROOT {
            offer(gfid);
        }
        !stopped()
    })?;
    let sorted = heap.into_sorted_vec().into_iter();
    Ok(sorted.map(|(_, gfid)| gfid).collect())
}

impl Healer<'_> {
    /// Compares some more objects, of a comparison of everything.
    pub(super) fn compare_some(&mut self, generation: u64) -> Result<(), HealError> {
        let mut walk = match self.walk.take() {
            Some(walk) if walk.generation == generation => walk,
            _ => {
                let compared = self.marks().look(|marks| marks.compared());
                let spans = self.spans_to_compare()?;
                match &spans {
                    Some(spans) => tracing::info!(
                        resumed = compared.is_some(),
                        spans = spans.len(),
                        "comparing what was touched with the copy"
                    ),
                    None => tracing::info!(
                        resumed = compared.is_some(),
                        "comparing everything with the copy"
                    ),
                }
                Walk {
                    generation,
                    spans,
                    queue: VecDeque::new(),
                    reached: compared,
                    compared,
                    since_checkpoint: 0,
                }
            }
        };
        if walk.queue.is_empty() {
            let spans = walk.spans.as_deref();
            let wanted =
                |bucket| spans.is_none_or(|spans| spans.iter().any(|span| span.holds(bucket)));
            let stopped = || self.port.stopped();
            walk.queue = next_chunk(self.port.source(), walk.reached, &wanted, &stopped)?;
            self.check_stopped()?;
            match walk.queue.back() {
                Some(last) => walk.reached = Some(*last),
                None => return self.walk_ends(&walk),
            }
        }
        let some: Vec<Gfid> = walk
            .queue
            .drain(..walk.queue.len().min(STATS_PER_ASK))
            .collect();
        for (gfid, told) in some.iter().zip(self.stat(&some)?) {
            self.check_stopped()?;
            self.compare(*gfid, told)?;
        }
        walk.since_checkpoint += some.len();
        walk.compared = some.last().copied().or(walk.compared);
        self.progress.add_compared(some.len() as u64);
        if walk.since_checkpoint >= CHECKPOINT_OBJECTS {
            self.checkpoint(&mut walk)?;
        }
        self.walk = Some(walk);
        Ok(())
    }

    /// What was found equal may be in the copy's memory alone: only after a sync it counts.
    fn checkpoint(&mut self, walk: &mut Walk) -> Result<(), HealError> {
        self.sync()?;
        if let Some(gfid) = walk.compared {
            let generation = walk.generation;
            self.marks()
                .edit(|marks, record| marks.set_compared(generation, gfid, record))?;
        }
        walk.since_checkpoint = 0;
        Ok(())
    }

    fn walk_ends(&mut self, walk: &Walk) -> Result<(), HealError> {
        self.mark_lost_orphans()?;
        self.sync()?;
        self.marks().compared_everything(walk.generation)?;
        tracing::info!(
            objects = self.progress.compared(),
            of_all = walk.spans.is_none(),
            "the comparison is done"
        );
        Ok(())
    }

    /// What this copy or the other has touched; `None` when one of them does not know, or all is
    /// to be compared whatever they know.
    fn spans_to_compare(&self) -> Result<Option<Vec<Span>>, HealError> {
        if self.marks().look(|marks| marks.scope()) == Scope::All {
            return Ok(None);
        }
        let answer = self.ask(vec![ask_touched()])?.pop().unwrap_or_default();
        let both = touched_of(&answer).zip(spans_of(self.port.source())?);
        Ok(both.map(|(mut theirs, ours)| {
            theirs.extend(ours);
            theirs
        }))
    }

    fn compare(&mut self, gfid: Gfid, told: Option<Told>) -> Result<(), HealError> {
        let Some(step) = found(self.port.source().heal_object(gfid))? else {
            return Ok(());
        };
        let object = step.object.unwrap_or_default();
        let Some(told) = told else {
            return self.mark_whole(gfid, &object);
        };
        self.know(
            gfid,
            Seen {
                file_type: file_type(&told.object),
                origin: Origin::Found,
            },
        );
        if file_type(&told.object) != file_type(&object) {
            return self.mark_whole(gfid, &object);
        }
        self.compare_attributes(gfid, &step, &told)?;
        match file_type(&object) {
            libc::S_IFDIR => self.compare_listing(gfid),
            libc::S_IFREG => self.compare_bytes(gfid, &object, &told.object),
            _ => Ok(()),
        }
    }

    fn compare_attributes(
        &self,
        gfid: Gfid,
        step: &HealObjectStep,
        told: &Told,
    ) -> Result<(), HealError> {
        if object_sum(step) != told.sum {
            self.marks().edit(|marks, record| {
                marks.mark(Touch::Object(gfid, Lacks::Attributes), record);
            })?;
        }
        Ok(())
    }

    fn compare_bytes(&self, gfid: Gfid, source: &Object, copy: &Object) -> Result<(), HealError> {
        let shared = source.size.min(copy.size);
        let mut at = 0;
        while let Some(start) = self.data_of_either(gfid, at..shared)? {
            at = (start + SUMS_PER_ASK as u64 * SUM_BYTES).min(shared);
            for range in self.differing(gfid, start..at, SUM_BYTES)? {
                for fine in self.differing(gfid, range, FINE_SUM_BYTES)? {
                    self.mark_bytes(gfid, fine)?;
                }
            }
        }
        if source.size != copy.size {
            self.mark_bytes(gfid, shared..TO_THE_END)?;
        }
        Ok(())
    }

    fn data_of_either(&self, gfid: Gfid, range: Range<u64>) -> Result<Option<u64>, HealError> {
        data_of_any(self.port.source(), gfid, range, SUM_BYTES, |ask| {
            self.check_stopped()?;
            let answers = self.port.ask(vec![ask])?;
            Ok(vec![answers.first().and_then(told_data_from)])
        })
    }

    fn mark_bytes(&self, gfid: Gfid, range: Range<u64>) -> Result<(), HealError> {
        self.marks().edit(|marks, record| {
            marks.mark(Touch::Object(gfid, Lacks::Times), record);
            marks.mark(Touch::Bytes(gfid, range), record);
        })?;
        Ok(())
    }

    /// The pieces of a range, each `step` bytes long, whose sums differ.
    fn differing(
        &self,
        gfid: Gfid,
        range: Range<u64>,
        step: u64,
    ) -> Result<Vec<Range<u64>>, HealError> {
        let mut differing = Vec::new();
        let mut at = range.start;
        while at < range.end {
            self.check_stopped()?;
            let mut pieces = Vec::with_capacity(SUMS_PER_ASK);
            while at < range.end && pieces.len() < SUMS_PER_ASK {
                let end = (at + step).min(range.end);
                pieces.push(at..end);
                at = end;
            }
            let asks = pieces
                .iter()
                .map(|piece| ask_sum(gfid, piece.start, piece.end - piece.start));
            let answers = self.port.ask(asks.collect())?;
            for (number, piece) in pieces.into_iter().enumerate() {
                // An answer that is missing or an error differs too: the file is gone there.
                let sum = answers.get(number).and_then(|answer| match answer.ok {
                    Some(Answer::Sum(sum)) => Some(sum),
                    _ => None,
                });
                let len = piece.end - piece.start;
                if found(self.port.source().sum(gfid, piece.start, len))? != sum {
                    differing.push(piece);
                }
            }
        }
        Ok(differing)
    }

    /// Compares the names of a directory; differing ones are marked.
    pub(super) fn compare_listing(&mut self, gfid: Gfid) -> Result<(), HealError> {
        let (mut source, mut copy) = (Listing::of(gfid), Listing::of(gfid));
        loop {
            self.check_stopped()?;
            if source.needs_page() {
                let page = found(self.port.source().read_dir(&source.next))?;
                source.fill(page.map_or((Vec::new(), true), |page| (page.entries, page.end)));
            }
            if copy.needs_page() {
                let page = self.read_dir_on_copy(&copy.next)?;
                copy.fill((page.entries, page.end));
            }
            match (source.place(), copy.place()) {
                (None, None) => return Ok(()),
                (Some(ours), Some(theirs)) if ours == theirs => {
                    let (ours, theirs) = (source.take(), copy.take());
                    if let (Some(ours), Some(theirs)) = (ours, theirs)
                        && (ours.gfid, ours.r#type) != (theirs.gfid, theirs.r#type)
                    {
                        self.mark_different(gfid, &theirs.name, theirs.gfid, ours.gfid)?;
                    }
                }
                (Some(ours), theirs) if theirs.as_ref().is_none_or(|theirs| ours < *theirs) => {
                    if let Some(ours) = source.take() {
                        self.mark_different(gfid, &ours.name, None, ours.gfid)?;
                    }
                }
                _ => {
                    if let Some(theirs) = copy.take() {
                        self.mark_different(gfid, &theirs.name, theirs.gfid, None)?;
                    }
                }
            }
            self.carry_if_many(gfid)?;
        }
    }

    fn carry_if_many(&mut self, gfid: Gfid) -> Result<(), HealError> {
        let many = self
            .marks()
            .look(|marks| marks.names_pending(gfid) >= NAMES_PENDING_MAX);
        if many {
            self.heal_names(gfid)?;
            self.sync_if_due()?;
        }
        Ok(())
    }

    /// Marks objects without a name that the copy has and the source has not.
    fn mark_lost_orphans(&mut self) -> Result<(), HealError> {
        let mut after = Gfid::default();
        loop {
            let answer = self
                .ask(vec![ask_orphans(after)])?
                .pop()
                .unwrap_or_default();
            let Some(Answer::Bytes(bytes)) = answer.ok else {
                return Err(HealError::Nonsense(
                    "no list of objects without a name".to_owned(),
                ));
            };
            let gfids: Vec<Gfid> = bytes.chunks(16).filter_map(Gfid::from_slice).collect();
            let Some(last) = gfids.last() else {
                return Ok(());
            };
            after = *last;
            for gfid in gfids {
                if found(self.port.source().object(gfid))?.is_none() {
                    self.marks().edit(|marks, record| {
                        marks.mark(Touch::Object(gfid, Lacks::Times), record);
                    })?;
                }
            }
        }
    }
}

/// One side of the comparison of a directory, page by page.
struct Listing {
    next: ReadDir,
    entries: VecDeque<DirEntry>,
    end: bool,
}

impl Listing {
    fn of(gfid: Gfid) -> Self {
        Listing {
            next: first_page(gfid),
            entries: VecDeque::new(),
            end: false,
        }
    }

    fn needs_page(&self) -> bool {
        self.entries.is_empty() && !self.end
    }

    fn fill(&mut self, (entries, end): (Vec<DirEntry>, bool)) {
        // A page without names that is not the last would be asked for again for ever.
        self.end = end || entries.is_empty();
        if let Some(last) = entries.last() {
            (self.next.after_hash, self.next.after_name) = (last.hash, last.name.clone());
        }
        self.entries = entries.into();
    }

    /// Where the listing stands: order of its next entry.
    fn place(&self) -> Option<(u64, Bytes)> {
        self.entries
            .front()
            .map(|entry| (entry.hash, entry.name.clone()))
    }

    fn take(&mut self) -> Option<DirEntry> {
        self.entries.pop_front()
    }
}
