//! A file of blocks that name themselves: overwritten in place, a few at a time, and fdatasynced.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::{Expect, Work};
use crate::simulator::Random;

const BLOCKS: usize = 64;
const BLOCK_BYTES: usize = 4096;
const BLOCKS_A_STEP: u64 = 3;

pub(super) struct Blocks {
    file: Option<File>,
    random: Random,
    tried: [u64; BLOCKS],
    acknowledged: [u64; BLOCKS],
}

impl Blocks {
    pub fn new(seed: u64) -> Self {
        Blocks {
            file: None,
            random: Random::new(seed),
            tried: [0; BLOCKS],
            acknowledged: [0; BLOCKS],
        }
    }
}

impl Work for Blocks {
    fn name(&self) -> &'static str {
        "blocks"
    }

    fn begin(&mut self, folder: &Path) -> io::Result<()> {
        let path = folder.join("blocks");
        let file = File::options().write(true).create_new(true).open(path)?;
        for number in 0..BLOCKS {
            file.write_all_at(&block(number, 0), (number * BLOCK_BYTES) as u64)?;
        }
        file.sync_all()?;
        File::open(folder)?.sync_all()?;
        self.file = Some(file);
        Ok(())
    }

    fn step(&mut self) -> io::Result<()> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        for _ in 0..self.random.between(1, BLOCKS_A_STEP) {
            let number = self.random.below(BLOCKS);
            self.tried[number] += 1;
            let bytes = block(number, self.tried[number]);
            file.write_all_at(&bytes, (number * BLOCK_BYTES) as u64)?;
        }
        file.sync_data()?;
        self.acknowledged = self.tried;
        Ok(())
    }

    fn check(&mut self, folder: &Path, _expect: Expect) -> Result<(), String> {
        let bytes = fs::read(folder.join("blocks")).map_err(|error| error.to_string())?;
        if bytes.len() != BLOCKS * BLOCK_BYTES {
            return Err(format!("it has {} bytes", bytes.len()));
        }
        for (number, found) in bytes.chunks(BLOCK_BYTES).enumerate() {
            let (least, most) = (self.acknowledged[number], self.tried[number]);
            // One that was just being overwritten may be torn: no disk promises more.
            let whole = (least..=most).any(|version| found == block(number, version));
            if !whole && least == most {
                let version = u64::from_le_bytes(found[..8].try_into().expect("8 bytes"));
                return Err(format!(
                    "block {number} was fsynced as version {least} and is {version}"
                ));
            }
        }
        Ok(())
    }
}

fn block(number: usize, version: u64) -> [u8; BLOCK_BYTES] {
    let mut bytes = [0; BLOCK_BYTES];
    bytes[..8].copy_from_slice(&version.to_le_bytes());
    bytes[8..16].copy_from_slice(&(number as u64).to_le_bytes());
    let filling = xxh3_64(&bytes[..16]).to_le_bytes();
    for piece in bytes[16..].chunks_mut(8) {
        piece.copy_from_slice(&filling);
    }
    bytes
}
