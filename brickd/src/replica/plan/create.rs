//! Files, directories, symlinks and special files come to be.

use bytes::Bytes;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::change::Step;
use mortar_proto::data::{Create, CreateStep, Object, OpenStep, Presence};

use super::acl::{self, Acl, Inherited};
use super::context::{
    METADATA_BYTES, PERMISSIONS, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, S_ISGID, check_new_name,
    group_of_new, has, is_dir, is_file, lookup,
};
use super::{Context, PlanError, Planned};

/// Longest text of a symlink, in bytes.
const TARGET_BYTES_MAX: usize = 4095;

pub(super) fn create(op: &Create, context: &Context<'_>) -> Result<Planned, PlanError> {
    let parent_gfid = context.named(op.parent)?;
    let gfid = op.gfid.ok_or(FsError::Invalid)?;
    let has_name = !op.name.is_empty();
    if has_name {
        check_new_name(parent_gfid, &op.name)?;
    } else if !op.open || with_type(op.mode)? & S_IFMT != S_IFREG {
        return Err(FsError::Invalid.into());
    }
    let parent = context.directory(parent_gfid)?;
    if op.open {
        context.check_open()?;
    }
    let found = match has_name {
        true => lookup(context.store, parent_gfid, &op.name)?,
        false => made_before(gfid, context)?,
    };
    if let Some(found) = found {
        return found_instead(op, context, parent_gfid, &found);
    }
    let mode = with_type(op.mode)?;
    check_target(mode, &op.target)?;
    context.check_new_gfid(gfid, parent_gfid, &op.name)?;
    if mode & S_IFMT == S_IFDIR {
        context.check_links(&parent)?;
    }
    let made = inherit(mode, &parent, parent_gfid, context)?;
    let acl_bytes = made.access.len() + made.default.len();
    if context.limits.xattr_bytes != 0 && acl_bytes > context.limits.xattr_bytes as usize {
        return Err(FsError::NoSpace.into());
    }
    let bytes = METADATA_BYTES + op.target.len() as u64;
    context.check_space(bytes, 1)?;
    let is_device = matches!(mode & S_IFMT, libc::S_IFCHR | libc::S_IFBLK);
    let step = CreateStep {
        parent: Some(parent_gfid),
        name: op.name.clone(),
        gfid: Some(gfid),
        mode: made.mode,
        uid: context.caller.uid,
        gid: group_of_new(&parent, context.caller),
        rdev: if is_device { op.rdev } else { 0 },
        target: if mode & S_IFMT == S_IFLNK {
            op.target.clone()
        } else {
            Bytes::new()
        },
        acl_access: made.access.into(),
        acl_default: made.default.into(),
        open: op.open,
    };
    let mut touched = vec![gfid];
    touched.extend(has_name.then_some(parent_gfid));
    let planned = Planned::disk(Step::Create(step), touched);
    Ok(planned.created().taking(bytes))
}

/// What a create without a name made before, if the record of that is lost.
fn made_before(gfid: Gfid, context: &Context<'_>) -> Result<Option<Object>, PlanError> {
    match context.object(gfid) {
        Ok(found) if is_file(&found) && found.nlink == 0 => Ok(Some(found)),
        Ok(_) => Err(FsError::Invalid.into()),
        Err(PlanError::Refused(FsError::Stale)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The name is taken: by this very create, done before by a copy whose record is lost; by a file
/// that will do; or the create is refused.
fn found_instead(
    op: &Create,
    context: &Context<'_>,
    parent: Gfid,
    found: &Object,
) -> Result<Planned, PlanError> {
    let gfid = super::context::gfid_of(found)?;
    let is_own = Some(gfid) == op.gfid;
    if !is_own {
        let wants_file = matches!(op.mode & S_IFMT, 0 | S_IFREG);
        if op.exclusive || !wants_file {
            return Err(FsError::Exists.into());
        }
        if is_dir(found) {
            return Err(FsError::IsDirectory.into());
        }
        if !is_file(found) {
            // A symlink or special file came there meanwhile: the kernel looks again and does
            // with it what is to be done.
            return Err(FsError::Stale.into());
        }
    }
    let touched = vec![gfid, parent];
    let planned = if op.open && !context.ask(|memory| memory.has_open(context.session, gfid)) {
        let step = OpenStep {
            session: context.session.0,
            gfid: Some(gfid),
        };
        Planned::memory(Step::Open(step), touched)
    } else {
        Planned::nothing(touched)
    };
    Ok(if is_own { planned.created() } else { planned })
}

/// The mode with a type: none means a regular file.
fn with_type(mode: u32) -> Result<u32, PlanError> {
    let kind = match mode & S_IFMT {
        0 => S_IFREG,
        kind @ (S_IFREG
        | S_IFDIR
        | S_IFLNK
        | libc::S_IFIFO
        | libc::S_IFSOCK
        | libc::S_IFCHR
        | libc::S_IFBLK) => kind,
        _ => return Err(FsError::Invalid.into()),
    };
    Ok(kind | mode & PERMISSIONS)
}

fn check_target(mode: u32, target: &[u8]) -> Result<(), PlanError> {
    if mode & S_IFMT != S_IFLNK {
        return Ok(());
    }
    if target.is_empty() {
        return Err(FsError::NotFound.into());
    }
    if target.len() > TARGET_BYTES_MAX {
        return Err(FsError::NameTooLong.into());
    }
    if target.contains(&0) {
        return Err(FsError::Invalid.into());
    }
    Ok(())
}

/// Mode and ACLs of what is made: by the parent's default ACL, or else by the umask; a directory
/// in a setgid directory is setgid itself.
fn inherit(
    mode: u32,
    parent: &Object,
    parent_gfid: Gfid,
    context: &Context<'_>,
) -> Result<Inherited, PlanError> {
    if mode & S_IFMT == S_IFLNK {
        return Ok(Inherited {
            mode: S_IFLNK | 0o777,
            access: Vec::new(),
            default: Vec::new(),
        });
    }
    let directory = mode & S_IFMT == S_IFDIR;
    let default = if has(parent, Presence::AclDefault) {
        Acl::parse(&context.store.get_xattr(parent_gfid, acl::DEFAULT)?)?
    } else {
        None
    };
    let mut made = match default {
        Some(default) => default.inherit(mode, directory),
        None => Inherited {
            mode: mode & !(context.caller.umask & 0o777),
            access: Vec::new(),
            default: Vec::new(),
        },
    };
    if directory && parent.mode & S_ISGID != 0 {
        made.mode |= S_ISGID;
    }
    Ok(made)
}
