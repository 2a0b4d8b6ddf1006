//! Content: writes, holes and space, copies between files.

use std::os::fd::OwnedFd;

use mortar_proto::data::{CopyRangeStep, FallocateStep, WriteStep};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::{Stamp, some};
use crate::brick::durable;
use crate::brick::hot::Touch;
use crate::brick::inner::Inner;

/// Written at a time where the disk cannot make zeros, or copy, by itself.
const COPY_BYTES: usize = 256 * 1024;

impl Inner {
    pub(super) fn write(
        &self,
        stamp: Stamp,
        step: &WriteStep,
        payload: &[u8],
    ) -> Result<(), Errno> {
        if payload.len() != step.len as usize {
            return Err(Errno::INVAL);
        }
        let gfid = some(step.gfid)?;
        let (hot, fd) = self.file(gfid)?;
        durable::write_all(&fd, step.offset, payload)?;
        self.clear_privileges(&hot, &fd, step.new_mode, step.drop_capability)?;
        if !payload.is_empty() {
            self.touch(&hot, Touch::Content, stamp.time, stamp.number);
        }
        if step.sync {
            self.sync_object(gfid, false)
        } else {
            Ok(())
        }
    }

    pub(super) fn fallocate(&self, stamp: Stamp, step: &FallocateStep) -> Result<(), Errno> {
        let (hot, fd) = self.file(some(step.gfid)?)?;
        let mode = FallocateFlags::from_bits(step.mode).ok_or(Errno::OPNOTSUPP)?;
        let known =
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !known.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        match rustix::fs::fallocate(&fd, mode, step.offset, step.len) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => fallocate_by_hand(&fd, mode, step.offset, step.len)?,
            Err(error) => return Err(error),
        }
        self.clear_privileges(&hot, &fd, step.new_mode, step.drop_capability)?;
        let what = if mode == FallocateFlags::KEEP_SIZE {
            Touch::Room
        } else {
            Touch::Content
        };
        self.touch(&hot, what, stamp.time, stamp.number);
        Ok(())
    }

    pub(super) fn copy_range(&self, stamp: Stamp, step: &CopyRangeStep) -> Result<(), Errno> {
        let (_, from) = self.file(some(step.from)?)?;
        let (hot, to) = self.file(some(step.to)?)?;
        let (mut from_offset, mut to_offset) = (step.from_offset, step.to_offset);
        let mut left = step.len;
        while left > 0 {
            let len = usize::try_from(left).unwrap_or(usize::MAX);
            let count = match rustix::fs::copy_file_range(
                &from,
                Some(&mut from_offset),
                &to,
                Some(&mut to_offset),
                len,
            ) {
                Ok(count) => count as u64,
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::XDEV) => {
                    copy_by_hand(&from, from_offset, &to, to_offset, left)?;
                    break;
                }
                Err(Errno::INTR) => continue,
                Err(error) if left == step.len => return Err(error),
                Err(_) => return Err(Errno::IO),
            };
            if count == 0 {
                // The source is shorter than where the change was ordered.
                return Err(Errno::RANGE);
            }
            left -= count;
        }
        self.clear_privileges(&hot, &to, step.new_mode, step.drop_capability)?;
        self.touch(&hot, Touch::Content, stamp.time, stamp.number);
        Ok(())
    }
}

/// Makes a hole, or writes zeros where the disk has no holes. The size stays.
pub(in crate::brick) fn punch(fd: &OwnedFd, offset: u64, len: u64) -> Result<(), Errno> {
    let mode = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
    match rustix::fs::fallocate(fd, mode, offset, len) {
        Err(Errno::OPNOTSUPP) => fallocate_by_hand(fd, mode, offset, len),
        other => other,
    }
}

/// The same content as fallocate would leave; space is not reserved.
fn fallocate_by_hand(
    fd: &OwnedFd,
    mode: FallocateFlags,
    offset: u64,
    len: u64,
) -> Result<(), Errno> {
    let size = rustix::fs::fstat(fd)?.st_size.max(0).cast_unsigned();
    let end = offset.checked_add(len).ok_or(Errno::FBIG)?;
    if mode.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE) {
        let zeros = vec![0; COPY_BYTES];
        let mut at = offset;
        while at < end.min(size) {
            let count = (end.min(size) - at).min(COPY_BYTES as u64);
            durable::write_all(fd, at, &zeros[..count as usize])?;
            at += count;
        }
    }
    if end > size && !mode.contains(FallocateFlags::KEEP_SIZE) {
        rustix::fs::ftruncate(fd, end)?;
    }
    Ok(())
}

fn copy_by_hand(
    from: &OwnedFd,
    mut from_offset: u64,
    to: &OwnedFd,
    mut to_offset: u64,
    mut left: u64,
) -> Result<(), Errno> {
    let mut buffer = vec![0; COPY_BYTES];
    while left > 0 {
        let len = left.min(COPY_BYTES as u64) as usize;
        let count = rustix::io::pread(from, &mut buffer[..len], from_offset)?;
        if count == 0 {
            return Err(Errno::RANGE);
        }
        durable::write_all(to, to_offset, &buffer[..count])?;
        from_offset += count as u64;
        to_offset += count as u64;
        left -= count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand_gives_the_content_the_kernel_gives() {
        let modes = [
            FallocateFlags::empty(),
            FallocateFlags::KEEP_SIZE,
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE,
            FallocateFlags::ZERO_RANGE,
            FallocateFlags::KEEP_SIZE | FallocateFlags::ZERO_RANGE,
        ];
        for mode in modes {
            for (offset, len) in [(0, 10), (5, 100_000), (299_990, 100), (400_000, 5)] {
                let make = || {
                    let file = tempfile::tempfile().unwrap();
                    let fd = OwnedFd::from(file);
                    durable::write_all(&fd, 0, &vec![7; 300_000]).unwrap();
                    fd
                };
                let (by_kernel, by_hand) = (make(), make());
                rustix::fs::fallocate(&by_kernel, mode, offset, len).unwrap();
                fallocate_by_hand(&by_hand, mode, offset, len).unwrap();
                assert!(
                    whole(&by_kernel) == whole(&by_hand),
                    "{mode:?} {offset} {len}"
                );
                let copied = OwnedFd::from(tempfile::tempfile().unwrap());
                copy_by_hand(&by_hand, 3, &copied, 0, 299_000).unwrap();
                assert!(whole(&copied) == whole(&by_kernel)[3..299_003]);
            }
        }
    }

    fn whole(fd: &OwnedFd) -> Vec<u8> {
        let mut bytes = vec![0; rustix::fs::fstat(fd).unwrap().st_size as usize];
        assert_eq!(rustix::io::pread(fd, &mut bytes[..], 0), Ok(bytes.len()));
        bytes
    }
}
