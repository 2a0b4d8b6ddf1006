//! Overwritten places: each is a register. Values are written once, so a register's history is in
//! one order exactly when (Gibbons and Korach) no two values *must* have been there at overlapping
//! times, and no value had its only time inside that of another.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Violation;
use crate::faults::history::{Answer, Cell, Entry, Op, Outcome, Time, Token};

const AROUND: Duration = Duration::from_millis(500);
/// A write of a client that was killed is over by then: its session is.
const LATE_WRITE: Duration = Duration::from_secs(30);

/// When a value was there: from the first moment somebody was told of it to the last at which
/// somebody was not told yet. If it begins after it ends, one moment between was enough.
#[derive(Clone, Copy, Debug)]
struct Zone {
    value: Token,
    told: Time,
    asked: Time,
}

impl Zone {
    fn is_forced(self) -> bool {
        self.told < self.asked
    }
}

pub(super) fn judge(entries: &[Entry]) -> Vec<Violation> {
    let mut cells: BTreeMap<Cell, Vec<&Entry>> = BTreeMap::new();
    for entry in entries {
        if let Op::Write(cell, _) | Op::Read(cell) = entry.op {
            cells.entry(cell).or_default().push(entry);
        }
    }
    let judged = cells.into_iter().flat_map(|(cell, of_cell)| {
        let found = judge_cell(cell, &of_cell);
        found.into_iter().map(move |(what, from, to)| {
            let related =
                |entry: &Entry| matches!(entry.op, Op::Write(c, _) | Op::Read(c) if c == cell);
            Violation::new(
                what,
                entries,
                (from.before(AROUND), to.after(AROUND)),
                related,
            )
        })
    });
    judged.collect()
}

fn judge_cell(cell: Cell, entries: &[&Entry]) -> Vec<(String, Time, Time)> {
    let mut found = Vec::new();
    let mut zones: BTreeMap<Token, Zone> = BTreeMap::new();
    for entry in entries {
        if let Op::Write(_, value) = entry.op {
            let zone = Zone {
                value,
                told: entry.effect_until(),
                asked: entry.start,
            };
            zones.insert(value, zone);
        }
    }
    for read in entries {
        let end = read.end.unwrap_or(Time::NEVER);
        let problem = match read.answer() {
            Some(Answer::Token(value)) if matches!(read.op, Op::Read(_)) => {
                match zones.get_mut(value) {
                    Some(zone) if wrote_before(entries, *value, end) => {
                        zone.told = zone.told.min(end);
                        zone.asked = zone.asked.max(read.start);
                        continue;
                    }
                    _ => format!("{cell:?}: {value:?} was read and never written"),
                }
            }
            Some(Answer::Torn(what)) if !is_being_written(entries, read) => {
                format!("{cell:?}: a torn record was read ({what})")
            }
            _ => continue,
        };
        found.push((problem, read.start, end));
    }
    let written = |zone: &Zone| zone.told < Time::NEVER;
    let mut zones: Vec<Zone> = zones.into_values().filter(written).collect();
    zones.sort_by_key(|zone| zone.told.min(zone.asked));
    found.extend(overlaps(cell, &zones));
    found
}

fn overlaps(cell: Cell, zones: &[Zone]) -> Option<(String, Time, Time)> {
    let forced = zones.iter().filter(|zone| zone.is_forced());
    let mut last: Option<Zone> = None;
    let mut forced_zones: Vec<Zone> = Vec::new();
    for zone in forced {
        if let Some(last) = last.filter(|last| zone.told < last.asked) {
            let what = format!(
                "{cell:?}: {:?}, known from {} on, was there again at {}, although {:?} was known \
                 from {} on until {}: an acknowledged write was lost, or a read was stale",
                last.value, last.told, last.asked, zone.value, zone.told, zone.asked
            );
            return Some((what, last.told, last.asked));
        }
        last = Some(*zone);
        forced_zones.push(*zone);
    }
    for zone in zones.iter().filter(|zone| !zone.is_forced()) {
        let at = forced_zones.partition_point(|other| other.told < zone.asked);
        let around = at.checked_sub(1).map(|at| forced_zones[at]);
        if let Some(around) = around.filter(|around| zone.told < around.asked) {
            let what = format!(
                "{cell:?}: {:?} was written between {} and {}, but {:?} was there from {} to {}: \
                 an acknowledged write was lost, or a read was stale",
                zone.value, zone.asked, zone.told, around.value, around.told, around.asked
            );
            return Some((what, around.told, around.asked));
        }
    }
    None
}

fn wrote_before(entries: &[&Entry], value: Token, end: Time) -> bool {
    entries
        .iter()
        .any(|entry| entry.start <= end && matches!(entry.op, Op::Write(_, v) if v == value))
}

fn is_being_written(entries: &[&Entry], read: &Entry) -> bool {
    entries.iter().any(|write| {
        let until = match write.outcome {
            Outcome::Answered(_) => write.effect_until(),
            Outcome::Pending => Time::NEVER,
            Outcome::Failed(_) => write.end.unwrap_or(Time::NEVER).after(LATE_WRITE),
        };
        matches!(write.op, Op::Write(..))
            && write.start <= read.end.unwrap_or(Time::NEVER)
            && read.start <= until
    })
}
