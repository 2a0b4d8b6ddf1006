//! What this host says of its bricks: for `volume status` and `volume heal … info`.

use std::path::Path;
use std::sync::Arc;

use mortar_common::BrickId;
use mortar_proto::control::{
    BrickHeal, BrickState, CopyRole, Done, HealAction, VolumeHealReply, VolumeHealRequest,
};
use mortar_proto::registry::{self as reg, Volume};

use super::BrickHost;
use crate::replica::Replica;
use crate::replica::core::Role;

/// With what the detail of a copy begins that is closed because both sides went on alone.
pub const SPLIT_WORDS: &str = "split-brain";

/// The detail of a brick that is stopped and has not let go of its folder yet.
pub const STOPPING_WORDS: &str = "writes back what it has before it ends";

pub(super) fn states(host: &BrickHost, volume: &str) -> Vec<BrickState> {
    let view = host.registry.view();
    let me = host.registry.local();
    let mut states = Vec::new();
    for volume in view
        .volumes
        .values()
        .filter(|v| volume.is_empty() || v.name == volume)
    {
        for brick in volume.bricks.iter().filter(|brick| brick.peer == me.id) {
            states.push(state(host, brick, &me));
        }
    }
    states
}

fn state(host: &BrickHost, brick: &reg::Brick, me: &reg::Peer) -> BrickState {
    let mut state = BrickState {
        id: brick.id,
        host: me.host.clone(),
        path: brick.path.clone(),
        port: me.port,
        pid: std::process::id(),
        ..BrickState::default()
    };
    describe_disk(&mut state, Path::new(&brick.path));
    let running = host.lock_running().get(&BrickId(brick.id)).cloned();
    match running {
        Some(replica) => describe_replica(&mut state, &replica),
        None => {
            state.set_role(CopyRole::CopyDown);
            let problems = host.lock_problems();
            if let Some(problem) = problems.get(&BrickId(brick.id)) {
                state.detail = problem.words.clone();
            }
            drop(problems);
            if host.still_ends(BrickId(brick.id)) {
                state.detail = STOPPING_WORDS.to_owned();
            }
        }
    }
    state
}

fn describe_replica(state: &mut BrickState, replica: &Arc<Replica>) {
    let (role, epoch) = replica.role();
    state.epoch_number = epoch.number;
    state.incarnation = replica.setting().incarnation.0;
    state.online = true;
    let (shown, detail) = match role {
        Role::Starting => (
            CopyRole::CopyStarting,
            "finds out what the set's epoch is".to_owned(),
        ),
        Role::Waiting(words) => (CopyRole::CopyWaiting, replica.with_names(&words)),
        Role::Out => (
            CopyRole::CopyOut,
            "not in sync; waits to be healed".to_owned(),
        ),
        Role::Syncing => (CopyRole::CopySyncing, "is being healed".to_owned()),
        Role::Backup => (CopyRole::CopyBackup, String::new()),
        Role::Recovering => (CopyRole::CopyPrimary, "takes over as primary".to_owned()),
        Role::Primary => (CopyRole::CopyPrimary, String::new()),
        Role::Split => (
            CopyRole::CopyOut,
            format!("{SPLIT_WORDS}: both sides went on alone; this copy is kept as it is"),
        ),
        Role::Stopped(words) => {
            state.online = false;
            let volume = &replica.setting().volume_name;
            let read_only = match is_read_only(&state.mount_options) {
                true => " (the disk is mounted read-only)",
                false => "",
            };
            let again = format!(
                "{words}{read_only}; when that is repaired, 'mortar volume start {volume} force' \
                 starts the brick again, and it is healed"
            );
            let halted = replica.is_stopped();
            (CopyRole::CopyDown, if halted { words } else { again })
        }
    };
    state.set_role(shown);
    state.detail = detail;
    state.clients = replica.clients();
}

/// `emergency_ro`: what newer kernels say of an ext4 that they found damaged.
fn is_read_only(mount_options: &str) -> bool {
    let mut options = mount_options.split(',');
    options.any(|option| matches!(option, "ro" | "emergency_ro"))
}

fn describe_disk(state: &mut BrickState, path: &Path) {
    if let Ok(stat) = rustix::fs::statvfs(path) {
        state.bytes_free = stat.f_bavail * stat.f_frsize;
        state.bytes_total = stat.f_blocks * stat.f_frsize;
        state.inodes = stat.f_files;
        state.inodes_free = stat.f_ffree;
    }
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mounts") else {
        return;
    };
    let best = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (device, point) = (words.next()?, words.next()?);
            let (kind, options) = (words.next()?, words.next()?);
            path.starts_with(point)
                .then_some((point.len(), device, kind, options))
        })
        .max_by_key(|(length, ..)| *length);
    if let Some((_, device, kind, options)) = best {
        state.device = device.to_owned();
        state.file_system = kind.to_owned();
        state.mount_options = options.to_owned();
    }
}

pub(super) fn heal(host: &BrickHost, request: &VolumeHealRequest) -> VolumeHealReply {
    let view = host.registry.view();
    let Some(volume) = view.volumes.get(&request.volume) else {
        let message = format!("Volume {} does not exist", request.volume);
        return VolumeHealReply {
            done: Some(Done {
                failed: true,
                message,
            }),
            bricks: Vec::new(),
        };
    };
    let mut bricks = Vec::new();
    if decides(request.action()) {
        return host.decide(request);
    }
    for replica in local_replicas(host, volume) {
        match request.action() {
            HealAction::HealLaunch => replica.launch_heal(false),
            HealAction::HealFull => {
                replica.launch_heal(true);
                host.scrub(&replica);
            }
            HealAction::HealEnable => replica.enable_heal(true),
            HealAction::HealDisable => replica.enable_heal(false),
            HealAction::HealInfo
            | HealAction::HealInfoSummary
            | HealAction::HealInfoSplitBrain
            | HealAction::HealCount => bricks.push(report(host, volume, &replica)),
            HealAction::HealSplitTrust if replica.setting().me.0 == request.brick_id => {
                replica.trust();
            }
            HealAction::HealSplitTrust => {}
            HealAction::HealSplitLatestMtime
            | HealAction::HealSplitBiggerFile
            | HealAction::HealSplitSourceBrick => {}
        }
    }
    VolumeHealReply {
        done: Some(Done::default()),
        bricks,
    }
}

/// Whether the command decides about files: that needs no brick of this host.
fn decides(action: HealAction) -> bool {
    matches!(
        action,
        HealAction::HealSplitLatestMtime
            | HealAction::HealSplitBiggerFile
            | HealAction::HealSplitSourceBrick
    )
}

fn local_replicas(host: &BrickHost, volume: &Volume) -> Vec<Arc<Replica>> {
    let running = host.lock_running();
    volume
        .bricks
        .iter()
        .filter_map(|brick| running.get(&BrickId(brick.id)).cloned())
        .collect()
}

fn report(host: &BrickHost, volume: &Volume, replica: &Arc<Replica>) -> BrickHeal {
    let mut report = replica.heal_report();
    report.host = host.registry.local().host;
    report.path = volume
        .bricks
        .iter()
        .find(|brick| brick.id == replica.setting().me.0)
        .map(|brick| brick.path.clone())
        .unwrap_or_default();
    let split = replica.split_entries();
    report.total += split.len() as u64;
    report.split_brain = split.len() as u64;
    report.entries.splice(0..0, split);
    report.status = "Connected".to_owned();
    report
}
