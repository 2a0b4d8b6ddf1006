//! A directory is listed by one mount while files come and go through the other.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, Ordering};

use tests::scale;

use super::*;

/// Files that stay.
const STAYING: usize = 300;

#[test]
fn a_listing_has_all_that_stays_once_while_others_come_and_go() {
    let passing = scale::pick(400, 10_000);
    let pair = Pair::new();
    let [here, there] = pair.paths("d");
    fs::create_dir(&here).unwrap();
    for number in 0..STAYING {
        File::create(here.join(format!("stays-{number}"))).unwrap();
    }
    let over = AtomicBool::new(false);
    let (mut listings, mut met) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Ended by a panic too: the other side must not wait for ever.
            let _over = Over(&over);
            for number in 0..passing {
                File::create(here.join(format!("passes-{number}"))).unwrap();
                if number >= 50 {
                    fs::remove_file(here.join(format!("passes-{}", number - 50))).unwrap();
                }
            }
        });
        while !over.load(Ordering::SeqCst) {
            met += look(&there);
            listings += 1;
        }
    });
    assert!(listings > 3 && met > 0, "{listings} listings met {met}");
    for number in passing - 50..passing {
        fs::remove_file(here.join(format!("passes-{number}"))).unwrap();
    }
    assert_eq!(look(&there), 0, "the last listing shows what is gone");
    pair.end();
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Lists the folder; returns how many of those that come and go were met.
fn look(folder: &Path) -> usize {
    let mut seen: BTreeMap<OsString, usize> = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        *seen.entry(entry.unwrap().file_name()).or_default() += 1;
    }
    let twice: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "listed more than once: {twice:?}");
    let missed: Vec<_> = (0..STAYING)
        .map(|number| OsString::from(format!("stays-{number}")))
        .filter(|name| !seen.contains_key(name))
        .collect();
    assert!(missed.is_empty(), "not listed: {missed:?}");
    seen.len() - STAYING
}
