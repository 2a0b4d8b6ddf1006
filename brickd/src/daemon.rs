//! One brickd process: its configuration, its start and its orderly stop.

mod listen;
mod lock;
mod relay;
mod wiring;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mortar_common::Incarnation;
use tokio_stream::StreamExt;
use tracing::info;

use crate::host::{BrickHost, LocalBricks};
use crate::registry::{self, Registry, RegistryConfig, Timing};
use crate::{admin, link};

/// Threads of the control plane (views, administration); Raft has its own.
const CONTROL_THREADS: usize = 2;
/// The port of every peer, unless told otherwise.
pub const DEFAULT_PORT: u16 = admin::PORT;

/// How a brickd is started.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "brickd", version, about = "Mortar's server, one a host")]
pub struct Config {
    /// Folder of the registry and of this peer's identity
    #[arg(long, env = "MORTAR_DATA_DIR", default_value = "/var/lib/mortar")]
    pub data_dir: PathBuf,
    /// Address and port to listen on
    #[arg(
        long,
        env = "MORTAR_LISTEN",
        default_value = "0.0.0.0:24017",
        value_name = "IP:PORT"
    )]
    pub listen: SocketAddr,
    /// Name or address under which other peers reach this one [default: as it is probed]
    #[arg(long, env = "MORTAR_ADVERTISE", value_name = "HOST[:PORT]")]
    pub advertise: Option<String>,
    /// The admin socket, for root only [default: admin.sock in the data folder]
    #[arg(long, env = "MORTAR_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// error, warn, info, debug, trace, or a filter
    #[arg(
        long,
        env = "MORTAR_LOG_LEVEL",
        default_value = "info",
        value_name = "LEVEL"
    )]
    pub log_level: String,
    /// Log to this file instead of standard error
    #[arg(long, env = "MORTAR_LOG_FILE", value_name = "PATH")]
    pub log_file: Option<PathBuf>,
}

impl Config {
    /// Where the CLI finds this brickd.
    pub fn socket_path(&self) -> PathBuf {
        self.socket
            .clone()
            .unwrap_or_else(|| self.data_dir.join(admin::SOCKET_NAME))
    }

    fn advertised(&self) -> Result<(String, u16), DaemonError> {
        let Some(text) = &self.advertise else {
            return Ok((default_host(self.listen), self.listen.port()));
        };
        match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') => {
                let port = port.parse().map_err(|_| {
                    DaemonError::Config(format!("--advertise {text}: '{port}' is no port"))
                })?;
                Ok((host.to_owned(), port))
            }
            _ => Ok((text.clone(), self.listen.port())),
        }
    }
}

/// Why brickd does not run; each is one sentence for the administrator.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // Each variant is its sentence.
pub enum DaemonError {
    #[error("{0}")]
    Config(String),
    #[error("the data folder {path} cannot be used: {source}")]
    DataDir {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("another brickd (pid {pid}) already runs on the data folder {path}")]
    AlreadyRunning { path: PathBuf, pid: String },
    #[error("cannot listen on {address}: {source}")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("the registry cannot start: {0}")]
    Registry(String),
    #[error("the admin socket cannot be served: {0}")]
    Admin(String),
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// Runs a brickd until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start; a running one ends without an error.
pub fn run(config: &Config) -> Result<(), DaemonError> {
    rustix::process::umask(rustix::fs::Mode::empty());
    raise_descriptor_limit();
    let _lock = lock::take(&config.data_dir)?;
    let listener =
        std::net::TcpListener::bind(config.listen).map_err(|source| DaemonError::Listen {
            address: config.listen,
            source,
        })?;
    let (advertise_host, port) = config.advertised()?;
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()?;
    let registry = control
        .block_on(Registry::start(RegistryConfig {
            data_dir: config.data_dir.clone(),
            advertise_host: advertise_host.clone(),
            port,
            timing: Timing::default(),
        }))
        .map_err(|error| DaemonError::Registry(error.to_string()))?;
    let host = BrickHost::start(
        registry.clone(),
        control.handle().clone(),
        Incarnation::random(),
    );
    let stopping = Arc::new(AtomicBool::new(false));
    let grpc = listen::start(listener, Arc::clone(&host), Arc::clone(&stopping))?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    serve_control(&control, config, &registry, &host, grpc, stopped);
    announce(config, &registry, &advertise_host, port);
    wait_for_signal()?;
    info!("stopping");
    stopping.store(true, Ordering::Relaxed);
    let _ = stop.send(true);
    let halted = host.halt();
    control.block_on(registry.shutdown());
    host.leave(halted);
    control.shutdown_timeout(Duration::from_secs(1));
    info!("stopped");
    Ok(())
}

/// Bricks keep files open, and every client thread has a connection: the soft limit of 1024 that
/// most systems give is far too low, the hard one is for this.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        info!(%error, "the limit of open files stays as it is");
    }
}

fn serve_control(
    control: &tokio::runtime::Runtime,
    config: &Config,
    registry: &Registry,
    host: &Arc<BrickHost>,
    connections: tokio::sync::mpsc::Receiver<tokio::net::TcpStream>,
    stopped: tokio::sync::watch::Receiver<bool>,
) {
    let local: Arc<dyn LocalBricks> = Arc::clone(host) as Arc<dyn LocalBricks>;
    let (raft, pool) = registry::services(registry, Arc::clone(&local));
    let service = admin::AdminService::new(
        Arc::new(wiring::AdminRegistry(registry.clone())),
        Arc::new(wiring::AdminPeers(registry.clone())),
        local,
    );
    let admin = service.server();
    let incoming =
        tokio_stream::wrappers::ReceiverStream::new(connections).map(Ok::<_, std::io::Error>);
    let mut ended = stopped.clone();
    control.spawn(async move {
        let served = tonic::transport::Server::builder()
            .add_service(raft)
            .add_service(pool)
            .add_service(admin)
            .serve_with_incoming_shutdown(incoming, async move {
                let _ = ended.wait_for(|stop| *stop).await;
            })
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "the control plane ended");
        }
    });
    let socket = config.socket_path();
    let mut ended = stopped;
    control.spawn(async move {
        let until = async move {
            let _ = ended.wait_for(|stop| *stop).await;
        };
        if let Err(error) = admin::serve_socket(&socket, service, until).await {
            tracing::error!(%error, "the admin socket is not served");
        }
    });
}

/// States in one line what this is, where it listens and what it serves.
fn announce(config: &Config, registry: &Registry, host: &str, port: u16) {
    let view = registry.view();
    let me = registry.local();
    let bricks: Vec<String> = view
        .volumes
        .values()
        .flat_map(|volume| {
            volume
                .bricks
                .iter()
                .filter(|brick| brick.peer == me.id)
                .map(|brick| format!("{} of {}", brick.path, volume.name))
        })
        .collect();
    let serves = if bricks.is_empty() {
        "no bricks yet".to_owned()
    } else {
        bricks.join(", ")
    };
    info!(
        "brickd {} of peer {} ({host}:{port}) listens on {}, data in {}, socket {}; serves {serves}",
        env!("CARGO_PKG_VERSION"),
        me.uuid,
        config.listen,
        config.data_dir.display(),
        config.socket_path().display(),
    );
}

fn wait_for_signal() -> Result<(), DaemonError> {
    let mut signals = signal_hook::iterator::Signals::new([
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGINT,
    ])?;
    signals.forever().next();
    Ok(())
}

fn default_host(listen: SocketAddr) -> String {
    if !listen.ip().is_unspecified() {
        return listen.ip().to_string();
    }
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

/// How the data plane greets: used by [`listen`].
pub(crate) fn refusal_of_version(theirs: u32) -> Option<String> {
    (theirs != mortar_proto::WIRE_VERSION).then(|| {
        format!(
            "this brickd speaks wire version {}, the other side {theirs}: update the older one",
            mortar_proto::WIRE_VERSION
        )
    })
}

/// Kept here so that the links' timeouts and the listener's agree.
pub(crate) const HELLO_TIMEOUT: Duration = link::CONNECT_TIMEOUT;
