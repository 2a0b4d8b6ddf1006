//! One blocking TCP connection to a brick: a request out, its reply back.

use std::io::{self, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mortar_common::BrickId;
use mortar_proto::WIRE_VERSION;
use mortar_proto::data::{Hello, PageCache, Reply, Request, Role};
use mortar_proto::frame::{self, FrameError, Kind};

use crate::view::BrickAddress;

/// A host that does not answer a connect within this is passed over for now.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A brick that took the connection and does not greet within this is passed over for now.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
/// While an answer is awaited, the caller is asked this often whether it still wants it.
pub const TICK: Duration = Duration::from_millis(100);
/// Over another host an answer is awaited for so long: the host may stand still, and its kernel
/// goes on confirming what nobody reads. A request that is slow is sent again and found under way.
const RELAY_TIMEOUT: Duration = Duration::from_secs(3);
/// The kernel ends a connection whose bytes were not confirmed for this long.
const USER_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection is probed after this long, then once a second, [`PROBES`] times.
const PROBE_AFTER: Duration = Duration::from_secs(2);
const PROBES: u32 = 3;
/// Small replies are taken out of the socket in one call.
const READ_BUFFER_BYTES: usize = 8 << 10;

/// Why a request on this connection has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// No connection could be made, so nothing was sent.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// `HOST:PORT`.
        address: String,
        /// The system's error.
        source: io::Error,
    },
    /// The brick does not take this client, or is another one.
    #[error("{address} refuses the connection: {reason}")]
    Refused {
        /// `HOST:PORT`.
        address: String,
        /// In the brick's words.
        reason: String,
    },
    /// The connection broke; whether the request was executed is not known.
    #[error("{address}: {source}")]
    Broken {
        /// `HOST:PORT`.
        address: String,
        /// What happened.
        source: FrameError,
    },
    /// The caller stopped waiting.
    #[error("{address} did not answer")]
    GivenUp {
        /// `HOST:PORT`.
        address: String,
    },
}

impl Lost {
    /// Whether the host itself could not be reached, which another host may be able to.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Lost::Connect { source, .. }
            if source.kind() != io::ErrorKind::ConnectionRefused)
    }
}

/// Asked every [`TICK`] while an answer is awaited.
pub type GiveUp<'a> = &'a dyn Fn() -> bool;

/// A connection that has been greeted and answers requests of one session.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
    address: String,
    /// Another host passes on what is said: its silence is not that of the brick.
    is_relayed: bool,
    /// As the brick names its own, and those of the copies in sync with it.
    page_caches: Vec<PageCache>,
}

impl Connection {
    /// Connects and greets: `volume` is its 16 bytes, `session` the session's id.
    ///
    /// # Errors
    /// [`Lost`]; never after a request was sent.
    pub fn open(to: &BrickAddress, volume: &[u8], session: u64) -> Result<Connection, Lost> {
        Connection::open_through(to, to.brick, volume, session, &|| false)
    }

    /// The same to `brick` through the host of another brick of its set, which passes on what the
    /// two say to each other. `give_up` ends the wait for the greeting.
    ///
    /// # Errors
    /// [`Lost`]; never after a request was sent.
    pub fn open_through(
        to: &BrickAddress,
        brick: BrickId,
        volume: &[u8],
        session: u64,
        give_up: GiveUp<'_>,
    ) -> Result<Connection, Lost> {
        let address = to.to_string();
        let stream = connect(&to.host, to.port)
            .and_then(|stream| prepare(&stream).map(|()| stream))
            .map_err(|source| Lost::Connect {
                address: address.clone(),
                source,
            })?;
        let reader = BufReader::with_capacity(READ_BUFFER_BYTES, stream);
        let mut connection = Connection {
            reader,
            address,
            is_relayed: to.brick != brick,
            page_caches: Vec::new(),
        };
        let hello = Hello {
            wire_version: WIRE_VERSION,
            role: Role::Client.into(),
            volume: Bytes::copy_from_slice(volume),
            to_brick: brick.0,
            session,
            ..Default::default()
        };
        connection.greet(&hello, brick, give_up)?;
        Ok(connection)
    }

    /// Sends one request and waits for its reply, for as long as `give_up` says no.
    ///
    /// # Errors
    /// After any error the connection is to be dropped.
    pub fn exchange(
        &mut self,
        request: &Request,
        payload: &[&[u8]],
        give_up: GiveUp<'_>,
    ) -> Result<(Reply, Bytes), Lost> {
        let began = Instant::now();
        let is_relayed = self.is_relayed;
        let relay_is_silent = || is_relayed && began.elapsed() >= RELAY_TIMEOUT;
        let give_up = || relay_is_silent() || give_up();
        let mut patient = Patient {
            reader: &mut self.reader,
            give_up: &give_up,
        };
        let outcome = frame::send(&mut patient, Kind::Request, request, payload)
            .and_then(|()| frame::receive(&mut patient))
            .and_then(|frame| frame.decode::<Reply>().map(|reply| (reply, frame)));
        let (reply, frame) = outcome.map_err(|source| self.lost(source))?;
        if frame.kind != Kind::Reply || reply.slot != request.slot || reply.seq != request.seq {
            return Err(self.refused("it answered something that was not asked".to_owned()));
        }
        Ok((reply, frame.payload))
    }

    /// What the brick and the copies in sync with it write through: the brick's comes first.
    pub fn page_caches(&self) -> &[PageCache] {
        &self.page_caches
    }

    /// Whether it goes through another host.
    pub fn is_relayed(&self) -> bool {
        self.is_relayed
    }

    /// Whether the other end still has it open and has said nothing: looked at without waiting.
    pub fn is_open(&self) -> bool {
        let mut byte = [MaybeUninit::uninit(); 1];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        let peeked =
            socket2::SockRef::from(self.reader.get_ref()).recv_with_flags(&mut byte, flags);
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    fn greet(&mut self, hello: &Hello, brick: BrickId, give_up: GiveUp<'_>) -> Result<(), Lost> {
        let deadline = Instant::now() + HELLO_TIMEOUT;
        let late = || Instant::now() >= deadline || give_up();
        let mut patient = Patient {
            reader: &mut self.reader,
            give_up: &late,
        };
        let outcome = frame::send(&mut patient, Kind::Hello, hello, &[])
            .and_then(|()| frame::receive(&mut patient))
            .and_then(|frame| frame.decode::<Hello>().map(|hello| (frame.kind, hello)));
        let (kind, answer) = match outcome {
            Ok(outcome) => outcome,
            Err(error @ FrameError::Version { .. }) => {
                return Err(self.refused(format!("{error}; install the same version on both")));
            }
            Err(source) => return Err(self.unanswered(source)),
        };
        if kind != Kind::Hello {
            return Err(self.refused("it did not greet".to_owned()));
        }
        if !answer.refusal.is_empty() {
            return Err(self.refused(answer.refusal));
        }
        if answer.from_brick != 0 && answer.from_brick != brick.0 {
            return Err(self.refused("another brick answers there".to_owned()));
        }
        self.page_caches = answer.page_caches;
        Ok(())
    }

    fn refused(&self, reason: String) -> Lost {
        Lost::Refused {
            address: self.address.clone(),
            reason,
        }
    }

    fn unanswered(&self, source: FrameError) -> Lost {
        let source = match source {
            FrameError::Io(source) => source,
            other => io::Error::other(other.to_string()),
        };
        Lost::Connect {
            address: self.address.clone(),
            source,
        }
    }

    fn lost(&self, source: FrameError) -> Lost {
        match source {
            FrameError::Io(error) if error.kind() == io::ErrorKind::TimedOut => Lost::GivenUp {
                address: self.address.clone(),
            },
            source => Lost::Broken {
                address: self.address.clone(),
                source,
            },
        }
    }
}

/// Tries each address of the host.
fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TICK))?;
    stream.set_write_timeout(Some(TICK))?;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(PROBE_AFTER)
        .with_interval(Duration::from_secs(1))
        .with_retries(PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

/// Reads and writes across the socket's short timeouts until the caller gives up, so that a frame
/// is never cut in two by one of them.
struct Patient<'a> {
    reader: &'a mut BufReader<TcpStream>,
    give_up: GiveUp<'a>,
}

impl Patient<'_> {
    fn insist(
        &mut self,
        mut step: impl FnMut(&mut BufReader<TcpStream>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match step(self.reader) {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    if error.raw_os_error() == Some(libc::ETIMEDOUT) {
                        // The kernel's own verdict on the connection, not our tick.
                        return Err(io::ErrorKind::ConnectionAborted.into());
                    }
                    if (self.give_up)() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome,
            }
        }
    }
}

impl Read for Patient<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.insist(|reader| reader.read(into))
    }
}

impl Write for Patient<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.insist(|reader| reader.get_mut().write(bytes))
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.insist(|reader| reader.get_mut().write_vectored(parts))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// The kernel of a host that stands still goes on confirming: a request over it was awaited for
    /// as long as it stood still.
    #[test]
    fn a_relay_that_says_nothing_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let host = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let hello: Hello = frame::receive(&mut stream).unwrap().decode().unwrap();
            let answer = Hello {
                wire_version: WIRE_VERSION,
                from_brick: hello.to_brick,
                ..Default::default()
            };
            frame::send(&mut stream, Kind::Hello, &answer, &[]).unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).unwrap()
        });
        let relay = BrickAddress {
            brick: BrickId(1),
            host: "127.0.0.1".to_owned(),
            port,
        };
        let mut connection =
            Connection::open_through(&relay, BrickId(2), &[7; 16], 5, &|| false).unwrap();
        assert!(connection.is_relayed() && connection.is_open());
        let began = Instant::now();
        let lost = connection.exchange(&Request::default(), &[], &|| false);
        assert!(matches!(lost, Err(Lost::GivenUp { .. })), "{lost:?}");
        assert!((RELAY_TIMEOUT..RELAY_TIMEOUT * 3).contains(&began.elapsed()));
        drop(connection);
        assert!(host.join().unwrap() > 0, "the request was sent");
    }
}
