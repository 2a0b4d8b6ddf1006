//! Files, folders, attributes, as programs use them.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::Mount;

#[test]
fn files_are_made_written_read_moved_and_removed() {
    let mount = Mount::new();
    let file = mount.path("a file");
    fs::write(&file, b"hello").unwrap();
    assert_eq!(fs::read(&file).unwrap(), b"hello");
    assert_eq!(
        mount
            .fake
            .shared
            .tree
            .lock()
            .unwrap()
            .bytes_of(b"a file")
            .unwrap(),
        b"hello"
    );
    fs::create_dir(mount.path("dir")).unwrap();
    let moved = mount.path("dir/b");
    fs::rename(&file, &moved).unwrap();
    assert!(!file.exists());
    fs::hard_link(&moved, mount.path("c")).unwrap();
    assert_eq!(fs::metadata(&moved).unwrap().nlink(), 2);
    std::os::unix::fs::symlink("dir/b", mount.path("s")).unwrap();
    assert_eq!(fs::read_link(mount.path("s")).unwrap(), Path::new("dir/b"));
    assert_eq!(fs::read(mount.path("s")).unwrap(), b"hello");
    assert_eq!(
        fs::remove_dir(mount.path("dir"))
            .unwrap_err()
            .raw_os_error(),
        Some(39)
    );
    fs::remove_file(&moved).unwrap();
    fs::remove_dir(mount.path("dir")).unwrap();
    assert_eq!(fs::metadata(mount.path("c")).unwrap().nlink(), 1);
    let source = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = source
        .lines()
        .find(|line| line.contains(mount.root().to_str().unwrap()))
        .unwrap();
    assert!(line.starts_with("127.0.0.1:/v01 "), "{line}");
    assert!(line.contains(" fuse.mortar rw,"), "{line}");
    assert!(line.contains("default_permissions,allow_other"), "{line}");
    mount.assert_quiet();
}

#[test]
fn attributes_times_space_and_xattrs() {
    let mount = Mount::new();
    let path = mount.path("f");
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path);
    let mut file = file.unwrap();
    file.write_all(&[7; 10_000]).unwrap();
    file.set_len(5_000).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 5_000);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&path, Some(7), Some(8)).unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()),
        (0o640, 7, 8)
    );
    // -1.2 s and a time far away.
    for (secs, nanos) in [(-2, 800_000_000), (4_000_000_000, 5)] {
        let time = rustix::fs::Timespec {
            tv_sec: secs,
            tv_nsec: nanos,
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::futimens(&file, &times).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (secs, nanos));
    }
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 8_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 8_000);
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 0, 4_096).unwrap();
    let mut bytes = [1; 8];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0; 8]);
    assert_eq!(
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(10)).unwrap(),
        8_000
    );
    let copy = File::create(mount.path("copy")).unwrap();
    let copied = rustix::fs::copy_file_range(&file, Some(&mut 4_096), &copy, None, 100).unwrap();
    assert_eq!(copied, 100);
    assert_eq!(fs::read(mount.path("copy")).unwrap(), [7; 100]);
    file.sync_all().unwrap();
    let mut value = [0; 16];
    let absent = rustix::fs::fgetxattr(&file, "user.a", &mut value).unwrap_err();
    assert_eq!(absent, rustix::io::Errno::NODATA);
    rustix::fs::fsetxattr(&file, "user.a", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    assert_eq!(
        rustix::fs::fgetxattr(&file, "user.a", &mut value).unwrap(),
        1
    );
    assert_eq!(rustix::fs::flistxattr(&file, &mut value).unwrap(), 7);
    rustix::fs::fremovexattr(&file, "user.a").unwrap();
    assert_eq!(rustix::fs::statvfs(mount.root()).unwrap().f_bavail, 400);
    let cwd = rustix::fs::CWD;
    for (name, kind) in [
        ("fifo", rustix::fs::FileType::Fifo),
        ("dev", rustix::fs::FileType::CharacterDevice),
    ] {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let device = rustix::fs::makedev(1, 300);
        rustix::fs::mknodat(cwd, mount.path(name), kind, mode, device).unwrap();
    }
    assert!(
        fs::metadata(mount.path("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert_eq!(
        fs::metadata(mount.path("dev")).unwrap().rdev(),
        rustix::fs::makedev(1, 300)
    );
    mount.assert_quiet();
}

#[test]
fn a_folder_of_1000_entries_is_listed_whole() {
    let mount = Mount::new();
    let dir = mount.path("dir");
    fs::create_dir(&dir).unwrap();
    let names: Vec<String> = (0..1_000).map(|n| format!("file number {n:04}")).collect();
    for name in &names {
        File::create(dir.join(name)).unwrap();
    }
    let list = |dir: &Path| {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(list(&dir), names);
    // Another name for the folder's content, read while entries go.
    let mut left = names.clone();
    for (at, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if at % 2 == 0 {
            fs::remove_file(dir.join(&name)).unwrap();
            left.retain(|have| *have != name);
        }
    }
    assert_eq!(left.len(), 500);
    assert_eq!(list(&dir), left);
    mount.assert_quiet();
}

#[test]
fn seekdir_goes_anywhere() {
    let mount = Mount::new();
    for n in 0..300 {
        File::create(mount.path(&format!("{n}"))).unwrap();
    }
    // SAFETY: a directory stream of our own, closed at the end; names are copied out at once.
    unsafe {
        let path = std::ffi::CString::new(mount.root().to_str().unwrap()).unwrap();
        let stream = libc::opendir(path.as_ptr());
        let next = || {
            let entry = libc::readdir(stream);
            (!entry.is_null())
                .then(|| std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()).to_owned())
        };
        let mut seen = vec![];
        loop {
            let at = libc::telldir(stream);
            let Some(name) = next() else { break };
            seen.push((at, name));
        }
        assert_eq!(seen.len(), 302);
        for (at, name) in seen.iter().rev().step_by(17) {
            libc::seekdir(stream, *at);
            assert_eq!(next().as_ref(), Some(name));
        }
        libc::rewinddir(stream);
        assert_eq!(std::iter::from_fn(next).count(), 302);
        libc::closedir(stream);
    }
    mount.assert_quiet();
}

#[test]
fn o_excl_and_o_trunc() {
    let mount = Mount::new();
    let path = mount.path("f");
    fs::write(&path, b"long content").unwrap();
    let again = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap_err();
    assert_eq!(again.raw_os_error(), Some(libc::EEXIST));
    fs::write(&path, b"x").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"x");
    let mut direct = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_SYNC)
        .open(&path)
        .unwrap();
    direct.write_all(b"yz").unwrap();
    let mut text = String::new();
    direct.seek(SeekFrom::Start(0)).unwrap();
    direct.read_to_string(&mut text).unwrap();
    assert_eq!(text, "yz");
    let rename = rustix::fs::renameat_with(
        rustix::fs::CWD,
        &path,
        rustix::fs::CWD,
        mount.path("g"),
        rustix::fs::RenameFlags::NOREPLACE,
    );
    rename.unwrap();
    fs::write(&path, b"second").unwrap();
    rustix::fs::renameat_with(
        rustix::fs::CWD,
        &path,
        rustix::fs::CWD,
        mount.path("g"),
        rustix::fs::RenameFlags::EXCHANGE,
    )
    .unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"yz");
    assert_eq!(fs::read(mount.path("g")).unwrap(), b"second");
    mount.assert_quiet();
}
