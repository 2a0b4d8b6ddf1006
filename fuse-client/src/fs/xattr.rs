//! GETXATTR, LISTXATTR, SETXATTR, REMOVEXATTR.

use bytes::Bytes;
use mortar_common::FsError;
use mortar_proto::data::{
    Caller, GetXattr, ListXattr, Presence, RemoveXattr, SetXattr, op, result,
};

use super::{Fs, FsResult, KillSetId, is_ordinary};
use crate::cache::{Attrs, NodeId};
use crate::session::Effect;

/// Longest name and value of an xattr the kernel lets through.
const NAME_BYTES_MAX: usize = 255;
const VALUE_BYTES_MAX: usize = 65_536;

const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// A value or a list, or how long it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum XattrAnswer {
    /// The caller asked for the length only.
    Len(u32),
    /// The bytes.
    Bytes(Bytes),
}

impl Fs {
    /// One value; `room` 0 asks for its length. What the object is known not to have is answered
    /// without asking the brick: `ls -l` and every first write ask for some.
    pub fn getxattr(
        &self,
        caller: Caller,
        node: NodeId,
        name: &[u8],
        room: u32,
    ) -> FsResult<XattrAnswer> {
        let gfid = self.inodes.gfid(node)?;
        let kind = presence_of(name)?;
        if let Some((attrs, _)) = self.inodes.fresh(node)
            && !attrs.has(kind)
        {
            return Err(FsError::NoAttribute);
        }
        let get = GetXattr {
            gfid: Some(gfid),
            name: Bytes::copy_from_slice(name),
        };
        let (result, _, _) = self.read_op(caller, op::Op::Getxattr(get))?;
        fit(result.ok, room)
    }

    /// The names, each ended by NUL; `room` 0 asks for the length of the list.
    pub fn listxattr(&self, caller: Caller, node: NodeId, room: u32) -> FsResult<XattrAnswer> {
        let gfid = self.inodes.gfid(node)?;
        if let Some((Attrs { presence: 0, .. }, _)) = self.inodes.fresh(node) {
            return fit(Some(result::Ok::Bytes(Bytes::new())), room);
        }
        let (result, _, _) =
            self.read_op(caller, op::Op::Listxattr(ListXattr { gfid: Some(gfid) }))?;
        let Some(result::Ok::Bytes(mut names)) = result.ok else {
            return Err(FsError::Io);
        };
        if is_ordinary(&caller) {
            names = names
                .split_inclusive(|byte| *byte == 0)
                .filter(|name| !name.starts_with(b"trusted."))
                .flatten()
                .copied()
                .collect();
        }
        fit(Some(result::Ok::Bytes(names)), room)
    }

    /// Sets a value; `flags` as setxattr(2) has them. An access ACL may clear setgid.
    pub fn setxattr(
        &self,
        caller: Caller,
        node: NodeId,
        name: &[u8],
        value: &[u8],
        flags: u32,
        kill_sgid: KillSetId,
    ) -> FsResult<()> {
        let gfid = self.inodes.gfid(node)?;
        presence_of(name)?;
        if value.len() > VALUE_BYTES_MAX {
            return Err(FsError::TooBig);
        }
        let kill_sgid = name == ACL_ACCESS
            && match kill_sgid {
                KillSetId::Yes => true,
                KillSetId::No => false,
                KillSetId::NotTold => {
                    let (attrs, _) = self.getattr(caller, node)?;
                    is_ordinary(&caller) && !in_group(&caller, attrs.gid)
                }
            };
        let set = SetXattr {
            gfid: Some(gfid),
            name: Bytes::copy_from_slice(name),
            value: Bytes::copy_from_slice(value),
            flags,
            kill_sgid,
        };
        let (_, sent_at) = self.change_op(caller, op::Op::Setxattr(set), Effect::Once)?;
        self.expire_if_not_told(node, sent_at);
        Ok(())
    }

    /// Removes a value.
    pub fn removexattr(&self, caller: Caller, node: NodeId, name: &[u8]) -> FsResult<()> {
        let gfid = self.inodes.gfid(node)?;
        let kind = presence_of(name)?;
        if let Some((attrs, _)) = self.inodes.fresh(node)
            && !attrs.has(kind)
        {
            // Taking away an ACL that is not there is no error.
            return match kind {
                Presence::AclAccess | Presence::AclDefault => Ok(()),
                _ => Err(FsError::NoAttribute),
            };
        }
        let remove = RemoveXattr {
            gfid: Some(gfid),
            name: Bytes::copy_from_slice(name),
        };
        let (_, sent_at) = self.change_op(caller, op::Op::Removexattr(remove), Effect::Once)?;
        self.expire_if_not_told(node, sent_at);
        Ok(())
    }

    /// The presence bits kept must not be older than this mount's own change.
    fn expire_if_not_told(&self, node: NodeId, sent_at: std::time::Instant) {
        if self
            .inodes
            .sent_at(node)
            .is_none_or(|known| known < sent_at)
        {
            self.inodes.expire(node);
        }
    }
}

/// The bit that says whether an object has anything of this name's kind.
fn presence_of(name: &[u8]) -> FsResult<Presence> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsError::Range);
    }
    match name {
        b"security.capability" => Ok(Presence::Capability),
        ACL_ACCESS => Ok(Presence::AclAccess),
        ACL_DEFAULT => Ok(Presence::AclDefault),
        b"user." | b"security." | b"trusted." => Err(FsError::Invalid),
        _ if name.starts_with(b"user.") => Ok(Presence::User),
        _ if name.starts_with(b"security.") => Ok(Presence::Security),
        _ if name.starts_with(b"trusted.") => Ok(Presence::Trusted),
        _ => Err(FsError::NotSupported),
    }
}

fn fit(ok: Option<result::Ok>, room: u32) -> FsResult<XattrAnswer> {
    let Some(result::Ok::Bytes(bytes)) = ok else {
        return Err(FsError::Io);
    };
    let len = u32::try_from(bytes.len()).map_err(|_| FsError::TooBig)?;
    match room {
        0 => Ok(XattrAnswer::Len(len)),
        room if len > room => Err(FsError::Range),
        _ => Ok(XattrAnswer::Bytes(bytes)),
    }
}

/// Whether the caller is in a group. Its supplementary groups do not come with the request.
fn in_group(caller: &Caller, gid: u32) -> bool {
    caller.gid == gid
        || std::fs::read_to_string(format!("/proc/{}/status", caller.pid)).is_ok_and(|status| {
            status
                .lines()
                .find_map(|line| line.strip_prefix("Groups:"))
                .is_some_and(|groups| groups.split_whitespace().any(|g| g.parse() == Ok(gid)))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_bit_or_are_not_supported() {
        assert_eq!(presence_of(b"user.a"), Ok(Presence::User));
        assert_eq!(presence_of(b"security.selinux"), Ok(Presence::Security));
        assert_eq!(
            presence_of(b"security.capability"),
            Ok(Presence::Capability)
        );
        assert_eq!(presence_of(b"system.nfs4_acl"), Err(FsError::NotSupported));
        assert_eq!(presence_of(b"user."), Err(FsError::Invalid));
    }

    #[test]
    fn a_value_fits_or_is_refused() {
        let bytes = || Some(result::Ok::Bytes(Bytes::from_static(b"12345")));
        assert_eq!(fit(bytes(), 0), Ok(XattrAnswer::Len(5)));
        assert_eq!(fit(bytes(), 4), Err(FsError::Range));
        assert!(matches!(fit(bytes(), 5), Ok(XattrAnswer::Bytes(_))));
    }
}
