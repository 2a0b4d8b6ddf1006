use super::*;

const SOURCE: &str = "source";

type Act = fn(&Path) -> Result<()>;

/// Everything that changes a file's bytes, size or owner.
const ACTS: [(&str, Act); 16] = [
    ("write", |file| {
        errno(open_with(file, OFlags::WRONLY)?.write_all_at(b"new", 0))
    }),
    ("append", |file| {
        let file = open_with(file, OFlags::WRONLY | OFlags::APPEND)?;
        errno(file.write_all_at(b"new", 0))
    }),
    ("write with O_SYNC", |file| {
        let file = open_with(file, OFlags::WRONLY | OFlags::SYNC)?;
        errno(file.write_all_at(b"new", 0))
    }),
    ("write of nothing", |file| {
        rustix::io::pwrite(open_with(file, OFlags::WRONLY)?, b"", 0).map(|_| ())
    }),
    ("read", |file| {
        let mut byte = [0];
        rustix::io::pread(open_with(file, OFlags::RDONLY)?, &mut byte, 0).map(|_| ())
    }),
    ("truncate", |file| {
        let path = std::ffi::CString::new(file.as_os_str().as_bytes()).unwrap();
        // SAFETY: the path ends with NUL and outlives the call.
        match unsafe { libc::truncate(path.as_ptr(), 3) } {
            0 => Ok(()),
            _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()),
        }
    }),
    ("ftruncate", |file| {
        ftruncate(open_with(file, OFlags::WRONLY)?, 3)
    }),
    ("ftruncate to the same size", |file| {
        let file = open_with(file, OFlags::WRONLY)?;
        let size = file.metadata().unwrap().len();
        ftruncate(file, size)
    }),
    ("O_TRUNC", |file| {
        open_with(file, OFlags::WRONLY | OFlags::TRUNC).map(|_| ())
    }),
    ("O_TRUNC and write", |file| {
        errno(open_with(file, OFlags::WRONLY | OFlags::TRUNC)?.write_all_at(b"new", 0))
    }),
    ("fallocate", |file| {
        let file = open_with(file, OFlags::WRONLY)?;
        fallocate(file, FallocateFlags::empty(), 0, 8192)
    }),
    ("punch a hole", |file| {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(open_with(file, OFlags::WRONLY)?, flags, 0, 4096)
    }),
    ("zero a range", |file| {
        let file = open_with(file, OFlags::WRONLY)?;
        fallocate(file, FallocateFlags::ZERO_RANGE, 0, 4096)
    }),
    ("copy_file_range", |file| {
        let from = open_with(&file.with_file_name(SOURCE), OFlags::RDONLY)?;
        let to = open_with(file, OFlags::WRONLY)?;
        copy_file_range(from, None, to, None, 4).map(|_| ())
    }),
    ("chown to who owns it", |file| {
        let owner = fs::metadata(file).unwrap();
        let owner = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
        chownat(CWD, file, Some(owner.0), Some(owner.1), AtFlags::empty())
    }),
    ("chgrp", |file| {
        chownat(CWD, file, None, Some(Gid::from_raw(2000)), AtFlags::empty())
    }),
];

#[test]
fn setuid_setgid_and_capabilities_go_as_on_the_disk() {
    const OWNER: (u32, u32) = (1000, 1000);
    const FOREIGN_GROUP: (u32, u32) = (1000, 3000);
    let users = [
        ("root", User::ROOT, OWNER),
        ("a stranger", User::ordinary(65534, 65534), OWNER),
        ("one of the group", User::ordinary(1001, 1000), OWNER),
        (
            "one of the group by a supplementary group",
            User {
                groups: &[1000],
                ..User::ordinary(1001, 1001)
            },
            OWNER,
        ),
        (
            "its owner",
            User {
                groups: &[2000],
                ..User::ordinary(1000, 1000)
            },
            OWNER,
        ),
        (
            "its owner, not of its group",
            User {
                groups: &[2000],
                ..User::ordinary(1000, 1000)
            },
            FOREIGN_GROUP,
        ),
    ];
    // (mode, whether there is a capability)
    let files = [
        (0o6777, true),
        (0o6777, false),
        (0o2777, true),
        (0o4766, false),
        (0o2766, false),
    ];
    let mut both = Both::new();
    for (who, user, owner) in users {
        for (mode, capable) in files {
            let is_foreign = who == "a stranger" || owner == FOREIGN_GROUP;
            if mode == 0o2766 && is_foreign {
                // Setgid without execution by the group stays, as FUSE has it; the disk clears it
                // when somebody writes who is not of the group.
                continue;
            }
            for (what, act) in ACTS {
                let name = format!("{what} of a file of {mode:o}, {capable}, by {who}");
                let (_, after, has_capability) = both.case_seen(&name, |folder| {
                    fs::write(folder.join(SOURCE), "source").unwrap();
                    let file = folder.join("file");
                    fs::write(&file, "0123456789").unwrap();
                    chown(&file, Some(owner.0), Some(owner.1)).unwrap();
                    fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
                    if capable {
                        let flags = XattrFlags::CREATE;
                        setxattr(&file, CAPABILITY, &CAPABILITY_VALUE, flags).unwrap();
                    }
                    assert_eq!(mode_of(&file), mode);
                    let outcome = user.does(|| act(&file));
                    let capability = xattr(&file, CAPABILITY).is_ok();
                    (outcome, mode_of(&file), capability)
                });
                // That anything at all is cleared is what makes the comparison worth it.
                if mode == 0o6777 && what == "write" && who == "a stranger" {
                    assert_eq!((after, has_capability), (0o777, false));
                }
            }
        }
    }
    both.end();
}
