//! What a healer asks of the copy it heals, and how that copy answers.

use std::ops::Range;

use bytes::Bytes;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::op::Op as Ask;
use mortar_proto::data::result::Ok as Answer;
use mortar_proto::data::{
    self, HealObjectStep, HealStat, Object, Op, Orphans, ReadDir, Seek, SumRange, TouchedOp, Whence,
};
use prost::Message;
use xxhash_rust::xxh3::xxh3_64;

use super::touched::{Span, spans_of};
use crate::brick::{BrickError, HealSource};

/// Gfids in one answer to [`Orphans`].
const ORPHANS_PER_ANSWER: usize = 4_096;

/// Stands for the place of data that there is none of.
pub const NO_DATA: u64 = u64::MAX;

/// The answer of a copy to one operation of a healer; `None` when the operation is not a healer's.
///
/// An object that the copy does not have is an answer, not an error. Blocks.
pub fn answer(brick: &dyn HealSource, op: &Op) -> Option<data::Result> {
    let answered = match op.op.as_ref()? {
        Ask::HealStat(ask) => stat(brick, ask),
        Ask::SumRange(ask) => sum_range(brick, ask),
        Ask::Seek(ask) => seek_data(brick, ask),
        Ask::Readdir(ask) => brick.read_dir(ask).map(|page| data::Result {
            ok: Some(Answer::Readdir(page)),
            ..Default::default()
        }),
        Ask::Orphans(ask) => orphans(brick, ask),
        Ask::Touched(_) => touched(brick),
        _ => return None,
    };
    Some(answered.unwrap_or_else(|error| data::Result {
        errno: error.fs_error().errno(),
        ..Default::default()
    }))
}

/// A sum of all that healing makes equal of an object: equal sums, equal objects.
pub fn object_sum(step: &HealObjectStep) -> u64 {
    let mut step = step.clone();
    step.replace = false;
    step.xattrs.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(object) = &mut step.object {
        // Link counts follow from names; blocks and a directory's size are the disk's own.
        object.nlink = 0;
        object.blocks = 0;
        object.presence = 0;
        if file_type(object) == libc::S_IFDIR {
            object.size = 0;
        }
    }
    xxh3_64(&step.encode_to_vec())
}

/// A sum of what copies in sync must not differ in. Counters and the times beside mtime may be behind
/// on a copy that was killed.
pub fn plain_sum(step: &HealObjectStep) -> u64 {
    let mut step = step.clone();
    if let Some(object) = &mut step.object {
        (object.data_counter, object.attr_counter) = (0, 0);
        (object.atime, object.ctime) = (None, None);
        if file_type(object) == libc::S_IFDIR {
            object.mtime = None;
        }
    }
    object_sum(&step)
}

/// The type bits of an object's mode.
pub fn file_type(object: &Object) -> u32 {
    object.mode & libc::S_IFMT
}

/// `None` for what is not there.
pub fn found<T>(result: Result<T, BrickError>) -> Result<Option<T>, BrickError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(BrickError::Refused {
            error: FsError::NotFound | FsError::Stale | FsError::NotDirectory,
            ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks what a copy has of this object.
pub(super) fn ask_stat(gfid: Gfid) -> Op {
    Op {
        op: Some(Ask::HealStat(HealStat {
            gfid: Some(gfid),
            plain: false,
        })),
    }
}

/// Asks what an in-sync copy has of this object: its plain sum.
pub fn ask_plain_stat(gfid: Gfid) -> Op {
    Op {
        op: Some(Ask::HealStat(HealStat {
            gfid: Some(gfid),
            plain: true,
        })),
    }
}

/// Asks for the sum of a range as the disk has it.
pub fn ask_sum_on_disk(gfid: Gfid, offset: u64, len: u64) -> Op {
    Op {
        op: Some(Ask::SumRange(SumRange {
            gfid: Some(gfid),
            offset,
            len,
            from_disk: true,
        })),
    }
}

/// Asks for the sum of a range.
pub(super) fn ask_sum(gfid: Gfid, offset: u64, len: u64) -> Op {
    Op {
        op: Some(Ask::SumRange(SumRange {
            gfid: Some(gfid),
            offset,
            len,
            from_disk: false,
        })),
    }
}

/// Asks where the first data at or behind an offset is.
pub fn ask_data_from(gfid: Gfid, offset: u64) -> Op {
    Op {
        op: Some(Ask::Seek(Seek {
            gfid: Some(gfid),
            offset,
            whence: Whence::Data.into(),
        })),
    }
}

/// The answer to [`ask_data_from`], as [`data_from`] has it.
pub fn told_data_from(answer: &data::Result) -> Option<u64> {
    match answer.ok {
        Some(Answer::Offset(at)) => Some(at),
        _ => None,
    }
}

/// Where a file's first data at or behind `offset` is; [`NO_DATA`] when all that follows are holes.
///
/// # Errors
/// Those of the disk; also when there is no such file.
fn data_from(brick: &dyn HealSource, gfid: Gfid, offset: u64) -> Result<u64, BrickError> {
    let mut at = offset;
    loop {
        match brick.next_extent(gfid, at)? {
            None => return Ok(NO_DATA),
            Some((_, _, false)) => return Ok(at),
            Some((start, len, true)) => at = start.saturating_add(len),
        }
    }
}

/// Where in the range the first piece of `step` bytes begins in which any copy has data: what is a
/// hole on all of them is equal and is not read, however large it is. `ask` asks the other copies; what
/// one of them does not tell may be anywhere.
///
/// # Errors
/// Those of the disk and of `ask`.
pub fn data_of_any<Error: From<BrickError>>(
    brick: &dyn HealSource,
    gfid: Gfid,
    range: Range<u64>,
    step: u64,
    ask: impl FnOnce(Op) -> Result<Vec<Option<u64>>, Error>,
) -> Result<Option<u64>, Error> {
    if range.is_empty() {
        return Ok(None);
    }
    let mine = found(data_from(brick, gfid, range.start))?.unwrap_or(NO_DATA);
    if mine <= range.start {
        return Ok(Some(range.start));
    }
    let told = ask(ask_data_from(gfid, range.start))?;
    let told = told.into_iter().map(|at| at.unwrap_or(range.start));
    let first = told.fold(mine, u64::min);
    let start = (first / step * step).max(range.start);
    Ok((start < range.end).then_some(start))
}

/// Asks for a page of a directory.
pub fn ask_read_dir(page: &ReadDir) -> Op {
    Op {
        op: Some(Ask::Readdir(page.clone())),
    }
}

/// Asks what the copy has touched.
pub(super) fn ask_touched() -> Op {
    Op {
        op: Some(Ask::Touched(TouchedOp {})),
    }
}

/// The answer to [`ask_touched`]; `None`: it does not know.
pub(super) fn touched_of(answer: &data::Result) -> Option<Vec<Span>> {
    let Some(Answer::Bytes(bytes)) = &answer.ok else {
        return None;
    };
    let codes = bytes.chunks_exact(4);
    let code = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap_or([u8::MAX; 4]));
    Some(codes.map(|bytes| Span::from_code(code(bytes))).collect())
}

/// Asks for objects without a name.
pub(super) fn ask_orphans(after: Gfid) -> Op {
    Op {
        op: Some(Ask::Orphans(Orphans { after: Some(after) })),
    }
}

fn stat(brick: &dyn HealSource, ask: &HealStat) -> Result<data::Result, BrickError> {
    let gfid = ask.gfid.unwrap_or_default();
    let Some(step) = found(brick.heal_object(gfid))? else {
        return Ok(data::Result::default());
    };
    let sum = match ask.plain {
        true => plain_sum(&step),
        false => object_sum(&step),
    };
    let mut objects: Vec<Object> = step.object.into_iter().collect();
    if objects
        .first()
        .is_some_and(|object| file_type(object) == libc::S_IFDIR)
    {
        // A directory without a name has no parent that could be told.
        if let Ok(parent) = brick.parent_of_dir(gfid) {
            objects.push(Object {
                gfid: Some(parent),
                ..Default::default()
            });
        }
    }
    Ok(data::Result {
        objects,
        ok: Some(Answer::Sum(sum)),
        ..Default::default()
    })
}

fn sum_range(brick: &dyn HealSource, ask: &SumRange) -> Result<data::Result, BrickError> {
    if ask.from_disk {
        brick.forget_cached(ask.gfid.unwrap_or_default(), ask.offset, ask.len);
    }
    let sum = brick.sum(ask.gfid.unwrap_or_default(), ask.offset, ask.len)?;
    Ok(data::Result {
        ok: Some(Answer::Sum(sum)),
        ..Default::default()
    })
}

fn seek_data(brick: &dyn HealSource, ask: &Seek) -> Result<data::Result, BrickError> {
    let at = data_from(brick, ask.gfid.unwrap_or_default(), ask.offset)?;
    Ok(data::Result {
        ok: Some(Answer::Offset(at)),
        ..Default::default()
    })
}

fn touched(brick: &dyn HealSource) -> Result<data::Result, BrickError> {
    let spans = spans_of(brick)?;
    let bytes = spans.map(|spans| {
        let codes = spans.iter().flat_map(|span| span.code().to_le_bytes());
        Answer::Bytes(Bytes::from(codes.collect::<Vec<u8>>()))
    });
    Ok(data::Result {
        ok: bytes,
        ..Default::default()
    })
}

fn orphans(brick: &dyn HealSource, ask: &Orphans) -> Result<data::Result, BrickError> {
    let after = ask.after.unwrap_or_default();
    let mut orphans = brick.orphans()?;
    orphans.retain(|gfid| *gfid > after);
    orphans.sort_unstable();
    orphans.truncate(ORPHANS_PER_ANSWER);
    let bytes: Vec<u8> = orphans.iter().flat_map(|gfid| gfid.to_bytes()).collect();
    Ok(data::Result {
        ok: Some(Answer::Bytes(Bytes::from(bytes))),
        ..Default::default()
    })
}
