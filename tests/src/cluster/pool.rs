//! The pool that runs on a cluster's hosts: founding it, and what it says of itself.
//!
//! What a test needs to know for certain (who is primary, who leads, whether all copies are in
//! sync) it reads from the typed services, which the CLI's wording cannot blur; what an
//! administrator sees, it reads from the CLI.

use std::time::Duration;

use mortar_proto::control::admin_client::AdminClient;
use mortar_proto::control::pool_client::PoolClient;
use mortar_proto::control::{
    BrickState, CopyRole, Empty, HealAction, RegistryStatusReply, VolumeHealReply,
    VolumeHealRequest, VolumeName, VolumeStatusReply, WatchViewRequest,
};
use mortar_proto::registry::{ReplicaSet, View, Volume};
use tonic::transport::{Channel, Endpoint};

use super::{Cluster, FileSystem, Host, PORT, wait_until};

/// The volume of a cluster that was founded with [`Cluster::two_hosts`] or
/// [`Cluster::three_peers`].
pub const VOLUME: &str = "v01";
/// A brick's folder below its host's.
const BRICK: &str = "glusterfs/distributed";
const ASK_WITHIN: Duration = Duration::from_secs(5);
const IN_SYNC_WITHIN: Duration = Duration::from_secs(60);
const LEADER_WITHIN: Duration = Duration::from_secs(20);

impl Cluster {
    /// gfs01 and gfs02 with a brick each, a started volume of two copies, and a host `client`.
    #[track_caller]
    pub fn two_hosts() -> Self {
        let cluster = Cluster::new(&["gfs01", "gfs02", "client"]);
        cluster.found(&["gfs01", "gfs02"], 2);
        cluster
    }

    /// gfs01 and gfs02 with a brick each, gfs03 as a witness, and a host `client`.
    #[track_caller]
    pub fn three_peers() -> Self {
        let cluster = Cluster::new(&["gfs01", "gfs02", "gfs03", "client"]);
        cluster.found(&["gfs01", "gfs02", "gfs03"], 2);
        cluster
    }

    /// Hosts gfs01, gfs02 and, as a witness, gfs03 if there are three `peers`, all with a disk that
    /// [`super::cut_power`] can cut; the volume of two copies is started. And a host `client`.
    #[track_caller]
    pub fn with_power_disks(peers: usize, file_system: FileSystem) -> Self {
        let names = ["gfs01", "gfs02", "gfs03"];
        let peers = &names[..peers];
        let hosts: Vec<&str> = peers.iter().copied().chain(["client"]).collect();
        let cluster = Cluster::new(&hosts);
        let specs: Vec<String> = peers
            .iter()
            .map(|peer| cluster.host(peer).power_disk(file_system))
            .collect();
        cluster.found_on(peers, &specs[..2]);
        cluster
    }

    /// The same, but only the bricks are on such disks; the third peer is a witness without one.
    #[track_caller]
    pub fn with_brick_disks(file_system: FileSystem) -> Self {
        let peers = ["gfs01", "gfs02", "gfs03"];
        let cluster = Cluster::new(&["gfs01", "gfs02", "gfs03", "client"]);
        let specs: Vec<String> = peers[..2]
            .iter()
            .map(|peer| cluster.host(peer).brick_disk(file_system))
            .collect();
        cluster.found_on(&peers, &specs);
        cluster
    }

    /// gfs01, gfs02 and gfs03, a started volume of so many `copies` on the first of them, and
    /// hosts of these names for clients.
    #[track_caller]
    pub fn three_peers_and(copies: usize, clients: &[&str]) -> Self {
        let peers = ["gfs01", "gfs02", "gfs03"];
        let hosts: Vec<&str> = peers.iter().chain(clients).copied().collect();
        let cluster = Cluster::new(&hosts);
        cluster.found(&peers, copies);
        cluster
    }

    /// gfs01 alone with one brick, and a host `client`.
    #[track_caller]
    pub fn one_host() -> Self {
        let cluster = Cluster::new(&["gfs01", "client"]);
        cluster.found(&["gfs01"], 1);
        cluster
    }

    /// Starts brickd on `peers`, joins them and starts [`VOLUME`] over the first `replica` of them.
    #[track_caller]
    pub fn found(&self, peers: &[&str], replica: usize) {
        let bricks: Vec<String> = peers[..replica]
            .iter()
            .map(|peer| self.host(peer).brick_spec(BRICK))
            .collect();
        self.found_on(peers, &bricks);
    }

    /// The same, over these bricks (`HOST:/PATH`).
    #[track_caller]
    pub fn found_on(&self, peers: &[&str], bricks: &[String]) {
        for peer in peers {
            self.host(peer).start_brickd();
        }
        let first = self.host(peers[0]);
        for peer in &peers[1..] {
            assert_eq!(
                first.mortar(&format!("peer probe {peer}")).ok().trim(),
                "peer probe: success"
            );
        }
        let replica = if bricks.len() > 1 {
            format!("replica {}", bricks.len())
        } else {
            String::new()
        };
        let create = format!(
            "volume create {VOLUME} {replica} transport tcp {} force",
            bricks.join(" ")
        );
        first.mortar(&create).ok();
        first.mortar(&format!("volume start {VOLUME}")).ok();
        self.wait_in_sync(VOLUME);
    }

    /// The folder of `host`'s brick of [`VOLUME`].
    pub fn brick(&self, host: &str) -> std::path::PathBuf {
        self.host(host).brick(BRICK)
    }

    /// The first host whose brickd runs.
    ///
    /// # Panics
    /// When none does.
    #[track_caller]
    pub fn any_peer(&self) -> &Host {
        let running = self.hosts().iter().find(|host| host.brickd_pid().is_some());
        running.expect("a host whose brickd runs")
    }

    /// The volume as the registry of some running peer has it.
    #[track_caller]
    pub fn volume(&self, volume: &str) -> Volume {
        let view = self.any_peer().view();
        let view = view.unwrap_or_else(|error| panic!("reading the registry: {error}"));
        let found = view.volumes.get(volume).cloned();
        found.unwrap_or_else(|| panic!("the registry has no volume {volume}"))
    }

    /// The host of the volume's primary copy.
    #[track_caller]
    pub fn primary(&self, volume: &str) -> &Host {
        let (primary, _backups) = self.copies(volume);
        primary
    }

    /// The host of the volume's first in-sync copy that is not the primary.
    #[track_caller]
    pub fn backup(&self, volume: &str) -> &Host {
        let (_primary, backups) = self.copies(volume);
        backups
            .first()
            .copied()
            .expect("a copy in sync beside the primary")
    }

    /// The host that leads the registry.
    #[track_caller]
    pub fn leader(&self) -> &Host {
        let mut leader = None;
        wait_until(LEADER_WITHIN, "the registry has a leader", || {
            let asked = self
                .hosts()
                .iter()
                .filter(|host| host.brickd_pid().is_some());
            leader = asked
                .filter_map(|host| host.registry_status().ok())
                .find_map(|status| {
                    let member = status
                        .members
                        .iter()
                        .find(|member| member.id == status.leader)?;
                    self.hosts()
                        .iter()
                        .find(|host| host.name == host_part(&member.host))
                });
            leader.is_some_and(|host| host.brickd_pid().is_some())
        });
        leader.expect("just seen")
    }

    /// Waits until every copy of the volume is in sync, in the life of it that runs now.
    #[track_caller]
    pub fn wait_in_sync(&self, volume: &str) {
        let peer = self.any_peer();
        let start = std::time::Instant::now();
        while let Err(why) = peer.in_sync(volume) {
            let late = start.elapsed() > IN_SYNC_WITHIN;
            assert!(
                !late,
                "{volume} is not in sync within {IN_SYNC_WITHIN:?}: {why}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until all copies are in sync and `volume heal V info` lists nothing on any brick.
    #[track_caller]
    pub fn wait_healed(&self, volume: &str) {
        self.wait_in_sync(volume);
        let what = format!("`volume heal {volume} info` lists nothing");
        wait_until(IN_SYNC_WITHIN, &what, || {
            let info = self
                .any_peer()
                .mortar(&format!("volume heal {volume} info"))
                .ok();
            let bricks = info
                .lines()
                .filter(|line| line.starts_with("Brick "))
                .count();
            let empty = info
                .lines()
                .filter(|line| line.trim() == "Number of entries: 0")
                .count();
            bricks > 0 && bricks == empty
        });
    }

    /// Waits until the copies of [`VOLUME`] on gfs01 and gfs02 are healed, and asserts that the
    /// two folders are equal and that `volume check` finds nothing.
    #[track_caller]
    pub fn assert_healed_and_equal(&self) {
        self.wait_healed(VOLUME);
        super::assert_bricks_equal(&self.brick("gfs01"), &self.brick("gfs02"));
        self.assert_check_finds_nothing(VOLUME);
    }

    /// Asserts that `volume check` finds nothing: unequal copies, orphans, wrong link counts,
    /// leftovers.
    #[track_caller]
    pub fn assert_check_finds_nothing(&self, volume: &str) {
        self.any_peer()
            .mortar(&format!("volume check {volume}"))
            .ok();
    }

    #[track_caller]
    fn copies(&self, volume: &str) -> (&Host, Vec<&Host>) {
        let view = self.any_peer().view();
        let view = view.unwrap_or_else(|error| panic!("reading the registry: {error}"));
        let volume = &view.volumes[volume];
        let host_of = |brick: u64| {
            let brick = volume.bricks.iter().find(|one| one.id == brick)?;
            let peer = view.peers.get(&brick.peer)?;
            self.hosts()
                .iter()
                .find(|host| host.name == host_part(&peer.host))
        };
        let epoch = volume.sets[0]
            .epoch
            .clone()
            .expect("a started volume has an epoch");
        let primary = host_of(epoch.primary).expect("the primary's host");
        let others = epoch
            .in_sync
            .iter()
            .filter(|copy| copy.brick != epoch.primary);
        (
            primary,
            others.filter_map(|copy| host_of(copy.brick)).collect(),
        )
    }
}

impl Host {
    /// The registry's state as this peer has applied it, asked on the port as a client does.
    pub fn view(&self) -> Result<View, String> {
        let to = format!("http://{}:{PORT}", self.address);
        self.in_network(|| {
            ask(async {
                let mut pool = PoolClient::new(connect(to).await?);
                let views = pool.watch_view(WatchViewRequest { after_index: 0 }).await;
                let first = views
                    .map_err(|status| status.to_string())?
                    .into_inner()
                    .message()
                    .await;
                first
                    .map_err(|status| status.to_string())?
                    .ok_or_else(|| "no view".to_owned())
            })
        })
    }

    /// `registry status`, typed.
    pub fn registry_status(&self) -> Result<RegistryStatusReply, String> {
        self.ask_admin(async |mut admin| admin.registry_status(Empty {}).await)
    }

    /// `volume heal V info`, typed.
    pub fn heal_info(&self, volume: &str) -> Result<VolumeHealReply, String> {
        let request = VolumeHealRequest {
            volume: volume.to_owned(),
            action: HealAction::HealInfo.into(),
            ..Default::default()
        };
        self.ask_admin(async |mut admin| admin.volume_heal(request).await)
    }

    /// The bricks of `volume status V`, typed.
    pub fn brick_states(&self, volume: &str) -> Result<Vec<BrickState>, String> {
        Ok(self.volume_status(volume)?.bricks)
    }

    fn volume_status(&self, volume: &str) -> Result<VolumeStatusReply, String> {
        let request = VolumeName {
            volume: volume.to_owned(),
        };
        self.ask_admin(async |mut admin| admin.volume_status(request).await)
    }

    /// Whether every copy is in the epoch with the incarnation that runs, or why not.
    pub fn in_sync(&self, volume: &str) -> Result<(), String> {
        let status = self.volume_status(volume)?;
        if !status.note.is_empty() {
            return Err(status.note);
        }
        let known = status.volume.ok_or_else(|| format!("no volume {volume}"))?;
        known
            .sets
            .iter()
            .try_for_each(|set| set_in_sync(set, &status.bricks))
    }

    fn ask_admin<Reply>(
        &self,
        call: impl AsyncFnOnce(AdminClient<Channel>) -> Result<tonic::Response<Reply>, tonic::Status>,
    ) -> Result<Reply, String> {
        let to = format!("unix://{}", self.socket().display());
        ask(async {
            let reply = call(AdminClient::new(connect(to).await?)).await;
            reply
                .map(tonic::Response::into_inner)
                .map_err(|status| status.to_string())
        })
    }
}

fn set_in_sync(set: &ReplicaSet, states: &[BrickState]) -> Result<(), String> {
    let epoch = set.epoch.as_ref().ok_or("the set has no epoch yet")?;
    for brick in &set.bricks {
        let Some(state) = states.iter().find(|state| state.id == *brick) else {
            return Err(format!("nothing is known of brick {brick:016x}"));
        };
        let serves = matches!(state.role(), CopyRole::CopyPrimary | CopyRole::CopyBackup);
        let listed = epoch
            .in_sync
            .iter()
            .any(|copy| copy.brick == *brick && copy.incarnation == state.incarnation);
        if !(state.online && serves && listed) {
            let role = state.role().as_str_name();
            return Err(format!(
                "{}:{} is {role}, {}",
                state.host, state.path, state.detail
            ));
        }
    }
    Ok(())
}

async fn connect(to: String) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(to).map_err(|error| error.to_string())?;
    let endpoint = endpoint.connect_timeout(ASK_WITHIN).timeout(ASK_WITHIN);
    endpoint
        .connect()
        .await
        .map_err(|error| format!("{error:?}"))
}

/// Runs one question to its end on the calling thread, whose network its sockets are of.
fn ask<T>(question: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let answered = tokio::time::timeout(ASK_WITHIN, question).await;
        answered.unwrap_or_else(|_late| Err(format!("no answer within {ASK_WITHIN:?}")))
    })
}

/// The name in `HOST` or `HOST:PORT`.
fn host_part(text: &str) -> &str {
    text.split(':').next().unwrap_or(text)
}
