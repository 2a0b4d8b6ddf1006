//! One fault: making it and letting it go.

use std::sync::Arc;

use rustix::process::Signal;

use super::roles::{Roles, all_peers};
use crate::cluster::{Cluster, Host, signal_process};
use crate::faults::history::Time;
use crate::faults::plan::{Fault, Peer, Way};
use crate::faults::seats::Client;

/// A fault that lasts.
#[derive(Debug)]
pub(super) struct Hold {
    pub fault: Fault,
    pub from: Time,
    /// Names of hosts, for people.
    pub whom: String,
    /// The same.
    pub hosts: Vec<String>,
}

/// Makes it; nothing, when its victim is down already.
pub(super) fn make(
    cluster: &Cluster,
    clients: &[Arc<Client>],
    fault: Fault,
    roles: &Roles,
    from: Time,
) -> Option<Hold> {
    let peer = |peer: Peer| cluster.host(roles.host(peer));
    let mut hosts = Vec::new();
    match fault {
        Fault::Kill(whom) => {
            peer(whom).brickd_pid()?;
            peer(whom).kill_brickd();
            hosts.push(peer(whom));
        }
        Fault::Stop(whom) => {
            peer(whom).brickd_pid()?;
            // One that is frozen as well would not hear it.
            peer(whom).thaw_brickd();
            peer(whom).stop_brickd();
            hosts.push(peer(whom));
        }
        Fault::Freeze(whom) => {
            peer(whom).brickd_pid()?;
            peer(whom).freeze_brickd();
            hosts.push(peer(whom));
        }
        Fault::Cut(whom, way) => {
            cut(peer(whom), way);
            hosts.push(peer(whom));
        }
        Fault::Isolate(whom) => {
            let others = all_peers(cluster).filter(|host| host.name != peer(whom).name);
            others.for_each(|other| peer(whom).drop_between(other));
            hosts.push(peer(whom));
        }
        Fault::CutPair(one, other, way) => {
            let one = peer(one);
            let other = some_other(cluster, one, peer(other));
            match way {
                Way::Both => one.drop_between(other),
                Way::In => one.drop_from(other),
                Way::Out => other.drop_from(one),
            }
            hosts.extend([one, other]);
        }
        Fault::KillAll => {
            for host in all_peers(cluster).filter(|host| host.brickd_pid().is_some()) {
                host.signal_brickd(Signal::KILL);
                hosts.push(host);
            }
            hosts.iter().for_each(|host| host.kill_brickd());
        }
        Fault::FreezeAll => {
            for host in all_peers(cluster).filter(|host| host.brickd_pid().is_some()) {
                host.freeze_brickd();
                hosts.push(host);
            }
        }
        Fault::KillClient(client) => {
            clients[client].pid()?;
            clients[client].kill();
            hosts.push(cluster.host(&clients[client].host));
        }
        Fault::FreezeClient(client) => {
            signal_process(clients[client].pid()?, Signal::STOP);
            hosts.push(cluster.host(&clients[client].host));
        }
        Fault::CutClient(client, way) => {
            let host = cluster.host(&clients[client].host);
            cut(host, way);
            hosts.push(host);
        }
        Fault::CutClientFromPrimary(client) => {
            let host = cluster.host(&clients[client].host);
            host.drop_between(peer(Peer::Primary));
            hosts.push(host);
        }
    }
    let hosts: Vec<String> = hosts.iter().map(|host| host.name.clone()).collect();
    Some(Hold {
        fault,
        from,
        whom: hosts.join(", "),
        hosts,
    })
}

/// Lets it go. What another fault has let go or killed meanwhile stays so.
///
/// # Errors
/// In words, when a client cannot be mounted again.
pub(super) fn let_go(
    cluster: &Cluster,
    clients: &[Arc<Client>],
    hold: &Hold,
) -> Result<(), String> {
    let hosts = || hold.hosts.iter().map(|name| cluster.host(name));
    match hold.fault {
        Fault::Kill(_) | Fault::Stop(_) | Fault::KillAll => {
            hosts()
                .filter(|host| host.brickd_pid().is_none())
                .for_each(Host::start_brickd);
        }
        Fault::Freeze(_) | Fault::FreezeAll => {
            hosts()
                .filter(|host| host.brickd_pid().is_some())
                .for_each(Host::thaw_brickd);
        }
        Fault::Cut(..)
        | Fault::Isolate(_)
        | Fault::CutPair(..)
        | Fault::CutClient(..)
        | Fault::CutClientFromPrimary(_) => hosts().for_each(|host| {
            host.drop_nothing();
            host.restore_link();
        }),
        Fault::KillClient(client) => return clients[client].mount(cluster),
        Fault::FreezeClient(client) => {
            if let Some(pid) = clients[client].pid() {
                signal_process(pid, Signal::CONT);
            }
        }
    }
    Ok(())
}

fn cut(host: &Host, way: Way) {
    match way {
        Way::Both => host.cut_link(),
        Way::In => host.drop_incoming(),
        Way::Out => host.drop_outgoing(),
    }
}

/// `wanted`, or another peer if that is the same one.
fn some_other<'a>(cluster: &'a Cluster, one: &Host, wanted: &'a Host) -> &'a Host {
    let different = |host: &&Host| host.name != one.name;
    let mut others = all_peers(cluster).filter(different);
    Some(wanted)
        .filter(different)
        .or_else(|| others.next())
        .unwrap_or(wanted)
}
