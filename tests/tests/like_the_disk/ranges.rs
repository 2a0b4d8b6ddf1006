use super::*;

const KIB: u64 = 1 << 10;

fn file(folder: &Path, name: &str) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options.open(folder.join(name)).unwrap()
}

fn numbers(from: u64, len: u64) -> Vec<u8> {
    (from..from + len).map(|at| (at % 251) as u8).collect()
}

#[test]
fn fallocate_changes_content_and_size_as_on_the_disk() {
    let keep = FallocateFlags::KEEP_SIZE;
    let flags = [
        ("reserve", FallocateFlags::empty()),
        ("reserve, keep size", keep),
        ("punch", FallocateFlags::PUNCH_HOLE.union(keep)),
        ("punch without keep size", FallocateFlags::PUNCH_HOLE),
        ("zero", FallocateFlags::ZERO_RANGE),
        ("zero, keep size", FallocateFlags::ZERO_RANGE.union(keep)),
    ];
    let spans = [
        (0, 4 * KIB),
        (100, 5000),
        (60 * KIB, 8 * KIB),
        (64 * KIB, 4 * KIB),
        (200 * KIB, 1),
        (0, 0),
        (i64::MAX as u64 - 10, 100),
    ];
    let mut both = Both::new();
    for (how, flags) in flags {
        for (offset, len) in spans {
            both.case(&format!("{how} {len} from {offset}"), |folder| {
                let file = file(folder, "file");
                file.write_all_at(&numbers(0, 64 * KIB), 0).unwrap();
                let outcome = fallocate(&file, flags, offset, len);
                let meta = file.metadata().unwrap();
                let content = fs::read(folder.join("file")).unwrap();
                (
                    outcome,
                    meta.len(),
                    content == expected(&content, flags, offset, len),
                )
            });
        }
    }
    both.end();
}

/// What a file of 64 KiB holds after a fallocate, as long as it now is.
fn expected(content: &[u8], flags: FallocateFlags, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = numbers(0, 64 * KIB);
    bytes.resize(content.len(), 0);
    let clears = flags.intersects(FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE)
        && flags != FallocateFlags::PUNCH_HOLE;
    if clears {
        let from = (offset as usize).min(bytes.len());
        let to = (offset.saturating_add(len) as usize).min(bytes.len());
        bytes[from..to].fill(0);
    }
    bytes
}

#[test]
fn holes_are_found_where_they_are() {
    let mut both = Both::new();
    let positions = [0, 1, 64, 65, 127, 128, 191, 192, 255, 256, 300].map(|kib| kib * KIB);
    both.case("64 KiB of data, a hole, 64 KiB of data, a hole", |folder| {
        let file = file(folder, "file");
        file.write_all_at(&numbers(0, 64 * KIB), 0).unwrap();
        file.write_all_at(&numbers(0, 128 * KIB), 128 * KIB)
            .unwrap();
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, punch, 192 * KIB, 64 * KIB).unwrap();
        file.sync_all().unwrap();
        let found = positions.map(|at| {
            (
                seek(&file, SeekFrom::Data(at)),
                seek(&file, SeekFrom::Hole(at)),
            )
        });
        assert_eq!(found[0], (Ok(0), Ok(64 * KIB)));
        assert_eq!(found[2], (Ok(128 * KIB), Ok(64 * KIB)));
        found
    });
    both.case("an empty file", |folder| {
        let file = file(folder, "file");
        (
            seek(&file, SeekFrom::Data(0)),
            seek(&file, SeekFrom::Hole(0)),
        )
    });
    both.end();
}

#[test]
fn ranges_are_copied_as_on_the_disk() {
    let mut both = Both::new();
    // (from, to, length) of a file of 100,000 bytes to one of 1,000.
    let copies: [(u64, u64, u64); 7] = [
        (0, 0, 100_000),
        (0, 0, 1 << 40),
        (99_999, 500, 10),
        (100_000, 0, 10),
        (5_000, 200_000, 4_096),
        (1, 3, 0),
        (7, 11, 70_000),
    ];
    for (from, to, len) in copies {
        both.case(&format!("{len} from {from} to {to}"), |folder| {
            let (source, target) = (file(folder, "source"), file(folder, "target"));
            source.write_all_at(&numbers(0, 100_000), 0).unwrap();
            target.write_all_at(&numbers(50, 1_000), 0).unwrap();
            let (mut at, mut to) = (from, to);
            let copied =
                copy_file_range(&source, Some(&mut at), &target, Some(&mut to), len as usize);
            (copied, at, to, fs::read(folder.join("target")).unwrap())
        });
    }
    let within = [(0, 50_000, 50_000), (0, 10, 100), (10, 0, 100), (0, 0, 10)];
    for (from, to, len) in within {
        both.case(
            &format!("{len} from {from} to {to} of one file"),
            |folder| {
                let file = file(folder, "file");
                file.write_all_at(&numbers(0, 60_000), 0).unwrap();
                let (mut at, mut to) = (from, to);
                let copied = copy_file_range(&file, Some(&mut at), &file, Some(&mut to), len);
                (copied, fs::read(folder.join("file")).unwrap())
            },
        );
    }
    both.case("to a file opened for appending, to a folder", |folder| {
        let source = file(folder, "source");
        source.write_all_at(b"0123456789", 0).unwrap();
        let append = OpenOptions::new().append(true).open(folder.join("source"));
        let folder = File::open(folder).unwrap();
        [append.unwrap(), folder].map(|to| copy_file_range(&source, None, to, None, 5))
    });
    // From one mount of the volume to another, where the kernel reads and writes.
    let other = both.cluster.mount("client", "gfs02:/v01", "");
    let source = numbers(0, 3 << 20);
    fs::write(other.join("source"), &source).unwrap();
    fs::copy(other.join("source"), both.mount.join("target")).unwrap();
    assert!(fs::read(other.join("target")).unwrap() == source);
    other.unmount();
    both.end();
}
