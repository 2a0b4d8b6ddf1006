//! What the programs do, each in a thread per mount.

mod cells;
mod journal;
mod names;
mod rows;
mod sections;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::JoinHandle;

use rustix::thread::UnshareFlags;

use super::history::{Answer, ClientId, History, Token};
use super::seats::{Client, Root, Seat};
use crate::simulator::Random;

/// Programs of each client.
const PROGRAMS: usize = 5;

/// One kind of work.
trait Program: Send {
    /// Does a little. The mount may be gone at any time.
    fn step(&mut self, seat: &mut Seat, root: &Root);
}

/// Programs at work.
pub(super) struct Works {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Works {
    /// Makes the folder of the round over the first client and starts everything.
    ///
    /// # Panics
    /// When the folder cannot be made.
    pub fn start(
        clients: &[Arc<Client>],
        history: &Arc<History>,
        folder: &str,
        random: &mut Random,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seat = |client: &Arc<Client>, random: &mut Random| Seat {
            client: Arc::clone(client),
            history: Arc::clone(history),
            random: Random::new(random.id()),
            folder: folder.to_owned(),
            stop: Arc::clone(&stop),
        };
        // A program that is started closes what it inherits, and closing a file waits for the mount
        // that a fault has stopped: the nemesis, which starts brickds, must not have such files.
        let apart = Arc::new(Barrier::new(clients.len() * PROGRAMS + 1));
        let first = clients[0].root().expect("a mount");
        prepare(&seat(&clients[0], random), &first.path.join(folder));
        let mut threads = Vec::new();
        for client in clients {
            let programs: [Box<dyn Program>; PROGRAMS] = [
                Box::new(names::Names::default()),
                Box::new(cells::Cells::default()),
                Box::new(journal::Journal::default()),
                Box::new(sections::Sections::default()),
                Box::new(rows::Rows::default()),
            ];
            for mut program in programs {
                let mut seat = seat(client, random);
                let apart = Arc::clone(&apart);
                threads.push(std::thread::spawn(move || {
                    keep_descriptors_apart();
                    apart.wait();
                    while let Some(root) = seat.root() {
                        program.step(&mut seat, &root);
                        seat.pace();
                    }
                }));
            }
        }
        apart.wait();
        Works { stop, threads }
    }

    /// Lets each end after the step it is at.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn have_ended(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// # Panics
    /// When one panicked.
    pub fn join(self) {
        for thread in self.threads {
            thread.join().expect("a program that does not panic");
        }
    }
}

/// From here on the calling thread has a table of descriptors of its own.
///
/// # Panics
/// When the kernel refuses.
fn keep_descriptors_apart() {
    // SAFETY: nothing that this thread uses of the old table is closed by another thread: the
    // programs open what they use themselves, afterwards.
    let apart = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FILES) };
    apart.expect("a table of descriptors of its own");
}

fn prepare(seat: &Seat, folder: &Path) {
    fs::create_dir(folder).expect("the round's folder");
    names::prepare(folder);
    cells::prepare(seat, folder);
    journal::prepare(folder);
    sections::prepare(folder);
    rows::prepare(folder);
}

/// Reads everything, over every mount: the end of a history.
pub(super) fn read_all(clients: &[Arc<Client>], history: &Arc<History>, folder: &str) {
    for client in clients {
        let Some(root) = client.root() else { continue };
        let seat = Seat {
            client: Arc::clone(client),
            history: Arc::clone(history),
            random: Random::new(1),
            folder: folder.to_owned(),
            stop: Arc::default(),
        };
        names::read_all(&seat, &root);
        cells::read_all(&seat, &root);
        journal::read_all(&seat, &root);
        rows::read_all(&seat, &root);
    }
}

/// A token that nobody else makes: the client, the program, a count.
fn token(client: ClientId, program: u8, count: u64) -> Token {
    Token(u64::from(client.0) << 56 | u64::from(program) << 48 | count)
}

/// Bytes that are made from a token and hold it, with a sum over all of them.
fn bytes_of(token: Token, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    bytes.extend(token.0.to_le_bytes());
    let mut word = token.0;
    while bytes.len() + 8 < len {
        word = word.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ token.0;
        bytes.extend(&word.to_le_bytes()[..(len - 8 - bytes.len()).min(8)]);
    }
    let sum = xxhash_rust::xxh3::xxh3_64(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

/// The token in bytes of [`bytes_of`], or what they are instead.
fn token_in(bytes: &[u8]) -> Answer {
    let Some((body, sum)) = bytes.split_last_chunk::<8>() else {
        return Answer::Torn(format!("{} bytes", bytes.len()));
    };
    let token = body
        .first_chunk::<8>()
        .map(|first| u64::from_le_bytes(*first));
    match token {
        Some(token) if xxhash_rust::xxh3::xxh3_64(body) == u64::from_le_bytes(*sum) => {
            Answer::Token(Token(token))
        }
        _ => Answer::Torn(format!(
            "{} bytes that begin with {:02x?}",
            bytes.len(),
            &bytes[..bytes.len().min(8)]
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_hold_their_token_and_nothing_else_does() {
        for len in [16, 17, 64, 4096, 9001] {
            let bytes = bytes_of(Token(77), len);
            assert_eq!(bytes.len(), len);
            assert_eq!(token_in(&bytes), Answer::Token(Token(77)));
            let mut torn = bytes.clone();
            torn[len / 2] ^= 1;
            assert!(matches!(token_in(&torn), Answer::Torn(_)));
            assert!(matches!(token_in(&bytes[..len - 1]), Answer::Torn(_)));
        }
        assert!(matches!(token_in(&[0; 4096]), Answer::Torn(_)));
        assert!(matches!(token_in(&[]), Answer::Torn(_)));
    }
}
