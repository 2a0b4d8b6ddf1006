//! Ids, each a type of its own so that one cannot be passed for another.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::placement::Slot;

/// Bits of a [`Gfid`] that hold its maker's clock.
const CLOCK_BITS: u32 = 50;
const CLOCK_MASK: u64 = (1 << CLOCK_BITS) - 1;

/// Id of an object: 14 bits of slot, 50 bits of clock in µs, 64 random bits.
///
/// Objects made together have neighbouring ids, so that their handles lie in one directory of the
/// brick; the slot says which replica set is an object's home.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Message)]
pub struct Gfid {
    /// Slot and clock.
    #[prost(fixed64, tag = "1")]
    pub hi: u64,
    /// Random; also what `st_ino` shows.
    #[prost(fixed64, tag = "2")]
    pub lo: u64,
}

impl Gfid {
    /// The root directory of every volume.
    pub const ROOT: Gfid = Gfid { hi: 0, lo: 1 };
    /// The folder [`crate::name::SPLIT_DIR`] of every volume that has one.
    pub const SPLIT: Gfid = Gfid { hi: 0, lo: 2 };

    /// Puts an id together. `clock_us` is cut to 50 bits.
    pub fn new(slot: Slot, clock_us: u64, random: u64) -> Self {
        Gfid {
            hi: u64::from(slot.get()) << CLOCK_BITS | clock_us & CLOCK_MASK,
            lo: random,
        }
    }

    /// The slot whose replica set is this object's home.
    pub fn slot(self) -> Slot {
        Slot::new((self.hi >> CLOCK_BITS) as u16)
    }

    /// The maker's clock in µs since 1970, when the object was made.
    pub fn clock_us(self) -> u64 {
        self.hi & CLOCK_MASK
    }

    /// Big-endian bytes, as the brick's xattr and file names hold them.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.hi.to_be_bytes());
        bytes[8..].copy_from_slice(&self.lo.to_be_bytes());
        bytes
    }

    /// The reverse of [`Gfid::to_bytes`].
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let value = u128::from_be_bytes(bytes);
        Gfid {
            hi: (value >> 64) as u64,
            lo: value as u64,
        }
    }

    /// From a slice of exactly 16 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_bytes)
    }

    /// What `stat` shows as the inode number: never 0 or 1 but for the root.
    pub fn ino(self) -> u64 {
        self.lo
    }
}

impl fmt::Display for Gfid {
    /// As a uuid is written: 8-4-4-4-12 hex digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_uuid(f, &self.to_bytes())
    }
}

impl std::str::FromStr for Gfid {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        parse_uuid(text)
            .map(Gfid::from_bytes)
            .ok_or_else(|| ParseIdError(text.to_owned()))
    }
}

/// Text that is not an id.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not an id of 32 hex digits")]
pub struct ParseIdError(String);

/// Makes gfids whose clock part never repeats within this maker.
#[derive(Debug, Default)]
pub struct GfidMaker {
    last_clock_us: AtomicU64,
}

impl GfidMaker {
    /// A new id in `slot`.
    pub fn make(&self, slot: Slot) -> Gfid {
        let now_us = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |since| since.as_micros() as u64 & CLOCK_MASK);
        let clock_us = self
            .last_clock_us
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(now_us.max(last + 1))
            })
            .map_or(now_us, |last| now_us.max(last + 1));
        Gfid::new(slot, clock_us, random_id() | 2)
    }
}

macro_rules! id64 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// A random id; never 0, which stands for "none" on the wire.
            pub fn random() -> Self {
                Self(random_id())
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:016x})", stringify!($name), self.0)
            }
        }
    };
}

id64!(
    /// A host running brickd; random, made with its data directory; also its Raft node id.
    PeerId
);
id64!(
    /// One brick of one volume.
    BrickId
);
id64!(
    /// One life of a brick, or of a brickd: new at each start.
    Incarnation
);
/// Low bits of a brick's incarnation that count the bricks that its process has started.
const STARTS_BITS: u32 = 24;

impl Incarnation {
    /// The life of a brick that is the `nth` start of its process, counted from 1. Its upper bits are
    /// the process's: when a process is known to be dead, so are its lives and no others, however
    /// late that is known and whatever has been heard of the next process by then.
    pub fn of_start(process: Incarnation, nth: u32) -> Incarnation {
        let count = u64::from(nth) & ((1 << STARTS_BITS) - 1);
        Incarnation(process.0 >> STARTS_BITS << STARTS_BITS | count)
    }

    /// Whether this life of a brick is, or was, in that process.
    pub fn is_of(self, process: Incarnation) -> bool {
        self.0 >> STARTS_BITS == process.0 >> STARTS_BITS
    }
}

id64!(
    /// One mounted client, until it expires or unmounts.
    SessionId
);
id64!(
    /// One pool of peers.
    PoolId
);

/// Id of a volume: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VolumeId(pub [u8; 16]);

impl VolumeId {
    /// A random id.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&random_id().to_be_bytes());
        bytes[8..].copy_from_slice(&random_id().to_be_bytes());
        VolumeId(bytes)
    }

    /// From a slice of exactly 16 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(VolumeId)
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_uuid(f, &self.0)
    }
}

/// 64 random bits, never 0.
pub fn random_id() -> u64 {
    rand::random::<u64>().max(1)
}

fn write_uuid(f: &mut fmt::Formatter<'_>, bytes: &[u8; 16]) -> fmt::Result {
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            f.write_str("-")?;
        }
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let value = u128::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?;
    Some(value.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gfid_keeps_its_parts_and_its_text() {
        let gfid = Gfid::new(Slot::new(16383), 1_700_000_000_000_000, 0xdead_beef);
        assert_eq!(gfid.slot().get(), 16383);
        assert_eq!(gfid.clock_us(), 1_700_000_000_000_000 & CLOCK_MASK);
        assert_eq!(Gfid::from_bytes(gfid.to_bytes()), gfid);
        assert_eq!(gfid.to_string().parse::<Gfid>().unwrap(), gfid);
        assert!("nonsense".parse::<Gfid>().is_err());
    }

    #[test]
    fn a_maker_never_repeats_its_clock() {
        let maker = GfidMaker::default();
        let mut last = 0;
        for _ in 0..1000 {
            let clock = maker.make(Slot::new(5)).clock_us();
            assert!(clock > last);
            last = clock;
        }
    }
}
