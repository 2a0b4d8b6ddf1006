//! Becoming a daemon that tells its parent whether the mount works.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use rustix::pipe::{PipeFlags, pipe_with};

/// What the child writes when the mount works; anything else is the reason why not.
const MOUNTED: &[u8] = b"+";
/// Longest reason taken from the child.
const REASON_BYTES_MAX: u64 = 64 << 10;

/// Runs `work` in a child process of its own session and returns in the parent when the work says
/// it is mounted, or in words why it is not. In the child this does not return.
///
/// To be called before any thread is started.
///
/// # Errors
/// The child's, or the system's.
pub fn start(
    work: impl FnOnce(Box<dyn FnOnce() -> Result<(), String>>) -> Result<(), String>,
) -> Result<(), String> {
    let (read, write) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|error| format!("cannot make a pipe: {error}"))?;
    // SAFETY: no thread has been started yet, so the child has all there is and no lock is held.
    match unsafe { libc::fork() } {
        -1 => Err(format!("cannot fork: {}", std::io::Error::last_os_error())),
        0 => {
            drop(read);
            std::process::exit(child(write, work))
        }
        _ => {
            drop(write);
            parent(read)
        }
    }
}

fn parent(read: OwnedFd) -> Result<(), String> {
    let mut words = Vec::new();
    File::from(read)
        .take(REASON_BYTES_MAX)
        .read_to_end(&mut words)
        .map_err(|error| format!("the mount's process cannot be heard: {error}"))?;
    if words == MOUNTED {
        Ok(())
    } else if words.is_empty() {
        Err("the mount's process ended before the mount was made; see its log".to_owned())
    } else {
        Err(String::from_utf8_lossy(&words).into_owned())
    }
}

fn child(
    write: OwnedFd,
    work: impl FnOnce(Box<dyn FnOnce() -> Result<(), String>>) -> Result<(), String>,
) -> i32 {
    // Taken by whoever has something to say; the parent waits until it is closed.
    let to_parent = Rc::new(RefCell::new(Some(File::from(write))));
    let for_success = to_parent.clone();
    let mounted = Box::new(move || {
        let told = leave_terminal().and_then(|()| match for_success.take() {
            Some(mut parent) => parent.write_all(MOUNTED),
            None => Ok(()),
        });
        told.map_err(|error| format!("cannot leave the terminal: {error}"))
    });
    let outcome = match rustix::process::setsid() {
        Ok(_) => work(mounted),
        Err(error) => Err(format!("cannot leave the terminal: {error}")),
    };
    let Err(sentence) = outcome else { return 0 };
    match to_parent.take() {
        // If the parent is gone there is nobody to tell.
        Some(mut parent) => drop(parent.write_all(sentence.as_bytes())),
        None => tracing::error!("{sentence}"),
    }
    1
}

/// Standard input, output and error become /dev/null, the working folder the root.
fn leave_terminal() -> std::io::Result<()> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    for stdio in 0..=2 {
        // SAFETY: both descriptors are open, and std's handles of 0 to 2 go on being valid.
        if unsafe { libc::dup2(null.as_raw_fd(), stdio) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    std::env::set_current_dir("/")
}
