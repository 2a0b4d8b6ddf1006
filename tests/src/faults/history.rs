//! What clients did and what they were told: the record that is judged.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Nanoseconds since the history began.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Time(pub u64);

/// One mount with the programs that use it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientId(pub u8);

/// Content that is written once in a history: it says who wrote it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// Names that are changed together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Space {
    /// Files, in two folders.
    Files,
    /// Directories, each with one file in it.
    Trees,
}

/// A name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Name {
    /// Where.
    pub space: Space,
    /// Its number there.
    pub index: u8,
}

/// A place in a file that is overwritten as a whole.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Cell(pub u16);

/// A kind of lock, with the file it is taken on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Lock {
    /// `flock`.
    Flock,
    /// `fcntl`.
    Fcntl,
}

/// What a program asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Makes what must not be there: a file with `O_EXCL`, a directory by renaming a whole one in.
    Make(Name, Token),
    /// Writes the content of a file that was made.
    Fill(Token),
    /// Renames a whole file over the name.
    Put(Name, Token),
    /// Removes what is there.
    Remove(Name),
    /// Renames; a file replaces what is there, a directory does not.
    Move(Name, Name),
    /// Opens and reads.
    Look(Name),
    /// Lists the names of a space.
    List(Space),
    /// Overwrites.
    Write(Cell, Token),
    /// Opens and reads.
    Read(Cell),
    /// Appends one record.
    Append(Token),
    /// Opens the journal and reads all of it.
    ReadJournal,
    /// Takes the lock, reads the number, writes the next one, lets go.
    Section(Lock, Token),
    /// One transaction that inserts a row and counts it.
    Insert(Token),
    /// Reads the whole database.
    ReadRows,
    /// Something whose only judgement is that it must not fail.
    Other(&'static str),
}

/// What was answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It was done.
    Done,
    /// Something is there already.
    Taken,
    /// Nothing is there.
    Absent,
    /// A file without content.
    Empty,
    /// This content.
    Token(Token),
    /// These names.
    Names(Vec<Name>),
    /// The first records of the journal, and their [`sum_of`].
    Prefix {
        /// How many.
        records: usize,
        /// Their sum.
        sum: u64,
    },
    /// All records of the journal.
    Records(Vec<Token>),
    /// A section was gone through, or its write was acknowledged at least.
    Section(Held),
    /// The number that the row was given.
    Number(u64),
    /// All rows, and how many were counted.
    Rows(Vec<Token>, u64),
    /// What no program wrote.
    Torn(String),
}

/// A lock that was held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// When the call that took it returned.
    pub since: Time,
    /// When the write under it was acknowledged; it was held until then.
    pub until: Time,
    /// What was read.
    pub read: Token,
}

/// How an operation ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It has not.
    Pending,
    /// With this answer.
    Answered(Answer),
    /// With this error; whether it was done is not known.
    Failed(String),
}

/// One operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Whose.
    pub client: ClientId,
    /// Before the call.
    pub start: Time,
    /// After the call.
    pub end: Option<Time>,
    /// What was asked.
    pub op: Op,
    /// What came of it.
    pub outcome: Outcome,
}

/// The operations of one round, in the order they began.
#[derive(Debug)]
pub struct History {
    began: Instant,
    entries: Mutex<Vec<Entry>>,
}

/// An operation that was begun.
#[derive(Clone, Copy, Debug)]
pub struct EntryId(usize);

impl Default for History {
    fn default() -> Self {
        History {
            began: Instant::now(),
            entries: Mutex::default(),
        }
    }
}

impl History {
    /// The time.
    pub fn now(&self) -> Time {
        Time(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Notes that an operation begins; call it before the first system call.
    pub fn begin(&self, client: ClientId, op: Op) -> EntryId {
        let mut entries = self.lock();
        entries.push(Entry {
            client,
            start: self.now(),
            end: None,
            op,
            outcome: Outcome::Pending,
        });
        EntryId(entries.len() - 1)
    }

    /// Notes how it ended; call it after the last system call.
    pub fn end(&self, id: EntryId, outcome: Outcome) {
        let now = self.now();
        let mut entries = self.lock();
        entries[id.0].end = Some(now);
        entries[id.0].outcome = outcome;
    }

    /// What was recorded so far.
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// When it ended; never, if it did not or if it is not known whether it was done.
    pub fn effect_until(&self) -> Time {
        match self.outcome {
            Outcome::Answered(_) => self.end.unwrap_or(Time::NEVER),
            Outcome::Pending | Outcome::Failed(_) => Time::NEVER,
        }
    }

    /// The answer, if there was one.
    pub fn answer(&self) -> Option<&Answer> {
        match &self.outcome {
            Outcome::Answered(answer) => Some(answer),
            Outcome::Pending | Outcome::Failed(_) => None,
        }
    }
}

impl Time {
    /// After everything.
    pub const NEVER: Time = Time(u64::MAX);

    /// Earlier by that.
    pub fn before(self, by: Duration) -> Time {
        Time(self.0.saturating_sub(nanos(by)))
    }

    /// Later by that.
    pub fn after(self, by: Duration) -> Time {
        Time(self.0.saturating_add(nanos(by)))
    }

    /// How much later this is than `earlier`; nothing, if it is not.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A sum over records in their order.
pub fn sum_of(records: &[Token]) -> u64 {
    records.iter().fold(0, |sum, record| next_sum(sum, *record))
}

/// The sum of one record more.
pub fn next_sum(sum: u64, record: Token) -> u64 {
    let bytes = [sum.to_le_bytes(), record.0.to_le_bytes()].concat();
    xxhash_rust::xxh3::xxh3_64(&bytes)
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Time::NEVER => f.write_str("never"),
            Time(nanos) => write!(
                f,
                "{}.{:06}",
                nanos / 1_000_000_000,
                nanos / 1000 % 1_000_000
            ),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.end.unwrap_or(Time::NEVER);
        write!(
            f,
            "{}–{end} client {} {:?}",
            self.start, self.client.0, self.op
        )?;
        match &self.outcome {
            Outcome::Pending => f.write_str(": not answered"),
            Outcome::Answered(Answer::Records(records)) => {
                write!(f, ": {} records", records.len())
            }
            Outcome::Answered(Answer::Rows(rows, counted)) => {
                write!(f, ": {} rows, {counted} counted", rows.len())
            }
            Outcome::Answered(answer) => write!(f, ": {answer:?}"),
            Outcome::Failed(error) => write!(f, ": failed ({error})"),
        }
    }
}
