//! Two mounts of one volume.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::{Mount, until};

#[test]
fn appends_from_two_mounts_lose_nothing() {
    let mut mount = Mount::new();
    let second = mount.second();
    let append = |path: PathBuf, word: &'static str| {
        std::thread::spawn(move || {
            let mut file = OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .unwrap();
            for n in 0..200 {
                file.write_all(format!("{word} {n}\n").as_bytes()).unwrap();
            }
        })
    };
    let threads = [
        append(mount.path("log"), "first"),
        append(second.join("log"), "second"),
    ];
    for thread in threads {
        thread.join().unwrap();
    }
    let text = fs::read_to_string(mount.path("log")).unwrap();
    let of = |word: &str| text.lines().filter(|line| line.starts_with(word)).count();
    assert_eq!((of("first "), of("second ")), (200, 200));
    assert_eq!(text.lines().count(), 400);
    mount.assert_quiet();
}

pub fn fcntl_lock(file: &File, kind: i32, wait: bool) -> std::io::Result<()> {
    // SAFETY: flock is plain data, for which zero is a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    let command = if wait { libc::F_SETLKW } else { libc::F_SETLK };
    // SAFETY: the descriptor is open and `lock` lives through the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &lock) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[test]
fn two_mounts_that_lock_see_each_others_bytes() {
    const ROUNDS: usize = 100;
    let mut mount = Mount::new();
    let second = mount.second();
    fs::write(mount.path("counter"), b"0000000000").unwrap();
    let count = |path: PathBuf| {
        std::thread::spawn(move || {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .unwrap();
            for _ in 0..ROUNDS {
                fcntl_lock(&file, libc::F_WRLCK, true).unwrap();
                let mut text = String::new();
                file.seek(SeekFrom::Start(0)).unwrap();
                file.read_to_string(&mut text).unwrap();
                let value: u64 = text.trim().parse().unwrap();
                file.seek(SeekFrom::Start(0)).unwrap();
                file.write_all(format!("{:010}", value + 1).as_bytes())
                    .unwrap();
                fcntl_lock(&file, libc::F_UNLCK, false).unwrap();
            }
        })
    };
    let threads = [count(mount.path("counter")), count(second.join("counter"))];
    for thread in threads {
        thread.join().unwrap();
    }
    let counted = mount
        .fake
        .shared
        .tree
        .lock()
        .unwrap()
        .bytes_of(b"counter")
        .unwrap();
    assert_eq!(
        String::from_utf8(counted).unwrap(),
        format!("{:010}", 2 * ROUNDS)
    );
    mount.assert_quiet();
}

#[test]
fn locks_end_with_the_file_that_held_them_and_waiters_can_be_ended() {
    let mut mount = Mount::new();
    let second = mount.second();
    let held = File::create(mount.path("f")).unwrap();
    fcntl_lock(&held, libc::F_WRLCK, false).unwrap();
    let other = OpenOptions::new()
        .write(true)
        .open(second.join("f"))
        .unwrap();
    let refusal = fcntl_lock(&other, libc::F_WRLCK, false).unwrap_err();
    assert_eq!(refusal.raw_os_error(), Some(libc::EAGAIN));
    // A waiter in the other mount that gives up after a second.
    let status = Command::new("flock")
        .args(["-w", "1"])
        .arg(second.join("f"))
        .arg("true")
        .status();
    assert_eq!(status.unwrap().code(), Some(1));
    // And one that is killed.
    let mut waiter = Command::new("flock")
        .arg(second.join("f"))
        .arg("true")
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(waiter.try_wait().unwrap().is_none());
    waiter.kill().unwrap();
    let began = Instant::now();
    waiter.wait().unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    drop(held);
    fcntl_lock(&other, libc::F_WRLCK, true).unwrap();
    drop(other);
    until("the last lock is gone", || {
        mount.fake.shared.tree.lock().unwrap().locks.is_empty()
    });
    mount.assert_quiet();
}

#[test]
fn what_another_mount_wrote_is_seen_after_open() {
    let mount = Mount::new();
    let path = mount.path("f");
    fs::write(&path, b"first").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"first");
    mount
        .fake
        .shared
        .tree
        .lock()
        .unwrap()
        .replace(b"f", b"other");
    assert_eq!(fs::read(&path).unwrap(), b"other");
}

/// Another mount has put another directory in the place of one that this mount's kernel knows: it is
/// the other that is moved, and what is found below its new name is the other's.
#[test]
fn what_is_renamed_is_what_the_name_holds_and_found_so_at_once() {
    let mut mount = Mount::new();
    let second = mount.second();
    for name in ["one", "two"] {
        fs::create_dir(mount.path(name)).unwrap();
        fs::write(mount.path(name).join("id"), name).unwrap();
    }
    assert_eq!(fs::read(mount.path("one").join("id")).unwrap(), b"one");
    fs::rename(second.join("one"), second.join("elsewhere")).unwrap();
    fs::rename(second.join("two"), second.join("one")).unwrap();
    let aside = mount.path("aside");
    fs::rename(mount.path("one"), &aside).unwrap();
    assert_eq!(fs::read(aside.join("id")).unwrap(), b"two");
    fs::remove_dir_all(&aside).unwrap();
    assert_eq!(fs::read(second.join("elsewhere/id")).unwrap(), b"one");
    mount.assert_quiet();
}

/// The same of the other side of an exchange, which the kernel does not look up for it either.
#[test]
fn what_is_exchanged_is_what_both_names_hold() {
    let mut mount = Mount::new();
    let second = mount.second();
    for name in ["one", "two", "three"] {
        fs::create_dir(mount.path(name)).unwrap();
        fs::write(mount.path(name).join("id"), name).unwrap();
    }
    let id = |name: &str| fs::read_to_string(mount.path(name).join("id")).unwrap();
    assert_eq!((id("one"), id("two")), ("one".to_owned(), "two".to_owned()));
    fs::rename(second.join("two"), second.join("elsewhere")).unwrap();
    fs::rename(second.join("three"), second.join("two")).unwrap();
    rustix::fs::renameat_with(
        rustix::fs::CWD,
        mount.path("one"),
        rustix::fs::CWD,
        mount.path("two"),
        rustix::fs::RenameFlags::EXCHANGE,
    )
    .unwrap();
    assert_eq!(
        (id("one"), id("two")),
        ("three".to_owned(), "one".to_owned())
    );
    mount.assert_quiet();
}
