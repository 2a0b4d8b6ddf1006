//! Comparing copies that are in sync: what is different there, no change explains.
//!
//! Without checksums two copies cannot tell which of them is right: that is for people to say. Of
//! three, two whose bytes agree are right about a file's content. Attributes and names are told, and
//! never settled by a majority.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mortar_common::Gfid;
use mortar_proto::control::HealEntry;

/// Differences kept to be listed; more are only counted.
const FINDINGS_MAX: usize = 1_000;

/// Which of the copies are right about one thing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// All hold the same.
    Equal,
    /// More than half hold what this one holds.
    Right(usize),
    /// Nobody can tell.
    Nobody,
}

/// Judges by what each copy holds, this one first.
pub fn judge<T: PartialEq>(held: &[T]) -> Judgement {
    let with = |one: &T| held.iter().filter(|other| *other == one).count();
    match held.iter().position(|one| 2 * with(one) > held.len()) {
        Some(at) if with(&held[at]) == held.len() => Judgement::Equal,
        Some(at) => Judgement::Right(at),
        None => Judgement::Nobody,
    }
}

/// What is different of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum What {
    /// Type, owner, mode, size, mtime or xattrs.
    Attributes,
    /// What a name in it holds.
    Name(Vec<u8>),
    /// Bytes of its content.
    Bytes(Range<u64>),
}

/// One difference that is for people to settle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Of this object.
    pub gfid: Gfid,
    /// In words, for `heal info`.
    pub why: String,
}

/// One comparison of all copies, running or ended.
#[derive(Default)]
pub struct Scrub {
    compared: AtomicU64,
    repaired: AtomicU64,
    ended: AtomicBool,
    findings: Mutex<Findings>,
}

#[derive(Default)]
struct Findings {
    listed: Vec<Finding>,
    total: u64,
}

impl Scrub {
    /// Objects are compared.
    pub fn add_compared(&self, objects: u64) {
        self.compared.fetch_add(objects, Ordering::Relaxed);
    }

    /// A majority was right about bytes of a file, and all have them so now.
    pub fn add_repaired(&self) {
        self.repaired.fetch_add(1, Ordering::Relaxed);
    }

    /// Objects compared, and repaired.
    pub fn counts(&self) -> (u64, u64) {
        let compared = self.compared.load(Ordering::Relaxed);
        (compared, self.repaired.load(Ordering::Relaxed))
    }

    /// It has come to its end.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Whether it has.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Keeps a difference that is for people to settle.
    pub fn found(&self, finding: Finding) {
        let mut findings = self.findings();
        findings.total += 1;
        if findings.listed.len() < FINDINGS_MAX {
            findings.listed.push(finding);
        }
    }

    /// What `heal info` lists: that it runs, and what was found; and how many these are.
    pub fn entries(
        &self,
        others: &str,
        path_of: impl Fn(Gfid) -> Option<String>,
    ) -> (Vec<HealEntry>, u64) {
        let findings = self.findings();
        let entry = |finding: &Finding| HealEntry {
            path: path_of(finding.gfid).unwrap_or_else(|| format!("<gfid:{}>", finding.gfid)),
            gfid: finding.gfid.to_string(),
            why: finding.why.clone(),
            split_brain: false,
            healing: false,
        };
        let mut entries: Vec<HealEntry> = findings.listed.iter().map(entry).collect();
        let mut total = findings.total;
        if !self.has_ended() {
            let compared = self.compared.load(Ordering::Relaxed);
            let running = HealEntry {
                path: "/".to_owned(),
                why: format!(
                    "all of this copy is compared with {others} ({compared} files and directories \
                     compared so far)"
                ),
                healing: true,
                ..Default::default()
            };
            entries.insert(0, running);
            total += 1;
        }
        (entries, total)
    }

    fn findings(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_copies_never_outvote_each_other_and_two_of_three_do() {
        assert_eq!(judge(&[1]), Judgement::Equal);
        assert_eq!(judge(&[1, 1]), Judgement::Equal);
        assert_eq!(judge(&[1, 2]), Judgement::Nobody);
        assert_eq!(judge(&[1, 1, 1]), Judgement::Equal);
        assert_eq!(judge(&[1, 2, 1]), Judgement::Right(0));
        assert_eq!(judge(&[1, 2, 2]), Judgement::Right(1));
        assert_eq!(judge(&[1, 2, 3]), Judgement::Nobody);
    }

    #[test]
    fn what_is_found_is_listed_and_beyond_the_bound_counted() {
        let scrub = Scrub::default();
        for number in 0..FINDINGS_MAX as u64 + 5 {
            let gfid = Gfid { hi: 1, lo: number };
            let why = "differs".to_owned();
            scrub.found(Finding { gfid, why });
        }
        let (entries, total) = scrub.entries("gfs02:/b", |_| None);
        assert_eq!(
            (entries.len(), total),
            (FINDINGS_MAX + 1, FINDINGS_MAX as u64 + 6)
        );
        assert!(entries[0].why.contains("is compared with gfs02:/b"));
        scrub.end();
        let (entries, total) = scrub.entries("gfs02:/b", |_| Some("/f".to_owned()));
        assert_eq!(
            (entries.len(), total),
            (FINDINGS_MAX, FINDINGS_MAX as u64 + 5)
        );
        assert_eq!(entries[0].path, "/f");
    }
}
