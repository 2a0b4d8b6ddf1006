//! Processes of a test: started with their output in files, ended by their id, never by name.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);
/// How long a process that was told to end by SIGKILL may take; one that hangs in the kernel is
/// left to the cluster's own clean-up.
const REAP_WITHIN: Duration = Duration::from_secs(5);

/// Waits until `condition` holds.
///
/// # Panics
/// With `what` when it does not within `deadline`.
#[track_caller]
pub fn wait_until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < deadline,
            "not within {deadline:?}: {what}"
        );
        std::thread::sleep(POLL);
    }
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ran {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Everything it wrote on standard output.
    pub stdout: String,
    /// Everything it wrote on standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Ran {
    /// Standard output of a command that succeeded.
    ///
    /// # Panics
    /// When it failed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{self}");
        self.stdout
    }

    /// What a command that was refused said, on both outputs.
    ///
    /// # Panics
    /// When it succeeded, or failed without a word or with the words of a crash.
    #[track_caller]
    pub fn refused(self) -> String {
        assert!(
            !self.status.success(),
            "this should have been refused: {self}"
        );
        let said = self.said();
        assert!(
            !said.trim().is_empty(),
            "refused without saying why: {self}"
        );
        assert!(
            !said.contains("panicked at"),
            "this is a crash, no refusal: {self}"
        );
        said
    }

    /// Both outputs.
    pub fn said(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ended with {}", self.command, self.status)?;
        write!(
            f,
            "\n--- stdout\n{}\n--- stderr\n{}",
            self.stdout, self.stderr
        )
    }
}

/// Runs a command to its end, its output in files: a daemon that it leaves behind cannot hold a
/// pipe open and with it the test.
///
/// # Panics
/// When it cannot be started or has not ended `within` that time; it is killed then.
#[track_caller]
pub fn run(command: Command, within: Duration) -> Ran {
    let running = Running::start(command);
    running.finish(within)
}

/// A command that runs while the test does something else.
pub struct Running {
    child: Option<Child>,
    command: String,
    stdout: File,
    stderr: File,
    since: Instant,
}

impl Running {
    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        let output = || {
            let file = tempfile::tempfile().expect("a temporary file for a command's output");
            let copy = file
                .try_clone()
                .expect("a second handle of a temporary file");
            (file, copy)
        };
        let ((stdout, to_stdout), (stderr, to_stderr)) = (output(), output());
        let words = words_of(&command);
        command
            .stdin(Stdio::null())
            .stdout(to_stdout)
            .stderr(to_stderr);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("`{words}`: {error}"));
        Running {
            child: Some(child),
            command: words,
            stdout,
            stderr,
            since: Instant::now(),
        }
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it has not ended `within` that time from now; it is killed then.
    #[track_caller]
    pub fn finish(mut self, within: Duration) -> Ran {
        let mut child = self.child.take().expect("only finish takes the child");
        let Some(status) = wait_for(&mut child, within) else {
            end(&mut child);
            panic!(
                "`{}` has not ended within {within:?}; so far it said:\n{}{}",
                self.command,
                whole(&mut self.stdout),
                whole(&mut self.stderr)
            );
        };
        Ran {
            took: self.since.elapsed(),
            status,
            stdout: whole(&mut self.stdout),
            stderr: whole(&mut self.stderr),
            command: std::mem::take(&mut self.command),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            end(child);
        }
    }
}

/// A server of the test, its output appended to a log.
pub struct Process {
    child: Child,
    command: String,
    log: PathBuf,
}

impl Process {
    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started or the log cannot be written.
    #[track_caller]
    pub fn start(mut command: Command, log: &Path) -> Self {
        let words = words_of(&command);
        let open = || File::options().create(true).append(true).open(log);
        let to_log = || open().unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        command
            .stdin(Stdio::null())
            .stdout(to_log())
            .stderr(to_log());
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("`{words}`: {error}"));
        Process {
            child,
            command: words,
            log: log.to_owned(),
        }
    }

    /// Its process id. The programs that enter a host replace themselves by it, so that this is
    /// the server's own.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        signal_process(self.pid(), signal);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it has not ended within that time.
    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        wait_for(&mut self.child, within).unwrap_or_else(|| {
            panic!(
                "`{}` has not ended within {within:?}:\n{}",
                self.command,
                self.log_tail()
            )
        })
    }

    /// SIGKILL, and gone when this returns.
    pub fn kill(&mut self) {
        end(&mut self.child);
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// Sends a signal to a process; one that is gone already is fine.
pub fn signal_process(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// The last 40 lines of a file, or why it cannot be read.
pub fn tail(file: &Path) -> String {
    const LINES: usize = 40;
    match std::fs::read(file) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(LINES)..].join("\n")
        }
        Err(error) => format!("{}: {error}", file.display()),
    }
}

/// A program of Mortar's: `brickd`, `mortar` or `mount-mortar`, as built beside this test.
///
/// `cargo test` builds another package's programs only when something asks for them, so the first
/// call builds them (with the same profile, a fraction of a second when nothing has changed).
/// `MORTAR_TEST_BIN_DIR` names a folder of ready ones instead.
///
/// # Panics
/// When they cannot be built.
#[track_caller]
pub fn program(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(programs_folder).join(name)
}

fn programs_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("MORTAR_TEST_BIN_DIR") {
        return PathBuf::from(folder);
    }
    let test = std::env::current_exe().expect("the path of this test");
    // A test lies in target/PROFILE/deps, a program of the tests' in target/PROFILE.
    let folder = test
        .ancestors()
        .skip(1)
        .find(|folder| !folder.ends_with("deps"))
        .expect("a program lies in a folder")
        .to_owned();
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build
        .args([
            "build",
            "--quiet",
            "--workspace",
            "--bins",
            "--profile",
            profile,
            "--target-dir",
        ])
        .arg(
            folder
                .parent()
                .expect("a profile's folder lies in the target folder"),
        )
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    run(build, Duration::from_secs(1800)).ok();
    folder
}

fn wait_for(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("the state of a child") {
            return Some(status);
        }
        if start.elapsed() >= within {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    wait_for(child, REAP_WITHIN);
}

fn whole(file: &mut File) -> String {
    let mut bytes = Vec::new();
    let read = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
    read.expect("a command's output");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The command line without what is only there to enter a host.
fn words_of(command: &Command) -> String {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let from = words
        .iter()
        .position(|word| word == super::host::ENTERED)
        .map_or(0, |at| at + 1);
    words[from..].join(" ")
}
