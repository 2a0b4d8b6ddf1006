//! `mortar demo`: it tells its story, and whatever ends it, nothing of it is left.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::cluster::{program, run, wait_until};
use tests::trees;

/// Longest time the whole demo may take.
const WITHIN: Duration = Duration::from_secs(180);
/// Longest time it may take to clean up after Ctrl-C.
const CLEAN_WITHIN: Duration = Duration::from_secs(40);
const FILES: usize = 200;

/// A demo that runs on a small source tree.
struct Demo {
    child: Child,
    stdout: BufReader<ChildStdout>,
    told: String,
    folder: PathBuf,
    _base: tempfile::TempDir,
}

impl Demo {
    fn start(options: &[&str]) -> Self {
        let base = tempfile::tempdir().unwrap();
        let source = base.path().join("source");
        trees::copy_sources(&source, FILES);
        fs::write(source.join("Cargo.toml"), "").unwrap();
        let folder = base.path().join("demo");
        let mut child = Command::new(program("mortar"))
            .arg("demo")
            .arg("--dir")
            .arg(&folder)
            .args(options)
            .current_dir(&source)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Demo {
            child,
            stdout,
            told: String::new(),
            folder,
            _base: base,
        }
    }

    /// Reads on until a line with this text has come.
    fn wait_for(&mut self, text: &str) {
        loop {
            let mut line = String::new();
            let read = self.stdout.read_line(&mut line).unwrap();
            assert!(read > 0, "it ended before {text:?}: {}", self.everything());
            self.told.push_str(&line);
            if line.contains(text) {
                return;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    /// Waits for its end; returns how it ended and all it said.
    fn end(&mut self, within: Duration) -> (ExitStatus, String) {
        wait_until(within, "the demo ends", || {
            self.child.try_wait().unwrap().is_some()
        });
        let status = self.child.wait().unwrap();
        (status, self.everything())
    }

    fn everything(&mut self) -> String {
        self.stdout.read_to_string(&mut self.told).unwrap();
        let mut errors = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut errors).unwrap();
        }
        format!("{}{errors}", self.told)
    }

    /// Processes of this demo other than itself.
    fn processes(&self) -> Vec<u32> {
        let own = self.child.id();
        processes_naming(&self.folder)
            .into_iter()
            .filter(|pid| *pid != own)
            .collect()
    }

    fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        mounts.contains(&*self.folder.to_string_lossy())
    }

    fn assert_nothing_is_left(&self) {
        assert!(!self.folder.exists(), "its folder is left");
        assert!(!self.is_mounted(), "its mount is left");
        assert_eq!(
            self.processes(),
            Vec::<u32>::new(),
            "its processes are left"
        );
    }
}

impl Drop for Demo {
    /// What a failed test would leave.
    fn drop(&mut self) {
        for pid in self.processes() {
            send(pid, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mount = self.folder.join("mnt");
        let _ = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH);
    }
}

fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let _ = pid.map(|pid| kill_process(pid, signal));
}

/// Processes that have a folder, or something in it, on their command line.
fn processes_naming(folder: &Path) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&words).contains(&*folder.to_string_lossy())
    })
    .collect()
}

#[test]
fn the_demo_tells_its_story_and_leaves_nothing() {
    let mut demo = Demo::start(&[]);
    let (status, told) = demo.end(WITHIN);
    assert!(status.success(), "{told}");
    for step in [
        "three brickd started",
        "killed brickd on",
        "0 errors in",
        "healed: nothing is pending",
        "both bricks are equal, byte for byte",
        "everything is stopped and removed",
    ] {
        assert!(told.contains(step), "{step:?} is missing: {told}");
    }
    demo.assert_nothing_is_left();
}

#[test]
fn ctrl_c_at_any_step_leaves_nothing() {
    for step in [
        "three brickd started",
        "is started",
        "mounted on",
        "killed brickd",
        "is back",
    ] {
        let mut demo = Demo::start(&[]);
        demo.wait_for(step);
        demo.signal(Signal::INT);
        let (status, told) = demo.end(CLEAN_WITHIN);
        assert!(!status.success(), "after {step:?}: {told}");
        assert!(told.contains("interrupted"), "after {step:?}: {told}");
        demo.assert_nothing_is_left();
    }
}

#[test]
fn ctrl_c_ends_a_demo_that_hangs() {
    let mut demo = Demo::start(&[]);
    demo.wait_for("mounted on");
    // Without a quorum and without a brick, the demo's own reads and writes wait.
    for pid in demo.processes() {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if words.split(|byte| *byte == 0).any(|word| word == b"daemon") {
            send(pid, Signal::KILL);
        }
    }
    let start = Instant::now();
    demo.signal(Signal::INT);
    let (status, told) = demo.end(CLEAN_WITHIN);
    assert!(!status.success(), "{:?}: {told}", start.elapsed());
    demo.assert_nothing_is_left();
}

#[test]
fn a_folder_that_is_there_is_refused_and_left_alone() {
    let base = tempfile::tempdir().unwrap();
    fs::write(base.path().join("mine"), "kept").unwrap();
    let mut demo = Command::new(program("mortar"));
    demo.arg("demo").arg("--dir").arg(base.path());
    let refused = run(demo, WITHIN).refused();
    assert!(refused.contains("exists"), "{refused}");
    assert_eq!(fs::read(base.path().join("mine")).unwrap(), b"kept");
}

#[test]
fn with_keep_it_goes_on_until_it_is_ended_as_it_says() {
    let mut demo = Demo::start(&["--keep"]);
    let (status, told) = demo.end(WITHIN);
    assert!(status.success(), "{told}");
    let mount = demo.folder.join("mnt");
    assert!(demo.is_mounted(), "{told}");
    fs::write(mount.join("mine"), "kept").unwrap();
    assert_eq!(
        fs::read(demo.folder.join("peer1/brick/mine")).unwrap(),
        b"kept"
    );
    let commands: Vec<&str> = told
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| {
            line.starts_with('/') || line.starts_with("umount ") || line.starts_with("kill ")
        })
        .collect();
    assert_eq!(commands.len(), 6, "{told}");
    for command in &commands {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", command]);
        run(shell, WITHIN).ok();
    }
    demo.assert_nothing_is_left();
}
