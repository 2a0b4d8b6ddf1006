//! A pool in one process: a registry in memory, bricks in memory, one peer behind a real port and
//! one that is frozen.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use mortar_common::PeerId;
use mortar_common::ids::random_id;
use mortar_proto::control::pool_server::{Pool as PoolService, PoolServer};
use mortar_proto::control::{
    BarrierReply, BrickHeal, BrickState, CheckPage, CheckRequest, CopyRole, Done, Empty, Identity,
    JoinReply, JoinRequest, LeaveRequest, LocalBricksReply, PrepareBrickReply, PrepareBrickRequest,
    PrepareStep, RecallReply, RecallRequest, RegistryStatusReply, VolumeHealReply,
    VolumeHealRequest, VolumeName, WatchViewRequest,
};
use mortar_proto::registry::command::What;
use mortar_proto::registry::{
    Brick, BrickStatus, Command, Copy, Epoch, Limits, Outcome, Peer, ReplicaSet, View, Volume,
    VolumeStatus,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::admin::{
    AdminService, BoxFuture, DirectPeers, Invited, ProposeError, Refusal, Registry,
};
use crate::host::LocalBricks;

/// How long a condition may take to come true.
const DEADLINE: Duration = Duration::from_secs(10);

/// The whole of it, seen from gfs01.
pub struct Pool {
    pub admin: AdminService,
    pub registry: Arc<FakeRegistry>,
    pub here: Arc<FakeBricks>,
    pub there: Arc<FakeBricks>,
    /// Kept open, never accepted from.
    _frozen: std::net::TcpListener,
}

impl Pool {
    /// gfs01 is here, gfs02 answers, gfs03 is frozen.
    pub async fn new() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let frozen = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let there_port = listener.local_addr().unwrap().port();
        let frozen_port = frozen.local_addr().unwrap().port();
        let registry = Arc::new(FakeRegistry::default());
        for (id, host, port) in [
            (1, "gfs01", 1),
            (2, "gfs02", there_port),
            (3, "gfs03", frozen_port),
        ] {
            // The addresses are this machine's; the names are what the administrator types.
            let peer = Peer {
                id,
                uuid: format!("uuid-{id}"),
                host: "127.0.0.1".to_owned(),
                port: u32::from(port),
                other_names: Vec::new(),
            };
            registry.put_peer(Peer {
                host: host.to_owned(),
                ..peer
            });
        }
        let (here, there) = (
            Arc::new(FakeBricks::default()),
            Arc::new(FakeBricks::default()),
        );
        here.serve(
            &registry,
            1,
            Limits {
                links: 65_000,
                xattr_bytes: 0,
                file_bytes: 1 << 44,
            },
        );
        there.serve(
            &registry,
            2,
            Limits {
                links: 0,
                xattr_bytes: 4_000,
                file_bytes: 1 << 40,
            },
        );
        let server = tonic::transport::Server::builder().add_service(PoolServer::new(FakePeer {
            bricks: there.clone(),
            id: 2,
        }));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let admin = AdminService::new(
            registry.clone(),
            Arc::new(OnLoopback::default()),
            here.clone(),
        );
        Pool {
            admin,
            registry,
            here,
            there,
            _frozen: frozen,
        }
    }

    pub fn has_volume(&self, name: &str) -> bool {
        self.registry.view().volumes.contains_key(name)
    }

    pub fn volume(&self, name: &str) -> Volume {
        self.registry.view().volumes[name].clone()
    }

    /// These bricks of a volume, by their place in it, are in sync; as the set itself decides it.
    pub fn set_in_sync(&self, name: &str, places: &[usize]) {
        let mut state = self.registry.state.lock().unwrap();
        let volume = state.volumes.get_mut(name).unwrap();
        let copy = |place: &usize| copy_of(volume.bricks[*place].id);
        let in_sync: Vec<Copy> = places.iter().map(copy).collect();
        volume.sets[0].epoch.as_mut().unwrap().in_sync = in_sync;
    }

    /// Puts a volume into the registry without making bricks.
    pub fn add_volume(&self, name: &str, bricks: &[(&str, &str)], status: VolumeStatus) {
        let view = self.registry.view();
        let brick = |(host, path): &(&str, &str)| Brick {
            id: random_id(),
            peer: view
                .peers
                .values()
                .find(|peer| peer.host == *host)
                .unwrap()
                .id,
            path: (*path).to_owned(),
            status: BrickStatus::BrickUp.into(),
        };
        let bricks: Vec<Brick> = bricks.iter().map(brick).collect();
        let set = ReplicaSet {
            bricks: bricks.iter().map(|brick| brick.id).collect(),
            epoch: Some(Epoch {
                number: 4,
                id: random_id(),
                in_sync: bricks.iter().map(|brick| copy_of(brick.id)).collect(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let volume = Volume {
            name: name.to_owned(),
            id: vec![7; 16],
            status: status.into(),
            replica: bricks.len() as u32,
            bricks,
            sets: vec![set],
            ..Default::default()
        };
        self.registry
            .state
            .lock()
            .unwrap()
            .volumes
            .insert(name.to_owned(), volume);
    }
}

/// In the life that [`FakeBricks`] speak of.
fn copy_of(brick: u64) -> Copy {
    Copy {
        brick,
        incarnation: 77,
    }
}

/// Waits for a condition, with a deadline.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(
            began.elapsed() < DEADLINE,
            "not within {DEADLINE:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub async fn channel_to_socket(path: &Path) -> Channel {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            tokio::net::UnixStream::connect(path)
                .await
                .map(TokioIo::new)
        }
    });
    Endpoint::from_static("http://brickd")
        .connect_with_connector(connector)
        .await
        .unwrap()
}

/// Every peer of the test is on this machine, whatever it is called.
#[derive(Default)]
struct OnLoopback(DirectPeers);

impl crate::admin::Peers for OnLoopback {
    fn channel(&self, peer: &Peer) -> Result<Channel, Refusal> {
        self.0.channel(&Peer {
            host: "127.0.0.1".to_owned(),
            ..peer.clone()
        })
    }
}

/// A registry without Raft: applies at once.
#[derive(Default)]
pub struct FakeRegistry {
    state: Mutex<View>,
    fail: Mutex<Option<ProposeError>>,
    /// Why no majority confirms the view, if none does.
    alone: Mutex<Option<String>>,
    epoch_change: Mutex<Option<What>>,
}

impl FakeRegistry {
    /// The next proposal is not applied and fails so.
    pub fn fail_next(&self, error: ProposeError) {
        *self.fail.lock().unwrap() = Some(error);
    }

    /// This peer reaches no majority of the voters from now on.
    pub fn cut_off(&self, why: &str) {
        *self.alone.lock().unwrap() = Some(why.to_owned());
    }

    pub fn last_epoch_change(&self) -> Option<What> {
        self.epoch_change.lock().unwrap().clone()
    }

    /// As in a brickd that was never probed and made nothing yet.
    pub fn leave_pool(&self) {
        self.state.lock().unwrap().peers.clear();
    }

    fn put_peer(&self, peer: Peer) {
        self.state.lock().unwrap().peers.insert(peer.id, peer);
    }

    fn apply(&self, what: What) -> String {
        let mut state = self.state.lock().unwrap();
        match what {
            What::CreateVolume(command) => {
                let volume = command.volume.unwrap();
                state.volumes.insert(volume.name.clone(), volume);
            }
            What::SetVolumeStatus(command) => {
                let status = command.status();
                state
                    .volumes
                    .get_mut(&command.volume)
                    .unwrap()
                    .set_status(status);
            }
            What::DeleteVolume(command) => drop(state.volumes.remove(&command.volume)),
            What::SetOptions(command) => {
                state
                    .volumes
                    .get_mut(&command.volume)
                    .unwrap()
                    .options
                    .extend(command.options);
            }
            What::ResetOptions(command) => {
                let volume = state.volumes.get_mut(&command.volume).unwrap();
                volume
                    .options
                    .retain(|key, _| !command.keys.is_empty() && !command.keys.contains(key));
            }
            What::SetBrickStatus(command) => {
                let status = command.status();
                let volume = state.volumes.get_mut(&command.volume).unwrap();
                let brick = volume
                    .bricks
                    .iter_mut()
                    .find(|brick| brick.id == command.brick);
                brick.unwrap().set_status(status);
                // Its set goes on without a brick that is stopped, when another one is in sync.
                let epoch = volume.sets[0].epoch.as_mut().unwrap();
                if status == BrickStatus::BrickDown && epoch.in_sync.len() > 1 {
                    epoch.in_sync.retain(|copy| copy.brick != command.brick);
                }
            }
            What::ReplaceBrick(command) => {
                let volume = state.volumes.get_mut(&command.volume).unwrap();
                let with = command.with.unwrap();
                for id in &mut volume.sets[0].bricks {
                    if *id == command.brick {
                        *id = with.id;
                    }
                }
                for brick in &mut volume.bricks {
                    if brick.id == command.brick {
                        *brick = with.clone();
                    }
                }
            }
            change @ What::ChangeEpoch(_) => {
                *self.epoch_change.lock().unwrap() = Some(change);
            }
            other => return format!("not in this test: {other:?}"),
        }
        String::new()
    }
}

impl Registry for FakeRegistry {
    fn view(&self) -> Arc<View> {
        Arc::new(self.state.lock().unwrap().clone())
    }

    fn current_view(&self) -> BoxFuture<'_, Result<Arc<View>, String>> {
        let outcome = match self.alone.lock().unwrap().clone() {
            Some(why) => Err(why),
            None => Ok(self.view()),
        };
        Box::pin(std::future::ready(outcome))
    }

    fn local(&self) -> Peer {
        let known = self.state.lock().unwrap().peers.get(&1).cloned();
        known.unwrap_or_else(|| Peer {
            id: 1,
            host: "gfs01".to_owned(),
            ..Peer::default()
        })
    }

    fn propose(&self, command: Command) -> BoxFuture<'_, Result<Outcome, ProposeError>> {
        Box::pin(async move {
            if let Some(error) = self.fail.lock().unwrap().take() {
                return Err(error);
            }
            Ok(Outcome {
                refusal: self.apply(command.what.unwrap()),
                index: 1,
            })
        })
    }

    fn status(&self) -> BoxFuture<'_, RegistryStatusReply> {
        Box::pin(std::future::ready(RegistryStatusReply::default()))
    }

    fn invite(&self, host: String) -> BoxFuture<'_, Result<Invited, Refusal>> {
        Box::pin(async move {
            match host.as_str() {
                "new" => Ok(Invited::Joined),
                "gfs02" => Ok(Invited::AlreadyMember(24017)),
                _ => Err(Refusal(format!(
                    "{host} is already part of another cluster"
                ))),
            }
        })
    }

    fn remove(&self, peer: PeerId, _force: bool) -> BoxFuture<'_, Result<(), Refusal>> {
        Box::pin(async move {
            self.state.lock().unwrap().peers.remove(&peer.0);
            Ok(())
        })
    }

    fn recover(&self) -> BoxFuture<'_, Result<String, Refusal>> {
        Box::pin(std::future::ready(Ok(String::new())))
    }
}

/// Bricks in memory: which folders are made, by whom.
pub struct FakeBricks(Mutex<Folders>);

#[derive(Default)]
struct Folders {
    registry: Option<Arc<FakeRegistry>>,
    peer: u64,
    limits: Limits,
    /// Brick id by path.
    made: BTreeMap<String, u64>,
    refuse_check: String,
    refuse_make: String,
    slow: Duration,
    role: Option<CopyRole>,
}

impl Default for FakeBricks {
    fn default() -> Self {
        FakeBricks(Mutex::new(Folders::default()))
    }
}

impl FakeBricks {
    fn serve(&self, registry: &Arc<FakeRegistry>, peer: u64, limits: Limits) {
        let mut folders = self.0.lock().unwrap();
        folders.registry = Some(registry.clone());
        folders.peer = peer;
        folders.limits = limits;
    }

    pub fn made(&self) -> Vec<String> {
        self.0.lock().unwrap().made.keys().cloned().collect()
    }

    pub fn refuse_check(&self, why: &str) {
        why.clone_into(&mut self.0.lock().unwrap().refuse_check);
    }

    pub fn refuse_make(&self, why: &str) {
        why.clone_into(&mut self.0.lock().unwrap().refuse_make);
    }

    pub fn make_slow(&self, by: Duration) {
        self.0.lock().unwrap().slow = by;
    }

    pub fn set_role(&self, role: CopyRole) {
        self.0.lock().unwrap().role = Some(role);
    }

    fn bricks_of(&self, volume: &str) -> Vec<Brick> {
        let folders = self.0.lock().unwrap();
        let view = folders.registry.as_ref().unwrap().view();
        view.volumes
            .values()
            .filter(|of_view| volume.is_empty() || of_view.name == volume)
            .flat_map(|of_view| of_view.bricks.clone())
            .filter(|brick| brick.peer == folders.peer)
            .collect()
    }
}

impl LocalBricks for FakeBricks {
    fn states(&self, volume: &str) -> Vec<BrickState> {
        let role = self.0.lock().unwrap().role.unwrap_or(CopyRole::CopyPrimary);
        let state = |brick: Brick| BrickState {
            id: brick.id,
            online: brick.status() == BrickStatus::BrickUp,
            path: brick.path,
            pid: 42,
            role: role.into(),
            incarnation: 77,
            ..Default::default()
        };
        self.bricks_of(volume).into_iter().map(state).collect()
    }

    fn prepare(&self, request: &PrepareBrickRequest) -> PrepareBrickReply {
        let slow = self.0.lock().unwrap().slow;
        std::thread::sleep(slow);
        let mut folders = self.0.lock().unwrap();
        let refusal = match request.step() {
            PrepareStep::PrepareCheck => folders.refuse_check.clone(),
            PrepareStep::PrepareMake if folders.refuse_make.is_empty() => {
                folders.made.insert(request.path.clone(), request.brick);
                String::new()
            }
            PrepareStep::PrepareMake => folders.refuse_make.clone(),
            PrepareStep::PrepareUndo => {
                folders.made.retain(|_, brick| *brick != request.brick);
                String::new()
            }
        };
        PrepareBrickReply {
            refusal,
            // As a brick does: who makes one has its limits from the check.
            limits: (request.step() == PrepareStep::PrepareCheck).then_some(folders.limits),
        }
    }

    fn heal(&self, request: &VolumeHealRequest) -> VolumeHealReply {
        let report = |brick: Brick| BrickHeal {
            path: brick.path,
            status: "Connected".to_owned(),
            total: 1,
            ..Default::default()
        };
        let bricks = self
            .bricks_of(&request.volume)
            .into_iter()
            .map(report)
            .collect();
        VolumeHealReply {
            done: Some(Done::default()),
            bricks,
        }
    }

    fn check(&self, _request: &CheckRequest) -> CheckPage {
        CheckPage::default()
    }
}

/// The port of another peer.
struct FakePeer {
    bricks: Arc<FakeBricks>,
    id: u64,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl PoolService for FakePeer {
    type WatchViewStream = tokio_stream::Empty<Result<View, Status>>;

    async fn watch_view(&self, _: Request<WatchViewRequest>) -> Answer<Self::WatchViewStream> {
        Err(Status::unimplemented("test"))
    }
    async fn join(&self, _: Request<JoinRequest>) -> Answer<JoinReply> {
        Err(Status::unimplemented("test"))
    }
    async fn leave(&self, _: Request<LeaveRequest>) -> Answer<Done> {
        Err(Status::unimplemented("test"))
    }
    async fn propose(&self, _: Request<Command>) -> Answer<Outcome> {
        Err(Status::unimplemented("test"))
    }
    async fn barrier(&self, _: Request<Empty>) -> Answer<BarrierReply> {
        Err(Status::unimplemented("test"))
    }
    async fn local_bricks(&self, request: Request<VolumeName>) -> Answer<LocalBricksReply> {
        let bricks = self.bricks.states(&request.into_inner().volume);
        Ok(Response::new(LocalBricksReply { bricks }))
    }
    async fn prepare_brick(
        &self,
        request: Request<PrepareBrickRequest>,
    ) -> Answer<PrepareBrickReply> {
        Ok(Response::new(self.bricks.prepare(&request.into_inner())))
    }
    async fn local_check(&self, request: Request<CheckRequest>) -> Answer<CheckPage> {
        Ok(Response::new(self.bricks.check(&request.into_inner())))
    }
    async fn local_heal(&self, request: Request<VolumeHealRequest>) -> Answer<VolumeHealReply> {
        Ok(Response::new(self.bricks.heal(&request.into_inner())))
    }
    async fn status(&self, _: Request<Empty>) -> Answer<RegistryStatusReply> {
        Err(Status::unimplemented("test"))
    }
    async fn recall(&self, _: Request<RecallRequest>) -> Answer<RecallReply> {
        Err(Status::unimplemented("test"))
    }
    async fn identify(&self, _: Request<Empty>) -> Answer<Identity> {
        Ok(Response::new(Identity {
            peer: self.id,
            ..Default::default()
        }))
    }
}
