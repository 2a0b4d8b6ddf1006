//! `mortar volume …`, but for status, heal and check.

use std::collections::HashMap;
use std::fmt::Write;

use mortar_common::name::volume_name_refusal;
use mortar_common::{BrickId, Incarnation, VolumeId};
use mortar_proto::control::{
    Empty, VolumeName, VolumeReplaceBrickRequest, VolumeResetBrickRequest, VolumeResetRequest,
    VolumeSetRequest, VolumeStartRequest,
};
use mortar_proto::registry::{BrickStatus, Epoch, ReplicaSet, View, Volume, VolumeStatus};
use serde_json::{Map, Value, json};

use super::connect::Session;
use super::grammar::VolumeCommand;
use super::keywords::{self, Force};
use super::{Failure, Report, check, finish, heal, volume_status};
use crate::admin::options::{self, Spec, TABLE};

const STOP_QUESTION: &str =
    "Stopping volume will make its data inaccessible. Do you want to continue?";
const DELETE_QUESTION: &str =
    "Deleting volume will erase all information about the volume. Do you want to continue?";
const TWO_VOTERS_QUESTION: &str = "Replica 2 volumes in a pool of two voters are prone to \
    split-brain: if the two hosts lose sight of each other, each may go on alone. A third peer as \
    witness prevents this; it needs no brick ('mortar peer probe HOST'). Do you still want to \
    continue?";
/// With this many voters or more, one of them can break the tie.
const VOTERS_SAFE: usize = 3;

/// Runs `mortar volume …`.
pub async fn run(command: VolumeCommand, session: &Session<'_>) -> Result<Report, Failure> {
    match command {
        VolumeCommand::Create { name, words } => create(&name, &words, session).await,
        VolumeCommand::Start { name, words } => start(name, &words, session).await,
        VolumeCommand::Stop { name, words } => stop(name, &words, session).await,
        VolumeCommand::Delete { name, words } => delete(name, &words, session).await,
        VolumeCommand::Info { name } => info(name, session).await,
        VolumeCommand::List => list(session).await,
        VolumeCommand::Status { words } => volume_status::run(&words, session).await,
        VolumeCommand::Set { name, pairs } => set(name, &pairs, session).await,
        VolumeCommand::Get { name, key } => get(&name, &key, session).await,
        VolumeCommand::Reset { name, words } => reset(name, &words, session).await,
        VolumeCommand::ReplaceBrick { name, words } => replace_brick(name, &words, session).await,
        VolumeCommand::ResetBrick { name, words } => reset_brick(name, &words, session).await,
        VolumeCommand::Heal { name, words } => heal::run(name, &words, session).await,
        VolumeCommand::Check { name } => check::run(name, session).await,
    }
}

/// Refuses what cannot be a volume's name before anybody is asked.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), Failure> {
    match volume_name_refusal(name) {
        Some(refusal) => Err(Failure(format!("{what}: failed: {refusal}"))),
        None => Ok(()),
    }
}

/// The brick as it is named everywhere.
pub(super) fn brick_name(host: &str, path: &str) -> String {
    format!("{host}:{path}")
}

/// The status as gluster names it.
pub(super) fn status_word(volume: &Volume) -> &'static str {
    match volume.status() {
        VolumeStatus::VolumeCreated => "Created",
        VolumeStatus::VolumeStarted => "Started",
        VolumeStatus::VolumeStopped => "Stopped",
    }
}

async fn create(name: &str, words: &[String], session: &Session<'_>) -> Result<Report, Failure> {
    let what = format!("volume create: {name}");
    let request = keywords::create(name, words)
        .map_err(|failure| Failure(format!("{what}: failed: {failure}")))?;
    let mut client = session.client().await?;
    if request.replica == 2 && !request.force {
        let view = session.call(client.get_view(Empty {})).await?;
        if view.peers.len() < VOTERS_SAFE {
            session.asker().confirm(&what, TWO_VOTERS_QUESTION)?;
        }
    }
    finish(&what, session.call(client.volume_create(request)).await?)
}

async fn start(name: String, words: &[String], session: &Session<'_>) -> Result<Report, Failure> {
    let what = format!("volume start: {name}");
    check_name(&what, &name)?;
    let (force, trusted) = keywords::start(words)?;
    let request = VolumeStartRequest {
        volume: name,
        force: force == Force::Yes,
        trusted_brick: trusted.map(|brick| brick.to_string()).unwrap_or_default(),
    };
    let mut client = session.client().await?;
    finish(&what, session.call(client.volume_start(request)).await?)
}

async fn stop(name: String, words: &[String], session: &Session<'_>) -> Result<Report, Failure> {
    let what = format!("volume stop: {name}");
    check_name(&what, &name)?;
    if keywords::force(words)? == Force::No {
        session.asker().confirm(&what, STOP_QUESTION)?;
    }
    let mut client = session.client().await?;
    finish(
        &what,
        session
            .call(client.volume_stop(VolumeName { volume: name }))
            .await?,
    )
}

async fn delete(name: String, words: &[String], session: &Session<'_>) -> Result<Report, Failure> {
    let what = format!("volume delete: {name}");
    check_name(&what, &name)?;
    if keywords::force(words)? == Force::No {
        session.asker().confirm(&what, DELETE_QUESTION)?;
    }
    let mut client = session.client().await?;
    finish(
        &what,
        session
            .call(client.volume_delete(VolumeName { volume: name }))
            .await?,
    )
}

async fn view(session: &Session<'_>) -> Result<View, Failure> {
    let mut client = session.client().await?;
    session.call(client.get_view(Empty {})).await
}

fn sorted(view: &View) -> Vec<&Volume> {
    let mut volumes: Vec<&Volume> = view.volumes.values().collect();
    volumes.sort_by(|one, other| one.name.cmp(&other.name));
    volumes
}

async fn list(session: &Session<'_>) -> Result<Report, Failure> {
    let view = view(session).await?;
    let names: Vec<&str> = sorted(&view)
        .iter()
        .map(|volume| volume.name.as_str())
        .collect();
    let text = if names.is_empty() {
        "No volumes present in cluster\n".to_owned()
    } else {
        names.join("\n") + "\n"
    };
    Ok(Report::new(text, json!({ "volumes": names })))
}

async fn info(name: Option<String>, session: &Session<'_>) -> Result<Report, Failure> {
    let view = view(session).await?;
    let volumes = match name.as_deref() {
        None | Some("all") => sorted(&view),
        Some(name) => vec![find(&view, name)?],
    };
    let text = if volumes.is_empty() {
        "No volumes present\n".to_owned()
    } else {
        volumes
            .iter()
            .map(|volume| info_text(&view, volume))
            .collect()
    };
    let json: Vec<Value> = volumes
        .iter()
        .map(|volume| info_json(&view, volume))
        .collect();
    Ok(Report::new(text, json!({ "volumes": json })))
}

fn find<'a>(view: &'a View, name: &str) -> Result<&'a Volume, Failure> {
    view.volumes
        .get(name)
        .ok_or_else(|| Failure(format!("Volume {} does not exist", name.escape_debug())))
}

fn info_text(view: &View, volume: &Volume) -> String {
    let count = volume.bricks.len();
    let shape = match volume.replica {
        0 | 1 => count.to_string(),
        replica => format!("{} x {replica} = {count}", volume.sets.len()),
    };
    let id = VolumeId::from_slice(&volume.id).map_or(String::new(), |id| id.to_string());
    let mut text = format!(
        " \nVolume Name: {}\nType: {}\nVolume ID: {id}\nStatus: {}\nSnapshot Count: 0\n\
         Number of Bricks: {shape}\nTransport-type: tcp\nBricks:\n",
        volume.name,
        type_word(volume),
        status_word(volume),
    );
    for (at, brick) in volume.bricks.iter().enumerate() {
        let host = host_of(view, brick.peer);
        let stopped = match brick.status() {
            BrickStatus::BrickUp => "",
            BrickStatus::BrickDown => " (stopped)",
        };
        let _ = writeln!(
            text,
            "Brick{}: {}{stopped}",
            at + 1,
            brick_name(host, &brick.path)
        );
    }
    let mut options: Vec<(&String, &String)> = volume.options.iter().collect();
    options.sort();
    if !options.is_empty() {
        text.push_str("Options Reconfigured:\n");
    }
    for (key, value) in options {
        let _ = writeln!(text, "{key}: {value}");
    }
    text
}

/// `{"volumes": [{name, id, type, status, replica, transport, bricks: [{id, name, host, path,
/// status}], options: {}, sets: [{index, bricks, epoch: {number, id, primary, in_sync: [{brick,
/// incarnation}]}}]}]}`; ids are hexadecimal text, primary is null when nobody serves.
fn info_json(view: &View, volume: &Volume) -> Value {
    let bricks = volume.bricks.iter().map(|brick| {
        let host = host_of(view, brick.peer);
        json!({
            "id": BrickId(brick.id).to_string(),
            "name": brick_name(host, &brick.path),
            "host": host,
            "path": brick.path,
            "status": match brick.status() {
                BrickStatus::BrickUp => "up",
                BrickStatus::BrickDown => "stopped",
            },
        })
    });
    json!({
        "name": volume.name,
        "id": VolumeId::from_slice(&volume.id).map(|id| id.to_string()),
        "type": type_word(volume),
        "status": status_word(volume),
        "replica": volume.replica,
        "transport": "tcp",
        "bricks": bricks.collect::<Vec<Value>>(),
        "options": volume.options,
        "sets": volume.sets.iter().map(set_json).collect::<Vec<Value>>(),
    })
}

fn set_json(set: &ReplicaSet) -> Value {
    let ids = set.bricks.iter().map(|brick| BrickId(*brick).to_string());
    json!({
        "index": set.index,
        "bricks": ids.collect::<Vec<String>>(),
        "epoch": set.epoch.as_ref().map(epoch_json),
    })
}

fn epoch_json(epoch: &Epoch) -> Value {
    let in_sync = epoch.in_sync.iter().map(|copy| {
        json!({
            "brick": BrickId(copy.brick).to_string(),
            "incarnation": Incarnation(copy.incarnation).to_string(),
        })
    });
    json!({
        "number": epoch.number,
        "id": format!("{:016x}", epoch.id),
        "primary": (epoch.primary != 0).then(|| BrickId(epoch.primary).to_string()),
        "in_sync": in_sync.collect::<Vec<Value>>(),
    })
}

fn host_of(view: &View, peer: u64) -> &str {
    view.peers.get(&peer).map_or("?", |peer| peer.host.as_str())
}

fn type_word(volume: &Volume) -> &'static str {
    match (volume.replica, volume.sets.len()) {
        (0 | 1, _) => "Distribute",
        (_, 0 | 1) => "Replicate",
        (_, _) => "Distributed-Replicate",
    }
}

async fn set(name: String, pairs: &[String], session: &Session<'_>) -> Result<Report, Failure> {
    if name == "help" && pairs.is_empty() {
        return Ok(set_help());
    }
    let what = "volume set";
    check_name(what, &name)?;
    let failed = |why: String| Failure(format!("{what}: failed: {why}"));
    if pairs.is_empty() || !pairs.len().is_multiple_of(2) {
        return Err(failed(
            "give KEY VALUE pairs: volume set <NAME> <KEY> <VALUE>...".to_owned(),
        ));
    }
    let mut options = HashMap::new();
    for pair in pairs.chunks_exact(2) {
        let spec = options::find(&pair[0]).map_err(|refusal| failed(refusal.0))?;
        spec.parse(&pair[1]).map_err(|refusal| failed(refusal.0))?;
        if options
            .insert(spec.key.to_owned(), pair[1].clone())
            .is_some()
        {
            return Err(failed(format!("{} is given twice", spec.key)));
        }
    }
    let mut client = session.client().await?;
    let request = VolumeSetRequest {
        volume: name,
        options,
    };
    finish(what, session.call(client.volume_set(request)).await?)
}

/// JSON: `{"options": [{key, unit, range, default, description}]}`.
fn set_help() -> Report {
    let mut text = String::new();
    for spec in TABLE {
        let _ = writeln!(
            text,
            "Option: {}\nDefault Value: {}\nUnit: {}\nRange: {}\nDescription: {}\n",
            spec.key,
            spec.default,
            spec.unit(),
            spec.range(),
            spec.sentence
        );
    }
    let json = TABLE.iter().map(|spec| {
        json!({
            "key": spec.key,
            "unit": spec.unit(),
            "range": spec.range(),
            "default": spec.default,
            "description": spec.sentence,
        })
    });
    Report::new(text, json!({ "options": json.collect::<Vec<Value>>() }))
}

/// JSON: `{"volume", "options": {KEY: {value, default}}}`, default = whether it is the default.
async fn get(name: &str, key: &str, session: &Session<'_>) -> Result<Report, Failure> {
    let what = "volume get";
    check_name(what, name)?;
    let specs: Vec<&Spec> = match key {
        "all" => TABLE.iter().collect(),
        key => vec![options::find(key).map_err(|why| Failure(format!("{what}: failed: {why}")))?],
    };
    let view = view(session).await?;
    let volume = find(&view, name).map_err(|why| Failure(format!("{what}: failed: {why}")))?;
    let mut text = format!(
        "{:<40} {:<39}\n{:<40} {:<39}\n",
        "Option", "Value", "------", "-----"
    );
    let mut json = Map::new();
    for spec in specs {
        let set = volume.options.get(spec.key);
        let value = set.map_or(spec.default, String::as_str);
        let mark = if set.is_some() { "" } else { " (DEFAULT)" };
        let _ = writeln!(text, "{:<40} {:<39}", spec.key, format!("{value}{mark}"));
        json.insert(
            spec.key.to_owned(),
            json!({ "value": value, "default": set.is_none() }),
        );
    }
    Ok(Report::new(
        text,
        json!({ "volume": name, "options": json }),
    ))
}

async fn reset(name: String, words: &[String], session: &Session<'_>) -> Result<Report, Failure> {
    let what = "volume reset";
    check_name(what, &name)?;
    let keys = keywords::reset(words)?;
    for key in &keys {
        options::find(key).map_err(|why| Failure(format!("{what}: failed: {why}")))?;
    }
    let mut client = session.client().await?;
    let request = VolumeResetRequest { volume: name, keys };
    finish(what, session.call(client.volume_reset(request)).await?)
}

async fn replace_brick(
    name: String,
    words: &[String],
    session: &Session<'_>,
) -> Result<Report, Failure> {
    let what = "volume replace-brick";
    check_name(what, &name)?;
    let (brick, with) = keywords::replace_brick(words)
        .map_err(|failure| Failure(format!("{what}: failed: {failure}")))?;
    let request = VolumeReplaceBrickRequest {
        volume: name,
        brick: brick.to_string(),
        with: with.to_string(),
    };
    let mut client = session.client().await?;
    finish(
        what,
        session.call(client.volume_replace_brick(request)).await?,
    )
}

async fn reset_brick(
    name: String,
    words: &[String],
    session: &Session<'_>,
) -> Result<Report, Failure> {
    let what = "volume reset-brick";
    check_name(what, &name)?;
    let request = keywords::reset_brick(words)
        .map_err(|failure| Failure(format!("{what}: failed: {failure}")))?;
    let request = VolumeResetBrickRequest {
        volume: name,
        ..request
    };
    let mut client = session.client().await?;
    finish(
        what,
        session.call(client.volume_reset_brick(request)).await?,
    )
}
