//! Figures of a run: what was done, what happened, how long programs stood still.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::history::{Entry, Op, Outcome};
use super::nemesis::{Done, Report};
use super::round::is_timed;

/// Figures of one round, or of many.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    rounds: u64,
    /// Of these.
    rounds_of_three_copies: u64,
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
    pub(super) fn of(copies: usize, entries: &[Entry], report: &Report, undecided: usize) -> Self {
        let mut summary = Summary {
            rounds: 1,
            rounds_of_three_copies: u64::from(copies == 3),
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
            summary.stalled(&group.label, Duration::ZERO, 1);
        }
        for entry in entries.iter().filter(|entry| is_timed(entry)) {
            let Some(end) = entry.end else { continue };
            // Of what goes on from one group into the next, the longer part says whose it is.
            let shared = |group: &&Done| end.min(group.to).since(entry.start.max(group.from));
            let concerned = report
                .groups
                .iter()
                .filter(|group| !group.hit.contains(&usize::from(entry.client.0)));
            if let Some(group) = concerned.max_by_key(shared) {
                let took = shared(&group);
                if !took.is_zero() {
                    summary.stalled(&group.label, end.since(entry.start), 0);
                }
            }
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
        self.rounds_of_three_copies += other.rounds_of_three_copies;
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

    /// All of it, for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "{} rounds, {} of them with three copies",
                self.rounds, self.rounds_of_three_copies
            ),
            format!("{} faults: {}", self.faults(), list(self.faults.iter())),
            format!(
                "{} operations: {}; {} answered an error that was excused, {} spaces of names were \
                 not judged",
                self.operations(),
                list(self.operations.iter()),
                self.errors,
                self.undecided
            ),
            format!("{} failovers", self.failovers),
            format!(
                "{} heals ended, {} were interrupted, {} were over before they could be disturbed",
                self.heals, self.heals_interrupted, self.heals_missed
            ),
        ];
        lines.extend(self.stalls.iter().map(|(label, (longest, count))| {
            let ms = longest.as_millis();
            format!("longest stall {ms} ms: {label} ({count} times)")
        }));
        lines
    }

    /// How many rounds were on a volume of three copies.
    pub fn rounds_of_three_copies(&self) -> u64 {
        self.rounds_of_three_copies
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

fn list<K: fmt::Display>(counts: impl Iterator<Item = (K, impl fmt::Display)>) -> String {
    let all: Vec<String> = counts
        .map(|(kind, count)| format!("{kind} {count}"))
        .collect();
    all.join(", ")
}
