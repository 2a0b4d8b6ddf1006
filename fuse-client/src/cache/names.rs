//! Names seen lately: so that a removal can name the object it means without asking first.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use mortar_common::Gfid;
use mortar_common::placement::name_hash;

/// Names remembered, 40 bytes each; the oldest goes first.
const NAMES_MAX: usize = 65_536;

/// (directory, name) to object, as last seen. May be out of date, and two names may share a key:
/// whoever uses it must be ready for the brick to say that the name holds something else.
#[derive(Debug, Default)]
pub struct Names {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    known: HashMap<u64, Gfid>,
    order: VecDeque<u64>,
}

impl Names {
    /// A name was seen to hold this object.
    pub fn put(&self, parent: Gfid, name: &[u8], gfid: Gfid) {
        let key = name_hash(parent, name);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.known.insert(key, gfid).is_none() {
            inner.order.push_back(key);
            if inner.order.len() > NAMES_MAX
                && let Some(oldest) = inner.order.pop_front()
            {
                inner.known.remove(&oldest);
            }
        }
    }

    /// What a name held when it was last seen.
    pub fn get(&self, parent: Gfid, name: &[u8]) -> Option<Gfid> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.known.get(&name_hash(parent, name)).copied()
    }

    /// A name holds nothing, or something else.
    pub fn remove(&self, parent: Gfid, name: &[u8]) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.known.remove(&name_hash(parent, name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded() {
        let names = Names::default();
        for number in 0..NAMES_MAX as u64 + 10 {
            names.put(
                Gfid::ROOT,
                &number.to_le_bytes(),
                Gfid { hi: 0, lo: number },
            );
        }
        assert_eq!(names.get(Gfid::ROOT, &0u64.to_le_bytes()), None);
        let last = NAMES_MAX as u64;
        assert_eq!(names.get(Gfid::ROOT, &last.to_le_bytes()).unwrap().lo, last);
        names.remove(Gfid::ROOT, &last.to_le_bytes());
        assert_eq!(names.get(Gfid::ROOT, &last.to_le_bytes()), None);
    }
}
