//! The sending side of a link: one thread, one connection, messages in their order.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use mortar_proto::data::{LinkMessage, Role};
use mortar_proto::frame::{self, Kind};
use socket2::SockRef;
use tracing::debug;

use super::SILENCE_MS;
use super::connect::{CONNECT_TIMEOUT, Hail, Stop, open};

/// A connect that failed is not tried again before this.
const RETRY: Duration = Duration::from_millis(100);
/// A link whose messages are not acknowledged for this long is given up and made anew. The kernel
/// would send them again at ever longer intervals, so that after a minute's silence of the network
/// nothing would pass for another minute.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_millis(SILENCE_MS);
/// How often an idle thread looks whether it should end.
const IDLE: Duration = Duration::from_millis(500);

pub(super) fn start(hail: Hail, messages: Receiver<LinkMessage>, stop: Arc<Stop>) {
    std::thread::Builder::new()
        .name(format!("link-{}", hail.host))
        .stack_size(256 << 10)
        .spawn(move || run(&hail, &messages, &stop))
        .map(drop)
        .unwrap_or_else(|error| tracing::error!(%error, "no thread for a link"));
}

fn run(hail: &Hail, messages: &Receiver<LinkMessage>, stop: &Stop) {
    let mut connection: Option<TcpStream> = None;
    let mut failed_at: Option<Instant> = None;
    while !stop.is_stopped() {
        let message = match messages.recv_timeout(IDLE) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if connection.is_none() && failed_at.is_none_or(|at| at.elapsed() >= RETRY) {
            connection = connect(hail);
            failed_at = connection.is_none().then(Instant::now);
        }
        if let Some(open) = &mut connection
            && let Err(error) = frame::send(open, Kind::Link, &message, &[])
        {
            debug!(host = hail.host, %error, "a link broke");
            connection = None;
        }
    }
}

fn connect(hail: &Hail) -> Option<TcpStream> {
    match open(hail, &hail.hello(Role::Link)) {
        Ok((connection, answer)) if answer.refusal.is_empty() => {
            connection.set_write_timeout(Some(CONNECT_TIMEOUT)).ok()?;
            let socket = SockRef::from(&connection);
            socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX)).ok()?;
            Some(connection)
        }
        Ok((_, answer)) => {
            debug!(host = hail.host, answer.refusal, "the link was refused");
            None
        }
        Err(error) => {
            debug!(host = hail.host, %error, "no link");
            None
        }
    }
}
