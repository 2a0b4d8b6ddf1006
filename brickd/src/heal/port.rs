//! What healing needs from the driver of the replica set.

use bytes::Bytes;
use mortar_common::Gfid;
use mortar_proto::data::change::Step;
use mortar_proto::data::{self, Op};

use super::partner::PartnerMarks;
use crate::brick::{BrickError, HealSource};

/// One queue of the ordered changes: those of one key are applied one after the other.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Key {
    /// An object.
    Object(Gfid),
    /// A name in a directory.
    Name(Gfid, Bytes),
}

/// The copy being healed is gone, or this one may not heal it any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the copy that was being healed is gone")]
pub struct Gone;

/// Why healing ended before the copy was in sync.
#[derive(Debug, thiserror::Error)]
pub enum HealError {
    /// The copy is gone.
    #[error(transparent)]
    Gone(#[from] Gone),
    /// The driver said so.
    #[error("healing was stopped")]
    Stopped,
    /// This copy's own brick failed, and so this copy is out.
    #[error("this copy cannot be read: {0}")]
    Source(#[from] BrickError),
    /// The copy answers a question in a way that makes no sense.
    #[error("the copy that is being healed answers nonsense: {0}")]
    Nonsense(String),
}

/// The driver, as seen by the healer of one syncing copy. Everything blocks; the healer has a
/// thread of its own.
pub trait HealPort: Send + Sync {
    /// The primary's own brick.
    fn source(&self) -> &dyn HealSource;

    /// The copy's marks, the same that the driver asks about every change.
    fn marks(&self) -> &PartnerMarks;

    /// Runs `work` (once) while it holds the queues of these keys: every change of theirs that is
    /// numbered is applied here, and none gets its number until `work` returns. `work` reads from
    /// the source and sends at most a few heal changes.
    ///
    /// # Errors
    /// [`Gone`], without having run `work`.
    fn with_keys(&self, keys: &[Key], work: &mut dyn FnMut()) -> Result<(), Gone>;

    /// Numbers a heal change (HealObject, HealData, HealName, Free) and sends it to the copy behind
    /// all that was numbered before; does not wait for its answer. Returns its number.
    ///
    /// # Errors
    /// [`Gone`].
    fn send(&self, step: Step, payload: Vec<u8>) -> Result<u64, Gone>;

    /// Waits, holding no queue, until a change of so many bytes may be sent: until the copy has
    /// answered enough of what is on its way, and the throttle allows it.
    ///
    /// # Errors
    /// [`Gone`].
    fn make_room(&self, bytes: u64) -> Result<(), Gone>;

    /// Asks the copy, which answers with [`super::answer`]; the answer is of a moment at which it
    /// has applied every heal change sent before the call. One result for each operation, up to
    /// the first with an errno.
    ///
    /// # Errors
    /// [`Gone`].
    fn ask(&self, ops: Vec<Op>) -> Result<Vec<data::Result>, Gone>;

    /// Has the copy apply and sync everything up to this number (0: all it has), and waits for it
    /// to confirm.
    ///
    /// # Errors
    /// [`Gone`], also when a heal change failed on the copy.
    fn confirmed_sync(&self, up_to: u64) -> Result<(), Gone>;

    /// Whether healing is to end.
    fn stopped(&self) -> bool;

    /// Nothing is marked at this moment: time for the switch to in sync. Called again and again
    /// while it is so; must not wait for long.
    fn quiet(&self);
}
