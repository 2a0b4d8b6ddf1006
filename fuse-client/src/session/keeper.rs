//! Keeps the session alive: one thread a brick tells it every second that this client lives and
//! whom it takes for primary. What the bricks answer is how a frozen primary's successor is found.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use mortar_common::BrickId;
use mortar_proto::data::{Caller, KeepAlive, Op, ReplyStatus, Request, op};

use super::{End, Session, Waiting};
use crate::connection::Connection;
use crate::view::{BrickAddress, Volume, VolumeView};

/// A session expires after about 8 s of silence; this leaves room for seven lost messages.
const EVERY: Duration = Duration::from_secs(1);
/// While no primary answers, the bricks are asked this often who it is.
const EVERY_IN_TROUBLE: Duration = Duration::from_millis(200);
/// No answer from a primary for this long is trouble.
const TROUBLE_MS: u64 = 1_500;
/// A brick that does not answer a keep-alive within this is asked again later.
const PATIENCE: Duration = Duration::from_secs(1);

/// Starts the threads; they end with the session.
pub fn start(session: &Arc<Session>) -> std::io::Result<()> {
    let weak = Arc::downgrade(session);
    std::thread::Builder::new()
        .name("keeper".to_owned())
        .spawn(move || follow_view(&weak))?;
    Ok(())
}

/// Has a thread for each brick of the view.
fn follow_view(weak: &Weak<Session>) {
    let mut kept: Vec<BrickId> = Vec::new();
    while let Some(session) = alive(weak) {
        if let Volume::Present(volume) = session.view.current().0 {
            kept.retain(|kept| volume.bricks.iter().any(|address| address.brick == *kept));
            for address in &volume.bricks {
                if kept.contains(&address.brick) {
                    continue;
                }
                let (weak, brick) = (weak.clone(), address.brick);
                let thread = std::thread::Builder::new().name("keeper-brick".to_owned());
                match thread.spawn(move || keep(&weak, brick)) {
                    Ok(_) => kept.push(brick),
                    Err(error) => tracing::error!("cannot start a thread: {error}"),
                }
            }
        } else {
            kept.clear();
        }
        session.route.sleep(EVERY);
    }
}

/// Talks to one brick for as long as it belongs to the volume.
fn keep(weak: &Weak<Session>, brick: BrickId) {
    let mut connection: Option<(u64, Connection)> = None;
    loop {
        let Some(session) = alive(weak) else { return };
        let Volume::Present(volume) = session.view.current().0 else {
            return;
        };
        let Some(address) = volume.bricks.iter().find(|address| address.brick == brick) else {
            return;
        };
        let began = Instant::now();
        connection = talk(&session, &volume, address, connection);
        let (_, silent_ms) = session.route.heard();
        let every = if silent_ms > TROUBLE_MS {
            EVERY_IN_TROUBLE
        } else {
            EVERY
        };
        while began.elapsed() < every && !session.is_closing() {
            session
                .route
                .sleep(every.saturating_sub(began.elapsed()).min(EVERY_IN_TROUBLE));
        }
    }
}

/// One keep-alive; returns the connection if it is still good.
fn talk(
    session: &Arc<Session>,
    volume: &VolumeView,
    address: &BrickAddress,
    connection: Option<(u64, Connection)>,
) -> Option<(u64, Connection)> {
    let life = session.life();
    let gives_up = Instant::now() + PATIENCE * 3;
    let give_up = || Instant::now() >= gives_up || session.is_closing();
    let connection = connection.filter(|(of, _)| *of == life.id());
    let mut connection = match session.connect_straight(&volume.id, address, life.id()) {
        Some(straight) => straight,
        None => match connection {
            Some((_, connection)) => connection,
            None => session.connect(volume, address, life.id(), &give_up).ok()?,
        },
    };
    let (primary, heard_ms_ago) = session.route.heard();
    let keepalive = KeepAlive {
        primary: primary.map_or(0, |primary| primary.0),
        heard_ms_ago: heard_ms_ago.min(u64::from(u32::MAX)) as u32,
    };
    let request = Request {
        session: life.id(),
        caller: Some(Caller::default()),
        ops: vec![Op {
            op: Some(op::Op::Keepalive(keepalive)),
        }],
        ..Default::default()
    };
    let deadline = Instant::now() + PATIENCE;
    let give_up = || Instant::now() >= deadline || session.is_closing();
    let (reply, _) = connection.exchange(&request, &[], &give_up).ok()?;
    match reply.status() {
        ReplyStatus::ReplyOk => session.route.confirm(address.brick, reply.epoch.as_ref()),
        ReplyStatus::ReplyNotPrimary | ReplyStatus::ReplyNotReady => {
            session.route.hint(reply.primary, reply.epoch.as_ref());
        }
        status @ (ReplyStatus::ReplyFenced | ReplyStatus::ReplyUnknownSession) => {
            let end = match status {
                ReplyStatus::ReplyFenced => End::Expired,
                _ => End::Forgotten,
            };
            let waiting = Waiting::until(Instant::now() + PATIENCE * 5);
            if let Err(error) = session.renew(&life, end, &waiting) {
                tracing::debug!("no new session yet: {error}");
            }
        }
        ReplyStatus::ReplyMalformed => {
            tracing::error!(
                "{address} does not understand a keep-alive: {}",
                reply.reason
            );
        }
    }
    Some((life.id(), connection))
}

fn alive(weak: &Weak<Session>) -> Option<Arc<Session>> {
    weak.upgrade().filter(|session| !session.is_closing())
}
