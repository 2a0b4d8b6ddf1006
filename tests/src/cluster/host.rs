//! One host of a cluster: a network of its own, a view of `/etc/hosts` of its own, folders of its
//! own, and at most one brickd.
//!
//! A program enters a host's network with `nsenter`, and a mount namespace of its own in which
//! only `/etc/hosts` is another file, and once the host's power was cut the kernel's id of its
//! boot. The mounts under the cluster's folder stay *shared* with the test's own mount namespace,
//! so a volume mounted on a host is seen by the test at the same path. (`ip netns exec` would make
//! all mounts of the host invisible to the test.)

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::Signal;

use super::mount::Mount;
use super::net::{Cable, Place, Switch, add_namespace, enter_network, in_network, processes_in};
use super::power::PowerDisk;
use super::process::{Process, Ran, program, run, signal_process, wait_until};

/// The port of every brickd.
pub const PORT: u16 = 24017;
/// Gives a process another time of day.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
/// Where the kernel names its boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Stands before the program in the command line of one that enters a host.
pub(super) const ENTERED: &str = "entered-host";
/// A command of the CLI ends within this time or is a failure.
pub const CLI_WITHIN: Duration = Duration::from_secs(60);
const START_WITHIN: Duration = Duration::from_secs(30);
const STOP_WITHIN: Duration = Duration::from_secs(20);
const DIE_WITHIN: Duration = Duration::from_secs(10);

/// A host. Its processes, folders and cable are its alone.
pub struct Host {
    /// Its name, which every host of the cluster resolves.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Everything it keeps on disk.
    pub dir: PathBuf,
    cable: Cable,
    namespace: String,
    hosts_file: PathBuf,
    brickd: Mutex<Option<Process>>,
    mounts: Mutex<u32>,
    pub(super) power: Mutex<Option<PowerDisk>>,
    /// How far its clock is off, as libfaketime takes it; empty = not at all.
    clock: Mutex<String>,
}

impl Host {
    pub(super) fn new(id: &str, name: &str, base: &Path, switch: &Switch) -> Self {
        let namespace = format!("{id}-{name}");
        add_namespace(&namespace);
        let cable = switch.plug(&Place::Namespace(namespace.clone()));
        let dir = base.join(name);
        fs::create_dir_all(dir.join("log")).expect("a host's folder");
        Host {
            name: name.to_owned(),
            address: cable.address,
            dir,
            cable,
            namespace,
            hosts_file: base.join("hosts"),
            brickd: Mutex::new(None),
            mounts: Mutex::new(0),
            power: Mutex::new(None),
            clock: Mutex::default(),
        }
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// A command that runs `program` on this host.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = enter_network(&Place::Namespace(self.namespace.clone()));
        let boot = self.boot_id();
        let booted_again = if boot.exists() {
            format!(
                "mount --make-private /proc && mount --bind '{}' {BOOT_ID} && ",
                boot.display()
            )
        } else {
            String::new()
        };
        let script = format!(
            "mount --make-private '{}' && mount --bind '{}' /etc/hosts && {booted_again}exec \"$@\"",
            mount_of_etc_hosts(),
            self.hosts_file.display()
        );
        command
            .args([
                "unshare",
                "--mount",
                "--propagation",
                "unchanged",
                "/bin/sh",
                "-c",
            ])
            .args([script.as_str(), ENTERED])
            .arg(program)
            .env("MORTAR_DATA_DIR", self.data_dir())
            .env("MORTAR_SOCKET", self.socket());
        command
    }

    /// Runs words, split at blanks, on this host.
    #[track_caller]
    pub fn run(&self, words: &str, within: Duration) -> Ran {
        let mut words = words.split_whitespace();
        let mut command = self.command(words.next().expect("a program"));
        command.args(words);
        run(command, within)
    }

    /// The CLI in script mode with words split at blanks.
    #[track_caller]
    pub fn mortar(&self, words: &str) -> Ran {
        self.mortar_words(&words.split_whitespace().collect::<Vec<_>>())
    }

    /// The CLI in script mode with exactly these words.
    #[track_caller]
    pub fn mortar_words<Word: AsRef<OsStr>>(&self, words: &[Word]) -> Ran {
        let mut command = self.command(program("mortar"));
        command.arg("--mode=script").args(words);
        run(command, CLI_WITHIN)
    }

    /// Where brickd keeps what is not in a brick.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// brickd's admin socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("admin.sock")
    }

    /// What stands for the kernel's id of this boot, when the host has been booted again.
    pub(super) fn boot_id(&self) -> PathBuf {
        self.dir.join("boot_id")
    }

    /// brickd's log.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log/brickd.log")
    }

    /// The folder on this host's disk that a brick named `path` is.
    pub fn brick(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    /// `HOST:/PATH` of that brick, as the CLI takes it. Its parent folder exists afterwards.
    pub fn brick_spec(&self, path: &str) -> String {
        let folder = self.brick(path);
        fs::create_dir_all(folder.parent().expect("a folder below the host's")).expect("folders");
        format!("{}:{}", self.name, folder.display())
    }

    /// Mounts a small ext4 on this host, seen by its brickd and gone with the cluster, and returns
    /// `HOST:/PATH` of a brick on it.
    #[track_caller]
    pub fn small_disk(&self, mib: u32, options: &str) -> String {
        let (image, point) = (self.dir.join("disk.img"), self.dir.join("disk"));
        fs::create_dir_all(&point).expect("a mount point");
        let (image, point) = (image.display(), point.display());
        for words in [
            format!("truncate -s {mib}M {image}"),
            format!("mkfs.ext4 -q -F {image}"),
            format!("mount -o loop,{options} {image} {point}"),
        ] {
            self.run(&words, CLI_WITHIN).ok();
        }
        self.brick_spec("disk/brick")
    }

    /// brickd's command line, for a test that starts one by itself.
    pub fn brickd_command(&self) -> Command {
        let mut command = self.command(program("brickd"));
        command.arg("--data-dir").arg(self.data_dir());
        command.args(["--listen", &format!("{}:{PORT}", self.address)]);
        command
            .args(["--advertise", &self.name])
            .arg("--socket")
            .arg(self.socket());
        let clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        if !clock.is_empty() {
            command
                .env("LD_PRELOAD", FAKETIME)
                .env("FAKETIME", &*clock)
                .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        command
    }

    /// From its next start on the clock of this host's brickd is off by so much, such as `+3h`; the
    /// empty text is the right time. Only the time of day: the kernel's steady clocks are as they are.
    #[track_caller]
    pub fn set_clock(&self, off: &str) {
        let there = Path::new(FAKETIME).exists();
        assert!(there, "{FAKETIME} is missing (Debian's libfaketime)");
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = off.to_owned();
    }

    /// Starts brickd and waits until it answers on its port and its admin socket.
    ///
    /// # Panics
    /// When it ends or does not answer in time; when it runs already.
    #[track_caller]
    pub fn start_brickd(&self) {
        let mut brickd = self.lock_brickd();
        assert!(brickd.is_none(), "brickd of {} runs already", self.name);
        let mut process = Process::start(self.brickd_command(), &self.log());
        let what = format!("brickd of {} listens on {}:{PORT}", self.name, self.address);
        wait_until(START_WITHIN, &what, || {
            let ended = !process.is_running();
            assert!(
                !ended,
                "brickd of {} ended:\n{}",
                self.name,
                process.log_tail()
            );
            self.connect(Duration::from_secs(1)).is_ok()
                && UnixStream::connect(self.socket()).is_ok()
        });
        *brickd = Some(process);
    }

    /// The id of brickd's process, or none when it was stopped.
    pub fn brickd_pid(&self) -> Option<u32> {
        self.lock_brickd().as_ref().map(Process::pid)
    }

    /// Sends brickd a signal.
    ///
    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn signal_brickd(&self, signal: Signal) {
        match self.lock_brickd().as_ref() {
            Some(process) => process.signal(signal),
            None => panic!("no brickd runs on {}", self.name),
        }
    }

    /// SIGTERM, and how it ended.
    ///
    /// # Panics
    /// When it does not run or does not end in time.
    #[track_caller]
    pub fn stop_brickd(&self) -> ExitStatus {
        self.signal_brickd(Signal::TERM);
        let mut brickd = self.lock_brickd();
        let status = brickd.as_mut().expect("just seen").wait(STOP_WITHIN);
        *brickd = None;
        status
    }

    /// SIGKILL; its end is proven when this returns.
    ///
    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn kill_brickd(&self) {
        self.signal_brickd(Signal::KILL);
        let mut brickd = self.lock_brickd();
        brickd.as_mut().expect("just seen").wait(DIE_WITHIN);
        *brickd = None;
    }

    /// SIGSTOP: brickd stands still and its connections stay open.
    #[track_caller]
    pub fn freeze_brickd(&self) {
        self.signal_brickd(Signal::STOP);
    }

    /// SIGCONT.
    #[track_caller]
    pub fn thaw_brickd(&self) {
        self.signal_brickd(Signal::CONT);
    }

    /// Ends every process of this host at once: its brickd and its mounts. The host's network
    /// stays, so the others see their connections end, as when a host shuts down.
    pub fn shut_down(&self) {
        self.lock_brickd().take().iter_mut().for_each(Process::kill);
        wait_until(
            DIE_WITHIN,
            &format!("all processes of {} end", self.name),
            || {
                let left = processes_in(std::slice::from_ref(&self.namespace));
                left.iter()
                    .for_each(|pid| signal_process(*pid, Signal::KILL));
                left.is_empty()
            },
        );
    }

    /// The power goes: the others hear nothing more, then every process ends.
    pub fn power_off(&self) {
        self.cut_link();
        self.shut_down();
    }

    /// The power is back: the network and brickd.
    #[track_caller]
    pub fn power_on(&self) {
        self.restore_link();
        self.start_brickd();
    }

    /// Pulls the network cable: nobody is told.
    pub fn cut_link(&self) {
        self.cable.cut();
    }

    /// Puts the network cable back.
    pub fn restore_link(&self) {
        self.cable.restore();
    }

    /// Drops everything that comes in over the network; what goes out still arrives.
    #[track_caller]
    pub fn drop_incoming(&self) {
        self.iptables("-A INPUT -i eth0 -j DROP");
    }

    /// Drops everything that goes out over the network; what comes in still arrives.
    #[track_caller]
    pub fn drop_outgoing(&self) {
        self.iptables("-A OUTPUT -o eth0 -j DROP");
    }

    /// Drops everything between this host and another, both ways; others are heard as before.
    #[track_caller]
    pub fn drop_between(&self, other: &Host) {
        self.iptables(&format!("-A INPUT -s {} -j DROP", other.address));
        self.iptables(&format!("-A OUTPUT -d {} -j DROP", other.address));
    }

    /// Drops what comes in from that host, and from it alone; what goes to it still arrives.
    #[track_caller]
    pub fn drop_from(&self, other: &Host) {
        self.iptables(&format!("-A INPUT -s {} -j DROP", other.address));
    }

    /// Packets that were dropped here since the last [`Host::drop_nothing`].
    #[track_caller]
    pub fn dropped_packets(&self) -> u64 {
        let listed = ["INPUT", "OUTPUT"].map(|chain| self.iptables(&format!("-nvxL {chain}")));
        let dropped = |line: &str| {
            let mut words = line.split_whitespace();
            let packets = words.next()?.parse::<u64>().ok()?;
            (words.nth(1)? == "DROP").then_some(packets)
        };
        listed
            .iter()
            .flat_map(|text| text.lines())
            .filter_map(dropped)
            .sum()
    }

    /// Ends whatever drops something here.
    #[track_caller]
    pub fn drop_nothing(&self) {
        self.iptables("-F INPUT");
        self.iptables("-F OUTPUT");
    }

    /// Bytes this host has (received, sent) over its cable since it was made.
    pub fn network_bytes(&self) -> (u64, u64) {
        self.in_network(|| {
            let table = fs::read_to_string("/proc/thread-self/net/dev").expect("network counters");
            let line = table
                .lines()
                .find_map(|line| line.trim().strip_prefix("eth0:"));
            let numbers: Vec<u64> = line
                .expect("eth0 in the network counters")
                .split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect();
            (numbers[0], numbers[8])
        })
    }

    /// Calls `work` on a thread whose sockets are this host's. Names are not resolved as on the
    /// host there: use addresses.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_network(&self.namespace, work)
    }

    /// Connects from this host to its own brickd's port.
    pub fn connect(&self, within: Duration) -> std::io::Result<TcpStream> {
        let to = SocketAddr::from((self.address, PORT));
        self.in_network(move || TcpStream::connect_timeout(&to, within))
    }

    /// Mounts `source` on this host at a new folder.
    ///
    /// `options` are appended to the test's own (`log-file`, `log-level`), divided by commas.
    ///
    /// # Panics
    /// When it is refused.
    #[track_caller]
    pub fn mount(&self, source: &str, options: &str) -> Mount {
        self.try_mount(source, options)
            .unwrap_or_else(|ran| panic!("mounting {source}: {ran}"))
    }

    /// The same, with what the mount program said when it refused.
    #[track_caller]
    pub fn try_mount(&self, source: &str, options: &str) -> Result<Mount, Ran> {
        let number = {
            let mut mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
            *mounts += 1;
            *mounts
        };
        let log = self.dir.join(format!("log/mount-{number}.log"));
        Mount::make(
            self,
            source,
            options,
            &self.dir.join(format!("mnt-{number}")),
            &log,
        )
    }

    /// Ids of all processes on this host.
    pub fn processes(&self) -> Vec<u32> {
        processes_in(std::slice::from_ref(&self.namespace))
    }

    /// Logs of this host's brickd and mounts.
    pub fn logs(&self) -> Vec<PathBuf> {
        let folder = fs::read_dir(self.dir.join("log")).expect("the folder of logs");
        let mut logs: Vec<_> = folder.map(|entry| entry.expect("a log").path()).collect();
        logs.sort();
        logs
    }

    #[track_caller]
    fn iptables(&self, words: &str) -> String {
        let mut command = enter_network(&Place::Namespace(self.namespace.clone()));
        command
            .args(["iptables", "-w"])
            .args(words.split_whitespace());
        run(command, CLI_WITHIN).ok()
    }

    fn lock_brickd(&self) -> MutexGuard<'_, Option<Process>> {
        self.brickd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The mount that holds `/etc/hosts`: made private in a program's own mount namespace before
/// another file is put over `/etc/hosts`, so that the machine's own stays as it is.
fn mount_of_etc_hosts() -> &'static str {
    static MOUNT: OnceLock<String> = OnceLock::new();
    MOUNT.get_or_init(|| {
        let mut command = Command::new("findmnt");
        command.args([
            "--noheadings",
            "--output",
            "TARGET",
            "--target",
            "/etc/hosts",
        ]);
        run(command, CLI_WITHIN).ok().trim().to_owned()
    })
}
