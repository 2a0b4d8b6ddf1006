//! The journal: what was acknowledged is in it once, in an order that fits the times, and whoever
//! read it saw its beginning, as far as it had come.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::Violation;
use crate::faults::history::{Answer, Entry, Op, Time, Token, next_sum};

const AROUND: Duration = Duration::from_millis(500);

pub(super) fn judge(entries: &[Entry]) -> Vec<Violation> {
    let wholes = entries.iter().filter_map(|entry| match entry.answer() {
        Some(Answer::Records(records)) => Some(records),
        _ => None,
    });
    let wholes: Vec<&Vec<Token>> = wholes.collect();
    let appends: HashMap<Token, &Entry> = entries
        .iter()
        .filter_map(|entry| match entry.op {
            Op::Append(record) => Some((record, entry)),
            _ => None,
        })
        .collect();
    let mut found = Vec::new();
    let Some(whole) = wholes.first() else {
        return found;
    };
    let mut say = |what: String, from: Time, to: Time| {
        let related = |entry: &Entry| matches!(entry.op, Op::Append(_) | Op::ReadJournal);
        let near = (from.before(AROUND), to.after(AROUND));
        found.push(Violation::new(what, entries, near, related));
    };
    if wholes.iter().any(|other| other != whole) {
        say(
            "two readers of the finished journal differ".to_owned(),
            Time::NEVER,
            Time::NEVER,
        );
    }
    let mut places: BTreeMap<Token, usize> = BTreeMap::new();
    for (place, record) in whole.iter().enumerate() {
        match (appends.get(record), places.insert(*record, place)) {
            (None, _) => {
                say(
                    format!("record {place} {record:?} was never appended"),
                    Time(0),
                    Time(0),
                );
            }
            (Some(entry), Some(first)) => {
                let what = format!("{record:?} is in the journal twice, at {first} and {place}");
                say(what, entry.start, entry.end.unwrap_or(entry.start));
            }
            (Some(_), None) => {}
        }
    }
    for (record, entry) in &appends {
        if entry.answer().is_some() && !places.contains_key(record) {
            say(
                format!("{record:?} was acknowledged and is lost"),
                entry.start,
                entry.effect_until(),
            );
        }
    }
    if let Some((what, at)) = out_of_order(whole, &appends) {
        say(what, at, at);
    }
    for (what, entry) in false_readings(entries, whole, &places) {
        say(what, entry.start, entry.end.unwrap_or(entry.start));
    }
    found
}

/// A record that was acknowledged before another was begun lies before it.
fn out_of_order(whole: &[Token], appends: &HashMap<Token, &Entry>) -> Option<(String, Time)> {
    let mut latest: Option<&Entry> = None;
    for record in whole {
        let entry = appends.get(record)?;
        if let Some(before) = latest.filter(|before| entry.effect_until() < before.start) {
            let what = format!(
                "{record:?} was acknowledged at {} and lies behind {:?}, begun at {}",
                entry.effect_until(),
                before.op,
                before.start
            );
            return Some((what, entry.start));
        }
        if latest.is_none_or(|latest| entry.start > latest.start) {
            latest = Some(entry);
        }
    }
    None
}

fn false_readings<'a>(
    entries: &'a [Entry],
    whole: &[Token],
    places: &BTreeMap<Token, usize>,
) -> Vec<(String, &'a Entry)> {
    let mut sums = vec![0];
    for record in whole {
        sums.push(next_sum(sums[sums.len() - 1], *record));
    }
    // How many records were acknowledged, in the order of time.
    let mut acknowledged: Vec<(Time, usize)> = Vec::new();
    for entry in entries {
        if let (Op::Append(record), Some(_)) = (&entry.op, entry.answer())
            && let Some(place) = places.get(record)
        {
            acknowledged.push((entry.effect_until(), place + 1));
        }
    }
    acknowledged.sort();
    let mut most = 0;
    for (_, records) in &mut acknowledged {
        most = most.max(*records);
        *records = most;
    }
    let mut found = Vec::new();
    for entry in entries {
        match entry.answer() {
            Some(Answer::Prefix { records, sum }) => {
                let known = acknowledged.partition_point(|(at, _)| *at < entry.start);
                let least = known.checked_sub(1).map_or(0, |at| acknowledged[at].1);
                if sums.get(*records) != Some(sum) {
                    found.push((
                        format!("{records} records were read that are not its beginning"),
                        entry,
                    ));
                } else if *records < least {
                    let what =
                        format!("{records} records were read when {least} were acknowledged");
                    found.push((what, entry));
                }
            }
            Some(Answer::Torn(what)) if entry.op == Op::ReadJournal => {
                found.push((format!("a torn record in the journal: {what}"), entry));
            }
            _ => {}
        }
    }
    found
}
