//! A brick that dies, freezes or forgets us is a pause.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mortar_proto::data::ReplyStatus;

use crate::Mount;
use crate::locks::fcntl_lock;

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
    assert!(mount.log().contains("1 locks are lost"));
}

/// A change whose answer is lost together with the session is not made a second time where that
/// could be seen: not an append, and not a write when others may have written since.
#[test]
fn a_change_that_was_perhaps_made_is_not_made_again_by_a_new_session() {
    use ReplyStatus::{ReplyFenced, ReplyUnknownSession};
    let mount = Mount::new();
    let shared = &mount.fake.shared;
    let path = mount.path("log");
    let plain = File::create(&path);
    let plain = plain.unwrap();
    let append = OpenOptions::new().append(true).open(&path).unwrap();
    plain.write_all_at(b"one\n", 0).unwrap();
    let lose = |by| {
        *shared.ends_session.lock().unwrap() = Some(by);
        shared.swallow_answer.store(true, Ordering::SeqCst);
    };
    let io_error = |outcome: std::io::Result<()>| {
        assert_eq!(outcome.unwrap_err().raw_os_error(), Some(libc::EIO));
    };
    lose(ReplyFenced);
    io_error((&append).write_all(b"two\n"));
    lose(ReplyUnknownSession);
    io_error((&append).write_all(b"six\n"));
    lose(ReplyFenced);
    io_error(plain.write_all_at(b"ONE\n", 0));
    lose(ReplyFenced);
    io_error(plain.set_len(12));
    // Nobody can have come between when no brick knew anybody.
    lose(ReplyUnknownSession);
    plain.write_all_at(b"One\n", 0).unwrap();
    lose(ReplyFenced);
    plain.sync_all().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"One\ntwo\nsix\n");
    let told = mount
        .log()
        .matches("whether it was made is not known")
        .count();
    assert_eq!(told, 4);
}

/// Every brick was started anew while the mount was idle. What is asked for meanwhile was begun by
/// nobody, and waits.
#[test]
fn what_comes_while_all_bricks_start_is_done_when_they_serve() {
    let mount = Mount::new();
    let shared = &mount.fake.shared;
    let path = mount.path("log");
    let log = OpenOptions::new().append(true).create(true).open(&path);
    let log = log.unwrap();
    let (session, _) = shared.tree.lock().unwrap().opens[0];
    shared.starts.store(true, Ordering::SeqCst);
    shared.forgotten.lock().unwrap().push(session);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| (&log).write_all(b"once"));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waits.is_finished());
        shared.starts.store(false, Ordering::SeqCst);
        waits.join().unwrap().unwrap();
    });
    assert_eq!(fs::read(&path).unwrap(), b"once");
    mount.assert_quiet();
}

/// Every host lost its power: what was written and not synced is gone, and no fsync may call it
/// durable. Who opens the file afterwards knows what it finds.
#[test]
fn an_fsync_after_every_page_cache_was_lost_says_so_once() {
    let mount = Mount::new();
    let shared = &mount.fake.shared;
    let path = mount.path("data");
    let file = File::create(&path).unwrap();
    let folder = File::open(mount.path("")).unwrap();
    let restart_all = |page_cache| {
        *shared.page_cache.lock().unwrap() = page_cache;
        *shared.ends_session.lock().unwrap() = Some(ReplyStatus::ReplyUnknownSession);
        shared.swallow_answer.store(true, Ordering::SeqCst);
        file.write_all_at(b"lost", 0).unwrap();
    };
    restart_all("");
    file.sync_all().unwrap();
    restart_all("of the next boot");
    for open in [&file, &folder] {
        let told = open.sync_all().unwrap_err();
        assert_eq!(told.raw_os_error(), Some(libc::EIO));
        open.sync_all().unwrap();
    }
    // Under way when it came to pass.
    *shared.page_cache.lock().unwrap() = "of the one after";
    *shared.ends_session.lock().unwrap() = Some(ReplyStatus::ReplyUnknownSession);
    shared.swallow_answer.store(true, Ordering::SeqCst);
    assert!(file.sync_data().is_err());
    File::open(&path).unwrap().sync_all().unwrap();
    assert_eq!(mount.log().matches("another page cache").count(), 2);
}

#[test]
fn a_program_that_waits_for_a_lost_volume_can_be_killed() {
    let mount = Mount::new();
    mount.fake.kill(0);
    mount.fake.kill(1);
    let mut waiter = Command::new("stat").arg(mount.path("x")).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(700));
    assert!(waiter.try_wait().unwrap().is_none());
    waiter.kill().unwrap();
    let began = Instant::now();
    assert!(!waiter.wait().unwrap().success());
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    // Nothing else was hurt.
    mount.fake.restart(0);
    fs::write(mount.path("x"), b"1").unwrap();
}
