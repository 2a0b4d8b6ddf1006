use xxhash_rust::xxh3::xxh3_64;

use super::*;

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
/// The largest file of ext4 with blocks of 4 KiB.
const LARGEST: u64 = 16 * TIB - 4096;
/// A block of the disk's: a hole is told from data to this.
const BLOCK: u64 = 4096;

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(path).unwrap()
}

/// (offset, length) of what is no hole.
fn data_of(file: &File) -> Vec<(u64, u64)> {
    let mut data = Vec::new();
    let mut at = 0;
    while let Ok(start) = seek(file, SeekFrom::Data(at)) {
        at = seek(file, SeekFrom::Hole(start)).unwrap();
        data.push((start, at - start));
    }
    data
}

/// Writes 8 KiB at each of these offsets, and a byte at the end.
fn make(path: &Path, size: u64) {
    let file = open(path);
    file.set_len(size).unwrap();
    for at in offsets(size) {
        file.write_all_at(&[7; 2 * BLOCK as usize], at).unwrap();
    }
    file.write_all_at(b"e", size - 1).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, offsets(size)[1], BLOCK).unwrap();
    file.sync_all().unwrap();
}

fn offsets(size: u64) -> [u64; 3] {
    [size / 4, size / 2, size / 4 * 3].map(|at| at / MIB * MIB)
}

/// A file with holes.
#[derive(PartialEq, Eq)]
struct Sparse {
    size: u64,
    /// Where there is no hole.
    data: Vec<(u64, u64)>,
    /// What is at some places.
    bytes: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Sparse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sums: Vec<u64> = self.bytes.iter().map(|bytes| xxh3_64(bytes)).collect();
        write!(f, "{} bytes, {:?}, {sums:x?}", self.size, self.data)
    }
}

/// Asserts that the disk holds no more of it than its data.
fn look(path: &Path) -> Sparse {
    let file = File::open(path).unwrap();
    let meta = file.metadata().unwrap();
    let size = meta.len();
    let places = [0, size - 2].into_iter().chain(offsets(size));
    let bytes = places.map(|at| {
        let mut bytes = vec![1; 4 * BLOCK as usize];
        let read = file.read_at(&mut bytes, at.saturating_sub(BLOCK)).unwrap();
        bytes.truncate(read);
        bytes
    });
    let bytes = bytes.collect();
    // Blocks of the disk's own tables are not the same everywhere.
    let data = data_of(&file);
    let held: u64 = data.iter().map(|(_, len)| len).sum();
    let taken = meta.blocks() * 512;
    assert!(
        (held..=held + 16 * BLOCK).contains(&taken),
        "{taken}, {held}"
    );
    Sparse { size, data, bytes }
}

/// Through the mount, on each brick, and after it was healed, files have their holes where the disk
/// has them, up to the largest file there can be. What heals, checks or compares reads no holes.
#[test]
fn files_with_holes_stay_sparse_everywhere() {
    const SIZES: [u64; 3] = [64 * MIB, 5 * TIB, LARGEST];
    let mut both = Both::new();
    let began = Instant::now();
    both.through_a_heal(|both| {
        for size in SIZES {
            both.kept(
                &format!("a file of {size} bytes"),
                move |folder| make(&folder.join("file"), size),
                |folder| look(&folder.join("file")),
            );
        }
        both.kept(
            "a copy of a file with holes",
            |folder| {
                make(&folder.join("from"), 64 * MIB);
                let mut copy = std::process::Command::new("cp");
                copy.args(["--sparse=always"]);
                copy.args([folder.join("from"), folder.join("file")]);
                assert!(copy.status().unwrap().success());
            },
            |folder| {
                let file = open(&folder.join("file"));
                file.sync_all().unwrap();
                look(&folder.join("file"))
            },
        );
    });
    both.cluster.assert_check_finds_nothing(VOLUME);
    compare_everything(&both.cluster, &both.mount);
    let bricks = ["gfs01", "gfs02"].map(|host| both.cluster.brick(host));
    for case in 1..=SIZES.len() {
        let [one, other] =
            [&bricks[0], &bricks[1]].map(|brick| look(&brick.join(format!("case-{case:04}/file"))));
        assert!(one == other, "case {case}: the bricks differ");
        assert_eq!(one.data.len(), 4, "{one:?}");
        // Comparing the bricks byte for byte reads every hole.
        fs::remove_dir_all(both.mount.join(format!("case-{case:04}"))).unwrap();
    }
    report::say(&format!("files of up to 16 TiB in {:?}", began.elapsed()));
    both.end();
}

#[test]
fn a_file_ends_where_the_disk_ends_it() {
    let mut both = Both::new();
    for size in [
        LARGEST - 1,
        LARGEST,
        LARGEST + 1,
        16 * TIB,
        1 << 60,
        i64::MAX as u64,
    ] {
        both.case(&format!("{size} bytes"), |folder| {
            let file = open(&folder.join("file"));
            let set = ftruncate(&file, size);
            let len = file.metadata().unwrap().len();
            let write = rustix::io::pwrite(&file, b"xyz", size - 2);
            let after = file.metadata().unwrap().len();
            let reserve = fallocate(&file, FallocateFlags::KEEP_SIZE, size, 1);
            file.set_len(0).unwrap();
            (set, len, write, after, reserve.is_err())
        });
    }
    both.end();
}

/// All content, of copies that are in sync and of one that comes back.
#[track_caller]
fn compare_everything(cluster: &Cluster, mount: &Mount) {
    let said = |what: &str| {
        let count = |host: &str| {
            let log = fs::read_to_string(cluster.host(host).log()).unwrap();
            log.matches(what).count()
        };
        ["gfs01", "gfs02"].map(count).iter().sum::<usize>()
    };
    let full = |cluster: &Cluster| {
        let peer = &cluster.any_peer().name;
        cluster.mortar(peer, "volume heal v01 full").ok();
    };
    full(cluster);
    wait_until(WITHIN, "the copies are compared", || {
        said("the copies are compared") > 0
    });
    let backup = cluster.backup(VOLUME);
    let before = said("comparing everything with the copy");
    backup.kill_brickd();
    // What is written now is written without it.
    fs::write(mount.join("alone"), "x").unwrap();
    full(cluster);
    backup.start_brickd();
    cluster.wait_healed(VOLUME);
    assert!(said("comparing everything with the copy") > before);
}
