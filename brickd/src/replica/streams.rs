//! A primary's ordered streams to the other copies of its set.
//!
//! The table's lock is the *order lock*: a change gets its number and is written to every stream
//! under it, so that numbers arrive in their order. Lock order: order lock, then the core's, then
//! a stream's list of unanswered changes.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufWriter, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use mortar_common::{BrickId, Incarnation};
use mortar_proto::data::{Change, CopySynced, Ordered, PageCache};
use mortar_proto::frame::{self, Kind};
use tracing::debug;

use super::answers::Answers;

/// A frame that is smaller leaves in one call, several held back together too.
const WRITE_BUFFER_BYTES: usize = 16 << 10;

/// An ordered change with its bytes, as it is sent, applied, kept and sent again.
#[derive(Debug)]
pub struct Numbered {
    /// The change.
    pub change: Change,
    /// Its payload.
    pub payload: Bytes,
}

/// Changes sent to one copy that it has not answered as applied.
pub type Unanswered = Arc<Mutex<BTreeMap<u64, Arc<Numbered>>>>;

/// Tells a stream from an earlier one to the same life of the same copy. The thread that keeps the
/// connection goes by it: two of one stream would break each other's connections without end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamSerial(u64);

/// All streams of one primary.
#[derive(Default)]
pub struct Streams {
    table: Mutex<HashMap<BrickId, Outgoing>>,
    serials: AtomicU64,
    /// The same sockets again, so that a stream whose writer hangs can be shut without its lock.
    shutters: Mutex<HashMap<BrickId, (StreamSerial, TcpStream)>>,
    /// Some stream has bytes that were not handed to the kernel yet.
    unflushed: AtomicBool,
}

/// When the bytes of a change leave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaves {
    /// At once.
    Now,
    /// With the next change, or at [`Streams::flush`]: nobody waits for its answers.
    WithTheNext,
}

/// One stream.
pub struct Outgoing {
    /// The life of the copy at the other end.
    pub incarnation: Incarnation,
    /// Which stream to it this is.
    pub serial: StreamSerial,
    /// Its answers are required.
    pub joined: bool,
    /// It has sessions, locks and results, so memory-only changes go to it too.
    pub has_table: bool,
    writer: Option<BufWriter<TcpStream>>,
    /// What it has not answered.
    pub unanswered: Unanswered,
    /// Where its answers come from, while it is connected.
    pub answers: Option<Arc<Answers>>,
    /// What it writes through, as it said.
    pub page_cache: Option<PageCache>,
}

impl Streams {
    /// Takes the order lock.
    pub fn lock(&self) -> MutexGuard<'_, HashMap<BrickId, Outgoing>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a stream to a copy: changes for it are kept until it is connected. An older stream
    /// to another life of it is closed. `None`: it has begun before; otherwise the caller starts
    /// the thread that keeps its connection.
    pub fn begin(
        &self,
        to: BrickId,
        incarnation: Incarnation,
        joined: bool,
    ) -> Option<StreamSerial> {
        let mut table = self.lock();
        if let Some(stream) = table.get_mut(&to)
            && stream.incarnation == incarnation
        {
            stream.joined |= joined;
            return None;
        }
        let serial = StreamSerial(self.serials.fetch_add(1, Ordering::Relaxed));
        let outgoing = Outgoing {
            incarnation,
            serial,
            joined,
            has_table: joined,
            writer: None,
            unanswered: Unanswered::default(),
            answers: None,
            page_cache: None,
        };
        table.insert(to, outgoing);
        drop(table);
        self.shut(to);
        Some(serial)
    }

    /// Whether this very stream is still wanted.
    pub fn wants(&self, to: BrickId, serial: StreamSerial) -> bool {
        self.lock()
            .get(&to)
            .is_some_and(|stream| stream.serial == serial)
    }

    /// Closes a stream and forgets it.
    pub fn close(&self, to: BrickId) {
        self.shut(to); // First: whoever holds the order lock may hang in a write to it.
        self.lock().remove(&to);
        self.shut(to); // One that was attached meanwhile.
    }

    /// Closes this very stream, unless another is in its place by now.
    pub fn close_one(&self, to: BrickId, serial: StreamSerial) {
        self.shut_one(to, serial);
        let mut table = self.lock();
        if table.get(&to).is_some_and(|it| it.serial == serial) {
            table.remove(&to);
        }
        drop(table);
        self.shut_one(to, serial);
    }

    /// Closes all streams.
    pub fn close_all(&self) {
        let all: Vec<BrickId> = self.shutters().keys().copied().collect();
        for to in all {
            self.shut(to);
        }
        self.lock().clear();
    }

    /// Breaks the connection; its threads end by themselves.
    pub fn shut(&self, to: BrickId) {
        if let Some((_, socket)) = self.shutters().remove(&to) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Breaks the connection of this very stream.
    pub fn shut_one(&self, to: BrickId, serial: StreamSerial) {
        let mut shutters = self.shutters();
        if shutters.get(&to).is_some_and(|(of, _)| *of == serial)
            && let Some((_, socket)) = shutters.remove(&to)
        {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn shutters(&self) -> MutexGuard<'_, HashMap<BrickId, (StreamSerial, TcpStream)>> {
        self.shutters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands to the kernel what [`Leaves::WithTheNext`] has held back.
    pub fn flush(&self) {
        if self.unflushed.swap(false, Ordering::AcqRel) {
            for (to, stream) in self.lock().iter_mut() {
                stream.flush(*to);
            }
        }
    }

    /// Notes that something was held back. Call with the order lock held.
    pub fn held_back(&self) {
        self.unflushed.store(true, Ordering::Release);
    }

    /// Puts a fresh connection in place and sends what was not answered on the old one. Call with
    /// the order lock held (`stream` is its entry).
    ///
    /// `tail` is what the copy has not received of the changes this one took over from another
    /// primary: it goes first.
    pub fn attach(
        &self,
        to: BrickId,
        stream: &mut Outgoing,
        connection: TcpStream,
        tail: Vec<Arc<Numbered>>,
    ) {
        if let Ok(shutter) = connection.try_clone() {
            self.shutters().insert(to, (stream.serial, shutter));
        }
        stream.writer = Some(BufWriter::with_capacity(WRITE_BUFFER_BYTES, connection));
        for numbered in tail {
            lock_unanswered(&stream.unanswered).insert(numbered.change.number, numbered);
        }
        let again: Vec<Arc<Numbered>> = lock_unanswered(&stream.unanswered)
            .values()
            .cloned()
            .collect();
        for numbered in again {
            stream.write(
                to,
                &Ordered {
                    change: Some(numbered.change.clone()),
                    ..Default::default()
                },
                &numbered.payload,
            );
        }
        stream.flush(to);
    }
}

impl Outgoing {
    /// Sends one change, or keeps it for when the stream is connected again.
    pub fn send(
        &mut self,
        to: BrickId,
        numbered: &Arc<Numbered>,
        complete: u64,
        synced: Vec<CopySynced>,
        leaves: Leaves,
    ) {
        lock_unanswered(&self.unanswered).insert(numbered.change.number, Arc::clone(numbered));
        let ordered = Ordered {
            change: Some(numbered.change.clone()),
            complete,
            synced,
            ..Default::default()
        };
        self.write(to, &ordered, &numbered.payload);
        if leaves == Leaves::Now {
            self.flush(to);
        }
    }

    /// Sends sessions, opens, locks and results, in parts.
    pub fn send_table(&mut self, to: BrickId, parts: &[Ordered]) {
        self.has_table = true;
        for part in parts {
            self.write(to, part, &Bytes::new());
        }
        self.flush(to);
    }

    /// Forgets a connection that broke.
    pub fn detach(&mut self) {
        self.writer = None;
        self.answers = None;
    }

    fn flush(&mut self, to: BrickId) {
        let flushed = self.writer.as_mut().map(Write::flush);
        if let Some(Err(error)) = flushed {
            self.broke(to, &error);
        }
    }

    fn broke(&mut self, to: BrickId, error: &dyn std::fmt::Display) {
        debug!(brick = %to, %error, "a stream broke while it was written");
        if let Some(writer) = self.writer.take() {
            // The thread that reads the answers sees the end too, and reports it.
            let _ = writer.get_ref().shutdown(Shutdown::Both);
        }
    }

    fn write(&mut self, to: BrickId, ordered: &Ordered, payload: &Bytes) {
        let Some(writer) = &mut self.writer else {
            return;
        };
        if let Err(error) = frame::send(writer, Kind::Ordered, ordered, &[payload]) {
            self.broke(to, &error);
        }
    }
}

/// Locks a list of unanswered changes.
pub fn lock_unanswered(unanswered: &Unanswered) -> MutexGuard<'_, BTreeMap<u64, Arc<Numbered>>> {
    unanswered.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COPY: BrickId = BrickId(2);
    const LIFE: Incarnation = Incarnation(7);

    fn connection() -> (TcpStream, TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    /// A copy was out of sync for ever: its stream was closed and begun again while its thread
    /// slept, so that two threads kept it, or none.
    #[test]
    fn a_stream_that_is_closed_and_begun_again_has_one_thread_of_its_own() {
        let streams = Streams::default();
        let first = streams.begin(COPY, LIFE, true).expect("a new stream");
        assert_eq!(streams.begin(COPY, LIFE, true), None);
        streams.close(COPY);
        let second = streams.begin(COPY, LIFE, false).expect("it needs a thread");
        assert!(!streams.wants(COPY, first), "the first thread ends");
        assert!(streams.wants(COPY, second));
        let (near, far) = connection();
        let mut table = streams.lock();
        let stream = table.get_mut(&COPY).unwrap();
        assert!(!stream.joined, "nothing is left of the first");
        streams.attach(COPY, stream, near, Vec::new());
        drop(table);
        // What the first thread still does is about its own stream.
        streams.shut_one(COPY, first);
        streams.close_one(COPY, first);
        assert!(streams.lock().get(&COPY).unwrap().writer.is_some());
        far.set_nonblocking(true).unwrap();
        let open = far.peek(&mut [0]).unwrap_err();
        assert_eq!(open.kind(), std::io::ErrorKind::WouldBlock);
        streams.close_one(COPY, second);
        assert!(!streams.wants(COPY, second));
    }
}
