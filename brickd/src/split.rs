//! Two sides that both went on alone, made one again.
//!
//! With two voters that can happen: the link between two hosts is cut and each has clients. When
//! they meet, one side goes on (the *base*), the other is closed as it is. Its brick then merges:
//! as an ordinary client of the volume it brings what it changed alone to the base, as ordinary
//! requests, while the base serves.
//!
//! - What the base did not change too is simply brought. A file is made whole and durable in the
//!   folder of versions first and then renamed to its place, so no reader ever sees half of it.
//! - What both changed is a conflict: the other side's version stays in the folder of versions,
//!   under a name that says of which file and from which brick ([`version`]). That entry *is* the
//!   conflict; while it is there, the file answers EIO.
//! - Nothing is taken away that the base changed: the base itself refuses that, under the locks of
//!   the request ([`crate::heal::Marks::would_lose`]). Directories are joined, and removed only
//!   when they are empty; what one side removed and the other changed stays.
//!
//! Only when all of that is durable at the base does the other brick count as an ancestor, and is
//! healed over. Until then it is not touched, so that a merge may be cut off anywhere and begin
//! anew: what is there already is found in place.

pub mod base;
pub mod decide;
pub mod merge;
pub mod resolve;
pub mod stage;
pub mod version;

#[cfg(test)]
pub(crate) mod tests;
