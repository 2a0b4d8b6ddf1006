//! Extended attributes and ACLs are set and removed.

use bytes::Bytes;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::change::Step;
use mortar_proto::data::{Object, Presence, RemoveXattr, RemoveXattrStep, SetXattr, SetXattrStep};

use super::acl::{self, Acl};
use super::context::{METADATA_BYTES, S_ISGID, has, is_dir, is_file, is_symlink};
use super::{Context, PlanError, Planned};

/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// Largest value, in bytes.
const VALUE_BYTES_MAX: usize = 65_536;
/// What a disk keeps beside an attribute's name and value.
const ENTRY_BYTES: usize = 16;
/// The brick's own attribute: it is not there for callers.
const PRIVATE: &[u8] = b"trusted.mortar";

/// What a name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Family {
    User,
    Plain,
    AclAccess,
    AclDefault,
}

pub(super) fn set(op: &SetXattr, context: &Context<'_>) -> Result<Planned, PlanError> {
    let gfid = context.named(op.gfid)?;
    let family = family_of(&op.name)?;
    if is_private(&op.name) {
        return Err(FsError::NotPermitted.into());
    }
    if op.value.len() > VALUE_BYTES_MAX {
        return Err(FsError::TooBig.into());
    }
    let (create, replace) = flags_of(op.flags)?;
    let object = context.object(gfid)?;
    let value = match family {
        Family::AclAccess | Family::AclDefault => match Acl::parse(&op.value)? {
            Some(acl) => return set_acl(op, family, &acl, gfid, &object, context),
            None => return remove_acl(&op.name, family, gfid, &object),
        },
        Family::User if !is_file(&object) && !is_dir(&object) => {
            return Err(FsError::NotPermitted.into());
        }
        Family::User | Family::Plain => &op.value,
    };
    let there = value_of(gfid, &op.name, context)?.is_some();
    if create && there {
        return Err(FsError::Exists.into());
    }
    if replace && !there {
        return Err(FsError::NoAttribute.into());
    }
    step(gfid, &object, &op.name, value.clone(), None, context)
}

pub(super) fn remove(op: &RemoveXattr, context: &Context<'_>) -> Result<Planned, PlanError> {
    let gfid = context.named(op.gfid)?;
    let family = family_of(&op.name)?;
    let object = context.object(gfid)?;
    match family {
        Family::AclAccess | Family::AclDefault => {
            return remove_acl(&op.name, family, gfid, &object);
        }
        Family::User if !is_file(&object) && !is_dir(&object) => {
            return Err(FsError::NotPermitted.into());
        }
        Family::User | Family::Plain => {}
    }
    if is_private(&op.name) || value_of(gfid, &op.name, context)?.is_none() {
        return Err(FsError::NoAttribute.into());
    }
    let step = RemoveXattrStep {
        gfid: Some(gfid),
        name: op.name.clone(),
    };
    Ok(Planned::disk(Step::Removexattr(step), vec![gfid]))
}

/// Whether a name is one callers never see.
pub(super) fn is_private(name: &[u8]) -> bool {
    name == PRIVATE
}

fn family_of(name: &[u8]) -> Result<Family, PlanError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(&0) {
        return Err(FsError::Range.into());
    }
    if name == acl::ACCESS {
        return Ok(Family::AclAccess);
    }
    if name == acl::DEFAULT {
        return Ok(Family::AclDefault);
    }
    for (prefix, family) in [
        (&b"user."[..], Family::User),
        (b"trusted.", Family::Plain),
        (b"security.", Family::Plain),
    ] {
        match name.strip_prefix(prefix) {
            Some([]) => return Err(FsError::Invalid.into()),
            Some(_) => return Ok(family),
            None => {}
        }
    }
    Err(FsError::NotSupported.into())
}

/// XATTR_CREATE, XATTR_REPLACE.
fn flags_of(flags: u32) -> Result<(bool, bool), PlanError> {
    match flags as i32 {
        0 => Ok((false, false)),
        libc::XATTR_CREATE => Ok((true, false)),
        libc::XATTR_REPLACE => Ok((false, true)),
        _ => Err(FsError::Invalid.into()),
    }
}

fn value_of(gfid: Gfid, name: &[u8], context: &Context<'_>) -> Result<Option<Bytes>, PlanError> {
    match context.store.get_xattr(gfid, name).map_err(PlanError::from) {
        Ok(value) => Ok(Some(value)),
        Err(PlanError::Refused(FsError::NoAttribute)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn set_acl(
    op: &SetXattr,
    family: Family,
    acl: &Acl,
    gfid: Gfid,
    object: &Object,
    context: &Context<'_>,
) -> Result<Planned, PlanError> {
    if is_symlink(object) {
        return Err(FsError::NotSupported.into());
    }
    if family == Family::AclDefault {
        if !is_dir(object) {
            return Err(FsError::Access.into());
        }
        return step(gfid, object, &op.name, acl.to_bytes().into(), None, context);
    }
    let (mut mode, _) = acl.mode_of(object.mode);
    if op.kill_sgid {
        mode &= !S_ISGID;
    }
    let new_mode = (mode != object.mode).then_some(mode);
    step(
        gfid,
        object,
        &op.name,
        acl.to_bytes().into(),
        new_mode,
        context,
    )
}

/// Taking away an ACL that is not there succeeds, and the mode stays as it is.
fn remove_acl(
    name: &Bytes,
    family: Family,
    gfid: Gfid,
    object: &Object,
) -> Result<Planned, PlanError> {
    if is_symlink(object) {
        return Err(FsError::NotSupported.into());
    }
    let bit = match family {
        Family::AclAccess => Presence::AclAccess,
        _ => Presence::AclDefault,
    };
    if !has(object, bit) {
        return Ok(Planned::nothing(vec![gfid]));
    }
    let step = RemoveXattrStep {
        gfid: Some(gfid),
        name: name.clone(),
    };
    Ok(Planned::disk(Step::Removexattr(step), vec![gfid]))
}

fn step(
    gfid: Gfid,
    object: &Object,
    name: &Bytes,
    value: Bytes,
    new_mode: Option<u32>,
    context: &Context<'_>,
) -> Result<Planned, PlanError> {
    check_bytes(gfid, object, name, value.len(), context)?;
    context.check_space(METADATA_BYTES, 0)?;
    let step = SetXattrStep {
        gfid: Some(gfid),
        name: name.clone(),
        value,
        new_mode,
    };
    let planned = Planned::disk(Step::Setxattr(step), vec![gfid]).taking(METADATA_BYTES);
    Ok(planned)
}

/// ENOSPC when the object's attributes would be above the volume's limit.
fn check_bytes(
    gfid: Gfid,
    object: &Object,
    name: &[u8],
    value_bytes: usize,
    context: &Context<'_>,
) -> Result<(), PlanError> {
    let most = context.limits.xattr_bytes as usize;
    if most == 0 {
        return Ok(());
    }
    let mut total = ENTRY_BYTES + name.len() + value_bytes;
    if object.presence != 0 && total <= most {
        let names = context.store.list_xattr(gfid)?;
        for other in names.split(|byte| *byte == 0) {
            if !other.is_empty() && other != name {
                let bytes = value_of(gfid, other, context)?.map_or(0, |value| value.len());
                total += ENTRY_BYTES + other.len() + bytes;
            }
        }
    }
    if total > most {
        Err(FsError::NoSpace.into())
    } else {
        Ok(())
    }
}
