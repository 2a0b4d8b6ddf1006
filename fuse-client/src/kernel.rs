//! The kernel interface: requests of the kernel become calls of [`Fs`], and answers go back.
//!
//! Two loops bring the same [`request::Request`]s to the same [`handler`] and take its
//! [`reply::Reply`]s back: our own over /dev/fuse ([`own`], the default), and the library fuser
//! ([`fuser`], the only module that names it), for systems whose FUSE ours does not know.

mod convert;
mod fuser;
mod handler;
mod mounting;
mod own;
mod reply;
mod request;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::fs::Fs;
use crate::fs::notes::Kernel;
use crate::options::{FuseLoop, MountOptions};
use fuser::FuserLoop;
use handler::Handler;
use own::OwnLoop;

pub use mounting::{LoopError, Mounted, Unmounter, mount};

const DEVICE: &str = "/dev/fuse";
/// Threads that read and serve requests.
const THREADS: usize = 16;
/// Bytes of one WRITE, and of one READ when the read-ahead allows.
const MAX_WRITE_BYTES: usize = 1 << 20;
/// Background requests (read-ahead, asynchronous I/O) the kernel may have under way.
const MAX_BACKGROUND: u16 = 128;

/// A loop, ready to run.
pub struct Loop {
    engine: Engine,
    /// The device once more, to see when the kernel lets go.
    device: OwnedFd,
    fs: Arc<Fs>,
    unmounter: Unmounter,
}

enum Engine {
    Own(OwnLoop<Handler>),
    Fuser(FuserLoop),
}

/// Answers the kernel's first request and makes the loop ready.
///
/// # Errors
/// In words; the mount is taken away again.
pub fn serve(mounted: Mounted, fs: Arc<Fs>, options: &MountOptions) -> Result<Loop, LoopError> {
    let Mounted { device, unmounter } = mounted;
    let handler = Handler::new(fs.clone());
    let started = device.try_clone().and_then(|again| {
        let engine = match options.fuse_loop {
            FuseLoop::Own => Engine::Own(OwnLoop::start(device, handler, options.listing)?),
            FuseLoop::Fuser => Engine::Fuser(FuserLoop::start(device, handler, options.listing)?),
        };
        Ok((engine, again))
    });
    match started {
        Ok((engine, device)) => {
            mounting::read_ahead(&options.mount_point);
            Ok(Loop {
                engine,
                device,
                fs,
                unmounter,
            })
        }
        Err(error) => {
            unmounter.unmount();
            Err(LoopError(format!(
                "the kernel's FUSE does not answer as expected: {error}"
            )))
        }
    }
}

impl Loop {
    /// Takes the mount away from outside the loop.
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// Serves the kernel until the volume is unmounted.
    ///
    /// # Errors
    /// When a thread of the loop fails.
    pub fn run(self) -> io::Result<()> {
        let Loop {
            engine,
            device,
            fs,
            unmounter: _,
        } = self;
        // A request that waits for a brick would keep its thread, and with it the process, for as
        // long as no brick serves; nobody waits for its answer any more.
        let of_watch = fs.clone();
        std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || {
                mounting::wait_until_let_go(&device);
                of_watch.stop();
            })?;
        match engine {
            Engine::Own(own) => run_with_notes(&fs, own.notifier(), || own.run()),
            Engine::Fuser(fuser) => run_with_notes(&fs, fuser.notifier(), || fuser.run()),
        }
    }
}

/// Runs a loop with a thread beside it that tells the kernel what it is to drop.
fn run_with_notes(
    fs: &Fs,
    kernel: impl Kernel + Send + 'static,
    run: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let notes = fs.notes().clone();
    let thread = std::thread::Builder::new()
        .name("notes".to_owned())
        .spawn(move || notes.serve(&kernel))?;
    let outcome = run();
    fs.stop();
    let _ = thread.join();
    outcome
}
