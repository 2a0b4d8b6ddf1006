//! What an ordered change touches: the names, objects and byte ranges that a copy without the
//! change lacks, and what the change finds in place.

use std::ops::Range;

use mortar_common::Gfid;
use mortar_proto::data::change::Step;
use mortar_proto::data::{Change, RenameMode, RenameStep, SetAttrStep};

use super::links::Held;

/// To the end of a file, however long it is.
pub const TO_THE_END: u64 = u64::MAX;

/// How much of an object a copy without the change lacks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lacks {
    /// Times, link count and counters only: any further change can be applied all the same.
    Times,
    /// Its existence, size, owner, mode or xattrs: no further change can be applied.
    Attributes,
}

/// One thing that a change touches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Touch<'a> {
    /// Changes the object itself.
    Object(Gfid, Lacks),
    /// Changes what a name in this directory holds.
    Name(Gfid, &'a [u8], Held),
    /// Changes bytes.
    Bytes(Gfid, Range<u64>),
    /// Reads bytes without changing them (the source of a copy).
    Reads(Gfid, Range<u64>),
    /// Finds the object in place without changing it.
    Finds(Gfid),
    /// Takes a name, perhaps the last one, from the object; if it is a directory, it is empty. Or
    /// frees the object.
    Takes(Gfid),
}

/// Hands everything that `change` touches to `each`. What lives in memory alone (sessions, opens,
/// locks) and the steps of a heal touch nothing.
pub fn each_touch<'a>(change: &'a Change, each: &mut dyn FnMut(Touch<'a>)) {
    use Lacks::{Attributes, Times};
    let Some(step) = &change.step else { return };
    match step {
        Step::Create(step) => {
            if !step.name.is_empty() {
                entry(step.parent, &step.name, None, step.gfid, each);
            }
            object(step.gfid, Attributes, each);
        }
        Step::Link(step) => {
            entry(step.parent, &step.name, None, step.gfid, each);
            object(step.gfid, Times, each);
        }
        Step::Unlink(step) => {
            entry(step.parent, &step.name, step.gfid, None, each);
            taken(step.gfid, each);
        }
        Step::Rmdir(step) => {
            entry(step.parent, &step.name, step.gfid, None, each);
            taken(step.gfid, each);
        }
        Step::Rename(step) => rename(step, each),
        Step::Setattr(step) => set_attr(step, each),
        Step::Write(step) => bytes(step.gfid, step.offset, u64::from(step.len), each),
        Step::Fallocate(step) => {
            object(step.gfid, Attributes, each);
            if let Some((gfid, range)) =
                step.gfid
                    .zip(moved_by_fallocate(step.mode, step.offset, step.len))
            {
                each(Touch::Bytes(gfid, range));
            }
        }
        Step::CopyRange(step) => {
            if let Some(from) = step.from {
                each(Touch::Reads(from, span(step.from_offset, step.len)));
            }
            bytes(step.to, step.to_offset, step.len, each);
        }
        Step::Setxattr(step) => object(step.gfid, Attributes, each),
        Step::Removexattr(step) => object(step.gfid, Attributes, each),
        Step::Fsync(step) => {
            if let Some(gfid) = step.gfid {
                each(Touch::Finds(gfid));
            }
        }
        Step::Free(step) => taken(step.gfid, each),
        Step::SessionOpen(_)
        | Step::SessionEnd(_)
        | Step::Open(_)
        | Step::Release(_)
        | Step::Lock(_)
        | Step::Settled(_)
        | Step::HealObject(_)
        | Step::HealData(_)
        | Step::HealName(_)
        | Step::Sync(_) => {}
    }
}

fn object<'a>(gfid: Option<Gfid>, lacks: Lacks, each: &mut dyn FnMut(Touch<'a>)) {
    if let Some(gfid) = gfid {
        each(Touch::Object(gfid, lacks));
    }
}

fn taken<'a>(gfid: Option<Gfid>, each: &mut dyn FnMut(Touch<'a>)) {
    object(gfid, Lacks::Times, each);
    if let Some(gfid) = gfid {
        each(Touch::Takes(gfid));
    }
}

fn entry<'a>(
    parent: Option<Gfid>,
    name: &'a [u8],
    before: Option<Gfid>,
    after: Option<Gfid>,
    each: &mut dyn FnMut(Touch<'a>),
) {
    if let Some(parent) = parent {
        each(Touch::Name(parent, name, Held::Known { before, after }));
        each(Touch::Object(parent, Lacks::Times));
    }
}

fn bytes<'a>(gfid: Option<Gfid>, offset: u64, len: u64, each: &mut dyn FnMut(Touch<'a>)) {
    if let Some(gfid) = gfid {
        each(Touch::Object(gfid, Lacks::Attributes));
        if len > 0 {
            each(Touch::Bytes(gfid, span(offset, len)));
        }
    }
}

fn rename<'a>(step: &'a RenameStep, each: &mut dyn FnMut(Touch<'a>)) {
    let exchange = step.how() == RenameMode::RenameExchange;
    let left = if exchange {
        step.replaced
    } else {
        step.whiteout
    };
    entry(step.from_parent, &step.from_name, step.gfid, left, each);
    entry(
        step.to_parent,
        &step.to_name,
        step.replaced,
        step.gfid,
        each,
    );
    object(step.gfid, Lacks::Times, each);
    if exchange {
        object(step.replaced, Lacks::Times, each);
    } else {
        taken(step.replaced, each);
    }
    object(step.whiteout, Lacks::Attributes, each);
}

fn set_attr<'a>(step: &'a SetAttrStep, each: &mut dyn FnMut(Touch<'a>)) {
    object(step.gfid, Lacks::Attributes, each);
    if let Some((gfid, size)) = step.gfid.zip(step.size) {
        each(Touch::Bytes(gfid, size..TO_THE_END));
    }
}

/// What a fallocate does to bytes: a plain reservation does nothing, punching and zeroing change
/// their range, anything that shifts bytes (or is not known) changes all that follows.
fn moved_by_fallocate(mode: u32, offset: u64, len: u64) -> Option<Range<u64>> {
    let in_place = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) as u32;
    let keep_size = libc::FALLOC_FL_KEEP_SIZE as u32;
    match mode & !keep_size {
        0 => None,
        changed if changed & !in_place == 0 => Some(span(offset, len)),
        _ => Some(offset..TO_THE_END),
    }
}

fn span(offset: u64, len: u64) -> Range<u64> {
    offset..offset.saturating_add(len)
}
