//! The program `sqlite3`, asked line by line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A running `sqlite3`; it ends at its first error, and when this is dropped.
pub struct Sqlite {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    errors: File,
}

impl Sqlite {
    /// Starts it on a database.
    ///
    /// # Errors
    /// In words, when it cannot be started.
    pub fn start(database: &Path) -> Result<Self, String> {
        let errors = tempfile::tempfile().map_err(|error| error.to_string())?;
        let to_errors = errors.try_clone().map_err(|error| error.to_string())?;
        let mut child = Command::new("sqlite3")
            .arg("-bail")
            .arg(database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(to_errors)
            .spawn()
            .map_err(|error| format!("sqlite3: {error}"))?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => Ok(Sqlite {
                child,
                input,
                output: BufReader::new(output),
                errors,
            }),
            _ => Err("sqlite3 has no pipes".to_owned()),
        }
    }

    /// Sends SQL that prints one line, and returns it.
    ///
    /// # Errors
    /// What it said when it ended instead.
    pub fn ask(&mut self, sql: &str) -> Result<String, String> {
        let mut line = String::new();
        let asked = writeln!(self.input, "{sql}").and_then(|()| self.output.read_line(&mut line));
        match asked {
            Ok(bytes) if bytes > 0 => Ok(line.trim().to_owned()),
            Ok(_) | Err(_) => Err(self.last_words()),
        }
    }

    fn last_words(&mut self) -> String {
        let _ = self.child.wait();
        let mut said = String::new();
        let read = self
            .errors
            .rewind()
            .and_then(|()| self.errors.read_to_string(&mut said));
        match read {
            Ok(_) if !said.trim().is_empty() => format!("sqlite3: {}", said.trim()),
            _ => "sqlite3 ended without a word".to_owned(),
        }
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
