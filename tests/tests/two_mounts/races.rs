//! Both mounts do something to one name or one file at the same time.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::sync::Barrier;

use super::*;

#[test]
fn every_record_appended_by_either_mount_is_there_once_and_whole() {
    const RECORDS: usize = 300;
    let pair = Pair::new();
    let paths = pair.paths("log");
    File::create(&paths[0]).unwrap();
    std::thread::scope(|scope| {
        for (who, path) in paths.iter().enumerate() {
            scope.spawn(move || {
                let mut log = File::options().append(true).open(path).unwrap();
                for number in 0..RECORDS {
                    // Of different lengths, some longer than a page.
                    let filling = "x".repeat(number * 37 % 5_000);
                    let record = format!("{who} {number} {filling}\n");
                    assert_eq!(log.write(record.as_bytes()).unwrap(), record.len());
                }
            });
        }
    });
    for path in &paths {
        let text = fs::read_to_string(path).unwrap();
        let mut next = [0; 2];
        for line in text.lines() {
            let mut words = line.split(' ');
            let mut number = || words.next().unwrap().parse::<usize>().unwrap();
            let (who, number) = (number(), number());
            assert_eq!(number, next[who], "out of order, lost or doubled");
            assert_eq!(words.next().unwrap().len(), number * 37 % 5_000, "torn");
            next[who] += 1;
        }
        assert_eq!(next, [RECORDS; 2]);
    }
    pair.end();
}

/// What both try in a round.
type Way = fn(&Path, usize) -> std::io::Result<()>;

#[test]
fn of_two_who_create_move_or_make_exclusively_one_wins() {
    const ROUNDS: usize = 150;
    let pair = Pair::new();
    fs::create_dir(pair.one.join("to")).unwrap();
    let ways: [(&str, Way); 3] = [
        ("create", |mount, round| {
            File::create_new(mount.join(format!("file-{round}"))).map(drop)
        }),
        ("mkdir", |mount, round| {
            fs::create_dir(mount.join(format!("folder-{round}")))
        }),
        ("rename", |mount, round| {
            // To a name of its own: where both names hold one object, as the kernel believes for a
            // second, a rename succeeds and does nothing.
            let to = format!(
                "to/{}-{round}",
                mount.display().to_string().replace('/', "_")
            );
            fs::rename(mount.join(format!("file-{round}")), mount.join(to))
        }),
    ];
    for (what, way) in ways {
        let start = Barrier::new(2);
        let won = std::thread::scope(|scope| {
            let threads = [&pair.one, &pair.two].map(|mount| {
                let start = &start;
                scope.spawn(move || {
                    let attempts = (0..ROUNDS).map(|round| {
                        start.wait();
                        match way(mount.path(), round) {
                            Ok(()) => true,
                            Err(error) => {
                                let lost = [ErrorKind::AlreadyExists, ErrorKind::NotFound];
                                assert!(lost.contains(&error.kind()), "{what}: {error}");
                                false
                            }
                        }
                    });
                    attempts.collect::<Vec<_>>()
                })
            });
            threads.map(|thread| thread.join().unwrap())
        });
        for round in 0..ROUNDS {
            assert!(won[0][round] != won[1][round], "{what} {round}: {won:?}");
        }
    }
    assert_eq!(fs::read_dir(pair.two.join("to")).unwrap().count(), ROUNDS);
    pair.end();
}

/// Configuration files, Maildir, package managers: a reader finds the old or the new file, whole,
/// never none, and never goes back to an older one.
#[test]
fn a_file_that_is_replaced_by_rename_is_always_there_and_never_older() {
    const ROUNDS: usize = 400;
    let pair = Pair::new();
    let [here, there] = pair.paths("current");
    let new = pair.one.join("new");
    let text = |round: usize| format!("{round} {}", "y".repeat(round * 13 % 3_000));
    fs::write(&here, text(0)).unwrap();
    let reads = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 1..=ROUNDS {
                fs::write(&new, text(round)).unwrap();
                fs::rename(&new, &here).unwrap();
            }
        });
        let (mut last, mut seen) = (0, BTreeSet::new());
        while !writer.is_finished() {
            let read = fs::read_to_string(&there).expect("it is always there");
            let round: usize = read.split(' ').next().unwrap().parse().unwrap();
            assert!(read == text(round), "a mixture of two: {read}");
            assert!(round >= last, "{round} after {last}");
            last = round;
            seen.insert(round);
        }
        writer.join().unwrap();
        seen.len()
    });
    assert!(reads > 3, "{reads} versions were read");
    pair.end();
}

#[test]
fn a_file_removed_by_the_other_mount_lives_while_it_is_open() {
    let pair = Pair::new();
    let [here, there] = pair.paths("file");
    fs::write(&here, "as it was").unwrap();
    let mut options = File::options();
    let open = options.read(true).write(true).open(&there).unwrap();
    fs::remove_file(&here).unwrap();
    fs::write(&here, "another").unwrap();
    open.write_all_at(b"!", 9).unwrap();
    let mut bytes = [0; 20];
    let len = open.read_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes[..len], b"as it was!");
    wait_until(SEEN_WITHIN, "no link is left", || {
        open.metadata().unwrap().nlink() == 0
    });
    open.set_len(2).unwrap();
    open.sync_all().unwrap();
    assert_eq!(open.read_at(&mut bytes, 0).unwrap(), 2);
    assert_eq!(fs::read_to_string(&here).unwrap(), "another");
    drop(open);
    wait_until(SEEN_WITHIN, "the name holds the other file", || {
        fs::read_to_string(&there).is_ok_and(|text| text == "another")
    });
    pair.end();
}
