//! A range is copied on the bricks, without travelling.

use mortar_common::FsError;
use mortar_proto::data::change::Step;
use mortar_proto::data::{CopyRange, CopyRangeStep, result};

use super::context::{bytes_taken, killed};
use super::{Context, PlanError, Planned};

/// Most that one change copies, so that none keeps a copy busy until it is taken for stalled;
/// callers go on after a short count.
pub const COPY_RANGE_BYTES_MAX: u64 = 32 << 20;

pub(super) fn copy_range(op: &CopyRange, context: &Context<'_>) -> Result<Planned, PlanError> {
    let from = context.named(op.from)?;
    let to = context.named(op.to)?;
    let source = context.file(from)?;
    let target = context.file(to)?;
    for offset in [op.from_offset, op.to_offset] {
        offset.checked_add(op.len).ok_or(FsError::Overflow)?;
    }
    let most = context.file_bytes_max();
    if op.len > 0 && op.to_offset >= most {
        return Err(FsError::FileTooLarge.into());
    }
    let len = op
        .len
        .min(most.saturating_sub(op.to_offset))
        .min(source.size.saturating_sub(op.from_offset));
    if from == to && len > 0 && op.from_offset.abs_diff(op.to_offset) < len {
        return Err(FsError::Invalid.into());
    }
    let len = len.min(COPY_RANGE_BYTES_MAX);
    let touched = vec![to, from];
    if len == 0 {
        return Ok(Planned::nothing(touched).answering(result::Ok::Count(0)));
    }
    let bytes = bytes_taken(&target, op.to_offset, len);
    context.check_space(bytes, 0)?;
    let (new_mode, drop_capability) = if op.kill_suidgid {
        killed(&target, target.mode)
    } else {
        (None, false)
    };
    let step = CopyRangeStep {
        from: Some(from),
        from_offset: op.from_offset,
        to: Some(to),
        to_offset: op.to_offset,
        len,
        new_mode,
        drop_capability,
    };
    let planned = Planned::disk(Step::CopyRange(step), touched).taking(bytes);
    Ok(planned.answering(result::Ok::Count(len)))
}
