//! `volume check`: whether the copies of a volume are equal and whole.
//!
//! Each brick tells of its objects, page by page in one order (`page`). Whoever asks lays the pages
//! of all copies side by side (`compare`), and counts the names of each copy against the links
//! its objects should have (`links`). Memory is bounded whatever the size of the volume. The volume
//! may be in use: what looks wrong is only suspect, and looked at again until it is equal or stays
//! as it is.

mod compare;
mod links;
mod page;

pub use compare::{Merge, Row, place_of};
pub use links::{Counted, LinkSums};
pub use page::page;
