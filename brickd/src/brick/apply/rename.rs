//! Renaming: replacing, to a free name, exchanging two names, and leaving a whiteout.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use mortar_common::Gfid;
use mortar_proto::data::{Change, RenameMode, RenameStep, change::Step};
use prost::Message;
use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::create::NewObject;
use super::unlink::LastName;
use super::{Holder, Stamp, some};
use crate::brick::hot::{Hot, State, Touch};
use crate::brick::inner::Inner;
use crate::brick::layout::{EntryName, HandleName};

/// What waits in `txn/` to be finished after a crash: a symlink whose text is the change in hex.
pub(in crate::brick) const PENDING_PREFIX: &str = "change-";

/// One side of a rename.
struct Side {
    parent: Gfid,
    hot: Arc<Hot>,
    dir: Arc<OwnedFd>,
    name: EntryName,
}

impl Side {
    fn open(inner: &Inner, parent: Option<Gfid>, name: &[u8]) -> Result<Self, Errno> {
        let parent = some(parent)?;
        let name = EntryName::new(parent, name)?;
        let (hot, dir) = inner.dir(parent)?;
        Ok(Side {
            parent,
            hot,
            dir,
            name,
        })
    }

    fn holder(&self, inner: &Inner) -> Result<Holder, Errno> {
        inner.holder(self.dir.as_fd(), &self.name)
    }
}

impl Inner {
    pub(super) fn rename(&self, stamp: Stamp, step: &RenameStep) -> Result<(), Errno> {
        let from = Side::open(self, step.from_parent, &step.from_name)?;
        let to = Side::open(self, step.to_parent, &step.to_name)?;
        let moved = match (step.gfid, from.holder(self)?) {
            (Some(meant), _) => meant,
            (None, Holder::Object(there)) => there,
            (None, _) => return Err(Errno::NOENT),
        };
        match step.how() {
            RenameMode::RenameExchange => self.exchange(&from, &to, moved, step.replaced)?,
            RenameMode::RenameWhiteout | RenameMode::RenameWhiteoutNoreplace => {
                self.rename_whiteout(stamp, step, &from, &to, moved)?
            }
            RenameMode::RenameReplace | RenameMode::RenameNoreplace => {
                self.rename_one(stamp, step, &from, &to, moved)?;
            }
        }
        let hot = self.hot(moved)?;
        self.listings
            .added(to.parent, to.name.bytes(), hot.file_type);
        self.touch(&hot, Touch::Attributes, stamp.time, stamp.number);
        if let (RenameMode::RenameExchange, Some(other)) = (step.how(), step.replaced) {
            let other = self.hot(other)?;
            self.listings
                .added(from.parent, from.name.bytes(), other.file_type);
            self.touch(&other, Touch::Attributes, stamp.time, stamp.number);
        }
        self.touch(&from.hot, Touch::Content, stamp.time, stamp.number);
        self.touch(&to.hot, Touch::Content, stamp.time, stamp.number);
        Ok(())
    }

    /// To a name that is free or is replaced.
    fn rename_one(
        &self,
        stamp: Stamp,
        step: &RenameStep,
        from: &Side,
        to: &Side,
        moved: Gfid,
    ) -> Result<(), Errno> {
        let there = to.holder(self)?;
        match from.holder(self)? {
            Holder::Object(source) if source == moved => {}
            Holder::Nothing | Holder::Stray if there == Holder::Object(moved) => return Ok(()),
            // A whiteout stands where the object was: the first attempt came this far.
            Holder::Object(source) if Some(source) == step.whiteout => return Ok(()),
            Holder::Nothing => return Err(Errno::NOENT),
            Holder::Object(_) | Holder::Stray => return Err(Errno::STALE),
        }
        match there {
            // Two names of one object: rename(2) does nothing.
            Holder::Object(same) if same == moved => Ok(()),
            Holder::Object(target) if Some(target) == step.replaced => {
                self.replace(stamp, step, from, to, target)
            }
            Holder::Object(_) => Err(Errno::EXIST),
            Holder::Stray => {
                self.move_stray(to.parent, to.dir.as_fd(), &to.name)?;
                self.rename_new(&from.dir, from.name.c_str(), &to.dir, to.name.c_str())
            }
            Holder::Nothing => {
                self.rename_new(&from.dir, from.name.c_str(), &to.dir, to.name.c_str())
            }
        }
    }

    fn replace(
        &self,
        stamp: Stamp,
        step: &RenameStep,
        from: &Side,
        to: &Side,
        target: Gfid,
    ) -> Result<(), Errno> {
        let rename =
            || rustix::fs::renameat(&from.dir, from.name.c_str(), &to.dir, to.name.c_str());
        if !self.hot(target)?.is_dir() {
            return self.remove_name(stamp, target, LastName::of(step.replaced_orphan), rename);
        }
        if let Err(error) = rename() {
            if error != Errno::NOTEMPTY && error != Errno::EXIST {
                return Err(error);
            }
            self.move_strays_out(target)?;
            rename()?;
        }
        self.forget_dir(target)
    }

    fn exchange(
        &self,
        from: &Side,
        to: &Side,
        moved: Gfid,
        other: Option<Gfid>,
    ) -> Result<(), Errno> {
        let other = some(other)?;
        let (here, there) = (from.holder(self)?, to.holder(self)?);
        if (here, there) == (Holder::Object(other), Holder::Object(moved)) {
            return Ok(());
        }
        if (here, there) != (Holder::Object(moved), Holder::Object(other)) {
            return Err(if there == Holder::Nothing {
                Errno::NOENT
            } else {
                Errno::STALE
            });
        }
        let flags = RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(
            &from.dir,
            from.name.c_str(),
            &to.dir,
            to.name.c_str(),
            flags,
        )
    }

    /// The whiteout is made complete in its handle; then it takes two steps, so the change is
    /// noted in `txn/` until both are done. (The disk's own whiteout would have no gfid.)
    fn rename_whiteout(
        &self,
        stamp: Stamp,
        step: &RenameStep,
        from: &Side,
        to: &Side,
        moved: Gfid,
    ) -> Result<(), Errno> {
        let whiteout = some(step.whiteout)?;
        let pending = format!("{PENDING_PREFIX}{}", stamp.number);
        let change = Change {
            number: stamp.number,
            time: Some(stamp.time),
            step: Some(Step::Rename(step.clone())),
            ..Change::default()
        };
        let mut text = String::new();
        for byte in change.encode_to_vec() {
            text.push_str(&format!("{byte:02x}"));
        }
        match rustix::fs::symlinkat(&*text, &self.txn, &*pending) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let done = self.make_whiteout(stamp, whiteout, step).and_then(|hot| {
            self.rename_one(stamp, step, from, to, moved)?;
            let handle = HandleName::of(whiteout);
            self.make_name(from.parent, from.dir.as_fd(), &from.name, whiteout, || {
                let (dir, name) = (&from.dir, from.name.c_str());
                rustix::fs::linkat(&self.handle, handle.c_str(), dir, name, AtFlags::empty())
            })?;
            Ok(hot)
        });
        rustix::fs::unlinkat(&self.txn, &*pending, AtFlags::empty())?;
        if let Some(hot) = done? {
            self.insert_new(hot);
        }
        self.listings
            .added(from.parent, from.name.bytes(), libc::S_IFCHR);
        Ok(())
    }

    /// `None`: it was there.
    fn make_whiteout(
        &self,
        stamp: Stamp,
        gfid: Gfid,
        step: &RenameStep,
    ) -> Result<Option<Hot>, Errno> {
        let state = State::new(stamp.time, stamp.time, stamp.number, stamp.number);
        let new = NewObject {
            gfid,
            mode: libc::S_IFCHR,
            uid: step.whiteout_uid,
            gid: step.whiteout_gid,
            rdev: 0,
            target: &[],
            acl_access: &[],
            acl_default: &[],
            state,
            atime: stamp.time,
        };
        match self.make_node(&new) {
            Ok(hot) => Ok(Some(hot)),
            Err(Errno::EXIST) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Finishes what a crash cut in two. `text` is that of the symlink in `txn/`.
    pub(in crate::brick) fn finish_pending(&self, text: &[u8]) -> Result<(), Errno> {
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        let bytes: Option<Vec<u8>> = text
            .chunks_exact(2)
            .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
            .collect();
        let change = bytes.and_then(|bytes| Change::decode(&*bytes).ok());
        match change {
            Some(Change {
                number,
                time,
                step: Some(Step::Rename(step)),
                ..
            }) => {
                let stamp = Stamp {
                    time: time.unwrap_or_default(),
                    number,
                };
                match self.rename(stamp, &step) {
                    // It had not begun, or a later change has gone over it: nothing to finish.
                    Err(Errno::NOENT | Errno::STALE | Errno::EXIST) => Ok(()),
                    other => other,
                }
            }
            // Not whole: the crash came before the first step.
            _ => Ok(()),
        }
    }
}
