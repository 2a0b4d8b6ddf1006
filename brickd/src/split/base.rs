//! The side that goes on, as the side that merges reaches it: by the requests of a client.

use std::sync::Arc;

use bytes::Bytes;
use fuse_client::session::{Call, Effect, Session};
use mortar_common::name::SPLIT_DIR;
use mortar_common::{FsError, Gfid};
use mortar_proto::data::op::Op as OpKind;
use mortar_proto::data::result::Ok as Answer;
use mortar_proto::data::{
    self, Caller, Create, Fsync, GetAttr, GetXattr, Link, Lookup, Object, Op, Read, ReadDir,
    ReadDirPage, ReadLink, RemoveXattr, Rename, RenameMode, RmDir, SetAttr, SetXattr, SplitWork,
    Unlink, Write,
};

/// The answer to one operation.
pub struct Told {
    /// As the base gave it; it did not fail.
    pub result: data::Result,
    /// Bytes of a read.
    pub payload: Bytes,
}

/// Whoever carries out operations on the base.
pub trait Base {
    /// Carries out one operation.
    ///
    /// # Errors
    /// What it failed with.
    fn call(&self, work: SplitWork, op: OpKind, payload: &[u8]) -> Result<Told, FsError>;
}

/// A base that is asked over the network.
pub struct SessionBase(pub Arc<Session>);

impl Base for SessionBase {
    fn call(&self, work: SplitWork, op: OpKind, payload: &[u8]) -> Result<Told, FsError> {
        let op = Op { op: Some(op) };
        let effect = match crate::replica::plan::is_read(&op) {
            true => Effect::Read,
            false => Effect::Once,
        };
        let mut answer = self.0.call(Call {
            caller: Caller::default(),
            ops: vec![op],
            payload,
            effect,
            split: work,
            locks_lost: &[],
        })?;
        Ok(Told {
            result: answer.take(0)?,
            payload: answer.payload,
        })
    }
}

/// A name on the base.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The directory.
    pub parent: Gfid,
    /// The name in it.
    pub name: Bytes,
}

impl Place {
    /// That name in that directory.
    pub fn new(parent: Gfid, name: impl Into<Bytes>) -> Self {
        Place {
            parent,
            name: name.into(),
        }
    }

    /// In the folder of versions.
    pub fn version(name: Vec<u8>) -> Self {
        Place::new(Gfid::SPLIT, name)
    }
}

/// The operations by name. Each is one request.
#[derive(Clone, Copy)]
pub struct Hands<'a> {
    base: &'a dyn Base,
    work: SplitWork,
}

impl<'a> Hands<'a> {
    /// Operations of this kind of work.
    pub fn new(base: &'a dyn Base, work: SplitWork) -> Self {
        Hands { base, work }
    }

    /// The same base, for what is decided.
    pub fn deciding(self) -> Self {
        Hands {
            work: SplitWork::SplitResolve,
            ..self
        }
    }

    fn call(&self, op: OpKind) -> Result<Told, FsError> {
        self.base.call(self.work, op, &[])
    }

    /// The object, if the base has it.
    pub fn object(&self, gfid: Gfid) -> Result<Option<Object>, FsError> {
        let get = GetAttr {
            gfid: Some(gfid),
            ..Default::default()
        };
        absent(self.call(OpKind::Getattr(get)).map(|told| first(&told)))
    }

    /// What a name holds.
    pub fn lookup(&self, place: &Place) -> Result<Option<Object>, FsError> {
        let lookup = Lookup {
            parent: Some(place.parent),
            name: place.name.clone(),
        };
        absent(self.call(OpKind::Lookup(lookup)).map(|told| first(&told)))
    }

    /// Bytes of a file; fewer only at its end.
    pub fn read(&self, gfid: Gfid, offset: u64, len: u32) -> Result<Bytes, FsError> {
        let read = Read {
            gfid: Some(gfid),
            offset,
            len,
        };
        self.call(OpKind::Read(read)).map(|told| told.payload)
    }

    /// A symlink's text.
    pub fn read_link(&self, gfid: Gfid) -> Result<Bytes, FsError> {
        let ask = ReadLink { gfid: Some(gfid) };
        self.call(OpKind::Readlink(ask)).map(|told| bytes(&told))
    }

    /// A page of a directory.
    pub fn read_dir(&self, page: &ReadDir) -> Result<ReadDirPage, FsError> {
        let told = self.call(OpKind::Readdir(page.clone()))?;
        match told.result.ok {
            Some(Answer::Readdir(page)) => Ok(page),
            _ => Err(FsError::Io),
        }
    }

    /// An xattr, if the object has it.
    pub fn xattr(&self, gfid: Gfid, name: &'static [u8]) -> Result<Option<Bytes>, FsError> {
        let get = GetXattr {
            gfid: Some(gfid),
            name: Bytes::from_static(name),
        };
        match self.call(OpKind::Getxattr(get)) {
            Ok(told) => Ok(Some(bytes(&told))),
            Err(FsError::NoAttribute | FsError::NotFound | FsError::Stale) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes an object; of a file without content.
    pub fn make(&self, place: &Place, gfid: Gfid, like: &Object, target: &Bytes) -> Done {
        let create = Create {
            parent: Some(place.parent),
            name: place.name.clone(),
            gfid: Some(gfid),
            mode: like.mode,
            rdev: like.rdev,
            target: target.clone(),
            exclusive: true,
            open: false,
        };
        self.call(OpKind::Create(create)).map(drop)
    }

    /// Writes bytes.
    pub fn write(&self, gfid: Gfid, offset: u64, data: &[u8]) -> Done {
        let write = Write {
            gfid: Some(gfid),
            offset,
            len: u32::try_from(data.len()).map_err(|_| FsError::Invalid)?,
            ..Default::default()
        };
        self.base
            .call(self.work, OpKind::Write(write), data)
            .map(drop)
    }

    /// Sets attributes.
    pub fn set(&self, set: SetAttr) -> Done {
        self.call(OpKind::Setattr(set)).map(drop)
    }

    /// Sets an xattr.
    pub fn set_xattr(&self, gfid: Gfid, name: &[u8], value: &Bytes) -> Done {
        let set = SetXattr {
            gfid: Some(gfid),
            name: Bytes::copy_from_slice(name),
            value: value.clone(),
            ..Default::default()
        };
        self.call(OpKind::Setxattr(set)).map(drop)
    }

    /// Removes an xattr that may be there.
    pub fn remove_xattr(&self, gfid: Gfid, name: &'static [u8]) -> Done {
        let remove = RemoveXattr {
            gfid: Some(gfid),
            name: Bytes::from_static(name),
        };
        match self.call(OpKind::Removexattr(remove)) {
            Ok(_) | Err(FsError::NoAttribute) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes an object durable; of a directory its names.
    pub fn sync(&self, gfid: Gfid) -> Done {
        let sync = Fsync {
            gfid: Some(gfid),
            data_only: false,
        };
        self.call(OpKind::Fsync(sync)).map(drop)
    }

    /// Moves what `from` holds, which must be `gfid`.
    pub fn rename(&self, from: &Place, gfid: Gfid, to: &Place, how: RenameMode) -> Done {
        let rename = Rename {
            from_parent: Some(from.parent),
            from_name: from.name.clone(),
            gfid: Some(gfid),
            to_parent: Some(to.parent),
            to_name: to.name.clone(),
            how: how.into(),
            whiteout: None,
            to_gfid: None,
        };
        self.call(OpKind::Rename(rename)).map(drop)
    }

    /// Gives an object one more name.
    pub fn link(&self, gfid: Gfid, to: &Place) -> Done {
        let link = Link {
            gfid: Some(gfid),
            parent: Some(to.parent),
            name: to.name.clone(),
            unnamed: false,
        };
        self.call(OpKind::Link(link)).map(drop)
    }

    /// Takes the name of a file.
    pub fn unlink(&self, at: &Place, gfid: Gfid) -> Done {
        let unlink = Unlink {
            parent: Some(at.parent),
            name: at.name.clone(),
            gfid: Some(gfid),
        };
        self.call(OpKind::Unlink(unlink)).map(drop)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, at: &Place, gfid: Gfid) -> Done {
        let rmdir = RmDir {
            parent: Some(at.parent),
            name: at.name.clone(),
            gfid: Some(gfid),
        };
        self.call(OpKind::Rmdir(rmdir)).map(drop)
    }

    /// Makes the folder of versions, if it is not there.
    pub fn ensure_versions(&self) -> Done {
        let place = Place::new(Gfid::ROOT, SPLIT_DIR);
        match self.lookup(&place)? {
            Some(found) if found.gfid == Some(Gfid::SPLIT) => Ok(()),
            Some(_) => Err(FsError::Exists),
            None => {
                let like = Object {
                    mode: libc::S_IFDIR | 0o700,
                    ..Default::default()
                };
                self.make(&place, Gfid::SPLIT, &like, &Bytes::new())
            }
        }
    }
}

impl Hands<'_> {
    /// Removes the folder of versions if it holds none.
    pub fn remove_empty_versions(&self) -> Done {
        match self.rmdir(&Place::new(Gfid::ROOT, SPLIT_DIR), Gfid::SPLIT) {
            Ok(()) | Err(FsError::NotEmpty | FsError::NotFound | FsError::ChangedByBoth) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// How a change ended.
pub type Done = Result<(), FsError>;

fn first(told: &Told) -> Object {
    told.result.objects.first().copied().unwrap_or_default()
}

fn bytes(told: &Told) -> Bytes {
    match &told.result.ok {
        Some(Answer::Bytes(bytes)) => bytes.clone(),
        _ => Bytes::new(),
    }
}

fn absent(told: Result<Object, FsError>) -> Result<Option<Object>, FsError> {
    match told {
        Ok(object) => Ok(Some(object)),
        Err(FsError::NotFound | FsError::Stale | FsError::NotDirectory) => Ok(None),
        Err(error) => Err(error),
    }
}
