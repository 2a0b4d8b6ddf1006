//! Which objects may have more or fewer names on the copy than here.
//!
//! Taking away a name that is the last one there and not the last one here, or the other way
//! round, would free an object that is needed, or keep one that is not. So such a change is not
//! applied on the copy while a pending name concerns the object.

use std::collections::HashMap;

use mortar_common::Gfid;

/// What a marked name held when it was marked, here and on the copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// Not known: any object may be concerned.
    Unknown,
    /// Before the first change that marked it (the copy holds that still), and after the last.
    Known {
        /// What the copy holds.
        before: Option<Gfid>,
        /// What this one holds.
        after: Option<Gfid>,
    },
}

impl Held {
    /// What is known when a change turns what was `self` into `later`.
    pub fn then(self, later: Held) -> Held {
        match (self, later) {
            (Held::Known { before, .. }, Held::Known { after, .. }) => {
                Held::Known { before, after }
            }
            _ => Held::Unknown,
        }
    }

    fn objects(self) -> impl Iterator<Item = Gfid> {
        let (before, after) = match self {
            Held::Unknown => (None, None),
            Held::Known { before, after } => (before, after),
        };
        before.into_iter().chain(after)
    }
}

/// Counts pending names by the objects they concern.
#[derive(Clone, Debug, Default)]
pub struct Links {
    objects: HashMap<Gfid, u32>,
    unknown: usize,
}

impl Links {
    /// A name became pending.
    pub fn add(&mut self, held: Held) {
        self.unknown += usize::from(held == Held::Unknown);
        for gfid in held.objects() {
            *self.objects.entry(gfid).or_default() += 1;
        }
    }

    /// A name is pending no more.
    pub fn remove(&mut self, held: Held) {
        self.unknown -= usize::from(held == Held::Unknown);
        for gfid in held.objects() {
            if let Some(count) = self.objects.get_mut(&gfid) {
                *count -= 1;
                if *count == 0 {
                    self.objects.remove(&gfid);
                }
            }
        }
    }

    /// Whether the object may have more or fewer names on the copy.
    pub fn differ(&self, gfid: Gfid) -> bool {
        self.unknown > 0 || self.objects.contains_key(&gfid)
    }
}
