use super::*;

/// Between two steps: the machine has two processors for all of them.
const PACE: Duration = Duration::from_millis(5);
const RECORD: usize = 64;
const RECORDS_MAX: usize = 4096;

/// Programs in the middle of their work, each on a thread of its own: whatever happens to a brick
/// meets some of them inside a request. Any error panics, and so fails the test.
pub struct Workers {
    stop: Arc<AtomicBool>,
    workers: Vec<Worker>,
}

struct Worker {
    what: &'static str,
    steps: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Workers {
    /// Starts them in the folder `work` of both mounts of the volume.
    pub fn start(mounts: [&Path; 2]) -> Workers {
        let [one, other] = mounts.map(|mount| mount.join("work"));
        fs::create_dir(&one).unwrap();
        fs::write(one.join("counter"), 0u64.to_le_bytes()).unwrap();
        let steps: Vec<(&'static str, Box<dyn Step>)> = vec![
            ("write and read", Box::new(records(&one))),
            ("append", Box::new(appends(&one))),
            ("temporary files", Box::new(temporary_files(one.clone()))),
            ("files of no name", Box::new(unnamed_files(one.clone()))),
            ("replacing a file", Box::new(replaces(one.clone()))),
            ("a mapped file", Box::new(stores(&one))),
            ("a counter under fcntl, here", Box::new(counts(&one))),
            ("a counter under fcntl, there", Box::new(counts(&other))),
        ];
        let stop = Arc::new(AtomicBool::new(false));
        let workers = steps.into_iter().map(|(what, step)| {
            let (stop, steps) = (Arc::clone(&stop), Arc::new(AtomicUsize::new(0)));
            let done = Arc::clone(&steps);
            let thread = std::thread::spawn(move || run(step, &stop, &done));
            Worker {
                what,
                steps,
                thread,
            }
        });
        let workers = workers.collect();
        Workers { stop, workers }
    }

    /// Waits until each has ended a step that it began after this call.
    pub fn wait_for_progress(&self) {
        for worker in &self.workers {
            let before = worker.steps.load(Ordering::Relaxed);
            wait_until(WITHIN, &format!("{} goes on", worker.what), || {
                worker.steps.load(Ordering::Relaxed) > before + 1 || worker.thread.is_finished()
            });
            assert!(!worker.thread.is_finished(), "{} failed", worker.what);
        }
    }

    /// Ends them, and looks through the other mount at what they made.
    pub fn end(self, other: &Path) {
        self.stop.store(true, Ordering::Relaxed);
        let mut counted = 0;
        for worker in self.workers {
            worker
                .thread
                .join()
                .unwrap_or_else(|_| panic!("{} failed", worker.what));
            let steps = worker.steps.load(Ordering::Relaxed);
            let path = |name: &str| other.join("work").join(name);
            match worker.what {
                "write and read" => assert_records(&fs::read(path("records")).unwrap(), steps),
                "a mapped file" => assert_records(&fs::read(path("mapped")).unwrap(), steps),
                "append" => {
                    let expected: Vec<u8> = (0..steps).flat_map(record).collect();
                    assert!(fs::read(path("log")).unwrap() == expected, "appended");
                }
                "replacing a file" | "files of no name" => {
                    let replaced = worker.what == "replacing a file";
                    let name = if replaced { "replaced" } else { "named" };
                    let last = fs::read(path(name)).unwrap();
                    assert!(last == record(steps - 1), "{name}");
                }
                what if what.starts_with("a counter") => counted += steps as u64,
                _ => {}
            }
        }
        let counter = fs::read(other.join("work/counter")).unwrap();
        assert_eq!(counter, counted.to_le_bytes(), "an increment was lost");
        let mut left: Vec<_> = fs::read_dir(other.join("work")).unwrap().collect();
        left.retain(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with("tmp")
        });
        assert!(left.is_empty(), "{left:?}");
    }
}

/// One step of a worker, which is given its number.
trait Step: FnMut(usize) + Send {}
impl<Work: FnMut(usize) + Send> Step for Work {}

fn run(mut step: Box<dyn Step>, stop: &AtomicBool, done: &AtomicUsize) {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        step(number);
        number += 1;
        done.store(number, Ordering::Relaxed);
        std::thread::sleep(PACE);
    }
}

fn create(path: &Path) -> File {
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    options.open(path).unwrap()
}

fn record(number: usize) -> [u8; RECORD] {
    let mut record = [b'.'; RECORD];
    let text = format!("record {number}");
    record[..text.len()].copy_from_slice(text.as_bytes());
    record
}

/// Records go round in a file, each over the one of a round before.
fn assert_records(content: &[u8], steps: usize) {
    let from = steps.saturating_sub(RECORDS_MAX);
    for number in from..steps {
        let at = number % RECORDS_MAX * RECORD;
        assert!(content[at..at + RECORD] == record(number), "{number}");
    }
}

fn records(folder: &Path) -> impl Step + use<> {
    let file = create(&folder.join("records"));
    move |number| {
        let at = (number % RECORDS_MAX * RECORD) as u64;
        file.write_all_at(&record(number), at).unwrap();
        if number % 8 == 7 {
            file.sync_data().unwrap();
        }
        let mut back = [0; RECORD];
        file.read_exact_at(&mut back, at).unwrap();
        assert!(back == record(number), "{number}");
    }
}

fn appends(folder: &Path) -> impl Step + use<> {
    let mut options = File::options();
    options.append(true).create(true);
    let mut file = options.open(folder.join("log")).unwrap();
    move |number| file.write_all(&record(number)).unwrap()
}

/// What programs do that know no O_TMPFILE: a name, and no name any more.
fn temporary_files(folder: PathBuf) -> impl Step {
    move |number| {
        let path = folder.join(format!("tmp-{number}"));
        let file = create(&path);
        fs::remove_file(&path).unwrap();
        file.write_all_at(&record(number), 100).unwrap();
        let mut back = [1; RECORD];
        file.read_exact_at(&mut back, 100).unwrap();
        assert!(back == record(number), "{number}");
        assert_eq!(file.metadata().unwrap().nlink(), 0);
    }
}

/// A file is written before it has a name, and then takes the place of the last one.
fn unnamed_files(folder: PathBuf) -> impl Step {
    move |number| {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_TMPFILE);
        let file = options.open(&folder).unwrap();
        file.write_all_at(&record(number), 0).unwrap();
        let (path, named) = (folder.join("tmp-named"), folder.join("named"));
        let held = format!("/proc/self/fd/{}", file.as_raw_fd());
        linkat(CWD, held, CWD, &path, AtFlags::SYMLINK_FOLLOW).unwrap();
        fs::rename(&path, &named).unwrap();
        assert!(fs::read(&named).unwrap() == record(number), "{number}");
    }
}

fn replaces(folder: PathBuf) -> impl Step {
    move |number| {
        let (new, path) = (folder.join("tmp-new"), folder.join("replaced"));
        let file = create(&new);
        file.write_all_at(&record(number), 0).unwrap();
        file.sync_all().unwrap();
        fs::rename(&new, &path).unwrap();
        assert!(fs::read(&path).unwrap() == record(number), "{number}");
    }
}

fn stores(folder: &Path) -> impl Step + use<> {
    let file = create(&folder.join("mapped"));
    file.set_len((RECORDS_MAX * RECORD) as u64).unwrap();
    let mapped = Mapping::new(&file, RECORDS_MAX * RECORD, Access::Write).unwrap();
    move |number| {
        let at = number % RECORDS_MAX * RECORD;
        mapped.store(at, &record(number));
        if number % 4 == 3 {
            mapped.sync().unwrap();
        }
        assert!(mapped.load(at, RECORD) == record(number), "{number}");
    }
}

fn counts(folder: &Path) -> impl Step + use<> {
    let mut options = File::options();
    options.read(true).write(true);
    let file = options.open(folder.join("counter")).unwrap();
    move |_| {
        // Of the open file, as both mounts are this process's.
        locks::range(&file, libc::F_OFD_SETLKW, libc::F_WRLCK, 0, 0).unwrap();
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let next = u64::from_le_bytes(bytes) + 1;
        file.write_all_at(&next.to_le_bytes(), 0).unwrap();
        locks::range(&file, libc::F_OFD_SETLK, libc::F_UNLCK, 0, 0).unwrap();
    }
}
