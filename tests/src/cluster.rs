//! A cluster of hosts on one machine: each host a network namespace with an address of its own,
//! brickd on the same port, data and bricks under one temporary folder. Clusters know nothing of
//! each other, so tests run beside each other. Dropping a cluster removes all of it, also after a
//! panic; what a killed test run left is removed by the next one.
//!
//! Needs root, `ip`, `iptables`, `nsenter`, `unshare` and `findmnt`.

mod bad_disk;
mod check;
mod disk;
mod docker;
mod host;
mod mount;
mod net;
mod pool;
mod power;
mod process;
mod remains;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

pub use check::{Allowed, assert_bricks_equal, brick_differences};
pub use disk::DiskTrouble;
pub use docker::{Container, Docker, RunOptions};
pub use host::{CLI_WITHIN, Host, PORT};
pub use mount::Mount;
pub use net::{Cable, Place};
pub use pool::VOLUME;
pub use power::{FileSystem, Signs, cut_power};
pub use process::{Process, Ran, Running, program, run, signal_process, wait_until};

use net::{Switch, processes_in};

/// A cluster that lives longer hangs: its processes are killed, so that a test that waits inside
/// the kernel for a file system that does not answer fails instead of standing still.
const LIFE_MAX: Duration = Duration::from_secs(10 * 60);
const LIFE_MAX_FULL: Duration = Duration::from_secs(60 * 60);

/// Hosts on a switch of their own.
pub struct Cluster {
    hosts: Vec<Host>,
    switch: Switch,
    base: PathBuf,
    /// A word renews the watchdog's patience, dropping it ends it.
    watchdog: Sender<()>,
    /// The last field: what dropping the others leaves is removed by it.
    _remains: Remains,
}

impl Cluster {
    /// Makes hosts of these names, which all of them resolve; nothing runs on them yet.
    ///
    /// # Panics
    /// When this process may not make network namespaces.
    pub fn new(names: &[&str]) -> Self {
        static CLUSTERS: AtomicU32 = AtomicU32::new(0);
        let number = CLUSTERS.fetch_add(1, Ordering::Relaxed);
        let id = remains::id_of(std::process::id(), number);
        // Serialised: `ip netns` prepares its folder unguarded, and a sweep must not meet a
        // cluster half made.
        let _only_one = remains::lock();
        remains::sweep();
        let base = remains::base_of(&id);
        fs::create_dir(&base).unwrap_or_else(|error| panic!("{}: {error}", base.display()));
        // From here on what exists is removed, also when the next step panics.
        let _remains = Remains(id.clone());
        share(&base);
        let switch = Switch::new(&id);
        let hosts: Vec<Host> = names
            .iter()
            .map(|name| Host::new(&id, name, &base, &switch))
            .collect();
        let lines = hosts
            .iter()
            .map(|host| format!("{} {}\n", host.address, host.name));
        let text = std::iter::once("127.0.0.1 localhost\n".to_owned()).chain(lines);
        fs::write(base.join("hosts"), text.collect::<String>()).expect("the hosts file");
        let watchdog = start_watchdog(&id, names);
        Cluster {
            hosts,
            switch,
            base,
            watchdog,
            _remains,
        }
    }

    /// The host of that name.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn host(&self, name: &str) -> &Host {
        let found = self.hosts.iter().find(|host| host.name == name);
        found.unwrap_or_else(|| panic!("the cluster has no host {name}"))
    }

    /// All hosts, in the order given.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Says that the test comes on: from now on the cluster may live for its whole time again.
    pub fn lives_on(&self) {
        // A watchdog that has ended has killed everything already.
        let _ = self.watchdog.send(());
    }

    /// A folder for the test's own files, removed with the cluster.
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.base.join("test").join(name);
        fs::create_dir_all(&folder).expect("a folder of the test's");
        folder
    }

    /// Puts another network, such as a container's, on the switch.
    pub fn plug(&self, place: &Place) -> Cable {
        self.switch.plug(place)
    }

    /// `mortar ARGS` in script mode on that host, words split at blanks.
    #[track_caller]
    pub fn mortar(&self, host: &str, words: &str) -> Ran {
        self.host(host).mortar(words)
    }

    /// Mounts on that host; the options are appended to the harness's own.
    #[track_caller]
    pub fn mount(&self, host: &str, source: &str, options: &str) -> Mount {
        self.host(host).mount(source, options)
    }

    /// Asserts that nothing a human must look at was logged, but for what is `allowed`, each with
    /// its reason.
    #[track_caller]
    pub fn assert_logs_clean(&self, allowed: &[Allowed<'_>]) {
        check::assert_logs_clean(&self.hosts, allowed);
    }

    fn print_logs(&self) {
        for log in self.hosts.iter().flat_map(Host::logs) {
            eprintln!("=== end of {}\n{}", log.display(), process::tail(&log));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
    }
}

/// Removes all of a cluster, whole or half made, when dropped.
struct Remains(String);

impl Drop for Remains {
    fn drop(&mut self) {
        remains::remove(&self.0);
    }
}

/// Makes `base` a mount of its own whose mounts are shared with the hosts' mount namespaces, and
/// with nothing else.
fn share(base: &Path) {
    let bound = mount_bind(base, base)
        .and_then(|()| mount_change(base, MountPropagationFlags::PRIVATE))
        .and_then(|()| mount_change(base, MountPropagationFlags::SHARED));
    bound.unwrap_or_else(|error| panic!("{} as a mount (are you root?): {error}", base.display()));
}

fn start_watchdog(id: &str, hosts: &[&str]) -> Sender<()> {
    let (alive, ended) = channel();
    let namespaces: Vec<String> = hosts.iter().map(|host| format!("{id}-{host}")).collect();
    std::thread::spawn(move || {
        let life_max = crate::scale::pick(LIFE_MAX, LIFE_MAX_FULL);
        let mut heard = Ok(());
        while heard.is_ok() {
            heard = ended.recv_timeout(life_max);
        }
        if heard == Err(RecvTimeoutError::Timeout) {
            eprintln!("a cluster lives for {life_max:?}: it hangs, its processes are killed");
            for pid in processes_in(&namespaces) {
                signal_process(pid, rustix::process::Signal::KILL);
            }
        }
    });
    alive
}
