//! What a brick writes on its disk: names inside `.mortar`, and `trusted.mortar` byte for byte.
//!
//! `trusted.mortar` is the one xattr of an object. It stays inside a 256-byte inode (64 bytes of
//! value fit there); a second xattr would cost a 4 KiB block a file. Little-endian but the gfid:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | format version, 1 |
//! | 1 | 16 | gfid, big-endian as it is written |
//! | 17 | 1 | flags: which of the following parts there are, in this order |
//! | | 26 | flag 1, what is written back: ctime (8, packed as below), data counter (6), attribute counter (6), the disk's clock when this was written in ms since 1970 (6) |
//! | | 8 | flag 2: device number, as makedev gives it |
//! | | 8 | flag 4: atime of a symlink, packed; the disk's own changes whenever the link is read |
//!
//! A packed time is (seconds since 1970 + 2^31) << 30 | nanoseconds.
//!
//! So it has 17 bytes (gfid alone), 44 as a rule, 52 for a device or a symlink.

use std::ffi::CStr;

use mortar_common::Gfid;
use mortar_common::name::{PRIVATE_DIR, check_entry_name};
use mortar_proto::data::Time;
use rustix::io::Errno;

use super::store::handle_bucket;

/// The xattr that makes a file an object of a volume.
pub(super) const XATTR: &CStr = c"trusted.mortar";
/// Most bytes `trusted.mortar` may ever have.
pub(super) const XATTR_BYTES_MAX: usize = 60;
/// A device node of a user is kept with this number, so that a brick holds no working device.
pub(super) const INERT_DEVICE: u64 = 0;

const VERSION: u8 = 1;
const GFID_END: usize = 17;
const FLAG_WRITTEN: u8 = 1;
const FLAG_RDEV: u8 = 2;
const FLAG_ATIME: u8 = 4;
const NANOS_BITS: u32 = 30;

/// Times the disks of all copies can hold: what is outside is cut to them, on every copy alike.
const TIME_SECS_MIN: i64 = -(1 << 31);
const TIME_SECS_MAX: i64 = 0x3_7fff_ffff;

/// What `trusted.mortar` holds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Stored {
    pub gfid: Gfid,
    pub written: Option<Written>,
    pub rdev: Option<u64>,
    pub atime: Option<Time>,
}

/// The part that is written back from memory.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Written {
    pub ctime: Time,
    pub data_counter: u64,
    pub attr_counter: u64,
    /// The disk's clock at that moment.
    pub at_ms: u64,
}

/// An encoded `trusted.mortar`.
pub(super) struct Encoded {
    bytes: [u8; XATTR_BYTES_MAX],
    len: usize,
}

impl Encoded {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn put(&mut self, part: &[u8]) {
        self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
        self.len += part.len();
    }
}

impl Stored {
    pub fn encode(&self) -> Encoded {
        let mut out = Encoded {
            bytes: [0; XATTR_BYTES_MAX],
            len: 0,
        };
        out.put(&[VERSION]);
        out.put(&self.gfid.to_bytes());
        let flag = |there: bool, flag: u8| if there { flag } else { 0 };
        let flags = flag(self.written.is_some(), FLAG_WRITTEN)
            | flag(self.rdev.is_some(), FLAG_RDEV)
            | flag(self.atime.is_some(), FLAG_ATIME);
        if flags == 0 {
            return out;
        }
        out.put(&[flags]);
        if let Some(written) = &self.written {
            out.put(&pack_time(written.ctime).to_le_bytes());
            out.put(&written.data_counter.to_le_bytes()[..6]);
            out.put(&written.attr_counter.to_le_bytes()[..6]);
            out.put(&written.at_ms.to_le_bytes()[..6]);
        }
        if let Some(rdev) = self.rdev {
            out.put(&rdev.to_le_bytes());
        }
        if let Some(atime) = self.atime {
            out.put(&pack_time(atime).to_le_bytes());
        }
        out
    }

    /// `None`: not a `trusted.mortar` of this version, so the entry is a stray.
    pub fn decode(bytes: &[u8]) -> Option<Stored> {
        if bytes.len() < GFID_END || bytes[0] != VERSION {
            return None;
        }
        let gfid = Gfid::from_slice(&bytes[1..GFID_END])?;
        let mut rest = &bytes[GFID_END..];
        let mut stored = Stored {
            gfid,
            written: None,
            rdev: None,
            atime: None,
        };
        let Some(flags) = take(&mut rest, 1) else {
            return Some(stored);
        };
        if flags & u64::from(FLAG_WRITTEN) != 0 {
            stored.written = Some(Written {
                ctime: unpack_time(take(&mut rest, 8)?),
                data_counter: take(&mut rest, 6)?,
                attr_counter: take(&mut rest, 6)?,
                at_ms: take(&mut rest, 6)?,
            });
        }
        if flags & u64::from(FLAG_RDEV) != 0 {
            stored.rdev = Some(take(&mut rest, 8)?);
        }
        if flags & u64::from(FLAG_ATIME) != 0 {
            stored.atime = Some(unpack_time(take(&mut rest, 8)?));
        }
        rest.is_empty().then_some(stored)
    }
}

fn take(rest: &mut &[u8], len: usize) -> Option<u64> {
    let (part, after) = rest.split_at_checked(len)?;
    *rest = after;
    let mut bytes = [0; 8];
    bytes[..len].copy_from_slice(part);
    Some(u64::from_le_bytes(bytes))
}

/// 34 bits of seconds are exactly what [`clamp_time`] leaves.
fn pack_time(time: Time) -> u64 {
    let time = clamp_time(time);
    ((time.secs - TIME_SECS_MIN).cast_unsigned() << NANOS_BITS) | u64::from(time.nanos)
}

fn unpack_time(packed: u64) -> Time {
    let nanos = packed & ((1 << NANOS_BITS) - 1);
    Time {
        secs: (packed >> NANOS_BITS).cast_signed() + TIME_SECS_MIN,
        nanos: nanos as u32,
    }
}

/// Cuts a time to what every copy's disk can hold.
pub(super) fn clamp_time(time: Time) -> Time {
    if time.secs <= TIME_SECS_MIN {
        Time {
            secs: TIME_SECS_MIN,
            nanos: 0,
        }
    } else if time.secs >= TIME_SECS_MAX {
        Time {
            secs: TIME_SECS_MAX,
            nanos: 0,
        }
    } else {
        Time {
            secs: time.secs,
            nanos: time.nanos.min(999_999_999),
        }
    }
}

/// A checked name of an entry, ready for system calls.
pub(super) struct EntryName {
    bytes: [u8; 256],
    len: usize,
}

impl EntryName {
    /// EPERM for the brick's own folder.
    pub fn new(parent: Gfid, name: &[u8]) -> Result<Self, Errno> {
        check_entry_name(name).map_err(|error| Errno::from_raw_os_error(error.errno()))?;
        if parent == Gfid::ROOT && name == PRIVATE_DIR.as_bytes() {
            return Err(Errno::PERM);
        }
        Ok(Self::unchecked(name))
    }

    /// Of a name that came from the disk: at most 255 bytes, without NUL.
    pub fn unchecked(name: &[u8]) -> Self {
        let len = name.len().min(255);
        let mut bytes = [0; 256];
        bytes[..len].copy_from_slice(&name[..len]);
        EntryName { bytes, len }
    }

    pub fn c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes[..=self.len]).unwrap_or(c"")
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

const HANDLE_NAME_LEN: usize = 6 + 1 + 36;

/// The path of an object's handle below `.mortar/handle`: `<clock >> 28>/<gfid>`.
#[derive(Clone, Copy)]
pub(super) struct HandleName([u8; HANDLE_NAME_LEN + 1]);

impl HandleName {
    pub fn of(gfid: Gfid) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut bytes = [0; HANDLE_NAME_LEN + 1];
        let bucket = handle_bucket(gfid);
        for (at, byte) in bytes[..6].iter_mut().enumerate() {
            *byte = DIGITS[(bucket >> (20 - 4 * at) & 15) as usize];
        }
        bytes[6] = b'/';
        let mut at = 7;
        for (index, byte) in gfid.to_bytes().into_iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                bytes[at] = b'-';
                at += 1;
            }
            bytes[at] = DIGITS[usize::from(byte >> 4)];
            bytes[at + 1] = DIGITS[usize::from(byte & 15)];
            at += 2;
        }
        HandleName(bytes)
    }

    pub fn c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }

    /// The folder that holds the handles made in the same 268 seconds.
    pub fn bucket(&self) -> &[u8] {
        &self.0[..6]
    }

    /// The gfid as text: what the object is called in `txn/` and `orphan/`.
    pub fn gfid_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0[7..]).unwrap_or(c"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_common::placement::Slot;

    #[test]
    fn the_xattr_keeps_what_it_is_given_and_stays_small() {
        let gfid = Gfid::new(Slot::new(77), 1_700_000_000_000_000, 5);
        let written = Written {
            ctime: Time {
                secs: -5,
                nanos: 999_999_999,
            },
            data_counter: 1 << 40,
            attr_counter: (1 << 40) + 1,
            at_ms: 1_700_000_000_000,
        };
        let bare = Stored {
            gfid,
            written: None,
            rdev: None,
            atime: None,
        };
        let atime = Some(Time {
            secs: TIME_SECS_MAX,
            nanos: 0,
        });
        for (stored, len) in [
            (bare, 17),
            (
                Stored {
                    written: Some(written),
                    ..bare
                },
                44,
            ),
            (
                Stored {
                    written: Some(written),
                    rdev: Some(0x103),
                    ..bare
                },
                52,
            ),
            (
                Stored {
                    written: Some(written),
                    atime,
                    ..bare
                },
                52,
            ),
            (
                Stored {
                    rdev: Some(0x103),
                    ..bare
                },
                26,
            ),
        ] {
            let encoded = stored.encode();
            assert_eq!(encoded.bytes().len(), len);
            assert_eq!(Stored::decode(encoded.bytes()), Some(stored));
            for cut in 0..len {
                let cut_short = Stored::decode(&encoded.bytes()[..cut]);
                assert!(cut_short.is_none() || cut == 17, "{cut}");
            }
        }
        assert_eq!(Stored::decode(&[2; 17]), None);
    }

    #[test]
    fn a_handle_is_found_by_its_clock_and_gfid() {
        let gfid = Gfid::new(Slot::new(1), 0x3_ffff_f000_0000, 0xabc);
        let name = HandleName::of(gfid);
        assert_eq!(name.c_str().to_str().unwrap(), format!("3fffff/{gfid}"));
        assert_eq!(name.gfid_c_str().to_str().unwrap(), gfid.to_string());
        assert_eq!(name.bucket(), b"3fffff");
    }

    #[test]
    fn a_client_cannot_name_the_private_folder() {
        assert_eq!(
            EntryName::new(Gfid::ROOT, b".mortar").err(),
            Some(Errno::PERM)
        );
        assert!(EntryName::new(Gfid { hi: 1, lo: 7 }, b".mortar").is_ok());
        assert_eq!(EntryName::new(Gfid::ROOT, b"..").err(), Some(Errno::INVAL));
    }

    #[test]
    fn times_no_disk_can_hold_are_cut() {
        let cut = clamp_time(Time {
            secs: i64::MIN,
            nanos: 1,
        });
        assert_eq!(
            cut,
            Time {
                secs: TIME_SECS_MIN,
                nanos: 0
            }
        );
        assert_eq!(
            clamp_time(Time {
                secs: i64::MAX,
                nanos: 1
            })
            .secs,
            TIME_SECS_MAX
        );
    }
}
