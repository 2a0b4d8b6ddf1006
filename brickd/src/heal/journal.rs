//! The marks of one absent partner on the disk: `.mortar/heal/<brick id>`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use mortar_common::BrickId;
use mortar_proto::data::EpochRef;
use prost::Message;

use super::marks::{Marks, Scope};
use super::record::{HeaderRecord, MarkRecord};
use crate::brick::{BrickError, Store};

/// Version of the records.
const FORMAT: u32 = 1;
/// A journal shorter than this is not worth rewriting.
const REWRITE_MIN: usize = 8_192;
/// A journal is rewritten when it holds this many times the marks that are left.
const REWRITE_RATIO: usize = 8;

/// STATX_MNT_ID_UNIQUE: the plain id is given to the next mount as soon as it is free.
const MNT_ID_UNIQUE: u32 = 0x4000;

/// The life of a page cache: what was written to a file and not yet synced is believed only while
/// it lasts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Writer {
    /// The kernel's id of this boot.
    pub boot: String,
    /// Id of the mount that holds the brick.
    pub mount: u64,
}

impl Writer {
    /// Of this process, for a brick in `folder`.
    ///
    /// # Errors
    /// When /proc cannot be read or the folder cannot be looked at.
    pub fn here(folder: &Path) -> io::Result<Self> {
        use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
        // An id that no other mount of this boot gets; kernels before 6.8 give what they have.
        let flags = StatxFlags::MNT_ID | StatxFlags::from_bits_retain(MNT_ID_UNIQUE);
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
            .trim()
            .to_owned();
        let stat = statx(CWD, folder, AtFlags::empty(), flags)?;
        Ok(Writer {
            boot,
            mount: stat.stx_mnt_id,
        })
    }
}

/// Whether marks found at a start are all that the partner lacks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trust {
    /// They are.
    Fine,
    /// They may not be, for the reason given: what was touched is to be compared besides.
    Doubtful(String),
}

/// Appends marks to the partner's file and rewrites it when most of it is out of date.
pub struct Journal {
    store: Arc<dyn Store>,
    name: String,
    header: HeaderRecord,
    written: usize,
    /// Written since the last durable record.
    volatile: bool,
    file: File,
}

/// Whether a journal still has its file. A change that was on its way to it as it was removed would
/// otherwise make a new one, which nobody would ever remove.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum File {
    Kept,
    Removed,
}

impl Journal {
    /// Name of the partner's file in `.mortar/heal`.
    pub fn file_name(partner: BrickId) -> String {
        partner.to_string()
    }

    /// Begins anew with these marks, durably. What the file held before is gone.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn begin(
        store: Arc<dyn Store>,
        partner: BrickId,
        epoch: EpochRef,
        writer: &Writer,
        marks: &Marks,
    ) -> Result<Self, BrickError> {
        let header = HeaderRecord {
            version: FORMAT,
            partner: partner.0,
            epoch: Some(epoch),
            boot: writer.boot.clone(),
            mount: writer.mount,
        };
        let name = Self::file_name(partner);
        let mut journal = Journal {
            store,
            name,
            header,
            written: 0,
            volatile: false,
            file: File::Kept,
        };
        journal.rewrite(&[marks])?;
        Ok(journal)
    }

    /// What was written before this start; `None` when there is no file. `last_in_sync`: the epoch
    /// in which the partner was last in sync, as the histories tell. Doubtful marks come with
    /// what was touched marked besides.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn load(
        store: Arc<dyn Store>,
        partner: BrickId,
        writer: &Writer,
        last_in_sync: Option<EpochRef>,
    ) -> Result<Option<(Self, Marks, Trust)>, BrickError> {
        let name = Self::file_name(partner);
        let records = store.read_records(&name)?;
        let Some((first, rest)) = records.split_first() else {
            return Ok(None);
        };
        let mut marks = Marks::new();
        let mut trust = Trust::Fine;
        let header = HeaderRecord::decode(&first[..]).unwrap_or_default();
        if let Some(reason) = doubt(&header, partner, writer, last_in_sync) {
            trust = Trust::Doubtful(reason);
        }
        let mut written = 0;
        for record in rest {
            match MarkRecord::decode(&record[..]) {
                Ok(record) => {
                    written += record.len();
                    marks.restore(&record);
                }
                Err(error) => trust = Trust::Doubtful(format!("a record cannot be read: {error}")),
            }
        }
        let header = HeaderRecord {
            version: FORMAT,
            partner: partner.0,
            epoch: last_in_sync.or(header.epoch),
            boot: writer.boot.clone(),
            mount: writer.mount,
        };
        let mut journal = Journal {
            store,
            name,
            header,
            written,
            volatile: true,
            file: File::Kept,
        };
        if trust != Trust::Fine {
            // A copy that never was in sync has no touched spans to speak of.
            let scope = match last_in_sync {
                Some(_) => Scope::Touched,
                None => Scope::All,
            };
            marks.mark_everything(scope, &mut MarkRecord::default());
            journal.rewrite(&[&marks])?;
        }
        Ok(Some((journal, marks, trust)))
    }

    /// Writes down marks, into the page cache: they outlive this process, not a power cut.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn append(&mut self, record: &MarkRecord) -> Result<(), BrickError> {
        if record.is_empty() || self.file == File::Removed {
            return Ok(());
        }
        self.store
            .append_record(&self.name, &record.encode_to_vec(), false)?;
        self.written += record.len();
        self.volatile = true;
        Ok(())
    }

    /// Makes all that was appended outlive a power cut. Costs nothing when it does already.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn make_durable(&mut self) -> Result<(), BrickError> {
        if self.volatile && self.file == File::Kept {
            let nothing = MarkRecord::default().encode_to_vec();
            self.store.append_record(&self.name, &nothing, true)?;
            self.volatile = false;
        }
        Ok(())
    }

    /// Whether most of the file is out of date, `left` marks being left.
    pub fn is_rewrite_due(&self, left: usize) -> bool {
        self.written > REWRITE_MIN && self.written / REWRITE_RATIO > left
    }

    /// Replaces the file by all these marks, durably.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn rewrite(&mut self, marks: &[&Marks]) -> Result<(), BrickError> {
        if self.file == File::Removed {
            return Ok(());
        }
        let mut records = vec![self.header.encode_to_vec()];
        for record in marks.iter().flat_map(|marks| marks.records()) {
            records.push(record.encode_to_vec());
        }
        self.store.replace_records(&self.name, &records)?;
        self.written = marks.iter().map(|marks| marks.len()).sum();
        self.volatile = false;
        Ok(())
    }

    /// Removes the file, for good: the partner is in sync.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn remove(&mut self) -> Result<(), BrickError> {
        (self.written, self.file) = (0, File::Removed);
        self.store.replace_records(&self.name, &[])
    }
}

fn doubt(
    header: &HeaderRecord,
    partner: BrickId,
    writer: &Writer,
    last_in_sync: Option<EpochRef>,
) -> Option<String> {
    if header.version != FORMAT || header.partner != partner.0 {
        return Some("the file does not begin as a list of this brick's marks".to_owned());
    }
    if header.boot != writer.boot {
        return Some("this host was started anew since they were written".to_owned());
    }
    if header.mount != writer.mount {
        return Some("the brick's disk was mounted anew since they were written".to_owned());
    }
    if last_in_sync.is_some() && header.epoch != last_in_sync {
        return Some("they were written for another epoch".to_owned());
    }
    None
}
