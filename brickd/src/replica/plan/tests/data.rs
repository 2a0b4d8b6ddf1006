//! Bytes, attributes, xattrs.

use mortar_proto::data::{
    CopyRange, Fallocate, GetAttr, GetXattr, ListXattr, Read, ReadLink, RemoveXattr, Seek, SetAttr,
    SetTime, SetXattr, Whence, result, set_time,
};

use super::super::acl::tests::{value, with_a_named_user};
use super::*;

fn write_op(gfid: Gfid, offset: u64, len: usize) -> Write {
    Write {
        gfid: Some(gfid),
        offset,
        len: len as u32,
        ..Default::default()
    }
}

fn bytes_of(set: &Set, gfid: Gfid) -> Vec<u8> {
    set.read(OpKind::Read(Read {
        gfid: Some(gfid),
        offset: 0,
        len: 1 << 20,
    }))
    .unwrap()
    .1
}

fn set_xattr(gfid: Gfid, name: &'static str, value: impl Into<Vec<u8>>) -> SetXattr {
    SetXattr {
        gfid: Some(gfid),
        name: name.into(),
        value: value.into().into(),
        ..Default::default()
    }
}

#[test]
fn appends_go_to_the_end_and_say_where() {
    let mut set = Set::new();
    let file = set.file("f", b"abc");
    let append = Write {
        append: true,
        ..write_op(file, 77, 3)
    };
    let answered = set.try_with(OpKind::Write(append), b"def").unwrap();
    assert_eq!(answered.ok, Some(result::Ok::Offset(3)));
    assert_eq!(bytes_of(&set, file), b"abcdef");
    set.store.make_sparse(file, (1 << 20) - 2);
    assert_eq!(
        set.try_with(OpKind::Write(append), b"def"),
        Err(FsError::FileTooLarge)
    );
}

#[test]
fn a_mapped_page_never_extends_a_file() {
    let mut set = Set::new();
    let file = set.file("f", b"abc");
    let page = Write {
        from_page_cache: true,
        ..write_op(file, 0, 8)
    };
    let answered = set.try_with(OpKind::Write(page), b"ABCDEFGH").unwrap();
    assert_eq!(answered.ok, Some(result::Ok::Count(8)));
    assert_eq!(bytes_of(&set, file), b"ABC");
    let behind = Write {
        from_page_cache: true,
        ..write_op(file, 4096, 8)
    };
    let answered = set.try_with(OpKind::Write(behind), b"ABCDEFGH").unwrap();
    assert_eq!(
        (answered.ok, set.last.take()),
        (Some(result::Ok::Count(8)), None)
    );
}

#[test]
fn writes_keep_the_limits() {
    let mut set = Set::new();
    let most = set.limits.file_bytes;
    let file = set.file("f", b"abc");
    let directory = set.make(Gfid::ROOT, "d", DIR);
    let link = set.make(Gfid::ROOT, "s", LINK);
    let mut refused = |op: Write, error| {
        assert_eq!(
            set.try_with(OpKind::Write(op), b"12345678"),
            Err(error),
            "{op:?}"
        );
    };
    refused(write_op(directory, 0, 8), FsError::IsDirectory);
    refused(write_op(link, 0, 8), FsError::Invalid);
    refused(write_op(file, most, 8), FsError::FileTooLarge);
    refused(write_op(file, u64::MAX, 8), FsError::FileTooLarge);
    let clipped = set
        .plan(&Op {
            op: Some(OpKind::Write(write_op(file, most - 4, 8))),
        })
        .unwrap();
    assert_eq!(clipped.payload_bytes, 4);
    set.done(OpKind::Write(write_op(file, most, 0)));

    set.space.bytes_left = 0;
    let grows = set.try_with(OpKind::Write(write_op(file, 1, 3)), b"xyz");
    assert_eq!(grows, Err(FsError::NoSpace));
    set.try_with(OpKind::Write(write_op(file, 1, 2)), b"xy")
        .expect("an overwrite needs no room");
    set.store.make_sparse(file, 3);
    let fills = set.try_with(OpKind::Write(write_op(file, 1, 2)), b"xy");
    assert_eq!(fills, Err(FsError::NoSpace));
}

/// A setuid, setgid program with a capability.
fn program(set: &mut Set, name: &'static str) -> Gfid {
    let file = set.file(name, b"code");
    set.done(OpKind::Setxattr(set_xattr(
        file,
        "security.capability",
        "cap",
    )));
    set.store.edit(file, |object| object.mode = FILE | 0o6777);
    file
}

/// Every change that clears, of a program yet to be filled in.
fn changes_that_clear(source: Gfid) -> Vec<(&'static str, OpKind)> {
    let gfid = None;
    vec![
        (
            "1",
            OpKind::Write(Write {
                kill_suidgid: true,
                ..write_op(Gfid::ROOT, 0, 1)
            }),
        ),
        (
            "2",
            OpKind::Setattr(SetAttr {
                size: Some(1),
                kill_suidgid: true,
                ..Default::default()
            }),
        ),
        (
            "3",
            OpKind::Setattr(SetAttr {
                kill_suidgid: true,
                ..Default::default()
            }),
        ),
        (
            "4",
            OpKind::Setattr(SetAttr {
                uid: Some(5),
                ..Default::default()
            }),
        ),
        (
            "5",
            OpKind::Setattr(SetAttr {
                gid: Some(100),
                ..Default::default()
            }),
        ),
        (
            "6",
            OpKind::Fallocate(Fallocate {
                len: 1,
                kill_suidgid: true,
                ..Default::default()
            }),
        ),
        ("7", {
            let from = Some(source);
            OpKind::CopyRange(CopyRange {
                from,
                len: 1,
                kill_suidgid: true,
                ..Default::default()
            })
        }),
        ("8", {
            let (truncate, kill_suidgid) = (true, true);
            OpKind::Open(mortar_proto::data::Open {
                gfid,
                truncate,
                kill_suidgid,
                ..Default::default()
            })
        }),
    ]
}

#[test]
fn setuid_setgid_and_capabilities_are_cleared_with_the_change() {
    let mut set = Set::new();
    let source = set.file("source", b"xx");
    for (name, mut op) in changes_that_clear(source) {
        let file = program(&mut set, name);
        match &mut op {
            OpKind::Write(op) => op.gfid = Some(file),
            OpKind::Setattr(op) => op.gfid = Some(file),
            OpKind::Fallocate(op) => op.gfid = Some(file),
            OpKind::CopyRange(op) => op.to = Some(file),
            OpKind::Open(op) => op.gfid = Some(file),
            _ => unreachable!(),
        }
        let answered = set.try_with(op, b"x").unwrap();
        assert_eq!(
            (answered.objects[0].mode, answered.objects[0].presence),
            (FILE | 0o777, 0),
            "{name}"
        );
    }
}

#[test]
fn what_is_not_cleared() {
    let mut set = Set::new();
    // Setgid without group execution marks mandatory locking, and stays.
    let file = program(&mut set, "9");
    set.store.edit(file, |object| object.mode = FILE | 0o2666);
    let kill = Write {
        kill_suidgid: true,
        ..write_op(file, 0, 1)
    };
    set.try_with(OpKind::Write(kill), b"x").unwrap();
    assert_eq!(set.object(file).mode, FILE | 0o2666);
    // Without the flag (a caller who may) everything stays.
    let root = program(&mut set, "10");
    set.try_with(OpKind::Write(write_op(root, 0, 1)), b"x")
        .unwrap();
    assert_eq!(set.object(root).mode, FILE | 0o6777);
    // The capability alone, which a write by root takes.
    set.done(OpKind::Setattr(SetAttr {
        gfid: Some(root),
        drop_capability: true,
        ..Default::default()
    }));
    let after = set.object(root);
    assert_eq!((after.mode, after.presence), (FILE | 0o6777, 0));
}

#[test]
fn attributes() {
    let mut set = Set::new();
    let file = set.file("f", b"abc");
    let link = set.make(Gfid::ROOT, "s", LINK);
    let directory = set.make(Gfid::ROOT, "d", DIR);
    let op = |gfid| SetAttr {
        gfid: Some(gfid),
        ..Default::default()
    };
    set.done(OpKind::Setattr(op(file)));
    assert!(set.last.is_none());
    let chmod = SetAttr {
        mode: Some(0o100600),
        ..op(link)
    };
    set.refused(OpKind::Setattr(chmod), FsError::NotSupported);
    set.refused(
        OpKind::Setattr(SetAttr {
            size: Some(0),
            ..op(directory)
        }),
        FsError::IsDirectory,
    );
    set.refused(
        OpKind::Setattr(SetAttr {
            size: Some(0),
            ..op(link)
        }),
        FsError::Invalid,
    );
    let large = SetAttr {
        size: Some(u64::MAX),
        ..op(file)
    };
    set.refused(OpKind::Setattr(large), FsError::FileTooLarge);
    set.done(OpKind::Setattr(SetAttr {
        mode: Some(0o7707),
        ..op(directory)
    }));
    assert_eq!(set.object(directory).mode, DIR | 0o7707);
}

#[test]
fn times() {
    let mut set = Set::new();
    let file = set.file("f", b"abc");
    let op = |gfid| SetAttr {
        gfid: Some(gfid),
        ..Default::default()
    };
    // A new size is a new mtime; "now" is the time of the change, the same on every copy.
    set.done(OpKind::Setattr(SetAttr {
        size: Some(3),
        ..op(file)
    }));
    let now = Some(Time {
        secs: set.number as i64,
        nanos: 0,
    });
    assert_eq!(
        (set.object(file).mtime, set.object(file).atime),
        (now, None)
    );
    let at = |secs, nanos| SetTime {
        when: Some(set_time::When::At(Time { secs, nanos })),
    };
    set.done(OpKind::Setattr(SetAttr {
        atime: Some(SetTime {
            when: Some(set_time::When::Now(true)),
        }),
        mtime: Some(at(i64::MIN, 1)),
        ..op(file)
    }));
    let now = Some(Time {
        secs: set.number as i64,
        nanos: 0,
    });
    assert_eq!(set.object(file).atime, now);
    assert_eq!(
        set.object(file).mtime,
        Some(Time {
            secs: i64::MIN,
            nanos: 1
        })
    );
    let bad = SetAttr {
        mtime: Some(at(0, 1_000_000_000)),
        ..op(file)
    };
    set.refused(OpKind::Setattr(bad), FsError::Invalid);
}

#[test]
fn ranges() {
    let mut set = Set::new();
    let (file, other) = (set.file("f", b"abcdef"), set.file("g", b""));
    let op = |mode: i32| Fallocate {
        gfid: Some(file),
        mode: mode as u32,
        len: 9,
        ..Default::default()
    };
    set.done(OpKind::Fallocate(op(0)));
    set.done(OpKind::Fallocate(op(
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE
    )));
    set.done(OpKind::Fallocate(op(
        libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE
    )));
    set.refused(
        OpKind::Fallocate(op(libc::FALLOC_FL_PUNCH_HOLE)),
        FsError::NotSupported,
    );
    set.refused(
        OpKind::Fallocate(op(libc::FALLOC_FL_COLLAPSE_RANGE)),
        FsError::NotSupported,
    );
    set.refused(
        OpKind::Fallocate(Fallocate { len: 0, ..op(0) }),
        FsError::Invalid,
    );
    let far = Fallocate {
        offset: u64::MAX,
        ..op(0)
    };
    set.refused(OpKind::Fallocate(far), FsError::FileTooLarge);

    let copy = |from, from_offset, to, to_offset, len| {
        let (from, to) = (Some(from), Some(to));
        OpKind::CopyRange(CopyRange {
            from,
            from_offset,
            to,
            to_offset,
            len,
            kill_suidgid: false,
        })
    };
    let answered = set.done(copy(file, 2, other, 1, 100));
    assert_eq!(answered.ok, Some(result::Ok::Count(4)));
    assert_eq!(bytes_of(&set, other), b"\0cdef");
    let answered = set.done(copy(file, 6, other, 0, 100));
    assert_eq!(
        (answered.ok, set.last.take()),
        (Some(result::Ok::Count(0)), None)
    );
    set.refused(copy(file, 0, file, 2, 4), FsError::Invalid);
    set.refused(copy(file, u64::MAX, other, 2, 4), FsError::Overflow);
    set.done(copy(file, 0, file, 3, 3));
    assert_eq!(bytes_of(&set, file), b"abcabc");
}

#[test]
fn xattrs() {
    let mut set = Set::new();
    let file = set.file("f", b"");
    let link = set.make(Gfid::ROOT, "s", LINK);
    let mut refused = |op: SetXattr, error| set.refused(OpKind::Setxattr(op), error);
    refused(
        set_xattr(file, "trusted.mortar", "x"),
        FsError::NotPermitted,
    );
    refused(set_xattr(file, "user.", "x"), FsError::Invalid);
    refused(set_xattr(file, "", "x"), FsError::Range);
    refused(set_xattr(file, "other.x", "x"), FsError::NotSupported);
    refused(set_xattr(link, "user.x", "x"), FsError::NotPermitted);
    refused(set_xattr(file, "user.x", vec![0; 65537]), FsError::TooBig);
    refused(set_xattr(file, "user.x", vec![0; 201]), FsError::NoSpace);
    refused(
        SetXattr {
            flags: 2,
            ..set_xattr(file, "user.x", "1")
        },
        FsError::NoAttribute,
    );
    set.done(OpKind::Setxattr(SetXattr {
        flags: 1,
        ..set_xattr(file, "user.x", vec![0; 100])
    }));
    set.refused(
        OpKind::Setxattr(SetXattr {
            flags: 1,
            ..set_xattr(file, "user.x", "1")
        }),
        FsError::Exists,
    );
    // Replaced, not added; then both together are too much.
    set.done(OpKind::Setxattr(set_xattr(file, "user.x", vec![0; 150])));
    set.refused(
        OpKind::Setxattr(set_xattr(file, "user.y", vec![0; 50])),
        FsError::NoSpace,
    );

    let name = |name: &'static str| GetXattr {
        gfid: Some(file),
        name: name.into(),
    };
    assert!(set.read(OpKind::Getxattr(name("user.x"))).is_ok());
    for missing in ["user.y", "trusted.mortar"] {
        let read = set.read(OpKind::Getxattr(name(missing)));
        assert_eq!(read.err(), Some(FsError::NoAttribute));
        let remove = RemoveXattr {
            gfid: Some(file),
            name: missing.into(),
        };
        set.refused(OpKind::Removexattr(remove), FsError::NoAttribute);
    }
    set.done(OpKind::Removexattr(RemoveXattr {
        gfid: Some(file),
        name: "user.x".into(),
    }));
    let (answered, _) = set
        .read(OpKind::Listxattr(ListXattr { gfid: Some(file) }))
        .unwrap();
    assert_eq!(answered.ok, Some(result::Ok::Bytes("".into())));
}

#[test]
fn acls_change_the_mode() {
    let mut set = Set::new();
    let file = set.file("f", b"");
    set.store.edit(file, |object| object.mode = FILE | 0o2644);
    let access = |value: Vec<u8>| set_xattr(file, "system.posix_acl_access", value);
    set.done(OpKind::Setxattr(SetXattr {
        kill_sgid: true,
        ..access(with_a_named_user())
    }));
    assert_eq!(set.object(file).mode, FILE | 0o770);
    let plain = value(&[(1, 6, 0), (4, 4, 0), (32, 0, 0)]);
    set.done(OpKind::Setxattr(access(plain)));
    assert_eq!(set.object(file).mode, FILE | 0o640);
    set.refused(OpKind::Setxattr(access(vec![2, 0, 0])), FsError::Invalid);
    let default = set_xattr(file, "system.posix_acl_default", with_a_named_user());
    set.refused(OpKind::Setxattr(default), FsError::Access);
    // An empty ACL takes the ACL away; taking away what is not there succeeds.
    set.done(OpKind::Setxattr(access(vec![2, 0, 0, 0])));
    assert!(matches!(set.last, Some(Step::Removexattr(_))));
    let remove = RemoveXattr {
        gfid: Some(file),
        name: "system.posix_acl_access".into(),
    };
    set.done(OpKind::Removexattr(remove));
    assert!(set.last.is_none());
}

#[test]
fn reads() {
    let mut set = Set::new();
    let file = set.file("f", b"abcdef");
    let link = set.make(Gfid::ROOT, "s", LINK);
    let read = |offset, len| {
        OpKind::Read(Read {
            gfid: Some(file),
            offset,
            len,
        })
    };
    let (answered, payload) = set.read(read(2, 3)).unwrap();
    assert_eq!(
        (answered.ok, &payload[..]),
        (Some(result::Ok::PayloadLen(3)), &b"cde"[..])
    );
    assert_eq!(set.read(read(100, 3)).unwrap().1, b"");
    let of_root = OpKind::Read(Read {
        gfid: Some(Gfid::ROOT),
        offset: 0,
        len: 1,
    });
    assert_eq!(set.read(of_root).err(), Some(FsError::IsDirectory));
    let text = set
        .read(OpKind::Readlink(ReadLink { gfid: Some(link) }))
        .unwrap()
        .0;
    assert_eq!(text.ok, Some(result::Ok::Bytes("target".into())));
    let not_a_link = set.read(OpKind::Readlink(ReadLink { gfid: Some(file) }));
    assert_eq!(not_a_link.err(), Some(FsError::Invalid));
    let seek = |offset| {
        OpKind::Seek(Seek {
            gfid: Some(file),
            offset,
            whence: Whence::Hole as i32,
        })
    };
    assert_eq!(set.read(seek(1)).unwrap().0.ok, Some(result::Ok::Offset(6)));
    assert_eq!(set.read(seek(6)).err(), Some(FsError::NoDevice));
    let gone = GetAttr {
        gfid: Some(pick(Gfid::ROOT, b"x")),
        ..Default::default()
    };
    assert_eq!(set.read(OpKind::Getattr(gone)).err(), Some(FsError::Stale));
    let lookup = |parent, name: &'static str| {
        OpKind::Lookup(mortar_proto::data::Lookup {
            parent: Some(parent),
            name: name.into(),
        })
    };
    assert_eq!(
        set.read(lookup(Gfid::ROOT, "x")).err(),
        Some(FsError::NotFound)
    );
    assert_eq!(
        set.read(lookup(Gfid::ROOT, ".mortar")).err(),
        Some(FsError::NotFound)
    );
    assert_eq!(
        set.read(lookup(file, "x")).err(),
        Some(FsError::NotDirectory)
    );
}
