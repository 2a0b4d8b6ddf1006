//! The way messages come and go: a descriptor of /dev/fuse, one message a read, one a writev.
//!
//! What the rest of the loop needs of a transport is in [`Channel`]: one message received into a
//! buffer, one sent. FUSE over io_uring would be another of its kind.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;

use super::decode::HEADER_BYTES;
use super::encode::Outgoing;
use crate::kernel::{DEVICE, MAX_WRITE_BYTES};

/// Longest message of the kernel: a WRITE with its header and fields, and some room.
const MESSAGE_BYTES_MAX: usize = MAX_WRITE_BYTES + 4096;
const _: () = assert!(MESSAGE_BYTES_MAX > MAX_WRITE_BYTES + HEADER_BYTES + 40);

/// One thread's way to the kernel. An answer goes out on the channel on which its request came in.
#[derive(Debug)]
pub struct Channel {
    device: OwnedFd,
}

/// What a read came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// A message of so many bytes.
    Message(usize),
    /// Nothing, for no lasting reason: read again.
    Again,
    /// The file system is unmounted.
    End,
}

/// A buffer that holds any message.
pub fn buffer() -> Vec<u8> {
    vec![0; MESSAGE_BYTES_MAX]
}

impl Channel {
    /// A channel over this descriptor.
    pub fn new(device: OwnedFd) -> Self {
        Channel { device }
    }

    /// Another channel of the same mount, with a queue of its own in the kernel.
    ///
    /// # Errors
    /// The system's.
    pub fn another(&self) -> io::Result<Channel> {
        /// `_IOR(229, 0, uint32_t)`
        const FUSE_DEV_IOC_CLONE: u32 = 0x8004_e500;
        let device = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(DEVICE)?;
        let master = self.device.as_raw_fd();
        // SAFETY: the argument is read as one u32, which lives through the call, and the kernel
        // keeps no pointer to it. Both descriptors are open.
        let outcome = unsafe {
            libc::ioctl(
                device.as_raw_fd(),
                FUSE_DEV_IOC_CLONE.into(),
                &raw const master,
            )
        };
        match outcome {
            0 => Ok(Channel::new(device.into())),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits for one message.
    ///
    /// # Errors
    /// When the device cannot be read any more although it is mounted.
    pub fn receive(&self, into: &mut [u8]) -> io::Result<Received> {
        match rustix::io::read(&self.device, into) {
            // A socket in a test ends like this.
            Ok(0) | Err(Errno::NODEV | Errno::CONNABORTED) => Ok(Received::End),
            Ok(len) => Ok(Received::Message(len)),
            // NOENT: the request was taken back before it was read.
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => Ok(Received::Again),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The kernel's: ENOENT when nobody waits for that answer any more.
    pub fn send(&self, message: &Outgoing) -> io::Result<()> {
        let parts = [IoSlice::new(&message.head), IoSlice::new(&message.data)];
        let parts = match message.data.is_empty() {
            true => &parts[..1],
            false => &parts[..],
        };
        rustix::io::writev(&self.device, parts)?;
        Ok(())
    }
}
