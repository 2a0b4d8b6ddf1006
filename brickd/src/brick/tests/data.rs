//! Bytes: writes, holes, copies, syncs, failures.

use mortar_proto::data::{CopyRangeStep, FallocateStep, FsyncStep};

use super::super::HealSource;
use super::*;

#[test]
fn writes_are_read_back_and_counted() {
    let fix = Fixture::new();
    let file = fix.file(Gfid::ROOT, "f");
    let change = fix.write(file, 10, b"hello");
    assert_eq!(fix.read_all(file), b"\0\0\0\0\0\0\0\0\0\0hello");
    let object = fix.object(file);
    assert_eq!(
        (object.size, object.mtime, object.ctime),
        (15, change.time, change.time)
    );
    assert_eq!(
        (object.data_counter, object.attr_counter),
        (change.number, change.number)
    );
    let mut bytes = b"kept".to_vec();
    fix.brick().read(file, 12, 2, &mut bytes).unwrap();
    fix.brick().read(file, 99, 2, &mut bytes).unwrap();
    assert_eq!(bytes, b"keptll");
    let step = WriteStep {
        gfid: Some(file),
        len: 3,
        ..Default::default()
    };
    assert!(fix.try_apply(Step::Write(step), b"xx").is_err());
    let dir = fix.dir(Gfid::ROOT, "d");
    let read = fix.brick().read(dir, 0, 1, &mut bytes);
    assert_eq!(read.unwrap_err().fs_error(), FsError::IsDirectory);
}

#[test]
fn holes_extents_and_sums() {
    let fix = Fixture::new();
    let file = fix.file(Gfid::ROOT, "f");
    fix.write(file, 0, &[1; 4096]);
    fix.write(file, 1 << 20, &[2; 4096]);
    let brick = fix.brick();
    assert_eq!(brick.next_extent(file, 0).unwrap(), Some((0, 4096, false)));
    let hole = (4096, (1 << 20) - 4096, true);
    assert_eq!(brick.next_extent(file, 4096).unwrap(), Some(hole));
    assert_eq!(
        brick.next_extent(file, (1 << 20) + 1).unwrap(),
        Some(((1 << 20) + 1, 4095, false))
    );
    assert_eq!(brick.next_extent(file, (1 << 20) + 4096).unwrap(), None);
    assert_eq!(brick.seek(file, 0, true).unwrap(), 4096);
    assert_eq!(brick.seek(file, 5000, false).unwrap(), 1 << 20);
    assert_eq!(
        brick.seek(file, 1 << 30, false).unwrap_err().fs_error(),
        FsError::NoDevice
    );
    assert_eq!(brick.failure(), None);
    assert_eq!(
        brick.sum(file, 0, 4096).unwrap(),
        xxhash_rust::xxh3::xxh3_64(&[1; 4096])
    );
    assert_eq!(
        brick.sum(file, (1 << 20) + 4000, 9999).unwrap(),
        xxhash_rust::xxh3::xxh3_64(&[2; 96])
    );

    let keep_punch = 3;
    let step = FallocateStep {
        gfid: Some(file),
        mode: keep_punch,
        offset: 0,
        len: 4096,
        ..Default::default()
    };
    let change = fix.apply(Step::Fallocate(step));
    assert_eq!(
        brick.next_extent(file, 0).unwrap(),
        Some((0, 1 << 20, true))
    );
    assert_eq!(fix.object(file).data_counter, change.number);
    let keep_size = FallocateStep {
        gfid: Some(file),
        mode: 1,
        offset: 0,
        len: 1 << 22,
        ..Default::default()
    };
    let reserved = fix.apply(Step::Fallocate(keep_size));
    assert_eq!(fix.object(file).size, (1 << 20) + 4096);
    assert_eq!(fix.object(file).data_counter, change.number);
    assert_eq!(fix.object(file).mtime, reserved.time);
    // The disk stamped it with a time of its own, which the other copy's disk does not have.
    brick.sync_all().unwrap();
    assert_eq!(brick.settled_mtime(file), reserved.time);
    let collapse = FallocateStep {
        gfid: Some(file),
        mode: 8,
        len: 4096,
        ..Default::default()
    };
    assert_eq!(
        fix.refused(Step::Fallocate(collapse)),
        FsError::NotSupported
    );
}

#[test]
fn ranges_are_copied_between_and_within_files() {
    let fix = Fixture::new();
    let (a, b) = (fix.file(Gfid::ROOT, "a"), fix.file(Gfid::ROOT, "b"));
    fix.write(a, 0, b"0123456789");
    let copy = |from, to, len| CopyRangeStep {
        from: Some(from),
        from_offset: 2,
        to: Some(to),
        to_offset: 6,
        len,
        ..Default::default()
    };
    let change = fix.apply(Step::CopyRange(copy(a, b, 4)));
    assert_eq!(fix.read_all(b), b"\0\0\0\0\0\x002345");
    assert_eq!(fix.object(b).data_counter, change.number);
    fix.apply(Step::CopyRange(copy(a, a, 3)));
    assert_eq!(fix.read_all(a), b"0123452349");
    assert!(
        fix.try_apply(Step::CopyRange(copy(a, b, 400)), &[])
            .is_err()
    );
}

#[test]
fn every_kind_of_object_can_be_synced() {
    let fix = Fixture::new();
    for mode in [libc::S_IFREG, libc::S_IFDIR, libc::S_IFIFO, libc::S_IFLNK] {
        let gfid = fix.gfid();
        let Step::Create(mut step) = create(Gfid::ROOT, &format!("{mode}"), gfid, mode | 0o700)
        else {
            unreachable!()
        };
        step.target = "t".into();
        fix.apply(Step::Create(step));
        for data_only in [false, true] {
            fix.apply(Step::Fsync(FsyncStep {
                gfid: Some(gfid),
                data_only,
            }));
        }
    }
    fix.apply(Step::Fsync(FsyncStep {
        gfid: Some(Gfid::ROOT),
        data_only: false,
    }));
    let file = fix.file(Gfid::ROOT, "s");
    let step = WriteStep {
        gfid: Some(file),
        len: 1,
        sync: true,
        ..Default::default()
    };
    fix.try_apply(Step::Write(step), b"x").unwrap();
    fix.brick().sync_all().unwrap();
}

#[test]
fn what_memory_is_ahead_of_gets_to_the_disk_by_itself() {
    let fix = Fixture::new();
    let file = fix.file(Gfid::ROOT, "f");
    let change = fix.write(file, 0, b"x");
    let secs = change.time.unwrap().secs;
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let metadata = std::fs::metadata(fix.root().join("f")).unwrap();
        if std::os::unix::fs::MetadataExt::mtime(&metadata) == secs {
            break;
        }
        assert!(std::time::Instant::now() < until, "never written back");
        std::thread::yield_now();
    }
}

#[test]
fn after_a_failure_of_the_disk_nothing_is_applied() {
    let fix = Fixture::new();
    let file = fix.file(Gfid::ROOT, "f");
    fix.brick().inner.fail("a write", rustix::io::Errno::IO);
    assert!(fix.brick().failure().is_some());
    let step = WriteStep {
        gfid: Some(file),
        len: 1,
        ..Default::default()
    };
    let refused = fix.try_apply(Step::Write(step), b"x");
    assert!(matches!(refused, Err(BrickError::Disk { .. })));
    assert!(matches!(
        fix.brick().sync_all(),
        Err(BrickError::Disk { .. })
    ));
    assert_eq!(fix.object(file).size, 0);
}

#[test]
fn a_brick_that_is_not_at_its_place_any_more_is_given_up() {
    let fix = Fixture::new();
    let file = fix.file(Gfid::ROOT, "f");
    fix.brick().check().unwrap();
    let away = fix.root().with_extension("away");
    std::fs::rename(fix.root(), &away).unwrap();
    std::fs::create_dir(fix.root()).unwrap();
    let refused = fix.brick().check().unwrap_err().to_string();
    assert!(refused.contains("deleted, moved or unmounted"), "{refused}");
    // For good: what came between is not known.
    std::fs::remove_dir(fix.root()).unwrap();
    std::fs::rename(&away, fix.root()).unwrap();
    let step = WriteStep {
        gfid: Some(file),
        len: 1,
        ..Default::default()
    };
    let refused = fix.try_apply(Step::Write(step), b"x").unwrap_err();
    let refused = refused.to_string();
    assert!(refused.contains("deleted, moved or unmounted"), "{refused}");
    assert!(fix.brick().check().is_err());
}

#[test]
fn many_threads_in_one_directory_leave_what_one_would() {
    let fix = Fixture::new();
    let dir = fix.dir(Gfid::ROOT, "d");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let fix = &fix;
            scope.spawn(move || {
                for number in 0..100 {
                    let file = fix.file(dir, &format!("{thread}-{number}"));
                    fix.write(file, 0, b"x");
                    if number % 2 == 0 {
                        fix.apply(unlink(dir, &format!("{thread}-{number}"), file, false));
                    }
                }
            });
        }
    });
    let last = fix.next.load(Ordering::Relaxed) - 1;
    let object = fix.object(dir);
    assert!(object.data_counter <= last && object.data_counter > last - 8);
    assert_eq!(
        object.mtime.unwrap().secs,
        EPOCH_SECS + object.data_counter as i64
    );
    assert_eq!(fix.handles().len(), 201);
    assert_eq!(fix.brick().stored_state().last_number, last);
}
