//! The program `sqlite3`, asked line by line.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Printed after each answer.
const END: &str = "(that is all)";
/// What it says of a database that is damaged, and of a read that answers EIO
/// (`SQLITE_IOERR_CORRUPTFS` becomes `SQLITE_CORRUPT`).
const MALFORMED: &str = "database disk image is malformed";

/// A running `sqlite3`; it ends when this is dropped.
pub struct Sqlite {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    errors: File,
    /// What was said before the last question.
    said_before: u64,
    database: PathBuf,
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
            // What the system said of a file it cannot open is in its log only.
            .args(["-cmd", ".log stderr"])
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
                said_before: 0,
                database: database.to_owned(),
            }),
            _ => Err("sqlite3 has no pipes".to_owned()),
        }
    }

    /// Sends SQL that prints one line, and returns it. After an error it is to be asked no more.
    ///
    /// # Errors
    /// What it said instead.
    pub fn ask(&mut self, sql: &str) -> Result<String, String> {
        let [line] = self.ask_for(sql)?;
        Ok(line)
    }

    /// Sends SQL that prints so many lines: fewer are printed when a statement fails, because those
    /// after it are not run.
    ///
    /// # Errors
    /// What it said instead.
    pub fn ask_for<const LINES: usize>(&mut self, sql: &str) -> Result<[String; LINES], String> {
        self.said_before = self.errors.metadata().map_or(0, |errors| errors.len());
        match writeln!(self.input, "{sql}\n.print {END}").and_then(|()| self.lines()) {
            Ok(lines) => lines.try_into().map_err(|_| self.last_words()),
            Err(error) => Err(format!("{} ({error})", self.last_words())),
        }
    }

    /// All that it prints up to the mark, or to its end.
    fn lines(&mut self) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 || line.trim() == END {
                return Ok(lines);
            }
            lines.push(line.trim().to_owned());
        }
    }

    fn last_words(&mut self) -> String {
        let mut said = String::new();
        let read = self
            .errors
            .seek(SeekFrom::Start(self.said_before))
            .and_then(|_| self.errors.read_to_string(&mut said));
        let said = match read {
            Ok(_) if !said.trim().is_empty() => said.trim(),
            _ => "ended without a word",
        };
        match self.trouble_of_its_file() {
            Some(error) if said.contains(MALFORMED) => {
                format!("sqlite3: {said}; its descriptor of the database answers {error}")
            }
            _ => format!("sqlite3: {said}"),
        }
    }

    /// What fsync answers through its own descriptor of the database: of a descriptor that is not to
    /// be used any more that is an error.
    fn trouble_of_its_file(&self) -> Option<io::Error> {
        let own = format!("/proc/{}/fd", self.child.id());
        let entries = fs::read_dir(own).ok()?.flatten();
        let mut of_database = entries.filter_map(|entry| {
            let leads_to = fs::read_link(entry.path()).ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            (leads_to == self.database).then_some(number)
        });
        let pid = Pid::from_child(&self.child);
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        of_database.find_map(|number| {
            let theirs = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()?;
            File::from(theirs).sync_all().err()
        })
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
