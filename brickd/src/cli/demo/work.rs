//! The work done on the demo's mount: copying a tree, reading it, and a writer that times itself.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::interruption::Interruption;

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
pub fn copy_tree(from: &Path, to: &Path, interruption: &Interruption) -> Result<Amount, String> {
    let mut amount = Amount::default();
    copy_folder(from, to, interruption, &mut amount)?;
    Ok(amount)
}

fn copy_folder(
    from: &Path,
    to: &Path,
    interruption: &Interruption,
    amount: &mut Amount,
) -> Result<(), String> {
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    fs::create_dir(to).map_err(|error| failed(to, error))?;
    for entry in fs::read_dir(from).map_err(|error| failed(from, error))? {
        interruption.check()?;
        let entry = entry.map_err(|error| failed(from, error))?;
        if matches!(entry.file_name().to_str(), Some("target" | ".git")) {
            continue;
        }
        let (source, copy) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(|error| failed(&source, error))?;
        if kind.is_dir() {
            copy_folder(&source, &copy, interruption, amount)?;
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
pub fn read_tree(root: &Path, interruption: &Interruption) -> Result<Amount, String> {
    let mut amount = Amount::default();
    let mut folders = vec![root.to_owned()];
    let mut bytes = Vec::new();
    while let Some(folder) = folders.pop() {
        let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            interruption.check()?;
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
    /// Dropping it ends the thread.
    go_on: Sender<()>,
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
        let (go_on, stopped) = channel();
        let thread = std::thread::spawn(move || {
            let mut stall = Stall::default();
            while stopped.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
                let began = Instant::now();
                match writeln!(file, "record {}", stall.records).and_then(|()| file.sync_data()) {
                    Ok(()) => stall.records += 1,
                    Err(_) => stall.errors += 1,
                }
                stall.longest = stall.longest.max(began.elapsed());
            }
            stall
        });
        Ok(Meter { go_on, thread })
    }

    /// Ends it; what it saw.
    pub fn stop(self) -> Result<Stall, String> {
        drop(self.go_on);
        self.thread
            .join()
            .map_err(|_| "the writer panicked".to_owned())
    }
}
