//! The portable loop: fuser's. Nothing outside this module names fuser.
//!
//! It is a translation of fuser's calls to [`Request`]s. What fuser 0.18 does not pass on, and what
//! follows from it: FUSE_INTERRUPT (a lock that is waited for looks at `/proc` for the caller's
//! signals instead), `lk_flags` (flock and fcntl locks exclude each other), FATTR_KILL_SUIDGID and
//! FUSE_OPEN_KILL_SUIDGID (guessed from the caller). A time of `i64::MIN` seconds makes one of its
//! threads panic before it calls us: the request that carried it is never answered and that thread
//! is lost. Therefore our own loop is the default.

mod adapter;
mod answer;
mod convert;

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use fuser::{Config, INodeNo, Notifier, Session, SessionACL};

use super::THREADS;
use super::handler::Handler;
use crate::cache::NodeId;
use crate::fs::notes::Kernel;
use crate::options::ListingAttributes;
use adapter::Adapter;

/// The loop, ready to run.
pub struct FuserLoop(Session<Adapter>);

impl FuserLoop {
    /// Answers the kernel's first request.
    ///
    /// # Errors
    /// When the kernel's FUSE is too old or does not answer as expected.
    pub fn start(
        device: OwnedFd,
        handler: Handler,
        listing: ListingAttributes,
    ) -> io::Result<FuserLoop> {
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        config.acl = SessionACL::All;
        let adapter = Adapter { handler, listing };
        Session::from_fd(adapter, device, SessionACL::All, config).map(FuserLoop)
    }

    /// Tells the kernel what it is to drop.
    pub fn notifier(&self) -> impl Kernel + Send + use<> {
        Teller(self.0.notifier())
    }

    /// Serves until the volume is unmounted.
    ///
    /// # Errors
    /// When a thread of the loop fails.
    pub fn run(self) -> io::Result<()> {
        self.0.run()
    }
}

struct Teller(Notifier);

impl Kernel for Teller {
    fn drop_attributes(&self, node: NodeId) {
        // A negative offset: the pages stay.
        if let Err(error) = self.0.inval_inode(INodeNo(node.0), -1, 0) {
            tracing::debug!(
                "the kernel does not drop the attributes of {}: {error}",
                node.0
            );
        }
    }

    fn drop_pages(&self, node: NodeId) {
        if let Err(error) = self.0.inval_inode(INodeNo(node.0), 0, 0) {
            tracing::debug!("the kernel does not drop the pages of {}: {error}", node.0);
        }
    }

    fn drop_name(&self, parent: NodeId, name: &[u8]) {
        let name = OsStr::from_bytes(name);
        if let Err(error) = self.0.inval_entry(INodeNo(parent.0), name) {
            tracing::debug!("the kernel does not give back {name:?}: {error}");
        }
    }
}
