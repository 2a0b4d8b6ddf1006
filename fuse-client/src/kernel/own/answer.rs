//! The answer of one request, on its way.

use std::sync::Arc;

use mortar_common::FsError;

use super::decode::Room;
use super::device::Channel;
use super::encode::{self, Listing};
use super::interrupts::Interrupts;
use crate::fs::{DirSink, Interrupt};
use crate::kernel::reply::{Answerer, Reply};

/// Answers exactly once: with EIO when it is dropped instead.
pub struct Answer {
    unique: u64,
    channel: Arc<Channel>,
    interrupts: Arc<Interrupts>,
    listing: Listing,
    waits: bool,
    answered: bool,
}

impl Answer {
    /// For the request `unique` that came on this channel.
    pub fn new(unique: u64, channel: &Arc<Channel>, interrupts: &Arc<Interrupts>) -> Self {
        Answer {
            unique,
            channel: channel.clone(),
            interrupts: interrupts.clone(),
            listing: Listing::none(),
            waits: false,
            answered: false,
        }
    }

    /// For a listing.
    pub fn with_room(self, room: Room) -> Self {
        // Answer has a Drop, so its fields cannot be moved out of it.
        let mut this = self;
        this.listing = Listing::new(room);
        this
    }

    fn send(&mut self, reply: Reply) {
        if std::mem::replace(&mut self.answered, true) {
            return;
        }
        if self.waits {
            self.interrupts.answered(self.unique);
        }
        let listing = std::mem::replace(&mut self.listing, Listing::none());
        let message = encode::answer(self.unique, reply, listing);
        if let Err(error) = self.channel.send(&message) {
            match error.raw_os_error() {
                // Nobody waits any more.
                Some(libc::ENOENT | libc::ENODEV | libc::ECONNABORTED) => {}
                _ => tracing::error!(
                    "the kernel does not take an answer of {} bytes: {error}",
                    message.head.len() + message.data.len()
                ),
            }
        }
    }
}

impl Answerer for Answer {
    fn listing(&mut self) -> &mut dyn DirSink {
        &mut self.listing
    }

    fn interrupt(&mut self) -> Option<Arc<Interrupt>> {
        self.waits = true;
        Some(self.interrupts.wait(self.unique))
    }

    fn answer(mut self, reply: Reply) {
        self.send(reply);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.send(Reply::Error(FsError::Io));
    }
}
