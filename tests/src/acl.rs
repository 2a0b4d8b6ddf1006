//! POSIX ACLs as the kernel takes them (`linux/posix_acl_xattr.h`).

/// Stands for the id of an entry that is of no user and no group by name.
pub const NOBODY: u32 = u32::MAX;

/// The xattr's value for these entries: (tag, permissions, id).
pub fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}
