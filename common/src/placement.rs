//! Placement: which replica set a name or an object belongs to. Pure functions.

use xxhash_rust::xxh3::xxh3_64;

use crate::ids::Gfid;

/// Number of hash buckets of a volume.
pub const SLOTS: u16 = 16384;

/// One of a volume's 16384 hash buckets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Slot(u16);

impl Slot {
    /// Cut to 14 bits.
    pub fn new(value: u16) -> Self {
        Slot(value % SLOTS)
    }

    /// 0 to 16383.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// The hash that places a name and orders a directory's listing: xxh3_64(parent gfid ‖ name).
pub fn name_hash(parent: Gfid, name: &[u8]) -> u64 {
    let mut key = Vec::with_capacity(16 + name.len());
    key.extend_from_slice(&parent.to_bytes());
    key.extend_from_slice(name);
    xxh3_64(&key)
}

/// The slot of a name: the top 14 bits of the hash of what the name is placed as.
pub fn name_slot(parent: Gfid, name: &[u8]) -> Slot {
    Slot((name_hash(parent, placed_as(name)) >> 50) as u16)
}

/// A temporary name as rsync makes it (`.f.Xy12Ab`) is placed as the name it will get (`f`), so
/// that the final rename stays inside one set. Every other name is placed as itself.
pub fn placed_as(name: &[u8]) -> &[u8] {
    const SUFFIX: usize = 7; // a dot and six characters
    if name.len() > SUFFIX + 1 && name[0] == b'.' {
        let (stem, suffix) = name.split_at(name.len() - SUFFIX);
        if suffix[0] == b'.' && suffix[1..].iter().all(u8::is_ascii_alphanumeric) {
            return &stem[1..];
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_name_is_placed_as_the_final_one() {
        assert_eq!(placed_as(b".f.Xy12Ab"), b"f");
        assert_eq!(placed_as(b".git"), b".git");
        assert_eq!(placed_as(b".a.b"), b".a.b");
        assert_eq!(
            name_slot(Gfid::ROOT, b".file.txt.a1B2c3"),
            name_slot(Gfid::ROOT, b"file.txt")
        );
    }

    #[test]
    fn slots_are_spread_evenly() {
        let mut high = 0;
        for number in 0..10_000u32 {
            if name_slot(Gfid::ROOT, format!("file{number}").as_bytes()).get() >= SLOTS / 2 {
                high += 1;
            }
        }
        assert!(
            (4_700..5_300).contains(&high),
            "{high} of 10000 in the upper half"
        );
    }
}
