//! How a kind of change is tried.

use super::*;

/// Looks again through the second mount: whether the change is seen.
pub type Watch = Box<dyn FnMut() -> bool>;

/// A kind of change.
#[derive(Clone)]
pub struct Kind {
    /// In words.
    pub what: &'static str,
    /// Makes what is there before, through the first mount, in a folder of its own.
    pub before: fn(&Path),
    /// Gets to know it through the second mount, so that whatever may be cached there is.
    pub know: fn(&Path) -> Watch,
    /// Changes it through the first mount.
    pub change: fn(&Path),
}

/// There is a file of ten bytes before.
pub fn file(folder: &Path) {
    fs::write(folder.join("file"), "0123456789").unwrap();
}

/// All kinds in folders of their own, known to the second mount.
pub struct Tried<'a> {
    kinds: &'a [Kind],
    folders: Vec<PathBuf>,
    watches: Vec<Watch>,
}

impl<'a> Tried<'a> {
    /// Makes what is there before, and gets to know it.
    pub fn new(pair: &Pair, kinds: &'a [Kind]) -> Self {
        let folders: Vec<_> = (0..kinds.len())
            .map(|number| pair.paths(format!("kind-{number}")))
            .collect();
        for (kind, [here, _]) in kinds.iter().zip(&folders) {
            fs::create_dir(here).unwrap();
            (kind.before)(here);
        }
        let watches = kinds.iter().zip(&folders).map(|(kind, [_, there])| {
            let mut watch = (kind.know)(there);
            assert!(!watch(), "{}: seen before it was done", kind.what);
            watch
        });
        Tried {
            kinds,
            watches: watches.collect(),
            folders: folders.into_iter().map(|[here, _]| here).collect(),
        }
    }

    /// Makes one change.
    pub fn change(&self, number: usize) {
        (self.kinds[number].change)(&self.folders[number]);
    }

    /// Whether it is seen.
    pub fn is_seen(&mut self, number: usize) -> bool {
        (self.watches[number])()
    }
}
