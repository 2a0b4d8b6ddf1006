use tests::acl::{NOBODY, acl};

use super::*;

type Make = fn(&Path) -> Result<()>;

const MAKES: [(&str, Make); 9] = [
    ("file 0666", |at| create(at, 0o666)),
    ("file 0777", |at| create(at, 0o777)),
    ("file 07777", |at| create(at, 0o7777)),
    ("file 02640", |at| create(at, 0o2640)),
    ("folder 0777", |at| mkdirat(CWD, at, 0o777.into())),
    ("folder 01770", |at| mkdirat(CWD, at, 0o1770.into())),
    ("fifo 0666", |at| mknod(at, FileType::Fifo, 0o666)),
    ("socket 0700", |at| mknod(at, FileType::Socket, 0o700)),
    ("symlink", |at| errno(symlink("target", at))),
];

fn create(at: &Path, mode: u32) -> Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    open(at, flags, Mode::from_raw_mode(mode)).map(|_| ())
}

fn mknod(at: &Path, kind: FileType, mode: u32) -> Result<()> {
    mknodat(CWD, at, kind, Mode::from_raw_mode(mode), 0)
}

#[test]
fn modes_owners_and_acls_of_what_is_made_are_as_on_the_disk() {
    let user = |umask, groups| User {
        umask,
        groups,
        ..User::ordinary(1000, 1000)
    };
    let users = [
        ("root, umask 0", User::ROOT),
        (
            "root, umask 077",
            User {
                umask: 0o077,
                ..User::ROOT
            },
        ),
        ("a user of the group, umask 022", user(0o022, &[2000])),
        ("a user, umask 027", user(0o027, &[])),
    ];
    const SETGID: u32 = 0o2777;
    let few = acl(&[(1, 7, NOBODY), (4, 5, NOBODY), (0x20, 0, NOBODY)]);
    let parents = [
        ("plain", 0o777, None),
        ("setgid", SETGID, None),
        ("short default ACL", 0o777, Some(few)),
        ("default ACL", 0o777, Some(long_acl())),
        ("setgid and default ACL", SETGID, Some(long_acl())),
    ];
    let mut both = Both::new();
    for (parent, mode, default) in &parents {
        for (who, user) in users {
            for (what, make) in MAKES {
                both.case(&format!("{what} in a folder {parent} by {who}"), |folder| {
                    let folder = folder.join("parent");
                    fs::create_dir(&folder).unwrap();
                    chown(&folder, None, Some(2000)).unwrap();
                    fs::set_permissions(&folder, Permissions::from_mode(*mode)).unwrap();
                    if let Some(default) = default {
                        let flags = XattrFlags::CREATE;
                        setxattr(&folder, DEFAULT_ACL, default, flags).unwrap();
                    }
                    let made = folder.join("made");
                    user.does(|| make(&made)).map(|()| standing(&made))
                });
            }
        }
    }
    both.end();
}

#[test]
fn acls_and_modes_change_each_other_as_on_the_disk() {
    type Step = (&'static str, User, fn(&Path) -> Result<()>);
    let owner = User::ordinary(1000, 1000);
    let member = User {
        groups: &[3000],
        ..owner
    };
    let steps: &[&[Step]] = &[
        &[
            ("an ACL is set", owner, |at| {
                setxattr(at, ACL, &long_acl(), XattrFlags::empty())
            }),
            ("chmod 0640", owner, |at| chmod(at, 0o640)),
            ("chmod 0777", owner, |at| chmod(at, 0o777)),
            ("a write", owner, |at| {
                errno(open_with(at, OFlags::WRONLY)?.write_all_at(b"new", 0))
            }),
            ("the ACL is removed", owner, |at| removexattr(at, ACL)),
            ("it is removed again", owner, |at| removexattr(at, ACL)),
        ],
        &[("an ACL that is only a mode", owner, |at| {
            let few = acl(&[(1, 6, NOBODY), (4, 4, NOBODY), (0x20, 0, NOBODY)]);
            setxattr(at, ACL, &few, XattrFlags::empty())
        })],
        &[("an ACL without its owner's entry", owner, |at| {
            let bad = acl(&[(4, 4, NOBODY), (0x20, 0, NOBODY)]);
            setxattr(at, ACL, &bad, XattrFlags::empty())
        })],
        &[("half an ACL", owner, |at| {
            setxattr(at, ACL, &long_acl()[..7], XattrFlags::empty())
        })],
        &[("a default ACL", owner, |at| {
            setxattr(at, DEFAULT_ACL, &long_acl(), XattrFlags::empty())
        })],
        &[("an ACL by a stranger", User::ordinary(1, 1), |at| {
            setxattr(at, ACL, &long_acl(), XattrFlags::empty())
        })],
        &[
            ("an ACL by an owner not of the group", owner, |at| {
                setxattr(at, ACL, &long_acl(), XattrFlags::empty())
            }),
            ("chmod 02750 by an owner not of the group", owner, |at| {
                chmod(at, 0o2750)
            }),
        ],
        &[
            ("an ACL by an owner of the group", member, |at| {
                setxattr(at, ACL, &long_acl(), XattrFlags::empty())
            }),
            ("chmod 02750 by an owner of the group", member, |at| {
                chmod(at, 0o2750)
            }),
        ],
    ];
    let mut both = Both::new();
    for kind in ["file", "folder"] {
        for steps in steps {
            let names: Vec<&str> = steps.iter().map(|(what, ..)| *what).collect();
            both.case(&format!("of a {kind}: {}", names.join(", ")), |folder| {
                let at = folder.join(kind);
                match kind {
                    "file" => fs::write(&at, "x").unwrap(),
                    _ => fs::create_dir(&at).unwrap(),
                }
                chown(&at, Some(1000), Some(3000)).unwrap();
                fs::set_permissions(&at, Permissions::from_mode(0o2775)).unwrap();
                let outcomes = steps.iter().map(|(_, who, step)| {
                    let outcome = who.does(|| step(&at));
                    let may_read =
                        User::ordinary(1002, 1).does(|| open_with(&at, OFlags::RDONLY).map(|_| ()));
                    (outcome, standing(&at), may_read)
                });
                outcomes.collect::<Vec<_>>()
            });
        }
    }
    both.end();
}

fn chmod(at: &Path, mode: u32) -> Result<()> {
    errno(fs::set_permissions(at, Permissions::from_mode(mode)))
}

/// user::rwx, user:1002:r-x, group::r-x, group:1003:rw-, mask::r-x, other::--x.
fn long_acl() -> Vec<u8> {
    acl(&[
        (0x01, 7, NOBODY),
        (0x02, 5, 1002),
        (0x04, 5, NOBODY),
        (0x08, 6, 1003),
        (0x10, 5, NOBODY),
        (0x20, 1, NOBODY),
    ])
}
