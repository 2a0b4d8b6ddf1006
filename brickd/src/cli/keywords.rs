//! gluster's keyword grammar: what follows a volume's name.

use mortar_common::name::volume_name_refusal;
use mortar_proto::control::{
    HealAction, ResetBrickStep, VolumeCreateRequest, VolumeHealRequest, VolumeResetBrickRequest,
};

use super::Failure;
use crate::admin::BrickSpec;
use crate::admin::bricks::check_request;

/// Whether 'force' was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// It was.
    Yes,
    /// It was not.
    No,
}

/// How `volume status` is to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusView {
    /// The table.
    Table,
    /// Everything of each brick.
    Detail,
    /// Who is connected.
    Clients,
}

/// `volume create NAME [replica N] [transport T] BRICK... [force]`, checked as far as can be
/// without a pool.
pub fn create(name: &str, words: &[String]) -> Result<VolumeCreateRequest, Failure> {
    if let Some(refusal) = volume_name_refusal(name) {
        return Err(Failure(refusal));
    }
    let (words, force) = match words.split_last() {
        Some((last, rest)) if last == "force" => (rest, Force::Yes),
        _ => (words, Force::No),
    };
    let mut replica = 1;
    let mut transport = "tcp".to_owned();
    let mut bricks = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = |what: &str| {
            words
                .next()
                .ok_or_else(|| Failure(format!("'{what}' takes a value")))
        };
        match word.as_str() {
            "replica" => {
                let count = value("replica")?;
                replica = count.parse().map_err(|_| {
                    Failure(format!("replica count must be a number, not '{count}'"))
                })?;
            }
            "transport" => value("transport")?.clone_into(&mut transport),
            "arbiter" | "thin-arbiter" => {
                return Err(Failure(format!(
                    "'{word}' is not needed in Mortar: a third peer without a brick is a witness; \
                     probe it and create the volume with replica 2"
                )));
            }
            "disperse" | "disperse-data" | "redundancy" | "stripe" => {
                return Err(Failure(format!(
                    "'{word}' volumes do not exist in Mortar: use replica"
                )));
            }
            brick => bricks.push(brick.to_owned()),
        }
    }
    let bricks = check_request(replica, &transport, &bricks)?;
    Ok(VolumeCreateRequest {
        volume: name.to_owned(),
        replica,
        transport,
        bricks: bricks.iter().map(BrickSpec::to_string).collect(),
        force: force == Force::Yes,
    })
}

/// Nothing or 'force'.
pub fn force(words: &[String]) -> Result<Force, Failure> {
    match strs(words)[..] {
        [] => Ok(Force::No),
        ["force"] => Ok(Force::Yes),
        _ => Err(unrecognized(words, &["force"])),
    }
}

/// `[force [BRICK]]`: whether force was given, and the brick to trust.
pub fn start(words: &[String]) -> Result<(Force, Option<BrickSpec>), Failure> {
    match strs(words)[..] {
        [] => Ok((Force::No, None)),
        ["force"] => Ok((Force::Yes, None)),
        ["force", brick] => Ok((Force::Yes, Some(brick.parse()?))),
        _ => Err(unrecognized(words, &["force"])),
    }
}

/// `[V|all] [detail|clients]`; no volume = all.
pub fn status(words: &[String]) -> Result<(Option<&str>, StatusView), Failure> {
    let (volume, rest) = match words.split_first() {
        Some((first, rest)) if view_of(first).is_none() => (Some(first.as_str()), rest),
        _ => (None, words),
    };
    let volume = volume.filter(|name| *name != "all");
    match rest {
        [] => Ok((volume, StatusView::Table)),
        [word] => match view_of(word) {
            Some(view) => Ok((volume, view)),
            None => Err(unrecognized(words, &["detail", "clients"])),
        },
        _ => Err(unrecognized(words, &["detail", "clients"])),
    }
}

/// What `volume heal V …` asks for, of no volume yet.
pub fn heal(words: &[String]) -> Result<VolumeHealRequest, Failure> {
    let plain = |action: HealAction| {
        Ok(VolumeHealRequest {
            action: action.into(),
            ..Default::default()
        })
    };
    match strs(words)[..] {
        [] => plain(HealAction::HealLaunch),
        ["full"] => plain(HealAction::HealFull),
        ["enable"] => plain(HealAction::HealEnable),
        ["disable"] => plain(HealAction::HealDisable),
        ["info"] => plain(HealAction::HealInfo),
        ["info", "summary"] => plain(HealAction::HealInfoSummary),
        ["info", "split-brain"] => plain(HealAction::HealInfoSplitBrain),
        ["statistics", "heal-count"] => plain(HealAction::HealCount),
        ["statistics"] => Err(Failure("'statistics' takes 'heal-count'".to_owned())),
        ["split-brain", ref how @ ..] => split_brain(how),
        _ => Err(unrecognized(
            words,
            &[
                "full",
                "enable",
                "disable",
                "info",
                "summary",
                "split-brain",
                "statistics",
                "heal-count",
            ],
        )),
    }
}

fn split_brain(how: &[&str]) -> Result<VolumeHealRequest, Failure> {
    let request = |action: HealAction, brick: &str, file: &str| {
        Ok(VolumeHealRequest {
            action: action.into(),
            brick: brick.to_owned(),
            argument: file.to_owned(),
            ..Default::default()
        })
    };
    match how {
        ["latest-mtime", file] => request(HealAction::HealSplitLatestMtime, "", file),
        ["bigger-file", file] => request(HealAction::HealSplitBiggerFile, "", file),
        ["source-brick", brick] => request(HealAction::HealSplitSourceBrick, brick, ""),
        ["source-brick", brick, file] => request(HealAction::HealSplitSourceBrick, brick, file),
        _ => Err(Failure(
            "'split-brain' takes 'latest-mtime FILE', 'bigger-file FILE' or \
             'source-brick HOST:BRICK [FILE]'"
                .to_owned(),
        )),
    }
}

/// `[KEY] [force]`: the keys to set back; none = all.
pub fn reset(words: &[String]) -> Result<Vec<String>, Failure> {
    match strs(words)[..] {
        [] | ["force"] | ["all"] | ["all", "force"] => Ok(Vec::new()),
        [key] | [key, "force"] => Ok(vec![key.to_owned()]),
        _ => Err(unrecognized(words, &["force"])),
    }
}

/// `BRICK NEW-BRICK commit force`: the brick that goes and the one that comes.
pub fn replace_brick(words: &[String]) -> Result<(BrickSpec, BrickSpec), Failure> {
    match strs(words)[..] {
        [brick, with, "commit", "force"] => Ok((brick.parse()?, with.parse()?)),
        _ => Err(Failure(
            "give the brick that goes, the one that comes and 'commit force': volume \
             replace-brick <NAME> <HOST:/PATH> <NEW-HOST:/PATH> commit force"
                .to_owned(),
        )),
    }
}

/// `BRICK {start | BRICK commit [force]}`, of no volume yet.
pub fn reset_brick(words: &[String]) -> Result<VolumeResetBrickRequest, Failure> {
    let commit = |brick: &str, with: &str, force: bool| {
        Ok(VolumeResetBrickRequest {
            brick: brick.parse::<BrickSpec>()?.to_string(),
            with: with.parse::<BrickSpec>()?.to_string(),
            step: ResetBrickStep::ResetBrickCommit.into(),
            force,
            ..Default::default()
        })
    };
    match strs(words)[..] {
        [brick, "start"] => Ok(VolumeResetBrickRequest {
            brick: brick.parse::<BrickSpec>()?.to_string(),
            step: ResetBrickStep::ResetBrickStart.into(),
            ..Default::default()
        }),
        [brick, with, "commit"] => commit(brick, with, false),
        [brick, with, "commit", "force"] => commit(brick, with, true),
        _ => Err(Failure(
            "give the brick and 'start', or the brick twice and 'commit': volume reset-brick \
             <NAME> <HOST:/PATH> {start | <HOST:/PATH> commit [force]}"
                .to_owned(),
        )),
    }
}

fn view_of(word: &str) -> Option<StatusView> {
    match word {
        "detail" => Some(StatusView::Detail),
        "clients" => Some(StatusView::Clients),
        _ => None,
    }
}

/// gluster's words for a word it does not know.
fn unrecognized(words: &[String], known: &[&str]) -> Failure {
    let wrong = words
        .iter()
        .position(|word| !known.contains(&word.as_str()));
    let at = wrong.unwrap_or(words.len().saturating_sub(1));
    let word = words.get(at).map_or("", String::as_str);
    Failure(format!(
        "unrecognized word: {} (position {}); expected: {}",
        word.escape_debug(),
        at + 1,
        known.join(", ")
    ))
}

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}
