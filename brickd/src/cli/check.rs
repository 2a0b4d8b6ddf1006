//! `mortar volume check`.

use std::fmt::Write;

use mortar_proto::control::{CheckFinding, VolumeCheckReply, VolumeName};
use serde_json::{Value, json};

use super::connect::Session;
use super::volume::{brick_name, check_name};
use super::{Failure, Report, Verdict};

/// Runs `volume check V`.
pub async fn run(name: String, session: &Session<'_>) -> Result<Report, Failure> {
    check_name("volume check", &name)?;
    let mut client = session.client().await?;
    let request = VolumeName {
        volume: name.clone(),
    };
    let mut told = session.call(client.volume_check(request)).await?;
    loop {
        // Each message is bounded in time, not the whole check: that may take hours.
        let message = async { told.message().await.map(tonic::Response::new) };
        let Some(reply) = session.call(message).await? else {
            let why = "brickd ended before the check did";
            return Err(Failure(format!("volume check: {name}: failed: {why}")));
        };
        if reply.end {
            return report(&name, &reply);
        }
    }
}

fn report(name: &str, reply: &VolumeCheckReply) -> Result<Report, Failure> {
    let done = reply.done.clone().unwrap_or_default();
    if done.failed {
        let why = done.message;
        return Err(Failure(format!("volume check: {name}: failed: {why}")));
    }
    let verdict = match reply.total {
        0 => Verdict::Good,
        _ => Verdict::Bad,
    };
    Ok(Report {
        text: text(name, reply),
        json: to_json(reply),
        verdict,
    })
}

fn text(name: &str, reply: &VolumeCheckReply) -> String {
    let mut text = String::new();
    for brick in &reply.bricks {
        let _ = write!(
            text,
            "Brick {}\nNumber of objects: {}\nNumber of bytes: {}\n\n",
            brick_name(&brick.host, &brick.path),
            brick.objects,
            brick.bytes
        );
    }
    for finding in &reply.findings {
        let _ = writeln!(text, "{} - {}", place(finding), shown(&finding.what));
    }
    let more = reply.total.saturating_sub(reply.findings.len() as u64);
    if more > 0 {
        let _ = writeln!(text, "... and {more} more");
    }
    if reply.restless > 0 {
        let _ = writeln!(
            text,
            "Note: {} objects changed at every look and were not judged",
            reply.restless
        );
    }
    let _ = match reply.total {
        0 => writeln!(text, "volume check: {name}: success: nothing is wrong"),
        total => writeln!(text, "volume check: {name}: failed: {total} findings"),
    };
    text
}

/// What is concerned: a path, else a gfid, and the brick when it is one brick's matter.
fn place(finding: &CheckFinding) -> String {
    let object = match (finding.path.as_str(), finding.gfid.as_str()) {
        ("", "") => String::new(),
        ("", gfid) => format!("<gfid:{gfid}>"),
        (path, _) => shown(path),
    };
    match (object.is_empty(), finding.brick.as_str()) {
        (_, "") => object,
        (true, brick) => format!("Brick {brick}"),
        (false, brick) => format!("{object} on {brick}"),
    }
}

/// With control characters escaped, so that one finding is one line.
fn shown(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

/// `{"bricks": [{host, path, name, objects, bytes}], "findings": [{path, gfid, brick, what}],
/// "total", "restless"}`; `ok` is whether nothing was found.
fn to_json(reply: &VolumeCheckReply) -> Value {
    let bricks = reply.bricks.iter().map(|brick| {
        json!({
            "host": brick.host,
            "path": brick.path,
            "name": brick_name(&brick.host, &brick.path),
            "objects": brick.objects,
            "bytes": brick.bytes,
        })
    });
    let findings = reply.findings.iter().map(|finding| {
        json!({
            "path": finding.path,
            "gfid": finding.gfid,
            "brick": finding.brick,
            "what": finding.what,
        })
    });
    json!({
        "bricks": bricks.collect::<Vec<Value>>(),
        "findings": findings.collect::<Vec<Value>>(),
        "total": reply.total,
        "restless": reply.restless,
    })
}
