//! The one port: control connections go to the gRPC server, data connections are served by a
//! thread each. The first four bytes tell them apart.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mortar_proto::data::{Hello, Role};
use mortar_proto::frame::{self, FrameError, Kind};
use mortar_proto::{WIRE_VERSION, frame::MAGIC};
use socket2::{SockRef, TcpKeepalive};
use tracing::{debug, info, warn};

use super::{HELLO_TIMEOUT, refusal_of_version, relay};
use crate::host::BrickHost;

/// Connections served at once; more are closed as they come.
const CONNECTIONS_MAX: usize = 4096;
/// After a connection could not be accepted, most likely for want of descriptors: nothing tells when
/// there are some again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two looks at a connection whose first bytes have come in part: it is readable all the
/// time, so nothing tells when the rest is there.
const PEEK_PAUSE: Duration = Duration::from_millis(1);
/// A connection that was silent for this long is probed, so often.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// gRPC connections waiting to be taken by the control plane.
const GRPC_WAITING_MAX: usize = 64;
/// Stack of a thread that serves a data connection.
const STACK_BYTES: usize = 512 << 10;

/// Accepts connections until told to stop; gives the gRPC ones.
pub fn start(
    listener: TcpListener,
    host: Arc<BrickHost>,
    stopping: Arc<AtomicBool>,
) -> io::Result<tokio::sync::mpsc::Receiver<tokio::net::TcpStream>> {
    let (grpc, connections) = tokio::sync::mpsc::channel(GRPC_WAITING_MAX);
    let open = Arc::new(AtomicUsize::new(0));
    std::thread::Builder::new()
        .name("listen".to_owned())
        .spawn(move || {
            for connection in listener.incoming() {
                if stopping.load(Ordering::Relaxed) {
                    return;
                }
                match connection {
                    Ok(connection) => accept(connection, &host, &grpc, &open),
                    Err(error) => {
                        warn!(%error, "a connection could not be accepted");
                        std::thread::sleep(ACCEPT_PAUSE);
                    }
                }
            }
        })?;
    Ok(connections)
}

type Grpc = tokio::sync::mpsc::Sender<tokio::net::TcpStream>;

fn accept(connection: TcpStream, host: &Arc<BrickHost>, grpc: &Grpc, open: &Arc<AtomicUsize>) {
    if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
        open.fetch_sub(1, Ordering::Relaxed);
        warn!(
            most = CONNECTIONS_MAX,
            "too many connections: one is closed"
        );
        return;
    }
    let (host, grpc, counted) = (Arc::clone(host), grpc.clone(), Arc::clone(open));
    let spawned = std::thread::Builder::new()
        .name("data".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let from = connection
                .peer_addr()
                .map_or_else(|_| "?".to_owned(), |a| a.to_string());
            if let Err(error) = serve(connection, &host, &grpc) {
                match error {
                    FrameError::Closed => debug!(from, "a connection was closed"),
                    FrameError::Io(error) => debug!(from, %error, "a connection ended"),
                    malformed => info!(from, %malformed, "a connection is closed"),
                }
            }
            counted.fetch_sub(1, Ordering::Relaxed);
        });
    if let Err(error) = spawned {
        open.fetch_sub(1, Ordering::Relaxed);
        warn!(%error, "no thread for a connection");
    }
}

fn serve(mut connection: TcpStream, host: &Arc<BrickHost>, grpc: &Grpc) -> Result<(), FrameError> {
    connection.set_nodelay(true)?;
    // A host that lost its power says nothing: without this its threads would stay for ever.
    let alive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE)
        .with_retries(3);
    SockRef::from(&connection).set_tcp_keepalive(&alive)?;
    connection.set_read_timeout(Some(HELLO_TIMEOUT))?;
    let first = first_bytes(&connection)?;
    if first != MAGIC {
        connection.set_read_timeout(None)?;
        connection.set_nonblocking(true)?;
        let handed = host.on_control(|| tokio::net::TcpStream::from_std(connection))?;
        return grpc.blocking_send(handed).map_err(|_| FrameError::Closed);
    }
    let frame = frame::receive(&mut connection)?;
    if frame.kind != Kind::Hello {
        return Err(FrameError::Kind(frame.kind as u8));
    }
    let hello: Hello = frame.decode()?;
    connection.set_read_timeout(None)?;
    if let Some(refusal) = refusal_of_version(hello.wire_version) {
        return refuse(&mut connection, host, refusal);
    }
    dispatch(connection, hello, host)
}

/// Looks at the first four bytes and leaves them there: gRPC reads them again.
///
/// A peek gives what is there at once, so the socket's own timeout never ends the wait for the
/// rest: a deadline does.
fn first_bytes(connection: &TcpStream) -> Result<[u8; 4], FrameError> {
    let give_up = Instant::now() + HELLO_TIMEOUT;
    let mut first = [0; 4];
    loop {
        let seen = connection.peek(&mut first)?;
        if seen == 0 {
            return Err(FrameError::Closed);
        }
        if first[..seen] != MAGIC[..seen] && first[..seen] != b"PRI "[..seen] {
            return Err(FrameError::Magic(first));
        }
        if seen == first.len() {
            return Ok(first);
        }
        if Instant::now() >= give_up {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        std::thread::sleep(PEEK_PAUSE);
    }
}

fn dispatch(
    mut connection: TcpStream,
    hello: Hello,
    host: &Arc<BrickHost>,
) -> Result<(), FrameError> {
    match hello.role() {
        Role::Unspecified => refuse(
            &mut connection,
            host,
            "a connection needs a role".to_owned(),
        ),
        Role::Link | Role::Watch => {
            if let Some(refusal) = host.refusal_of_peer(&hello) {
                return refuse(&mut connection, host, refusal);
            }
            greet(&mut connection, host, String::new())?;
            if hello.role() == Role::Link {
                host.links().serve_link(connection)
            } else {
                host.links().serve_watch(connection)
            }
        }
        Role::Stream | Role::Tail => match host.replica(&hello) {
            Ok(replica) if hello.role() == Role::Tail => replica.give_tail(connection, &hello),
            Ok(replica) => replica.follow(connection, &hello),
            Err(refusal) => refuse(&mut connection, host, refusal),
        },
        Role::Client | Role::Peer => match host.replica(&hello) {
            Ok(replica) => {
                let answer = Hello {
                    wire_version: WIRE_VERSION,
                    from_brick: replica.setting().me.0,
                    from_incarnation: replica.setting().incarnation.0,
                    page_caches: replica.page_caches(),
                    ..Default::default()
                };
                frame::send(&mut connection, Kind::Hello, &answer, &[])?;
                replica.serve(connection, &hello)
            }
            Err(refusal) => match host.way_around(&hello) {
                Some(hail) => match relay::open(&hello, &hail) {
                    Ok(opened) => relay::serve(connection, opened),
                    Err(refusal) => refuse(&mut connection, host, refusal),
                },
                None => refuse(&mut connection, host, refusal),
            },
        },
    }
}

fn refuse(
    connection: &mut TcpStream,
    host: &Arc<BrickHost>,
    refusal: String,
) -> Result<(), FrameError> {
    debug!(refusal, "a connection is refused");
    greet(connection, host, refusal)
}

fn greet(
    connection: &mut TcpStream,
    host: &Arc<BrickHost>,
    refusal: String,
) -> Result<(), FrameError> {
    let answer = Hello {
        wire_version: WIRE_VERSION,
        from_peer: host.me().0,
        from_incarnation: host.links().process().0,
        refusal,
        ..Default::default()
    };
    frame::send(connection, Kind::Hello, &answer, &[])
}
