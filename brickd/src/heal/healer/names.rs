//! Carrying what names hold.

use std::collections::HashSet;

use bytes::Bytes;
use mortar_common::Gfid;
use mortar_proto::data::change::Step;
use mortar_proto::data::result::Ok as Answer;
use mortar_proto::data::{HealNameStep, Object, ReadDir, ReadDirPage};

use super::super::links::Held;
use super::super::port::{HealError, Key};
use super::super::query::{ask_read_dir, file_type, found};
use super::super::record::MarkRecord;
use super::super::touch::Touch;
use super::{Healer, Origin, SMALL_CHANGE, STATS_PER_ASK, with_keys};

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

/// A name to be carried, as it was a moment ago.
#[derive(Clone)]
struct Pending {
    parent: Gfid,
    name: Bytes,
    counter: u64,
    /// What it holds at the source.
    held: Option<Object>,
}

impl Pending {
    fn gfid(&self) -> Option<Gfid> {
        self.held.and_then(|object| object.gfid)
    }

    fn directory(&self) -> Option<Gfid> {
        self.gfid().filter(|_| {
            self.held
                .is_some_and(|held| file_type(&held) == libc::S_IFDIR)
        })
    }
}

/// Whether a directory can be named where it is to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It is empty: its new parent is not below it.
    Clear,
    Unknown,
}

/// What became of one name.
enum Named {
    Carried(u64),
    /// It has been marked again, and may hold something else by now.
    Changed(Box<Pending>),
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
            let mut pending = Vec::with_capacity(names.len());
            for (name, counter) in names {
                let held = found(self.port.source().lookup(parent, &name))?;
                pending.push(Pending {
                    parent,
                    name: Bytes::from(name),
                    counter,
                    held,
                });
            }
            let gfids: Vec<Gfid> = pending.iter().filter_map(Pending::gfid).collect();
            self.ensure(&gfids)?;
            let empty = self.empty_on_copy(&pending)?;
            let mut carried = 0;
            for pending in pending {
                let way = match pending.gfid() {
                    Some(gfid) if empty.contains(&gfid) => Way::Clear,
                    _ => Way::Unknown,
                };
                carried += u32::from(self.heal_name(pending, way, DETOURS_MAX)?);
            }
            self.sync_if_due()?;
            self.forget_known();
            if carried == 0 {
                return Ok(()); // Put off: the mark stays, and its turn comes again.
            }
        }
    }

    /// Carries one name. Whether it is settled; if not, it stays marked.
    fn heal_name(
        &mut self,
        mut pending: Pending,
        mut way: Way,
        detours: u32,
    ) -> Result<bool, HealError> {
        for _ in 0..ATTEMPTS_MAX {
            if let Some(directory) = pending.directory()
                && way == Way::Unknown
                && !self.clear_the_way(pending.parent, directory, detours)?
            {
                return Ok(false);
            }
            self.port.make_room(SMALL_CHANGE)?;
            match self.send_name(&pending)? {
                Named::Carried(number) => {
                    self.count_sent(number, 0);
                    for gfid in pending.gfid().into_iter().chain([pending.parent]) {
                        if let Some(seen) = self.known.get_mut(&gfid) {
                            seen.origin = Origin::Found;
                        }
                    }
                    return Ok(true);
                }
                Named::Settled => return Ok(true),
                Named::Changed(now) => {
                    pending = *now;
                    way = Way::Unknown;
                    let gfids: Vec<Gfid> = pending.gfid().into_iter().collect();
                    self.ensure(&gfids)?;
                }
            }
        }
        Ok(false)
    }

    /// The directories among these that this healer has made and that are still empty on the copy:
    /// nothing is below them.
    fn empty_on_copy(&self, pending: &[Pending]) -> Result<HashSet<Gfid>, HealError> {
        let made: Vec<Gfid> = pending
            .iter()
            .filter_map(Pending::directory)
            .filter(|gfid| {
                self.known
                    .get(gfid)
                    .is_some_and(|seen| seen.origin == Origin::Made)
            })
            .collect();
        let mut empty = HashSet::new();
        for some in made.chunks(STATS_PER_ASK) {
            let page = |gfid: &Gfid| ReadDir {
                max_bytes: 1,
                ..first_page(*gfid)
            };
            let asks = some.iter().map(|gfid| ask_read_dir(&page(gfid))).collect();
            // An error ends the answers early: what was not answered is not known to be empty.
            for (gfid, answer) in some.iter().zip(self.port.ask(asks)?) {
                if matches!(&answer.ok, Some(Answer::Readdir(page)) if page.entries.is_empty()) {
                    empty.insert(*gfid);
                }
            }
        }
        Ok(empty)
    }

    fn send_name(&self, pending: &Pending) -> Result<Named, HealError> {
        let (port, marks) = (self.port, self.marks());
        let Pending {
            parent,
            name,
            counter,
            ..
        } = pending;
        let gfid = pending.gfid();
        let mut keys = vec![Key::Name(*parent, name.clone())];
        keys.extend(gfid.map(Key::Object));
        with_keys(port, &keys, || {
            let Some(now) = marks.look(|marks| marks.pending_name(*parent, name)) else {
                return Ok(Named::Settled);
            };
            let held = found(port.source().lookup(*parent, name))?;
            let again = Pending {
                counter: now,
                held,
                ..pending.clone()
            };
            // Marked again: it may hold the same, and yet what is around it has moved.
            if now != *counter || again.gfid() != gfid {
                return Ok(Named::Changed(Box::new(again)));
            }
            let step = HealNameStep {
                parent: Some(*parent),
                name: name.clone(),
                gfid,
                directory: again.directory().is_some(),
            };
            let number = port.send(Step::HealName(step), Vec::new())?;
            marks.carried(|marks| marks.carried_name(*parent, name, number));
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
        if parent == Gfid::ROOT {
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
            let counter = self.marks().look(|marks| marks.pending_name(above, &name));
            let held = found(self.port.source().lookup(above, &name))?;
            let name = Bytes::from(name);
            let pending = Pending {
                parent: above,
                name,
                counter: counter.unwrap_or(0),
                held,
            };
            let gfids: Vec<Gfid> = pending.gfid().into_iter().collect();
            self.ensure(&gfids)?;
            return self.heal_name(pending, Way::Unknown, detours - 1);
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
