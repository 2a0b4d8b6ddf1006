use super::*;

fn make(kind: &str, at: &Path) {
    let mode = Mode::from_raw_mode(0o666);
    match kind {
        "file" => fs::write(at, "x").unwrap(),
        "folder" => fs::create_dir(at).unwrap(),
        "symlink" => symlink("target", at).unwrap(),
        "fifo" => mknodat(CWD, at, FileType::Fifo, mode, 0).unwrap(),
        _ => mknodat(CWD, at, FileType::CharacterDevice, mode, makedev(0, 0)).unwrap(),
    }
    chown(at, Some(1000), Some(1000)).unwrap_or_else(|_| assert_eq!(kind, "symlink"));
}

/// The names an object has, sorted.
fn names(path: &Path) -> Result<Vec<String>> {
    let mut list = vec![0u8; XATTR_BYTES_MAX];
    let len = rustix::fs::llistxattr(path, &mut list[..])?;
    let mut names: Vec<String> = list[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    names.sort();
    Ok(names)
}

#[test]
fn every_kind_takes_the_attributes_it_takes_on_the_disk() {
    let users = [
        ("root", User::ROOT),
        ("its owner", User::ordinary(1000, 1000)),
        ("a stranger", User::ordinary(65534, 65534)),
    ];
    let attributes = [
        "user.a",
        "trusted.a",
        "security.a",
        CAPABILITY,
        "system.a",
        "nonsense",
        "user.",
        "trusted",
    ];
    let mut both = Both::new();
    for kind in ["file", "folder", "symlink", "fifo", "device"] {
        for (who, user) in users {
            for name in attributes {
                both.case(&format!("{name} on a {kind} by {who}"), |folder| {
                    let at = folder.join("at");
                    make(kind, &at);
                    let value: &[u8] = match name {
                        CAPABILITY => &CAPABILITY_VALUE,
                        _ => b"value",
                    };
                    user.does(|| {
                        let set = lsetxattr(&at, name, value, XattrFlags::empty());
                        let again = lsetxattr(&at, name, value, XattrFlags::CREATE);
                        let (got, listed) = (xattr(&at, name), names(&at));
                        let removed = rustix::fs::lremovexattr(&at, name);
                        let replaced = lsetxattr(&at, name, value, XattrFlags::REPLACE);
                        (set, again, got, listed, removed, replaced)
                    })
                });
            }
        }
    }
    both.case("what root set, as another user", |folder| {
        let at = folder.join("at");
        make("file", &at);
        for name in ["user.a", "trusted.a", "security.a"] {
            setxattr(&at, name, b"1", XattrFlags::empty()).unwrap();
        }
        let seen = || {
            let got = ["user.a", "trusted.a", "security.a"].map(|name| xattr(&at, name));
            (names(&at), got)
        };
        (seen(), User::ordinary(65534, 65534).does(seen))
    });
    both.end();
}

#[test]
fn values_and_names_have_the_disks_limits() {
    let mut both = Both::new();
    both.case("short buffers", |folder| {
        let at = folder.join("at");
        fs::write(&at, "").unwrap();
        setxattr(&at, "user.a", b"0123456789", XattrFlags::empty()).unwrap();
        setxattr(&at, "user.empty", b"", XattrFlags::empty()).unwrap();
        let mut few = [0u8; 4];
        let mut exact = [0u8; 10];
        (
            getxattr(&at, "user.a", &mut few[..]),
            getxattr(&at, "user.a", &mut exact[..]),
            getxattr(&at, "user.a", &mut [0u8; 0][..]),
            getxattr(&at, "user.empty", &mut few[..]),
            listxattr(&at, &mut few[..]),
            listxattr(&at, &mut [0u8; 0][..]),
        )
    });
    for len in [5, 6, 255, 256, 300] {
        both.case(&format!("a name of {len} bytes"), |folder| {
            let at = folder.join("at");
            fs::write(&at, "").unwrap();
            let name = format!("user.{}", "n".repeat(len - 5));
            let set = setxattr(&at, &name, b"1", XattrFlags::empty());
            (set, xattr(&at, &name))
        });
    }
    both.case("a name that is no text", |folder| {
        let at = folder.join("at");
        fs::write(&at, "").unwrap();
        let name = OsStr::from_bytes(b"user.\xff\xfe\n");
        setxattr(&at, name, b"1", XattrFlags::empty()).unwrap();
        let mut value = [0u8; 8];
        (getxattr(&at, name, &mut value[..]), value)
    });
    both.end();
}

/// More than an object can hold is refused, and what it holds stays. A change that is ordered and
/// cannot be applied would put its copies out.
#[test]
fn what_no_disk_can_hold_is_refused_and_harms_no_copy() {
    let both = Both::new();
    let at = both.mount.join("file");
    fs::write(&at, "x").unwrap();
    setxattr(&at, "user.kept", b"1", XattrFlags::empty()).unwrap();
    for bytes in [5_000, 60_000, 65_536, 65_537] {
        let refused = setxattr(&at, "user.big", &vec![b'x'; bytes], XattrFlags::empty());
        let errno = refused.expect_err("too large for a disk of 4 KiB blocks");
        assert!([Errno::NOSPC, Errno::TOOBIG].contains(&errno), "{errno}");
    }
    assert_eq!(xattr(&at, "user.kept"), Ok(b"1".to_vec()));
    let limits = both.cluster.volume(VOLUME).limits.unwrap();
    assert!(limits.links > 0 && limits.xattr_bytes > 0, "{limits:?}");
    let file = open_with(&at, OFlags::WRONLY).unwrap();
    for bytes in [limits.file_bytes + 1, i64::MAX as u64 - 1] {
        assert_eq!(ftruncate(&file, bytes), Err(Errno::FBIG));
        let far = rustix::io::pwrite(&file, b"x", bytes);
        assert_eq!(far, Err(Errno::FBIG));
    }
    drop(file);
    assert_eq!(xattr(&at, "user.big"), Err(Errno::NODATA));
    both.end();
}
