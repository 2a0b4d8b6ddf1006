//! This host's part in `volume heal V full` of copies that are in sync: its primaries compare, and
//! what only people can decide about becomes a conflict, with both versions.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use mortar_common::ids::GfidMaker;
use mortar_common::placement::name_slot;
use mortar_common::{BrickId, FsError, Gfid};
use mortar_proto::data::{Object, RenameMode, SplitWork};
use tracing::{info, warn};

use super::BrickHost;
use crate::replica::Replica;
use crate::replica::scrub::{Differing, KeepVersions, ScrubError, Scrubber};
use crate::split::base::{Hands, Place, SessionBase};
use crate::split::stage::set_all;
use crate::split::version::{PATH_XATTR, Version};

/// The one whose version is kept, as a comparison counts copies: it has only this and the primary's.
const OTHER_COPY: usize = 1;
/// Bytes of a version brought in one request.
const PIECE_BYTES: u64 = 512 << 10;
/// How often a file that changes while its version is brought is begun anew.
const ATTEMPTS_MAX: u32 = 5;

impl BrickHost {
    /// Compares the copies of a set that this host has the primary of, in a thread of its own.
    pub(super) fn scrub(&self, replica: &Arc<Replica>) {
        let Some(host) = self.this.upgrade() else {
            return;
        };
        let replica = Arc::clone(replica);
        let spawned = std::thread::Builder::new()
            .name("scrub".to_owned())
            .spawn(move || {
                if let Some(scrubber) = replica.begin_scrub() {
                    scrubber.run(&*host);
                }
            });
        if let Err(error) = spawned {
            warn!(%error, "no thread to compare the copies");
        }
    }
}

impl KeepVersions for BrickHost {
    fn keep(&self, scrubber: &Scrubber<'_>, differing: &Differing) -> Result<(), ScrubError> {
        let volume = &scrubber.replica().setting().volume_name;
        let session = self.session(volume).map_err(|error| {
            warn!(volume, error, "the volume cannot be reached");
            ScrubError::Changed
        })?;
        let base = SessionBase(Arc::clone(&session));
        let kept = keep(
            scrubber,
            Hands::new(&base, SplitWork::SplitResolve),
            differing,
        );
        session.close();
        kept?;
        // From here on the file answers EIO: nobody changes it while all get the same.
        scrubber.give_mine(differing)
    }
}

/// Brings the other copy's version into the folder of versions, whole and durable before it counts.
fn keep(scrubber: &Scrubber<'_>, base: Hands<'_>, differing: &Differing) -> Result<(), ScrubError> {
    let gfid = differing.gfid;
    let brick = scrubber.others().first().copied().unwrap_or(BrickId(0));
    let version = Version {
        base: gfid,
        brick,
        other: gfid,
    };
    let (place, part) = (
        Place::version(version.name()),
        Place::version(version.part_name()),
    );
    if base.lookup(&place)?.is_some() {
        return Ok(()); // Of a comparison that was cut off right after.
    }
    // Before anything is written: a version that does not fit would take the room of everybody's work.
    scrubber.check_room(OTHER_COPY, gfid)?;
    base.ensure_versions()?;
    let brought = bring(scrubber, base, gfid, (&place, &part));
    if brought.is_err()
        && let Err(error) = take_back(base, &part)
    {
        info!(%gfid, %error, "what was brought of a version is left until the next comparison");
    }
    brought
}

fn bring(
    scrubber: &Scrubber<'_>,
    base: Hands<'_>,
    gfid: Gfid,
    (place, part): (&Place, &Place),
) -> Result<(), ScrubError> {
    let store = scrubber.replica().store();
    for _ in 0..ATTEMPTS_MAX {
        unlink_left(base, part)?;
        let whole = store.heal_object(gfid)?;
        let object = whole.object.unwrap_or_default();
        let made = id_beside(part);
        base.make(part, made, &object, &Bytes::new())?;
        bring_content(scrubber, base, &object, made)?;
        set_all(base, made, &whole)?;
        let path = store.path_of(gfid).unwrap_or_default();
        base.set_xattr(made, PATH_XATTR, &Bytes::from(path.into_bytes()))?;
        base.sync(made)?;
        base.rename(part, made, place, RenameMode::RenameNoreplace)?;
        base.sync(Gfid::SPLIT)?;
        let now = store.object(gfid)?;
        if (now.data_counter, now.size) == (object.data_counter, object.size) {
            return Ok(());
        }
        // It was changed while its version was brought: that is not what the copy has now.
        base.unlink(place, made)?;
    }
    Err(FsError::Again.into())
}

/// What the other copy has of the file, without its holes.
fn bring_content(
    scrubber: &Scrubber<'_>,
    base: Hands<'_>,
    object: &Object,
    made: Gfid,
) -> Result<(), ScrubError> {
    let gfid = object.gfid.unwrap_or_default();
    let mut at = 0;
    while at < object.size {
        let start = scrubber.data_of(OTHER_COPY, gfid, at)?;
        if start >= object.size {
            break;
        }
        let piece = start..(start + PIECE_BYTES).min(object.size);
        let bytes = scrubber.read(OTHER_COPY, gfid, &piece)?;
        if !bytes.is_empty() {
            base.write(made, start, &bytes)?;
        }
        at = piece.end;
    }
    Ok(())
}

fn take_back(base: Hands<'_>, part: &Place) -> Result<(), FsError> {
    unlink_left(base, part)?;
    base.remove_empty_versions()
}

fn unlink_left(base: Hands<'_>, part: &Place) -> Result<(), FsError> {
    match base.lookup(part)?.and_then(|left| left.gfid) {
        Some(left) => base.unlink(part, left),
        None => Ok(()),
    }
}

/// A new id whose slot is that of the name it is made under.
fn id_beside(place: &Place) -> Gfid {
    GfidMaker::default().make(name_slot(place.parent, &place.name))
}
