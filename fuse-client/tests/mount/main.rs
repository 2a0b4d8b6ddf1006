//! The client as its users see it: the real program and a real mount, over a replica set in memory.

mod cost;
mod failover;
mod fake;
mod files;
mod locks;
mod lost_locks;
mod mounting;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use fake::Fake;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mount-mortar");
const PATIENCE: Duration = Duration::from_secs(20);

/// A volume that is mounted until it is dropped.
struct Mount {
    fake: Fake,
    folder: tempfile::TempDir,
    extra: Vec<PathBuf>,
}

impl Mount {
    fn new() -> Mount {
        Mount::with("")
    }

    fn with(options: &str) -> Mount {
        let mount = Mount {
            fake: Fake::start(),
            folder: tempfile::tempdir().unwrap(),
            extra: vec![],
        };
        fs::create_dir(mount.root()).unwrap();
        let output = mount.mount_at("127.0.0.1:/v01", &mount.root(), options);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        mount
    }

    fn mount_at(&self, spec: &str, at: &Path, options: &str) -> Output {
        let log = self.folder.path().join("log");
        let port = self.fake.port_numbers[0];
        let options = format!(
            "port={port},log-level=debug,log-file={},{options}",
            log.display()
        );
        Command::new(PROGRAM)
            .arg(spec)
            .arg(at)
            .args(["-o", &options])
            .output()
            .unwrap()
    }

    /// A second mount of the same volume, as on another host.
    fn second(&mut self) -> PathBuf {
        let at = self.folder.path().join("second");
        fs::create_dir(&at).unwrap();
        let output = self.mount_at("127.0.0.1:/v01", &at, "");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        self.extra.push(at.clone());
        at
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// The log has nothing that a human must look at.
    fn assert_quiet(&self) {
        let log = self.log();
        let loud: Vec<_> = log
            .lines()
            .filter(|l| l.contains(" WARN ") || l.contains(" ERROR "))
            .collect();
        assert!(loud.is_empty(), "{loud:#?}");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        self.extra.push(self.root());
        for at in &self.extra {
            let _ = Command::new("umount").arg("-l").arg(at).output();
        }
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} does not come true");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_mounted(at: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    table
        .lines()
        .any(|line| line.split(' ').nth(1) == at.to_str())
}
