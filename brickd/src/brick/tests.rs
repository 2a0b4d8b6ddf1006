//! Tests of whole bricks on a real disk, one file per family.

mod attrs;
mod data;
mod heal;
mod listing;
mod names;
mod prepare;
mod reopen;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use mortar_common::ids::GfidMaker;
use mortar_common::placement::Slot;
use mortar_common::{BrickId, FsError, Gfid, VolumeId};
use mortar_proto::data::change::Step;
use mortar_proto::data::{Change, CreateStep, Object, RmDirStep, Time, UnlinkStep, WriteStep};

use super::{Brick, BrickError, BrickIdentity, Reserve, Store};

/// The set's time of change 0.
const EPOCH_SECS: i64 = 1_600_000_000;

/// A brick in a folder of its own, and what orders its changes.
struct Fixture {
    folder: tempfile::TempDir,
    brick: Option<Brick>,
    next: AtomicU64,
    maker: GfidMaker,
}

fn identity() -> BrickIdentity {
    BrickIdentity {
        volume: VolumeId([9; 16]),
        volume_name: "vol".to_owned(),
        brick: BrickId(77),
        set: 0,
    }
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Brick::make(&folder.path().join("brick"), &identity(), true).unwrap();
        let mut fixture = Fixture {
            folder,
            brick: None,
            next: AtomicU64::new(1),
            maker: GfidMaker::default(),
        };
        fixture.open();
        fixture
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("brick")
    }

    fn open(&mut self) {
        self.brick = Some(Brick::open(&self.root(), &identity(), Reserve::default()).unwrap());
    }

    fn reopen(&mut self) {
        self.brick = None;
        self.open();
    }

    /// As SIGKILL would leave the folder: nothing is written back, no orderly close.
    fn crash(&mut self) {
        self.crash_then(|| ());
    }

    fn crash_then(&mut self, meanwhile: impl FnOnce()) {
        let copy = self.folder.path().join("crashed");
        let root = self.root();
        // Hard links cannot be copied apart from their folder, so the folder itself is kept and
        // only the file that says how the last life ended is put back after the close.
        std::fs::copy(root.join(".mortar/volume"), &copy).unwrap();
        let brick = self.brick.take().unwrap();
        brick.forget_everything();
        drop(brick);
        std::fs::copy(&copy, root.join(".mortar/volume")).unwrap();
        meanwhile();
        self.open();
    }

    fn brick(&self) -> &Brick {
        self.brick.as_ref().unwrap()
    }

    fn gfid(&self) -> Gfid {
        self.maker.make(Slot::new(3))
    }

    fn change(&self, step: Step) -> Change {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let time = Time {
            secs: EPOCH_SECS + number as i64,
            nanos: number as u32,
        };
        Change {
            number,
            time: Some(time),
            step: Some(step),
            ..Change::default()
        }
    }

    fn try_apply(&self, step: Step, payload: &[u8]) -> Result<Change, BrickError> {
        let change = self.change(step);
        self.brick().apply(&change, payload).map(|()| change)
    }

    fn apply(&self, step: Step) -> Change {
        self.try_apply(step, &[]).unwrap()
    }

    fn refused(&self, step: Step) -> FsError {
        match self.try_apply(step, &[]) {
            Err(BrickError::Refused { error, .. }) => error,
            other => panic!("not refused: {other:?}"),
        }
    }

    fn make(&self, parent: Gfid, name: &str, mode: u32) -> Gfid {
        let gfid = self.gfid();
        self.apply(create(parent, name, gfid, mode));
        gfid
    }

    fn file(&self, parent: Gfid, name: &str) -> Gfid {
        self.make(parent, name, libc::S_IFREG | 0o644)
    }

    fn dir(&self, parent: Gfid, name: &str) -> Gfid {
        self.make(parent, name, libc::S_IFDIR | 0o755)
    }

    fn write(&self, gfid: Gfid, offset: u64, bytes: &[u8]) -> Change {
        let len = bytes.len() as u32;
        let step = WriteStep {
            gfid: Some(gfid),
            offset,
            len,
            ..WriteStep::default()
        };
        self.try_apply(Step::Write(step), bytes).unwrap()
    }

    fn object(&self, gfid: Gfid) -> Object {
        self.brick().object(gfid).unwrap()
    }

    fn lookup(&self, parent: Gfid, name: &str) -> Result<Object, FsError> {
        self.brick()
            .lookup(parent, name.as_bytes())
            .map_err(|error| error.fs_error())
    }

    fn read_all(&self, gfid: Gfid) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.brick()
            .read(gfid, 0, u32::MAX >> 4, &mut bytes)
            .unwrap();
        bytes
    }

    fn handles(&self) -> Vec<Gfid> {
        use super::HealSource;
        let mut handles = Vec::new();
        self.brick()
            .each_handle(&|_| true, &mut |gfid| {
                handles.push(gfid);
                true
            })
            .unwrap();
        handles.sort();
        handles
    }
}

fn create(parent: Gfid, name: &str, gfid: Gfid, mode: u32) -> Step {
    Step::Create(CreateStep {
        parent: Some(parent),
        name: name.as_bytes().to_vec().into(),
        gfid: Some(gfid),
        mode,
        ..CreateStep::default()
    })
}

fn unlink(parent: Gfid, name: &str, gfid: Gfid, orphan: bool) -> Step {
    let name = name.as_bytes().to_vec().into();
    Step::Unlink(UnlinkStep {
        parent: Some(parent),
        name,
        gfid: Some(gfid),
        orphan,
    })
}

fn rmdir(parent: Gfid, name: &str, gfid: Gfid) -> Step {
    let name = name.as_bytes().to_vec().into();
    Step::Rmdir(RmDirStep {
        parent: Some(parent),
        name,
        gfid: Some(gfid),
    })
}
