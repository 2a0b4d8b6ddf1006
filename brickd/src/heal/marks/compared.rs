//! When more may differ than is marked: what of the two copies is to be compared, and how far that
//! came.

use mortar_common::Gfid;

use super::super::record::MarkRecord;
use super::Marks;

/// What may differ when more may than is marked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Scope {
    /// What one of the two copies has touched.
    #[default]
    Touched,
    /// Anything.
    All,
}

impl Marks {
    /// More may differ than is marked, from now on: anything in this scope.
    pub fn mark_everything(&mut self, scope: Scope, record: &mut MarkRecord) {
        // Never narrower again: marks of a wider comparison may be among those there are.
        self.scope = self.scope.max(scope);
        self.everything = Some(self.everything.map_or(0, |generation| generation + 1));
        self.compared = None;
        record.everything = true;
        record.touched_only = self.scope == Scope::Touched;
    }

    /// What may differ while [`Marks::everything`] is set.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Set while anything may differ; another value than before: the comparison begins anew.
    pub fn everything(&self) -> Option<u64> {
        self.everything
    }

    /// How far the comparison of everything came.
    pub fn compared(&self) -> Option<Gfid> {
        self.compared
    }

    /// The comparison of everything that began as `generation` has come to `gfid`.
    pub fn set_compared(&mut self, generation: u64, gfid: Gfid, record: &mut MarkRecord) {
        if self.everything == Some(generation) {
            self.compared = Some(gfid);
            record.compared = Some(gfid);
        }
    }

    /// All has been compared: from now on the marks are all that the copy lacks, unless everything
    /// was marked again since `generation`.
    pub fn compared_everything(&mut self, generation: u64) {
        if self.everything == Some(generation) {
            self.everything = None;
            self.compared = None;
        }
    }
}
