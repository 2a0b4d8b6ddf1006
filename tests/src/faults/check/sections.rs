//! Locks: nobody else wrote while one held the lock, and each found what the last one wrote.

use std::collections::HashMap;
use std::time::Duration;

use super::{Rules, Violation};
use crate::faults::history::{Answer, Entry, Held, Lock, Op, Time, Token};

const AROUND: Duration = Duration::from_secs(1);

struct Section<'a> {
    held: Held,
    wrote: Token,
    entry: &'a Entry,
}

pub(super) fn judge(entries: &[Entry], rules: &Rules) -> Vec<Violation> {
    let locks = [Lock::Flock, Lock::Fcntl];
    locks
        .iter()
        .flat_map(|lock| judge_lock(entries, rules, *lock))
        .collect()
}

fn judge_lock(entries: &[Entry], rules: &Rules, lock: Lock) -> Vec<Violation> {
    let mut sections: Vec<Section> = Vec::new();
    let mut unknown: HashMap<Token, &Entry> = HashMap::new();
    for entry in entries {
        match (&entry.op, entry.answer()) {
            (Op::Section(of, wrote), Some(Answer::Section(held))) if *of == lock => {
                let until = rules.held_until(entry.client, *held);
                sections.push(Section {
                    held: Held { until, ..*held },
                    wrote: *wrote,
                    entry,
                });
            }
            (Op::Section(of, wrote), None) if *of == lock => {
                unknown.insert(*wrote, entry);
            }
            _ => {}
        }
    }
    sections.sort_by_key(|section| section.held.since);
    let related = |entry: &Entry| matches!(entry.op, Op::Section(of, _) if of == lock);
    let mut found = Vec::new();
    for entry in entries.iter().filter(|entry| related(entry)) {
        if let Some(Answer::Torn(what)) = entry.answer() {
            let near = (entry.start.before(AROUND), entry.start.after(AROUND));
            let what = format!("{lock:?}: a torn number was read under the lock ({what})");
            found.push(Violation::new(what, entries, near, related));
        }
    }
    for pair in sections.windows(2) {
        let [first, second] = pair else { continue };
        if let Some(what) = problem(lock, first, second, &unknown) {
            let from = first.entry.start.before(AROUND);
            let to = second.held.until.after(AROUND);
            found.push(Violation::new(what, entries, (from, to), related));
        }
    }
    found
}

/// What is wrong between two sections of which no other is known to lie between.
fn problem(
    lock: Lock,
    first: &Section<'_>,
    second: &Section<'_>,
    unknown: &HashMap<Token, &Entry>,
) -> Option<String> {
    if second.held.since < first.held.until {
        return Some(format!(
            "{lock:?}: client {} held the lock from {} until {}, and client {} from {} on",
            first.entry.client.0,
            first.held.since,
            first.held.until,
            second.entry.client.0,
            second.held.since
        ));
    }
    let read = second.held.read;
    // Who failed may have written, at any time after its call.
    let may_be = |entry: &&Entry| entry.start < second.held.until;
    if read == first.wrote || unknown.get(&read).is_some_and(may_be) {
        return None;
    }
    let (wrote, at): (Token, Time) = (first.wrote, first.held.until);
    Some(format!(
        "{lock:?}: {wrote:?} was written at {at} under the lock, the next holder read {read:?}"
    ))
}
