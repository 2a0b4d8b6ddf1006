//! Marks as they are written to `.mortar/heal`.

use mortar_common::Gfid;
use prost::Message;

/// Some marks, as one record of a journal. What it says adds up with the records before it.
#[derive(Clone, PartialEq, Message)]
pub struct MarkRecord {
    /// Objects whose attributes, xattrs or existence may differ.
    #[prost(message, repeated, tag = "1")]
    pub objects: Vec<Gfid>,
    /// Names that may hold something else.
    #[prost(message, repeated, tag = "2")]
    pub names: Vec<NameMark>,
    /// Bytes that may differ.
    #[prost(message, repeated, tag = "3")]
    pub ranges: Vec<RangeMark>,
    /// Directories of which any name may differ.
    #[prost(message, repeated, tag = "4")]
    pub listings: Vec<Gfid>,
    /// Anything may differ: all is to be compared, from the beginning.
    #[prost(bool, tag = "5")]
    pub everything: bool,
    /// How far that comparison came: the last object compared.
    #[prost(message, optional, tag = "6")]
    pub compared: Option<Gfid>,
    /// With `everything`: anything in the spans that one of the two copies has touched may differ,
    /// and nothing else.
    #[prost(bool, tag = "7")]
    pub touched_only: bool,
}

/// A name that may hold something else.
#[derive(Clone, PartialEq, Message)]
pub struct NameMark {
    /// The directory.
    #[prost(message, optional, tag = "1")]
    pub parent: Option<Gfid>,
    /// The name in it.
    #[prost(bytes = "vec", tag = "2")]
    pub name: Vec<u8>,
}

/// Bytes of a file that may differ.
#[derive(Clone, PartialEq, Message)]
pub struct RangeMark {
    /// The file.
    #[prost(message, optional, tag = "1")]
    pub gfid: Option<Gfid>,
    /// First byte.
    #[prost(uint64, tag = "2")]
    pub start: u64,
    /// The byte after the last; 2^64-1 = to the end of the file.
    #[prost(uint64, tag = "3")]
    pub end: u64,
}

impl MarkRecord {
    /// How many marks it holds.
    pub fn len(&self) -> usize {
        self.objects.len()
            + self.names.len()
            + self.ranges.len()
            + self.listings.len()
            + usize::from(self.everything)
            + usize::from(self.compared.is_some())
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// First record of a journal: what its marks are worth.
#[derive(Clone, PartialEq, Message)]
pub struct HeaderRecord {
    /// Version of this format.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The brick that lacks what is marked.
    #[prost(fixed64, tag = "2")]
    pub partner: u64,
    /// The epoch in which the partner was last in sync: the marks count for it alone.
    #[prost(message, optional, tag = "3")]
    pub epoch: Option<mortar_proto::data::EpochRef>,
    /// The writer's boot.
    #[prost(string, tag = "4")]
    pub boot: String,
    /// The writer's mount of the brick's disk.
    #[prost(uint64, tag = "5")]
    pub mount: u64,
}
