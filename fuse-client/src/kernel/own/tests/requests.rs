//! Requests as the kernel writes them.

use super::super::decode::*;

/// The bytes of one request.
#[derive(Clone, Debug)]
pub struct Raw {
    pub bytes: Vec<u8>,
}

impl Raw {
    /// A header on inode 1, by root.
    pub fn new(opcode: u32, unique: u64) -> Raw {
        let raw = Raw { bytes: vec![] };
        let raw = raw.u32(0).u32(opcode).u64(unique).u64(1);
        raw.u32(0).u32(0).u32(1).u32(0)
    }

    pub fn on(mut self, node: u64) -> Raw {
        self.bytes[16..24].copy_from_slice(&node.to_ne_bytes());
        self
    }

    pub fn u32(mut self, value: u32) -> Raw {
        self.bytes.extend_from_slice(&value.to_ne_bytes());
        self.fixed()
    }

    pub fn u64(mut self, value: u64) -> Raw {
        self.bytes.extend_from_slice(&value.to_ne_bytes());
        self.fixed()
    }

    pub fn name(mut self, name: &[u8]) -> Raw {
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
        self.fixed()
    }

    pub fn unique(&self) -> u64 {
        unique_of(&self.bytes).unwrap()
    }

    /// The first bytes of it, as if they were all.
    pub fn cut(&self, len: usize) -> Raw {
        let bytes = self.bytes[..len].to_vec();
        Raw { bytes }.fixed()
    }

    /// With a header that says so many extensions follow.
    pub fn with_extensions(mut self, units: u16) -> Raw {
        if let Some(field) = self.bytes.get_mut(36..38) {
            field.copy_from_slice(&units.to_ne_bytes());
        }
        self
    }

    /// The length in the header is right.
    pub fn fixed(mut self) -> Raw {
        let len = (self.bytes.len() as u32).to_ne_bytes();
        if let Some(field) = self.bytes.get_mut(..4) {
            field.copy_from_slice(&len);
        }
        self
    }
}

pub fn init(minor: u32, flags: u64) -> Raw {
    let raw = Raw::new(INIT, 1).u32(7).u32(minor).u32(131_072);
    let raw = raw.u32(flags as u32).u32((flags >> 32) as u32);
    (0..11).fold(raw, |raw, _| raw.u32(0))
}

/// `valid`, and the times with 5 ns each.
pub fn setattr(unique: u64, valid: u32, atime: i64, mtime: i64) -> Raw {
    let raw = Raw::new(SETATTR, unique).u32(valid).u32(0);
    let raw = raw.u64(1).u64(2).u64(3);
    let raw = raw.u64(atime as u64).u64(mtime as u64).u64(0);
    let raw = raw.u32(5).u32(5).u32(0).u32(0o644);
    raw.u32(0).u32(0).u32(0).u32(0)
}

pub fn lock(opcode: u32, unique: u64) -> Raw {
    lock_with(opcode, unique, 0)
}

pub fn lock_with(opcode: u32, unique: u64, lk_flags: u32) -> Raw {
    let raw = Raw::new(opcode, unique).u64(1).u64(77);
    let raw = raw.u64(0).u64(i64::MAX as u64).u32(1).u32(4);
    raw.u32(lk_flags).u32(0)
}

/// One of each.
pub fn every_kind() -> Vec<Raw> {
    let new = |opcode: u32| Raw::new(opcode, 1_000 + 2 * u64::from(opcode));
    let place = |opcode| new(opcode).u64(1).u64(4096).u32(512).u32(0).u64(0).u64(0);
    let mut all: Vec<Raw> = [LOOKUP, UNLINK, RMDIR, REMOVEXATTR]
        .map(|opcode| new(opcode).name(b"name"))
        .into();
    all.extend([READLINK, STATFS, DESTROY].map(new));
    all.extend([READ, READDIR, READDIRPLUS].map(place));
    all.extend([SETLK, SETLKW, GETLK].map(|opcode| lock(opcode, 1_000 + 2 * u64::from(opcode))));
    all.extend([FSYNC, FSYNCDIR].map(|opcode| new(opcode).u64(1).u32(1).u32(0)));
    all.extend([OPEN, OPENDIR].map(|opcode| new(opcode).u32(2).u32(1)));
    all.extend([RELEASE, RELEASEDIR].map(|opcode| new(opcode).u64(1).u32(2).u32(0).u64(3)));
    all.extend([
        init(45, u64::MAX),
        new(FORGET).u64(1),
        new(GETATTR).u32(0).u32(0).u64(0),
        setattr(1_000 + 2 * u64::from(SETATTR), u32::MAX, -1, i64::MAX),
        new(SYMLINK).name(b"name").name(b"to/there"),
        new(MKNOD).u32(0o100_644).u32(0).u32(0o22).u32(0).name(b"n"),
        new(MKDIR).u32(0o755).u32(0o22).name(b"n"),
        new(RENAME).u64(1).name(b"from").name(b"to"),
        new(RENAME2).u64(1).u32(1).u32(0).name(b"from").name(b"to"),
        new(LINK).u64(5).name(b"n"),
        place(WRITE).name(&[b'x'; 511]),
        new(SETXATTR)
            .u32(2)
            .u32(0)
            .u32(1)
            .u32(0)
            .name(b"user.a")
            .name(b"v"),
        new(GETXATTR).u32(100).u32(0).name(b"user.a"),
        new(LISTXATTR).u32(100).u32(0),
        new(FLUSH).u64(1).u64(0).u64(3),
        new(ACCESS).u32(4).u32(0),
        new(CREATE).u32(2).u32(0o644).u32(0o22).u32(0).name(b"n"),
        new(TMPFILE).u32(2).u32(0o644).u32(0o22).u32(0).name(b"/"),
        new(INTERRUPT).u64(1000),
        new(IOCTL).u64(1).u32(0).u32(0).u64(0).u32(0).u32(0),
        new(BATCH_FORGET).u32(2).u32(0).u64(1).u64(1).u64(2).u64(1),
        new(FALLOCATE).u64(1).u64(0).u64(4096).u32(1).u32(0),
        new(LSEEK).u64(1).u64(0).u32(3).u32(0),
        new(COPY_FILE_RANGE)
            .u64(1)
            .u64(0)
            .u64(2)
            .u64(2)
            .u64(0)
            .u64(9)
            .u64(0),
    ]);
    all
}
