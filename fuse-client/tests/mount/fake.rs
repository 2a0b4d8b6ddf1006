//! A replica set of two bricks that share one tree in memory, each with a port that speaks both
//! planes; it can lose a brick, freeze one, and move its primary.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use mortar_proto::WIRE_VERSION;
use mortar_proto::control::pool_server::{Pool, PoolServer};
use mortar_proto::control::{
    BarrierReply, CheckPage, CheckRequest, Done, Empty, Identity, JoinReply, JoinRequest,
    LeaveRequest, LocalBricksReply, PrepareBrickReply, PrepareBrickRequest, RecallReply,
    RecallRequest, RegistryStatusReply, VolumeHealReply, VolumeHealRequest, VolumeName,
    WatchViewRequest,
};
use mortar_proto::data::{EpochRef, Hello, PageCache, Reply, ReplyStatus, Request};
use mortar_proto::frame::{self, Kind};
use mortar_proto::registry::{
    Brick, Command, Copy, Epoch, Outcome, Peer, ReplicaSet, View, Volume, VolumeStatus,
};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::Status;

use crate::tree::Tree;

/// Ids of the two bricks; their peers have the same.
pub const BRICKS: [u64; 2] = [11, 12];
const VOLUME_ID: [u8; 16] = [7; 16];

/// What the bricks share.
pub struct Shared {
    pub tree: Mutex<Tree>,
    /// (session, slot) to the last seq and its reply.
    records: Mutex<HashMap<(u64, u32), Record>>,
    /// How often each operation was asked for, and how many requests there were, keep-alives and
    /// resends that were answered from the record left out.
    counts: Mutex<BTreeMap<&'static str, u64>>,
    /// Requests answered from the record.
    pub resent: AtomicU64,
    primary: AtomicU64,
    epoch: AtomicU64,
    /// The next change is made, but its answer never leaves: the connection is cut.
    pub swallow_answer: AtomicBool,
    /// How the session of the swallowed answer is ended with it, if it is.
    pub ends_session: Mutex<Option<ReplyStatus>>,
    /// What the bricks call their page cache.
    pub page_cache: Mutex<&'static str>,
    /// Sessions that have been put out.
    pub fenced: Mutex<Vec<u64>>,
    /// The bricks are starting and serve nobody yet.
    pub starts: AtomicBool,
    /// Sessions that no brick knows any more.
    pub forgotten: Mutex<Vec<u64>>,
    view: watch::Sender<View>,
    runtime: tokio::runtime::Runtime,
}

/// The last seq of a slot, its reply and the bytes beside it.
type Record = (u64, Reply, Bytes);

/// One brick's port.
struct Port {
    alive: Arc<AtomicBool>,
    frozen: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

/// The set.
pub struct Fake {
    pub shared: Arc<Shared>,
    ports: Mutex<Vec<Port>>,
    pub port_numbers: Vec<u16>,
}

impl Fake {
    /// Starts both bricks; the first is primary.
    pub fn start() -> Fake {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (view, _) = watch::channel(View::default());
        let shared = Arc::new(Shared {
            tree: Mutex::default(),
            records: Mutex::default(),
            counts: Mutex::default(),
            resent: AtomicU64::new(0),
            primary: AtomicU64::new(BRICKS[0]),
            epoch: AtomicU64::new(1),
            swallow_answer: AtomicBool::new(false),
            ends_session: Mutex::default(),
            page_cache: Mutex::default(),
            fenced: Mutex::default(),
            starts: AtomicBool::new(false),
            forgotten: Mutex::default(),
            view,
            runtime,
        });
        let listeners: Vec<_> = (0..2)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let port_numbers: Vec<u16> = listeners
            .iter()
            .map(|listener| listener.local_addr().unwrap().port())
            .collect();
        let fake = Fake {
            shared,
            ports: Mutex::default(),
            port_numbers,
        };
        fake.publish(VolumeStatus::VolumeStarted);
        for (listener, brick) in listeners.into_iter().zip(BRICKS) {
            let port = fake.open_port(listener, brick);
            fake.ports.lock().unwrap().push(port);
        }
        fake
    }

    /// Requests and operations since the last call; keep-alives left out.
    pub fn take_counts(&self) -> BTreeMap<&'static str, u64> {
        std::mem::take(&mut self.shared.counts.lock().unwrap())
    }

    /// The brick's process dies: its connections are reset, its port refuses.
    pub fn kill(&self, at: usize) {
        let port = &self.ports.lock().unwrap()[at];
        port.alive.store(false, Ordering::SeqCst);
        // The listener's thread ends with this, and the port refuses.
        let _ = TcpStream::connect(("127.0.0.1", self.port_numbers[at]));
        for stream in port.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// The brick's process starts again on the same port.
    pub fn restart(&self, at: usize) {
        let number = self.port_numbers[at];
        let listener = (0..200)
            .find_map(|_| {
                std::thread::sleep(Duration::from_millis(10));
                TcpListener::bind(("127.0.0.1", number)).ok()
            })
            .expect("the port is free again");
        self.ports.lock().unwrap()[at] = self.open_port(listener, BRICKS[at]);
    }

    /// The brick takes requests and answers nothing.
    pub fn freeze(&self, at: usize) {
        self.ports.lock().unwrap()[at]
            .frozen
            .store(true, Ordering::SeqCst);
    }

    /// Another brick becomes primary, in a new epoch.
    pub fn set_primary(&self, at: usize) {
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        self.shared.primary.store(BRICKS[at], Ordering::SeqCst);
        self.publish(VolumeStatus::VolumeStarted);
    }

    /// The view says this of the volume.
    pub fn publish(&self, status: VolumeStatus) {
        let peer = |at: usize| Peer {
            id: BRICKS[at],
            host: "127.0.0.1".into(),
            port: u32::from(self.port_numbers[at]),
            ..Default::default()
        };
        let brick = |at: usize| Brick {
            id: BRICKS[at],
            peer: BRICKS[at],
            ..Default::default()
        };
        let number = self.shared.epoch.load(Ordering::SeqCst);
        let epoch = Epoch {
            number,
            id: number,
            in_sync: BRICKS
                .map(|brick| Copy {
                    brick,
                    incarnation: 1,
                })
                .to_vec(),
            primary: self.shared.primary.load(Ordering::SeqCst),
        };
        let set = ReplicaSet {
            index: 0,
            bricks: BRICKS.to_vec(),
            epoch: Some(epoch),
            history: vec![],
        };
        let volume = Volume {
            name: "v01".into(),
            id: VOLUME_ID.to_vec(),
            status: status.into(),
            replica: 2,
            bricks: vec![brick(0), brick(1)],
            sets: vec![set],
            ..Default::default()
        };
        self.shared.view.send_modify(|view| {
            *view = View {
                index: view.index + 1,
                pool: 1,
                peers: [(BRICKS[0], peer(0)), (BRICKS[1], peer(1))].into(),
                volumes: [("v01".to_owned(), volume)].into(),
                ..Default::default()
            };
        });
    }

    fn open_port(&self, listener: TcpListener, brick: u64) -> Port {
        let port = Port {
            alive: Arc::new(AtomicBool::new(true)),
            frozen: Arc::default(),
            streams: Arc::default(),
        };
        let grpc = self.start_grpc();
        let (alive, frozen) = (port.alive.clone(), port.frozen.clone());
        let (streams, shared) = (port.streams.clone(), self.shared.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                if !alive.load(Ordering::SeqCst) {
                    return;
                }
                streams.lock().unwrap().push(stream.try_clone().unwrap());
                let (shared, frozen) = (shared.clone(), frozen.clone());
                std::thread::spawn(move || serve(&shared, stream, brick, &frozen, grpc));
            }
        });
        port
    }

    /// A gRPC server on a port of its own; returns its number.
    fn start_grpc(&self) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let number = listener.local_addr().unwrap().port();
        let service = PoolServer::new(Service {
            view: self.shared.view.subscribe(),
        });
        self.shared.runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        number
    }
}

/// One connection: data is answered here, anything else is passed on to the gRPC server.
fn serve(shared: &Shared, stream: TcpStream, brick: u64, frozen: &AtomicBool, grpc: u16) {
    let mut first = [0; 4];
    match stream.peek(&mut first) {
        Ok(4) if first == frame::MAGIC => {
            let _ = serve_data(shared, stream, brick, frozen);
        }
        _ => pass_on(stream, grpc),
    }
}

fn pass_on(stream: TcpStream, grpc: u16) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", grpc)) else {
        return;
    };
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        let mut buffer = [0; 4096];
        while let Ok(len) = from.read(&mut buffer) {
            if len == 0 || to.write_all(&buffer[..len]).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    };
    let back = (server.try_clone().unwrap(), stream.try_clone().unwrap());
    std::thread::spawn(move || copy(back.0, back.1));
    copy(stream, server);
}

fn serve_data(
    shared: &Shared,
    mut stream: TcpStream,
    brick: u64,
    frozen: &AtomicBool,
) -> Result<(), frame::FrameError> {
    stream.set_nodelay(true)?;
    let hello: Hello = frame::receive(&mut stream)?.decode()?;
    let thaw = || {
        while frozen.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    thaw();
    let refusal = if hello.volume[..] == VOLUME_ID {
        String::new()
    } else {
        "no such volume".to_owned()
    };
    let answer = Hello {
        wire_version: WIRE_VERSION,
        from_brick: brick,
        page_caches: vec![PageCache {
            brick,
            name: shared.page_cache.lock().unwrap().as_bytes().into(),
        }],
        refusal,
        ..Default::default()
    };
    frame::send(&mut stream, Kind::Hello, &answer, &[])?;
    loop {
        let received = frame::receive(&mut stream)?;
        let request: Request = received.decode()?;
        thaw();
        let session = request.session;
        let (reply, payload) = shared.judge(brick, request, received.payload);
        if !reply.results.is_empty()
            && reply.seq != 0
            && shared.swallow_answer.swap(false, Ordering::SeqCst)
        {
            let ended = match shared.ends_session.lock().unwrap().take() {
                Some(ReplyStatus::ReplyUnknownSession) => Some(&shared.forgotten),
                Some(_) => Some(&shared.fenced),
                None => None,
            };
            if let Some(ended) = ended {
                ended.lock().unwrap().push(session);
            }
            let _ = stream.shutdown(Shutdown::Both);
            return Ok(());
        }
        frame::send(&mut stream, Kind::Reply, &reply, &[&payload])?;
    }
}

impl Shared {
    fn judge(&self, brick: u64, request: Request, mut input: Bytes) -> (Reply, Bytes) {
        let number = self.epoch.load(Ordering::SeqCst);
        let primary = self.primary.load(Ordering::SeqCst);
        let mut reply = Reply {
            slot: request.slot,
            seq: request.seq,
            epoch: Some(EpochRef { number, id: number }),
            primary,
            ..Default::default()
        };
        if brick != primary {
            reply.set_status(ReplyStatus::ReplyNotPrimary);
            reply.untouched = true;
            return (reply, Bytes::new());
        }
        if self.starts.load(Ordering::SeqCst) {
            reply.set_status(ReplyStatus::ReplyNotReady);
            reply.untouched = true;
            return (reply, Bytes::new());
        }
        if self.fenced.lock().unwrap().contains(&request.session) {
            reply.set_status(ReplyStatus::ReplyFenced);
            return (reply, Bytes::new());
        }
        if self.forgotten.lock().unwrap().contains(&request.session) {
            reply.set_status(ReplyStatus::ReplyUnknownSession);
            return (reply, Bytes::new());
        }
        let mut tree = self.tree.lock().unwrap();
        let key = (request.session, request.slot);
        if request.seq != 0
            && let Some((seq, reply, payload)) = self.records.lock().unwrap().get(&key)
        {
            assert!(request.seq >= *seq, "a slot never counts back");
            if request.seq == *seq {
                self.resent.fetch_add(1, Ordering::SeqCst);
                return (reply.clone(), payload.clone());
            }
        }
        let mut output = Vec::new();
        let caller = request.caller.unwrap_or_default();
        self.count(&request);
        for op in request.ops {
            let result = tree.apply(request.session, &caller, op, &mut input, &mut output);
            let failed = result.errno != 0;
            reply.results.push(result);
            if failed {
                break;
            }
        }
        let output = Bytes::from(output);
        if request.seq != 0 {
            let record = (request.seq, reply.clone(), output.clone());
            self.records.lock().unwrap().insert(key, record);
        }
        (reply, output)
    }

    fn count(&self, request: &Request) {
        use mortar_proto::data::op::Op;
        let mut counts = self.counts.lock().unwrap();
        let mut names = Vec::new();
        for op in request.ops.iter().filter_map(|op| op.op.as_ref()) {
            names.push(match op {
                Op::Keepalive(_) => return,
                Op::Lookup(_) => "lookup",
                Op::Getattr(_) => "getattr",
                Op::Read(_) => "read",
                Op::Readdir(_) => "readdir",
                Op::Getxattr(_) => "getxattr",
                Op::Create(_) => "create",
                Op::Unlink(_) => "unlink",
                Op::Rename(_) => "rename",
                Op::Setattr(_) => "setattr",
                Op::Write(_) => "write",
                Op::Open(_) => "open",
                Op::Release(_) => "release",
                Op::Setlock(_) => "setlock",
                Op::ReleaseOwner(_) => "release_owner",
                Op::SessionOpen(_) => "session_open",
                Op::SessionClose(_) => "session_close",
                _ => "other",
            });
        }
        // Releases that go by themselves do so in the background, whenever it suits.
        if names.iter().any(|name| *name != "release") {
            *counts.entry("requests").or_default() += 1;
        }
        for name in names {
            *counts.entry(name).or_default() += 1;
        }
    }
}

struct Service {
    view: watch::Receiver<View>,
}

type Answer<T> = Result<tonic::Response<T>, Status>;

fn not_here<T>() -> Answer<T> {
    Err(Status::unimplemented("not in the fake"))
}

#[tonic::async_trait]
impl Pool for Service {
    type WatchViewStream =
        std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<View, Status>> + Send + 'static>>;

    async fn watch_view(
        &self,
        _: tonic::Request<WatchViewRequest>,
    ) -> Answer<Self::WatchViewStream> {
        use tokio_stream::StreamExt;
        let views = WatchStream::new(self.view.clone()).map(Ok);
        Ok(tonic::Response::new(Box::pin(views)))
    }

    async fn identify(&self, _: tonic::Request<Empty>) -> Answer<Identity> {
        let identity = Identity {
            wire_version: WIRE_VERSION,
            ..Default::default()
        };
        Ok(tonic::Response::new(identity))
    }

    async fn join(&self, _: tonic::Request<JoinRequest>) -> Answer<JoinReply> {
        not_here()
    }
    async fn status(&self, _: tonic::Request<Empty>) -> Answer<RegistryStatusReply> {
        not_here()
    }
    async fn recall(&self, _: tonic::Request<RecallRequest>) -> Answer<RecallReply> {
        not_here()
    }
    async fn leave(&self, _: tonic::Request<LeaveRequest>) -> Answer<Done> {
        not_here()
    }
    async fn propose(&self, _: tonic::Request<Command>) -> Answer<Outcome> {
        not_here()
    }
    async fn barrier(&self, _: tonic::Request<Empty>) -> Answer<BarrierReply> {
        not_here()
    }
    async fn local_bricks(&self, _: tonic::Request<VolumeName>) -> Answer<LocalBricksReply> {
        not_here()
    }
    async fn prepare_brick(
        &self,
        _: tonic::Request<PrepareBrickRequest>,
    ) -> Answer<PrepareBrickReply> {
        not_here()
    }
    async fn local_check(&self, _: tonic::Request<CheckRequest>) -> Answer<CheckPage> {
        not_here()
    }
    async fn local_heal(&self, _: tonic::Request<VolumeHealRequest>) -> Answer<VolumeHealReply> {
        not_here()
    }
}
