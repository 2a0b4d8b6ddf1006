//! What the copy has and the source has no more.

use mortar_common::Gfid;
use mortar_proto::data::FreeStep;
use mortar_proto::data::change::Step;

use super::super::marks::{MarkState, Scope};
use super::super::port::{HealError, Key};
use super::super::query::file_type;
use super::super::touch::TO_THE_END;
use super::names::first_page;
use super::{Healer, SMALL_CHANGE, STATS_PER_ASK, Told, with_keys};

impl Healer<'_> {
    /// An object that the source has no more: what names still hold in it is displaced, and it is
    /// freed when all other names are healed.
    pub(super) fn heal_gone(&mut self, gfid: Gfid) -> Result<(), HealError> {
        if self.stat(&[gfid])?.pop().flatten().is_none() {
            self.settle(gfid);
            return Ok(());
        }
        if self.marks().look(|marks| marks.wanted(gfid)).listing {
            self.heal_listing(gfid)?;
        }
        self.heal_names(gfid)?;
        self.marks().carried(|marks| {
            marks.carried_bytes(gfid, 0..TO_THE_END, 0);
            marks.carried_object(gfid, MarkState::Owed);
        });
        self.doomed.insert(gfid);
        Ok(())
    }

    /// Frees what is doomed and holds nothing any more. Called when no name is pending.
    pub(super) fn free_doomed(&mut self) -> Result<(), HealError> {
        let doomed: Vec<Gfid> = self.doomed.iter().copied().take(STATS_PER_ASK).collect();
        for (gfid, told) in doomed.iter().zip(self.stat(&doomed)?) {
            self.check_stopped()?;
            let Some(told) = told else {
                self.settle(*gfid);
                continue;
            };
            let directory = file_type(&told.object) == libc::S_IFDIR;
            if has_name(&told) {
                self.give_up(*gfid)?;
            } else if !directory || !self.displace_children(*gfid)? {
                self.free(*gfid)?;
            } else {
                return Ok(()); // Names are pending again.
            }
        }
        Ok(())
    }

    /// Marks what the copy's directory still holds; whether that was anything.
    fn displace_children(&mut self, gfid: Gfid) -> Result<bool, HealError> {
        let page = self.read_dir_on_copy(&first_page(gfid))?;
        for entry in &page.entries {
            self.mark_different(gfid, &entry.name, entry.gfid, None)?;
        }
        Ok(!page.entries.is_empty())
    }

    fn free(&mut self, gfid: Gfid) -> Result<(), HealError> {
        let (port, marks) = (self.port, self.marks());
        port.make_room(SMALL_CHANGE)?;
        let number = with_keys(port, &[Key::Object(gfid)], || {
            let number = port.send(Step::Free(FreeStep { gfid: Some(gfid) }), Vec::new())?;
            marks.carried(|marks| marks.carried_object(gfid, MarkState::Carried(number)));
            Ok(number)
        })?;
        self.count_sent(number, 0);
        self.known.remove(&gfid);
        self.doomed.remove(&gfid);
        Ok(())
    }

    /// Nothing is left to be done about the object; what was done is yet to be synced.
    fn settle(&mut self, gfid: Gfid) {
        let number = self.last_sent;
        self.marks()
            .carried(|marks| marks.carried_all(gfid, number));
        self.doomed.remove(&gfid);
    }

    /// The copy has a name for what the source does not have, and no mark explains it: what is
    /// named is never freed. Everything is compared, once; if that does not help either, the object
    /// is left as it is.
    fn give_up(&mut self, gfid: Gfid) -> Result<(), HealError> {
        self.settle(gfid);
        if self.comparisons_left > 0 {
            self.comparisons_left -= 1;
            tracing::info!(%gfid, "the copy names an object that this one does not have: comparing everything");
            self.marks()
                .edit(|marks, record| marks.mark_everything(Scope::All, record))?;
        } else {
            tracing::info!(%gfid, "the copy goes on naming an object that this one does not have");
        }
        Ok(())
    }
}

/// Whether the copy has a name for the object.
fn has_name(told: &Told) -> bool {
    if file_type(&told.object) == libc::S_IFDIR {
        told.parent.is_some()
    } else {
        told.object.nlink > 0
    }
}
