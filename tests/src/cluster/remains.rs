//! What a cluster leaves on the machine, and its removal: by the cluster itself, or by a later
//! test run when the one that made it was killed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::Signal;

use super::net::{NAMESPACES, all_processes, ip, processes_in};
use super::process::signal_process;

const FOLDER_PREFIX: &str = "mortar-";
const ID_PREFIX: &str = "mt";
const KILL_WITHIN: Duration = Duration::from_secs(10);

/// Id of the cluster with that number of the test process `pid`.
pub(super) fn id_of(pid: u32, number: u32) -> String {
    format!("{ID_PREFIX}{pid}x{number}")
}

/// The folder of a cluster.
pub(super) fn base_of(id: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{FOLDER_PREFIX}{id}"))
}

/// Held while a cluster is made, by one process of the machine at a time.
pub(super) fn lock() -> File {
    let path = std::env::temp_dir().join("mortar-tests.lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.lock()
        .unwrap_or_else(|error| panic!("locking {}: {error}", path.display()));
    file
}

/// Removes what test processes that live no more have left. Call it under [`lock`].
pub(super) fn sweep() {
    let mut ids: Vec<String> = names_in(&std::env::temp_dir())
        .filter_map(|name| name.strip_prefix(FOLDER_PREFIX).map(str::to_owned))
        .chain(
            names_in(Path::new(NAMESPACES))
                .filter_map(|name| name.split_once('-').map(|(id, _host)| id.to_owned())),
        )
        .filter(|id| maker_of(id).is_some_and(|pid| !lives(pid)))
        .collect();
    ids.sort();
    ids.dedup();
    ids.iter().for_each(|id| remove(id));
}

/// Ends every process of a cluster, and removes its mounts, namespaces and folder.
pub(super) fn remove(id: &str) {
    let base = base_of(id);
    let prefix = format!("{id}-");
    let namespaces: Vec<String> = names_in(Path::new(NAMESPACES))
        .filter(|name| name.starts_with(&prefix))
        .collect();
    let start = Instant::now();
    loop {
        let mut left = processes_in(&namespaces);
        left.extend(all_processes().filter(|pid| belongs_to(*pid, &base)));
        if left.is_empty() {
            break;
        }
        if start.elapsed() > KILL_WITHIN {
            eprintln!("processes {left:?} of {} do not end", base.display());
            break;
        }
        left.iter()
            .for_each(|pid| signal_process(*pid, Signal::KILL));
        unmount_below(&base);
        std::thread::sleep(Duration::from_millis(20));
    }
    unmount_below(&base);
    for name in &namespaces {
        // In a thread of its own: a namespace that is gone already must not stop the rest.
        let name = name.clone();
        let _ = std::thread::spawn(move || ip(&format!("netns del {name}"))).join();
    }
    if mounts_below(&base).is_empty() {
        let _ = fs::remove_dir_all(&base);
    }
}

/// The test process that made a cluster.
fn maker_of(id: &str) -> Option<u32> {
    let (pid, _number) = id.strip_prefix(ID_PREFIX)?.split_once('x')?;
    pid.parse().ok()
}

/// Whether a process runs; one that only waits to be reaped does not.
fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// Whether a process was started for the cluster outside of its hosts: its command line names
/// the cluster's folder (a dockerd and its helpers), or its root lies in it (a container).
fn belongs_to(pid: u32, base: &Path) -> bool {
    if pid == std::process::id() {
        return false;
    }
    let base = base.to_str().expect("a folder of plain letters");
    let names_it = |text: &[u8]| String::from_utf8_lossy(text).contains(&format!("{base}/"));
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if names_it(&line) {
        return true;
    }
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let root = mounts
        .lines()
        .find(|line| line.split(' ').nth(4) == Some("/"));
    root.is_some_and(|line| names_it(line.as_bytes()))
}

fn unmount_below(base: &Path) {
    for mount in mounts_below(base).iter().rev() {
        let _ = unmount(mount, UnmountFlags::DETACH);
    }
}

/// Mount points at and below `base`, in the order they were mounted.
fn mounts_below(base: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the table of mounts");
    let points = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from);
    points.filter(|point| point.starts_with(base)).collect()
}

fn names_in(folder: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}
