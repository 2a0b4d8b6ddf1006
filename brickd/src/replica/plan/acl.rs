//! POSIX ACLs as xattr values: reading, checking, inheriting.
//!
//! The format is the kernel's, version 2: a u32 of version, then entries of u16 tag, u16
//! permissions, u32 id, little-endian.

use mortar_common::FsError;

/// Xattr of an object's own ACL.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// Xattr of the ACL a directory hands to what is made in it.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;
const RWX: u16 = 7;
const MODE_BITS: u32 = 0o777;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A valid ACL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Acl {
    entries: Vec<Entry>,
}

/// Whether an ACL says more than the nine mode bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Says {
    /// The mode alone would do: the ACL is not stored.
    NoMore,
    /// It has named users, groups or a mask.
    More,
}

/// What a new object gets from its parent's default ACL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Inherited {
    /// Its mode.
    pub(super) mode: u32,
    /// Its own ACL as an xattr value; empty = none.
    pub(super) access: Vec<u8>,
    /// What it hands on, if it is a directory; empty = none.
    pub(super) default: Vec<u8>,
}

impl Acl {
    /// Reads an xattr's value; `None` = an ACL without entries, which means "no ACL".
    pub(super) fn parse(value: &[u8]) -> Result<Option<Acl>, FsError> {
        if value.is_empty() {
            return Ok(None);
        }
        let (version, entries) = value
            .split_at_checked(HEADER_BYTES)
            .ok_or(FsError::Invalid)?;
        if version != VERSION.to_le_bytes() {
            return Err(FsError::NotSupported);
        }
        if !entries.len().is_multiple_of(ENTRY_BYTES) {
            return Err(FsError::Invalid);
        }
        let entries: Vec<Entry> = entries
            .chunks_exact(ENTRY_BYTES)
            .map(|bytes| Entry {
                tag: u16::from_le_bytes([bytes[0], bytes[1]]),
                perm: u16::from_le_bytes([bytes[2], bytes[3]]),
                id: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            })
            .collect();
        if entries.is_empty() {
            return Ok(None);
        }
        let acl = Acl { entries };
        if acl.is_valid() {
            Ok(Some(acl))
        } else {
            Err(FsError::Invalid)
        }
    }

    /// The xattr's value.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut value = Vec::with_capacity(HEADER_BYTES + ENTRY_BYTES * self.entries.len());
        value.extend_from_slice(&VERSION.to_le_bytes());
        for entry in &self.entries {
            value.extend_from_slice(&entry.tag.to_le_bytes());
            value.extend_from_slice(&entry.perm.to_le_bytes());
            let id = if matches!(entry.tag, USER | GROUP) {
                entry.id
            } else {
                NO_ID
            };
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    /// The mode of an object that is given this ACL as its own, and whether the ACL is needed
    /// besides.
    pub(super) fn mode_of(&self, mode: u32) -> (u32, Says) {
        let mut bits = 0;
        let mut says = Says::NoMore;
        for entry in &self.entries {
            let perm = u32::from(entry.perm);
            match entry.tag {
                USER_OBJ => bits |= perm << 6,
                GROUP_OBJ => bits |= perm << 3,
                OTHER => bits |= perm,
                MASK => {
                    bits = bits & !0o070 | perm << 3;
                    says = Says::More;
                }
                _ => says = Says::More,
            }
        }
        (mode & !MODE_BITS | bits, says)
    }

    /// What a new object gets from this default ACL. `mode` is what its maker asked for, with the
    /// type bits and without the umask, which does not count here.
    pub(super) fn inherit(&self, mode: u32, directory: bool) -> Inherited {
        let mut access = self.clone();
        let has_mask = access.entries.iter().any(|entry| entry.tag == MASK);
        let mut bits = mode & MODE_BITS;
        let mut says = Says::NoMore;
        for entry in &mut access.entries {
            let shift = match entry.tag {
                USER_OBJ => 6,
                GROUP_OBJ if !has_mask => 3,
                MASK => 3,
                OTHER => 0,
                _ => {
                    if matches!(entry.tag, USER | GROUP) {
                        says = Says::More;
                    }
                    continue;
                }
            };
            if entry.tag == MASK {
                says = Says::More;
            }
            entry.perm &= (bits >> shift) as u16 & RWX;
            bits = bits & !(u32::from(RWX) << shift) | u32::from(entry.perm) << shift;
        }
        Inherited {
            mode: mode & !MODE_BITS | bits,
            access: if says == Says::More {
                access.to_bytes()
            } else {
                Vec::new()
            },
            default: if directory {
                self.to_bytes()
            } else {
                Vec::new()
            },
        }
    }

    /// Owner, users, owning group, groups, mask, others, in this order; the mask is there when
    /// anybody is named; permissions are rwx only; named ids are ids.
    fn is_valid(&self) -> bool {
        let rank = |tag| match tag {
            USER_OBJ => Some(0),
            USER => Some(1),
            GROUP_OBJ => Some(2),
            GROUP => Some(3),
            MASK => Some(4),
            OTHER => Some(5),
            _ => None,
        };
        let count = |tag| self.entries.iter().filter(|entry| entry.tag == tag).count();
        let ranks: Option<Vec<u8>> = self.entries.iter().map(|entry| rank(entry.tag)).collect();
        let in_order = ranks.is_some_and(|ranks| ranks.is_sorted());
        let named = count(USER) + count(GROUP);
        let each_is_sane = self.entries.iter().all(|entry| {
            entry.perm & !RWX == 0 && (!matches!(entry.tag, USER | GROUP) || entry.id != NO_ID)
        });
        in_order
            && each_is_sane
            && [USER_OBJ, GROUP_OBJ, OTHER]
                .into_iter()
                .all(|tag| count(tag) == 1)
            && count(MASK) <= 1
            && (named == 0 || count(MASK) == 1)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An ACL's value from (tag, perm, id).
    pub(crate) fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entries = entries
            .iter()
            .map(|&(tag, perm, id)| Entry { tag, perm, id })
            .collect();
        Acl { entries }.to_bytes()
    }

    /// `user::rwx,user:1000:rwx,group::r-x,mask::rwx,other::---`
    pub(crate) fn with_a_named_user() -> Vec<u8> {
        value(&[
            (USER_OBJ, 7, 0),
            (USER, 7, 1000),
            (GROUP_OBJ, 5, 0),
            (MASK, 7, 0),
            (OTHER, 0, 0),
        ])
    }

    fn parse(value: &[u8]) -> Acl {
        Acl::parse(value).unwrap().unwrap()
    }

    #[test]
    fn a_value_comes_back_as_it_went() {
        // As `setfacl -m u:1000:rwx` on a 0750 directory leaves it on ext4.
        let kernel = [
            2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 7, 0, 232, 3, 0, 0, 4, 0, 5, 0, 255,
            255, 255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
        ];
        assert_eq!(parse(&kernel).to_bytes(), kernel);
        assert_eq!(with_a_named_user(), kernel);
    }

    #[test]
    fn what_the_kernel_refuses_is_refused() {
        assert_eq!(Acl::parse(b""), Ok(None));
        assert_eq!(Acl::parse(&[2, 0, 0, 0]), Ok(None));
        assert_eq!(Acl::parse(&[2, 0]), Err(FsError::Invalid));
        assert_eq!(Acl::parse(&[1, 0, 0, 0]), Err(FsError::NotSupported));
        assert_eq!(Acl::parse(&[2, 0, 0, 0, 1]), Err(FsError::Invalid));
        let bad: [&[(u16, u16, u32)]; 6] = [
            &[(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0)],
            &[
                (USER_OBJ, 7, 0),
                (USER, 7, 1),
                (GROUP_OBJ, 5, 0),
                (OTHER, 0, 0),
            ],
            &[(GROUP_OBJ, 7, 0), (USER_OBJ, 5, 0), (OTHER, 0, 0)],
            &[(USER_OBJ, 8, 0), (GROUP_OBJ, 5, 0), (OTHER, 0, 0)],
            &[
                (USER_OBJ, 7, 0),
                (GROUP_OBJ, 5, 0),
                (OTHER, 0, 0),
                (64, 0, 0),
            ],
            &[
                (USER_OBJ, 7, 0),
                (USER, 7, NO_ID),
                (GROUP_OBJ, 5, 0),
                (MASK, 7, 0),
                (OTHER, 0, 0),
            ],
        ];
        for entries in bad {
            assert_eq!(
                Acl::parse(&value(entries)),
                Err(FsError::Invalid),
                "{entries:?}"
            );
        }
    }

    #[test]
    fn an_acl_sets_the_mode() {
        let plain = value(&[(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)]);
        assert_eq!(parse(&plain).mode_of(0o104777), (0o104640, Says::NoMore));
        // The group bits of the mode are the mask.
        assert_eq!(
            parse(&with_a_named_user()).mode_of(0o100600),
            (0o100770, Says::More)
        );
    }

    #[test]
    fn a_new_object_inherits_what_its_maker_asked_for_at_most() {
        let acl = parse(&with_a_named_user());
        let file = acl.inherit(libc::S_IFREG | 0o666, false);
        assert_eq!(file.mode, libc::S_IFREG | 0o660);
        let expected = [
            (USER_OBJ, 6, 0),
            (USER, 7, 1000),
            (GROUP_OBJ, 5, 0),
            (MASK, 6, 0),
            (OTHER, 0, 0),
        ];
        assert_eq!((file.access, file.default), (value(&expected), Vec::new()));

        let directory = acl.inherit(libc::S_IFDIR | 0o777, true);
        assert_eq!(directory.mode, libc::S_IFDIR | 0o770);
        assert_eq!(directory.access, with_a_named_user());
        assert_eq!(directory.default, with_a_named_user());
    }

    #[test]
    fn a_default_acl_without_names_leaves_only_a_mode() {
        let acl = parse(&value(&[
            (USER_OBJ, 7, 0),
            (GROUP_OBJ, 5, 0),
            (OTHER, 5, 0),
        ]));
        let file = acl.inherit(libc::S_IFREG | 0o666, false);
        assert_eq!(file.mode, libc::S_IFREG | 0o644);
        assert!(file.access.is_empty());
        assert!(!acl.inherit(libc::S_IFDIR | 0o777, true).default.is_empty());
    }
}
