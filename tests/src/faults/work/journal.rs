//! A journal that all clients append to, some of it fsynced record by record.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::{Program, bytes_of, token, token_in};
use crate::faults::history::{Answer, Op, Token, sum_of};
use crate::faults::seats::{Root, Seat};

const RECORD_BYTES: usize = 96;
const PROGRAM: u8 = 2;

#[derive(Default)]
pub(super) struct Journal {
    /// Open for as long as its mount lives, through every failover.
    file: Option<(u64, File)>,
    appended: u64,
}

pub(super) fn prepare(folder: &Path) {
    File::create_new(folder.join("journal")).expect("the journal");
}

pub(super) fn read_all(seat: &Seat, root: &Root) {
    let path = root.path.join(&seat.folder).join("journal");
    seat.run(Op::ReadJournal, || {
        Ok(records_of(&fs::read(path)?).map_or_else(Answer::Torn, Answer::Records))
    });
}

/// The records; a torn one in words.
fn records_of(bytes: &[u8]) -> Result<Vec<Token>, String> {
    let mut records = Vec::new();
    for (number, bytes) in bytes.chunks(RECORD_BYTES).enumerate() {
        match token_in(bytes) {
            Answer::Token(record) => records.push(record),
            other => return Err(format!("record {number} is {other:?}")),
        }
    }
    Ok(records)
}

impl Journal {
    fn append(&mut self, seat: &mut Seat, root: &Root) -> io::Result<Answer> {
        let path = root.path.join(&seat.folder).join("journal");
        let of_this_mount = self.file.take().filter(|(of, _)| *of == root.generation);
        let file = match of_this_mount {
            Some((_, file)) => file,
            None => File::options().append(true).open(path)?,
        };
        let record = bytes_of(token(seat.client.id, PROGRAM, self.appended), RECORD_BYTES);
        (&file).write_all(&record)?;
        if seat.random.chance(50) {
            file.sync_data()?;
        }
        self.file = Some((root.generation, file));
        Ok(Answer::Done)
    }
}

impl Program for Journal {
    fn step(&mut self, seat: &mut Seat, root: &Root) {
        if seat.random.chance(30) {
            let path = root.path.join(&seat.folder).join("journal");
            seat.run(Op::ReadJournal, || match records_of(&fs::read(path)?) {
                Ok(records) => Ok(Answer::Prefix {
                    records: records.len(),
                    sum: sum_of(&records),
                }),
                Err(torn) => Ok(Answer::Torn(torn)),
            });
            return;
        }
        self.appended += 1;
        let record = token(seat.client.id, PROGRAM, self.appended);
        let id = seat.history.begin(seat.client.id, Op::Append(record));
        let outcome = self.append(seat, root);
        seat.ended(id, outcome.map_err(|error| error.to_string()));
    }
}
