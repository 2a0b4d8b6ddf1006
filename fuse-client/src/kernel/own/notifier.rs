//! Tells the kernel what it is to drop.

use std::sync::Arc;

use super::device::Channel;
use super::encode::{self, Notification};
use crate::cache::NodeId;
use crate::fs::notes::Kernel;

/// Over one of the loop's channels.
pub struct Notifier(pub Arc<Channel>);

impl Notifier {
    fn tell(&self, note: Notification<'_>) {
        match self.0.send(&encode::notification(&note)) {
            Ok(()) => {}
            // It does not have it.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => tracing::debug!("the kernel does not take {note:?}: {error}"),
        }
    }
}

impl Kernel for Notifier {
    fn drop_attributes(&self, node: NodeId) {
        self.tell(Notification::InvalidInode { node, pages: false });
    }

    fn drop_pages(&self, node: NodeId) {
        self.tell(Notification::InvalidInode { node, pages: true });
    }

    fn drop_name(&self, parent: NodeId, name: &[u8]) {
        self.tell(Notification::InvalidName { parent, name });
    }
}
