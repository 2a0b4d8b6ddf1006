//! An error reaches a program only where the design allows it.

use std::time::Duration;

use super::{Rules, Violation};
use crate::faults::history::{Entry, Op, Outcome};

const AROUND: Duration = Duration::from_millis(500);

pub(super) fn judge(entries: &[Entry], rules: &Rules) -> Vec<Violation> {
    let mut found = Vec::new();
    for entry in entries {
        let what = match &entry.outcome {
            Outcome::Answered(_) => continue,
            Outcome::Pending => "an operation was never answered".to_owned(),
            Outcome::Failed(_) if rules.excused(entry) => continue,
            Outcome::Failed(error) => {
                format!("an application saw an error without reason: {error}")
            }
        };
        let near = (entry.start.before(AROUND), entry.start.after(AROUND));
        let of_it = |other: &Entry| other.client == entry.client;
        found.push(Violation::new(
            format!("{what}\n    {entry}"),
            entries,
            near,
            of_it,
        ));
    }
    found
}

/// Whether this is what a client answers that lost its session.
///
/// `SQLite` has words of its own. A file it may not open is EIO when its log says so. That the
/// database is malformed is what it says of a read that answers EIO, too: then, and only then, its
/// descriptor of the database answers EIO when it is asked afterwards ([`crate::sqlite`] adds that).
/// The database itself is looked through at the end of each round.
pub(super) fn is_of_a_lost_session(entry: &Entry) -> bool {
    match &entry.outcome {
        Outcome::Failed(error) if matches!(entry.op, Op::Insert(_)) => {
            ["disk I/O error", "(5) open(", "os error 5)"]
                .iter()
                .any(|eio| error.contains(eio))
        }
        Outcome::Failed(error) => error.contains("os error 5)"),
        Outcome::Pending | Outcome::Answered(_) => false,
    }
}
