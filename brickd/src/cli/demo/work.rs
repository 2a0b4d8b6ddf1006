//! The work done on the demo's mount: copying a tree, reading it, and a writer that times itself.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The demo copies at most so many files.
const FILES_MAX: u64 = 5_000;
/// The writer's pace.
const PACE: Duration = Duration::from_millis(2);

/// What was copied or read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Amount {
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A source tree that is at hand: the one the demo is run in, else the system's headers.
pub fn source_tree() -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    if here.join("Cargo.toml").exists() {
        return here;
    }
    let known = ["/usr/include", "/usr/share/doc", "/etc"];
    known
        .iter()
        .map(PathBuf::from)
        .find(|path| path.is_dir())
        .unwrap_or(here)
}

/// Copies regular files, folders and symlinks; build output and version control are left out.
pub fn copy_tree(from: &Path, to: &Path, interrupted: &AtomicBool) -> Result<Amount, String> {
    let mut amount = Amount::default();
    copy_folder(from, to, interrupted, &mut amount)?;
    Ok(amount)
}

fn copy_folder(
    from: &Path,
    to: &Path,
    interrupted: &AtomicBool,
    amount: &mut Amount,
) -> Result<(), String> {
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    fs::create_dir(to).map_err(|error| failed(to, error))?;
    for entry in fs::read_dir(from).map_err(|error| failed(from, error))? {
        if interrupted.load(Ordering::Relaxed) {
            return Err("interrupted".to_owned());
        }
        let entry = entry.map_err(|error| failed(from, error))?;
        if matches!(entry.file_name().to_str(), Some("target" | ".git")) {
            continue;
        }
        let (source, copy) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(|error| failed(&source, error))?;
        if kind.is_dir() {
            copy_folder(&source, &copy, interrupted, amount)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&source).map_err(|error| failed(&source, error))?;
            std::os::unix::fs::symlink(target, &copy).map_err(|error| failed(&copy, error))?;
        } else if kind.is_file() && amount.files < FILES_MAX {
            amount.bytes += fs::copy(&source, &copy).map_err(|error| failed(&copy, error))?;
            amount.files += 1;
        }
    }
    Ok(())
}

/// Reads every file of a tree to its end.
pub fn read_tree(root: &Path, interrupted: &AtomicBool) -> Result<Amount, String> {
    let mut amount = Amount::default();
    let mut folders = vec![root.to_owned()];
    let mut bytes = Vec::new();
    while let Some(folder) = folders.pop() {
        let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            if interrupted.load(Ordering::Relaxed) {
                return Err("interrupted".to_owned());
            }
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                bytes.clear();
                File::open(entry.path())
                    .and_then(|mut file| file.read_to_end(&mut bytes))
                    .map_err(failed)?;
                amount.files += 1;
                amount.bytes += bytes.len() as u64;
            }
        }
    }
    Ok(amount)
}

/// What a writer that times itself saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stall {
    /// The longest time one record took.
    pub longest: Duration,
    /// Records that failed.
    pub errors: u64,
    /// Records written and synced.
    pub records: u64,
}

/// A thread that appends to a file and syncs it, in a loop.
pub struct Meter {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Stall>,
}

impl Meter {
    /// Starts it on a new file.
    pub fn start(path: &Path) -> Result<Meter, String> {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut stall = Stall::default();
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                match writeln!(file, "record {}", stall.records).and_then(|()| file.sync_data()) {
                    Ok(()) => stall.records += 1,
                    Err(_) => stall.errors += 1,
                }
                stall.longest = stall.longest.max(began.elapsed());
                std::thread::sleep(PACE);
            }
            stall
        });
        Ok(Meter { stop, thread })
    }

    /// Ends it; what it saw.
    pub fn stop(self) -> Result<Stall, String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| "the writer panicked".to_owned())
    }
}
