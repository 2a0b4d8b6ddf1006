//! `.mortar/volume`: whose brick this is, the set's history, and what a crash can have lost.
//!
//! Layout: `MORTARBK`, format version and length of the message (4 bytes each, little-endian),
//! xxh3_64 of the message (8 bytes), the message. Replaced as a whole.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mortar_common::{BrickId, VolumeId};
use mortar_proto::data::{CopySynced, EpochRef};
use mortar_proto::registry::Epoch;
use prost::Message;
use rustix::fs::Mode;
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

use super::BrickIdentity;
use super::durable;
use super::store::StoredState;

const MAGIC: &[u8; 8] = b"MORTARBK";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;
/// A longer file is not ours: histories are bounded by the registry.
const STATE_BYTES_MAX: usize = 1 << 20;
/// Change numbers are made usable this many at a time: one fsync for so many changes.
const NUMBERS_RESERVED: u64 = 1 << 20;
/// Crashes told apart; older ones are taken together.
const CRASHES_MAX: usize = 64;
/// The clock files get their times from may differ this much from the one that is read.
const CRASH_SLACK_MS: u64 = 2_000;

/// What the file holds.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct VolumeFile {
    #[prost(bytes = "vec", tag = "1")]
    pub volume: Vec<u8>,
    #[prost(string, tag = "2")]
    pub volume_name: String,
    #[prost(fixed64, tag = "3")]
    pub brick: u64,
    #[prost(uint32, tag = "4")]
    pub set: u32,
    #[prost(message, optional, tag = "5")]
    pub epoch: Option<Epoch>,
    #[prost(message, repeated, tag = "6")]
    pub history: Vec<EpochRef>,
    #[prost(message, optional, tag = "7")]
    pub alone: Option<EpochRef>,
    #[prost(uint64, tag = "8")]
    pub synced: u64,
    #[prost(uint64, tag = "9")]
    pub last_number: u64,
    /// No change number above this was applied in the life that wrote it.
    #[prost(uint64, tag = "10")]
    pub number_ceiling: u64,
    /// That life goes on, or ended in a crash.
    #[prost(bool, tag = "11")]
    pub running: bool,
    /// When the last whole sync began, on the disk's clock.
    #[prost(uint64, tag = "12")]
    pub synced_at_ms: u64,
    /// The brick's folder was made with the brick and may be removed with it.
    #[prost(bool, tag = "13")]
    pub made_folder: bool,
    /// The kernel's handle of the root: another one means that the brick was copied or restored,
    /// and that its handles lead elsewhere.
    #[prost(string, tag = "15")]
    pub root_handle: String,
    /// When crashes can have lost counters that were in memory, oldest first.
    #[prost(message, repeated, tag = "14")]
    pub crashes: Vec<Crash>,
    /// See [`StoredState::recorded`].
    #[prost(message, repeated, tag = "16")]
    pub recorded: Vec<CopySynced>,
}

/// What the disk last changed within this time can have been ahead of what was written back.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Crash {
    /// When the last whole sync before it began, on the disk's clock.
    #[prost(uint64, tag = "1")]
    pub from_ms: u64,
    /// When the brick was opened after it.
    #[prost(uint64, tag = "2")]
    pub to_ms: u64,
    /// Above every change number used before: the counters of such an object are at least this.
    #[prost(uint64, tag = "3")]
    pub number_floor: u64,
}

impl VolumeFile {
    /// Of a brick that has just been made.
    pub fn new(identity: &BrickIdentity, made_folder: bool, now_ms: u64) -> Self {
        VolumeFile {
            volume: identity.volume.0.to_vec(),
            volume_name: identity.volume_name.clone(),
            brick: identity.brick.0,
            set: identity.set,
            synced_at_ms: now_ms,
            made_folder,
            ..VolumeFile::default()
        }
    }

    /// Whether it is the brick meant. Names may change, ids do not.
    pub fn is(&self, identity: &BrickIdentity) -> bool {
        VolumeId::from_slice(&self.volume) == Some(identity.volume)
            && BrickId(self.brick) == identity.brick
            && self.set == identity.set
    }

    /// If the last life did not end in order: what it can have lost, and numbers beyond it.
    pub fn recover(&mut self, now_ms: u64) {
        if !self.running {
            return;
        }
        let number_floor = self.last_number.max(self.number_ceiling);
        let from_ms = self.synced_at_ms.saturating_sub(CRASH_SLACK_MS);
        self.crashes.push(Crash {
            from_ms,
            // What is changed from now on has numbers above the floor: the slack does it no harm.
            to_ms: now_ms + CRASH_SLACK_MS,
            number_floor,
        });
        if self.crashes.len() > CRASHES_MAX {
            let oldest = self.crashes.remove(0);
            self.crashes[0].from_ms = self.crashes[0].from_ms.min(oldest.from_ms);
        }
        self.last_number = number_floor;
        self.number_ceiling = 0;
        self.running = false;
    }

    pub fn write(&self, private: BorrowedFd<'_>) -> Result<(), Errno> {
        let message = self.encode_to_vec();
        let mut bytes = Vec::with_capacity(HEADER_BYTES + message.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(message.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&xxh3_64(&message).to_le_bytes());
        bytes.extend_from_slice(&message);
        durable::replace_file(private, c"volume", c"volume.new", &bytes)
    }

    /// The error is a sentence without the brick's path.
    pub fn read(private: BorrowedFd<'_>) -> Result<Self, String> {
        let flags = durable::OPEN | rustix::fs::OFlags::RDONLY;
        let file = match rustix::fs::openat(private, c"volume", flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Err("it has no .mortar/volume".to_owned()),
            Err(error) => return Err(format!(".mortar/volume cannot be opened: {error}")),
        };
        let bytes =
            read_whole(&file).map_err(|error| format!(".mortar/volume cannot be read: {error}"))?;
        Self::parse(&bytes)
            .ok_or_else(|| ".mortar/volume is damaged or of another version of Mortar".to_owned())
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (header, message) = bytes.split_at_checked(HEADER_BYTES)?;
        let number = |at: usize| {
            header
                .get(at..at + 4)?
                .try_into()
                .ok()
                .map(u32::from_le_bytes)
        };
        let sum = u64::from_le_bytes(header.get(16..24)?.try_into().ok()?);
        let whole = header.starts_with(MAGIC)
            && number(8)? == VERSION
            && number(12)? as usize == message.len()
            && sum == xxh3_64(message);
        whole.then(|| VolumeFile::decode(message).ok()).flatten()
    }
}

fn read_whole(file: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let size = rustix::fs::fstat(file)?.st_size.max(0) as usize;
    if size > STATE_BYTES_MAX {
        return Err(Errno::FBIG);
    }
    let mut bytes = vec![0; size];
    let mut done = 0;
    while done < size {
        match rustix::io::pread(file.as_fd(), &mut bytes[done..], done as u64)? {
            0 => break,
            count => done += count,
        }
    }
    bytes.truncate(done);
    Ok(bytes)
}

/// The file's contents in memory; every method that writes keeps the old ones when it fails.
pub(super) struct StateFile {
    file: VolumeFile,
}

impl StateFile {
    pub fn new(file: VolumeFile) -> Self {
        StateFile { file }
    }

    /// What the layers above keep here. After a crash `last_number` is above every number that
    /// can have been applied.
    pub fn stored(&self, last_applied: u64) -> StoredState {
        StoredState {
            epoch: self.file.epoch.clone(),
            history: self.file.history.clone(),
            alone: self.file.alone,
            synced: self.file.synced,
            last_number: self.file.last_number.max(last_applied),
            recorded: self.file.recorded.clone(),
        }
    }

    pub fn store(&mut self, private: BorrowedFd<'_>, state: &StoredState) -> Result<(), Errno> {
        let next = VolumeFile {
            epoch: state.epoch.clone(),
            history: state.history.clone(),
            alone: state.alone,
            synced: state.synced,
            last_number: state.last_number,
            recorded: state.recorded.clone(),
            ..self.file.clone()
        };
        self.replace(private, next)
    }

    /// Makes numbers up to and beyond `number` usable; returns the last.
    pub fn reserve_numbers(&mut self, private: BorrowedFd<'_>, number: u64) -> Result<u64, Errno> {
        let number_ceiling = number.saturating_add(NUMBERS_RESERVED);
        let next = VolumeFile {
            number_ceiling,
            running: true,
            ..self.file.clone()
        };
        self.replace(private, next)?;
        Ok(number_ceiling)
    }

    /// All handles are those of this disk now.
    pub fn set_root_handle(
        &mut self,
        private: BorrowedFd<'_>,
        root_handle: String,
    ) -> Result<(), Errno> {
        let next = VolumeFile {
            root_handle,
            ..self.file.clone()
        };
        self.replace(private, next)
    }

    /// Written with the next write of the file; until then a crash is judged by the older one.
    pub fn note_sync(&mut self, begun_ms: u64) {
        self.file.synced_at_ms = begun_ms;
    }

    /// This life ends, and everything is on the disk.
    pub fn close(&mut self, private: BorrowedFd<'_>, last_applied: u64) -> Result<(), Errno> {
        if !self.file.running {
            return Ok(());
        }
        let last_number = self.file.last_number.max(last_applied);
        let next = VolumeFile {
            last_number,
            number_ceiling: 0,
            running: false,
            ..self.file.clone()
        };
        self.replace(private, next)
    }

    fn replace(&mut self, private: BorrowedFd<'_>, next: VolumeFile) -> Result<(), Errno> {
        next.write(private)?;
        self.file = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let identity = BrickIdentity {
            volume: VolumeId([7; 16]),
            volume_name: "v".to_owned(),
            brick: BrickId(3),
            set: 1,
        };
        assert!(
            VolumeFile::read(fd.as_fd())
                .unwrap_err()
                .contains("no .mortar/volume")
        );
        let file = VolumeFile::new(&identity, true, 5);
        file.write(fd.as_fd()).unwrap();
        let read = VolumeFile::read(fd.as_fd()).unwrap();
        assert_eq!(read, file);
        assert!(read.is(&identity));
        assert!(!read.is(&BrickIdentity { set: 2, ..identity }));
        let path = dir.path().join("volume");
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert_eq!(VolumeFile::parse(&bytes), None, "byte {at}");
        }
    }

    #[test]
    fn a_crash_is_remembered() {
        let mut file = VolumeFile {
            running: true,
            number_ceiling: 50,
            ..VolumeFile::default()
        };
        file.synced_at_ms = 10_000;
        file.recover(20_000);
        assert_eq!(
            file.crashes,
            [Crash {
                from_ms: 8_000,
                to_ms: 22_000,
                number_floor: 50
            }]
        );
        assert_eq!((file.last_number, file.running), (50, false));
        for life in 0..2 * CRASHES_MAX as u64 {
            file.running = true;
            file.recover(30_000 + life);
        }
        assert_eq!(file.crashes.len(), CRASHES_MAX);
        assert_eq!(file.crashes[0].from_ms, 8_000);
    }

    #[test]
    fn numbers_that_a_crash_may_have_used_are_not_given_again() {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let mut state = StateFile::new(VolumeFile::default());
        let ceiling = state.reserve_numbers(fd.as_fd(), 10).unwrap();
        assert!(ceiling > 10);
        let after = VolumeFile::read(fd.as_fd()).unwrap();
        assert!(after.running && after.number_ceiling == ceiling);
        state.close(fd.as_fd(), 12).unwrap();
        let after = VolumeFile::read(fd.as_fd()).unwrap();
        assert!(!after.running && after.last_number == 12);
    }
}
