//! Locks that guard a number: each holder reads it, writes the next one, and lets go.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, fcntl_lock, flock};

use super::{Program, bytes_of, token, token_in};
use crate::faults::history::{Answer, Held, History, Lock, Op, Token};
use crate::faults::seats::{Root, Seat};

const BYTES: usize = 64;
const PROGRAM: u8 = 4;
/// What the files hold at first.
const NOBODY: Token = Token(0);
/// Longest time between reading and writing, ms.
const THINKS_MS: u64 = 8;

#[derive(Default)]
pub(super) struct Sections {
    done: u64,
}

pub(super) fn prepare(folder: &Path) {
    for lock in [Lock::Flock, Lock::Fcntl] {
        fs::write(folder.join(file_of(lock)), bytes_of(NOBODY, BYTES)).expect("a lock's file");
    }
}

fn file_of(lock: Lock) -> &'static str {
    match lock {
        Lock::Flock => "flock",
        Lock::Fcntl => "fcntl",
    }
}

/// Goes through the section. That it was held counts until its write was acknowledged: who is put
/// out later has written nothing since.
fn go_through(
    history: &History,
    path: &Path,
    lock: Lock,
    wrote: Token,
    thinks: Duration,
) -> io::Result<Answer> {
    let file = File::options().read(true).write(true).open(path)?;
    match lock {
        Lock::Flock => flock(&file, FlockOperation::LockExclusive)?,
        Lock::Fcntl => fcntl_lock(&file, FlockOperation::LockExclusive)?,
    }
    let since = history.now();
    let mut bytes = [0; BYTES];
    file.read_exact_at(&mut bytes, 0)?;
    let read = match token_in(&bytes) {
        Answer::Token(read) => read,
        other => return Ok(other),
    };
    std::thread::sleep(thinks);
    file.write_all_at(&bytes_of(wrote, BYTES), 0)?;
    let until = history.now();
    // The lock goes with the file at the latest.
    let _ = match lock {
        Lock::Flock => flock(&file, FlockOperation::Unlock),
        Lock::Fcntl => fcntl_lock(&file, FlockOperation::Unlock),
    };
    Ok(Answer::Section(Held { since, until, read }))
}

impl Program for Sections {
    fn step(&mut self, seat: &mut Seat, root: &Root) {
        let lock = if seat.random.chance(50) {
            Lock::Flock
        } else {
            Lock::Fcntl
        };
        let path = root.path.join(&seat.folder).join(file_of(lock));
        self.done += 1;
        let wrote = token(seat.client.id, PROGRAM, self.done);
        let thinks = Duration::from_millis(seat.random.between(0, THINKS_MS));
        seat.run(Op::Section(lock, wrote), || {
            go_through(&seat.history, &path, lock, wrote, thinks)
        });
    }
}
