//! Bytes of the kernel become requests, or an error that says what is wrong with them.
//!
//! As `linux/fuse.h` has it, protocol 7.28 to 7.45: a header of 40 bytes, fixed fields in the host's
//! order, names that end with NUL, bytes. Nothing here trusts a length or panics, whatever comes.

mod files;
mod names;

use mortar_proto::data::Caller;

use super::super::request::{Operation, Request};
use crate::cache::NodeId;

/// Bytes before a request's own fields.
pub const HEADER_BYTES: usize = 40;
/// `total_extlen` counts in units of this.
const EXTENSION_UNIT_BYTES: usize = 8;

/// A message of the kernel.
#[derive(Debug)]
pub struct Message<'a> {
    /// Names the request in its answer, and in what interrupts it.
    pub unique: u64,
    /// What it says.
    pub body: Body<'a>,
}

/// What a message says.
#[derive(Debug)]
pub enum Body<'a> {
    /// The first: which protocol and what the kernel offers.
    Init(InitIn),
    /// To be served and answered.
    Request(Request<'a>),
    /// A READDIR or READDIRPLUS, with the kernel's room for its answer.
    Listing(Request<'a>, Room),
    /// The caller of that request got a signal. No answer.
    Interrupt(u64),
    /// The kernel lets go of an inode. No answer.
    Forget(NodeId, u64),
    /// The same of many.
    ForgetMany(Forgets<'a>),
    /// The last: the file system is unmounted.
    Destroy,
}

/// The kernel's buffer for a listing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Its size.
    pub bytes: u32,
    /// Whether entries go in with attributes.
    pub plus: bool,
}

/// Fields of INIT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InitIn {
    /// 7 for as long as anybody remembers.
    pub major: u32,
    /// The kernel's newest protocol.
    pub minor: u32,
    /// Bytes it would read ahead.
    pub max_readahead: u32,
    /// What it offers, both halves.
    pub flags: u64,
}

/// (inode, lookups) pairs, as they lie in the message.
#[derive(Clone, Copy, Debug)]
pub struct Forgets<'a>(&'a [u8]);

impl Forgets<'_> {
    const PAIR_BYTES: usize = 16;

    /// The pairs.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, u64)> {
        self.0.chunks_exact(Self::PAIR_BYTES).filter_map(|pair| {
            let mut fields = Fields(pair);
            Some((NodeId(fields.u64().ok()?), fields.u64().ok()?))
        })
    }
}

/// Why bytes are no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not even a header, so nobody can be answered.
    #[error("{0} bytes, which is no request")]
    NoHeader(usize),
    /// The header's own length is not that of what came.
    #[error("{came} bytes came of a request of {said}")]
    Length {
        /// Bytes read from the device.
        came: usize,
        /// What the header says.
        said: u32,
    },
    /// It ends within its fields.
    #[error("the request is too short for its kind")]
    Short,
    /// A name without its NUL, or an empty one.
    #[error("a name in the request is empty or has no end")]
    Name,
    /// A field that must be one of a few values is none of them.
    #[error("a field of the request has no meaning")]
    Field,
}

/// The `unique` of a message, if it has that much of a header: to refuse what cannot be decoded.
pub fn unique_of(bytes: &[u8]) -> Option<u64> {
    let mut fields = Fields(bytes);
    fields.u32().ok()?;
    fields.u32().ok()?;
    fields.u64().ok()
}

/// The number of the operation, for the log.
pub fn opcode_of(bytes: &[u8]) -> Option<u32> {
    let mut fields = Fields(bytes);
    fields.u32().ok()?;
    fields.u32().ok()
}

/// Whether the kernel waits for an answer to this operation.
pub fn is_answered(opcode: u32) -> bool {
    !matches!(opcode, FORGET | BATCH_FORGET | INTERRUPT)
}

/// Reads one message; `bytes` is what one read from the device gave.
///
/// # Errors
/// [`DecodeError`].
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, DecodeError> {
    let no_header = DecodeError::NoHeader(bytes.len());
    if bytes.len() < HEADER_BYTES {
        return Err(no_header);
    }
    let mut fields = Fields(bytes);
    let said = fields.u32()?;
    if said as usize != bytes.len() {
        let came = bytes.len();
        return Err(DecodeError::Length { came, said });
    }
    let opcode = fields.u32()?;
    let unique = fields.u64()?;
    let node = NodeId(fields.u64()?);
    let caller = Caller {
        uid: fields.u32()?,
        gid: fields.u32()?,
        pid: fields.u32()?,
        umask: 0,
    };
    let extensions = usize::from(fields.u16()?) * EXTENSION_UNIT_BYTES;
    fields.u16()?;
    let body_bytes = fields.0.len().checked_sub(extensions);
    let fields = Fields(&fields.0[..body_bytes.ok_or(DecodeError::Short)?]);
    let body = body(opcode, Head { node, caller }, fields)?;
    Ok(Message { unique, body })
}

/// What every request says of itself.
#[derive(Clone, Copy)]
struct Head {
    node: NodeId,
    caller: Caller,
}

impl Head {
    fn request<'a>(self, op: Operation<'a>) -> Request<'a> {
        let Head { node, caller } = self;
        Request { caller, node, op }
    }

    /// For what makes an object.
    fn with_umask(self, umask: u32) -> Head {
        let caller = Caller {
            umask,
            ..self.caller
        };
        Head { caller, ..self }
    }
}

fn body<'a>(opcode: u32, head: Head, mut fields: Fields<'a>) -> Result<Body<'a>, DecodeError> {
    Ok(match opcode {
        INIT => Body::Init(init(&mut fields)?),
        DESTROY => Body::Destroy,
        INTERRUPT => Body::Interrupt(fields.u64()?),
        FORGET => Body::Forget(head.node, fields.u64()?),
        BATCH_FORGET => Body::ForgetMany(forgets(&mut fields)?),
        READDIR | READDIRPLUS => files::read_dir(opcode, head, &mut fields)?,
        _ => Body::Request(match names::decode(opcode, head, &mut fields)? {
            Some(request) => request,
            None => files::decode(opcode, head, &mut fields)?,
        }),
    })
}

fn init(fields: &mut Fields<'_>) -> Result<InitIn, DecodeError> {
    const INIT_EXT: u64 = 1 << 30;
    let (major, minor) = (fields.u32()?, fields.u32()?);
    let (max_readahead, low) = (fields.u32()?, u64::from(fields.u32()?));
    let high = match low & INIT_EXT {
        0 => 0,
        _ => u64::from(fields.u32()?),
    };
    Ok(InitIn {
        major,
        minor,
        max_readahead,
        flags: low | high << 32,
    })
}

fn forgets<'a>(fields: &mut Fields<'a>) -> Result<Forgets<'a>, DecodeError> {
    let count = fields.u32()? as usize;
    fields.u32()?;
    let bytes = count
        .checked_mul(Forgets::PAIR_BYTES)
        .ok_or(DecodeError::Short)?;
    fields.bytes(bytes).map(Forgets)
}

/// What is left of a message.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (these, rest) = self.0.split_at_checked(len).ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(these)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (these, rest) = self.0.split_first_chunk().ok_or(DecodeError::Short)?;
        self.0 = rest;
        Ok(*these)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_ne_bytes)
    }

    /// Bytes up to a NUL, which is taken too.
    fn name(&mut self) -> Result<&'a [u8], DecodeError> {
        let end = self.0.iter().position(|byte| *byte == 0);
        let end = end.filter(|end| *end > 0).ok_or(DecodeError::Name)?;
        let name = self.bytes(end)?;
        self.bytes(1)?;
        Ok(name)
    }
}

pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const SETATTR: u32 = 4;
pub const READLINK: u32 = 5;
pub const SYMLINK: u32 = 6;
pub const MKNOD: u32 = 8;
pub const MKDIR: u32 = 9;
pub const UNLINK: u32 = 10;
pub const RMDIR: u32 = 11;
pub const RENAME: u32 = 12;
pub const LINK: u32 = 13;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const WRITE: u32 = 16;
pub const STATFS: u32 = 17;
pub const RELEASE: u32 = 18;
pub const FSYNC: u32 = 20;
pub const SETXATTR: u32 = 21;
pub const GETXATTR: u32 = 22;
pub const LISTXATTR: u32 = 23;
pub const REMOVEXATTR: u32 = 24;
pub const FLUSH: u32 = 25;
pub const INIT: u32 = 26;
pub const OPENDIR: u32 = 27;
pub const READDIR: u32 = 28;
pub const RELEASEDIR: u32 = 29;
pub const FSYNCDIR: u32 = 30;
pub const GETLK: u32 = 31;
pub const SETLK: u32 = 32;
pub const SETLKW: u32 = 33;
pub const ACCESS: u32 = 34;
pub const CREATE: u32 = 35;
pub const INTERRUPT: u32 = 36;
pub const DESTROY: u32 = 38;
pub const IOCTL: u32 = 39;
pub const BATCH_FORGET: u32 = 42;
pub const FALLOCATE: u32 = 43;
pub const READDIRPLUS: u32 = 44;
pub const RENAME2: u32 = 45;
pub const LSEEK: u32 = 46;
pub const COPY_FILE_RANGE: u32 = 47;
pub const TMPFILE: u32 = 51;
