//! Which changes must keep their order, and the queue that keeps it: a FIFO per key.
//!
//! On a primary a request is admitted with [`keys_of_op`], then planned; on a backup a change is
//! admitted in number order with [`keys_of_step`]. A primary holds at least the keys of the step
//! it orders from planning to the local apply, so two changes that conflict have the order of
//! their numbers on every copy, and a plan reads a state in which every ordered change that could
//! touch what it reads is applied.
//!
//! What an operation does not name (the object a rename replaces, the object of an unlink without
//! a gfid, whether a directory moves) is known only after planning. The plan then asks for more
//! keys ([`super::plan::Plan::MoreKeys`]): the ticket is finished and admitted again with the
//! wider set. Nobody ever waits for a second key while holding a first one, so there is no
//! deadlock.
//!
//! # Modes
//! | step | names | objects |
//! |---|---|---|
//! | create, link | the name, if any: Change | parent: Use; the object: Change |
//! | unlink, rmdir | the name: Change | parent: Use; the object: Remove |
//! | rename | both names: Change | parents: Use; moved and whiteout: Change; replaced: Remove |
//! | write, setattr, xattrs, fallocate | | the object: Change |
//! | copy of a range | | source: Use; target: Change |
//! | fsync | | the object: Sync |
//! | open, release | | the object: Use; its opens: Change; release, its locks: Change |
//! | lock, unlock | | its locks: Change |
//!
//! So creates in one directory run in parallel (they merge its times by maximum), while a removal
//! of the directory, or a change of its attributes or ACLs, which creates read, waits for all of
//! them and holds up later ones. Every move of a directory to another parent takes the one Tree
//! key, because whether it is valid depends on all ancestors.
//!
//! The result that a change leaves in its session's table has no key: a client sends nothing before
//! its SessionOpen is answered, and every copy has applied that by then; and of one slot the highest
//! seq counts, whichever is applied last.

mod queue;
#[cfg(test)]
mod tests;

use mortar_common::placement::name_hash;
use mortar_common::{Gfid, SessionId};
use mortar_proto::data::change::Step;
use mortar_proto::data::op::Op as OpKind;
use mortar_proto::data::{Change, Op};

pub use queue::KeyQueue;

/// What changes can have in common.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// An object: its content, attributes, existence.
    Object(Gfid),
    /// A name in a directory, by its placement hash; names of equal hash share it.
    Name(Gfid, u64),
    /// Who has an object open.
    Opens(Gfid),
    /// The locks of an object.
    Locks(Gfid),
    /// Begin and end of a session.
    Session(SessionId),
    /// Which directory lies below which.
    Tree,
}

/// What is done with a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// Makes durable what came before: waits for earlier users and changes, and only a removal
    /// waits for it. So a slow fsync holds up no writer.
    Sync,
    /// Needs it to exist and to stay as it is; any number at a time.
    Use,
    /// Changes it: alone but for a Sync that came before.
    Change,
    /// Removes it or one of its names: alone.
    Remove,
}

impl Mode {
    /// All modes, in the order of [`Mode::index`].
    pub(crate) const ALL: [Mode; 4] = [Mode::Sync, Mode::Use, Mode::Change, Mode::Remove];

    pub(crate) fn index(self) -> usize {
        match self {
            Mode::Sync => 0,
            Mode::Use => 1,
            Mode::Change => 2,
            Mode::Remove => 3,
        }
    }

    /// Whether one that comes later in mode `later` must wait for one in this mode.
    pub fn holds_up(self, later: Mode) -> bool {
        match self {
            Mode::Sync => later == Mode::Remove,
            Mode::Use => later != Mode::Use,
            Mode::Change | Mode::Remove => true,
        }
    }

    /// The weakest mode that does for both.
    fn join(self, other: Mode) -> Mode {
        match (self, other) {
            (one, two) if one == two => one,
            (Mode::Remove, _) | (_, Mode::Remove) => Mode::Remove,
            _ => Mode::Change,
        }
    }

    /// Whether who holds this mode may do what `needed` allows.
    fn covers(self, needed: Mode) -> bool {
        self.join(needed) == self
    }
}

/// The keys of one change, each once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Keys(Vec<(Key, Mode)>);

impl Keys {
    /// No key: conflicts with nothing.
    pub fn none() -> Self {
        Keys::default()
    }

    /// Adds a key; one that is there already gets the mode that does for both.
    pub fn add(&mut self, key: Key, mode: Mode) {
        match self.0.iter_mut().find(|(have, _)| *have == key) {
            Some((_, have)) => *have = have.join(mode),
            None => self.0.push((key, mode)),
        }
    }

    /// Whether who holds these keys may do what `needed` asks for.
    pub fn covers(&self, needed: &Keys) -> bool {
        needed.0.iter().all(|(key, mode)| {
            self.0
                .iter()
                .any(|(have, held)| have == key && held.covers(*mode))
        })
    }

    /// The keys that do for both.
    pub fn union(mut self, other: &Keys) -> Keys {
        for (key, mode) in &other.0 {
            self.add(*key, *mode);
        }
        self
    }

    /// The keys with their modes.
    pub fn iter(&self) -> impl Iterator<Item = (Key, Mode)> + '_ {
        self.0.iter().copied()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn object(&mut self, gfid: Option<Gfid>, mode: Mode) {
        if let Some(gfid) = gfid {
            self.add(Key::Object(gfid), mode);
        }
    }

    /// A name that is changed, in a directory that must stay.
    fn name(&mut self, parent: Option<Gfid>, name: &[u8]) {
        if let Some(parent) = parent {
            self.add(Key::Name(parent, name_hash(parent, name)), Mode::Change);
            self.add(Key::Object(parent), Mode::Use);
        }
    }

    /// The name of what is made, if it gets one.
    fn new_name(&mut self, parent: Option<Gfid>, name: &[u8]) {
        if name.is_empty() {
            self.object(parent, Mode::Use);
        } else {
            self.name(parent, name);
        }
    }

    fn opens(&mut self, session: SessionId, gfid: Option<Gfid>) {
        self.object(gfid, Mode::Use);
        if let Some(gfid) = gfid {
            self.add(Key::Opens(gfid), Mode::Change);
        }
        self.session(session, Mode::Use);
    }

    fn locks(&mut self, gfid: Option<Gfid>) {
        if let Some(gfid) = gfid {
            self.add(Key::Locks(gfid), Mode::Change);
        }
    }

    fn session_locks(&mut self, session: SessionId, gfid: Option<Gfid>) {
        self.locks(gfid);
        self.session(session, Mode::Use);
    }

    /// Of steps that change nothing but the memory.
    fn of_memory(&mut self, step: &Step) {
        match step {
            Step::SessionOpen(step) => self.session(SessionId(step.session), Mode::Change),
            Step::SessionEnd(step) => self.session(SessionId(step.session), Mode::Change),
            Step::Open(step) => self.opens(SessionId(step.session), step.gfid),
            Step::Release(step) => {
                self.opens(SessionId(step.session), step.gfid);
                self.locks(step.gfid);
            }
            Step::Lock(step) => {
                let session = step.lock.map_or(0, |lock| lock.session);
                self.session_locks(SessionId(session), step.gfid);
            }
            _ => {}
        }
    }

    fn session(&mut self, session: SessionId, mode: Mode) {
        self.add(Key::Session(session), mode);
    }
}

/// The keys of a client's operation, as far as it names them: what planning reads and changes.
/// `previous` is the object the operation before it returned, meant by an absent gfid.
///
/// Empty for reads: they see what is applied, and nothing is applied that a surviving copy lacks.
pub fn keys_of_op(op: &Op, session: SessionId, previous: Option<Gfid>) -> Keys {
    let mut keys = Keys::none();
    let Some(op) = &op.op else { return keys };
    match op {
        OpKind::Create(op) => {
            keys.new_name(op.parent.or(previous), &op.name);
            keys.object(op.gfid, Mode::Change);
            if op.open {
                keys.session(session, Mode::Use);
            }
        }
        OpKind::Link(op) => {
            keys.name(op.parent.or(previous), &op.name);
            keys.object(op.gfid.or(previous), Mode::Change);
        }
        OpKind::Unlink(op) => {
            keys.name(op.parent.or(previous), &op.name);
            keys.object(op.gfid, Mode::Remove);
        }
        OpKind::Rmdir(op) => {
            keys.name(op.parent.or(previous), &op.name);
            keys.object(op.gfid, Mode::Remove);
        }
        OpKind::Rename(op) => {
            keys.name(op.from_parent.or(previous), &op.from_name);
            keys.name(op.to_parent.or(previous), &op.to_name);
            keys.object(op.gfid, Mode::Change);
            keys.object(op.whiteout, Mode::Change);
        }
        OpKind::CopyRange(op) => {
            keys.object(op.from.or(previous), Mode::Use);
            keys.object(op.to.or(previous), Mode::Change);
        }
        OpKind::Setattr(op) => keys.object(op.gfid.or(previous), Mode::Change),
        OpKind::Write(op) => keys.object(op.gfid.or(previous), Mode::Change),
        OpKind::Fallocate(op) => keys.object(op.gfid.or(previous), Mode::Change),
        OpKind::Setxattr(op) => keys.object(op.gfid.or(previous), Mode::Change),
        OpKind::Removexattr(op) => keys.object(op.gfid.or(previous), Mode::Change),
        OpKind::Fsync(op) => keys.object(op.gfid.or(previous), Mode::Sync),
        OpKind::SessionOpen(_) | OpKind::SessionClose(_) => keys.session(session, Mode::Change),
        OpKind::Open(op) => {
            if op.truncate {
                keys.object(op.gfid.or(previous), Mode::Change);
                keys.session(session, Mode::Use);
            } else {
                keys.opens(session, op.gfid.or(previous));
            }
        }
        OpKind::Release(op) => {
            keys.opens(session, op.gfid.or(previous));
            keys.locks(op.gfid.or(previous));
        }
        OpKind::Setlock(op) => keys.session_locks(session, op.gfid.or(previous)),
        OpKind::ReleaseOwner(op) => keys.session_locks(session, op.gfid.or(previous)),
        OpKind::Keepalive(_)
        | OpKind::Lookup(_)
        | OpKind::Getattr(_)
        | OpKind::Readlink(_)
        | OpKind::Read(_)
        | OpKind::Readdir(_)
        | OpKind::Statfs(_)
        | OpKind::Getxattr(_)
        | OpKind::Listxattr(_)
        | OpKind::Seek(_)
        | OpKind::Getlock(_)
        | OpKind::SumRange(_)
        | OpKind::HealStat(_)
        | OpKind::Orphans(_)
        | OpKind::Touched(_)
        | OpKind::AloneMarks(_)
        | OpKind::MergeEnd(_) => {}
    }
    keys
}

/// The keys of an ordered change: any two changes whose order matters share a key, in modes of
/// which one holds up the other.
///
/// A `SyncStep` has none: who applies it waits for every change before it.
pub fn keys_of_step(change: &Change) -> Keys {
    change
        .step
        .as_ref()
        .map_or_else(Keys::none, |step| keys_of(step, SessionId(change.session)))
}

/// [`keys_of_step`] for a step that has no number yet; `session` is that of its request.
pub fn keys_of(step: &Step, session: SessionId) -> Keys {
    let mut keys = Keys::none();
    match step {
        Step::Create(step) => {
            keys.new_name(step.parent, &step.name);
            keys.object(step.gfid, Mode::Change);
            if step.open {
                keys.session(session, Mode::Use);
            }
        }
        Step::Link(step) => {
            keys.name(step.parent, &step.name);
            keys.object(step.gfid, Mode::Change);
        }
        Step::Unlink(step) => {
            keys.name(step.parent, &step.name);
            keys.object(step.gfid, Mode::Remove);
        }
        Step::Rmdir(step) => {
            keys.name(step.parent, &step.name);
            keys.object(step.gfid, Mode::Remove);
        }
        Step::Rename(step) => {
            keys.name(step.from_parent, &step.from_name);
            keys.name(step.to_parent, &step.to_name);
            keys.object(step.gfid, Mode::Change);
            keys.object(step.replaced, Mode::Remove);
            keys.object(step.whiteout, Mode::Change);
            if step.moves_directory {
                keys.add(Key::Tree, Mode::Change);
            }
        }
        Step::Setattr(step) if step.open => {
            keys.object(step.gfid, Mode::Change);
            keys.session(session, Mode::Use);
        }
        Step::Setattr(step) => keys.object(step.gfid, Mode::Change),
        Step::CopyRange(step) => {
            keys.object(step.from, Mode::Use);
            keys.object(step.to, Mode::Change);
        }
        Step::Write(step) => keys.object(step.gfid, Mode::Change),
        Step::Fallocate(step) => keys.object(step.gfid, Mode::Change),
        Step::Setxattr(step) => keys.object(step.gfid, Mode::Change),
        Step::Removexattr(step) => keys.object(step.gfid, Mode::Change),
        Step::Fsync(step) => keys.object(step.gfid, Mode::Sync),
        Step::Free(step) => {
            keys.object(step.gfid, Mode::Remove);
            keys.locks(step.gfid);
        }
        Step::SessionOpen(_)
        | Step::SessionEnd(_)
        | Step::Open(_)
        | Step::Release(_)
        | Step::Lock(_)
        | Step::Settled(_) => keys.of_memory(step),
        Step::HealObject(step) => {
            keys.object(step.object.and_then(|object| object.gfid), Mode::Change);
        }
        Step::HealData(step) => keys.object(step.gfid, Mode::Change),
        Step::HealName(step) => {
            keys.name(step.parent, &step.name);
            keys.object(step.gfid, Mode::Change);
            if step.directory {
                keys.add(Key::Tree, Mode::Change);
            }
        }
        Step::Sync(_) => {}
    }
    keys
}
