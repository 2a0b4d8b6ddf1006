//! The one file of the registry, `registry.redb`, and the one thread that writes it.
//!
//! Everything is read once, at the start; after that the file is only written. Writes are done in
//! the order they were asked for, many in one transaction, each fsynced before it is answered, so
//! that Raft's own threads never wait for the disk.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use tokio::sync::oneshot;

use super::recall::Position;
use super::types::{Entry, IoFlushed, LogId, PoolMeta, SnapshotMeta, Vote};

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Writes that may wait for the thread; whoever asks for more waits itself.
const QUEUE_MAX: usize = 1024;
/// Writes put into one transaction.
const BATCH_MAX: usize = 512;
/// How long a write that nobody waits for may stay in memory, in milliseconds.
const LAZY_MS: u64 = 50;
/// Disk space taken at the start. Compaction keeps the file far smaller.
const ROOM_BYTES: u64 = 32 << 20;
/// Memory redb may use to cache pages: the file is only read at the start.
const CACHE_BYTES: usize = 1 << 20;

/// One step of a write.
pub enum Put {
    /// One entry of the log.
    Entry(u64, Vec<u8>),
    /// Drops entries from this index on.
    DropFrom(u64),
    /// Drops entries up to this index.
    DropUpTo(u64),
    /// Sets what is kept under a key.
    Meta(Key, Vec<u8>),
    /// Drops everything.
    Clear,
}

/// What is kept beside the log.
#[derive(Clone, Copy)]
pub enum Key {
    Pool,
    Vote,
    Committed,
    Purged,
    SnapshotMeta,
    Snapshot,
    Seen,
}

impl Key {
    fn name(self) -> &'static str {
        match self {
            Key::Pool => "pool",
            Key::Vote => "vote",
            Key::Committed => "committed",
            Key::Purged => "purged",
            Key::SnapshotMeta => "snapshot_meta",
            Key::Snapshot => "snapshot",
            Key::Seen => "seen",
        }
    }
}

/// Who is told when a write is durable.
pub enum Then {
    /// Nobody: written with the next one, or after a short while.
    Lazy,
    /// Raft, about log entries.
    Flushed(IoFlushed),
    /// Somebody who waits.
    Done(oneshot::Sender<io::Result<()>>),
}

impl Then {
    fn tell(self, result: &io::Result<()>) {
        let result = || match result {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        match self {
            Then::Lazy => {}
            Then::Flushed(flushed) => flushed.io_completed(result()),
            // Whoever asked may have been stopped meanwhile.
            Then::Done(done) => drop(done.send(result())),
        }
    }
}

struct Write {
    life: u64,
    puts: Vec<Put>,
    then: Then,
}

/// What the file held when it was opened.
#[derive(Default)]
pub struct Stored {
    pub pool: Option<PoolMeta>,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub purged: Option<LogId>,
    pub entries: BTreeMap<u64, Entry>,
    pub snapshot: Option<(SnapshotMeta, Vec<u8>)>,
    pub seen: BTreeMap<u64, Position>,
}

/// The writing thread's handle.
///
/// A Raft that was stopped may still have writes on their way when its successor starts on an
/// emptied file. So every writer carries the number of its life, and writes of a former life are
/// refused.
#[derive(Clone)]
pub struct Disk {
    shared: Arc<Shared>,
    life: u64,
}

struct Shared {
    queue: Mutex<Option<SyncSender<Write>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    life: Arc<AtomicU64>,
}

impl Disk {
    /// Opens or makes the file and reads it.
    pub fn open(path: &Path) -> Result<(Self, Stored), String> {
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(path)
            .map_err(|error| error.to_string())?;
        keep_room(path);
        let stored = read(&database)?;
        let (queue, writes) = sync_channel(QUEUE_MAX);
        let life = Arc::new(AtomicU64::new(1));
        let current = Arc::clone(&life);
        let thread = std::thread::Builder::new()
            .name("registry-disk".to_owned())
            .spawn(move || write_all(database, writes, &current))
            .map_err(|error| error.to_string())?;
        let shared = Shared {
            queue: Mutex::new(Some(queue)),
            thread: Mutex::new(Some(thread)),
            life,
        };
        Ok((
            Disk {
                shared: Arc::new(shared),
                life: 1,
            },
            stored,
        ))
    }

    /// Hands a write to the thread. `then` is told when it is durable or has failed.
    pub fn write(&self, puts: Vec<Put>, then: Then) {
        let queue = lock(&self.shared.queue).clone();
        let write = Write {
            life: self.life,
            puts,
            then,
        };
        let left = match queue {
            Some(queue) => queue.send(write).err().map(|refused| refused.0),
            None => Some(write),
        };
        if let Some(write) = left {
            write
                .then
                .tell(&Err(io::Error::other("the registry's file is closed")));
        }
    }

    /// Writes and waits until it is durable.
    pub async fn write_durable(&self, puts: Vec<Put>) -> io::Result<()> {
        let (done, told) = oneshot::channel();
        self.write(puts, Then::Done(done));
        told.await
            .unwrap_or_else(|_| Err(io::Error::other("the registry's file is closed")))
    }

    /// Empties the file and begins a new life in it, with `pool` as all it holds. Handles of
    /// former lives can write no more.
    pub async fn begin_life(&self, pool: Option<&PoolMeta>) -> io::Result<Self> {
        let life = self.shared.life.fetch_add(1, Ordering::SeqCst) + 1;
        let disk = Disk {
            shared: Arc::clone(&self.shared),
            life,
        };
        let mut puts = vec![Put::Clear];
        if let Some(pool) = pool {
            puts.push(Put::Meta(Key::Pool, to_json(pool)?));
        }
        disk.write_durable(puts).await?;
        Ok(disk)
    }

    /// Writes what waits, closes the file and waits for that.
    pub fn close(&self) {
        lock(&self.shared.queue).take();
        if let Some(thread) = lock(&self.shared.thread).take() {
            // A panic there was reported when it happened.
            drop(thread.join());
        }
    }
}

/// Takes the disk space that the file needs as it grows, so that a full disk does not end this
/// peer's part in the registry: a write that fails is final.
fn keep_room(path: &Path) {
    let kept = std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|file| {
            let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
            Ok(rustix::fs::fallocate(&file, flags, 0, ROOM_BYTES)?)
        });
    if let Err(error) = kept {
        tracing::info!("no room is kept for the registry's file: {error}");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one encoding of what this module tree keeps and sends.
pub fn to_json<T: serde::Serialize>(value: &T) -> io::Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(io::Error::other)
}

/// The reverse of [`to_json`].
pub fn from_json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

fn read(database: &Database) -> Result<Stored, String> {
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let transaction = database.begin_read().map_err(|error| words(&error))?;
    let mut stored = Stored::default();
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => return Ok(stored),
        Err(error) => return Err(words(&error)),
    };
    fn get<T: serde::de::DeserializeOwned>(
        meta: &impl ReadableTable<&'static str, &'static [u8]>,
        key: Key,
    ) -> Result<Option<T>, String> {
        let value = meta.get(key.name()).map_err(|error| error.to_string())?;
        value
            .map(|bytes| from_json(bytes.value()))
            .transpose()
            .map_err(|error| format!("'{}' is damaged: {error}", key.name()))
    }
    stored.pool = get(&meta, Key::Pool)?;
    stored.vote = get(&meta, Key::Vote)?;
    stored.committed = get(&meta, Key::Committed)?;
    stored.purged = get(&meta, Key::Purged)?;
    stored.seen = get(&meta, Key::Seen)?.unwrap_or_default();
    if let Some(of) = get(&meta, Key::SnapshotMeta)? {
        let bytes = meta
            .get(Key::Snapshot.name())
            .map_err(|error| words(&error))?;
        let bytes = bytes
            .ok_or("a snapshot is named and missing")?
            .value()
            .to_vec();
        stored.snapshot = Some((of, bytes));
    }
    let log = match transaction.open_table(LOG) {
        Ok(log) => log,
        Err(TableError::TableDoesNotExist(_)) => return Ok(stored),
        Err(error) => return Err(words(&error)),
    };
    for row in log.iter().map_err(|error| words(&error))? {
        let (index, bytes) = row.map_err(|error| words(&error))?;
        let entry = from_json(bytes.value())
            .map_err(|error| format!("log entry {} is damaged: {error}", index.value()))?;
        stored.entries.insert(index.value(), entry);
    }
    Ok(stored)
}

/// The thread: takes what waits, writes it in one transaction, tells who asked.
fn write_all(database: Database, writes: Receiver<Write>, life: &AtomicU64) {
    // Once a write failed the file is behind what Raft believes: nothing after it may succeed.
    let mut failed: Option<io::Error> = None;
    let mut lazy: Vec<Write> = Vec::new();
    loop {
        let first = if lazy.is_empty() {
            writes.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            writes.recv_timeout(Duration::from_millis(LAZY_MS))
        };
        let open = !matches!(first, Err(RecvTimeoutError::Disconnected));
        let waited_out = first.is_err();
        lazy.extend(first.ok());
        while lazy.len() < BATCH_MAX
            && let Ok(write) = writes.try_recv()
        {
            lazy.push(write);
        }
        let urgent = lazy.iter().any(|write| !matches!(write.then, Then::Lazy));
        if urgent || waited_out || lazy.len() >= BATCH_MAX {
            let batch = std::mem::take(&mut lazy);
            let current = life.load(Ordering::SeqCst);
            let (batch, stale): (Vec<_>, Vec<_>) =
                batch.into_iter().partition(|write| write.life == current);
            for write in stale {
                write
                    .then
                    .tell(&Err(io::Error::other("this peer has left that pool")));
            }
            let result = match &failed {
                None => commit(&database, &batch),
                Some(error) => Err(io::Error::new(error.kind(), error.to_string())),
            };
            if let (None, Err(error)) = (&failed, &result) {
                tracing::error!("the registry's file cannot be written: {error}");
                failed = Some(io::Error::new(error.kind(), error.to_string()));
            }
            for write in batch {
                write.then.tell(&result);
            }
        }
        if !open {
            return;
        }
    }
}

fn commit(database: &Database, batch: &[Write]) -> io::Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    // redb's default durability: the file is fsynced when commit returns.
    let transaction = database.begin_write().map_err(io::Error::other)?;
    {
        let mut log = transaction.open_table(LOG).map_err(io::Error::other)?;
        let mut meta = transaction.open_table(META).map_err(io::Error::other)?;
        for put in batch.iter().flat_map(|write| &write.puts) {
            match put {
                Put::Entry(index, bytes) => {
                    log.insert(index, bytes.as_slice())
                        .map_err(io::Error::other)?;
                }
                Put::DropFrom(from) => {
                    log.retain_in(*from.., |_, _| false)
                        .map_err(io::Error::other)?;
                }
                Put::DropUpTo(to) => {
                    log.retain_in(..=*to, |_, _| false)
                        .map_err(io::Error::other)?;
                }
                Put::Meta(key, bytes) => {
                    meta.insert(key.name(), bytes.as_slice())
                        .map_err(io::Error::other)?;
                }
                Put::Clear => {
                    log.retain(|_, _| false).map_err(io::Error::other)?;
                    meta.retain(|_, _| false).map_err(io::Error::other)?;
                }
            }
        }
    }
    transaction.commit().map_err(io::Error::other)
}
