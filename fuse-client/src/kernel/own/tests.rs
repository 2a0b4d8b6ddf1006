//! The loop over a socket pair in the kernel's place, and the decoder over whatever may come.

#![expect(
    clippy::host_endian_bytes,
    reason = "the kernel of this host speaks in this host's order"
)]

mod requests;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mortar_common::FsError;
use mortar_proto::data::LockKind;
use proptest::prelude::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::cache::{Attrs, Timestamp};
use crate::fs::{AttrChange, Interrupt, KillSetId, Listed, Room, TimeChange};
use crate::kernel::request::{Operation, Request};
use requests::{Raw, every_kind};

const PATIENCE: Duration = Duration::from_secs(30);

/// Answers lookups, panics at `panic`, and lets a lock wait until it is interrupted.
#[derive(Default)]
struct Odd {
    forgotten: Mutex<Vec<(u64, u64)>>,
    waiters: Mutex<Vec<Waiter>>,
}

type Waiter = (Arc<Interrupt>, Box<dyn FnOnce(Reply) + Send>);

impl Serve for Arc<Odd> {
    fn serve(&self, request: Request<'_>, mut answer: impl Answerer) {
        match request.op {
            Operation::Lookup { name: b"panic" } => panic!("as the test wants it"),
            Operation::Lookup { name: b"dropped" } => drop(answer),
            Operation::Lookup { .. } => answer.answer(Reply::Error(FsError::NotFound)),
            Operation::SetLock { .. } => {
                let interrupt = answer.interrupt().unwrap();
                let answer = Box::new(|reply| answer.answer(reply));
                self.waiters.lock().unwrap().push((interrupt, answer));
            }
            Operation::ReadDir { .. } => {
                let entry = Listed {
                    name: b"name",
                    cookie: 7,
                    ino: 9,
                    plus: Some((NodeId(9), Attrs::default())),
                    timeout: Duration::ZERO,
                    kind: libc::S_IFREG,
                };
                while answer.listing().add(entry) == Room::Taken {}
                answer.answer(Reply::Listing);
            }
            Operation::NotOffered => answer.answer(Reply::Error(FsError::NotImplemented)),
            _ => answer.answer(Reply::Done),
        }
    }

    fn forget(&self, node: NodeId, lookups: u64) {
        assert_ne!(lookups, 13, "as the test wants it");
        self.forgotten.lock().unwrap().push((node.0, lookups));
    }
}

/// The other end of the loop, as the kernel has it.
struct KernelSide {
    socket: OwnedFd,
    odd: Arc<Odd>,
    running: Option<JoinHandle<io::Result<()>>>,
}

impl KernelSide {
    fn start() -> KernelSide {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let odd = Arc::new(Odd::default());
        rustix::io::write(&ours, &requests::init(45, u64::MAX).bytes).unwrap();
        let served = odd.clone();
        let running = std::thread::spawn(move || {
            OwnLoop::start(theirs, served, ListingAttributes::Auto)?.run()
        });
        let side = KernelSide {
            socket: ours,
            odd,
            running: Some(running),
        };
        let (errno, unique, body) = side.hear();
        assert_eq!((errno, unique, body.len()), (0, 1, 64));
        side
    }

    fn say(&self, bytes: &[u8]) {
        rustix::io::write(&self.socket, bytes).unwrap();
    }

    /// (errno, unique, what follows)
    fn hear(&self) -> (i32, u64, Vec<u8>) {
        let mut fds = [rustix::event::PollFd::new(
            &self.socket,
            rustix::event::PollFlags::IN,
        )];
        let timeout = rustix::event::Timespec::try_from(PATIENCE).unwrap();
        assert_eq!(
            rustix::event::poll(&mut fds, Some(&timeout)),
            Ok(1),
            "no answer"
        );
        let mut bytes = vec![0; 1 << 16];
        let len = rustix::io::read(&self.socket, &mut bytes).unwrap();
        bytes.truncate(len);
        let field = |at: usize| i32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(field(0) as usize, len, "the length in the header");
        let unique = u64::from_ne_bytes(bytes[8..16].try_into().unwrap());
        (-field(4), unique, bytes.split_off(16))
    }

    /// Passes over answers of other requests, which may come late from another thread.
    fn until_answered(&self, raw: &Raw) -> i32 {
        self.say(&raw.bytes);
        loop {
            let (errno, unique, _) = self.hear();
            if unique == raw.unique() {
                return errno;
            }
        }
    }

    fn ask(&self, raw: &Raw) -> (i32, Vec<u8>) {
        self.say(&raw.bytes);
        let (errno, unique, body) = self.hear();
        assert_eq!(unique, raw.unique());
        (errno, body)
    }
}

impl Drop for KernelSide {
    fn drop(&mut self) {
        rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both).unwrap();
        let outcome = self.running.take().unwrap().join();
        if !std::thread::panicking() {
            outcome.unwrap().unwrap();
        }
    }
}

#[test]
fn a_panic_of_a_handler_is_eio_and_the_loop_goes_on() {
    let side = KernelSide::start();
    // More often than there are threads.
    for unique in 0..3 * THREADS as u64 {
        let panics = Raw::new(decode::LOOKUP, 100 + unique).name(b"panic");
        assert_eq!(side.ask(&panics).0, libc::EIO);
        let dropped = Raw::new(decode::LOOKUP, 1000 + unique).name(b"dropped");
        assert_eq!(side.ask(&dropped).0, libc::EIO);
        side.say(&Raw::new(decode::FORGET, 2000 + unique).u64(13).bytes);
        let fine = Raw::new(decode::LOOKUP, 3000 + unique).name(b"x");
        assert_eq!(side.ask(&fine).0, libc::ENOENT);
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_the_loop_goes_on() {
    let side = KernelSide::start();
    for raw in every_kind() {
        // Cut anywhere, with a header that says so or that does not.
        for cut in 1..raw.bytes.len() {
            side.say(&raw.bytes[..cut]);
            side.say(&raw.cut(cut).bytes);
            let fine = Raw::new(decode::LOOKUP, 5_000_000).name(b"x");
            assert_eq!(side.until_answered(&fine), libc::ENOENT);
        }
    }
    let unknown = Raw::new(4711, 8).u64(1);
    assert_eq!(side.until_answered(&unknown), libc::ENOSYS);
    let again = requests::init(45, u64::MAX);
    assert_eq!(side.until_answered(&again), libc::EIO);
}

#[test]
fn an_interrupted_waiter_is_told_and_answered_once() {
    let side = KernelSide::start();
    let early = Raw::new(decode::INTERRUPT, 21).u64(20);
    side.say(&early.bytes);
    side.say(&requests::lock(decode::SETLKW, 20).bytes);
    side.say(&requests::lock(decode::SETLKW, 22).bytes);
    let waiters = || side.odd.waiters.lock().unwrap();
    let began = Instant::now();
    while waiters().len() < 2 {
        assert!(began.elapsed() < PATIENCE, "the locks are not asked for");
        std::thread::yield_now();
    }
    let set = || waiters().iter().filter(|(it, _)| it.is_set()).count();
    while set() < 1 {
        assert!(began.elapsed() < PATIENCE, "what came early is lost");
    }
    side.say(&Raw::new(decode::INTERRUPT, 23).u64(22).bytes);
    while set() < 2 {
        assert!(began.elapsed() < PATIENCE, "an interrupt is lost");
    }
    for (_, answer) in std::mem::take(&mut *waiters()) {
        answer(Reply::Error(FsError::Interrupted));
        assert_eq!(side.hear().0, libc::EINTR);
    }
}

#[test]
fn forgets_come_alone_and_in_batches() {
    let side = KernelSide::start();
    side.say(&Raw::new(decode::FORGET, 2).on(7).u64(3).bytes);
    let batch = Raw::new(decode::BATCH_FORGET, 4).u32(2).u32(0);
    side.say(&batch.u64(8).u64(1).u64(9).u64(2).bytes);
    let forgotten = || {
        let mut forgotten = side.odd.forgotten.lock().unwrap().clone();
        forgotten.sort_unstable();
        forgotten
    };
    let began = Instant::now();
    while forgotten().len() < 3 {
        assert!(began.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    assert_eq!(forgotten(), [(7, 3), (8, 1), (9, 2)]);
}

#[test]
fn a_listing_fills_the_kernels_room_and_no_more() {
    let side = KernelSide::start();
    let ask = |opcode, unique, room: u32| {
        let raw = Raw::new(opcode, unique).u64(1).u64(0).u32(room);
        side.ask(&raw.u32(0).u64(0).u64(0))
    };
    // 24 bytes and a name of 4, made even: 32. With the inode 160.
    assert_eq!(ask(decode::READDIR, 2, 100).1.len(), 96);
    let (errno, body) = ask(decode::READDIRPLUS, 4, 500);
    assert_eq!((errno, body.len()), (0, 480));
    assert_eq!(&body[128 + 24..128 + 28], b"name");
    assert_eq!(ask(decode::READDIR, 6, 31), (0, vec![]));
}

#[test]
fn requests_are_what_the_kernel_meant() {
    let set = requests::setattr(2, (1 << 4) | (1 << 5), i64::MIN, i64::MAX);
    let Body::Request(Request { op, .. }) = decode::decode(&set.bytes).unwrap().body else {
        panic!("a SETATTR is a request");
    };
    let Operation::SetAttr(change) = op else {
        panic!("{op:?}");
    };
    let at = |secs| Some(TimeChange::To(Timestamp { secs, nanos: 5 }));
    let meant = AttrChange {
        atime: at(i64::MIN),
        mtime: at(i64::MAX),
        ..AttrChange::default()
    };
    assert_eq!(change, meant);
    let through = requests::setattr(2, (1 << 3) | (1 << 6), 0, 0);
    assert!(matches!(
        decode::decode(&through.bytes).unwrap().body,
        Body::Request(Request {
            op: Operation::SetAttr(AttrChange {
                handle: Some(1),
                size: Some(2),
                ..
            }),
            ..
        })
    ));
    let kill_of = |valid| {
        let raw = requests::setattr(2, valid, 0, 0);
        match decode::decode(&raw.bytes).unwrap().body {
            Body::Request(Request {
                op: Operation::SetAttr(change),
                ..
            }) => change.kill,
            body => panic!("{body:?}"),
        }
    };
    assert_eq!(kill_of(1 << 3), KillSetId::No);
    assert_eq!(kill_of(1 << 3 | 1 << 11), KillSetId::Yes);
    assert_eq!(kill_of(1 << 11), KillSetId::Yes);
    assert_eq!(kill_of(0), KillSetId::NotTold);
    let kind_of = |flags| {
        let raw = requests::lock_with(decode::SETLK, 2, flags);
        match decode::decode(&raw.bytes).unwrap().body {
            Body::Request(Request {
                op: Operation::SetLock { ask, may_wait },
                ..
            }) => (ask.kind, may_wait),
            body => panic!("{body:?}"),
        }
    };
    assert_eq!(kind_of(0), (LockKind::LockPosix, false));
    assert_eq!(kind_of(1), (LockKind::LockFlock, false));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_bytes_harm_the_decoder(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        look_at(&bytes);
        // With a header that is right, so that the fields are come to.
        for opcode in 0..60 {
            let mut raw = Raw::new(opcode, 2);
            raw.bytes.extend_from_slice(&bytes);
            look_at(&raw.fixed().bytes);
        }
    }

    #[test]
    fn no_change_of_a_real_request_harms_the_decoder(
        kind in 0..every_kind().len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        extensions in 0u16..20,
    ) {
        let mut raw = every_kind().swap_remove(kind);
        for (at, byte) in changes {
            let at = at.index(raw.bytes.len());
            raw.bytes[at] = byte;
        }
        look_at(&raw.bytes);
        let cut = raw.cut(cut.index(raw.bytes.len()) + 1);
        look_at(&cut.bytes);
        look_at(&cut.with_extensions(extensions).bytes);
    }
}

/// All of a message, if it is one.
fn look_at(bytes: &[u8]) {
    let _ = (decode::unique_of(bytes), decode::opcode_of(bytes));
    if let Ok(message) = decode::decode(bytes) {
        let shown = format!("{:?}", message.body);
        assert!(!shown.is_empty());
        if let Body::ForgetMany(pairs) = message.body {
            assert!(pairs.iter().count() <= bytes.len() / 16);
        }
    }
}
