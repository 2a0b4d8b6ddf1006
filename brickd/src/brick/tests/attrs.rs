//! Attributes, times, xattrs and ACLs.

use mortar_proto::data::{Presence, RemoveXattrStep, SetAttrStep, SetXattrStep};

use super::*;

fn set_xattr(gfid: Gfid, name: &str, value: &[u8]) -> Step {
    Step::Setxattr(SetXattrStep {
        gfid: Some(gfid),
        name: name.as_bytes().to_vec().into(),
        value: value.to_vec().into(),
        new_mode: None,
    })
}

fn remove_xattr(gfid: Gfid, name: &str) -> Step {
    let name = name.as_bytes().to_vec().into();
    Step::Removexattr(RemoveXattrStep {
        gfid: Some(gfid),
        name,
    })
}

/// An ACL as the kernel takes it: version 2, then (tag, permissions, id) for each entry.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

fn named_acl() -> Vec<u8> {
    let none = u32::MAX;
    acl(&[
        (1, 7, none),
        (2, 6, 1234),
        (4, 5, none),
        (16, 7, none),
        (32, 4, none),
    ])
}

#[test]
fn attributes_are_set_and_times_are_the_changes() {
    let mut fix = Fixture::new();
    let file = fix.file(Gfid::ROOT, "f");
    let atime = Some(Time {
        secs: -1_000,
        nanos: 5,
    });
    let mtime = Some(Time {
        secs: 3_000_000_000,
        nanos: 7,
    });
    let change = fix.apply(Step::Setattr(SetAttrStep {
        gfid: Some(file),
        mode: Some(0o6711),
        uid: Some(12),
        gid: Some(13),
        size: Some(5_000),
        atime,
        mtime,
        drop_capability: false,
        open: false,
    }));
    for _ in 0..2 {
        let object = fix.object(file);
        assert_eq!(
            (object.mode & 0o7777, object.uid, object.gid),
            (0o6711, 12, 13)
        );
        assert_eq!(
            (object.size, object.atime, object.mtime),
            (5_000, atime, mtime)
        );
        assert_eq!(object.ctime, change.time);
        assert_eq!(
            (object.data_counter, object.attr_counter),
            (change.number, change.number)
        );
        fix.reopen();
    }
    let data = fix.object(file).data_counter;
    let change = fix.apply(Step::Setattr(SetAttrStep {
        gfid: Some(file),
        mode: Some(0o600),
        ..Default::default()
    }));
    let object = fix.object(file);
    assert_eq!(
        (object.data_counter, object.attr_counter),
        (data, change.number)
    );
    assert_eq!(object.mtime, mtime);
}

#[test]
fn times_beyond_the_disk_are_cut_alike_everywhere() {
    let mut fix = Fixture::new();
    let link = fix.make(Gfid::ROOT, "l", libc::S_IFIFO | 0o600);
    for secs in [i64::MIN, i64::MAX, -(1 << 31), 0x3_7fff_ffff, -1, 0] {
        let time = Some(Time {
            secs,
            nanos: 999_999_999,
        });
        let step = SetAttrStep {
            gfid: Some(link),
            atime: time,
            mtime: time,
            ..Default::default()
        };
        fix.apply(Step::Setattr(step));
        let before = fix.object(link);
        fix.reopen();
        assert_eq!(fix.object(link), before, "{secs}");
        assert_eq!(before.atime, before.mtime);
    }
}

#[test]
fn xattrs_and_what_is_said_of_them() {
    let mut fix = Fixture::new();
    let file = fix.file(Gfid::ROOT, "f");
    let dir = fix.dir(Gfid::ROOT, "d");
    let link = fix.make(Gfid::ROOT, "p", libc::S_IFSOCK | 0o600);
    let change = fix.apply(set_xattr(file, "user.a", b"1"));
    fix.apply(set_xattr(dir, "trusted.overlay.opaque", b"y"));
    fix.apply(set_xattr(link, "trusted.x", b""));
    fix.apply(set_xattr(file, "security.test", &[1; 600]));
    fix.apply(set_xattr(dir, "system.posix_acl_default", &named_acl()));
    assert_eq!(
        fix.refused(set_xattr(file, "trusted.mortar", b"")),
        FsError::NotPermitted
    );
    assert!(fix.object(file).attr_counter > change.number);
    for _ in 0..2 {
        let bits = |gfid| fix.object(gfid).presence;
        assert_eq!(
            bits(file),
            Presence::User as u32 | Presence::Security as u32
        );
        assert_eq!(
            bits(dir),
            Presence::Trusted as u32 | Presence::AclDefault as u32
        );
        assert_eq!(bits(link), Presence::Trusted as u32);
        assert_eq!(
            fix.brick().get_xattr(file, b"security.test").unwrap().len(),
            600
        );
        assert_eq!(fix.brick().list_xattr(link).unwrap(), "trusted.x\0");
        for name in [&b"trusted.mortar"[..], b"user.none"] {
            let error = fix.brick().get_xattr(file, name).unwrap_err().fs_error();
            assert_eq!(error, FsError::NoAttribute);
        }
        fix.reopen();
    }
    fix.apply(remove_xattr(file, "security.test"));
    fix.apply(remove_xattr(file, "user.a"));
    fix.apply(remove_xattr(file, "user.a"));
    assert_eq!(fix.object(file).presence, 0);
    assert_eq!(fix.object(dir).size, fix.object(dir).size);
}

#[test]
fn an_acl_is_part_of_the_mode() {
    let fix = Fixture::new();
    let gfid = fix.gfid();
    fix.apply(Step::Create(CreateStep {
        parent: Some(Gfid::ROOT),
        name: "d".into(),
        gfid: Some(gfid),
        mode: libc::S_IFDIR | 0o774,
        acl_access: named_acl().into(),
        acl_default: named_acl().into(),
        ..Default::default()
    }));
    let object = fix.object(gfid);
    assert_eq!(object.mode & 0o777, 0o774);
    assert_eq!(
        object.presence,
        Presence::AclAccess as u32 | Presence::AclDefault as u32
    );
    let none = u32::MAX;
    let plain = acl(&[(1, 6, none), (4, 4, none), (32, 0, none)]);
    fix.apply(set_xattr(gfid, "system.posix_acl_access", &plain));
    let object = fix.object(gfid);
    assert_eq!(object.mode & 0o777, 0o640);
    assert_eq!(object.presence, Presence::AclDefault as u32);
}

#[test]
fn capabilities_go_with_content_and_owner() {
    let fix = Fixture::new();
    let file = fix.file(Gfid::ROOT, "f");
    // A version-2 capability: magic, then permitted and inheritable twice.
    let mut capability = 0x0200_0001u32.to_le_bytes().to_vec();
    capability.extend_from_slice(&[0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let has = |fix: &Fixture| fix.object(file).presence & Presence::Capability as u32 != 0;
    let truncate = SetAttrStep {
        gfid: Some(file),
        size: Some(1),
        ..Default::default()
    };
    let chown = SetAttrStep {
        gfid: Some(file),
        uid: Some(5),
        ..Default::default()
    };
    let drop = SetAttrStep {
        gfid: Some(file),
        drop_capability: true,
        ..Default::default()
    };
    for step in [None, Some(truncate), Some(chown), Some(drop)] {
        fix.apply(set_xattr(file, "security.capability", &capability));
        assert!(has(&fix));
        match step {
            None => drop_by_write(&fix, file),
            Some(step) => drop_by(&fix, step),
        }
        assert!(!has(&fix));
        assert!(fix.brick().list_xattr(file).unwrap().is_empty());
    }
    fix.apply(Step::Setattr(SetAttrStep {
        gfid: Some(file),
        mode: Some(0o6755),
        ..Default::default()
    }));
    let step = WriteStep {
        gfid: Some(file),
        len: 1,
        new_mode: Some(0o755),
        ..Default::default()
    };
    fix.try_apply(Step::Write(step), b"x").unwrap();
    assert_eq!(fix.object(file).mode & 0o7777, 0o755);
}

fn drop_by(fix: &Fixture, step: SetAttrStep) {
    fix.apply(Step::Setattr(step));
}

fn drop_by_write(fix: &Fixture, file: Gfid) {
    fix.write(file, 0, b"x");
}
