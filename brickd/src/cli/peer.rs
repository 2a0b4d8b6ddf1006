//! `mortar peer …` and `mortar pool list`.

use std::fmt::Write;

use mortar_common::PeerId;
use mortar_proto::control::{Empty, PeerDetachRequest, PeerName, PeerState, PeerStatusReply};
use serde_json::{Value, json};

use super::connect::Session;
use super::grammar::{PeerCommand, PoolCommand};
use super::keywords::{self, Force};
use super::{Failure, Report, finish};

/// The hostname column of `pool list` is at least this wide.
const HOST_WIDTH_MIN: usize = 8;

/// Runs `mortar peer …`.
pub async fn run(command: PeerCommand, session: &Session<'_>) -> Result<Report, Failure> {
    match command {
        PeerCommand::Probe { peer } => {
            let mut client = session.client().await?;
            let done = session
                .call(client.peer_probe(PeerName { host: peer }))
                .await?;
            if !done.failed && !done.message.is_empty() {
                return Ok(Report::words(format!("peer probe: {}", done.message)));
            }
            finish("peer probe", done)
        }
        PeerCommand::Detach { peer, words } => {
            let force = keywords::force(&words)? == Force::Yes;
            let mut client = session.client().await?;
            let request = PeerDetachRequest { host: peer, force };
            finish(
                "peer detach",
                session.call(client.peer_detach(request)).await?,
            )
        }
        PeerCommand::Status => {
            let reply = status(session).await?;
            Ok(Report::new(status_text(&reply), to_json(&reply)))
        }
    }
}

/// Runs `mortar pool …`.
pub async fn pool(command: PoolCommand, session: &Session<'_>) -> Result<Report, Failure> {
    match command {
        PoolCommand::List => {
            let reply = status(session).await?;
            Ok(Report::new(pool_text(&reply), to_json(&reply)))
        }
    }
}

async fn status(session: &Session<'_>) -> Result<PeerStatusReply, Failure> {
    let mut client = session.client().await?;
    session.call(client.peer_status(Empty {})).await
}

fn status_text(reply: &PeerStatusReply) -> String {
    let others: Vec<&PeerState> = reply.peers.iter().filter(|state| !state.local).collect();
    let mut text = format!("Number of Peers: {}\n", others.len());
    for state in others {
        let peer = state.peer.clone().unwrap_or_default();
        let _ = write!(
            text,
            "\nHostname: {}\nUuid: {}\nState: {} ({})\n",
            peer.host,
            peer.uuid,
            state.state,
            connected(state)
        );
        if !peer.other_names.is_empty() {
            let _ = writeln!(text, "Other names:\n{}", peer.other_names.join("\n"));
        }
    }
    text
}

fn pool_text(reply: &PeerStatusReply) -> String {
    let rows: Vec<(String, &str, &str)> = reply
        .peers
        .iter()
        .map(|state| {
            let peer = state.peer.as_ref();
            let uuid = peer.map_or(String::new(), |peer| peer.uuid.clone());
            let host = match (state.local, peer) {
                (true, _) => "localhost",
                (false, Some(peer)) => peer.host.as_str(),
                (false, None) => "",
            };
            (uuid, host, connected(state))
        })
        .collect();
    let longest = rows.iter().map(|(_, host, _)| host.len()).max();
    let width = longest.unwrap_or(0).max(HOST_WIDTH_MIN);
    let mut text = format!("UUID\t\t\t\t\t{:<width$}\tState\n", "Hostname");
    for (uuid, host, state) in rows {
        let _ = writeln!(text, "{uuid}\t{host:<width$}\t{state}");
    }
    text
}

/// `{"peers": [{id, uuid, host, port, other_names, state, connected, local}]}`
fn to_json(reply: &PeerStatusReply) -> Value {
    let peers = reply.peers.iter().map(|state| {
        let peer = state.peer.clone().unwrap_or_default();
        json!({
            "id": PeerId(peer.id).to_string(),
            "uuid": peer.uuid,
            "host": peer.host,
            "port": peer.port,
            "other_names": peer.other_names,
            "state": state.state,
            "connected": state.connected,
            "local": state.local,
        })
    });
    json!({ "peers": peers.collect::<Vec<Value>>() })
}

fn connected(state: &PeerState) -> &'static str {
    if state.connected {
        "Connected"
    } else {
        "Disconnected"
    }
}
