//! Our own loop over /dev/fuse, from the kernel's public interface (`linux/fuse.h`).
//!
//! A message's way: [`device`] reads it, [`decode`] makes a typed request of it, the thread that
//! read it serves it (`kernel/handler.rs`), [`answer`] takes the reply back through [`encode`]. A
//! request that makes no sense is refused, a handler that panics answers EIO: the loop goes on.

mod answer;
mod decode;
mod device;
mod encode;
mod init;
mod interrupts;
mod notifier;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mortar_common::FsError;

use super::THREADS;
use super::handler::{Serve, guarded, serve_whatever_comes};
use super::reply::{Answerer, Reply};
use crate::cache::NodeId;
use crate::fs::notes::Kernel;
use crate::options::ListingAttributes;
use answer::Answer;
use decode::{Body, DecodeError};
use device::{Channel, Received};
use interrupts::Interrupts;
use notifier::Notifier;

/// The loop, ready to run.
pub struct OwnLoop<S> {
    first: Arc<Channel>,
    shared: Arc<Shared<S>>,
}

/// What the threads of a loop share.
struct Shared<S> {
    to: S,
    interrupts: Arc<Interrupts>,
}

impl<S: Serve> OwnLoop<S> {
    /// Answers the kernel's first request.
    ///
    /// # Errors
    /// When the kernel's FUSE is too old or does not answer as expected.
    pub fn start(device: OwnedFd, to: S, listing: ListingAttributes) -> io::Result<OwnLoop<S>> {
        let first = Arc::new(Channel::new(device));
        shake_hands(&first, listing)?;
        let shared = Arc::new(Shared {
            to,
            interrupts: Arc::default(),
        });
        Ok(OwnLoop { first, shared })
    }

    /// Tells the kernel what it is to drop.
    pub fn notifier(&self) -> impl Kernel + Send + use<S> {
        Notifier(self.first.clone())
    }

    /// Serves until the volume is unmounted.
    ///
    /// # Errors
    /// When a thread of the loop fails; the others go on until the end.
    pub fn run(self) -> io::Result<()> {
        let mut threads = Vec::with_capacity(THREADS);
        for number in 0..THREADS {
            let channel = match number {
                0 => self.first.clone(),
                _ => self.first.another().map(Arc::new).unwrap_or_else(|error| {
                    // It serves as well, with one queue for all.
                    tracing::debug!("the FUSE device is shared by threads: {error}");
                    self.first.clone()
                }),
            };
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().name(format!("fuse-{number}"));
            threads.push(thread.spawn(move || shared.read_and_serve(&channel))?);
        }
        let mut outcome = Ok(());
        for thread in threads {
            let ended = thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a thread of the loop panicked")));
            outcome = outcome.and(ended);
        }
        outcome
    }
}

impl<S: Serve> Shared<S> {
    fn read_and_serve(&self, channel: &Arc<Channel>) -> io::Result<()> {
        let mut buffer = device::buffer();
        loop {
            match channel.receive(&mut buffer) {
                Ok(Received::Message(len)) => {
                    self.take(&buffer[..len.min(buffer.len())], channel);
                }
                Ok(Received::Again) => {}
                Ok(Received::End) => return Ok(()),
                Err(error) => {
                    tracing::error!("the FUSE device cannot be read: {error}");
                    return Err(error);
                }
            }
        }
    }

    fn take(&self, bytes: &[u8], channel: &Arc<Channel>) {
        let message = match decode::decode(bytes) {
            Ok(message) => message,
            Err(error) => return self.refuse(bytes, error, channel),
        };
        let answer = || Answer::new(message.unique, channel, &self.interrupts);
        match message.body {
            Body::Request(request) => serve_whatever_comes(&self.to, request, answer()),
            Body::Listing(request, room) => {
                serve_whatever_comes(&self.to, request, answer().with_room(room));
            }
            Body::Interrupt(unique) => self.interrupts.interrupt(unique),
            Body::Forget(node, lookups) => self.forget(node, lookups),
            Body::ForgetMany(pairs) => {
                for (node, lookups) in pairs.iter() {
                    self.forget(node, lookups);
                }
            }
            // The kernel says it once; a second time is not to be understood.
            Body::Init(_) => answer().answer(Reply::Error(FsError::Io)),
            Body::Destroy => answer().answer(Reply::Done),
        }
    }

    fn forget(&self, node: NodeId, lookups: u64) {
        guarded("FORGET", node, 0, || self.to.forget(node, lookups));
    }

    /// A request that makes no sense.
    fn refuse(&self, bytes: &[u8], error: DecodeError, channel: &Arc<Channel>) {
        let opcode = decode::opcode_of(bytes);
        let shown = opcode.map_or("no number".to_owned(), |opcode| opcode.to_string());
        tracing::error!("a FUSE request (operation {shown}) was refused: {error}");
        if let (Some(unique), Some(opcode)) = (decode::unique_of(bytes), opcode)
            && decode::is_answered(opcode)
        {
            let answer = Answer::new(unique, channel, &self.interrupts);
            answer.answer(Reply::Error(FsError::Io));
        }
    }
}

fn shake_hands(channel: &Arc<Channel>, listing: ListingAttributes) -> io::Result<()> {
    let mut buffer = device::buffer();
    loop {
        let len = match channel.receive(&mut buffer)? {
            Received::Message(len) => len,
            Received::Again => continue,
            Received::End => return Err(io::Error::other("it was unmounted at once")),
        };
        let message = decode::decode(&buffer[..len.min(buffer.len())]).map_err(io::Error::other)?;
        let Body::Init(offer) = message.body else {
            return Err(io::Error::other("its first request is not INIT"));
        };
        let out = init::negotiate(&offer, listing).map_err(io::Error::other)?;
        return channel.send(&encode::init(message.unique, &out));
    }
}
