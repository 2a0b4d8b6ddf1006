//! What `volume heal … info` tells, and the switch of `volume heal … enable|disable`.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mortar_common::Signal;
use mortar_proto::control::{BrickHeal, HealEntry};

use super::marks::{Scope, Summary};
use super::partner::PartnerMarks;
use super::touch::TO_THE_END;
use crate::brick::HealSource;

/// Entries listed by name; more are only counted.
const ENTRIES_LISTED: usize = 1_000;
/// Files whose size is asked for to know how much of them is pending.
const SIZES_ASKED: usize = 10_000;
/// What carrying one mark costs beside its bytes, in bytes that could be sent in that time.
const MARK_COST_BYTES: u64 = 16 * 1024;

/// The switch of `volume heal V enable|disable`, shared by all healers of a volume.
#[derive(Debug, Default)]
pub struct HealControl {
    switch: Mutex<Switch>,
    changed: Signal,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Switch {
    #[default]
    Enabled,
    Disabled,
}

impl HealControl {
    /// Healing goes on.
    pub fn enable(&self) {
        *self.lock() = Switch::Enabled;
        self.changed.notify_all();
    }

    /// Healing pauses; changes are marked as before.
    pub fn disable(&self) {
        *self.lock() = Switch::Disabled;
    }

    /// Sleeps until healing is on, at most for `time`; says whether it is.
    pub fn wait_enabled(&self, time: Duration) -> bool {
        let disabled = |switch: &mut Switch| *switch == Switch::Disabled;
        let switch = self.changed.wait_timeout_while(self.lock(), time, disabled);
        *switch == Switch::Enabled
    }

    fn lock(&self) -> MutexGuard<'_, Switch> {
        self.switch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counters of one healer's run.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    bytes: AtomicU64,
    marks: AtomicU64,
    compared: AtomicU64,
}

impl Default for Progress {
    fn default() -> Self {
        Progress {
            started: Instant::now(),
            bytes: AtomicU64::new(0),
            marks: AtomicU64::new(0),
            compared: AtomicU64::new(0),
        }
    }
}

impl Progress {
    /// Of a healer that starts now.
    pub fn new() -> Self {
        Progress::default()
    }

    /// Bytes of content sent so far.
    pub fn bytes_healed(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Marks that went so far.
    pub fn marks_healed(&self) -> u64 {
        self.marks.load(Ordering::Relaxed)
    }

    /// Objects compared so far.
    pub fn compared(&self) -> u64 {
        self.compared.load(Ordering::Relaxed)
    }

    pub(super) fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_marks(&self, marks: u64) {
        self.marks.fetch_add(marks, Ordering::Relaxed);
    }

    pub(super) fn add_compared(&self, objects: u64) {
        self.compared.fetch_add(objects, Ordering::Relaxed);
    }

    /// Seconds left at the speed so far; 0 when that cannot be told yet.
    fn seconds_left(&self, bytes: u64, marks: u64) -> u64 {
        let work = |bytes: u64, marks: u64| bytes.saturating_add(marks * MARK_COST_BYTES) as f64;
        let done = work(self.bytes_healed(), self.marks_healed());
        if done == 0.0 {
            return 0;
        }
        let seconds = self.started.elapsed().as_secs_f64();
        (seconds * work(bytes, marks) / done).ceil() as u64
    }
}

/// What `heal info` says of one absent or syncing copy: `partner` is its `HOST:/path`. `progress`
/// is there while it is being healed. Host, path and status are left to the caller.
pub fn report(
    marks: &PartnerMarks,
    source: &dyn HealSource,
    progress: Option<&Progress>,
    partner: &str,
) -> BrickHeal {
    let (summaries, total, count, everything) = marks.look(|marks| {
        let scope = marks.everything().map(|_| marks.scope());
        let summaries = marks.summaries(ENTRIES_LISTED);
        (summaries, marks.objects(), marks.len(), scope)
    });
    let mut entries: Vec<HealEntry> = Vec::with_capacity(summaries.len() + 1);
    if let Some(scope) = everything {
        let what = match scope {
            Scope::All => "all of",
            Scope::Touched => "what was changed lately on",
        };
        let compared = progress.map_or(0, Progress::compared);
        entries.push(HealEntry {
            path: "/".to_owned(),
            why: format!(
                "{what} {partner} is compared, because it is not known what it lacks ({compared} files and directories compared so far)"
            ),
            healing: progress.is_some(),
            ..Default::default()
        });
    }
    for summary in &summaries {
        let gfid = summary.gfid.to_string();
        entries.push(HealEntry {
            path: source
                .path_of(summary.gfid)
                .unwrap_or_else(|| format!("<gfid:{gfid}>")),
            gfid,
            why: why(summary, partner),
            split_brain: false,
            healing: progress.is_some(),
        });
    }
    let bytes_pending = bytes_pending(marks, source);
    let total = (total + usize::from(everything.is_some())) as u64;
    BrickHeal {
        entries,
        total,
        healing: if progress.is_some() { total } else { 0 },
        bytes_pending,
        bytes_healed: progress.map_or(0, Progress::bytes_healed),
        seconds_left: progress.map_or(0, |p| p.seconds_left(bytes_pending, count as u64)),
        ..Default::default()
    }
}

fn bytes_pending(marks: &PartnerMarks, source: &dyn HealSource) -> u64 {
    // The sizes are read before the marks are held, so that no change waits for the disk.
    let mut open_ended = Vec::new();
    marks.look(|marks| {
        marks.bytes_pending(|gfid| {
            if open_ended.len() < SIZES_ASKED {
                open_ended.push(gfid);
            }
            0
        })
    });
    let sizes: std::collections::HashMap<_, _> = open_ended
        .into_iter()
        .filter_map(|gfid| source.object(gfid).ok().map(|object| (gfid, object.size)))
        .collect();
    marks.look(|marks| marks.bytes_pending(|gfid| sizes.get(&gfid).copied().unwrap_or(0)))
}

fn why(summary: &Summary, partner: &str) -> String {
    let mut parts = Vec::new();
    if summary.listing {
        parts.push("any name in it".to_owned());
    } else if summary.names > 0 {
        parts.push(format!("{} in it", counted(summary.names, "name")));
    }
    if !summary.ranges.is_empty() {
        parts.push(bytes_in_words(&summary.ranges));
    }
    if summary.attributes {
        parts.push("its attributes".to_owned());
    }
    let what = parts.join(" and ");
    if summary.pending {
        format!("{what} changed while {partner} was away")
    } else {
        format!("{what} healed, and {partner} has yet to make that durable")
    }
}

fn bytes_in_words(ranges: &[Range<u64>]) -> String {
    if ranges.iter().any(|range| range.end == TO_THE_END) {
        let start = ranges.first().map_or(0, |range| range.start);
        return if start == 0 {
            "its content".to_owned()
        } else {
            format!("its content from byte {start} on")
        };
    }
    let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    format!("{bytes} bytes in {}", counted(ranges.len(), "place"))
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 {
        format!("1 {what}")
    } else {
        format!("{count} {what}s")
    }
}
