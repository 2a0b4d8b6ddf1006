//! The demo's processes: three brickd and a mount, each this same executable.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuse_client::mounts;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::interruption::Interruption;
use crate::daemon::DEFAULT_PORT;

/// How long a process may take to come up or to end.
const PROCESS_DEADLINE: Duration = Duration::from_secs(15);
/// Between two looks whether a process has come up.
const LOOK: Duration = Duration::from_millis(20);
/// Where the volume is mounted, below the demo's folder.
const MOUNT_POINT: &str = "mnt";
/// What waits for the mount may go on waiting for this long after Ctrl-C.
const HANG_GRACE: Duration = Duration::from_secs(3);

/// Three peers and a mount under one folder.
pub struct Pool {
    folder: PathBuf,
    network: u8,
    peers: [Option<Child>; 3],
    /// The mount's client, once it was started.
    client: Option<Child>,
    kept: bool,
    interruption: Arc<Interruption>,
}

impl Pool {
    /// Makes the folder and finds three free loopback addresses; nothing runs yet.
    pub fn new(folder: Option<&Path>) -> Result<Self, String> {
        let folder = folder.map_or_else(
            || std::env::temp_dir().join(format!("mortar-demo-{}", std::process::id())),
            Path::to_owned,
        );
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let interruption = Interruption::watch().map_err(|error| error.to_string())?;
        let mut pool = Pool {
            folder,
            network: 0,
            peers: [None, None, None],
            client: None,
            kept: false,
            interruption,
        };
        pool.network = (1..=250)
            .find(|network| (0..3).all(|peer| is_free(&address(*network, peer))))
            .ok_or_else(|| format!("port {DEFAULT_PORT} is taken on every loopback network"))?;
        fs::create_dir(pool.mount_point()).map_err(|error| error.to_string())?;
        pool.watch_for_hangs();
        Ok(pool)
    }

    /// After Ctrl-C, whoever still waits for the mount gets errors: the demo must be able to end.
    fn watch_for_hangs(&self) {
        let (interruption, mount_point) = (Arc::clone(&self.interruption), self.mount_point());
        std::thread::spawn(move || {
            interruption.wait_for_it();
            std::thread::sleep(HANG_GRACE);
            let _ = unmount(mount_point, UnmountFlags::FORCE);
        });
    }

    /// Ctrl-C.
    pub fn interruption(&self) -> &Interruption {
        &self.interruption
    }

    /// Addresses of the peers.
    pub fn hosts(&self) -> Vec<String> {
        (0..3).map(|peer| address(self.network, peer)).collect()
    }

    /// Where the volume is mounted.
    pub fn mount_point(&self) -> PathBuf {
        self.folder.join(MOUNT_POINT)
    }

    /// A peer's brick folder.
    pub fn brick_path(&self, peer: usize) -> PathBuf {
        self.folder.join(format!("peer{}", peer + 1)).join("brick")
    }

    /// A peer's brick as the command line names it.
    pub fn brick_spec(&self, peer: usize) -> String {
        format!(
            "{}:{}",
            address(self.network, peer),
            self.brick_path(peer).display()
        )
    }

    /// Starts a peer's brickd and waits until it answers.
    pub fn start_peer(&mut self, peer: usize) -> Result<(), String> {
        let data_dir = self.folder.join(format!("peer{}", peer + 1));
        fs::create_dir_all(&data_dir).map_err(|error| error.to_string())?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(data_dir.join("brickd.log"))
            .map_err(|error| error.to_string())?;
        let host = address(self.network, peer);
        let child = Command::new(this_executable()?)
            .args([
                "daemon",
                "--listen",
                &format!("{host}:{DEFAULT_PORT}"),
                "--advertise",
                &host,
            ])
            .arg("--data-dir")
            .arg(&data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0) // Ctrl-C is for this process; it ends the others itself.
            .spawn()
            .map_err(|error| format!("brickd could not be started: {error}"))?;
        self.peers[peer] = Some(child);
        let began = Instant::now();
        while self.mortar_of(peer, &["peer", "status"]).is_err() {
            if began.elapsed() > PROCESS_DEADLINE {
                return Err(format!("brickd on {host} does not answer"));
            }
            self.interruption.wait(LOOK)?;
        }
        Ok(())
    }

    /// SIGKILL.
    pub fn kill_peer(&mut self, peer: usize) -> Result<(), String> {
        if let Some(mut child) = self.peers[peer].take() {
            child
                .kill()
                .and_then(|()| child.wait())
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Runs a command of this command line against a peer that lives.
    pub fn mortar(&self, args: &[&str]) -> Result<String, String> {
        let alive = self.peers.iter().position(Option::is_some).unwrap_or(0);
        self.mortar_of(alive, args)
    }

    fn mortar_of(&self, peer: usize, args: &[&str]) -> Result<String, String> {
        let socket = self
            .folder
            .join(format!("peer{}", peer + 1))
            .join("admin.sock");
        let output = Command::new(this_executable()?)
            .arg("--mode=script")
            .arg("--socket")
            .arg(socket)
            .args(args)
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        Err(format!("mortar {}: {}", args.join(" "), words.trim()))
    }

    /// Mounts the volume. The client stays a child of this process, which so knows when it has ended.
    pub fn mount(&mut self) -> Result<(), String> {
        let log = self.folder.join("mount.log");
        let words = self.folder.join("mount.words");
        let stderr = File::create(&words).map_err(|error| error.to_string())?;
        let client = Command::new(this_executable()?)
            .arg("mount")
            .arg(format!("{}:/v01", self.hosts().join(",")))
            .arg(self.mount_point())
            .args(["-o", &format!("foreground,log-file={}", log.display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .map_err(|error| format!("the mount could not be started: {error}"))?;
        let client = self.client.insert(client);
        let deadline = Instant::now() + PROCESS_DEADLINE;
        let mount_point = self.folder.join(MOUNT_POINT);
        while mounts::at(&mount_point).is_ok_and(|mount| mount.is_none()) {
            if !matches!(client.try_wait(), Ok(None)) || Instant::now() > deadline {
                let said = fs::read_to_string(&words).unwrap_or_default();
                return Err(format!("the volume is not mounted: {}", said.trim()));
            }
            self.interruption.wait(LOOK)?;
        }
        Ok(())
    }

    /// Which peer's brick is primary.
    pub fn primary(&self) -> Result<usize, String> {
        let status = self.json(&["volume", "status", "v01"])?;
        let text = status.to_string();
        let bricks = find_bricks(&status);
        let primary = bricks.iter().find(|(_, role)| role == "primary");
        let host = primary
            .map(|(host, _)| host.clone())
            .ok_or(format!("no primary in {text}"))?;
        self.hosts()
            .iter()
            .position(|known| *known == host)
            .ok_or(format!("{host} is unknown"))
    }

    /// Entries that still wait to be healed, over all bricks; a brick that is not in sync counts.
    pub fn pending_heals(&self) -> Result<u64, String> {
        let status = self.json(&["volume", "status", "v01"])?;
        let serving = find_bricks(&status)
            .iter()
            .filter(|(_, role)| role == "primary" || role == "backup")
            .count() as u64;
        Ok(2u64.saturating_sub(serving))
    }

    fn json(&self, args: &[&str]) -> Result<serde_json::Value, String> {
        let mut all = vec!["--json"];
        all.extend(args);
        serde_json::from_str(&self.mortar(&all)?).map_err(|error| error.to_string())
    }

    /// Leaves everything running and says how to play with it.
    ///
    /// # Errors
    /// When this executable cannot be found; then nothing is left running.
    pub fn keep(&mut self) -> Result<(), String> {
        let mortar = format!(
            "{} --socket {}",
            this_executable()?.display(),
            self.folder.join("peer1/admin.sock").display()
        );
        let (mount, brick) = (self.mount_point(), self.brick_spec(1));
        let pids: Vec<String> = self
            .peers
            .iter()
            .flatten()
            .map(|child| child.id().to_string())
            .collect();
        println!("\nIt goes on running, mounted on {}", mount.display());
        println!("To play with it:");
        println!("  {mortar} volume status v01");
        println!("  {mortar} --mode=script brick stop {brick}");
        println!("  {mortar} volume heal v01 info");
        println!("  {mortar} brick start {brick}");
        println!("To end it:");
        println!("  umount {}", mount.display());
        // Not `kill -0`: where nobody waits for orphans, as in a container, they stay as zombies.
        let pids = pids.join(" ");
        println!(
            "  kill {pids} && for pid in {pids}; do while [ -e /proc/$pid/exe ]; do sleep 0.1; done; \
             done && rm -r {}",
            self.folder.display()
        );
        self.kept = true;
        Ok(())
    }

    /// Prints the last lines of the logs, after a failure.
    pub fn show_logs(&self) {
        let logs = (1..=3).map(|peer| self.folder.join(format!("peer{peer}/brickd.log")));
        for log in logs.chain([self.folder.join("mount.log")]) {
            let Ok(text) = fs::read_to_string(&log) else {
                continue;
            };
            eprintln!("--- {}", log.display());
            let lines: Vec<&str> = text.lines().collect();
            for line in &lines[lines.len().saturating_sub(10)..] {
                eprintln!("{line}");
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let mount_point = self.mount_point();
        if let Some(client) = &mut self.client {
            // By force: a writer that waits for bricks that are gone would keep this process.
            let flags = UnmountFlags::DETACH | UnmountFlags::FORCE;
            let _ = unmount(mount_point, flags);
            // Before the bricks: it tells them that its session is over.
            terminate(client);
            wait_for_end(client, Instant::now() + PROCESS_DEADLINE);
        }
        self.peers.iter().flatten().for_each(terminate);
        let deadline = Instant::now() + PROCESS_DEADLINE;
        for child in self.peers.iter_mut().flatten() {
            wait_for_end(child, deadline);
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} could not be removed: {error}", self.folder.display());
        }
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

fn terminate(child: &Child) {
    if let Some(pid) = pid_of(child) {
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Waits for the end of a process, and kills it at the deadline.
fn wait_for_end(child: &mut Child, deadline: Instant) {
    if let Some(process) = pid_of(child).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        let _ = poll(&mut ended, Timespec::try_from(left).ok().as_ref());
    }
    if matches!(child.try_wait(), Ok(None)) {
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn address(network: u8, peer: usize) -> String {
    format!("127.77.{network}.{}", peer + 1)
}

fn is_free(host: &str) -> bool {
    TcpListener::bind((host, DEFAULT_PORT)).is_ok()
}

fn this_executable() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|error| format!("this executable cannot be found: {error}"))
}

/// (host, role) of every brick in what `volume status --json` prints, however deep.
fn find_bricks(value: &serde_json::Value) -> Vec<(String, String)> {
    match value {
        serde_json::Value::Array(items) => items.iter().flat_map(find_bricks).collect(),
        serde_json::Value::Object(fields) => {
            let text = |key: &str| fields.get(key).and_then(|v| v.as_str()).map(str::to_owned);
            match (text("host"), text("role")) {
                (Some(host), Some(role)) => vec![(host, role)],
                _ => fields.values().flat_map(find_bricks).collect(),
            }
        }
        _ => Vec::new(),
    }
}
