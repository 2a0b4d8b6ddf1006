//! Names in the folder of versions.

use mortar_common::{BrickId, Gfid};

/// Ends the name of what is not complete yet, or not a conflict.
pub(super) const PART: &[u8] = b".part";
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

#[cfg(test)]
mod tests {
    use super::*;

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
