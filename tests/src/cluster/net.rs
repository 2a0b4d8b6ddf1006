//! Network namespaces and the switch between them.
//!
//! The switch is a bridge in a namespace of its own: nothing of a cluster is in the machine's own
//! network, so its addresses can collide with nothing, the machine's firewall does not see its
//! frames, and everything is gone with its namespaces.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::process::run;

/// Where `ip netns` keeps its namespaces.
pub(super) const NAMESPACES: &str = "/run/netns";
const COMMAND_WITHIN: Duration = Duration::from_secs(20);

/// Where a cable ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A namespace of `ip netns`.
    Namespace(String),
    /// The network of a running process, such as a container's first.
    Process(u32),
}

/// The bridge that joins a cluster's hosts.
pub(super) struct Switch {
    namespace: String,
    subnet: [u8; 3],
    cables: AtomicU32,
}

/// One cable of the switch.
#[derive(Clone, Debug)]
pub struct Cable {
    /// The address at the far end.
    pub address: Ipv4Addr,
    switch: String,
    port: String,
}

impl Switch {
    /// Makes the switch with a random subnet of 10/8.
    pub(super) fn new(id: &str) -> Self {
        let namespace = format!("{id}-switch");
        add_namespace(&namespace);
        ip(&format!("-n {namespace} link add bridge type bridge"));
        ip(&format!("-n {namespace} link set bridge up"));
        let subnet = [10, rand::random(), rand::random()];
        Switch {
            namespace,
            subnet,
            cables: AtomicU32::new(0),
        }
    }

    /// Puts a cable between the switch and `place`, where it is `eth0` with an address of its own.
    pub(super) fn plug(&self, place: &Place) -> Cable {
        let number = 1 + self.cables.fetch_add(1, Ordering::Relaxed);
        let host_part = 10 + u8::try_from(number).expect("a cluster is small");
        let [a, b, c] = self.subnet;
        let address = Ipv4Addr::new(a, b, c, host_part);
        let (port, switch) = (format!("port{number}"), self.namespace.clone());
        let peer = match place {
            Place::Namespace(name) => name.clone(),
            Place::Process(pid) => pid.to_string(),
        };
        ip(&format!(
            "-n {switch} link add {port} type veth peer name eth0 netns {peer}"
        ));
        ip(&format!("-n {switch} link set {port} master bridge up"));
        ip_at(place, &format!("addr add {address}/24 dev eth0"));
        ip_at(place, "link set lo up");
        ip_at(place, "link set eth0 up");
        Cable {
            address,
            switch,
            port,
        }
    }
}

impl Cable {
    /// Pulls it out: whatever is sent is lost, and nobody is told.
    pub fn cut(&self) {
        ip(&format!("-n {} link set {} down", self.switch, self.port));
    }

    /// Puts it back.
    pub fn restore(&self) {
        ip(&format!("-n {} link set {} up", self.switch, self.port));
    }
}

pub(super) fn add_namespace(name: &str) {
    ip(&format!("netns add {name}"));
}

/// Runs `ip` with these words.
#[track_caller]
pub(super) fn ip(words: &str) {
    let mut command = Command::new("ip");
    command.args(words.split_whitespace());
    run(command, COMMAND_WITHIN).ok();
}

#[track_caller]
fn ip_at(place: &Place, words: &str) {
    let mut command = enter_network(place);
    command.arg("ip").args(words.split_whitespace());
    run(command, COMMAND_WITHIN).ok();
}

/// `nsenter` into a place's network alone, to be followed by a program.
pub(super) fn enter_network(place: &Place) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", network_file(place).display()))
        .arg("--");
    command
}

fn network_file(place: &Place) -> PathBuf {
    match place {
        Place::Namespace(name) => PathBuf::from(NAMESPACES).join(name),
        Place::Process(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
    }
}

/// Calls `work` on a thread whose sockets are those of `namespace`.
pub(super) fn in_network<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = network_file(&Place::Namespace(namespace.to_owned()));
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let network =
                fs::File::open(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                .unwrap_or_else(|error| panic!("cannot enter {}: {error}", file.display()));
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Ids of the processes whose network is one of these namespaces.
pub(super) fn processes_in(namespaces: &[String]) -> Vec<u32> {
    let inodes: Vec<u64> = namespaces
        .iter()
        .filter_map(|name| fs::metadata(PathBuf::from(NAMESPACES).join(name)).ok())
        .map(|file| file.ino())
        .collect();
    all_processes()
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|network| inodes.contains(&network.ino()))
        })
        .collect()
}

/// Ids of all processes.
pub(super) fn all_processes() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}
