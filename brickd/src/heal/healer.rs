//! The worker that heals one syncing copy; run by the primary, in a thread of its own.
//!
//! It takes objects with something pending, oldest first. Of each it sends the attributes (which
//! makes the object if the copy has none), then names and bytes, and at the end the attributes
//! once more, because the former disturb its times. All that is sent is read and numbered under
//! the queues of what it touches, so that on the copy too it stands between the same changes.

mod bytes;
mod compare;
mod gone;
mod names;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use mortar_common::Gfid;
use mortar_proto::data::change::Step;
use mortar_proto::data::result::Ok as Answer;
use mortar_proto::data::{self, Object, Op};

use super::marks::MarkState;
use super::partner::PartnerMarks;
use super::port::{Gone, HealError, HealPort, Key};
use super::progress::{HealControl, Progress};
use super::query::{ask_stat, file_type, found};
use super::touch::{Lacks, TO_THE_END, Touch};
use compare::Walk;
pub use compare::next_chunk;

/// Objects taken at a time.
const BATCH_OBJECTS: usize = 2_048;
/// Objects asked about in one request.
const STATS_PER_ASK: usize = 64;
/// What is remembered of objects that the copy has.
const KNOWN_MAX: usize = 65_536;
/// The copy is asked to sync after so many bytes…
const SYNC_BYTES: u64 = 256 << 20;
/// … or so many heal changes.
const SYNC_CHANGES: u64 = 16_384;
/// Room asked for a change without content, in bytes.
const SMALL_CHANGE: u64 = 512;
/// How long to wait when there is nothing to do, or nothing could be done.
const IDLE: Duration = Duration::from_millis(100);

/// What the copy has of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    /// Its type bits.
    file_type: u32,
    origin: Origin,
}

/// Since when the copy has an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Origin {
    /// Made by this healer, and not named since: nothing else can be in its way.
    Made,
    /// From before.
    Found,
}

/// An object as the copy told of it.
struct Told {
    object: Object,
    /// Of a directory that has a name.
    parent: Option<Gfid>,
    sum: u64,
}

/// Heals one syncing copy.
pub struct Healer<'a> {
    port: &'a dyn HealPort,
    control: &'a HealControl,
    progress: &'a Progress,
    known: HashMap<Gfid, Seen>,
    /// Objects that the copy has and the source has not: freed when all names are healed.
    doomed: BTreeSet<Gfid>,
    walk: Option<Walk>,
    last_sent: u64,
    changes_sent: u64,
    changes_unsynced: u64,
    bytes_unsynced: u64,
    /// Everything is compared at most once because of something that cannot be explained.
    comparisons_left: u32,
}

impl<'a> Healer<'a> {
    /// Of one copy, that of the port's marks.
    pub fn new(port: &'a dyn HealPort, control: &'a HealControl, progress: &'a Progress) -> Self {
        Healer {
            port,
            control,
            progress,
            known: HashMap::new(),
            doomed: BTreeSet::new(),
            walk: None,
            last_sent: 0,
            changes_sent: 0,
            changes_unsynced: 0,
            bytes_unsynced: 0,
            comparisons_left: 1,
        }
    }

    /// Heals until it is stopped or the copy is gone. What was carried and not confirmed stays
    /// marked; whoever goes on later calls [`PartnerMarks::lost`] first.
    pub fn run(mut self) -> HealError {
        // What this healer finds equal must not be in the copy's memory alone.
        if let Err(gone) = self.port.confirmed_sync(0) {
            return gone.into();
        }
        loop {
            if let Err(error) = self.turn() {
                return error;
            }
        }
    }

    fn marks(&self) -> &'a PartnerMarks {
        self.port.marks()
    }

    fn turn(&mut self) -> Result<(), HealError> {
        self.check_stopped()?;
        self.forget_known();
        if !self.control.wait_enabled(IDLE) {
            return Ok(());
        }
        let everything = self.marks().look(|marks| marks.everything());
        if let Some(generation) = everything {
            self.compare_some(generation)?;
        }
        let batch = self.marks().look(|marks| marks.oldest(BATCH_OBJECTS));
        if !batch.is_empty() {
            let before = self.changes_sent;
            for gfid in batch {
                self.check_stopped()?;
                self.heal(gfid)?;
                self.sync_if_due()?;
                self.forget_known();
            }
            // Put off, all of it: something has to change first.
            if self.changes_sent == before && everything.is_none() {
                self.marks().wait(IDLE);
            }
            return Ok(());
        }
        if everything.is_some() {
            return Ok(());
        }
        if !self.doomed.is_empty() {
            self.free_doomed()?;
        }
        self.finish()
    }

    fn finish(&mut self) -> Result<(), HealError> {
        if !self.marks().is_empty() {
            let pending = self.marks().look(|marks| !marks.oldest(1).is_empty());
            if !pending && self.doomed.is_empty() {
                self.sync()?;
            }
            return Ok(());
        }
        self.port.quiet();
        self.check_stopped()?;
        self.marks().wait(IDLE);
        Ok(())
    }

    /// Carries all that is pending of one object.
    fn heal(&mut self, gfid: Gfid) -> Result<(), HealError> {
        let wanted = self.marks().look(|marks| marks.wanted(gfid));
        if !wanted.any() {
            return Ok(());
        }
        if found(self.port.source().object(gfid))?.is_none() {
            return self.heal_gone(gfid);
        }
        self.ensure(&[gfid])?;
        let wanted = self.marks().look(|marks| marks.wanted(gfid));
        if wanted.listing || wanted.names || wanted.bytes {
            if wanted.attributes {
                if self.send_object(gfid, MarkState::Owed)?.is_none() {
                    return Ok(());
                }
            } else {
                self.marks()
                    .carried(|marks| marks.carried_object(gfid, MarkState::Owed));
            }
            if wanted.listing {
                self.heal_listing(gfid)?;
            }
            self.heal_names(gfid)?;
            self.heal_bytes(gfid)?;
        }
        if self.send_object(gfid, MarkState::Carried(0))?.is_none() {
            // It was freed here meanwhile, and nothing else would look at what is owed of it.
            return self.heal_gone(gfid);
        }
        Ok(())
    }

    /// Makes sure that the copy has these objects, and has them of the right type: what is missing
    /// is marked whole and made; its content is left to its own marks.
    fn ensure(&mut self, gfids: &[Gfid]) -> Result<(), HealError> {
        let mut unknown: Vec<Gfid> = Vec::new();
        for gfid in gfids {
            if !self.known.contains_key(gfid) && !unknown.contains(gfid) {
                unknown.push(*gfid);
            }
        }
        for some in unknown.chunks(STATS_PER_ASK) {
            for (gfid, told) in some.iter().zip(self.stat(some)?) {
                if let Some(told) = told {
                    let file_type = file_type(&told.object);
                    self.know(
                        *gfid,
                        Seen {
                            file_type,
                            origin: Origin::Found,
                        },
                    );
                }
            }
        }
        for gfid in gfids {
            let there = self.known.get(gfid).map(|seen| seen.file_type);
            let Some(object) = found(self.port.source().object(*gfid))? else {
                continue;
            };
            if there != Some(file_type(&object)) {
                self.mark_whole(*gfid, &object)?;
                self.send_object(*gfid, MarkState::Carried(0))?;
            }
        }
        Ok(())
    }

    /// The copy has nothing of this object.
    fn mark_whole(&self, gfid: Gfid, object: &Object) -> Result<(), HealError> {
        self.marks().edit(|marks, record| {
            marks.mark(Touch::Object(gfid, Lacks::Attributes), record);
            match file_type(object) {
                libc::S_IFDIR => marks.mark_listing(gfid, record),
                libc::S_IFREG if object.size > 0 => {
                    marks.mark(Touch::Bytes(gfid, 0..TO_THE_END), record);
                }
                _ => {}
            }
        })?;
        Ok(())
    }

    /// Sends the object without names and bytes. `None`: the source has it no more. With
    /// [`MarkState::Carried`] (of any number) its mark may go after the next sync.
    fn send_object(&mut self, gfid: Gfid, after: MarkState) -> Result<Option<()>, HealError> {
        let (port, marks) = (self.port, self.marks());
        let seen = self.known.get(&gfid).copied();
        self.port.make_room(SMALL_CHANGE)?;
        let sent = with_keys(port, &[Key::Object(gfid)], || {
            let Some(mut step) = found(port.source().heal_object(gfid))? else {
                return Ok(None);
            };
            let object = step.object.unwrap_or_default();
            step.replace = seen.is_some_and(|seen| seen.file_type != file_type(&object));
            let number = port.send(Step::HealObject(step), Vec::new())?;
            let state = if after == MarkState::Owed {
                after
            } else {
                MarkState::Carried(number)
            };
            marks.carried(|marks| {
                marks.carried_object(gfid, state);
                if file_type(&object) == libc::S_IFREG {
                    marks.carried_bytes(gfid, object.size..TO_THE_END, number);
                }
            });
            Ok(Some((number, file_type(&object))))
        })?;
        let Some((number, file_type)) = sent else {
            return Ok(None);
        };
        self.count_sent(number, 0);
        if seen.is_none_or(|seen| seen.file_type != file_type) {
            self.know(
                gfid,
                Seen {
                    file_type,
                    origin: Origin::Made,
                },
            );
        }
        Ok(Some(()))
    }

    /// Between two objects only, so that nothing is forgotten that was just asked for.
    fn forget_known(&mut self) {
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
    }

    fn know(&mut self, gfid: Gfid, seen: Seen) {
        self.known.insert(gfid, seen);
    }

    /// What the copy has of these objects.
    fn stat(&self, gfids: &[Gfid]) -> Result<Vec<Option<Told>>, HealError> {
        let answers = self.ask(gfids.iter().map(|gfid| ask_stat(*gfid)).collect())?;
        let told = |answer: data::Result| {
            let sum = match answer.ok {
                Some(Answer::Sum(sum)) => sum,
                _ => 0,
            };
            let mut objects = answer.objects.into_iter();
            let object = objects.next()?;
            let parent = objects.next().and_then(|parent| parent.gfid);
            Some(Told {
                object,
                parent,
                sum,
            })
        };
        Ok(answers.into_iter().map(told).collect())
    }

    /// Asks the copy; as many answers as questions, none of them an error.
    fn ask(&self, ops: Vec<Op>) -> Result<Vec<data::Result>, HealError> {
        let asked = ops.len();
        let answers = self.port.ask(ops)?;
        if let Some(failed) = answers.iter().find(|answer| answer.errno != 0) {
            return Err(HealError::Nonsense(format!(
                "errno {} to a question",
                failed.errno
            )));
        }
        if answers.len() != asked {
            let got = answers.len();
            return Err(HealError::Nonsense(format!(
                "{got} answers to {asked} questions"
            )));
        }
        Ok(answers)
    }

    fn check_stopped(&self) -> Result<(), HealError> {
        if self.port.stopped() {
            Err(HealError::Stopped)
        } else {
            Ok(())
        }
    }

    fn count_sent(&mut self, number: u64, bytes: u64) {
        self.last_sent = self.last_sent.max(number);
        self.changes_sent += 1;
        self.changes_unsynced += 1;
        self.bytes_unsynced += bytes;
        self.progress.add_bytes(bytes);
    }

    fn sync_if_due(&mut self) -> Result<(), HealError> {
        if self.changes_unsynced >= SYNC_CHANGES || self.bytes_unsynced >= SYNC_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    /// Has the copy sync what it was sent, and drops the marks of it.
    fn sync(&mut self) -> Result<(), HealError> {
        self.port.confirmed_sync(self.last_sent)?;
        self.changes_unsynced = 0;
        self.bytes_unsynced = 0;
        let gone = self.marks().synced(self.last_sent)?;
        self.progress.add_marks(gone as u64);
        Ok(())
    }
}

/// [`HealPort::with_keys`] for work that has a result.
fn with_keys<T>(
    port: &dyn HealPort,
    keys: &[Key],
    work: impl FnOnce() -> Result<T, HealError>,
) -> Result<T, HealError> {
    let mut work = Some(work);
    let mut result = None;
    port.with_keys(keys, &mut || result = work.take().map(|work| work()))?;
    result.unwrap_or(Err(HealError::Gone(Gone)))
}
