use super::*;

const PIECE: usize = 4 << 10;
const ORPHAN_BYTES: usize = 64 << 10;
/// One getdents(2) at a time takes about 14 of the names below.
const DIR_BUFFER_BYTES: usize = 1 << 10;
pub const ENTRIES: usize = 300;
/// The range of the file's bytes that the fcntl lock is on; the OFD lock is on as many behind it.
const LOCK_BYTES: i64 = 100;

/// Everything a program can have open, opened once and used until the end.
pub struct Held {
    name: String,
    steps: usize,
    reader: File,
    writer: File,
    append: File,
    flocked: File,
    ranges: File,
    ofd: File,
    listing: Listing,
    orphan: File,
    mapped: Mapping,
    nameless: Mapping,
}

impl Held {
    /// Opens, locks, maps and begins to list in a new folder `name` of the mount.
    pub fn open(mount: &Path, name: &str) -> Held {
        let folder = mount.join(name);
        fs::create_dir(&folder).unwrap();
        fs::create_dir(folder.join("many")).unwrap();
        for number in 0..ENTRIES {
            File::create(folder.join("many").join(entry_name(number))).unwrap();
        }
        let create = |name: &str| {
            let mut options = File::options();
            options.read(true).write(true).create_new(true);
            options.open(folder.join(name)).unwrap()
        };
        let content = create("content");
        content.write_all_at(&pattern(0, 64 * PIECE), 0).unwrap();
        let [flocked, ranges, ofd] = ["flocked", "ranges", "ofd"].map(create);
        flock(&flocked, FlockOperation::NonBlockingLockExclusive).unwrap();
        locks::range(&ranges, libc::F_SETLK, libc::F_WRLCK, 0, LOCK_BYTES).unwrap();
        locks::range(&ofd, libc::F_OFD_SETLK, libc::F_WRLCK, 50, LOCK_BYTES).unwrap();
        let [orphan, mapped, nameless] = ["orphan", "mapped", "nameless"].map(create);
        orphan.write_all_at(&pattern(7, ORPHAN_BYTES), 0).unwrap();
        fs::remove_file(folder.join("orphan")).unwrap();
        // What is mapped stays open without a descriptor, and without a name as well.
        let [mapped, nameless] = [mapped, nameless].map(|file| {
            file.set_len((64 * PIECE) as u64).unwrap();
            Mapping::new(&file, 64 * PIECE, Access::Write).unwrap()
        });
        fs::remove_file(folder.join("nameless")).unwrap();
        let mut append = File::options();
        append.append(true).create(true);
        Held {
            name: name.to_owned(),
            steps: 0,
            reader: File::open(folder.join("content")).unwrap(),
            writer: create("written"),
            append: append.open(folder.join("log")).unwrap(),
            flocked,
            ranges,
            ofd,
            listing: Listing::new(&folder.join("many")),
            orphan,
            mapped,
            nameless,
        }
    }

    /// Uses all of it once more.
    pub fn go_on(&mut self) {
        let step = self.steps;
        self.steps += 1;
        let at = (step * PIECE) as u64;
        let mut piece = vec![0; PIECE];
        self.reader.read_exact(&mut piece).unwrap();
        assert!(piece == pattern(step * PIECE, PIECE), "read {step}");

        let written = pattern(3 * step, PIECE);
        self.writer.write_all(&written).unwrap();
        self.writer.read_exact_at(&mut piece, at).unwrap();
        assert!(piece == written, "written {step}");
        self.append.write_all(line(step).as_bytes()).unwrap();
        match step % 2 {
            0 => self.writer.sync_all().unwrap(),
            _ => self.append.sync_data().unwrap(),
        }
        self.listing.go_on();
        for locked in [&self.flocked, &self.ranges, &self.ofd] {
            locked.write_all_at(&written, 0).unwrap();
        }

        let mut whole = vec![0; ORPHAN_BYTES];
        self.orphan.read_exact_at(&mut whole, 0).unwrap();
        assert!(whole == pattern(7, ORPHAN_BYTES), "the orphan, step {step}");
        let tail = ORPHAN_BYTES as u64 + at;
        self.orphan.write_all_at(&written, tail).unwrap();
        self.orphan.read_exact_at(&mut piece, tail).unwrap();
        let meta = self.orphan.metadata().unwrap();
        assert!(piece == written, "the orphan's tail, step {step}");
        assert_eq!((meta.nlink(), meta.len()), (0, tail + PIECE as u64));

        for mapping in [&self.mapped, &self.nameless] {
            for before in 0..step {
                let at = before * PIECE;
                let stored = mapping.load(at, PIECE);
                assert!(stored == pattern(at, PIECE), "page {before}, step {step}");
            }
            mapping.store(step * PIECE, &pattern(step * PIECE, PIECE));
            // Every other step leaves its page dirty, also over the loss of a brick.
            if step.is_multiple_of(2) {
                mapping.sync().unwrap();
            }
        }
    }

    /// Another mount takes none of the locks.
    pub fn assert_locked(&self, other: &Path) {
        for (what, taken) in self.try_locks(other) {
            let held = taken.err();
            assert!(
                matches!(held, Some(Errno::AGAIN | Errno::ACCESS)),
                "{what} of {} is given twice: {held:?}",
                self.name
            );
        }
        // Nobody else holds what lies beside the locked ranges.
        let free = open(&other.join(&self.name).join("ofd"));
        locks::range(&free, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 50).unwrap();
    }

    fn try_locks(&self, other: &Path) -> [(&'static str, rustix::io::Result<()>); 3] {
        let folder = other.join(&self.name);
        let set = |name: &str, command, kind, at| {
            let file = open(&folder.join(name));
            locks::range(&file, command, kind, at, 1).map(drop)
        };
        let flocked = open(&folder.join("flocked"));
        [
            (
                "the flock",
                flock(&flocked, FlockOperation::NonBlockingLockShared),
            ),
            (
                "the fcntl lock",
                set("ranges", libc::F_SETLK, libc::F_RDLCK, LOCK_BYTES - 1),
            ),
            (
                "the OFD lock",
                set("ofd", libc::F_OFD_SETLK, libc::F_WRLCK, 50),
            ),
        ]
    }

    /// Lets go of everything; another mount finds the content right and the locks free.
    pub fn end(mut self, other: &Path) {
        self.listing.end();
        let folder = other.join(&self.name);
        self.mapped.sync().unwrap();
        // The locks of the two kinds go in the two ways there are.
        flock(&self.flocked, FlockOperation::Unlock).unwrap();
        locks::range(&self.ranges, libc::F_SETLK, libc::F_UNLCK, 0, 0).unwrap();
        let (name, steps) = (std::mem::take(&mut self.name), self.steps);
        drop(self);
        let [written, mapped] = ["written", "mapped"].map(|file| fs::read(folder.join(file)));
        let expected: Vec<u8> = (0..steps)
            .flat_map(|step| pattern(3 * step, PIECE))
            .collect();
        assert!(written.unwrap() == expected, "{name}: what was written");
        let mut expected = pattern(0, steps * PIECE);
        expected.resize(64 * PIECE, 0);
        assert!(mapped.unwrap() == expected, "{name}: what was stored");
        let log: String = (0..steps).map(line).collect();
        assert_eq!(fs::read_to_string(folder.join("log")).unwrap(), log);
        let flocked = open(&folder.join("flocked"));
        // Or after whoever waited for it.
        flock(&flocked, FlockOperation::LockExclusive).unwrap();
        for (file, command) in [("ranges", libc::F_SETLK), ("ofd", libc::F_OFD_SETLK)] {
            let file = open(&folder.join(file));
            // The OFD lock went with its descriptor, whose RELEASE nobody waits for.
            wait_until(WITHIN, "a lock that was let go is free", || {
                locks::range(&file, command, libc::F_WRLCK, 0, 0).is_ok()
            });
        }
    }
}

/// A directory stream in the middle of a listing.
struct Listing {
    folder: PathBuf,
    stream: File,
    seen: Vec<String>,
    steps: usize,
    /// A place to return to, and how many entries came before it.
    mark: Option<(u64, usize)>,
}

impl Listing {
    fn new(folder: &Path) -> Listing {
        Listing {
            folder: folder.to_owned(),
            stream: File::open(folder).unwrap(),
            seen: Vec::new(),
            steps: 0,
            mark: None,
        }
    }

    /// Lists a few more, and makes and removes others meanwhile.
    fn go_on(&mut self) {
        self.steps += 1;
        let passing = self.folder.join(format!("passing-{}", self.steps));
        fs::write(&passing, "x").unwrap();
        self.next();
        fs::remove_file(&passing).unwrap();
        assert!(
            self.seen.len() < ENTRIES,
            "the listing came to its end early"
        );
    }

    /// One getdents(2); whether there was anything.
    fn next(&mut self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); DIR_BUFFER_BYTES];
        let mut entries = RawDir::new(&self.stream, &mut buffer);
        let mut any = false;
        while let Some(entry) = entries.next() {
            let entry = entry.unwrap();
            any = true;
            let name = entry.file_name().to_str().unwrap().to_owned();
            if name.starts_with("entry-") {
                self.seen.push(name);
                self.mark = self
                    .mark
                    .or(Some((entry.next_entry_cookie(), self.seen.len())));
            }
            if entries.is_buffer_empty() {
                break;
            }
        }
        any
    }

    /// Lists the rest, then everything behind the mark once more.
    fn end(&mut self) {
        while self.next() {}
        let mut names = self.seen.clone();
        names.sort();
        let all: Vec<String> = (0..ENTRIES).map(entry_name).collect();
        assert!(names == all, "an entry that stayed was missed or doubled");
        let (cookie, before) = self.mark.unwrap();
        let rest = self.seen.split_off(before);
        self.seen.clear();
        rustix::fs::seek(&self.stream, SeekFrom::Start(cookie)).unwrap();
        while self.next() {}
        assert!(
            self.seen == rest,
            "a stream goes on elsewhere when sent back"
        );
    }
}

fn entry_name(number: usize) -> String {
    format!("entry-{number:05}-{}", "x".repeat(40))
}

fn line(step: usize) -> String {
    format!("step {step}\n")
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|at| (at % 251) as u8).collect()
}
