//! An `SQLite` database that all clients insert into.

use std::path::Path;

use super::{Program, token};
use crate::faults::history::{Answer, Op, Token};
use crate::faults::seats::{Root, Seat};
use crate::sqlite::Sqlite;

const PROGRAM: u8 = 5;
/// How long a transaction waits for the others, ms: longer than any fault.
const BUSY_MS: u32 = 600_000;

#[derive(Default)]
pub(super) struct Rows {
    program: Option<(u64, Sqlite)>,
    inserted: u64,
}

pub(super) fn prepare(folder: &Path) {
    let made = Sqlite::start(&folder.join("db")).and_then(|mut sqlite| {
        sqlite.ask(
            "CREATE TABLE t(id INTEGER PRIMARY KEY); CREATE TABLE c(n INTEGER); \
             INSERT INTO c VALUES(0); SELECT 'made';",
        )
    });
    assert_eq!(made.as_deref(), Ok("made"));
}

pub(super) fn read_all(seat: &Seat, root: &Root) {
    let path = root.path.join(&seat.folder).join("db");
    seat.noted(Op::ReadRows, || {
        let mut sqlite = Sqlite::start(&path)?;
        let sound = sqlite.ask("PRAGMA integrity_check;")?;
        if sound != "ok" {
            return Ok(Answer::Torn(sound));
        }
        let ids = sqlite.ask("SELECT coalesce(group_concat(id, ' '), '') FROM t;")?;
        let rows: Option<Vec<Token>> = ids
            .split_whitespace()
            .map(|id| id.parse().ok().map(Token))
            .collect();
        let counted = sqlite.ask("SELECT n FROM c;")?.parse().ok();
        match (rows, counted) {
            (Some(rows), Some(counted)) => Ok(Answer::Rows(rows, counted)),
            _ => Ok(Answer::Torn(ids)),
        }
    });
}

impl Rows {
    fn insert(&mut self, seat: &Seat, root: &Root, row: Token) -> Result<Answer, String> {
        let mut sqlite = match self.program.take().filter(|(of, _)| *of == root.generation) {
            Some((_, sqlite)) => sqlite,
            None => {
                let mut sqlite = Sqlite::start(&root.path.join(&seat.folder).join("db"))?;
                sqlite.ask(&format!("PRAGMA busy_timeout={BUSY_MS};"))?;
                sqlite
            }
        };
        // The last line is printed when the commit was done.
        let [number, _done] = sqlite.ask_for(&format!(
            "BEGIN IMMEDIATE; INSERT INTO t VALUES({}); UPDATE c SET n = n + 1; SELECT n FROM c; \
             COMMIT; SELECT 'done';",
            row.0
        ))?;
        self.program = Some((root.generation, sqlite));
        number
            .parse()
            .map(Answer::Number)
            .map_err(|_| format!("sqlite3 said {number}"))
    }
}

impl Program for Rows {
    fn step(&mut self, seat: &mut Seat, root: &Root) {
        self.inserted += 1;
        let row = token(seat.client.id, PROGRAM, self.inserted);
        let id = seat.history.begin(seat.client.id, Op::Insert(row));
        let outcome = self.insert(seat, root, row);
        seat.ended(id, outcome);
    }
}
