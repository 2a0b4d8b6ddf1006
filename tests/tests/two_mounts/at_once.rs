//! What the second mount sees without any delay: absence is never believed, an open and a lock ask,
//! a listing that begins is the directory as it is, and whatever changes something is judged by the
//! primary, not by what a kernel believes.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;

use rustix::fs::{CWD, FileType, Mode, RenameFlags, XattrFlags, mknodat, renameat_with, setxattr};
use tests::mapping::{Access, Mapping};

use super::kinds::{Kind, Tried, Watch, file};
use super::*;

#[test]
fn what_need_not_be_believed_is_seen_at_once() {
    let kinds = [made().as_slice(), opened().as_slice(), judged().as_slice()].concat();
    let pair = Pair::new();
    let mut tried = Tried::new(&pair, &kinds);
    let mut missed = Vec::new();
    for (number, kind) in kinds.iter().enumerate() {
        tried.change(number);
        if !tried.is_seen(number) {
            missed.push(kind.what);
        }
    }
    assert!(missed.is_empty(), "not seen at once: {missed:?}");
    drop(tried);
    pair.end();
}

fn nothing(_folder: &Path) {}

fn overwrite(folder: &Path, bytes: &[u8], at: u64) {
    let path = folder.join("file");
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

/// Whether a name is there that was not.
fn there(folder: &Path) -> Watch {
    let path = folder.join("new");
    Box::new(move || fs::symlink_metadata(&path).is_ok())
}

/// A new listing has exactly these.
fn listed(folder: &Path, expected: &'static [&'static str]) -> Watch {
    let folder = folder.to_owned();
    Box::new(move || {
        let entries = fs::read_dir(&folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<BTreeSet<_>>() == expected.iter().map(|name| (*name).to_owned()).collect()
    })
}

fn made() -> Vec<Kind> {
    let make = |what, change| Kind {
        what,
        before: file,
        know: there,
        change,
    };
    vec![
        make("a file is made", |folder| {
            File::create(folder.join("new")).unwrap();
        }),
        make("a directory is made", |folder| {
            fs::create_dir(folder.join("new")).unwrap();
        }),
        make("a symlink is made", |folder| {
            symlink("file", folder.join("new")).unwrap();
        }),
        make("a FIFO is made", |folder| {
            let mode = Mode::from_raw_mode(0o600);
            mknodat(CWD, folder.join("new"), FileType::Fifo, mode, 0).unwrap();
        }),
        make("a link is made", |folder| {
            fs::hard_link(folder.join("file"), folder.join("new")).unwrap();
        }),
        make("a file is moved there", |folder| {
            fs::rename(folder.join("file"), folder.join("new")).unwrap();
        }),
        Kind {
            what: "a listing after a file was made",
            before: file,
            know: |folder| listed(folder, &["file", "new"]),
            change: |folder| {
                File::create(folder.join("new")).unwrap();
            },
        },
        Kind {
            what: "a listing after a file was removed",
            before: file,
            know: |folder| listed(folder, &[]),
            change: |folder| fs::remove_file(folder.join("file")).unwrap(),
        },
        Kind {
            what: "a listing after a file was renamed",
            before: file,
            know: |folder| listed(folder, &["new"]),
            change: |folder| fs::rename(folder.join("file"), folder.join("new")).unwrap(),
        },
    ]
}

fn opened() -> Vec<Kind> {
    vec![
        Kind {
            what: "an open reads what was written",
            before: file,
            know: |folder| {
                let path = folder.join("file");
                Box::new(move || fs::read(&path).unwrap() == b"0123AB6789")
            },
            change: |folder| overwrite(folder, b"AB", 4),
        },
        Kind {
            what: "an open knows the size",
            before: file,
            know: |folder| {
                let path = folder.join("file");
                Box::new(move || File::open(&path).unwrap().metadata().unwrap().len() == 3)
            },
            change: |folder| fs::write(folder.join("file"), "abc").unwrap(),
        },
        Kind {
            what: "another open of an open file",
            before: file,
            know: |folder| {
                let path = folder.join("file");
                let first = File::open(&path).unwrap();
                Box::new(move || {
                    let _second = File::open(&path).unwrap();
                    let mut bytes = [0; 10];
                    first.read_at(&mut bytes, 0).unwrap();
                    &bytes == b"ABCDEFGHIJ"
                })
            },
            change: |folder| overwrite(folder, b"ABCDEFGHIJ", 0),
        },
        Kind {
            what: "a mapping after another open, of what was stored to a mapping",
            before: file,
            know: |folder| {
                let path = folder.join("file");
                let mapping = Mapping::new(&File::open(&path).unwrap(), 10, Access::Read).unwrap();
                Box::new(move || {
                    let _open = File::open(&path).unwrap();
                    mapping.load(0, 4) == b"0AB3"
                })
            },
            change: |folder| {
                let mut options = File::options();
                let file = options
                    .read(true)
                    .write(true)
                    .open(folder.join("file"))
                    .unwrap();
                let mapping = Mapping::new(&file, 10, Access::Write).unwrap();
                mapping.store(1, b"AB");
                mapping.sync().unwrap();
            },
        },
        Kind {
            what: "bytes and size under flock",
            before: file,
            know: |folder| under(folder, BY_FLOCK),
            change: |folder| change_under(folder, BY_FLOCK),
        },
        Kind {
            what: "bytes and size under fcntl",
            before: file,
            know: |folder| under(folder, BY_FCNTL),
            change: |folder| change_under(folder, BY_FCNTL),
        },
    ]
}

/// The bytes and the size of a file that stays open, under a lock.
fn under(folder: &Path, lock: LockWay) -> Watch {
    let mut options = File::options();
    let file = options
        .read(true)
        .write(true)
        .open(folder.join("file"))
        .unwrap();
    Box::new(move || {
        lock(&file, FlockOperation::LockShared).unwrap();
        let mut bytes = [0; 20];
        let len = file.read_at(&mut bytes, 0).unwrap();
        let size = file.metadata().unwrap().len();
        lock(&file, FlockOperation::Unlock).unwrap();
        &bytes[..len] == b"0AB3456789more" && size == 14
    })
}

fn change_under(folder: &Path, lock: LockWay) {
    let mut options = File::options();
    let file = options
        .read(true)
        .write(true)
        .open(folder.join("file"))
        .unwrap();
    lock(&file, FlockOperation::LockExclusive).unwrap();
    file.write_all_at(b"AB", 1).unwrap();
    file.write_all_at(b"more", 10).unwrap();
    lock(&file, FlockOperation::Unlock).unwrap();
}

/// Does something once: not yet when it is asked whether it is seen before it was done.
fn once(mut act: impl FnMut() -> bool + 'static) -> Watch {
    let mut done = false;
    Box::new(move || std::mem::replace(&mut done, true) && act())
}

fn fails<T>(outcome: std::io::Result<T>, kind: ErrorKind) -> bool {
    outcome.err().is_some_and(|error| error.kind() == kind)
}

fn judged() -> Vec<Kind> {
    let mut kinds = judged_names();
    kinds.extend(judged_contents());
    kinds
}

fn judged_names() -> Vec<Kind> {
    vec![
        Kind {
            what: "O_EXCL of a file made meanwhile",
            before: nothing,
            know: |folder| {
                let path = folder.join("new");
                assert!(!path.exists());
                once(move || fails(File::create_new(&path), ErrorKind::AlreadyExists))
            },
            change: |folder| {
                File::create(folder.join("new")).unwrap();
            },
        },
        Kind {
            what: "mkdir of a directory made meanwhile",
            before: nothing,
            know: |folder| {
                let path = folder.join("new");
                assert!(!path.exists());
                once(move || fails(fs::create_dir(&path), ErrorKind::AlreadyExists))
            },
            change: |folder| fs::create_dir(folder.join("new")).unwrap(),
        },
        Kind {
            what: "rmdir of a directory filled meanwhile",
            before: |folder| fs::create_dir(folder.join("d")).unwrap(),
            know: |folder| {
                let path = folder.join("d");
                assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
                once(move || fails(fs::remove_dir(&path), ErrorKind::DirectoryNotEmpty))
            },
            change: |folder| file(&folder.join("d")),
        },
        Kind {
            what: "unlink of a file removed meanwhile",
            before: file,
            know: |folder| {
                let path = folder.join("file");
                assert!(path.exists());
                once(move || fails(fs::remove_file(&path), ErrorKind::NotFound))
            },
            change: |folder| fs::remove_file(folder.join("file")).unwrap(),
        },
        Kind {
            what: "unlink of a file replaced meanwhile",
            before: file,
            know: |folder| {
                let path = folder.join("file");
                assert!(path.exists());
                once(move || fs::remove_file(&path).is_ok() && !path.exists())
            },
            change: |folder| {
                fs::write(folder.join("new"), "new").unwrap();
                fs::rename(folder.join("new"), folder.join("file")).unwrap();
            },
        },
        Kind {
            what: "rename of a file removed meanwhile",
            before: file,
            know: |folder| {
                let (path, to) = (folder.join("file"), folder.join("to"));
                assert!(path.exists());
                once(move || fails(fs::rename(&path, &to), ErrorKind::NotFound))
            },
            change: |folder| fs::remove_file(folder.join("file")).unwrap(),
        },
        Kind {
            what: "NOREPLACE onto a file made meanwhile",
            before: file,
            know: |folder| {
                let (path, to) = (folder.join("file"), folder.join("to"));
                assert!(!to.exists());
                once(move || {
                    let flags = RenameFlags::NOREPLACE;
                    renameat_with(CWD, &path, CWD, &to, flags) == Err(Errno::EXIST)
                })
            },
            change: |folder| fs::write(folder.join("to"), "to").unwrap(),
        },
    ]
}

fn judged_contents() -> Vec<Kind> {
    vec![
        Kind {
            what: "an append after another",
            before: file,
            know: |folder| {
                let path = folder.join("file");
                let mut log = File::options().append(true).open(&path).unwrap();
                once(move || {
                    log.write_all(b"two").unwrap();
                    fs::read(&path).unwrap() == b"0123456789onetwo"
                })
            },
            change: |folder| {
                let path = folder.join("file");
                let mut log = File::options().append(true).open(path).unwrap();
                log.write_all(b"one").unwrap();
            },
        },
        Kind {
            what: "a write into a file cut meanwhile",
            before: file,
            know: |folder| {
                let path = folder.join("file");
                let file = File::options().write(true).open(&path).unwrap();
                once(move || {
                    file.write_all_at(b"xyz", 5).unwrap();
                    fs::read(&path).unwrap() == b"01\0\0\0xyz"
                })
            },
            change: |folder| {
                let path = folder.join("file");
                let file = File::options().write(true).open(path).unwrap();
                file.set_len(2).unwrap();
            },
        },
        Kind {
            what: "XATTR_CREATE of an xattr set meanwhile",
            before: file,
            know: |folder| {
                let path = folder.join("file");
                once(move || {
                    setxattr(&path, "user.x", b"2", XattrFlags::CREATE) == Err(Errno::EXIST)
                })
            },
            change: |folder| {
                setxattr(folder.join("file"), "user.x", b"1", XattrFlags::CREATE).unwrap();
            },
        },
    ]
}
