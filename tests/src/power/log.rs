//! A log: records with a sequence number and a checksum, appended and fsynced one by one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::{Expect, Work};

const RECORD_BYTES: usize = 64;

#[derive(Default)]
pub(super) struct Log {
    file: Option<File>,
    tried: u64,
    acknowledged: u64,
}

impl Work for Log {
    fn name(&self) -> &'static str {
        "log"
    }

    fn begin(&mut self, folder: &Path) -> io::Result<()> {
        let path = folder.join("log");
        let file = File::options().append(true).create_new(true).open(path)?;
        File::open(folder)?.sync_all()?;
        self.file = Some(file);
        Ok(())
    }

    fn step(&mut self) -> io::Result<()> {
        let record = record(self.tried);
        self.tried += 1;
        let mut file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        file.write_all(&record)?;
        file.sync_data()?;
        self.acknowledged = self.tried;
        Ok(())
    }

    fn check(&mut self, folder: &Path, _expect: Expect) -> Result<(), String> {
        let bytes = fs::read(folder.join("log")).map_err(|error| error.to_string())?;
        let whole = bytes
            .chunks(RECORD_BYTES)
            .zip(0..)
            .take_while(|(found, number)| **found == record(*number))
            .count() as u64;
        let most = self.tried * RECORD_BYTES as u64;
        if whole < self.acknowledged || bytes.len() as u64 > most {
            return Err(format!(
                "{} records were fsynced, {} tried; {whole} are whole, of {} bytes",
                self.acknowledged,
                self.tried,
                bytes.len()
            ));
        }
        Ok(())
    }
}

fn record(number: u64) -> [u8; RECORD_BYTES] {
    let mut record = [b'.'; RECORD_BYTES];
    record[..8].copy_from_slice(&number.to_le_bytes());
    let sum = xxh3_64(&record[..RECORD_BYTES - 8]);
    record[RECORD_BYTES - 8..].copy_from_slice(&sum.to_le_bytes());
    record
}
