//! `mortar registry …`.

use std::fmt::Write;

use mortar_common::PeerId;
use mortar_proto::control::{Empty, RegistryMember, RegistryRecoverRequest, RegistryStatusReply};
use serde_json::{Value, json};

use super::connect::Session;
use super::grammar::RegistryCommand;
use super::{Failure, Report, finish};

/// Runs `mortar registry …`.
pub async fn run(command: RegistryCommand, session: &Session<'_>) -> Result<Report, Failure> {
    match command {
        RegistryCommand::Status => {
            let mut client = session.client().await?;
            let reply = session.call(client.registry_status(Empty {})).await?;
            Ok(Report::new(text(&reply), to_json(&reply)))
        }
        RegistryCommand::Recover { force } => {
            if !force {
                return Err(Failure(
                    "registry recover: failed: it begins a new pool from this peer's state alone \
                     and forgets what only the others know: add --force if they are lost for good"
                        .to_owned(),
                ));
            }
            let mut client = session.client().await?;
            let request = RegistryRecoverRequest { force };
            finish(
                "registry recover",
                session.call(client.registry_recover(request)).await?,
            )
        }
    }
}

fn text(reply: &RegistryStatusReply) -> String {
    let voters: Vec<&RegistryMember> = reply.members.iter().filter(|m| m.voter).collect();
    let reachable = voters.iter().filter(|member| member.reachable).count();
    let mut text = format!(
        "State: {}\nLeader: {}\nTerm: {}\nApplied: {} of {}\nSnapshot: {}\nGeneration: {}\n\
         Voters: {} ({reachable} reachable)\n\n",
        reply.state,
        leader(reply),
        reply.term,
        reply.applied,
        reply.last_log,
        reply.snapshot,
        reply.generation,
        voters.len(),
    );
    let width = reply
        .members
        .iter()
        .map(|member| member.host.len())
        .max()
        .unwrap_or(0)
        .max(8);
    let _ = writeln!(
        text,
        "{:<width$} {:<8} {:<9} {:>10} {:>8}  Id",
        "Hostname", "Role", "Reachable", "Matched", "Lag"
    );
    for member in &reply.members {
        let _ = writeln!(
            text,
            "{:<width$} {:<8} {:<9} {:>10} {:>8}  {}",
            member.host,
            if member.voter { "voter" } else { "learner" },
            if member.reachable { "Y" } else { "N" },
            member.matched,
            member.lag,
            PeerId(member.id)
        );
    }
    text
}

fn leader(reply: &RegistryStatusReply) -> String {
    match reply
        .members
        .iter()
        .find(|member| member.id == reply.leader)
    {
        Some(member) => member.host.clone(),
        None if reply.leader == 0 => "nobody".to_owned(),
        None => PeerId(reply.leader).to_string(),
    }
}

/// `{local, leader (null = nobody), term, applied, last_log, snapshot, generation, state,
/// members: [{id, host, voter, matched, lag, reachable}]}`
fn to_json(reply: &RegistryStatusReply) -> Value {
    let members = reply.members.iter().map(|member| {
        json!({
            "id": PeerId(member.id).to_string(),
            "host": member.host,
            "voter": member.voter,
            "matched": member.matched,
            "lag": member.lag,
            "reachable": member.reachable,
        })
    });
    json!({
        "local": PeerId(reply.local).to_string(),
        "leader": (reply.leader != 0).then(|| PeerId(reply.leader).to_string()),
        "term": reply.term,
        "applied": reply.applied,
        "last_log": reply.last_log,
        "snapshot": reply.snapshot,
        "generation": reply.generation,
        "state": reply.state,
        "members": members.collect::<Vec<Value>>(),
    })
}
