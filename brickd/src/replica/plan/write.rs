//! Bytes are written; what was written becomes durable.

use mortar_common::FsError;
use mortar_proto::data::change::Step;
use mortar_proto::data::{Fsync, FsyncStep, Write, WriteStep, result};

use super::context::{bytes_taken, is_dir, is_file, killed};
use super::{Context, PlanError, Planned};

pub(super) fn write(op: &Write, context: &Context<'_>) -> Result<Planned, PlanError> {
    let gfid = context.named(op.gfid)?;
    let object = context.file(gfid)?;
    let asked = u64::from(op.len);
    let offset = if op.append { object.size } else { op.offset };
    let answer = |count| {
        if op.append {
            result::Ok::Offset(offset)
        } else {
            result::Ok::Count(count)
        }
    };
    let most = context.file_bytes_max();
    let len = if op.from_page_cache {
        // A mapped page is written whole: what lies behind the end of the file is not data.
        asked.min(object.size.saturating_sub(offset))
    } else if op.append {
        // An append is one piece or nothing.
        if asked > most.saturating_sub(offset) {
            return Err(FsError::FileTooLarge.into());
        }
        asked
    } else {
        if asked > 0 && offset >= most {
            return Err(FsError::FileTooLarge.into());
        }
        asked.min(most.saturating_sub(offset))
    };
    if len == 0 {
        return Ok(Planned::nothing(vec![gfid]).answering(answer(asked)));
    }
    let bytes = bytes_taken(&object, offset, len);
    context.check_space(bytes, 0)?;
    let (new_mode, drop_capability) = if op.kill_suidgid {
        killed(&object, object.mode)
    } else {
        (None, false)
    };
    // Not more than op.len, which is 32 bits.
    let len = len as u32;
    let step = WriteStep {
        gfid: Some(gfid),
        offset,
        len,
        new_mode,
        drop_capability,
        sync: op.sync,
    };
    let count = if op.from_page_cache {
        asked
    } else {
        u64::from(len)
    };
    let mut planned = Planned::disk(Step::Write(step), vec![gfid]).taking(bytes);
    planned.payload_bytes = len;
    Ok(planned.answering(answer(count)))
}

pub(super) fn fsync(op: &Fsync, context: &Context<'_>) -> Result<Planned, PlanError> {
    let gfid = context.named(op.gfid)?;
    let object = context.object(gfid)?;
    if !is_file(&object) && !is_dir(&object) {
        return Err(FsError::Invalid.into());
    }
    let step = FsyncStep {
        gfid: Some(gfid),
        data_only: op.data_only,
    };
    Ok(Planned::disk(Step::Fsync(step), vec![gfid]))
}
