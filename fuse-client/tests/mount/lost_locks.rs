//! A session is put out while it holds locks: through a descriptor that held one nothing is changed
//! and nothing is read any more, however the program goes about it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::locks::fcntl_lock;
use crate::{Mount, until};

const CONTENT: [u8; 4096] = [b'a'; 4096];

/// A file that was read under a lock.
fn locked(mount: &Mount) -> File {
    let path = mount.path("locked");
    fs::write(&path, CONTENT).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    fcntl_lock(&file, libc::F_WRLCK, false).unwrap();
    let mut read = [0; CONTENT.len()];
    file.read_exact_at(&mut read, 0).unwrap();
    file
}

/// The bricks know the session no more.
fn put_out(mount: &Mount) {
    let shared = &mount.fake.shared;
    let (session, _) = shared.tree.lock().unwrap().opens[0];
    shared.fenced.lock().unwrap().push(session);
    let mut tree = shared.tree.lock().unwrap();
    tree.opens.clear();
    tree.locks.clear();
}

fn content(mount: &Mount) -> Vec<u8> {
    let tree = mount.fake.shared.tree.lock().unwrap();
    tree.bytes_of(b"locked").unwrap()
}

fn outcome(returned: i64) -> io::Result<()> {
    match returned {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A page that the kernel maps.
struct Mapped(*mut libc::c_void);

impl Mapped {
    fn new(file: &File) -> Mapped {
        let (read, shared) = (libc::PROT_READ, libc::MAP_SHARED);
        let none = std::ptr::null_mut();
        // SAFETY: a new mapping, at a place of the kernel's choice.
        let at = unsafe { libc::mmap(none, CONTENT.len(), read, shared, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Mapped(at)
    }

    /// Has the kernel read it: that fails where a program would get SIGBUS.
    fn read(&self) -> io::Result<()> {
        let mut pipe = [0; 2];
        // SAFETY: two descriptors are written to `pipe`.
        outcome(i64::from(unsafe { libc::pipe(pipe.as_mut_ptr()) })).unwrap();
        // SAFETY: the mapping lives as long as `self`; that it may not be readable is the question.
        let wrote = unsafe { libc::write(pipe[1], self.0, CONTENT.len()) };
        let wrote = outcome(wrote as i64);
        for end in pipe {
            // SAFETY: both are open and nobody else's.
            unsafe { libc::close(end) };
        }
        wrote
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it was mapped by `new`.
        unsafe { libc::munmap(self.0, CONTENT.len()) };
    }
}

#[test]
fn nothing_is_changed_or_read_through_a_descriptor_whose_lock_is_lost() {
    let mount = Mount::new();
    let file = locked(&mount);
    let mapped = Mapped::new(&file);
    mapped.read().unwrap();
    put_out(&mount);
    // Whoever comes next makes the new session.
    fs::write(mount.path("other"), b"goes on").unwrap();
    let other = File::options()
        .read(true)
        .write(true)
        .open(mount.path("other"))
        .unwrap();

    let copied = |from: &File, to: &File| {
        let (mut at, mut to_at) = (0, 0);
        // SAFETY: both offsets live through the call.
        outcome(unsafe {
            libc::copy_file_range(from.as_raw_fd(), &mut at, to.as_raw_fd(), &mut to_at, 4, 0)
        } as i64)
    };
    // SAFETY: plain numbers.
    let allocated = outcome(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, 8192) }.into());
    // SAFETY: the same.
    let sought = outcome(unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_DATA) });
    let refused = [
        ("write", file.write_all_at(b"no", 0)),
        ("ftruncate", file.set_len(1)),
        ("fallocate", allocated),
        ("copy_file_range to it", copied(&other, &file)),
        ("copy_file_range from it", copied(&file, &other)),
        ("lseek", sought),
        ("fsync", file.sync_all()),
        ("lock", fcntl_lock(&file, libc::F_WRLCK, false)),
    ];
    for (what, outcome) in refused {
        let errno = outcome.err().and_then(|error| error.raw_os_error());
        assert_eq!(errno, Some(libc::EIO), "{what}");
    }
    assert_eq!(content(&mount), CONTENT);
    // What the kernel had cached it is told to drop, without waiting for it.
    until("a read of a cached page answers EIO", || {
        let read = file.read_exact_at(&mut [0; 4], 0);
        read.is_err_and(|error| error.raw_os_error() == Some(libc::EIO))
    });
    assert!(mapped.read().is_err());

    drop(file);
    drop(mapped);
    assert_eq!(fs::read(mount.path("locked")).unwrap(), CONTENT);
    assert!(mount.log().contains("1 locks are lost"));
}

/// What is under way when the session is put out is sent again in the next one: not without its lock.
#[test]
fn a_change_under_way_is_not_made_when_its_lock_is_lost() {
    type Change = fn(&File) -> io::Result<()>;
    let changes: [(&str, Change); 3] = [
        ("write", |file| file.write_all_at(b"no", 0)),
        ("ftruncate", |file| file.set_len(1)),
        ("fallocate", |file| {
            // SAFETY: plain numbers.
            outcome(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, 8192) }.into())
        }),
    ];
    for (what, change) in changes {
        let mount = Mount::new();
        let file = locked(&mount);
        mount.fake.freeze(0);
        let changer = std::thread::spawn(move || (change(&file), file));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!changer.is_finished(), "{what}");
        put_out(&mount);
        mount.fake.set_primary(1);
        let (changed, _file) = changer.join().unwrap();
        let errno = changed.err().and_then(|error| error.raw_os_error());
        assert_eq!(errno, Some(libc::EIO), "{what}");
        assert_eq!(content(&mount), CONTENT, "{what}");
    }
}
