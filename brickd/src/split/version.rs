//! Names in the folder of versions.

use mortar_common::{BrickId, Gfid};
use mortar_proto::data::{ReadDir, ReadDirPage};

/// Bytes of names asked for at a time.
pub(super) const PAGE_BYTES: u32 = 64 << 10;
/// Ends the name of what is not complete yet, or not a conflict.
pub(super) const PART: &[u8] = b".part";
/// Ends the name of a directory that is put aside until another has made way for it.
pub(super) const ASIDE: &[u8] = b".aside";
/// Where the path of the file is kept on its version, for people to read.
pub const PATH_XATTR: &[u8] = b"trusted.split-brain.path";

/// One version of a file: the name it has in the folder of versions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Version {
    /// The file, as the side that goes on has it.
    pub base: Gfid,
    /// The brick whose version it is.
    pub brick: BrickId,
    /// The file as it was on that brick.
    pub other: Gfid,
}

impl Version {
    /// The name of its entry: `BASE.BRICK.OTHER`.
    pub fn name(&self) -> Vec<u8> {
        format!("{}.{}.{}", self.base, self.brick, self.other).into_bytes()
    }

    /// The name while it is being made.
    pub fn part_name(&self) -> Vec<u8> {
        [&self.name()[..], PART].concat()
    }

    /// The version that an entry of this name is; `None` for any other name.
    pub fn parse(name: &[u8]) -> Option<Version> {
        let mut parts = std::str::from_utf8(name).ok()?.split('.');
        let (base, brick, other) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || brick.len() != 16 {
            return None;
        }
        Some(Version {
            base: base.parse().ok()?,
            brick: BrickId(u64::from_str_radix(brick, 16).ok()?),
            other: other.parse().ok()?,
        })
    }
}

/// The versions that the folder of versions holds, read page by page with `read_dir`, which says
/// `None` when there is no such folder.
///
/// # Errors
/// Those of `read_dir`.
pub fn list<Error>(
    mut read_dir: impl FnMut(&ReadDir) -> Result<Option<ReadDirPage>, Error>,
) -> Result<Vec<Version>, Error> {
    let mut page = ReadDir {
        gfid: Some(Gfid::SPLIT),
        max_bytes: PAGE_BYTES,
        ..Default::default()
    };
    let mut found = Vec::new();
    while let Some(listed) = read_dir(&page)? {
        let names = listed.entries.iter().map(|entry| &entry.name);
        found.extend(names.filter_map(|name| Version::parse(name)));
        let Some(last) = listed.entries.last().filter(|_| !listed.end) else {
            break;
        };
        (page.after_hash, page.after_name) = (last.hash, last.name.clone());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_pages_are_listed_and_nothing_where_there_is_no_folder() {
        use mortar_proto::data::DirEntry;
        let version = |lo| Version {
            base: Gfid { hi: 1, lo },
            brick: BrickId(7),
            other: Gfid { hi: 3, lo: 9 },
        };
        let page = |from: u64| ReadDirPage {
            entries: [version(from).name(), version(from).part_name()]
                .map(|name| DirEntry {
                    name: name.into(),
                    hash: from,
                    ..Default::default()
                })
                .into(),
            end: from == 3,
        };
        let listed = list(|asked| Ok::<_, ()>(Some(page(asked.after_hash + 1))));
        assert_eq!(listed, Ok([1, 2, 3].map(version).into()));
        assert_eq!(list(|_| Ok::<_, ()>(None)), Ok(Vec::new()));
        assert_eq!(list(|_| Err("disk")), Err("disk"));
    }

    #[test]
    fn a_name_is_read_back_and_another_is_none() {
        let version = Version {
            base: Gfid {
                hi: 1,
                lo: u64::MAX,
            },
            brick: BrickId(7),
            other: Gfid { hi: 3, lo: 9 },
        };
        assert_eq!(Version::parse(&version.name()), Some(version));
        assert!(version.part_name().len() < mortar_common::name::NAME_BYTES_MAX);
        for other in [
            &version.part_name()[..],
            b"",
            b"a.b.c",
            b"\xff",
            b"notes.txt",
        ] {
            assert_eq!(Version::parse(other), None);
        }
    }
}
