//! A brick's place in its replica set is given to another one.
//!
//! Who is in sync is for the set's own primary to change, which knows what was acknowledged where:
//! a copy that the epoch lists is not dropped here. The new brick has an id that no brick had, so
//! nothing that is known of the old one counts for it: it was never in sync, and all of it is to be
//! filled.

use mortar_proto::registry::{Limits, ReplaceBrick, View, VolumeStatus};

use super::{check_unused, volume_mut};

/// The sentence for a copy that cannot go because nothing else holds the data.
pub(super) const ONLY_COPY: &str = "it holds the only up-to-date copy";

pub(super) fn replace_brick(view: &mut View, command: &ReplaceBrick) -> Result<(), String> {
    let new = command
        .with
        .as_ref()
        .ok_or("a brick is replaced by nothing")?;
    let volume = volume_mut(view, &command.volume)?;
    let name = volume.name.clone();
    let old = command.brick;
    let known = |id: u64| volume.bricks.iter().any(|brick| brick.id == id);
    if !known(old) {
        return if known(new.id) {
            Ok(()) // It was done already.
        } else {
            Err(format!("brick {old:016x} is not part of volume {name}"))
        };
    }
    if volume.status() != VolumeStatus::VolumeStarted {
        return Err(format!("Volume {name} is not in the started state"));
    }
    let place = match view.peers.get(&new.peer) {
        Some(peer) => format!("{}:{}", peer.host, new.path),
        None => {
            return Err(format!(
                "the brick {} is on a host that is not part of the pool; probe it first",
                new.path
            ));
        }
    };
    if new.id == 0 || new.id == old {
        return Err(format!("the brick {place} has no id of its own"));
    }
    check_unused(view, new, Some(old), &place)?;
    let volume = volume_mut(view, &command.volume)?;
    let set = volume
        .sets
        .iter_mut()
        .find(|set| set.bricks.contains(&old))
        .ok_or_else(|| format!("brick {old:016x} is in no replica set of volume {name}"))?;
    let in_sync = set.epoch.as_ref().map_or(&[][..], |epoch| &epoch.in_sync);
    if !in_sync.iter().any(|copy| copy.brick != old) {
        return Err(format!(
            "brick {old:016x} of volume {name} cannot be replaced: {ONLY_COPY}"
        ));
    }
    if in_sync.iter().any(|copy| copy.brick == old) {
        return Err(format!(
            "brick {old:016x} of volume {name} is still in sync: it is to be put out first"
        ));
    }
    for brick in set.bricks.iter_mut().filter(|brick| **brick == old) {
        *brick = new.id;
    }
    for brick in volume.bricks.iter_mut().filter(|brick| brick.id == old) {
        *brick = new.clone();
    }
    volume.limits = smallest(volume.limits, command.limits);
    Ok(())
}

/// What both can hold; 0 and `None` = not known.
fn smallest(one: Option<Limits>, other: Option<Limits>) -> Option<Limits> {
    let (Some(one), Some(other)) = (one, other) else {
        return one.or(other);
    };
    Some(Limits {
        links: smaller(one.links, other.links),
        xattr_bytes: smaller(one.xattr_bytes, other.xattr_bytes),
        file_bytes: smaller(one.file_bytes, other.file_bytes),
    })
}

fn smaller<T: Ord + Default>(one: T, other: T) -> T {
    if one == T::default() || (other != T::default() && other < one) {
        other
    } else {
        one
    }
}
