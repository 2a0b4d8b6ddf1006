//! Carrying the bytes of a file.

use std::ops::Range;

use mortar_common::Gfid;
use mortar_proto::data::HealDataStep;
use mortar_proto::data::change::Step;

use super::super::marks::MarkState;
use super::super::port::{HealError, HealPort, Key};
use super::super::query::found;
use super::{Healer, with_keys};

/// Bytes of one heal change; the file's other changes wait while it is read.
const BLOCK_BYTES: u64 = 256 * 1024;

/// A range and its bytes; none for a hole.
type Content = (Range<u64>, Option<Vec<u8>>);

/// What one step through a file's pending ranges came to.
enum Block {
    /// This range was carried, with so many bytes of content, by the change of this number.
    Carried(Range<u64>, u64, u64),
    /// What is still pending lies behind the end of the file, or the file is gone.
    End,
}

impl Healer<'_> {
    /// Carries the pending bytes of a file, block by block. What lies behind its end is settled
    /// with the file's size.
    pub(super) fn heal_bytes(&mut self, gfid: Gfid) -> Result<(), HealError> {
        let mut from = 0;
        while self
            .marks()
            .look(|marks| marks.pending_range(gfid, from))
            .is_some()
        {
            self.check_stopped()?;
            // A change that could not be applied holds all others of this file up until the file's
            // attributes are carried again.
            if self.marks().look(|marks| marks.is_blocked(gfid))
                && self.send_object(gfid, MarkState::Owed)?.is_none()
            {
                return Ok(());
            }
            match self.send_block(gfid, from)? {
                Block::Carried(range, bytes, number) => {
                    self.count_sent(number, bytes);
                    from = range.end;
                }
                Block::End => return Ok(()),
            }
            self.sync_if_due()?;
        }
        Ok(())
    }

    fn send_block(&self, gfid: Gfid, from: u64) -> Result<Block, HealError> {
        let (port, marks) = (self.port, self.marks());
        port.make_room(BLOCK_BYTES)?;
        with_keys(port, &[Key::Object(gfid)], || {
            let Some(range) = marks.look(|marks| marks.pending_range(gfid, from)) else {
                return Ok(Block::End);
            };
            let Some((range, payload)) = read_block(port, gfid, range)? else {
                return Ok(Block::End);
            };
            let step = HealDataStep {
                gfid: Some(gfid),
                offset: range.start,
                len: range.end - range.start,
                hole: payload.is_none(),
            };
            let payload = payload.unwrap_or_default();
            let bytes = payload.len() as u64;
            let number = port.send(Step::HealData(step), payload)?;
            marks.carried(|marks| marks.carried_bytes(gfid, range.clone(), number));
            Ok(Block::Carried(range, bytes, number))
        })
    }
}

/// The first block of the range: its bytes, or none for a hole. `None` at the end of the file.
fn read_block(
    port: &dyn HealPort,
    gfid: Gfid,
    range: Range<u64>,
) -> Result<Option<Content>, HealError> {
    let source = port.source();
    let Some(object) = found(source.object(gfid))? else {
        return Ok(None);
    };
    if range.start >= object.size {
        return Ok(None);
    }
    let end = range.end.min(object.size);
    // Behind the last extent there is a hole up to the file's size.
    let extent = found(source.next_extent(gfid, range.start))?.flatten();
    let (at, len, hole) = extent.unwrap_or((object.size, 0, true));
    if at > range.start {
        return Ok(Some((range.start..end.min(at), None)));
    }
    let end = end.min(at.saturating_add(len).max(range.start + 1));
    if hole {
        return Ok(Some((range.start..end, None)));
    }
    let end = end.min(range.start + BLOCK_BYTES);
    let mut bytes = Vec::with_capacity((end - range.start) as usize);
    source.read(gfid, range.start, (end - range.start) as u32, &mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    Ok(Some((
        range.start..range.start + bytes.len() as u64,
        Some(bytes),
    )))
}
