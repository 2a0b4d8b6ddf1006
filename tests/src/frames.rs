//! A client that says what no client would: raw frames to a brick.

use std::net::TcpStream;
use std::time::Duration;

use mortar_common::Gfid;
use mortar_proto::data::{
    Caller, Create, Hello, KeepAlive, Lookup, Op, Reply, Request, Role, SessionOpen, Unlink, op,
};
use mortar_proto::frame::{self, Frame, FrameError, Kind};
use mortar_proto::registry::Volume;

use crate::cluster::Host;

const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A connection to a brick with a session of its own.
pub struct RawClient {
    stream: TcpStream,
    session: u64,
    seq: u64,
    again: bool,
}

impl RawClient {
    /// Connects from `host` to its own brick of `volume` and opens a session.
    ///
    /// # Panics
    /// When the brick refuses.
    #[track_caller]
    pub fn open(host: &Host, volume: &Volume) -> Self {
        let session = rand::random::<u64>().max(1);
        let mut client = RawClient::connect(host, volume, primary_of(volume), session);
        let open = SessionOpen {
            host: host.name.clone(),
            pid: 1,
            mount_point: "/raw".to_owned(),
        };
        let reply = client
            .request(op::Op::SessionOpen(open))
            .expect("a session");
        assert_eq!(
            reply.results.first().map(|result| result.errno),
            Some(0),
            "{reply:?}"
        );
        client
    }

    /// Another connection of the same session, to `brick` on `host`.
    ///
    /// # Panics
    /// When the brick refuses.
    #[track_caller]
    pub fn beside(&self, host: &Host, volume: &Volume, brick: u64) -> Self {
        RawClient::connect(host, volume, brick, self.session)
    }

    #[track_caller]
    fn connect(host: &Host, volume: &Volume, brick: u64, session: u64) -> Self {
        let stream = host.connect(ANSWER_WITHIN).expect("a connection to brickd");
        let answer = hello(&stream, &client_hello(volume, brick, session));
        let answer = answer.expect("an answer to the hello");
        assert_eq!(answer.refusal, "", "the brick refuses");
        RawClient {
            stream,
            session,
            seq: 0,
            again: false,
        }
    }

    /// What it sends from now on was sent before, it says.
    pub fn say_again(&mut self) {
        self.again = true;
    }

    /// One operation and its answer.
    ///
    /// # Errors
    /// When the brick closes the connection instead of answering.
    pub fn request(&mut self, op: op::Op) -> Result<Reply, FrameError> {
        self.seq += 1;
        self.request_as((0, self.seq), op)
    }

    /// One operation under this (slot, seq) and its answer.
    ///
    /// # Errors
    /// When the brick closes the connection instead of answering.
    pub fn request_as(&mut self, (slot, seq): (u32, u64), op: op::Op) -> Result<Reply, FrameError> {
        let request = Request {
            session: self.session,
            slot,
            seq,
            epoch: None,
            caller: Some(Caller::default()),
            ops: vec![Op { op: Some(op) }],
            again: self.again,
            ..Default::default()
        };
        frame::send(&mut self.stream, Kind::Request, &request, &[])?;
        frame::receive(&mut self.stream)?.decode()
    }

    /// Asks for a regular file of that name in the root; the errno, 0 when it was made, or
    /// [`None`] when the request was called malformed or the connection was closed.
    pub fn create(&mut self, name: &[u8]) -> Option<i32> {
        self.seq += 1;
        self.create_as((0, self.seq), name)
    }

    /// [`RawClient::create`] under this (slot, seq).
    pub fn create_as(&mut self, number: (u32, u64), name: &[u8]) -> Option<i32> {
        let (slot, seq) = (u64::from(number.0), number.1);
        let create = Create {
            parent: Some(Gfid::ROOT),
            name: name.to_vec().into(),
            gfid: Some(Gfid::new(
                mortar_common::placement::name_slot(Gfid::ROOT, name),
                seq,
                slot << 32 | 99,
            )),
            mode: 0o100_644,
            exclusive: true,
            ..Default::default()
        };
        let reply = self.request_as(number, op::Op::Create(create)).ok()?;
        reply.results.first().map(|result| result.errno)
    }

    /// Removes a name from the root under this (slot, seq); the errno, 0 when it is gone.
    pub fn unlink_as(&mut self, number: (u32, u64), name: &[u8]) -> Option<i32> {
        let lookup = Lookup {
            parent: Some(Gfid::ROOT),
            name: name.to_vec().into(),
        };
        let found = self.request_as((0, 0), op::Op::Lookup(lookup)).ok()?;
        let unlink = Unlink {
            parent: Some(Gfid::ROOT),
            name: name.to_vec().into(),
            gfid: found.results.first()?.objects.first()?.gfid,
        };
        let reply = self.request_as(number, op::Op::Unlink(unlink)).ok()?;
        reply.results.first().map(|result| result.errno)
    }

    /// Whether the brick still answers this session.
    pub fn is_served(&mut self) -> bool {
        self.request(op::Op::Keepalive(KeepAlive::default()))
            .is_ok()
    }
}

/// The greeting of a client of this version.
pub fn client_hello(volume: &Volume, brick: u64, session: u64) -> Hello {
    Hello {
        wire_version: mortar_proto::WIRE_VERSION,
        role: Role::Client.into(),
        volume: volume.id.clone().into(),
        to_brick: brick,
        session,
        ..Default::default()
    }
}

/// The primary brick's id.
///
/// # Panics
/// When the volume has none.
#[track_caller]
pub fn primary_of(volume: &Volume) -> u64 {
    volume.sets[0].epoch.as_ref().expect("an epoch").primary
}

/// An in-sync brick's id that is not the primary's.
///
/// # Panics
/// When there is none.
#[track_caller]
pub fn backup_of(volume: &Volume) -> u64 {
    let epoch = volume.sets[0].epoch.as_ref().expect("an epoch");
    let mut copies = epoch.in_sync.iter().map(|copy| copy.brick);
    copies
        .find(|brick| *brick != epoch.primary)
        .expect("a backup")
}

/// Sends a greeting and reads the answer.
///
/// # Errors
/// When the other side closes instead, or does not answer in time.
pub fn hello(mut stream: &TcpStream, hello: &Hello) -> Result<Hello, FrameError> {
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    frame::send(&mut stream, Kind::Hello, hello, &[])?;
    let answer: Frame = frame::receive(&mut stream)?;
    answer.decode()
}
