//! The reading end of a stream to a backup: who takes the backup's answers out of the socket.
//!
//! A request that waits for an answer reads it itself, and whatever comes before it for others.
//! When the stream's own thread read everything and woke the one concerned, that switch of threads
//! cost more than all the rest of reading. The stream's thread reads when nobody waits, and stays
//! away for a while after requests have read, so that it is not woken for each of theirs.

use std::collections::VecDeque;
use std::io::BufReader;
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mortar_common::{BrickId, Signal};
use mortar_proto::frame::FrameError;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::pending::{Stage, Waiter};
use super::streams::Unanswered;

/// Answers are taken out of the socket several at a time.
const READ_BUFFER_BYTES: usize = 8 << 10;
/// The stream's own thread reads when no request has for this long.
const QUIET: Duration = Duration::from_millis(5);
/// A request that reads looks this often whether it still has to.
const READ_TICK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// What answers are read from.
pub type Reader = BufReader<TcpStream>;

/// The reading end of one connection to one backup. Lock order: its own, then a waiter's.
pub struct Answers {
    /// The backup at the other end.
    pub from: BrickId,
    /// What it has not answered.
    pub unanswered: Unanswered,
    state: Mutex<State>,
    /// For the stream's own thread.
    ended: Signal,
}

struct State {
    end: End,
    /// Requests that wait while another thread reads, and for what. Some may have it by now.
    followers: VecDeque<(Arc<Waiter>, Stage)>,
    /// How often a request came to read.
    comers: u64,
}

enum End {
    Free(Reader),
    Taken,
    Broken(Option<FrameError>),
}

/// What a request that waits is to do.
pub enum Turn {
    /// Read, and give the reader back.
    Read(Reader),
    /// Sleep: another thread reads, and wakes it when its answer comes or it has to read on.
    Sleep,
    /// The connection broke: what becomes of the change is decided elsewhere.
    Broken,
}

impl Answers {
    /// Of a connection that has just been greeted.
    pub fn new(from: BrickId, connection: TcpStream, unanswered: Unanswered) -> Self {
        Answers {
            from,
            unanswered,
            state: Mutex::new(State {
                end: End::Free(BufReader::with_capacity(READ_BUFFER_BYTES, connection)),
                followers: VecDeque::new(),
                comers: 0,
            }),
            ended: Signal::default(),
        }
    }

    /// A request waits for `stage`.
    pub fn come(&self, waiter: &Arc<Waiter>, stage: Stage) -> Turn {
        let mut state = self.lock();
        state.comers += 1;
        match std::mem::replace(&mut state.end, End::Taken) {
            End::Free(reader) => Turn::Read(reader),
            End::Taken => {
                state.followers.push_back((Arc::clone(waiter), stage));
                Turn::Sleep
            }
            End::Broken(error) => {
                state.end = End::Broken(error);
                Turn::Broken
            }
        }
    }

    /// The reader is free again: the next that waits is to read.
    pub fn give_back(&self, reader: Reader) {
        let mut state = self.lock();
        state.end = End::Free(reader);
        state.offer();
    }

    /// One that was to read has no need to any more.
    pub fn pass_on(&self) {
        self.lock().offer();
    }

    /// The connection broke while it was read.
    pub fn broke(&self, error: FrameError) {
        let mut state = self.lock();
        state.end = End::Broken(Some(error));
        state.followers.clear();
        drop(state);
        self.ended.notify_all();
    }

    /// For the stream's own thread: takes the reader, at once if no request came since `comers`,
    /// else when they have been quiet for a while. Returns how many have come.
    ///
    /// # Errors
    /// What the connection broke with.
    pub fn take(&self, mut comers: u64) -> Result<(Reader, u64), FrameError> {
        let mut state = self.lock();
        loop {
            let quiet = state.comers == comers;
            match std::mem::replace(&mut state.end, End::Taken) {
                End::Free(reader) if quiet => return Ok((reader, comers)),
                End::Broken(error) => {
                    state.end = End::Broken(None);
                    return Err(error.unwrap_or(FrameError::Closed));
                }
                other => state.end = other,
            }
            comers = state.comers;
            state = self.ended.wait_timeout(state, QUIET);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn offer(&mut self) {
        if !matches!(self.end, End::Free(_)) {
            return;
        }
        while let Some((waiter, stage)) = self.followers.pop_front() {
            if waiter.offer_reading(stage) {
                return;
            }
        }
    }
}

/// Waits a little for an answer, if none has been taken out of the socket yet; says whether there
/// is one (or the end of the connection).
///
/// # Errors
/// When the socket cannot be watched.
pub fn has_come(reader: &Reader) -> Result<bool, FrameError> {
    if !reader.buffer().is_empty() {
        return Ok(true);
    }
    let mut fds = [PollFd::new(reader.get_ref(), PollFlags::IN)];
    match rustix::event::poll(&mut fds, Some(&READ_TICK)) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(FrameError::Io(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::pending::{Pending, Wait};

    fn answers() -> (Answers, TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let near = listener.accept().unwrap().0;
        (Answers::new(BrickId(2), near, Unanswered::default()), far)
    }

    #[test]
    fn one_reads_and_the_next_is_asked_to_read_on() {
        let (answers, _far) = answers();
        let pending = Pending::default();
        let (first, second) = (pending.insert(1), pending.insert(2));
        let Turn::Read(reader) = answers.come(&first, Stage::MayAnswer) else {
            panic!("the first reads");
        };
        assert!(matches!(
            answers.come(&second, Stage::MayAnswer),
            Turn::Sleep
        ));
        answers.give_back(reader);
        assert!(matches!(second.wait_or_read(Stage::MayAnswer), Wait::Read));
        let turn = answers.come(&second, Stage::MayAnswer);
        assert!(matches!(turn, Turn::Read(_)));
    }

    #[test]
    fn who_has_its_answer_is_not_asked_to_read() {
        let (answers, _far) = answers();
        let pending = Pending::default();
        let waiters: Vec<_> = (1..4).map(|number| pending.insert(number)).collect();
        let Turn::Read(reader) = answers.come(&waiters[0], Stage::MayAnswer) else {
            panic!("the first reads");
        };
        for waiter in &waiters[1..] {
            answers.come(waiter, Stage::MayAnswer);
        }
        pending.advance(2, Stage::MayAnswer);
        answers.give_back(reader);
        let waits = waiters[1].wait_or_read(Stage::MayAnswer);
        assert!(matches!(waits, Wait::Reached { to_read: false, .. }));
        assert!(matches!(
            waiters[2].wait_or_read(Stage::MayAnswer),
            Wait::Read
        ));
    }

    #[test]
    fn the_streams_thread_stays_away_while_requests_read() {
        let (answers, far) = answers();
        let (reader, comers) = answers.take(0).unwrap();
        let pending = Pending::default();
        let waiter = pending.insert(1);
        assert!(matches!(
            answers.come(&waiter, Stage::MayApply),
            Turn::Sleep
        ));
        answers.give_back(reader);
        let began = std::time::Instant::now();
        let (reader, comers) = answers.take(comers).unwrap();
        assert!(began.elapsed() >= QUIET);
        assert!(!has_come(&reader).unwrap());
        drop(far);
        assert!(has_come(&reader).unwrap());
        answers.broke(FrameError::Closed);
        assert!(matches!(
            answers.come(&waiter, Stage::MayApply),
            Turn::Broken
        ));
        assert!(answers.take(comers).is_err());
    }
}
