//! Places in one file that are overwritten as a whole and read by everybody: small ones of a page,
//! and large ones, which also give a heal something to do.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Program, bytes_of, token, token_in};
use crate::faults::history::{Answer, Cell, Op};
use crate::faults::seats::{Root, Seat};

const SMALL: u16 = 6;
const SMALL_BYTES: usize = 4096;
const LARGE: u16 = 24;
const LARGE_BYTES: usize = 128 << 10;
const PROGRAM: u8 = 1;

#[derive(Default)]
pub(super) struct Cells {
    written: u64,
}

fn place(cell: Cell) -> (u64, usize) {
    if cell.0 < SMALL {
        return (u64::from(cell.0) * SMALL_BYTES as u64, SMALL_BYTES);
    }
    let before = usize::from(SMALL) * SMALL_BYTES;
    let at = before + usize::from(cell.0 - SMALL) * LARGE_BYTES;
    (at as u64, LARGE_BYTES)
}

pub(super) fn prepare(seat: &Seat, folder: &Path) {
    let file = File::create_new(folder.join("cells")).expect("the file of cells");
    for cell in (0..SMALL + LARGE).map(Cell) {
        let value = token(seat.client.id, 0xff, u64::from(cell.0));
        let (at, len) = place(cell);
        seat.run(Op::Write(cell, value), || {
            file.write_all_at(&bytes_of(value, len), at)?;
            Ok(Answer::Done)
        });
    }
}

pub(super) fn read_all(seat: &Seat, root: &Root) {
    (0..SMALL + LARGE).for_each(|cell| read(seat, root, Cell(cell)));
}

fn read(seat: &Seat, root: &Root, cell: Cell) {
    let path = root.path.join(&seat.folder).join("cells");
    let (at, len) = place(cell);
    seat.run(Op::Read(cell), || {
        let mut bytes = vec![0; len];
        File::open(path)?.read_exact_at(&mut bytes, at)?;
        Ok(token_in(&bytes))
    });
}

impl Program for Cells {
    fn step(&mut self, seat: &mut Seat, root: &Root) {
        // Most changes meet on few cells, some make the heal longer.
        let cell = if seat.random.chance(70) {
            Cell(seat.random.below(usize::from(SMALL)) as u16)
        } else {
            Cell(SMALL + seat.random.below(usize::from(LARGE)) as u16)
        };
        if seat.random.chance(50) {
            return read(seat, root, cell);
        }
        self.written += 1;
        let value = token(seat.client.id, PROGRAM, self.written);
        let path = root.path.join(&seat.folder).join("cells");
        let (at, len) = place(cell);
        let syncs = seat.random.chance(20);
        seat.run(Op::Write(cell, value), || {
            let file = File::options().write(true).open(path)?;
            file.write_all_at(&bytes_of(value, len), at)?;
            if syncs {
                file.sync_data()?;
            }
            Ok(Answer::Done)
        });
    }
}
