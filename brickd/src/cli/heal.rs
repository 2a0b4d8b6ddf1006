//! `mortar volume heal`.

use std::fmt::Write;

use mortar_proto::control::{BrickHeal, HealAction, HealEntry, VolumeHealReply, VolumeHealRequest};
use serde_json::{Value, json};

use super::connect::Session;
use super::volume::{brick_name, check_name};
use super::{Failure, Report, keywords};

/// The status of a brick that answers.
const CONNECTED: &str = "Connected";

/// Runs `volume heal V …`.
pub async fn run(name: String, words: &[String], session: &Session<'_>) -> Result<Report, Failure> {
    check_name("volume heal", &name)?;
    let asked = keywords::heal(words)?;
    let action = asked.action();
    let mut client = session.client().await?;
    let request = VolumeHealRequest {
        volume: name.clone(),
        ..asked
    };
    let reply = session.call(client.volume_heal(request)).await?;
    let done = reply.done.clone().unwrap_or_default();
    match action {
        HealAction::HealLaunch => launched(&name, "index self heal", done),
        HealAction::HealFull => launched(&name, "full self heal", done),
        HealAction::HealEnable => switched("Enable", &name, done),
        HealAction::HealDisable => switched("Disable", &name, done),
        HealAction::HealSplitLatestMtime
        | HealAction::HealSplitBiggerFile
        | HealAction::HealSplitSourceBrick => match done.failed {
            true => Err(Failure(done.message)),
            false => Ok(Report::words(format!("{}\n", done.message))),
        },
        _ if done.failed => Err(Failure(format!(
            "volume heal: {name}: failed: {}",
            done.message
        ))),
        action => Ok(Report::new(report(&name, action, &reply), to_json(&reply))),
    }
}

fn launched(name: &str, kind: &str, done: mortar_proto::control::Done) -> Result<Report, Failure> {
    let what = format!("Launching heal operation to perform {kind} on volume {name} has been");
    if done.failed {
        return Err(Failure(format!("{what} unsuccessful:\n{}", done.message)));
    }
    let mut text = format!("{what} successful \nUse heal info commands to check status.\n");
    if !done.message.is_empty() {
        let _ = writeln!(text, "Note: {}", done.message);
    }
    Ok(Report::words(text))
}

fn switched(verb: &str, name: &str, done: mortar_proto::control::Done) -> Result<Report, Failure> {
    if done.failed {
        let why = done.message;
        return Err(Failure(format!(
            "{verb} heal on volume {name} has been unsuccessful:\n{why}"
        )));
    }
    Ok(Report::words(format!(
        "{verb} heal on volume {name} has been successful \n"
    )))
}

fn report(name: &str, action: HealAction, reply: &VolumeHealReply) -> String {
    let mut text = String::new();
    if action == HealAction::HealCount {
        let _ = writeln!(
            text,
            "Gathering count of entries to be healed on volume {name} has been successful \n"
        );
    }
    if let Some(note) = note(reply) {
        let _ = writeln!(text, "Note: {note}\n");
    }
    for brick in &reply.bricks {
        let _ = writeln!(text, "Brick {}", brick_name(&brick.host, &brick.path));
        match action {
            HealAction::HealInfoSummary => summary(&mut text, brick),
            HealAction::HealInfoSplitBrain => split_brain(&mut text, brick),
            HealAction::HealCount => {
                let _ = writeln!(text, "Number of entries: {}", number(brick, brick.total));
            }
            _ => info(&mut text, brick),
        }
        text.push('\n');
    }
    text
}

/// Why a report may be old.
fn note(reply: &VolumeHealReply) -> Option<&str> {
    let done = reply.done.as_ref()?;
    (!done.message.is_empty()).then_some(done.message.as_str())
}

fn info(text: &mut String, brick: &BrickHeal) {
    for entry in &brick.entries {
        let _ = writeln!(text, "{} {}", shown(entry), remark(entry));
    }
    if brick.total > brick.entries.len() as u64 && is_connected(brick) {
        let _ = writeln!(
            text,
            "... and {} more",
            brick.total - brick.entries.len() as u64
        );
    }
    let _ = writeln!(text, "Status: {}", brick.status);
    let _ = writeln!(text, "Number of entries: {}", number(brick, brick.total));
    progress(text, brick);
}

fn summary(text: &mut String, brick: &BrickHeal) {
    let special = brick.split_brain + brick.healing;
    let _ = write!(
        text,
        "Status: {}\nTotal Number of entries: {}\nNumber of entries in heal pending: {}\n\
         Number of entries in split-brain: {}\nNumber of entries possibly healing: {}\n",
        brick.status,
        number(brick, brick.total),
        number(brick, brick.total.saturating_sub(special)),
        number(brick, brick.split_brain),
        number(brick, brick.healing),
    );
    progress(text, brick);
}

fn split_brain(text: &mut String, brick: &BrickHeal) {
    for entry in brick.entries.iter().filter(|entry| entry.split_brain) {
        let _ = writeln!(text, "{} {}", shown(entry), origin(entry));
    }
    let _ = writeln!(text, "Status: {}", brick.status);
    let count = number(brick, brick.split_brain);
    let _ = writeln!(text, "Number of entries in split-brain: {count}");
}

/// How far a heal is, when one runs.
fn progress(text: &mut String, brick: &BrickHeal) {
    if is_connected(brick) && (brick.bytes_pending > 0 || brick.seconds_left > 0) {
        let _ = writeln!(
            text,
            "Bytes to heal: {} ({} healed, about {} s left)",
            brick.bytes_pending, brick.bytes_healed, brick.seconds_left
        );
    }
}

/// The path with control characters escaped, so that one entry is one line; else the gfid.
fn shown(entry: &HealEntry) -> String {
    if entry.path.is_empty() {
        return format!("<gfid:{}>", entry.gfid);
    }
    let mut path = String::with_capacity(entry.path.len());
    for c in entry.path.chars() {
        match c.is_control() {
            true => path.extend(c.escape_default()),
            false => path.push(c),
        }
    }
    path
}

fn remark(entry: &HealEntry) -> String {
    if entry.split_brain {
        return "- Is in split-brain".to_owned();
    }
    match (entry.healing, entry.why.as_str()) {
        (true, _) => "- Possibly undergoing heal".to_owned(),
        (false, "") => String::new(),
        (false, why) => format!("- {why}"),
    }
}

/// Where the other version of a file in split-brain is.
fn origin(entry: &HealEntry) -> String {
    match entry.why.as_str() {
        "" => String::new(),
        why => format!("- {why}"),
    }
}

fn is_connected(brick: &BrickHeal) -> bool {
    brick.status == CONNECTED
}

/// A brick that is down counts nothing.
fn number(brick: &BrickHeal, count: u64) -> String {
    if is_connected(brick) {
        count.to_string()
    } else {
        "-".to_owned()
    }
}

/// `{"note", "bricks": [{host, path, name, status, total, split_brain, healing, bytes_pending,
/// bytes_healed, seconds_left, entries: [{path, gfid, why, split_brain, healing}]}]}`; total is
/// null for a brick that does not answer.
fn to_json(reply: &VolumeHealReply) -> Value {
    let bricks = reply.bricks.iter().map(|brick| {
        let entries = brick.entries.iter().map(|entry| {
            json!({
                "path": entry.path,
                "gfid": entry.gfid,
                "why": entry.why,
                "split_brain": entry.split_brain,
                "healing": entry.healing,
            })
        });
        json!({
            "host": brick.host,
            "path": brick.path,
            "name": brick_name(&brick.host, &brick.path),
            "status": brick.status,
            "total": is_connected(brick).then_some(brick.total),
            "split_brain": brick.split_brain,
            "healing": brick.healing,
            "bytes_pending": brick.bytes_pending,
            "bytes_healed": brick.bytes_healed,
            "seconds_left": brick.seconds_left,
            "entries": entries.collect::<Vec<Value>>(),
        })
    });
    json!({ "note": note(reply), "bricks": bricks.collect::<Vec<Value>>() })
}
