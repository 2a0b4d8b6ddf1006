//! Maildir: letters are delivered from two mounts and fetched meanwhile, without a lock.
//!
//! They are fetched through one mount: a rename to where another mount moved the file a moment ago
//! is nothing to do for a kernel that still knows the old name (ARCHITECTURE.md, caches).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tests::cluster::wait_until;
use tests::outage::{end, mounted, within};
use tests::scale;

use super::Bricks;

const AWAY: Duration = Duration::from_secs(2);

/// What a letter says: enough to tell a torn one.
fn text_of(name: &str) -> String {
    format!("to whom it may concern: {name}\n").repeat(40)
}

/// Writes a letter to `tmp`, makes it durable, and links it to `new` under the same name.
fn deliver(root: &Path, name: &str) {
    let (tmp, new) = (root.join("tmp").join(name), root.join("new").join(name));
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .open(&tmp)
        .unwrap();
    file.write_all(text_of(name).as_bytes()).unwrap();
    file.sync_all().unwrap();
    fs::hard_link(&tmp, &new).unwrap();
    fs::remove_file(&tmp).unwrap();
}

/// Moves what is in `new` to `cur`; another may be quicker. Returns the names this one moved.
fn fetch(root: &Path) -> Vec<String> {
    let names = fs::read_dir(root.join("new"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let fetched = names.filter(|name| {
        let seen = root.join("cur").join(format!("{name}:2,S"));
        match fs::rename(root.join("new").join(name), &seen) {
            Ok(()) => {
                assert_eq!(fs::read_to_string(&seen).unwrap(), text_of(name));
                true
            }
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => panic!("{name}: {error}"),
        }
    });
    fetched.collect()
}

fn letters_are_neither_lost_nor_doubled(bricks: Bricks) {
    /// Of each mount.
    const POSTMEN: usize = 2;
    const FETCHERS: usize = 2;
    let letters = scale::pick(150, 3_000);
    let (cluster, mount) = mounted();
    let other = cluster.mount("client", "gfs02,gfs01:/v01", "");
    let roots = [&mount, &other].map(|mount| mount.join("Maildir"));
    for folder in ["tmp", "new", "cur"] {
        fs::create_dir_all(roots[0].join(folder)).unwrap();
    }
    let (delivered, all_delivered) = (AtomicUsize::new(0), AtomicBool::new(false));
    let fetched = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let postmen: Vec<_> = (0..2 * POSTMEN)
            .map(|number| {
                let (root, delivered) = (&roots[number % 2], &delivered);
                scope.spawn(move || {
                    for letter in 0..letters {
                        deliver(root, &format!("{number}.{letter}"));
                        delivered.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for _ in 0..FETCHERS {
            let (fetched, all_delivered, root) = (&fetched, &all_delivered, &roots[0]);
            scope.spawn(move || {
                loop {
                    let last = all_delivered.load(Ordering::Acquire);
                    let names = fetch(root);
                    let none = names.is_empty();
                    fetched.lock().unwrap().extend(names);
                    if last && none {
                        return;
                    }
                }
            });
        }
        if let Bricks::Lose(victim) = bricks {
            wait_until(within(), "half of the letters are there", || {
                delivered.load(Ordering::Relaxed) > POSTMEN * letters
            });
            cluster.host(victim).kill_brickd();
            assert!(!postmen.iter().all(|postman| postman.is_finished()));
            std::thread::sleep(AWAY);
            cluster.host(victim).start_brickd();
        }
        postmen
            .into_iter()
            .for_each(|postman| postman.join().unwrap());
        all_delivered.store(true, Ordering::Release);
    });
    let fetched = fetched.into_inner().unwrap();
    let names: BTreeSet<_> = fetched.iter().collect();
    assert_eq!(fetched.len(), names.len(), "a letter was fetched twice");
    assert_eq!(names.len(), 2 * POSTMEN * letters, "a letter was lost");
    let kept = |folder: &str| fs::read_dir(roots[0].join(folder)).unwrap().count();
    assert_eq!(["tmp", "new", "cur"].map(kept), [0, 0, names.len()]);
    other.unmount();
    end(&cluster, mount);
}

#[test]
fn letters_from_two_mounts() {
    letters_are_neither_lost_nor_doubled(Bricks::Stay);
}

#[test]
fn letters_from_two_mounts_and_a_lost_brick() {
    letters_are_neither_lost_nor_doubled(Bricks::Lose("gfs01"));
}
