//! Carrying what names hold.

use mortar_common::Gfid;
use mortar_proto::data::change::Step;
use mortar_proto::data::result::Ok as Answer;
use mortar_proto::data::{HealNameStep, Object, ReadDir, ReadDirPage};

use super::super::links::Held;
use super::super::port::{HealError, Key};
use super::super::query::{ask_read_dir, file_type, found};
use super::super::record::MarkRecord;
use super::super::touch::Touch;
use super::{Healer, Origin, SMALL_CHANGE, with_keys};

/// Names of a directory taken at a time.
const NAMES_BATCH: usize = 256;
/// How often a name is looked at again when it changes under the healer's eyes.
const ATTEMPTS_MAX: u32 = 4;
/// Directories moved out of the way of one another.
const DETOURS_MAX: u32 = 16;
/// Longest way up from a directory that is followed.
const DEPTH_MAX: usize = 4_096;
/// Bytes of names asked for in one page of a directory.
pub(super) const PAGE_BYTES: u32 = 64 * 1024;

/// What became of one name.
enum Named {
    Carried(u64),
    /// It holds something else by now.
    Changed(Option<Object>),
    /// Nothing is pending of it any more.
    Settled,
}

impl Healer<'_> {
    /// Carries the pending names of a directory that the copy has. The source may have lost it:
    /// then its names hold nothing.
    pub(super) fn heal_names(&mut self, parent: Gfid) -> Result<(), HealError> {
        loop {
            self.check_stopped()?;
            let names = self
                .marks()
                .look(|marks| marks.pending_names(parent, NAMES_BATCH));
            if names.is_empty() {
                return Ok(());
            }
            let mut held = Vec::with_capacity(names.len());
            for name in &names {
                held.push(found(self.port.source().lookup(parent, name))?);
            }
            let gfids: Vec<Gfid> = held
                .iter()
                .flatten()
                .filter_map(|object| object.gfid)
                .collect();
            self.ensure(&gfids)?;
            let mut carried = 0;
            for (name, held) in names.iter().zip(held) {
                carried += u32::from(self.heal_name(parent, name, held, DETOURS_MAX)?);
            }
            self.sync_if_due()?;
            if carried == 0 {
                return Ok(()); // Put off: the mark stays, and its turn comes again.
            }
        }
    }

    /// Carries one name that held `held` a moment ago. Whether it is settled; if not, it stays
    /// marked.
    fn heal_name(
        &mut self,
        parent: Gfid,
        name: &[u8],
        mut held: Option<Object>,
        detours: u32,
    ) -> Result<bool, HealError> {
        for _ in 0..ATTEMPTS_MAX {
            if let Some(object) = &held
                && file_type(object) == libc::S_IFDIR
                && !self.clear_the_way(parent, object.gfid.unwrap_or_default(), detours)?
            {
                return Ok(false);
            }
            self.port.make_room(SMALL_CHANGE)?;
            match self.send_name(parent, name, &held)? {
                Named::Carried(number) => {
                    self.count_sent(number, 0);
                    let gfid = held.and_then(|object| object.gfid).unwrap_or_default();
                    if let Some(seen) = self.known.get_mut(&gfid) {
                        seen.origin = Origin::Found;
                    }
                    return Ok(true);
                }
                Named::Settled => return Ok(true),
                Named::Changed(now) => {
                    let gfids: Vec<Gfid> = now.iter().filter_map(|object| object.gfid).collect();
                    self.ensure(&gfids)?;
                    held = now;
                }
            }
        }
        Ok(false)
    }

    fn send_name(
        &self,
        parent: Gfid,
        name: &[u8],
        held: &Option<Object>,
    ) -> Result<Named, HealError> {
        let (port, marks) = (self.port, self.marks());
        let gfid = held.as_ref().and_then(|object| object.gfid);
        let name = bytes::Bytes::copy_from_slice(name);
        let mut keys = vec![Key::Name(parent, name.clone())];
        keys.extend(gfid.map(Key::Object));
        with_keys(port, &keys, || {
            if !marks.look(|marks| marks.is_name_pending(parent, &name)) {
                return Ok(Named::Settled);
            }
            let now = found(port.source().lookup(parent, &name))?;
            if now.as_ref().and_then(|object| object.gfid) != gfid {
                return Ok(Named::Changed(now));
            }
            let directory = now
                .as_ref()
                .is_some_and(|now| file_type(now) == libc::S_IFDIR);
            let step = HealNameStep {
                parent: Some(parent),
                name: name.clone(),
                gfid,
                directory,
            };
            let number = port.send(Step::HealName(step), Vec::new())?;
            marks.carried(|marks| marks.carried_name(parent, &name, number));
            Ok(Named::Carried(number))
        })
    }

    /// Makes sure that `parent` is not below `directory` on the copy, so that `directory` can be
    /// named in it. If it is, some directory on the way up stands elsewhere at the source; the name
    /// it has on the copy is healed first, which moves it out. Whether the way is clear.
    fn clear_the_way(
        &mut self,
        parent: Gfid,
        directory: Gfid,
        detours: u32,
    ) -> Result<bool, HealError> {
        let made = self
            .known
            .get(&directory)
            .is_some_and(|seen| seen.origin == Origin::Made);
        if parent == Gfid::ROOT || made {
            return Ok(true);
        }
        let mut edges = Vec::new();
        let mut at = parent;
        while at != Gfid::ROOT && at != directory && edges.len() < DEPTH_MAX {
            let told = self.stat(&[at])?.pop().flatten();
            let Some(above) = told.and_then(|told| told.parent) else {
                return Ok(true);
            };
            edges.push((at, above));
            at = above;
        }
        if at != directory {
            return Ok(true);
        }
        if detours == 0 {
            return Ok(false);
        }
        for (child, above) in edges {
            if found(self.port.source().parent_of_dir(child))? == Some(above) {
                continue;
            }
            let Some(name) = self.name_on_copy(above, child)? else {
                return Ok(false);
            };
            self.marks().edit(|marks, record| {
                marks.mark(Touch::Name(above, &name, Held::Unknown), record);
            })?;
            let held = found(self.port.source().lookup(above, &name))?;
            let gfids: Vec<Gfid> = held.iter().filter_map(|object| object.gfid).collect();
            self.ensure(&gfids)?;
            return self.heal_name(above, &name, held, detours - 1);
        }
        Ok(false)
    }

    /// The name that the copy has for a directory.
    fn name_on_copy(&self, parent: Gfid, child: Gfid) -> Result<Option<Vec<u8>>, HealError> {
        let mut page = first_page(parent);
        loop {
            let answer = self.read_dir_on_copy(&page)?;
            let hit = answer
                .entries
                .iter()
                .find(|entry| entry.gfid == Some(child));
            if let Some(entry) = hit {
                return Ok(Some(entry.name.to_vec()));
            }
            let Some(last) = answer.entries.last().filter(|_| !answer.end) else {
                return Ok(None);
            };
            (page.after_hash, page.after_name) = (last.hash, last.name.clone());
        }
    }

    /// A page of a directory of the copy; the last and empty one when it has no such directory.
    pub(super) fn read_dir_on_copy(&self, page: &ReadDir) -> Result<ReadDirPage, HealError> {
        let answer = self
            .port
            .ask(vec![ask_read_dir(page)])?
            .pop()
            .unwrap_or_default();
        match answer.errno {
            0 => {}
            libc::ENOENT | libc::ESTALE | libc::ENOTDIR => {
                return Ok(ReadDirPage {
                    end: true,
                    ..Default::default()
                });
            }
            errno => return Err(HealError::Nonsense(format!("errno {errno} to a listing"))),
        }
        match answer.ok {
            Some(Answer::Readdir(page)) => Ok(page),
            _ => Err(HealError::Nonsense("no page to a listing".to_owned())),
        }
    }

    /// Compares a directory marked whole and carries the names that differ.
    pub(super) fn heal_listing(&mut self, gfid: Gfid) -> Result<(), HealError> {
        self.marks().carried(|marks| marks.listing_begun(gfid));
        self.compare_listing(gfid)?;
        self.marks().carried(|marks| marks.listing_done(gfid));
        Ok(())
    }

    /// Marks a name under which both hold different things, and what the copy holds there if the
    /// source has no such object at all.
    pub(super) fn mark_different(
        &self,
        parent: Gfid,
        name: &[u8],
        theirs: Option<Gfid>,
        ours: Option<Gfid>,
    ) -> Result<(), HealError> {
        let lost = match theirs {
            Some(gfid) if found(self.port.source().object(gfid))?.is_none() => Some(gfid),
            _ => None,
        };
        self.marks().edit(|marks, record: &mut MarkRecord| {
            let held = Held::Known {
                before: theirs,
                after: ours,
            };
            marks.mark(Touch::Name(parent, name, held), record);
            if let Some(gfid) = lost {
                marks.mark(Touch::Object(gfid, super::Lacks::Times), record);
            }
        })?;
        Ok(())
    }
}

/// The first page of a listing.
pub(super) fn first_page(gfid: Gfid) -> ReadDir {
    ReadDir {
        gfid: Some(gfid),
        max_bytes: PAGE_BYTES,
        ..Default::default()
    }
}
