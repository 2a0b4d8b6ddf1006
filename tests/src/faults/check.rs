//! The judgement of a history: pure, so that it can be shown histories that lie.
//!
//! Every operation took effect at one moment between its call and its return, in one order for
//! everybody. What is documented otherwise is in [`Rules`]: a mount may believe a name for a while,
//! and an error is excused where the design allows it. An operation that failed may have been done
//! or not, at any time after its call, once.

mod cells;
mod errors;
mod journal;
mod names;
mod rows;
mod sections;

use std::fmt;
use std::time::Duration;

use super::history::{ClientId, Entry, Held, Time};

/// Operations shown around a violation.
const SHOWN_MAX: usize = 40;

/// What a client may do otherwise than an ordinary disk.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// How long a client believes a name, by number of the client.
    pub believes_names: Vec<Duration>,
    /// Times in which a client stood still: what it knew grew old meanwhile.
    pub still: Vec<Span>,
    /// Times in which errors are allowed.
    pub excuses: Vec<Excuse>,
}

/// A time of one client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Whose.
    pub client: ClientId,
    /// Its begin.
    pub from: Time,
    /// Its end.
    pub to: Time,
}

/// Why an error is no violation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// The client was killed: its operations fail with whatever the kernel says.
    ClientKilled,
    /// The client may have been put out for its silence, or every copy was started anew: a change
    /// under way answers EIO, and a file whose lock is lost too.
    SessionLost,
}

/// Allows errors of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Excuse {
    /// When.
    pub span: Span,
    /// Why.
    pub why: Why,
}

/// A promise that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Which, in a sentence.
    pub what: String,
    /// The operations around it.
    pub around: Vec<String>,
}

impl Violation {
    /// With the operations among `entries` that are `related` and near to that time.
    fn new(
        what: String,
        entries: &[Entry],
        (from, to): (Time, Time),
        related: impl Fn(&Entry) -> bool,
    ) -> Self {
        let near = |entry: &&Entry| {
            entry.start <= to && entry.end.unwrap_or(Time::NEVER) >= from && related(entry)
        };
        let mut around: Vec<String> = entries.iter().filter(near).map(Entry::to_string).collect();
        let skipped = around.len().saturating_sub(SHOWN_MAX);
        if skipped > 0 {
            around.drain(..skipped);
            around.insert(0, format!("({skipped} before these)"));
        }
        Violation { what, around }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        self.around
            .iter()
            .try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// What was found in a history.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verdict {
    /// The promises that were broken.
    pub violations: Vec<Violation>,
    /// Parts that have too many possible orders to be judged.
    pub undecided: usize,
}

/// Judges a history whose last operations read everything after all changes had ended.
pub fn judge(entries: &[Entry], rules: &Rules) -> Verdict {
    let mut verdict = names::judge(entries, rules);
    for found in [
        errors::judge(entries, rules),
        cells::judge(entries),
        journal::judge(entries),
        sections::judge(entries, rules),
        rows::judge(entries),
    ] {
        verdict.violations.extend(found);
    }
    verdict
}

impl Rules {
    fn believes(&self, client: ClientId) -> Duration {
        let believes = self.believes_names.get(usize::from(client.0));
        believes.copied().unwrap_or_default()
    }

    /// How old what `client` knows of names may be at that time.
    fn staleness(&self, client: ClientId, at: Time) -> Duration {
        let believes = self.believes(client);
        if believes.is_zero() {
            return believes;
        }
        // What it knew before it stood still it may believe for that long once more.
        let mut reach = at.before(believes);
        for _ in 0..self.still.len() {
            let earlier = self.still.iter();
            let earlier = earlier.filter(|span| {
                span.client == client && span.from < reach && span.to.after(believes) >= reach
            });
            match earlier.map(|span| span.from.before(believes)).min() {
                Some(further) if further < reach => reach = further,
                _ => break,
            }
        }
        at.since(reach)
    }

    /// When it is last sure that a client held what it said to have held until its write was
    /// acknowledged: one that stood still meanwhile may have been told late of a write that was
    /// made before, and have lost the lock since.
    fn held_until(&self, client: ClientId, held: Held) -> Time {
        let meanwhile =
            |span: &&Span| span.client == client && held.since < span.to && span.from < held.until;
        let stood_still = self.still.iter().filter(meanwhile);
        let from = stood_still.map(|span| span.from.max(held.since)).min();
        from.unwrap_or(held.until)
    }

    fn excused(&self, entry: &Entry) -> bool {
        let end = entry.end.unwrap_or(Time::NEVER);
        self.excuses.iter().any(|Excuse { span, why }| {
            let within = span.client == entry.client && span.from <= end && entry.start <= span.to;
            within && (*why == Why::ClientKilled || errors::is_of_a_lost_session(entry))
        })
    }
}

#[cfg(test)]
mod tests;
