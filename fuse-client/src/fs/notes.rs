//! What the kernel is to be told: pages to drop, names to give back.
//!
//! Such a note may wait for locks that the kernel holds while it waits for one of our answers. So
//! it is never sent by a thread that serves a request: it is queued here and sent by one of its own.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::cache::NodeId;

/// Names remembered so that they can be given back when the kernel knows too many inodes.
const SEEN_MAX: usize = 65_536;
/// Notes that wait; beyond this, those that nobody waits for are left out.
const NOTES_MAX: usize = 4_096;

/// Done after a note was sent.
pub type Then = Box<dyn FnOnce() + Send>;

/// One note.
pub enum Note {
    /// Attributes of this inode are out of date.
    DropAttributes {
        /// Whose.
        node: NodeId,
        /// Waits for it.
        then: Then,
    },
    /// Attributes and pages of this inode are out of date.
    DropPages {
        /// Whose.
        node: NodeId,
        /// Waits for it.
        then: Option<Then>,
    },
    /// This name is not to be kept in memory any longer.
    DropName {
        /// The directory.
        parent: NodeId,
        /// The name.
        name: Box<[u8]>,
    },
}

/// Who can tell the kernel.
pub trait Kernel {
    /// Drops attributes of an inode. Takes no lock in the kernel.
    fn drop_attributes(&self, node: NodeId);
    /// Drops attributes and all pages of an inode.
    fn drop_pages(&self, node: NodeId);
    /// Drops a name.
    fn drop_name(&self, parent: NodeId, name: &[u8]);
}

/// The queue.
#[derive(Default)]
pub struct Notes {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Note>,
    seen: VecDeque<(NodeId, Box<[u8]>)>,
    stopped: bool,
}

impl fmt::Debug for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Notes({} waiting)", self.lock().queue.len())
    }
}

impl Notes {
    /// Queues a note. One that somebody waits for is always taken: there are no more of them than
    /// the kernel has requests under way.
    pub fn push(&self, note: Note) {
        let mut state = self.lock();
        let awaited = matches!(
            note,
            Note::DropAttributes { .. } | Note::DropPages { then: Some(_), .. }
        );
        if state.stopped {
            drop(state);
            finish(note);
        } else if awaited || state.queue.len() < NOTES_MAX {
            state.queue.push_back(note);
            drop(state);
            self.more.notify_one();
        }
    }

    /// The kernel was given a name. When it knows `too_many` inodes, the oldest of the names seen
    /// lately is given back.
    pub fn saw_name(&self, parent: NodeId, name: &[u8], too_many: bool) {
        let mut state = self.lock();
        state.seen.push_back((parent, name.into()));
        if !too_many && state.seen.len() <= SEEN_MAX {
            return;
        }
        let Some((parent, name)) = state.seen.pop_front() else {
            return;
        };
        if too_many && state.queue.len() < NOTES_MAX {
            state.queue.push_back(Note::DropName { parent, name });
            drop(state);
            self.more.notify_one();
        }
    }

    /// Sends notes as they come, until [`Notes::stop`]. For a thread of its own.
    pub fn serve(&self, kernel: &impl Kernel) {
        loop {
            let note = {
                let mut state = self.lock();
                loop {
                    match state.queue.pop_front() {
                        Some(note) => break note,
                        None if state.stopped => return,
                        None => {
                            state = self
                                .more
                                .wait(state)
                                .unwrap_or_else(PoisonError::into_inner);
                        }
                    }
                }
            };
            match &note {
                Note::DropAttributes { node, .. } => kernel.drop_attributes(*node),
                Note::DropPages { node, .. } => kernel.drop_pages(*node),
                Note::DropName { parent, name } => kernel.drop_name(*parent, name),
            }
            finish(note);
        }
    }

    /// No more notes: the kernel has let go.
    pub fn stop(&self) {
        let left = {
            let mut state = self.lock();
            state.stopped = true;
            std::mem::take(&mut state.queue)
        };
        left.into_iter().for_each(finish);
        self.more.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn finish(note: Note) {
    match note {
        Note::DropAttributes { then, .. }
        | Note::DropPages {
            then: Some(then), ..
        } => then(),
        Note::DropPages { then: None, .. } | Note::DropName { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Kernel for Count {
        fn drop_attributes(&self, _: NodeId) {}
        fn drop_pages(&self, _: NodeId) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
        fn drop_name(&self, _: NodeId, _: &[u8]) {
            self.0.fetch_add(100, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_waiter_is_called_after_its_note_and_even_after_the_end() {
        let notes = Arc::new(Notes::default());
        let told = Arc::new(Count::default());
        let server = {
            let (notes, told) = (notes.clone(), told.clone());
            std::thread::spawn(move || notes.serve(&*told))
        };
        let (send, receive) = std::sync::mpsc::channel();
        let push = |send: std::sync::mpsc::Sender<()>| {
            let then: Then = Box::new(move || send.send(()).unwrap());
            notes.push(Note::DropPages {
                node: NodeId::ROOT,
                then: Some(then),
            });
        };
        push(send.clone());
        receive.recv().unwrap();
        assert_eq!(told.0.load(Ordering::SeqCst), 1);
        notes.saw_name(NodeId::ROOT, b"a", false);
        notes.saw_name(NodeId::ROOT, b"b", true);
        push(send.clone());
        receive.recv().unwrap();
        assert_eq!(told.0.load(Ordering::SeqCst), 102);
        notes.stop();
        server.join().unwrap();
        push(send);
        receive.recv().unwrap();
    }
}
