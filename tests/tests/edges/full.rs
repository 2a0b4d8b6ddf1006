use super::*;

const DISK_MIB: u32 = 448;
const MIB: usize = 1 << 20;
/// More than there is room for.
const PIECES: usize = 300;
const ROOM_WITHIN: Duration = Duration::from_secs(30);

/// Writes pieces until somebody says there is no room: how many were taken, who said it and what.
type Fill = fn(&Path) -> (usize, &'static str, Result<()>);

fn piece(number: usize) -> Vec<u8> {
    vec![b'a' + (number % 26) as u8; MIB]
}

/// Writes pieces one after the other with `write`, and then does what is left to do.
fn fill(
    path: &Path,
    flags: OFlags,
    mut then: impl FnMut(&File) -> Result<()>,
) -> (usize, &'static str, Result<()>) {
    let flags = flags | OFlags::CREATE | OFlags::RDWR;
    let file = File::from(rustix::fs::open(path, flags, 0o644.into()).unwrap());
    for number in 0..PIECES {
        // What came of a piece before its error is not told, as on any disk.
        if let Err(error) = errno(file.write_all_at(&piece(number), (number * MIB) as u64)) {
            return (number, "write", Err(error));
        }
        if let Err(error) = then(&file) {
            return (number, "what follows the write", Err(error));
        }
    }
    // SAFETY: the descriptor is given up here and closed nowhere else.
    let closed = unsafe { libc::close(std::os::fd::IntoRawFd::into_raw_fd(file)) };
    match closed {
        0 => (PIECES, "nobody", Ok(())),
        _ => (0, "close", errno(Err(std::io::Error::last_os_error()))),
    }
}

const FILLS: [(&str, Fill); 6] = [
    ("written", |path| fill(path, OFlags::empty(), |_| Ok(()))),
    ("written and synced", |path| {
        fill(path, OFlags::empty(), |file| errno(file.sync_all()))
    }),
    ("written with O_SYNC", |path| {
        fill(path, OFlags::SYNC, |_| Ok(()))
    }),
    ("appended", |path| fill(path, OFlags::APPEND, |_| Ok(()))),
    ("reserved", |path| {
        let file = File::create(path).unwrap();
        let flags = FallocateFlags::empty();
        let refused = fallocate(&file, flags, 0, (PIECES * MIB) as u64);
        (0, "fallocate", refused)
    }),
    ("mapped", |path| {
        let file = File::options();
        let file = file
            .clone()
            .read(true)
            .write(true)
            .create(true)
            .open(path)
            .unwrap();
        file.set_len((PIECES * MIB) as u64).unwrap();
        let mapping = Mapping::new(&file, PIECES * MIB, Access::Write).unwrap();
        for number in 0..PIECES {
            mapping.store(number * MIB, &piece(number));
            if let Err(error) = mapping.sync() {
                return (number, "msync", Err(error));
            }
        }
        (PIECES, "nobody", Ok(()))
    }),
];

/// However a program writes, it is told; and what was taken before is there.
#[test]
fn a_full_disk_is_told_to_who_writes() {
    let cluster = Cluster::new(&["gfs01", "gfs02", "client"]);
    let bricks = ["gfs01", "gfs02"].map(|name| cluster.host(name).small_disk(DISK_MIB, "rw"));
    cluster.found_on(&["gfs01", "gfs02"], &bricks);
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    let other = cluster.mount("client", "gfs02,gfs01:/v01", "");
    for (what, write) in FILLS {
        let path = mount.join("file");
        let (taken, who, said) = write(&path);
        report::say(&format!("{what}: {taken} MiB taken, {who} says {said:?}"));
        assert_eq!(said, Err(Errno::NOSPC), "{what}");
        let content = fs::read(other.join("file")).unwrap();
        for number in 0..taken {
            let there = content.get(number * MIB..(number + 1) * MIB);
            assert!(
                there == Some(&piece(number)[..]),
                "{what}: piece {number} of {taken}"
            );
        }
        fs::remove_file(&path).unwrap();
        wait_for_room(&mount);
    }
    let [one, two] = ["gfs01", "gfs02"].map(|name| cluster.host(name).brick("disk/brick"));
    tests::cluster::assert_bricks_equal(&one, &two);
    cluster.assert_check_finds_nothing(VOLUME);
    other.unmount();
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}

/// Big files are freed in the background.
fn wait_for_room(mount: &Mount) {
    wait_until(ROOM_WITHIN, "there is room again", || {
        let probe = mount.join("probe");
        let room = fs::write(&probe, vec![1; 16 * MIB]).is_ok();
        fs::remove_file(probe).unwrap();
        room
    });
}
