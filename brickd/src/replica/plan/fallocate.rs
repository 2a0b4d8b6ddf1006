//! Room is reserved, zeroed or given back inside a file.

use mortar_common::FsError;
use mortar_proto::data::change::Step;
use mortar_proto::data::{Fallocate, FallocateStep};

use super::context::{bytes_taken, killed};
use super::{Context, PlanError, Planned};

const KEEP_SIZE: u32 = libc::FALLOC_FL_KEEP_SIZE as u32;
const PUNCH_HOLE: u32 = libc::FALLOC_FL_PUNCH_HOLE as u32;
const ZERO_RANGE: u32 = libc::FALLOC_FL_ZERO_RANGE as u32;

pub(super) fn fallocate(op: &Fallocate, context: &Context<'_>) -> Result<Planned, PlanError> {
    if op.len == 0 {
        return Err(FsError::Invalid.into());
    }
    let punches = op.mode == PUNCH_HOLE | KEEP_SIZE;
    if !punches && op.mode & !KEEP_SIZE != 0 && op.mode & !KEEP_SIZE != ZERO_RANGE {
        return Err(FsError::NotSupported.into());
    }
    let gfid = context.named(op.gfid)?;
    let object = context.file(gfid)?;
    let end = op.offset.checked_add(op.len).ok_or(FsError::FileTooLarge)?;
    if end > context.file_bytes_max() {
        return Err(FsError::FileTooLarge.into());
    }
    let bytes = if punches {
        0
    } else {
        bytes_taken(&object, op.offset, op.len)
    };
    context.check_space(bytes, 0)?;
    let (new_mode, drop_capability) = if op.kill_suidgid {
        killed(&object, object.mode)
    } else {
        (None, false)
    };
    let step = FallocateStep {
        gfid: Some(gfid),
        mode: op.mode,
        offset: op.offset,
        len: op.len,
        new_mode,
        drop_capability,
    };
    Ok(Planned::disk(Step::Fallocate(step), vec![gfid]).taking(bytes))
}
