//! Healing: what an absent copy lacks, and how it gets it under live changes.
//!
//! The driver of a replica set (`replica`) keeps, on every in-sync copy, a [`Recent`] of what changed
//! since its partners' last confirmed syncs. When a partner goes out, that becomes its
//! [`PartnerMarks`], to which every later change is added before it is acknowledged. When the
//! partner is back, the primary runs a [`healer`] for it: heal changes go down the same ordered
//! stream as all others, and [`PartnerMarks::judge`] says which of the others the copy can apply.
//! When nothing is marked the driver makes the switch.

pub mod healer;
pub mod journal;
pub mod links;
pub mod marks;
pub mod partner;
pub mod port;
pub mod progress;
pub mod query;
pub mod ranges;
pub mod recent;
pub mod record;
pub mod scrub;
pub mod touch;
pub mod touched;

pub use healer::Healer;
pub use journal::{Trust, Writer};
pub use marks::{Marks, Scope};
pub use partner::{PartnerMarks, Verdict};
pub use port::{Gone, HealError, HealPort, Key};
pub use progress::{HealControl, Progress};
pub use query::answer;
pub use recent::Recent;
pub use touched::Touched;

#[cfg(test)]
pub(crate) mod tests;
