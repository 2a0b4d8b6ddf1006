//! Names move: replacing, not replacing, exchanging, leaving a whiteout.

use mortar_common::{FsError, Gfid};
use mortar_proto::data::change::Step;
use mortar_proto::data::{Object, Rename, RenameMode, RenameStep};

use super::context::{
    METADATA_BYTES, check_name, check_new_name, gfid_of, group_of_new, is_dir, lookup,
};
use super::unlink::without_links;
use super::{Context, Plan, PlanError, Planned};
use crate::replica::keys::{Key, Keys, Mode};

/// Directories between the root and an object; deeper is taken for a damaged tree.
const ANCESTORS_MAX: usize = 1 << 16;

/// A rename with everything it names looked up.
struct Looked<'a> {
    op: &'a Rename,
    how: RenameMode,
    from_parent: Gfid,
    from_directory: Object,
    to_parent: Gfid,
    to_directory: Object,
    gfid: Gfid,
    source: Object,
    target: Option<(Gfid, Object)>,
}

pub(super) fn rename(op: &Rename, context: &Context<'_>) -> Result<Plan, PlanError> {
    let looked = look(op, context)?;
    let target = looked.target.as_ref();
    match (looked.how, target) {
        (RenameMode::RenameNoreplace | RenameMode::RenameWhiteoutNoreplace, Some(_)) => {
            return Err(FsError::Exists.into());
        }
        (RenameMode::RenameExchange, None) => return Err(FsError::NotFound.into()),
        _ => {}
    }
    if looked.moves_directory() {
        let mut tree = Keys::none();
        tree.add(Key::Tree, Mode::Change);
        if !context.held.covers(&tree) {
            return Ok(Plan::MoreKeys(context.held.clone().union(&tree)));
        }
    }
    looked.check_ancestors(context)?;
    let touched = vec![looked.gfid, looked.from_parent, looked.to_parent];
    if target.is_some_and(|(gfid, _)| *gfid == looked.gfid) {
        // Two names of one object: POSIX wants nothing to happen.
        return Ok(Planned::nothing(touched).into());
    }
    looked.check_types(context)?;
    looked.step(touched, context)
}

fn look<'a>(op: &'a Rename, context: &Context<'_>) -> Result<Looked<'a>, PlanError> {
    let how = RenameMode::try_from(op.how).map_err(|_| FsError::Invalid)?;
    let from_parent = context.named(op.from_parent)?;
    let to_parent = context.named(op.to_parent)?;
    check_name(from_parent, &op.from_name)?;
    check_new_name(to_parent, &op.to_name)?;
    let from_directory = context.directory(from_parent)?;
    let to_directory = context.directory(to_parent)?;
    let (gfid, source) = context.entry(from_parent, &op.from_name, op.gfid)?;
    let target = match lookup(context.store, to_parent, &op.to_name)? {
        Some(object) => Some((gfid_of(&object)?, object)),
        None => None,
    };
    let found = target.as_ref().map(|(gfid, _)| *gfid);
    if op.to_gfid.is_some() && found.is_some() && op.to_gfid != found {
        return Err(FsError::Stale.into());
    }
    Ok(Looked {
        op,
        how,
        from_parent,
        from_directory,
        to_parent,
        to_directory,
        gfid,
        source,
        target,
    })
}

impl Looked<'_> {
    /// Whether a directory changes its parent, so that what lies below what changes.
    fn moves_directory(&self) -> bool {
        let target_moves = self.how == RenameMode::RenameExchange
            && self
                .target
                .as_ref()
                .is_some_and(|(_, target)| is_dir(target));
        self.from_parent != self.to_parent && (is_dir(&self.source) || target_moves)
    }

    /// A directory cannot go below itself, nor replace one that it lies below.
    fn check_ancestors(&self, context: &Context<'_>) -> Result<(), PlanError> {
        if self.from_parent == self.to_parent {
            return Ok(());
        }
        if is_dir(&self.source) && lies_at_or_below(self.to_parent, self.gfid, context)? {
            return Err(FsError::Invalid.into());
        }
        if let Some((gfid, target)) = &self.target
            && is_dir(target)
            && lies_at_or_below(self.from_parent, *gfid, context)?
        {
            return Err(match self.how {
                RenameMode::RenameExchange => FsError::Invalid.into(),
                _ => FsError::NotEmpty.into(),
            });
        }
        Ok(())
    }

    /// Whether source and target may stand for each other, and the new parent may take one more.
    fn check_types(&self, context: &Context<'_>) -> Result<(), PlanError> {
        let source_is_dir = is_dir(&self.source);
        let target_is_dir = self.target.as_ref().map(|(_, target)| is_dir(target));
        if self.how == RenameMode::RenameExchange {
            if self.from_parent != self.to_parent && source_is_dir && target_is_dir == Some(false) {
                context.check_links(&self.to_directory)?;
            }
            if self.from_parent != self.to_parent && !source_is_dir && target_is_dir == Some(true) {
                context.check_links(&context.directory(self.from_parent)?)?;
            }
            return Ok(());
        }
        match (source_is_dir, target_is_dir) {
            (true, Some(false)) => return Err(FsError::NotDirectory.into()),
            (false, Some(true)) => return Err(FsError::IsDirectory.into()),
            (true, None) if self.from_parent != self.to_parent => {
                context.check_links(&self.to_directory)?;
            }
            _ => {}
        }
        if let (Some((gfid, _)), Some(true)) = (&self.target, target_is_dir)
            && !context.store.is_empty_dir(*gfid)?
        {
            return Err(FsError::NotEmpty.into());
        }
        Ok(())
    }

    fn step(&self, mut touched: Vec<Gfid>, context: &Context<'_>) -> Result<Plan, PlanError> {
        let mut bytes = 0;
        // That the name was free is seen by now.
        let how = match self.how {
            RenameMode::RenameWhiteoutNoreplace => RenameMode::RenameWhiteout,
            how => how,
        };
        let whiteout = match how {
            RenameMode::RenameWhiteout => {
                let gfid = self.op.whiteout.ok_or(FsError::Invalid)?;
                context.check_new_gfid(gfid, self.from_parent, &self.op.from_name)?;
                bytes = METADATA_BYTES;
                context.check_space(bytes, 1)?;
                Some(gfid)
            }
            _ => None,
        };
        let mut freed = None;
        let mut replaced_orphan = false;
        if let Some((gfid, target)) = self.target
            && self.how != RenameMode::RenameExchange
        {
            let is_last = is_dir(&target) || target.nlink <= 1;
            replaced_orphan = is_last && !is_dir(&target) && context.is_open(gfid);
            freed = (is_last && !replaced_orphan).then(|| without_links(target));
        }
        let replaced = self.target.as_ref().map(|(gfid, _)| *gfid);
        touched.extend(replaced);
        let step = RenameStep {
            from_parent: Some(self.from_parent),
            from_name: self.op.from_name.clone(),
            gfid: Some(self.gfid),
            to_parent: Some(self.to_parent),
            to_name: self.op.to_name.clone(),
            replaced,
            replaced_orphan,
            how: how.into(),
            whiteout,
            whiteout_uid: context.caller.uid,
            whiteout_gid: group_of_new(&self.from_directory, context.caller),
            moves_directory: self.moves_directory(),
        };
        let mut planned = Planned::disk(Step::Rename(step), touched).taking(bytes);
        planned.freed = freed;
        Ok(planned.into())
    }
}

/// Whether directory `below` is `above` or lies somewhere in it.
fn lies_at_or_below(below: Gfid, above: Gfid, context: &Context<'_>) -> Result<bool, PlanError> {
    let mut at = below;
    for _ in 0..ANCESTORS_MAX {
        if at == above {
            return Ok(true);
        }
        if at == Gfid::ROOT {
            return Ok(false);
        }
        at = context
            .store
            .parent_of_dir(at)
            .map_err(super::context::stale)?;
    }
    Err(FsError::Loop.into())
}
