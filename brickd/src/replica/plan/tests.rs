//! Planning against a store in memory, operation by operation, as a driver would run it.

mod data;
mod kernel;
mod names;
mod order;
mod sessions;

use mortar_common::placement::name_slot;
use mortar_common::{FsError, Gfid, SessionId};
use mortar_proto::data::op::Op as OpKind;
use mortar_proto::data::{
    Caller, Change, Create, Op, Result as Answered, SessionOpen, Time, Unlink, change::Step,
};
use mortar_proto::registry::Limits;

use super::double::Double;
use super::*;
use crate::replica::keys::keys_of_op;
use crate::replica::memory::Memory;

const FILE: u32 = libc::S_IFREG;
const DIR: u32 = libc::S_IFDIR;
const LINK: u32 = libc::S_IFLNK;

/// A set with one copy: plans, applies and answers operations one after another.
struct Set {
    store: Double,
    memory: Memory,
    limits: Limits,
    space: Space,
    caller: Caller,
    session: SessionId,
    number: u64,
    /// The step of the last change.
    last: Option<Step>,
    /// Every change with its payload.
    log: Vec<(Change, Vec<u8>)>,
}

impl Set {
    fn new() -> Self {
        let mut set = Set {
            store: Double::new(),
            memory: Memory::new(),
            limits: Limits {
                links: 5,
                xattr_bytes: 200,
                file_bytes: 1 << 20,
            },
            space: Space {
                bytes_left: 1 << 30,
                objects_left: 1000,
            },
            caller: Caller {
                uid: 1000,
                gid: 100,
                pid: 1,
                umask: 0o022,
            },
            session: SessionId(7),
            number: 0,
            last: None,
            log: Vec::new(),
        };
        set.done(OpKind::SessionOpen(SessionOpen::default()));
        set
    }

    fn context<'a>(&'a self, held: &'a Keys, previous: Option<Gfid>) -> Context<'a> {
        Context {
            split: Default::default(),
            caller: &self.caller,
            session: self.session,
            previous,
            store: &self.store,
            memory: &self.memory,
            limits: self.limits,
            space: self.space,
            held,
        }
    }

    /// Plans as a driver does: with the keys the operation names, then with those it asks for.
    fn plan(&self, op: &Op) -> Result<Planned, FsError> {
        let mut held = keys_of_op(op, self.session, None);
        for _ in 0..3 {
            match plan(op, &self.context(&held, None)).map_err(errno)? {
                Plan::Ready(planned) => return Ok(*planned),
                Plan::MoreKeys(more) => {
                    assert!(more.covers(&held) && !held.covers(&more));
                    held = more;
                }
            }
        }
        panic!("no set of keys is enough for {op:?}");
    }

    fn try_with(&mut self, op: OpKind, payload: &[u8]) -> Result<Answered, FsError> {
        let op = Op { op: Some(op) };
        let mut planned = self.plan(&op)?;
        self.number += 1;
        let time = Time {
            secs: self.number as i64,
            nanos: 0,
        };
        planned.stamp(time);
        self.last = planned.step().cloned();
        if let Some(step) = self.last.clone() {
            let change = Change {
                number: self.number,
                seq: self.number,
                time: Some(time),
                session: if matches!(planned.answer, Answer::Refused(_)) {
                    0
                } else {
                    7
                },
                step: Some(step),
                ..Default::default()
            };
            let bytes = &payload[..planned.payload_bytes as usize];
            if matches!(planned.work, Work::Disk(_)) {
                self.store
                    .apply(&change, bytes)
                    .expect("an ordered step cannot fail");
            }
            self.memory.apply(&change);
            self.log.push((change, bytes.to_vec()));
        }
        let answered = reply_of(&planned, &self.store).map_err(errno)?;
        match answered.errno {
            0 => Ok(answered),
            errno => Err(FsError::from_errno(errno)),
        }
    }

    fn run(&mut self, op: OpKind) -> Result<Answered, FsError> {
        self.try_with(op, &[])
    }

    fn done(&mut self, op: OpKind) -> Answered {
        let what = format!("{op:?}");
        self.run(op)
            .unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    fn refused(&mut self, op: OpKind, error: FsError) {
        let what = format!("{op:?}");
        assert_eq!(self.run(op).err(), Some(error), "{what}");
    }

    fn read(&self, op: OpKind) -> Result<(Answered, Vec<u8>), FsError> {
        let mut payload = Vec::new();
        let keys = Keys::none();
        let op = Op { op: Some(op) };
        assert!(is_read(&op));
        let answered = read(&op, &self.context(&keys, None), &mut payload).map_err(errno)?;
        Ok((answered, payload))
    }

    fn make(&mut self, parent: Gfid, name: &'static str, mode: u32) -> Gfid {
        let op = create_op(parent, name, mode);
        let gfid = op.gfid.unwrap();
        self.done(OpKind::Create(op));
        gfid
    }

    fn file(&mut self, name: &'static str, bytes: &[u8]) -> Gfid {
        let gfid = self.make(Gfid::ROOT, name, FILE | 0o644);
        if !bytes.is_empty() {
            let op = Write {
                gfid: Some(gfid),
                len: bytes.len() as u32,
                ..Default::default()
            };
            self.try_with(OpKind::Write(op), bytes).unwrap();
        }
        gfid
    }

    fn object(&self, gfid: Gfid) -> Object {
        self.store.object(gfid).unwrap()
    }

    fn open(&mut self, gfid: Gfid) {
        self.done(OpKind::Open(mortar_proto::data::Open {
            gfid: Some(gfid),
            ..Default::default()
        }));
    }
}

use crate::brick::store::Store;
use mortar_proto::data::Write;

fn errno(error: PlanError) -> FsError {
    match error {
        PlanError::Refused(error) => error,
        PlanError::Brick(error) => panic!("the brick failed: {error}"),
    }
}

/// A gfid as a client picks it: of the name's slot.
fn pick(parent: Gfid, name: &[u8]) -> Gfid {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    Gfid::new(name_slot(parent, name), next, next)
}

fn create_op(parent: Gfid, name: &'static str, mode: u32) -> Create {
    Create {
        parent: Some(parent),
        name: name.into(),
        gfid: Some(pick(parent, name.as_bytes())),
        mode,
        target: if mode & libc::S_IFMT == LINK {
            "target".into()
        } else {
            "".into()
        },
        exclusive: true,
        ..Default::default()
    }
}

fn unlink_op(name: &'static str, gfid: Option<Gfid>) -> OpKind {
    OpKind::Unlink(Unlink {
        parent: Some(Gfid::ROOT),
        name: name.into(),
        gfid,
    })
}
