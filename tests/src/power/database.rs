//! An `SQLite` database: one row a transaction, acknowledged when the program says so.

use std::io;
use std::path::Path;
use std::process::Command;

use super::{Expect, Work};
use crate::sqlite::Sqlite;

#[derive(Default)]
pub(super) struct Database {
    program: Option<Sqlite>,
    tried: u64,
    acknowledged: u64,
}

/// Sends SQL whose last statement prints `answer`.
fn run(program: &mut Sqlite, sql: &str, answer: &str) -> io::Result<()> {
    match program.ask(sql) {
        Ok(line) if line == answer => Ok(()),
        Ok(line) => Err(io::Error::other(format!("sqlite3 said {line:?}"))),
        Err(error) => Err(io::Error::other(error)),
    }
}

impl Work for Database {
    fn name(&self) -> &'static str {
        "database"
    }

    fn begin(&mut self, folder: &Path) -> io::Result<()> {
        let mut program = Sqlite::start(&folder.join("db")).map_err(io::Error::other)?;
        // FULL does not sync the directory that the journal is removed from: a commit would be undone
        // by a power cut on any file system.
        let sql = "PRAGMA synchronous=EXTRA; CREATE TABLE t(n INTEGER PRIMARY KEY, text TEXT); \
                   SELECT 'made';";
        run(&mut program, sql, "made")?;
        self.program = Some(program);
        Ok(())
    }

    fn step(&mut self) -> io::Result<()> {
        let program = self.program.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let number = self.tried;
        self.tried += 1;
        let text = "x".repeat(number as usize * 37 % 900);
        let sql = format!("INSERT INTO t VALUES({number}, '{text}'); SELECT {number};");
        run(program, &sql, &number.to_string())?;
        self.acknowledged = self.tried;
        Ok(())
    }

    fn check(&mut self, folder: &Path, _expect: Expect) -> Result<(), String> {
        self.program = None;
        let ran = Command::new("sqlite3")
            .arg(folder.join("db"))
            .arg("PRAGMA integrity_check; SELECT count(*), max(n) + 1 FROM t;")
            .output()
            .map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&ran.stdout);
        let mut lines = said.lines();
        let sound = lines.next() == Some("ok");
        let counts = lines.next().and_then(|line| line.split_once('|'));
        let rows = counts
            .filter(|(rows, next)| rows == next)
            .and_then(|(rows, _)| rows.parse::<u64>().ok());
        // Without a row there is no highest number.
        let rows = rows.or((counts == Some(("0", ""))).then_some(0));
        match rows {
            Some(rows) if sound && (self.acknowledged..=self.tried).contains(&rows) => Ok(()),
            _ => Err(format!(
                "{} rows were committed, {} tried; sqlite3 says {said}{}",
                self.acknowledged,
                self.tried,
                String::from_utf8_lossy(&ran.stderr)
            )),
        }
    }
}
