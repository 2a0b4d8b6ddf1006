//! Opening a data connection to another peer: resolve, connect, Hello both ways.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use mortar_common::{Incarnation, PeerId};
use mortar_proto::WIRE_VERSION;
use mortar_proto::data::{Hello, Role};
use mortar_proto::frame::{self, FrameError, Kind};

/// How long a connect and the Hello after it may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_000);

/// Whom to connect to, and who asks.
#[derive(Clone, Debug)]
pub struct Hail {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u32,
    /// This peer.
    pub from_peer: PeerId,
    /// This process.
    pub from_process: Incarnation,
}

impl Hail {
    /// A Hello of this peer's for a connection of `role`; the caller adds what the role needs.
    pub fn hello(&self, role: Role) -> Hello {
        Hello {
            wire_version: WIRE_VERSION,
            role: role.into(),
            from_peer: self.from_peer.0,
            from_incarnation: self.from_process.0,
            ..Default::default()
        }
    }
}

/// Connects, says `hello`, and returns the connection with the other side's answer.
///
/// # Errors
/// [`FrameError::Io`] with `ConnectionRefused` only when the host answered that nobody listens;
/// a refusal of the other brickd's is in the answer, not an error.
pub fn open(hail: &Hail, hello: &Hello) -> Result<(TcpStream, Hello), FrameError> {
    let mut last = io::Error::new(
        io::ErrorKind::NotFound,
        format!("{} has no address", hail.host),
    );
    for address in resolve(&hail.host, hail.port)? {
        match open_at(address, hello) {
            Ok(opened) => return Ok(opened),
            Err(FrameError::Io(error)) => last = error,
            Err(other) => return Err(other),
        }
    }
    Err(last.into())
}

/// As [`open`], at one address.
///
/// # Errors
/// As [`open`].
pub fn open_at(address: SocketAddr, hello: &Hello) -> Result<(TcpStream, Hello), FrameError> {
    let mut connection = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    connection.set_write_timeout(Some(CONNECT_TIMEOUT))?;
    frame::send(&mut connection, Kind::Hello, hello, &[])?;
    let answer = frame::receive(&mut connection)?;
    let answer = answer.decode()?;
    connection.set_read_timeout(None)?;
    connection.set_write_timeout(None)?;
    Ok((connection, answer))
}

fn resolve(host: &str, port: u32) -> io::Result<Vec<SocketAddr>> {
    let port = u16::try_from(port)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("port {port}")))?;
    Ok((host, port).to_socket_addrs()?.collect())
}

/// A flag that a thread can sleep on.
#[derive(Default)]
pub struct Stop {
    stopped: Mutex<bool>,
    woken: Condvar,
}

impl Stop {
    /// Sets it, waking sleepers.
    pub fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.woken.notify_all();
    }

    /// Whether it is set.
    pub fn is_stopped(&self) -> bool {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps for this long or until it is set; says whether it is.
    pub fn sleep(&self, time: Duration) -> bool {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let (stopped, _) = self
            .woken
            .wait_timeout_while(stopped, time, |stopped| !*stopped)
            .unwrap_or_else(PoisonError::into_inner);
        *stopped
    }
}
