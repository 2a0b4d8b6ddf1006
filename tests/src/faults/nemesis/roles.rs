//! Which host plays which part at this moment.

use mortar_proto::control::CopyRole;
use mortar_proto::registry::Epoch;

use crate::cluster::{Cluster, Host, VOLUME};
use crate::faults::plan::Peer;

const PEERS: [&str; 3] = ["gfs01", "gfs02", "gfs03"];

/// The parts, by name of the host.
#[derive(Clone, Debug)]
pub(in crate::faults) struct Roles {
    pub primary: String,
    pub backup: String,
    pub leader: String,
    pub healed: String,
}

impl Roles {
    /// As the peers that answer say. Who cannot be found is some other peer than the primary.
    pub fn find(cluster: &Cluster) -> Self {
        let newest = peers(cluster)
            .filter_map(epoch_of)
            .max_by_key(|(epoch, _)| epoch.number);
        let (primary, copies) = newest.map_or_else(
            || (PEERS[0].to_owned(), Vec::new()),
            |(_, (primary, in_sync))| (primary, in_sync),
        );
        let other = |wanted: Option<String>| {
            let some_other = || {
                PEERS
                    .iter()
                    .find(|peer| **peer != primary)
                    .map(|p| (*p).to_owned())
            };
            wanted
                .or_else(some_other)
                .unwrap_or_else(|| PEERS[1].to_owned())
        };
        let backup = other(copies.into_iter().find(|host| *host != primary));
        let healed = other(unserving(cluster));
        let leader = leader(cluster).unwrap_or_else(|| primary.clone());
        Roles {
            primary,
            backup,
            leader,
            healed,
        }
    }

    /// The host of that part.
    pub fn host(&self, peer: Peer) -> &str {
        match peer {
            Peer::Primary => &self.primary,
            Peer::Backup => &self.backup,
            Peer::Leader => &self.leader,
            Peer::Healed => &self.healed,
            Peer::Third => PEERS[2],
        }
    }
}

pub(super) fn peers(cluster: &Cluster) -> impl Iterator<Item = &Host> {
    PEERS
        .iter()
        .map(|name| cluster.host(name))
        .filter(|host| host.brickd_pid().is_some())
}

/// All peers, whether their brickd runs or not.
pub(super) fn all_peers(cluster: &Cluster) -> impl Iterator<Item = &Host> {
    PEERS.iter().map(|name| cluster.host(name))
}

/// The epoch, its primary's host and the hosts of its copies in sync.
fn epoch_of(host: &Host) -> Option<(Epoch, (String, Vec<String>))> {
    let view = host.view().ok()?;
    let volume = view.volumes.get(VOLUME)?;
    let host_of = |brick: u64| {
        let brick = volume.bricks.iter().find(|one| one.id == brick)?;
        let host = &view.peers.get(&brick.peer)?.host;
        Some(host.split(':').next().unwrap_or(host).to_owned())
    };
    let epoch = volume.sets.first()?.epoch.clone()?;
    let in_sync = epoch
        .in_sync
        .iter()
        .filter_map(|copy| host_of(copy.brick))
        .collect();
    let primary = host_of(epoch.primary)?;
    Some((epoch, (primary, in_sync)))
}

/// The host of a copy that does not serve.
fn unserving(cluster: &Cluster) -> Option<String> {
    states(cluster).into_iter().find_map(|(host, role)| {
        let serves = matches!(role, CopyRole::CopyPrimary | CopyRole::CopyBackup);
        (!serves).then_some(host)
    })
}

fn states(cluster: &Cluster) -> Vec<(String, CopyRole)> {
    let asked = peers(cluster).find_map(|host| host.brick_states(VOLUME).ok());
    let states = asked.unwrap_or_default();
    states
        .into_iter()
        .map(|state| (state.host.clone(), state.role()))
        .collect()
}

/// Whether a copy is being healed at this moment.
pub(super) fn a_heal_runs(cluster: &Cluster) -> bool {
    states(cluster)
        .iter()
        .any(|(_, role)| *role == CopyRole::CopySyncing)
}

fn leader(cluster: &Cluster) -> Option<String> {
    peers(cluster)
        .filter_map(|host| host.registry_status().ok())
        .find_map(|status| {
            let member = status
                .members
                .iter()
                .find(|member| member.id == status.leader)?;
            let host = member.host.split(':').next()?;
            PEERS.contains(&host).then(|| host.to_owned())
        })
}
