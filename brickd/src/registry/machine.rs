//! The state machine as Raft drives it: applies changes, publishes views, makes snapshots.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{Stream, TryStreamExt};
use mortar_proto::registry::{Outcome, View};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::{oneshot, watch};

use super::disk::{Disk, Key, Put, Stored, Then, from_json, to_json};
use super::state::State;
use super::types::{LogId, Snapshot, SnapshotMeta, StoredMembership, Types};

/// The applied state, shared by Raft, which changes it, and all who read it.
///
/// A Raft that was stopped may still be applying when its successor starts; each has a state of
/// its own, and only the newest publishes.
#[derive(Clone)]
pub struct Applied {
    state: Arc<Mutex<State>>,
    newest: Arc<AtomicBool>,
    views: watch::Sender<Arc<View>>,
}

impl Default for Applied {
    fn default() -> Self {
        Applied {
            state: Arc::default(),
            newest: Arc::new(AtomicBool::new(true)),
            views: watch::Sender::default(),
        }
    }
}

impl Applied {
    /// The state, locked: hold it for a look only.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest view.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.views.borrow())
    }

    /// Told of each new view.
    pub fn subscribe(&self) -> watch::Receiver<Arc<View>> {
        self.views.subscribe()
    }

    /// What takes the place of this one, with the same readers.
    pub fn next(&self, state: State) -> Self {
        let next = Applied {
            state: Arc::new(Mutex::new(state)),
            newest: Arc::new(AtomicBool::new(true)),
            views: self.views.clone(),
        };
        // Under the channel's lock, so that nothing of this one is published after it.
        self.views.send_if_modified(|last| {
            self.newest.store(false, Ordering::SeqCst);
            let view = next.state().view.clone();
            let changed = **last != view;
            if changed {
                *last = Arc::new(view);
            }
            changed
        });
        next
    }

    fn replace(&self, state: State) {
        *self.state() = state;
        self.publish();
    }

    fn publish(&self) {
        let view = self.state().view.clone();
        self.views.send_if_modified(|last| {
            let changed = **last != view && self.newest.load(Ordering::SeqCst);
            if changed {
                *last = Arc::new(view);
            }
            changed
        });
    }
}

/// The state machine of one Raft.
pub struct Machine {
    disk: Disk,
    applied: Applied,
    last: Option<LogId>,
    membership: StoredMembership,
    current: Current,
}

/// The newest snapshot, shared with the builder that replaces it.
type Current = Arc<Mutex<Option<(SnapshotMeta, Vec<u8>)>>>;

impl Machine {
    /// The machine as the newest snapshot on the disk has it; Raft applies the log behind it.
    pub fn new(disk: Disk, applied: Applied, stored: &mut Stored) -> io::Result<Self> {
        let mut machine = Machine {
            disk,
            applied,
            last: None,
            membership: StoredMembership::default(),
            current: Arc::default(),
        };
        if let Some((meta, bytes)) = stored.snapshot.take() {
            machine.take(&meta, &bytes)?;
            *machine
                .current
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some((meta, bytes));
        }
        Ok(machine)
    }

    fn take(&mut self, meta: &SnapshotMeta, bytes: &[u8]) -> io::Result<()> {
        let state: State = from_json(bytes)?;
        self.last = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.applied.replace(state);
        Ok(())
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut answers = Vec::new();
        let mut changed = false;
        while let Some((entry, responder)) = entries.try_next().await? {
            let log_id = entry.log_id;
            let outcome = match entry.payload {
                EntryPayload::Blank => Outcome::default(),
                EntryPayload::Normal(change) => {
                    changed = true;
                    self.applied.state().apply(log_id.index, &change)
                }
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(log_id), membership);
                    Outcome::default()
                }
            };
            self.last = Some(log_id);
            answers.extend(responder.map(|responder| (responder, outcome)));
        }
        // Published first: whoever is answered finds its change in the view.
        if changed {
            self.applied.publish();
        }
        for (responder, outcome) in answers {
            responder.send(outcome);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            disk: self.disk.clone(),
            current: Arc::clone(&self.current),
            state: self.applied.state().clone(),
            meta: SnapshotMeta {
                last_log_id: self.last,
                last_membership: self.membership.clone(),
            },
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Vec<u8>,
    ) -> Result<(), io::Error> {
        self.take(meta, &snapshot)?;
        save(&self.disk, &self.current, meta, &snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(current
            .clone()
            .map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

/// Makes one snapshot of the state as it was when the builder was asked for.
pub struct Builder {
    disk: Disk,
    current: Current,
    state: State,
    meta: SnapshotMeta,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let bytes = to_json(&self.state)?;
        save(&self.disk, &self.current, &self.meta, &bytes).await?;
        Ok(Snapshot {
            meta: self.meta.clone(),
            snapshot: bytes,
        })
    }
}

/// Keeps a snapshot unless a newer one is kept. Writes are asked for in the order in which they
/// become current, so that the disk never ends with the older one.
async fn save(disk: &Disk, current: &Current, meta: &SnapshotMeta, bytes: &[u8]) -> io::Result<()> {
    let puts = vec![
        Put::Meta(Key::SnapshotMeta, to_json(meta)?),
        Put::Meta(Key::Snapshot, bytes.to_vec()),
    ];
    let (done, told) = oneshot::channel();
    {
        let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
        if current
            .as_ref()
            .is_some_and(|(kept, _)| kept.last_log_id > meta.last_log_id)
        {
            return Ok(());
        }
        *current = Some((meta.clone(), bytes.to_vec()));
        disk.write(puts, Then::Done(done));
    }
    told.await
        .unwrap_or_else(|_| Err(io::Error::other("the registry's file is closed")))
}
