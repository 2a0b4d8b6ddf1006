//! Raft's log and vote: all of it in memory, which compaction keeps small, and on the disk.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::entry::RaftEntry;
use openraft::storage::{LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};

use super::disk::{Disk, Key, Put, Stored, Then, to_json};
use super::types::{Entry, IoFlushed, LogId, Types, Vote};

/// The log of one Raft; a clone reads and writes the same log.
#[derive(Clone)]
pub struct Log {
    disk: Disk,
    memory: Arc<Mutex<Memory>>,
}

#[derive(Default)]
struct Memory {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
}

impl Log {
    /// The log as it was found on the disk.
    pub fn new(disk: Disk, stored: &mut Stored) -> Self {
        let memory = Memory {
            vote: stored.vote,
            committed: stored.committed,
            purged: stored.purged,
            entries: std::mem::take(&mut stored.entries),
        };
        Log {
            disk,
            memory: Arc::new(Mutex::new(memory)),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, io::Error> {
        Ok(self
            .memory()
            .entries
            .range(range)
            .map(|(_, entry)| entry.clone())
            .collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.memory().vote)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let memory = self.memory();
        let last = memory
            .entries
            .last_key_value()
            .map(|(_, entry)| entry.log_id());
        Ok(LogState {
            last_purged_log_id: memory.purged,
            last_log_id: last.or(memory.purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.disk
            .write_durable(vec![Put::Meta(Key::Vote, to_json(vote)?)])
            .await?;
        self.memory().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(committed) = committed else {
            return Ok(());
        };
        self.memory().committed = Some(committed);
        // Only how soon a restarted peer shows its newest state depends on this, so nobody waits.
        self.disk.write(
            vec![Put::Meta(Key::Committed, to_json(&committed)?)],
            Then::Lazy,
        );
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.memory().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IoFlushed) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut puts = Vec::new();
        {
            let mut memory = self.memory();
            for entry in entries {
                let index = entry.log_id().index;
                puts.push(Put::Entry(index, to_json(&entry)?));
                memory.entries.insert(index, entry);
            }
        }
        self.disk.write(puts, Then::Flushed(callback));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |last| last.index + 1);
        self.memory().entries.split_off(&from);
        // Waited for: an entry that is gone must not come back after a crash.
        self.disk.write_durable(vec![Put::DropFrom(from)]).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        {
            let mut memory = self.memory();
            memory.purged = Some(upto);
            memory.entries = memory.entries.split_off(&(upto.index + 1));
        }
        let puts = vec![
            Put::Meta(Key::Purged, to_json(&upto)?),
            Put::DropUpTo(upto.index),
        ];
        self.disk.write(puts, Then::Lazy);
        Ok(())
    }
}
