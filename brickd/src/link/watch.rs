//! The watch: how one process learns for certain that another has died.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mortar_common::{Incarnation, PeerId};
use mortar_proto::data::Role;
use mortar_proto::frame::FrameError;
use tracing::debug;

use super::connect::{Hail, Stop, open};
use super::{Events, HEARTBEAT_MS, SILENCE_MS};

/// A watch that could not be opened is tried again after this.
const RETRY: Duration = Duration::from_millis(100);
/// After a FIN the proof is sought this often, while connects neither succeed nor are refused.
const PROOF_TRIES: u32 = 3;

/// Sends heartbeats until the watcher goes away.
pub(super) fn serve(mut connection: TcpStream) -> Result<(), FrameError> {
    loop {
        connection.write_all(&[0])?;
        std::thread::sleep(Duration::from_millis(HEARTBEAT_MS));
    }
}

pub(super) fn start(id: PeerId, hail: Hail, events: Arc<dyn Events>, stop: Arc<Stop>) {
    let name = format!("watch-{}", hail.host);
    let watcher = Watcher {
        id,
        hail,
        events,
        stop,
    };
    std::thread::Builder::new()
        .name(name)
        .stack_size(256 << 10)
        .spawn(move || watcher.run())
        .map(drop)
        .unwrap_or_else(|error| tracing::error!(%error, "no thread for a watch"));
}

struct Watcher {
    id: PeerId,
    hail: Hail,
    events: Arc<dyn Events>,
    stop: Arc<Stop>,
}

/// How a watch ended.
enum Ended {
    Fin,
    Broken,
    Silent,
}

impl Watcher {
    fn run(&self) {
        let mut known: Option<Incarnation> = None;
        let mut said_unreachable = false;
        while !self.stop.is_stopped() {
            match self.open() {
                Ok((connection, process)) => {
                    if let Some(old) = known.filter(|old| *old != process) {
                        self.events.died(self.id, old, true);
                    }
                    known = Some(process);
                    said_unreachable = false;
                    self.events.reachable(self.id, process);
                    let ended = self.listen(connection);
                    if matches!(ended, Ended::Fin) && self.refused() {
                        self.events.died(self.id, process, false);
                        known = None;
                        said_unreachable = true;
                    }
                }
                Err(error) => debug!(host = self.hail.host, %error, "no watch"),
            }
            if !said_unreachable {
                said_unreachable = true;
                self.events.unreachable(self.id);
            }
            if self.stop.sleep(RETRY) {
                return;
            }
        }
    }

    fn open(&self) -> Result<(TcpStream, Incarnation), FrameError> {
        let (connection, answer) = open(&self.hail, &self.hail.hello(Role::Watch))?;
        if !answer.refusal.is_empty() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, answer.refusal).into());
        }
        Ok((connection, Incarnation(answer.from_incarnation)))
    }

    fn listen(&self, mut connection: TcpStream) -> Ended {
        let mut beats = [0; 64];
        let mut heard_at = Instant::now();
        let poll = Duration::from_millis(HEARTBEAT_MS);
        if connection.set_read_timeout(Some(poll)).is_err() {
            return Ended::Broken;
        }
        while !self.stop.is_stopped() {
            match connection.read(&mut beats) {
                Ok(0) => return Ended::Fin,
                Ok(_) => heard_at = Instant::now(),
                Err(error) if is_timeout(&error) => {
                    if heard_at.elapsed() > Duration::from_millis(SILENCE_MS) {
                        return Ended::Silent;
                    }
                }
                Err(_) => return Ended::Broken,
            }
        }
        Ended::Broken
    }

    /// After a FIN: whether the host now says that nobody listens.
    fn refused(&self) -> bool {
        for _ in 0..PROOF_TRIES {
            match self.open() {
                Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    return true;
                }
                Ok(_) => return false,
                Err(_) => {}
            }
        }
        false
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
