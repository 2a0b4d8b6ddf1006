//! Counts what a client asks of a brick: a proxy between them that reads the frames it passes on.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mortar_proto::data::Request;
use mortar_proto::frame::{Frame, Kind, MAGIC, PREAMBLE_BYTES};

use crate::cluster::{Host, PORT};

/// Where brickd listens when the proxy stands before it.
pub const PORT_BEHIND: u16 = PORT + 1;
const ACCEPT_POLL: Duration = Duration::from_millis(5);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// The proxy: it has [`PORT`] of a host, whose brickd listens on [`PORT_BEHIND`].
pub struct Counter {
    asked: Arc<Mutex<Vec<String>>>,
    stopped: Arc<AtomicBool>,
    acceptor: Option<std::thread::JoinHandle<()>>,
}

impl Counter {
    /// Starts it.
    ///
    /// # Panics
    /// When the port is taken.
    pub fn start(host: &Host) -> Self {
        let (front, behind) = (
            SocketAddr::from((host.address, PORT)),
            SocketAddr::from((host.address, PORT_BEHIND)),
        );
        let listener = host.in_network(|| TcpListener::bind(front).expect("the port of a host"));
        listener.set_nonblocking(true).expect("a listener to poll");
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let stopped: Arc<AtomicBool> = Arc::default();
        let (for_client, until) = (asked.clone(), stopped.clone());
        // Threads inherit the network of the one that starts them.
        let acceptor = host.in_network(|| {
            std::thread::spawn(move || {
                while !until.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((client, _)) => pass_on(client, behind, &for_client),
                        Err(_) => std::thread::sleep(ACCEPT_POLL),
                    }
                }
            })
        });
        Counter {
            asked,
            stopped,
            acceptor: Some(acceptor),
        }
    }

    /// What was asked for during `work`, a line a request, its operations joined by `+`; without
    /// what goes on by itself: keep-alives, and the release of files closed a while ago.
    pub fn during(&self, work: impl FnOnce()) -> Vec<String> {
        self.take();
        work();
        self.take()
    }

    fn take(&self) -> Vec<String> {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = std::mem::take(&mut *asked);
        taken.retain(|ops| {
            ops.split('+')
                .any(|op| !matches!(op, "Keepalive" | "Release"))
        });
        taken
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// Joins a connection to brickd by two threads, which end with it.
fn pass_on(client: TcpStream, behind: SocketAddr, asked: &Arc<Mutex<Vec<String>>>) {
    let joined = || -> io::Result<[TcpStream; 4]> {
        client.set_nonblocking(false)?;
        client.set_nodelay(true)?;
        let brickd = TcpStream::connect_timeout(&behind, CONNECT_WITHIN)?;
        brickd.set_nodelay(true)?;
        let (other_client, other_brickd) = (client.try_clone()?, brickd.try_clone()?);
        Ok([client, brickd, other_client, other_brickd])
    };
    // brickd is not there: to the client the connection ends.
    let Ok([mut client, mut brickd, mut other_client, mut other_brickd]) = joined() else {
        return;
    };
    let asked = asked.clone();
    std::thread::spawn(move || {
        let _ = pass_requests(&mut client, &mut brickd, &asked);
        let _ = brickd.shutdown(Shutdown::Write);
    });
    std::thread::spawn(move || {
        let _ = io::copy(&mut other_brickd, &mut other_client);
        let _ = other_client.shutdown(Shutdown::Write);
    });
}

fn pass_requests(
    from: &mut TcpStream,
    to: &mut TcpStream,
    asked: &Mutex<Vec<String>>,
) -> io::Result<()> {
    let mut frame = vec![0; PREAMBLE_BYTES];
    loop {
        frame.resize(PREAMBLE_BYTES, 0);
        from.read_exact(&mut frame[..MAGIC.len()])?;
        if frame[..MAGIC.len()] != MAGIC {
            // gRPC, which is not counted.
            to.write_all(&frame[..MAGIC.len()])?;
            io::copy(from, to)?;
            return Ok(());
        }
        from.read_exact(&mut frame[MAGIC.len()..])?;
        let len_at = |at: usize| {
            let bytes = frame[at..at + 4].try_into().expect("four bytes");
            u32::from_le_bytes(bytes) as usize
        };
        let (header, payload) = (len_at(8), len_at(12));
        let kind = frame[5];
        frame.resize(PREAMBLE_BYTES + header + payload, 0);
        from.read_exact(&mut frame[PREAMBLE_BYTES..])?;
        if kind == Kind::Request as u8 {
            let header = &frame[PREAMBLE_BYTES..PREAMBLE_BYTES + header];
            let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.push(operations(header));
        }
        to.write_all(&frame)?;
    }
}

/// The names of a request's operations, joined by `+`.
fn operations(header: &[u8]) -> String {
    let frame = Frame {
        kind: Kind::Request,
        header: Bytes::copy_from_slice(header),
        payload: Bytes::new(),
    };
    let request: Request = frame.decode().expect("a client's request");
    let names = request.ops.iter().map(|op| {
        let text = op
            .op
            .as_ref()
            .map(|op| format!("{op:?}"))
            .unwrap_or_default();
        text.split('(').next().unwrap_or_default().to_owned()
    });
    names.collect::<Vec<_>>().join("+")
}
