//! What the second mount's kernel has been told it believes for a second, and not longer: names,
//! attributes, extended attributes and ACLs, and the pages of a file that stays open.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Instant;

use rustix::fs::{
    CWD, RenameFlags, XattrFlags, getxattr, lgetxattr, removexattr, renameat_with, setxattr,
};
use tests::users::User;

use super::kinds::{Kind, Tried, Watch, file};
use super::*;

/// The default of entry-timeout and attribute-timeout, and a tick of the kernel's clock.
const BELIEVED: Duration = Duration::from_millis(1_000 + 20);
const USER: User = User::ordinary(1001, 1001);

#[test]
fn what_was_known_before_is_believed_for_a_second_and_no_longer() {
    let kinds = [
        names().as_slice(),
        attributes().as_slice(),
        contents().as_slice(),
    ]
    .concat();
    let pair = Pair::new();
    let mut tried = Tried::new(&pair, &kinds);
    let known = Instant::now();
    for number in 0..kinds.len() {
        tried.change(number);
    }
    std::thread::sleep(BELIEVED.saturating_sub(known.elapsed()));
    let missed: Vec<_> = (0..kinds.len())
        .filter(|number| !tried.is_seen(*number))
        .map(|number| kinds[number].what)
        .collect();
    assert!(missed.is_empty(), "not seen after {BELIEVED:?}: {missed:?}");
    drop(tried);
    pair.end();
}

fn two_files(folder: &Path) {
    file(folder);
    fs::write(folder.join("other"), "other").unwrap();
}

/// Watches what stat(2) says of `file`.
fn stat(changed: fn(&fs::Metadata) -> bool) -> impl Fn(&Path) -> Watch {
    move |folder: &Path| {
        let path = folder.join("file");
        Box::new(move || changed(&fs::symlink_metadata(&path).unwrap()))
    }
}

fn gone(folder: &Path) -> Watch {
    let path = folder.join("file");
    Box::new(move || !path.exists())
}

/// Another object has the name.
fn replaced(folder: &Path) -> Watch {
    let path = folder.join("file");
    let ino = move || fs::symlink_metadata(&path).unwrap().ino();
    let before = ino();
    Box::new(move || ino() != before)
}

fn names() -> Vec<Kind> {
    vec![
        Kind {
            what: "unlink",
            before: file,
            know: gone,
            change: |folder| fs::remove_file(folder.join("file")).unwrap(),
        },
        Kind {
            what: "rmdir",
            before: |folder| fs::create_dir(folder.join("file")).unwrap(),
            know: gone,
            change: |folder| fs::remove_dir(folder.join("file")).unwrap(),
        },
        Kind {
            what: "rename away",
            before: file,
            know: gone,
            change: |folder| fs::rename(folder.join("file"), folder.join("new")).unwrap(),
        },
        Kind {
            what: "rename over",
            before: two_files,
            know: replaced,
            change: |folder| fs::rename(folder.join("other"), folder.join("file")).unwrap(),
        },
        Kind {
            what: "exchange",
            before: two_files,
            know: replaced,
            change: |folder| {
                let (file, other) = (folder.join("file"), folder.join("other"));
                renameat_with(CWD, file, CWD, other, RenameFlags::EXCHANGE).unwrap();
            },
        },
        Kind {
            what: "whiteout",
            before: file,
            know: replaced,
            change: |folder| {
                let (file, new) = (folder.join("file"), folder.join("new"));
                renameat_with(CWD, file, CWD, new, RenameFlags::WHITEOUT).unwrap();
            },
        },
        Kind {
            what: "a symlink is replaced",
            before: |folder| symlink("a", folder.join("file")).unwrap(),
            know: |folder| {
                let path = folder.join("file");
                Box::new(move || fs::read_link(&path).unwrap() == Path::new("b"))
            },
            change: |folder| {
                symlink("b", folder.join("new")).unwrap();
                fs::rename(folder.join("new"), folder.join("file")).unwrap();
            },
        },
        Kind {
            what: "a directory above is moved",
            before: |folder| {
                fs::create_dir(folder.join("a")).unwrap();
                file(&folder.join("a"));
            },
            know: |folder| gone(&folder.join("a")),
            change: |folder| fs::rename(folder.join("a"), folder.join("b")).unwrap(),
        },
    ]
}

fn attributes() -> Vec<Kind> {
    let mut kinds = plain_attributes();
    kinds.extend(extended_attributes());
    kinds
}

fn plain_attributes() -> Vec<Kind> {
    vec![
        Kind {
            what: "chmod",
            before: file,
            know: |folder| stat(|meta| meta.mode() & 0o7777 == 0o641)(folder),
            change: |folder| {
                let mode = fs::Permissions::from_mode(0o641);
                fs::set_permissions(folder.join("file"), mode).unwrap();
            },
        },
        Kind {
            what: "chmod that takes a right away",
            before: file,
            know: |folder| {
                let path = folder.join("file");
                Box::new(move || USER.does(|| File::open(&path).is_err()))
            },
            change: |folder| {
                let mode = fs::Permissions::from_mode(0o600);
                fs::set_permissions(folder.join("file"), mode).unwrap();
            },
        },
        Kind {
            what: "chown",
            before: file,
            know: |folder| stat(|meta| (meta.uid(), meta.gid()) == (7, 8))(folder),
            change: |folder| {
                std::os::unix::fs::chown(folder.join("file"), Some(7), Some(8)).unwrap();
            },
        },
        Kind {
            what: "utimens",
            before: file,
            know: |folder| stat(|meta| meta.mtime() == 0)(folder),
            change: |folder| {
                let file = File::open(folder.join("file")).unwrap();
                file.set_modified(std::time::UNIX_EPOCH).unwrap();
            },
        },
        Kind {
            what: "a longer file",
            before: file,
            know: |folder| stat(|meta| meta.len() == 11)(folder),
            change: |folder| append(folder, "a"),
        },
        Kind {
            what: "a shorter file",
            before: file,
            know: |folder| stat(|meta| meta.len() == 3)(folder),
            change: |folder| truncate(folder, 3),
        },
        Kind {
            what: "a link more",
            before: file,
            know: |folder| stat(|meta| meta.nlink() == 2)(folder),
            change: |folder| fs::hard_link(folder.join("file"), folder.join("link")).unwrap(),
        },
        Kind {
            what: "a link less",
            before: |folder| {
                file(folder);
                fs::hard_link(folder.join("file"), folder.join("link")).unwrap();
            },
            know: |folder| stat(|meta| meta.nlink() == 1)(folder),
            change: |folder| fs::remove_file(folder.join("link")).unwrap(),
        },
        Kind {
            what: "no link of an open file",
            before: file,
            know: |folder| {
                let file = File::open(folder.join("file")).unwrap();
                Box::new(move || file.metadata().unwrap().nlink() == 0)
            },
            change: |folder| fs::remove_file(folder.join("file")).unwrap(),
        },
        Kind {
            what: "a folder in a folder",
            before: |folder| fs::create_dir(folder.join("file")).unwrap(),
            know: |folder| stat(|meta| meta.nlink() == 3)(folder),
            change: |folder| fs::create_dir(folder.join("file/below")).unwrap(),
        },
    ]
}

fn extended_attributes() -> Vec<Kind> {
    const NAME: &str = "user.name";
    fn value(path: &Path) -> Option<Vec<u8>> {
        let mut value = [0; 100];
        let len = lgetxattr(path, NAME, &mut value[..]).ok()?;
        Some(value[..len].to_vec())
    }
    fn set(folder: &Path, to: &[u8]) {
        setxattr(folder.join("file"), NAME, to, XattrFlags::empty()).unwrap();
    }
    fn watch(folder: &Path, expected: Option<&'static [u8]>) -> Watch {
        let path = folder.join("file");
        Box::new(move || value(&path).as_deref() == expected)
    }
    vec![
        Kind {
            what: "the first xattr",
            before: file,
            know: |folder| watch(folder, Some(b"1")),
            change: |folder| set(folder, b"1"),
        },
        Kind {
            what: "another value of an xattr",
            before: |folder| {
                file(folder);
                set(folder, b"1");
            },
            know: |folder| watch(folder, Some(b"2")),
            change: |folder| set(folder, b"2"),
        },
        Kind {
            what: "no xattr any more",
            before: |folder| {
                file(folder);
                set(folder, b"1");
            },
            know: |folder| watch(folder, None),
            change: |folder| removexattr(folder.join("file"), NAME).unwrap(),
        },
        Kind {
            what: "an ACL that gives a right",
            before: |folder| {
                file(folder);
                let mode = fs::Permissions::from_mode(0o600);
                fs::set_permissions(folder.join("file"), mode).unwrap();
            },
            know: |folder| {
                let path = folder.join("file");
                Box::new(move || USER.does(|| File::open(&path).is_ok()))
            },
            change: |folder| set_acl(&folder.join("file"), "system.posix_acl_access"),
        },
        Kind {
            what: "a default ACL",
            before: |folder| fs::create_dir(folder.join("file")).unwrap(),
            know: |folder| {
                let path = folder.join("file");
                let name = "system.posix_acl_default";
                Box::new(move || getxattr(&path, name, &mut [0; 100][..]).is_ok())
            },
            change: |folder| set_acl(&folder.join("file"), "system.posix_acl_default"),
        },
    ]
}

/// u::rw,u:1001:r,g::-,m::r,o::-
fn set_acl(path: &Path, name: &str) {
    let entries: [(u16, u16, u32); 5] = [
        (1, 6, u32::MAX),
        (2, 4, 1001),
        (4, 0, u32::MAX),
        (16, 4, u32::MAX),
        (32, 0, u32::MAX),
    ];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    setxattr(path, name, &bytes, XattrFlags::empty()).unwrap();
}

/// Watches the bytes of `file` through a descriptor that stays open.
fn open_file(folder: &Path, expected: &'static [u8]) -> Watch {
    let file = File::open(folder.join("file")).unwrap();
    Box::new(move || {
        let mut bytes = [0; 100];
        let len = file.read_at(&mut bytes, 0).unwrap();
        &bytes[..len] == expected
    })
}

fn append(folder: &Path, text: &str) {
    let mut file = File::options()
        .append(true)
        .open(folder.join("file"))
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn truncate(folder: &Path, len: u64) {
    let file = File::options()
        .write(true)
        .open(folder.join("file"))
        .unwrap();
    file.set_len(len).unwrap();
}

fn contents() -> Vec<Kind> {
    vec![
        Kind {
            what: "other bytes in an open file",
            before: file,
            know: |folder| open_file(folder, b"01AB456789"),
            change: |folder| {
                let file = File::options()
                    .write(true)
                    .open(folder.join("file"))
                    .unwrap();
                file.write_all_at(b"AB", 2).unwrap();
            },
        },
        Kind {
            what: "bytes appended to an open file",
            before: file,
            know: |folder| open_file(folder, b"0123456789more"),
            change: |folder| append(folder, "more"),
        },
        Kind {
            what: "an open file is cut",
            before: file,
            know: |folder| open_file(folder, b"0123"),
            change: |folder| truncate(folder, 4),
        },
        Kind {
            what: "an open file is written anew",
            before: file,
            know: |folder| open_file(folder, b"new"),
            change: |folder| fs::write(folder.join("file"), "new").unwrap(),
        },
    ]
}
