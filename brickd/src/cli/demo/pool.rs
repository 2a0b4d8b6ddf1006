//! The demo's processes: three brickd and a mount, each this same executable.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::DEFAULT_PORT;

/// How long a process may take to come up or to end.
const PROCESS_DEADLINE: Duration = Duration::from_secs(15);

/// What waits for the mount may go on waiting for this long after Ctrl-C.
const HANG_GRACE: Duration = Duration::from_secs(3);

/// Three peers and a mount under one folder.
pub struct Pool {
    folder: PathBuf,
    network: u8,
    peers: [Option<Child>; 3],
    mounted: bool,
    kept: bool,
    interrupted: Arc<AtomicBool>,
}

impl Pool {
    /// Makes the folder and finds three free loopback addresses; nothing runs yet.
    pub fn new(folder: Option<&Path>) -> Result<Self, String> {
        let folder = folder.map_or_else(
            || std::env::temp_dir().join(format!("mortar-demo-{}", std::process::id())),
            Path::to_owned,
        );
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let interrupted = Arc::new(AtomicBool::new(false));
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))
                .map_err(|error| error.to_string())?;
        }
        let mut pool = Pool {
            folder,
            network: 0,
            peers: [None, None, None],
            mounted: false,
            kept: false,
            interrupted,
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
        let (interrupted, mount_point) = (Arc::clone(&self.interrupted), self.mount_point());
        std::thread::spawn(move || {
            while !interrupted.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
            }
            std::thread::sleep(HANG_GRACE);
            let _ = unmount(mount_point, UnmountFlags::FORCE);
        });
    }

    /// Set by Ctrl-C.
    pub fn interrupted(&self) -> &AtomicBool {
        &self.interrupted
    }

    /// Addresses of the peers.
    pub fn hosts(&self) -> Vec<String> {
        (0..3).map(|peer| address(self.network, peer)).collect()
    }

    /// Where the volume is mounted.
    pub fn mount_point(&self) -> PathBuf {
        self.folder.join("mnt")
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
            self.wait(Duration::from_millis(20))?;
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

    /// Mounts the volume.
    pub fn mount(&mut self) -> Result<(), String> {
        let output = Command::new(this_executable()?)
            .arg("mount")
            .arg(format!("{}:/v01", self.hosts().join(",")))
            .arg(self.mount_point())
            .args([
                "-o",
                &format!("log-file={}", self.folder.join("mount.log").display()),
            ])
            .output()
            .map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        self.mounted = true;
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

    /// Sleeps, unless Ctrl-C was pressed.
    pub fn wait(&self, time: Duration) -> Result<(), String> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            if self.interrupted.load(Ordering::Relaxed) {
                return Err("interrupted".to_owned());
            }
            std::thread::sleep(Duration::from_millis(20).min(time));
        }
        Ok(())
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
        println!(
            "  kill {} && sleep 5 && rm -r {}",
            pids.join(" "),
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
        if self.mounted {
            // By force: a writer that waits for bricks that are gone would keep this process.
            let flags = UnmountFlags::DETACH | UnmountFlags::FORCE;
            let _ = unmount(self.mount_point(), flags);
        }
        for child in self.peers.iter_mut().flatten() {
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let began = Instant::now();
        for child in self.peers.iter_mut().flatten() {
            while matches!(child.try_wait(), Ok(None)) {
                if began.elapsed() > PROCESS_DEADLINE {
                    let _ = child.kill();
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} could not be removed: {error}", self.folder.display());
        }
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
