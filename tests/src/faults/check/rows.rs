//! The database: each acknowledged transaction is there once, and the numbers they were given are
//! in the order of time.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::Violation;
use crate::faults::history::{Answer, Entry, Op, Time, Token};

const AROUND: Duration = Duration::from_secs(1);

pub(super) fn judge(entries: &[Entry]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut say = |what: String, at: &Entry| {
        let near = (
            at.start.before(AROUND),
            at.end.unwrap_or(at.start).after(AROUND),
        );
        let related = |entry: &Entry| matches!(entry.op, Op::Insert(_));
        found.push(Violation::new(what, entries, near, related));
    };
    let mut numbered: Vec<(u64, &Entry)> = Vec::new();
    let mut tried: HashMap<Token, &Entry> = HashMap::new();
    for entry in entries {
        if let Op::Insert(row) = entry.op {
            tried.insert(row, entry);
            if let Some(Answer::Number(number)) = entry.answer() {
                numbered.push((*number, entry));
            }
        }
    }
    numbered.sort_by_key(|(number, _)| *number);
    let mut begun = Time(0);
    for pair in numbered.windows(2) {
        let [(first, one), (second, other)] = pair else {
            continue;
        };
        begun = begun.max(one.start);
        if first == second {
            say(format!("two transactions were number {first}"), other);
        } else if other.end.unwrap_or(Time::NEVER) < begun {
            say(
                format!("transaction {second} ended before one of a lower number began"),
                other,
            );
        }
    }
    for entry in entries {
        let (rows, count) = match entry.answer() {
            Some(Answer::Rows(rows, count)) => (rows, count),
            Some(Answer::Torn(what)) if entry.op == Op::ReadRows => {
                say(format!("the database is damaged: {what}"), entry);
                continue;
            }
            _ => continue,
        };
        let there: BTreeSet<Token> = rows.iter().copied().collect();
        let lost = tried
            .iter()
            .find(|(row, of)| of.answer().is_some() && !there.contains(row));
        if let Some((row, of)) = lost {
            say(format!("{row:?} was committed and is lost"), of);
        }
        if there.len() != rows.len() || rows.len() as u64 != *count {
            let what = format!(
                "{} rows, {} different, {count} were counted",
                rows.len(),
                there.len()
            );
            say(what, entry);
        }
        if let Some(row) = there.iter().find(|row| !tried.contains_key(row)) {
            say(format!("{row:?} was never inserted"), entry);
        }
    }
    found
}
