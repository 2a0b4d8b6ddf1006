//! Deciding about files in conflict: which version is the file from now on.

use mortar_common::name::SPLIT_DIR;
use mortar_common::{BrickId, FsError, Gfid};
use mortar_proto::data::{Object, RenameMode, SplitWork};

use super::base::{Base, Hands, Place};
use super::version::{self, PATH_XATTR, Version};

/// How a version is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// The one written last.
    LatestMtime,
    /// The bigger one.
    BiggerFile,
    /// That of this brick; of one that has none in the folder of versions: that of the side that
    /// went on.
    Brick(BrickId),
}

/// Why a decision was not carried out, in words for the administrator.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// In gluster's words.
    #[error("{0}")]
    Refused(String),
    /// The volume did not answer as it should.
    #[error("the volume answers: {0}")]
    Base(#[from] FsError),
}

fn refused<T>(words: impl Into<String>) -> Result<T, ResolveError> {
    Err(ResolveError::Refused(words.into()))
}

/// A version with the object that holds it.
struct Kept {
    version: Version,
    object: Object,
}

/// The file in conflict and where it is.
struct InConflict {
    place: Place,
    object: Object,
    kept: Vec<Kept>,
}

/// Decides about one file, named by its path from the volume's root or as `gfid:UUID`.
///
/// # Errors
/// A sentence; nothing was changed.
pub fn resolve(base: &dyn Base, file: &str, choice: Choice) -> Result<(), ResolveError> {
    let base = Hands::new(base, SplitWork::SplitResolve);
    let versions = versions(base)?;
    let found = find(base, &versions, file)?;
    if found.kept.is_empty() {
        return refused("File not in split-brain");
    }
    carry_out(base, &found, choice)
}

/// Decides about every file in conflict in favour of a brick. Returns how many.
///
/// # Errors
/// A sentence; those before it are decided.
pub fn resolve_all(base: &dyn Base, brick: BrickId) -> Result<u64, ResolveError> {
    let base = Hands::new(base, SplitWork::SplitResolve);
    let mut healed = 0;
    for version in versions(base)? {
        let Some(path) = path_of(base, version)? else {
            continue; // Decided meanwhile.
        };
        let found = find(base, &[version], &path)?;
        carry_out(base, &found, Choice::Brick(brick))?;
        healed += 1;
    }
    Ok(healed)
}

fn versions(base: Hands<'_>) -> Result<Vec<Version>, ResolveError> {
    version::list(|page| match base.read_dir(page) {
        Ok(listed) => Ok(Some(listed)),
        Err(FsError::NotFound | FsError::Stale) => Ok(None),
        Err(error) => Err(error.into()),
    })
}

/// The path noted on a version.
fn path_of(base: Hands<'_>, version: Version) -> Result<Option<String>, ResolveError> {
    let held = base.lookup(&Place::version(version.name()))?;
    let Some(gfid) = held.and_then(|held| held.gfid) else {
        return Ok(None);
    };
    let path = base.xattr(gfid, PATH_XATTR)?.unwrap_or_default();
    Ok(Some(String::from_utf8_lossy(&path).into_owned()))
}

fn find(base: Hands<'_>, versions: &[Version], file: &str) -> Result<InConflict, ResolveError> {
    let meant = match file.strip_prefix("gfid:") {
        Some(gfid) => {
            let Ok(gfid) = gfid.parse::<Gfid>() else {
                return refused(format!("'{}' is no gfid", gfid.escape_debug()));
            };
            let Some(version) = versions.iter().find(|version| version.base == gfid) else {
                return refused("File not in split-brain");
            };
            (path_of(base, *version)?.unwrap_or_default(), Some(gfid))
        }
        None => (file.to_owned(), None),
    };
    let (place, object) = at_path(base, &meant.0)?;
    let gfid = object.gfid.unwrap_or_default();
    if meant.1.is_some_and(|meant| meant != gfid) {
        return refused("the file has another name now: give its path");
    }
    let mut kept = Vec::new();
    for version in versions.iter().filter(|version| version.base == gfid) {
        if let Some(object) = base.lookup(&Place::version(version.name()))? {
            let version = *version;
            kept.push(Kept { version, object });
        }
    }
    Ok(InConflict {
        place,
        object,
        kept,
    })
}

fn at_path(base: Hands<'_>, path: &str) -> Result<(Place, Object), ResolveError> {
    if !path.starts_with('/') {
        return refused(format!(
            "'{}' is no absolute path inside the volume",
            path.escape_debug()
        ));
    }
    let mut at = Gfid::ROOT;
    let mut found = None;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let place = Place::new(at, name.as_bytes().to_vec());
        let Some(object) = base.lookup(&place)? else {
            return refused(format!(
                "{}: no such file in the volume",
                path.escape_debug()
            ));
        };
        at = object.gfid.unwrap_or_default();
        found = Some((place, object));
    }
    match found {
        Some(found) => Ok(found),
        None => refused("the volume's root is not in split-brain"),
    }
}

/// Makes the chosen version the file. First it gets its place, which ends the conflict with it.
fn carry_out(base: Hands<'_>, found: &InConflict, choice: Choice) -> Result<(), ResolveError> {
    let mixed = |kept: &&Kept| is_directory(&kept.object) || is_directory(&found.object);
    if let Some(kept) = found.kept.iter().find(mixed) {
        let name = String::from_utf8_lossy(&kept.version.name()).into_owned();
        return refused(format!(
            "one side has a directory there: move what you want to keep out of \
             /{SPLIT_DIR}/{name} on a mount, and remove that entry"
        ));
    }
    let winner = match choice {
        Choice::Brick(brick) => found.kept.iter().find(|kept| kept.version.brick == brick),
        Choice::LatestMtime => greatest(found, "No difference in mtime", |object| {
            object.mtime.map_or((0, 0), |time| (time.secs, time.nanos))
        })?,
        Choice::BiggerFile => greatest(found, "No bigger file", |object| object.size)?,
    };
    if let Some(winner) = winner {
        let gfid = winner.object.gfid.unwrap_or_default();
        base.remove_xattr(gfid, PATH_XATTR)?;
        let from = Place::version(winner.version.name());
        base.rename(&from, gfid, &found.place, RenameMode::RenameReplace)?;
        base.sync(found.place.parent)?;
    }
    for kept in &found.kept {
        if winner.is_none_or(|winner| winner.version != kept.version) {
            let gfid = kept.object.gfid.unwrap_or_default();
            base.unlink(&Place::version(kept.version.name()), gfid)?;
        }
    }
    base.sync(Gfid::SPLIT)?;
    Ok(base.remove_empty_versions()?)
}

/// The version that is greatest by `key`; `None` = the file as it is.
fn greatest<'a, Key: Ord>(
    found: &'a InConflict,
    alike: &str,
    key: impl Fn(&Object) -> Key,
) -> Result<Option<&'a Kept>, ResolveError> {
    let mine = key(&found.object);
    let best = found.kept.iter().max_by_key(|kept| key(&kept.object));
    match best.map(|best| key(&best.object).cmp(&mine)) {
        Some(std::cmp::Ordering::Greater) => Ok(best),
        Some(std::cmp::Ordering::Less) => Ok(None),
        Some(std::cmp::Ordering::Equal) | None => refused(alike),
    }
}

fn is_directory(object: &Object) -> bool {
    object.mode & libc::S_IFMT == libc::S_IFDIR
}
