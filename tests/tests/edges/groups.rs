use tests::acl::{NOBODY, acl};

use super::*;

/// More than 32, which is where network file systems have ended.
static GROUPS: [u32; 100] = {
    let mut groups = [0; 100];
    let mut at = 0;
    while at < 100 {
        groups[at] = 5000 + at as u32;
        at += 1;
    }
    groups
};

const OWNER: User = User::ordinary(1000, 1000);
const STRANGER: User = User::ordinary(65534, 65534);
const MEMBER: User = User {
    groups: &GROUPS,
    ..User::ordinary(1001, 1001)
};

const ACL: &str = "system.posix_acl_access";
const DEFAULT_ACL: &str = "system.posix_acl_default";
/// user::rwx, group::---, group:5099:rwx, mask::rwx, other::---.
fn for_the_last_group() -> Vec<u8> {
    acl(&[
        (0x01, 7, NOBODY),
        (0x04, 0, NOBODY),
        (0x08, 7, 5099),
        (0x10, 7, NOBODY),
        (0x20, 0, NOBODY),
    ])
}

/// Whether somebody may read, write, search and make something here.
fn may(user: User, at: &Path) -> [Result<()>; 4] {
    user.does(|| {
        let mut options = OpenOptions::new();
        let inner = at.join(format!("by-{}", user.uid));
        [
            errno(fs::read_dir(at)).map(drop),
            errno(fs::create_dir(&inner)),
            errno(fs::remove_dir(&inner)),
            errno(options.write(true).open(at.join("file"))).map(drop),
        ]
    })
}

#[test]
fn the_hundredth_group_counts() {
    let mut both = Both::new();
    both.through_a_heal(|both| {
        for group in [1001, 5000, 5031, 5032, 5099, 5100] {
            both.kept(
                &format!("a folder of group {group}"),
                |folder| {
                    let at = folder.join("at");
                    fs::create_dir(&at).unwrap();
                    fs::write(at.join("file"), "x").unwrap();
                    for path in [at.join("file"), at] {
                        chown(&path, Some(1000), Some(group)).unwrap();
                        chmod(&path, 0o770);
                    }
                },
                |folder| [OWNER, MEMBER, STRANGER].map(|user| may(user, &folder.join("at"))),
            );
        }
        both.kept(
            "an ACL of the hundredth group",
            |folder| {
                let at = folder.join("at");
                fs::create_dir(&at).unwrap();
                fs::write(at.join("file"), "x").unwrap();
                for path in [at.join("file"), at] {
                    setxattr(&path, ACL, &for_the_last_group(), XattrFlags::empty()).unwrap();
                }
            },
            |folder| [OWNER, MEMBER, STRANGER].map(|user| may(user, &folder.join("at"))),
        );
    });
    both.case(
        "chgrp to the hundredth group, and to one beyond",
        |folder| {
            let at = folder.join("file");
            fs::write(&at, "x").unwrap();
            chown(&at, Some(1001), Some(1001)).unwrap();
            let done =
                [5099, 5100].map(|group| MEMBER.does(|| errno(chown(&at, None, Some(group)))));
            (done, fs::metadata(&at).unwrap().gid())
        },
    );
    both.end();
}

#[test]
fn in_a_sticky_directory_only_owners_remove() {
    type Act = fn(&Path) -> Result<()>;
    let acts: [(&str, Act); 5] = [
        ("unlink", |at| errno(fs::remove_file(at.join("file")))),
        ("rmdir", |at| errno(fs::remove_dir(at.join("folder")))),
        ("rename away", |at| {
            errno(fs::rename(at.join("file"), at.join("../moved")))
        }),
        ("rename over", |at| {
            fs::write(at.join("mine"), "x").unwrap();
            errno(fs::rename(at.join("mine"), at.join("file")))
        }),
        ("link", |at| {
            errno(fs::hard_link(at.join("file"), at.join("link")))
        }),
    ];
    let users = [
        ("root", User::ROOT),
        ("the file's owner", OWNER),
        ("the directory's owner", User::ordinary(1002, 1002)),
        ("a stranger", STRANGER),
    ];
    let mut both = Both::new();
    for mode in [0o1777, 0o777, 0o3777] {
        for (who, user) in users {
            for (what, act) in acts {
                both.case(
                    &format!("{what} in a folder of {mode:o} by {who}"),
                    |folder| {
                        let at = folder.join("at");
                        fs::create_dir(&at).unwrap();
                        fs::write(at.join("file"), "x").unwrap();
                        fs::create_dir(at.join("folder")).unwrap();
                        for name in ["file", "folder"] {
                            chown(at.join(name), Some(1000), Some(1000)).unwrap();
                            chmod(&at.join(name), 0o777);
                        }
                        chown(&at, Some(1002), Some(1002)).unwrap();
                        chmod(&at, mode);
                        let outcome = user.does(|| act(&at));
                        let left = ["file", "folder", "link", "../moved"]
                            .map(|name| at.join(name).exists());
                        (outcome, left)
                    },
                );
            }
        }
    }
    both.end();
}

/// What a directory gives its files it gives its directories to give on.
#[test]
fn acls_are_inherited_over_generations() {
    let mut both = Both::new();
    both.through_a_heal(|both| {
        for umask in [0, 0o077] {
            let user = User { umask, ..MEMBER };
            both.kept(
                &format!("four generations under umask {umask:o}"),
                |folder| {
                    setxattr(
                        folder,
                        DEFAULT_ACL,
                        &for_the_last_group(),
                        XattrFlags::empty(),
                    )
                    .unwrap();
                    user.does(|| {
                        fs::create_dir_all(folder.join("a/b/c")).unwrap();
                        fs::write(folder.join("a/b/c/file"), "x").unwrap();
                        symlink("file", folder.join("a/b/c/symlink")).unwrap();
                    });
                    // Given no more from here on.
                    rustix::fs::removexattr(folder.join("a/b"), DEFAULT_ACL).unwrap();
                    user.does(|| {
                        fs::create_dir(folder.join("a/b/plain")).unwrap();
                        fs::rename(folder.join("a/b/c/file"), folder.join("a/b/plain/file"))
                            .unwrap();
                        fs::write(folder.join("a/b/plain/other"), "x").unwrap();
                    });
                },
                |folder| {
                    let seen = [
                        "a",
                        "a/b",
                        "a/b/c",
                        "a/b/plain",
                        "a/b/plain/file",
                        "a/b/plain/other",
                    ];
                    seen.map(|name| {
                        let at = folder.join(name);
                        let acls = [ACL, DEFAULT_ACL].map(|name| xattr(&at, name));
                        (name, mode_of(&at), acls)
                    })
                },
            );
        }
    });
    both.end();
}
