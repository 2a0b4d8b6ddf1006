//! Figures of a run: what was done, what happened, how long programs stood still.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::history::{Entry, Op, Outcome, Time};
use super::nemesis::Report;
use super::round::is_timed;

/// Figures of one round, or of many.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    rounds: u64,
    faults: BTreeMap<String, u64>,
    operations: BTreeMap<&'static str, u64>,
    /// Errors that were excused.
    errors: u64,
    /// By kind of fault: the longest operation, and how often it was.
    stalls: BTreeMap<String, (Duration, u64)>,
    failovers: u64,
    heals: u64,
    heals_interrupted: u64,
    heals_missed: u64,
    undecided: usize,
}

impl Summary {
    /// Of one round.
    pub(super) fn of(entries: &[Entry], report: &Report, undecided: usize) -> Self {
        let mut summary = Summary {
            rounds: 1,
            heals_missed: report.heals_missed,
            undecided,
            ..Summary::default()
        };
        for (fault, _) in &report.faults {
            *summary.faults.entry(fault.to_string()).or_default() += 1;
        }
        for entry in entries {
            *summary.operations.entry(kind_of(&entry.op)).or_default() += 1;
            summary.errors += u64::from(matches!(entry.outcome, Outcome::Failed(_)));
        }
        for group in &report.groups {
            let overlaps = |entry: &&Entry| {
                let end = entry.end.unwrap_or(Time::NEVER);
                end >= group.from
                    && entry.start <= group.to
                    && !group.hit.contains(&usize::from(entry.client.0))
            };
            let timed = entries
                .iter()
                .filter(|entry| is_timed(entry))
                .filter(overlaps);
            let longest = timed
                .filter_map(|entry| Some(entry.end?.since(entry.start)))
                .max();
            summary.stalled(&group.label, longest.unwrap_or_default(), 1);
        }
        summary
    }

    /// What the bricks say of themselves.
    pub(super) fn of_logs(logs: impl Iterator<Item = PathBuf>) -> Self {
        let mut summary = Summary::default();
        for log in logs {
            let text = fs::read(&log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let count = |words: &str| text.matches(words).count() as u64;
            summary.failovers += count("everything received is applied");
            summary.heals += count("the heal ended");
            summary.heals_interrupted += count("the heal is interrupted");
        }
        summary
    }

    /// Adds another's figures.
    pub fn add(&mut self, other: &Summary) {
        self.rounds += other.rounds;
        for (fault, count) in &other.faults {
            *self.faults.entry(fault.clone()).or_default() += count;
        }
        for (kind, count) in &other.operations {
            *self.operations.entry(kind).or_default() += count;
        }
        for (label, (longest, count)) in &other.stalls {
            self.stalled(label, *longest, *count);
        }
        self.errors += other.errors;
        self.failovers += other.failovers;
        self.heals += other.heals;
        self.heals_interrupted += other.heals_interrupted;
        self.heals_missed += other.heals_missed;
        self.undecided += other.undecided;
    }

    fn stalled(&mut self, label: &str, longest: Duration, count: u64) {
        let known = self.stalls.entry(label.to_owned()).or_default();
        known.0 = known.0.max(longest);
        known.1 += count;
    }

    /// In one line.
    pub fn line(&self) -> String {
        let worst = self.stalls.iter().max_by_key(|(_, (longest, _))| longest);
        let worst = worst.map_or_else(String::new, |(label, (longest, _))| {
            format!(", longest stall {} ms ({label})", longest.as_millis())
        });
        format!(
            "{} faults, {} operations{worst}",
            self.faults(),
            self.operations()
        )
    }

    /// How many faults were made.
    pub fn faults(&self) -> u64 {
        self.faults.values().sum()
    }

    /// How many operations were recorded.
    pub fn operations(&self) -> u64 {
        self.operations.values().sum()
    }
}

fn kind_of(op: &Op) -> &'static str {
    match op {
        Op::Make(..) => "make",
        Op::Fill(_) => "fill",
        Op::Put(..) => "replace",
        Op::Remove(_) => "remove",
        Op::Move(..) => "rename",
        Op::Look(_) => "look",
        Op::List(_) => "list",
        Op::Write(..) => "overwrite",
        Op::Read(_) => "read",
        Op::Append(_) => "append",
        Op::ReadJournal => "read the journal",
        Op::Section(..) => "locked section",
        Op::Insert(_) => "transaction",
        Op::ReadRows => "read the database",
        Op::Other(what) => what,
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} rounds, {} faults, {} operations ({} excused errors), {} failovers, {} heals \
             ended and {} interrupted; {} heals were over before they could be disturbed, {} \
             spaces of names were not judged",
            self.rounds,
            self.faults(),
            self.operations(),
            self.errors,
            self.failovers,
            self.heals,
            self.heals_interrupted,
            self.heals_missed,
            self.undecided
        )?;
        writeln!(f, "operations: {}", list(self.operations.iter()))?;
        writeln!(f, "faults: {}", list(self.faults.iter()))?;
        writeln!(f, "longest stall by what happened (times):")?;
        for (label, (longest, count)) in &self.stalls {
            writeln!(f, "  {:>6} ms  {label} ({count})", longest.as_millis())?;
        }
        Ok(())
    }
}

fn list<K: fmt::Display>(counts: impl Iterator<Item = (K, impl fmt::Display)>) -> String {
    let all: Vec<String> = counts
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect();
    all.join(", ")
}
