//! Registries as several hosts have them.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use brickd::host::LocalBricks;
use brickd::registry::{Invited, Registry, RegistryConfig, RegistryError, Timing, services};
use mortar_proto::control::pool_client::PoolClient;
use mortar_proto::control::{
    BrickState, CheckPage, CheckRequest, PrepareBrickReply, PrepareBrickRequest, VolumeHealReply,
    VolumeHealRequest,
};
use mortar_proto::registry::{
    Brick, Command, CreateVolume, ReplicaSet, SetOptions, Volume, command::What,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

const PATIENCE: Duration = Duration::from_secs(60);

struct NoBricks;

impl LocalBricks for NoBricks {
    fn states(&self, volume: &str) -> Vec<BrickState> {
        vec![BrickState {
            path: format!("/{volume}"),
            ..BrickState::default()
        }]
    }
    fn prepare(&self, _request: &PrepareBrickRequest) -> PrepareBrickReply {
        PrepareBrickReply::default()
    }
    fn heal(&self, _request: &VolumeHealRequest) -> VolumeHealReply {
        VolumeHealReply::default()
    }
    fn check(&self, _request: &CheckRequest) -> CheckPage {
        CheckPage::default()
    }
}

/// Slower than the default, so that a busy machine elects nobody by accident.
pub fn slow() -> Timing {
    Timing {
        heartbeat_ms: 100,
        election_min_ms: 400,
        election_max_ms: 800,
        ..Timing::default()
    }
}

/// One brickd as far as the registry is concerned.
pub struct Host {
    pub dir: Arc<TempDir>,
    pub address: SocketAddr,
    pub registry: Registry,
    /// Its own, so that its connections die with it.
    server: Runtime,
    timing: Timing,
}

impl Host {
    pub async fn new(timing: Timing) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(Arc::new(tempfile::tempdir().unwrap()), listener, timing).await
    }

    async fn on(dir: Arc<TempDir>, listener: TcpListener, timing: Timing) -> Self {
        let address = listener.local_addr().unwrap();
        let config = RegistryConfig {
            data_dir: dir.path().to_owned(),
            advertise_host: address.ip().to_string(),
            port: address.port(),
            timing: timing.clone(),
        };
        let registry = Registry::start(config).await.unwrap();
        let (raft, pool) = services(&registry, Arc::new(NoBricks));
        let listener = listener.into_std().unwrap();
        let server = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        server.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let router = Server::builder().add_service(raft).add_service(pool);
            router
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Host {
            dir,
            address,
            registry,
            server,
            timing,
        }
    }

    /// Ends it as far as others can see. Its folder stays.
    pub async fn kill(self) -> (Arc<TempDir>, SocketAddr, Timing) {
        self.server.shutdown_background();
        self.registry.shutdown().await;
        (self.dir, self.address, self.timing)
    }

    /// A host of its own on another address of this machine.
    pub async fn at(address: SocketAddr, timing: Timing) -> Self {
        Self::revive((Arc::new(tempfile::tempdir().unwrap()), address, timing)).await
    }

    pub async fn revive((dir, address, timing): (Arc<TempDir>, SocketAddr, Timing)) -> Self {
        // Connections of the former life may linger for a moment.
        let listener = wait("the port", || async {
            let socket = tokio::net::TcpSocket::new_v4().ok()?;
            socket.set_reuseaddr(true).ok()?;
            socket.bind(address).ok()?;
            socket.listen(64).ok()
        });
        Self::on(dir, listener.await, timing).await
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn id(&self) -> u64 {
        self.registry.local().id
    }

    pub async fn probe(&self, other: &Host) -> Result<Invited, RegistryError> {
        self.registry.invite("127.0.0.1", other.port()).await
    }

    pub async fn client(&self) -> PoolClient<tonic::transport::Channel> {
        PoolClient::connect(format!("http://{}", self.address))
            .await
            .unwrap()
    }

    pub async fn voters(&self) -> usize {
        let status = self.registry.status().await.unwrap();
        status.members.iter().filter(|member| member.voter).count()
    }
}

pub async fn wait<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A pool of n hosts, all probed from the first.
pub async fn pool(hosts: usize, timing: Timing) -> Vec<Host> {
    let mut all = vec![Host::new(timing.clone()).await];
    for _ in 1..hosts {
        let host = Host::new(timing.clone()).await;
        let joined = all[0].probe(&host).await.unwrap();
        assert!(matches!(joined, Invited::Joined(_)), "{joined}");
        all.push(host);
    }
    all
}

pub async fn end(hosts: Vec<Host>) {
    for host in hosts {
        host.kill().await;
    }
}

pub fn create(name: &str, peers: &[u64]) -> Command {
    let bricks: Vec<Brick> = peers
        .iter()
        .map(|peer| Brick {
            id: mortar_common::ids::random_id(),
            peer: *peer,
            path: format!("/bricks/{name}"),
            status: 0,
        })
        .collect();
    let set = ReplicaSet {
        bricks: bricks.iter().map(|brick| brick.id).collect(),
        ..ReplicaSet::default()
    };
    let volume = Volume {
        name: name.to_owned(),
        id: mortar_common::VolumeId::random().0.to_vec(),
        bricks,
        sets: vec![set],
        ..Volume::default()
    };
    Command {
        what: Some(What::CreateVolume(CreateVolume {
            volume: Some(volume),
        })),
    }
}

pub fn option(volume: &str, value: &str) -> Command {
    let options = [("test.key".to_owned(), value.to_owned())].into();
    let volume = volume.to_owned();
    Command {
        what: Some(What::SetOptions(SetOptions { volume, options })),
    }
}

pub async fn agree(hosts: &[Host]) {
    wait("all to have one view", || async {
        let first = hosts[0].registry.view();
        hosts
            .iter()
            .all(|host| host.registry.view() == first)
            .then_some(())
    })
    .await;
}

pub fn leader(hosts: &[Host], status: &mortar_proto::control::RegistryStatusReply) -> usize {
    hosts
        .iter()
        .position(|host| host.id() == status.leader)
        .unwrap()
}
