//! `mortar volume status`.

use std::collections::BTreeMap;
use std::fmt::Write;

use mortar_common::{BrickId, Incarnation, SessionId};
use mortar_proto::WIRE_VERSION;
use mortar_proto::control::{BrickState, CopyRole, VolumeName, VolumeStatusReply};
use mortar_proto::registry::Volume;
use serde_json::{Value, json};

use super::connect::Session;
use super::keywords::{self, StatusView};
use super::volume::{brick_name, check_name, status_word};
use super::{Failure, Report};
use crate::admin::options::{Options, SelfHeal};

/// Width of a row's first column; longer names go over several lines.
const NAME_WIDTH: usize = 43;
const DASHES: &str =
    "------------------------------------------------------------------------------";
const CLIENT_DASHES: &str = "----------------------------------------------";

/// Runs `volume status [V|all] [detail|clients]`.
pub async fn run(words: &[String], session: &Session<'_>) -> Result<Report, Failure> {
    let (name, view) = keywords::status(words)?;
    if let Some(name) = name {
        check_name("volume status", name)?;
    }
    let mut client = session.client().await?;
    let request = VolumeName {
        volume: name.unwrap_or_default().to_owned(),
    };
    let reply = session.call(client.volume_status(request)).await?;
    let note = reply.note.clone();
    let replies = match name {
        Some(_) => vec![reply],
        None => reply.others,
    };
    if let (Some(_), Some(problem)) = (name, replies.first().and_then(|one| one.problem.as_ref())) {
        return Err(Failure(problem.message.clone()));
    }
    let mut text: String = match view {
        _ if replies.is_empty() => "No volumes present\n".to_owned(),
        StatusView::Table => replies.iter().map(table).collect(),
        StatusView::Detail => replies.iter().map(detail).collect(),
        StatusView::Clients => replies.iter().map(clients).collect(),
    };
    if !note.is_empty() {
        let _ = writeln!(text, "Note: {note}");
    }
    let json: Vec<Value> = replies.iter().map(to_json).collect();
    let note = (!note.is_empty()).then_some(note);
    Ok(Report::new(text, json!({ "note": note, "volumes": json })))
}

fn table(reply: &VolumeStatusReply) -> String {
    let Some(volume) = started(reply) else {
        return not_started(reply);
    };
    let name = &volume.name;
    let mut text = format!(
        "Status of volume: {name}\n{:<NAME_WIDTH$} TCP Port  RDMA Port  Online  Pid\n{DASHES}\n",
        "Mortar process"
    );
    for brick in &reply.bricks {
        let label = format!("Brick {}", brick_name(&brick.host, &brick.path));
        row(&mut text, &label, brick.online, brick.port, brick.pid);
    }
    if volume.replica > 1 && Options::of(volume).self_heal == SelfHeal::On {
        for (host, pid) in healers(&reply.bricks) {
            row(
                &mut text,
                &format!("Self-heal Daemon on {host}"),
                pid != 0,
                0,
                pid,
            );
        }
    }
    let silent = reply.bricks.iter().filter(|brick| !brick.detail.is_empty());
    for (at, brick) in silent.enumerate() {
        let space = if at == 0 { " \n" } else { "" };
        let name = brick_name(&brick.host, &brick.path);
        let _ = writeln!(text, "{space}Note: {name}: {}", brick.detail);
    }
    let _ = write!(
        text,
        " \nTask Status of Volume {name}\n{DASHES}\nThere are no active volume tasks\n \n"
    );
    text
}

/// Healing is done by the brickd of each brick's host: one row a host, pid 0 = it does not answer.
fn healers(bricks: &[BrickState]) -> BTreeMap<&str, u32> {
    let mut hosts = BTreeMap::new();
    for brick in bricks {
        let pid = hosts.entry(brick.host.as_str()).or_insert(0);
        *pid = brick.pid.max(*pid);
    }
    hosts
}

/// One row; port 0 = it has none.
fn row(text: &mut String, label: &str, online: bool, port: u32, pid: u32) {
    let mut rest: Vec<char> = label.chars().collect();
    while rest.len() > NAME_WIDTH {
        let line: String = rest.drain(..NAME_WIDTH).collect();
        let _ = writeln!(text, "{line}");
    }
    let last: String = rest.into_iter().collect();
    let none = || "N/A".to_owned();
    let (tcp, rdma) = match (online, port) {
        (true, port) if port != 0 => (port.to_string(), "0".to_owned()),
        (_, _) => (none(), none()),
    };
    let (mark, pid) = if online {
        ("Y", pid.to_string())
    } else {
        ("N", none())
    };
    let _ = writeln!(
        text,
        "{last:<NAME_WIDTH$} {tcp:<10}{rdma:<11}{mark:<8}{pid:<5}"
    );
}

fn detail(reply: &VolumeStatusReply) -> String {
    let Some(volume) = started(reply) else {
        return not_started(reply);
    };
    let mut text = format!("Status of volume: {}\n", volume.name);
    for brick in &reply.bricks {
        let (port, rdma, pid) = if brick.online {
            (
                brick.port.to_string(),
                "0".to_owned(),
                brick.pid.to_string(),
            )
        } else {
            ("N/A".to_owned(), "N/A".to_owned(), "N/A".to_owned())
        };
        let rows = [
            (
                "Brick",
                format!("Brick {}", brick_name(&brick.host, &brick.path)),
            ),
            ("TCP Port", port),
            ("RDMA Port", rdma),
            ("Online", if brick.online { "Y" } else { "N" }.to_owned()),
            ("Pid", pid),
            ("File System", or_none(&brick.file_system)),
            ("Device", or_none(&brick.device)),
            ("Mount Options", or_none(&brick.mount_options)),
            ("Inode Size", brick.inode_bytes.to_string()),
            ("Disk Space Free", human(brick.bytes_free)),
            ("Total Disk Space", human(brick.bytes_total)),
            ("Inode Count", brick.inodes.to_string()),
            ("Free Inodes", brick.inodes_free.to_string()),
            ("Role", role_word(brick).to_owned()),
        ];
        let _ = writeln!(text, "{DASHES}");
        for (key, value) in rows {
            let _ = writeln!(text, "{key:<20} : {value:<20}");
        }
        if !brick.detail.is_empty() {
            let _ = writeln!(text, "{:<20} : {:<20}", "Note", brick.detail);
        }
    }
    text.push_str(" \n");
    text
}

fn clients(reply: &VolumeStatusReply) -> String {
    let Some(volume) = started(reply) else {
        return not_started(reply);
    };
    let mut text = format!("Client connections for volume {}\n", volume.name);
    for brick in &reply.bricks {
        let _ = writeln!(
            text,
            "{CLIENT_DASHES}\nBrick : {}\nClients connected : {}\n{:<48} {:>15} {:>15} {:>15}\n\
             {:<48} {:>15} {:>15} {:>15}",
            brick_name(&brick.host, &brick.path),
            brick.clients.len(),
            "Hostname",
            "BytesRead",
            "BytesWritten",
            "OpVersion",
            "--------",
            "---------",
            "------------",
            "---------"
        );
        for client in &brick.clients {
            let _ = writeln!(
                text,
                "{:<48} {:>15} {:>15} {:>15}",
                format!("{}:{}", client.host, client.pid),
                client.bytes_read,
                client.bytes_written,
                WIRE_VERSION
            );
        }
    }
    let _ = writeln!(text, "{CLIENT_DASHES}");
    text
}

/// `{"note", "volumes": [{name, status, problem, bricks: [{id, name, host, path, port, online, pid, role,
/// detail, epoch, incarnation, file_system, device, mount_options, inode_bytes, bytes_free,
/// bytes_total, inodes, inodes_free, clients: [{host, pid, mount_point, bytes_read,
/// bytes_written, session}]}]}]}`
fn to_json(reply: &VolumeStatusReply) -> Value {
    json!({
        "name": reply.volume.as_ref().map(|volume| volume.name.as_str()),
        "status": reply.volume.as_ref().map(status_word),
        "problem": reply.problem.as_ref().map(|problem| problem.message.as_str()),
        "bricks": reply.bricks.iter().map(brick_json).collect::<Vec<Value>>(),
    })
}

fn brick_json(brick: &BrickState) -> Value {
    let clients = brick.clients.iter().map(|client| {
        json!({
            "host": client.host,
            "pid": client.pid,
            "mount_point": client.mount_point,
            "bytes_read": client.bytes_read,
            "bytes_written": client.bytes_written,
            "session": SessionId(client.session).to_string(),
        })
    });
    json!({
        "id": BrickId(brick.id).to_string(),
        "name": brick_name(&brick.host, &brick.path),
        "host": brick.host,
        "path": brick.path,
        "port": brick.port,
        "online": brick.online,
        "pid": brick.pid,
        "role": role_word(brick),
        "detail": brick.detail,
        "epoch": brick.epoch_number,
        "incarnation": Incarnation(brick.incarnation).to_string(),
        "file_system": brick.file_system,
        "device": brick.device,
        "mount_options": brick.mount_options,
        "inode_bytes": brick.inode_bytes,
        "bytes_free": brick.bytes_free,
        "bytes_total": brick.bytes_total,
        "inodes": brick.inodes,
        "inodes_free": brick.inodes_free,
        "clients": clients.collect::<Vec<Value>>(),
    })
}

fn started(reply: &VolumeStatusReply) -> Option<&Volume> {
    reply.volume.as_ref().filter(|_| reply.problem.is_none())
}

fn not_started(reply: &VolumeStatusReply) -> String {
    let problem = reply
        .problem
        .as_ref()
        .map_or("", |problem| problem.message.as_str());
    format!("{problem}\n \n")
}

fn role_word(brick: &BrickState) -> &'static str {
    match brick.role() {
        CopyRole::CopyDown => "down",
        CopyRole::CopyStarting => "starting",
        CopyRole::CopyWaiting => "waiting",
        CopyRole::CopySyncing => "syncing",
        CopyRole::CopyBackup => "backup",
        CopyRole::CopyPrimary => "primary",
        CopyRole::CopyOut => "out",
    }
}

fn or_none(text: &str) -> String {
    if text.is_empty() {
        "N/A".to_owned()
    } else {
        text.to_owned()
    }
}

/// Bytes as gluster prints them: one decimal, binary units.
fn human(bytes: u64) -> String {
    let units = [(50, "PB"), (40, "TB"), (30, "GB"), (20, "MB"), (10, "KB")];
    match units.iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => format!("{:.1}{unit}", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes}Bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_goes_over_several_lines() {
        let mut text = String::new();
        row(
            &mut text,
            &format!("Brick gfs01:/{}", "x".repeat(40)),
            true,
            24017,
            1234,
        );
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].len(), NAME_WIDTH);
        let rest = "x".repeat(53 - NAME_WIDTH);
        assert_eq!(
            lines[1],
            format!("{rest:<43} 24017     0          Y       1234 ")
        );
        text.clear();
        row(&mut text, "Brick gfs02:/b", false, 24017, 1234);
        let label = "Brick gfs02:/b";
        assert_eq!(
            text,
            format!("{label:<43} N/A       N/A        N       N/A  \n")
        );
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!(human(12), "12Bytes");
        assert_eq!(human(1536), "1.5KB");
        assert_eq!(human(10 << 30), "10.0GB");
    }
}
