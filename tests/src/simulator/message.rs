//! What is kept, ordered and sent.

use mortar_proto::data::{CopyState, CopySynced, EpochRef, Recorded, SessionState, Time};
use mortar_proto::registry::Epoch;

use brickd::replica::core::{Answer, Proposed, RegistryView};

/// A host, by its place: the copies come first.
pub type HostNo = usize;
/// A client, by its place.
pub type ClientNo = usize;
/// A register: a name or a block that holds nothing, or a value; or a lock, which holds its owner's
/// session, or nothing.
pub type Key = u8;

/// What a register holds, and the number of the change that put it there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cell {
    pub version: u64,
    pub value: Option<u64>,
}

/// What a client asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    Read(Key),
    /// Puts a value, whatever is there.
    Write(Key, u64),
    /// Puts a value where nothing is.
    Create(Key, u64),
    /// Takes away what is there.
    Unlink(Key),
    /// Makes durable what was acknowledged of this register.
    Fsync(Key),
    /// Begins the session.
    Open,
    /// Takes a lock for this session, if nobody else has it.
    Lock(Key, u64),
    /// Gives up what this session has of a lock.
    Unlock(Key, u64),
    /// The session ends, and gives up the lock. No client asks for it.
    Expire(Key, u64),
}

impl Ask {
    pub fn is_fsync(self) -> bool {
        matches!(self, Ask::Fsync(_))
    }

    /// The same in another session.
    pub fn in_session(self, session: u64) -> Self {
        match self {
            Ask::Lock(key, _) => Ask::Lock(key, session),
            Ask::Unlock(key, _) => Ask::Unlock(key, session),
            other => other,
        }
    }

    pub fn key(self) -> Key {
        match self {
            Ask::Read(key)
            | Ask::Write(key, _)
            | Ask::Create(key, _)
            | Ask::Unlink(key)
            | Ask::Fsync(key)
            | Ask::Lock(key, _)
            | Ask::Unlock(key, _)
            | Ask::Expire(key, _) => key,
            Ask::Open => Key::MAX,
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    Done,
    Exists,
    NotFound,
    NoSpace,
    /// The lock is not free.
    Again,
    Value(Option<u64>),
}

impl Outcome {
    /// As the product records it.
    pub fn errno(self) -> i32 {
        match self {
            Outcome::Done | Outcome::Value(_) => 0,
            Outcome::Exists => libc::EEXIST,
            Outcome::NotFound => libc::ENOENT,
            Outcome::NoSpace => libc::ENOSPC,
            Outcome::Again => libc::EAGAIN,
        }
    }

    /// What was recorded so.
    pub fn of_errno(errno: i32) -> Self {
        let refusals = [
            Outcome::Exists,
            Outcome::NotFound,
            Outcome::NoSpace,
            Outcome::Again,
        ];
        let found = refusals.into_iter().find(|it| it.errno() == errno);
        found.unwrap_or(Outcome::Done)
    }
}

/// What a client is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    Outcome(Outcome),
    Elsewhere(Option<HostNo>),
    Later,
    /// The session is not known, or has ended.
    Fenced,
}

/// What an ordered change does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Set {
        before: Option<u64>,
        value: Option<u64>,
    },
    Fsync,
    /// A session begins.
    Begin,
    /// A session ends.
    End(u64),
    /// The session of the change takes a lock, or gives it up.
    Lock {
        unlock: bool,
    },
    /// A request that was sent more than once came to this, and changed nothing.
    Settled(Outcome),
    /// The register as the healing primary has it; or something of its object that is no register.
    Heal(Option<Cell>),
    /// Make durable all that was sent, and confirm it.
    Sync,
}

impl Step {
    /// Whether it is part of a heal, and goes to one copy only.
    pub fn is_heal(self) -> bool {
        matches!(self, Step::Heal(_) | Step::Sync)
    }

    /// Whether no disk has to do with it.
    pub fn is_memory_only(self) -> bool {
        matches!(
            self,
            Step::Begin | Step::End(_) | Step::Lock { .. } | Step::Settled(_)
        )
    }
}

/// One ordered change.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub number: u64,
    pub epoch: EpochRef,
    pub time: Time,
    pub key: Key,
    pub step: Step,
    /// Whose request it is; 0 = nobody's.
    pub session: u64,
    pub seq: u64,
}

/// Over a stream, either way.
#[derive(Clone, Debug)]
pub enum Message {
    Change {
        change: Change,
        complete: u64,
        /// What each copy has confirmed as durable.
        synced: Vec<CopySynced>,
    },
    /// `synced`: everything up to this number is durable, or 0.
    Ack {
        number: u64,
        answer: Answer,
        synced: u64,
    },
    /// Results, sessions and locks, for a copy that joins.
    Table(Vec<Recorded>, Vec<SessionState>),
    TableHeld,
    /// Everything up to this number is durable here, and recorded.
    Confirm(u64),
}

/// Between two processes, outside streams.
#[derive(Clone, Debug)]
pub enum Note {
    Beacon {
        epoch: EpochRef,
        sent: u64,
    },
    BeaconAnswer {
        epoch: EpochRef,
        sent: u64,
        /// Its disk has no room.
        full: bool,
    },
    Query(u64),
    Goodbye {
        incarnation: u64,
        process: bool,
    },
    State(u64, Box<CopyState>),
    Open {
        conn: usize,
        incarnation: u64,
        from_incarnation: u64,
        epoch: EpochRef,
        joined: bool,
    },
    Opened {
        conn: usize,
        last_number: u64,
        /// What it has recorded as durable.
        synced: u64,
        /// It went on alone, and what it did is to be found out by comparing all.
        lone: bool,
    },
    NotOpened {
        conn: usize,
    },
    TailRequest {
        epoch: EpochRef,
    },
    Tail {
        epoch: EpochRef,
        changes: Vec<Change>,
    },
}

/// What a copy writes to its `.mortar/volume`.
#[derive(Clone, Debug)]
pub struct Stored {
    pub epoch: Epoch,
    pub history: Vec<EpochRef>,
    pub alone: bool,
}

/// A proposal on its way to the registry.
#[derive(Clone, Debug)]
pub struct Decision {
    pub host: HostNo,
    pub life: u64,
    pub expect: EpochRef,
    pub next: Epoch,
    pub lone: Vec<Epoch>,
    /// It was answered as not decided, and is carried on nevertheless.
    pub late: bool,
}

/// What a client sends.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub client: ClientNo,
    pub session: u64,
    pub seq: u64,
    pub ask: Ask,
    /// How often it was sent before.
    pub attempt: u32,
}

/// What a client is sent.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    pub client: ClientNo,
    pub host: HostNo,
    pub session: u64,
    pub seq: u64,
    pub attempt: u32,
    pub told: Told,
    pub by_primary: bool,
}

/// Something that happens at a time.
#[derive(Clone, Debug)]
pub enum Event {
    Tick {
        host: HostNo,
        life: u64,
    },
    Stream {
        conn: usize,
        to: HostNo,
        message: Message,
    },
    StreamDown {
        conn: usize,
        at: HostNo,
    },
    Note {
        from: HostNo,
        to: HostNo,
        note: Note,
    },
    Apply {
        host: HostNo,
        life: u64,
        number: u64,
    },
    Stored {
        host: HostNo,
        life: u64,
        stored: Stored,
    },
    Gone {
        at: HostNo,
        life: u64,
        of: HostNo,
        of_life: u64,
    },
    Sync {
        host: HostNo,
        life: u64,
    },
    Heal {
        host: HostNo,
        life: u64,
    },
    Decide(Decision),
    Decided {
        host: HostNo,
        life: u64,
        expect: EpochRef,
        what: Proposed,
    },
    Read {
        host: HostNo,
        life: u64,
    },
    View {
        host: HostNo,
        life: u64,
        view: Box<RegistryView>,
    },
    Ask(HostNo, Request),
    Tell(Reply),
    Heard {
        host: HostNo,
    },
    Client {
        client: ClientNo,
        turn: u64,
    },
    Fault(usize),
    Mend(usize),
    Start(HostNo),
    /// The process of a stopped brick ends.
    End {
        host: HostNo,
        life: u64,
    },
    /// A process that stood still goes on.
    Resume(HostNo),
    Watch,
}
