//! The client as its users see it: the real program and a real mount, over a replica set in memory.

mod fake;
mod tree;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fake::Fake;
use mortar_proto::registry::VolumeStatus;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mount-mortar");
const PATIENCE: Duration = Duration::from_secs(20);

/// A volume that is mounted until it is dropped.
struct Mount {
    fake: Fake,
    folder: tempfile::TempDir,
    extra: Vec<PathBuf>,
}

impl Mount {
    fn new() -> Mount {
        Mount::with("")
    }

    fn with(options: &str) -> Mount {
        let mount = Mount {
            fake: Fake::start(),
            folder: tempfile::tempdir().unwrap(),
            extra: vec![],
        };
        fs::create_dir(mount.root()).unwrap();
        let output = mount.mount_at("127.0.0.1:/v01", &mount.root(), options);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        mount
    }

    fn mount_at(&self, spec: &str, at: &Path, options: &str) -> Output {
        let log = self.folder.path().join("log");
        let port = self.fake.port_numbers[0];
        let options = format!(
            "port={port},log-level=debug,log-file={},{options}",
            log.display()
        );
        Command::new(PROGRAM)
            .arg(spec)
            .arg(at)
            .args(["-o", &options])
            .output()
            .unwrap()
    }

    /// A second mount of the same volume, as on another host.
    fn second(&mut self) -> PathBuf {
        let at = self.folder.path().join("second");
        fs::create_dir(&at).unwrap();
        let output = self.mount_at("127.0.0.1:/v01", &at, "");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        self.extra.push(at.clone());
        at
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The log has nothing that a human must look at.
    fn assert_quiet(&self) {
        let log = self.log();
        let loud: Vec<_> = log
            .lines()
            .filter(|l| l.contains(" WARN ") || l.contains(" ERROR "))
            .collect();
        assert!(loud.is_empty(), "{loud:#?}");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        self.extra.push(self.root());
        for at in &self.extra {
            let _ = Command::new("umount").arg("-l").arg(at).output();
        }
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} does not come true");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_mounted(at: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    table
        .lines()
        .any(|line| line.split(' ').nth(1) == at.to_str())
}

#[test]
fn files_are_made_written_read_moved_and_removed() {
    let mount = Mount::new();
    let file = mount.path("a file");
    fs::write(&file, b"hello").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"hello");
    assert_eq!(
        mount
            .fake
            .shared
            .tree
            .lock()
            .unwrap()
            .bytes_of(b"a file")
            .unwrap(),
        b"hello"
    );
    fs::create_dir(mount.path("dir")).unwrap();
    let moved = mount.path("dir/b");
    fs::rename(&file, &moved).unwrap();
    assert!(!file.exists());
    fs::hard_link(&moved, mount.path("c")).unwrap();
    assert_eq!(fs::metadata(&moved).unwrap().nlink(), 2);
    std::os::unix::fs::symlink("dir/b", mount.path("s")).unwrap();
    assert_eq!(fs::read_link(mount.path("s")).unwrap(), Path::new("dir/b"));
    assert_eq!(fs::read(mount.path("s")).unwrap(), b"hello");
    assert_eq!(
        fs::remove_dir(mount.path("dir"))
            .unwrap_err()
            .raw_os_error(),
        Some(39)
    );
    fs::remove_file(&moved).unwrap();
    fs::remove_dir(mount.path("dir")).unwrap();
    assert_eq!(fs::metadata(mount.path("c")).unwrap().nlink(), 1);
    let source = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = source
        .lines()
        .find(|line| line.contains(mount.root().to_str().unwrap()))
        .unwrap();
    assert!(line.starts_with("127.0.0.1:/v01 "), "{line}");
    assert!(line.contains(" fuse.mortar rw,"), "{line}");
    assert!(line.contains("default_permissions,allow_other"), "{line}");
    mount.assert_quiet();
}

#[test]
fn attributes_times_space_and_xattrs() {
    let mount = Mount::new();
    let path = mount.path("f");
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .open(&path);
    let mut file = file.unwrap();
    file.write_all(&[7; 10_000]).unwrap();
    file.set_len(5_000).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 5_000);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&path, Some(7), Some(8)).unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()),
        (0o640, 7, 8)
    );
    // -1.2 s and a time far away.
    for (secs, nanos) in [(-2, 800_000_000), (4_000_000_000, 5)] {
        let time = rustix::fs::Timespec {
            tv_sec: secs,
            tv_nsec: nanos,
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::futimens(&file, &times).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (secs, nanos));
    }
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 8_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 8_000);
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 0, 4_096).unwrap();
    let mut bytes = [1; 8];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0; 8]);
    assert_eq!(
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(10)).unwrap(),
        8_000
    );
    let copy = File::create(mount.path("copy")).unwrap();
    let copied = rustix::fs::copy_file_range(&file, Some(&mut 4_096), &copy, None, 100).unwrap();
    assert_eq!(copied, 100);
    assert_eq!(fs::read(mount.path("copy")).unwrap(), [7; 100]);
    file.sync_all().unwrap();
    let mut value = [0; 16];
    let absent = rustix::fs::fgetxattr(&file, "user.a", &mut value).unwrap_err();
    assert_eq!(absent, rustix::io::Errno::NODATA);
    rustix::fs::fsetxattr(&file, "user.a", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    assert_eq!(
        rustix::fs::fgetxattr(&file, "user.a", &mut value).unwrap(),
        1
    );
    assert_eq!(rustix::fs::flistxattr(&file, &mut value).unwrap(), 7);
    rustix::fs::fremovexattr(&file, "user.a").unwrap();
    assert_eq!(rustix::fs::statvfs(mount.root()).unwrap().f_bavail, 400);
    let cwd = rustix::fs::CWD;
    for (name, kind) in [
        ("fifo", rustix::fs::FileType::Fifo),
        ("dev", rustix::fs::FileType::CharacterDevice),
    ] {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let device = rustix::fs::makedev(1, 300);
        rustix::fs::mknodat(cwd, mount.path(name), kind, mode, device).unwrap();
    }
    assert!(
        fs::metadata(mount.path("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert_eq!(
        fs::metadata(mount.path("dev")).unwrap().rdev(),
        rustix::fs::makedev(1, 300)
    );
    mount.assert_quiet();
}

#[test]
fn a_folder_of_1000_entries_is_listed_whole() {
    let mount = Mount::new();
    let dir = mount.path("dir");
    fs::create_dir(&dir).unwrap();
    let names: Vec<String> = (0..1_000).map(|n| format!("file number {n:04}")).collect();
    for name in &names {
        File::create(dir.join(name)).unwrap();
    }
    let list = |dir: &Path| {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(list(&dir), names);
    // Another name for the folder's content, read while entries go.
    let mut left = names.clone();
    for (at, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if at % 2 == 0 {
            fs::remove_file(dir.join(&name)).unwrap();
            left.retain(|have| *have != name);
        }
    }
    assert_eq!(left.len(), 500);
    assert_eq!(list(&dir), left);
    mount.assert_quiet();
}

#[test]
fn seekdir_goes_anywhere() {
    let mount = Mount::new();
    for n in 0..300 {
        File::create(mount.path(&format!("{n}"))).unwrap();
    }
    // SAFETY: a directory stream of our own, closed at the end; names are copied out at once.
    unsafe {
        let path = std::ffi::CString::new(mount.root().to_str().unwrap()).unwrap();
        let stream = libc::opendir(path.as_ptr());
        let next = || {
            let entry = libc::readdir(stream);
            (!entry.is_null())
                .then(|| std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()).to_owned())
        };
        let mut seen = vec![];
        loop {
            let at = libc::telldir(stream);
            let Some(name) = next() else { break };
            seen.push((at, name));
        }
        assert_eq!(seen.len(), 302);
        for (at, name) in seen.iter().rev().step_by(17) {
            libc::seekdir(stream, *at);
            assert_eq!(next().as_ref(), Some(name));
        }
        libc::rewinddir(stream);
        assert_eq!(std::iter::from_fn(next).count(), 302);
        libc::closedir(stream);
    }
    mount.assert_quiet();
}

/// Promise 8: what an operation costs in requests.
#[test]
fn requests_per_operation() {
    let mount = Mount::new();
    let counts = |what: &str, expected: &[(&str, u64)], act: &dyn Fn()| {
        // Names and attributes of what went before are out of date.
        std::thread::sleep(Duration::from_millis(1_200));
        fs::metadata(mount.root()).unwrap();
        mount.fake.take_counts();
        act();
        let mut counts = mount.fake.take_counts();
        counts.remove("release");
        let expected: std::collections::BTreeMap<&str, u64> = expected.iter().copied().collect();
        assert_eq!(counts, expected, "{what}");
    };
    let path = |name: &str| mount.path(name);
    let create = [("requests", 3), ("lookup", 1), ("create", 1), ("write", 1)];
    counts("create, write, close", &create, &|| {
        fs::write(path("a"), [1; 4096]).unwrap()
    });
    counts("stat", &[("requests", 1), ("lookup", 1)], &|| {
        drop(fs::metadata(path("a")))
    });
    let read = [("requests", 2), ("lookup", 1), ("open", 1), ("read", 1)];
    counts("open, read, close", &read, &|| {
        drop(fs::read(path("a")).unwrap())
    });
    let again = [("requests", 2), ("lookup", 1), ("open", 1)];
    counts("read again", &again, &|| drop(fs::read(path("a")).unwrap()));
    let rename = [("requests", 3), ("lookup", 2), ("rename", 1)];
    counts("rename", &rename, &|| {
        fs::rename(path("a"), path("b")).unwrap()
    });
    let mkdir = [("requests", 2), ("lookup", 1), ("create", 1)];
    counts("mkdir", &mkdir, &|| fs::create_dir(path("d")).unwrap());
    let unlink = [("requests", 2), ("lookup", 1), ("unlink", 1)];
    counts("unlink", &unlink, &|| fs::remove_file(path("b")).unwrap());
    let absent = [("requests", 1), ("lookup", 1)];
    counts("lookup of nothing", &absent, &|| {
        assert!(!path("x").exists())
    });
    for n in 0..200 {
        File::create(path(&format!("d/{n:03}"))).unwrap();
    }
    // One for the folder's name, one for its attributes and all entries with theirs.
    let ls = [
        ("requests", 2),
        ("lookup", 1),
        ("getattr", 1),
        ("readdir", 1),
    ];
    counts("ls -l of 200 files", &ls, &|| {
        let output = Command::new("ls")
            .arg("-l")
            .arg(path("d"))
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap().lines().count(),
            201
        );
    });
    mount.assert_quiet();
}

#[test]
fn a_restart_is_a_pause_and_not_an_error() {
    let mount = Mount::new();
    fs::write(mount.path("before"), b"1").unwrap();
    mount.fake.kill(0);
    let path = mount.path("after");
    let writer = std::thread::spawn(move || fs::write(path, b"2"));
    std::thread::sleep(Duration::from_millis(500));
    assert!(!writer.is_finished());
    mount.fake.restart(0);
    let began = Instant::now();
    writer.join().unwrap().unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(fs::read(mount.path("before")).unwrap(), b"1");
    assert_eq!(fs::read(mount.path("after")).unwrap(), b"2");
    mount.assert_quiet();
}

#[test]
fn a_killed_primary_is_followed_by_the_other_brick_at_once() {
    let mount = Mount::new();
    let file = File::create(mount.path("f")).unwrap();
    file.write_all_at(b"old", 0).unwrap();
    mount.fake.kill(0);
    let path = mount.path("f");
    let writer = std::thread::spawn(move || {
        let written = file.write_all_at(b"new", 0);
        (written, Instant::now())
    });
    std::thread::sleep(Duration::from_millis(300));
    mount.fake.set_primary(1);
    let moved_at = Instant::now();
    let (written, at) = writer.join().unwrap();
    written.unwrap();
    assert!(at.saturating_duration_since(moved_at) < Duration::from_millis(300));
    assert_eq!(fs::read(path).unwrap(), b"new");
    mount.assert_quiet();
}

#[test]
fn a_frozen_primary_is_left_when_another_answers() {
    let mount = Mount::new();
    fs::write(mount.path("f"), b"1").unwrap();
    // Until then the kernel answers from what it was told.
    std::thread::sleep(Duration::from_millis(1_100));
    mount.fake.freeze(0);
    let path = mount.path("f");
    let reader = std::thread::spawn(move || fs::metadata(path).map(|metadata| metadata.len()));
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(!reader.is_finished());
    mount.fake.set_primary(1);
    let began = Instant::now();
    assert_eq!(reader.join().unwrap().unwrap(), 1);
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    mount.assert_quiet();
}

#[test]
fn a_request_whose_answer_was_lost_is_not_done_twice() {
    let mount = Mount::new();
    let shared = &mount.fake.shared;
    let path = mount.path("log");
    let mut log = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .unwrap();
    log.write_all(b"one\n").unwrap();
    shared.swallow_answer.store(true, Ordering::SeqCst);
    log.write_all(b"two\n").unwrap();
    shared.swallow_answer.store(true, Ordering::SeqCst);
    fs::rename(&path, mount.path("log.1")).unwrap();
    shared.swallow_answer.store(true, Ordering::SeqCst);
    fs::create_dir(mount.path("d")).unwrap();
    assert_eq!(fs::read(mount.path("log.1")).unwrap(), b"one\ntwo\n");
    assert_eq!(shared.resent.load(Ordering::SeqCst), 3);
    mount.assert_quiet();
}

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

fn fcntl_lock(file: &File, kind: i32, wait: bool) -> std::io::Result<()> {
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

#[test]
fn closed_files_are_released_in_the_background() {
    let mount = Mount::new();
    let open = || mount.fake.shared.tree.lock().unwrap().opens.len();
    let files: Vec<_> = (0..50)
        .map(|n| File::create(mount.path(&format!("{n}"))).unwrap())
        .collect();
    assert_eq!(open(), 50);
    drop(files);
    until("all are released", || open() == 0);
    mount.assert_quiet();
}

#[test]
fn a_client_that_was_put_out_goes_on_with_a_new_session() {
    let mount = Mount::new();
    let plain = File::create(mount.path("plain")).unwrap();
    let locked = File::create(mount.path("locked")).unwrap();
    fcntl_lock(&locked, libc::F_WRLCK, false).unwrap();
    let shared = &mount.fake.shared;
    let (session, _) = shared.tree.lock().unwrap().opens[0];
    shared.fenced.lock().unwrap().push(session);
    shared.tree.lock().unwrap().opens.clear();
    plain.write_all_at(b"goes on", 0).unwrap();
    assert_eq!(
        shared.tree.lock().unwrap().opens.len(),
        2,
        "opens are taken again"
    );
    let refusal = locked.write_all_at(b"no", 0).unwrap_err();
    assert_eq!(refusal.raw_os_error(), Some(libc::EIO));
    drop(locked);
    fs::write(mount.path("locked"), b"yes").unwrap();
    assert!(mount.log().contains("was put out"));
}

#[test]
fn unmounting_ends_the_session_and_the_process() {
    let mount = Mount::new();
    fs::write(mount.path("f"), b"1").unwrap();
    mount.fake.take_counts();
    assert!(
        Command::new("umount")
            .arg(mount.root())
            .status()
            .unwrap()
            .success()
    );
    until("the session ends", || {
        mount.fake.take_counts().contains_key("session_close")
    });
    // In the foreground, by SIGTERM.
    let options = format!("port={}", mount.fake.port_numbers[1]);
    let mut process = Command::new(PROGRAM)
        .args(["-f", "127.0.0.1:/v01"])
        .arg(mount.root())
        .args(["-o", &options])
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("it is mounted", || is_mounted(&mount.root()));
    assert_eq!(fs::read(mount.path("f")).unwrap(), b"1");
    let pid = rustix::process::Pid::from_child(&process);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(process.wait().unwrap().success());
    assert!(!is_mounted(&mount.root()));
}

#[test]
fn a_folder_of_the_volume_can_be_the_root() {
    let mut mount = Mount::new();
    fs::create_dir_all(mount.path("a/b")).unwrap();
    fs::write(mount.path("a/b/f"), b"deep").unwrap();
    let at = mount.folder.path().join("sub");
    fs::create_dir(&at).unwrap();
    let refused = mount.mount_at("127.0.0.1:/v01/a/x", &at, "");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no folder /a/x"));
    let mounted = mount.mount_at("127.0.0.1:/v01/a/b", &at, "ro");
    assert!(
        mounted.status.success(),
        "{}",
        String::from_utf8_lossy(&mounted.stderr)
    );
    mount.extra.push(at.clone());
    assert_eq!(fs::read(at.join("f")).unwrap(), b"deep");
    assert_eq!(
        fs::write(at.join("g"), b"").unwrap_err().raw_os_error(),
        Some(libc::EROFS)
    );
    let (inside, outside) = (
        fs::metadata(at.join("f")),
        fs::metadata(mount.path("a/b/f")),
    );
    assert_eq!(inside.unwrap().ino(), outside.unwrap().ino());
}

#[test]
fn permissions_are_checked_for_every_user() {
    let mount = Mount::new();
    fs::write(mount.path("secret"), b"1").unwrap();
    fs::set_permissions(mount.path("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(mount.root(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(mount.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let shell = format!(
        "cat {0}/secret && exit 3; umask 077; echo mine > {0}/own && cat {0}/own",
        mount.root().display()
    );
    let output = Command::new("setpriv")
        .args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "sh",
            "-c",
            &shell,
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.stdout, b"mine\n");
    let own = fs::metadata(mount.path("own")).unwrap();
    assert_eq!((own.uid(), own.mode() & 0o777), (65534, 0o600));
    mount.assert_quiet();
}

#[test]
fn what_cannot_be_mounted_is_one_sentence() {
    let mount = Mount::new();
    let at = mount.folder.path().join("other");
    fs::create_dir(&at).unwrap();
    let refused = |spec: &str, at: &Path, options: &str, words: &str| {
        let output = mount.mount_at(spec, at, options);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{spec}");
        assert!(said.contains(words) && said.lines().count() == 1, "{said}");
        assert!(!is_mounted(at));
    };
    refused("127.0.0.1:/v02", &at, "", "has no volume 'v02'");
    refused("127.0.0.1:/v01", &at.join("x"), "", "does not exist");
    refused("127.0.0.1:/v01", &at, "bogus", "'bogus' is not known");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = silent.local_addr().unwrap().port();
    drop(silent);
    refused(
        "127.0.0.1:/v01",
        &at,
        &format!("port={closed}"),
        "cannot reach 127.0.0.1",
    );
    refused("no-such-host.invalid:/v01", &at, "", "no-such-host.invalid");
    mount.fake.publish(VolumeStatus::VolumeStopped);
    refused("127.0.0.1:/v01", &at, "", "is not started");
    mount.fake.publish(VolumeStatus::VolumeStarted);
}

#[test]
fn a_backup_host_is_asked_when_the_first_does_not_answer() {
    let mount = Mount::new();
    let at = mount.folder.path().join("other");
    fs::create_dir(&at).unwrap();
    let options = "backup-volfile-servers=127.0.0.1";
    let output = mount.mount_at("no-such-host.invalid:/v01", &at, options);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(Command::new("umount").arg(&at).status().unwrap().success());
}

#[test]
fn o_excl_and_o_trunc() {
    let mount = Mount::new();
    let path = mount.path("f");
    fs::write(&path, b"long content").unwrap();
    let again = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap_err();
    assert_eq!(again.raw_os_error(), Some(libc::EEXIST));
    fs::write(&path, b"x").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"x");
    let mut direct = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_SYNC)
        .open(&path)
        .unwrap();
    direct.write_all(b"yz").unwrap();
    let mut text = String::new();
    direct.seek(SeekFrom::Start(0)).unwrap();
    direct.read_to_string(&mut text).unwrap();
    assert_eq!(text, "yz");
    let rename = rustix::fs::renameat_with(
        rustix::fs::CWD,
        &path,
        rustix::fs::CWD,
        mount.path("g"),
        rustix::fs::RenameFlags::NOREPLACE,
    );
    rename.unwrap();
    fs::write(&path, b"second").unwrap();
    rustix::fs::renameat_with(
        rustix::fs::CWD,
        &path,
        rustix::fs::CWD,
        mount.path("g"),
        rustix::fs::RenameFlags::EXCHANGE,
    )
    .unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"yz");
    assert_eq!(fs::read(mount.path("g")).unwrap(), b"second");
    mount.assert_quiet();
}
