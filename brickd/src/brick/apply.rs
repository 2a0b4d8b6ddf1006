//! Ordered changes: one file per family. Errors are plain errnos until [`Inner::apply`] says what
//! was tried.

mod create;
mod heal;
mod heal_name;
mod link;
mod rename;
mod setattr;
mod unlink;
mod write;
mod xattrs;

pub(super) use rename::PENDING_PREFIX;
#[cfg(test)]
pub(super) use unlink::FREE_NOW_BYTES_MAX;
pub(super) use unlink::FREE_PREFIX;

use std::os::fd::{AsFd, BorrowedFd};

use mortar_common::Gfid;
use mortar_proto::data::change::Step;
use mortar_proto::data::{Change, Time};
use rustix::io::Errno;

use super::inner::Inner;
use super::layout::EntryName;
use super::store::BrickError;

/// When and as what number a change was ordered.
#[derive(Clone, Copy)]
pub(super) struct Stamp {
    pub time: Time,
    pub number: u64,
}

/// What stands in the way of a new name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holder {
    Nothing,
    Object(Gfid),
    Stray,
}

impl Inner {
    /// See [`super::Store::apply`].
    pub fn apply(&self, change: &Change, payload: &[u8]) -> Result<(), BrickError> {
        let Some(step) = &change.step else {
            return Ok(());
        };
        if is_memory_only(step) {
            return Ok(());
        }
        self.check_failed()?;
        self.reserve_number(change.number)?;
        let stamp = Stamp {
            time: change.time.unwrap_or_default(),
            number: change.number,
        };
        self.apply_step(stamp, step, payload)
            .map_err(|error| self.error(error, || describe(change.number, step)))
    }

    fn apply_step(&self, stamp: Stamp, step: &Step, payload: &[u8]) -> Result<(), Errno> {
        match step {
            Step::Create(step) => self.create(stamp, step),
            Step::Link(step) => self.link(stamp, step),
            Step::Unlink(step) => self.unlink(stamp, step),
            Step::Rmdir(step) => self.rmdir(stamp, step),
            Step::Rename(step) => self.rename(stamp, step),
            Step::Setattr(step) => self.set_attr(stamp, step),
            Step::Write(step) => self.write(stamp, step, payload),
            Step::Fallocate(step) => self.fallocate(stamp, step),
            Step::CopyRange(step) => self.copy_range(stamp, step),
            Step::Setxattr(step) => self.set_xattr(stamp, step),
            Step::Removexattr(step) => self.remove_xattr(stamp, step),
            Step::Fsync(step) => self.sync_object(some(step.gfid)?, step.data_only),
            Step::Free(step) => self.free_orphan(some(step.gfid)?),
            Step::HealObject(step) => self.heal_object(stamp, step),
            Step::HealData(step) => self.heal_data(step, payload),
            Step::HealName(step) => self.heal_name(stamp, step),
            // A sync is asked of `Store::sync_all`, which the layer above calls for it; the rest
            // lives in memory alone.
            Step::Sync(_)
            | Step::SessionOpen(_)
            | Step::SessionEnd(_)
            | Step::Open(_)
            | Step::Release(_)
            | Step::Lock(_)
            | Step::Settled(_) => Ok(()),
        }
    }

    fn holder(&self, dir: BorrowedFd<'_>, name: &EntryName) -> Result<Holder, Errno> {
        match self.gfid_at(dir, name.c_str()) {
            Ok(Some(gfid)) => Ok(Holder::Object(gfid)),
            Ok(None) => Ok(Holder::Stray),
            Err(Errno::NOENT) => Ok(Holder::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Runs what makes a name that must be free. A stray in its place is moved away; `gfid` in its
    /// place means that this was done before.
    fn make_name(
        &self,
        parent: Gfid,
        dir: BorrowedFd<'_>,
        name: &EntryName,
        gfid: Gfid,
        make: impl Fn() -> Result<(), Errno>,
    ) -> Result<Made, Errno> {
        match make() {
            Ok(()) => return Ok(Made::Now),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        match self.holder(dir, name)? {
            Holder::Object(there) if there == gfid => Ok(Made::Before),
            Holder::Object(_) => Err(Errno::EXIST),
            Holder::Stray => {
                self.move_stray(parent, dir, name)?;
                make().map(|()| Made::Now)
            }
            Holder::Nothing => make().map(|()| Made::Now),
        }
    }

    /// Moves everything without a gfid out of a directory that is to be removed.
    fn move_strays_out(&self, gfid: Gfid) -> Result<(), Errno> {
        let (_, fd) = self.dir(gfid)?;
        let mut strays = Vec::new();
        super::handle::each_entry(&fd, &mut |name, _| {
            if self.gfid_at(fd.as_fd(), name)?.is_none() {
                strays.push(EntryName::unchecked(name.to_bytes()));
            }
            Ok(())
        })?;
        for name in &strays {
            self.move_stray(gfid, fd.as_fd(), name)?;
        }
        Ok(())
    }
}

/// Whether a name was made now or had been made by the same change before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Made {
    Now,
    Before,
}

/// A field the protocol requires.
fn some(gfid: Option<Gfid>) -> Result<Gfid, Errno> {
    gfid.ok_or(Errno::INVAL)
}

fn is_memory_only(step: &Step) -> bool {
    matches!(
        step,
        Step::Sync(_)
            | Step::SessionOpen(_)
            | Step::SessionEnd(_)
            | Step::Open(_)
            | Step::Release(_)
            | Step::Lock(_)
            | Step::Settled(_)
    )
}

/// For an error: the change, its kind, and the objects it names.
fn describe(number: u64, step: &Step) -> String {
    let of = |gfid: Option<Gfid>| gfid.map_or("?".to_owned(), |gfid| gfid.to_string());
    let named = |verb: &str, gfid, parent, name: &[u8]| {
        format!(
            "{verb} {} as '{}' in {}",
            of(gfid),
            String::from_utf8_lossy(name),
            of(parent)
        )
    };
    let what = match step {
        Step::Create(s) => named("create", s.gfid, s.parent, &s.name),
        Step::Link(s) => named("link", s.gfid, s.parent, &s.name),
        Step::Unlink(s) => named("unlink", s.gfid, s.parent, &s.name),
        Step::Rmdir(s) => named("rmdir", s.gfid, s.parent, &s.name),
        Step::Rename(s) => named("rename", s.gfid, s.to_parent, &s.to_name),
        Step::Setattr(s) => format!("setattr {}", of(s.gfid)),
        Step::Write(s) => format!("write {} at {}", of(s.gfid), s.offset),
        Step::Fallocate(s) => format!("fallocate {} at {}", of(s.gfid), s.offset),
        Step::CopyRange(s) => format!("copy_range {} to {}", of(s.from), of(s.to)),
        Step::Setxattr(s) => format!("setxattr {}", of(s.gfid)),
        Step::Removexattr(s) => format!("removexattr {}", of(s.gfid)),
        Step::Fsync(s) => format!("fsync {}", of(s.gfid)),
        Step::Free(s) => format!("free {}", of(s.gfid)),
        Step::HealObject(s) => format!("heal {}", of(s.object.as_ref().and_then(|o| o.gfid))),
        Step::HealData(s) => format!("heal data of {} at {}", of(s.gfid), s.offset),
        Step::HealName(s) => named("heal name", s.gfid, s.parent, &s.name),
        _ => "step in memory".to_owned(),
    };
    format!("change {number}, {what}")
}
