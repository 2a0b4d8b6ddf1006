//! A primary on a real brick, in this process, and other copies that it can ask.

use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mortar_common::ids::GfidMaker;
use mortar_common::placement::name_slot;
use mortar_common::{BrickId, Gfid, Incarnation, VolumeId};
use mortar_proto::data::change::Step;
use mortar_proto::data::{
    Change, CreateStep, EpochRef, Hello, Role as HelloRole, SetAttrStep, Time, WriteStep,
    link_message,
};
use mortar_proto::frame::FrameError;
use mortar_proto::registry::{Epoch, Limits};

use super::Scrubber;
use crate::brick::{Brick, BrickIdentity, HealSource, Reserve, Store};
use crate::heal::scrub::Scrub;
use crate::registry::StillWanted;
use crate::replica::core::{Proposed, RegistryView, Role, Timing, Votes};
use crate::replica::healing::Asker;
use crate::replica::{Ports, Replica, Setting};

pub const ME: BrickId = BrickId(1);
pub const OTHER: BrickId = BrickId(2);
pub const THIRD: BrickId = BrickId(3);
pub const WITHIN: Duration = Duration::from_secs(60);

/// A registry of one, and the other copies of the set.
struct Alone {
    me: BrickId,
    epoch: Mutex<Epoch>,
    others: Mutex<HashMap<BrickId, Arc<Replica>>>,
}

impl Alone {
    fn view(&self) -> RegistryView {
        RegistryView {
            epoch: self.epoch.lock().unwrap().clone(),
            history: Vec::new(),
            bricks: vec![self.me],
            votes: Votes::Quorum,
            linearizable: true,
        }
    }
}

impl Ports for Alone {
    fn propose(&self, _: EpochRef, next: &Epoch, _: &[Epoch], _: StillWanted) -> Proposed {
        *self.epoch.lock().unwrap() = next.clone();
        Proposed::Committed
    }
    fn read_registry(&self) -> Option<RegistryView> {
        Some(self.view())
    }
    fn connect(&self, to: BrickId, hello: Hello) -> Result<(TcpStream, Hello), FrameError> {
        let other = self.others.lock().unwrap().get(&to).cloned();
        let other = other.ok_or(FrameError::Closed)?;
        assert_eq!(hello.role(), HelloRole::Peer, "the others are only asked");
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let here = TcpStream::connect(listener.local_addr()?)?;
        let (there, _) = listener.accept()?;
        // It ends with the connection.
        std::thread::spawn(move || drop(other.serve(there, &hello)));
        Ok((here, Hello::default()))
    }
    fn send(&self, _: BrickId, _: link_message::What) {}
    fn last_in_sync(&self, _: BrickId) -> Option<EpochRef> {
        None
    }
    fn bricks(&self) -> Vec<BrickId> {
        vec![ME, OTHER, THIRD]
    }
    fn name_of(&self, brick: BrickId) -> String {
        brick.to_string()
    }
}

/// One copy and its brick.
pub struct Copy {
    pub replica: Arc<Replica>,
    pub brick: Arc<Brick>,
    ports: Arc<Alone>,
    _folder: tempfile::TempDir,
}

impl Copy {
    /// A copy that is its set's only one as far as the registry knows, and so its primary.
    pub fn new(me: BrickId, reserve: Reserve) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("brick");
        let identity = BrickIdentity {
            volume: VolumeId([9; 16]),
            volume_name: "vol".to_owned(),
            brick: me,
            set: 0,
        };
        Brick::make(&path, &identity, true).unwrap();
        let brick = Arc::new(Brick::open(&path, &identity, reserve).unwrap());
        let ports = Arc::new(Alone {
            me,
            epoch: Mutex::default(),
            others: Mutex::default(),
        });
        let setting = Setting {
            me,
            incarnation: Incarnation(me.0 * 11),
            volume: identity.volume,
            volume_name: identity.volume_name,
            set: 0,
            folder: path,
            timing: Timing::default(),
        };
        let store: Arc<dyn HealSource> = brick.clone();
        let replica = Replica::start(
            setting,
            Limits::default(),
            store,
            ports.clone(),
            Some(ports.view()),
        );
        wait_until("it is the primary", || replica.role().0 == Role::Primary);
        Copy {
            replica,
            brick,
            ports,
            _folder: folder,
        }
    }

    /// A primary and the others that it compares itself with.
    pub fn with_others(others: &[&Copy]) -> Self {
        Copy::new(ME, Reserve::default()).beside(others)
    }

    /// Compares itself with these from now on, and notes for them what changes.
    pub fn beside(self, others: &[&Copy]) -> Self {
        for other in others {
            let id = other.replica.setting().me;
            let replica = Arc::clone(&other.replica);
            self.ports.others.lock().unwrap().insert(id, replica);
        }
        for id in [OTHER, THIRD] {
            self.replica.absent.is_back(id);
            self.replica.absent.follow(id, 0);
        }
        self
    }

    /// A comparison with them.
    pub fn scrubber(&self) -> Scrubber<'_> {
        let mut others: Vec<BrickId> = self.ports.others.lock().unwrap().keys().copied().collect();
        others.sort_unstable();
        Scrubber {
            replica: &self.replica,
            scrub: Arc::new(Scrub::default()),
            epoch: self.replica.role().1.id,
            copies: others
                .into_iter()
                .map(|id| Asker::new(&self.replica, id))
                .collect(),
        }
    }

    /// Has a file with these bytes at these places, without that anybody ordered it.
    pub fn has_file(&self, gfid: Gfid, size: u64, parts: &[(u64, &[u8])]) {
        let create = CreateStep {
            parent: Some(Gfid::ROOT),
            name: Bytes::from_static(NAME),
            gfid: Some(gfid),
            mode: libc::S_IFREG | 0o644,
            ..Default::default()
        };
        self.apply(Step::Create(create), &[]);
        for (offset, bytes) in parts {
            let write = WriteStep {
                gfid: Some(gfid),
                offset: *offset,
                len: bytes.len() as u32,
                ..Default::default()
            };
            self.apply(Step::Write(write), bytes);
        }
        let set = SetAttrStep {
            gfid: Some(gfid),
            size: Some(size),
            mtime: Some(time(5)),
            ..Default::default()
        };
        self.apply(Step::Setattr(set), &[]);
    }

    pub fn apply(&self, step: Step, payload: &[u8]) {
        let change = Change {
            number: 1,
            time: Some(time(1)),
            step: Some(step),
            ..Default::default()
        };
        self.brick.apply(&change, payload).unwrap();
    }

    pub fn read(&self, gfid: Gfid, offset: u64, len: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.brick.read(gfid, offset, len, &mut bytes).unwrap();
        bytes
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.replica.halt();
        self.ports.others.lock().unwrap().clear();
        self.replica.finish_stop();
    }
}

/// What the file of [`Copy::has_file`] is called.
const NAME: &[u8] = b"file";

pub fn file() -> Gfid {
    GfidMaker::default().make(name_slot(Gfid::ROOT, NAME))
}

fn time(after: i64) -> Time {
    Time {
        secs: 1_600_000_000 + after,
        nanos: 0,
    }
}

#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < WITHIN, "not within {WITHIN:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
