//! Each family of operations on a mount, and two mounts that see each other.

use std::ffi::{CStr, OsStr};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, Timespec, Timestamps, UTIME_NOW,
    XattrFlags, fallocate, getxattr, listxattr, mknodat, removexattr, renameat_with, setxattr,
    statvfs, utimensat,
};
use rustix::io::Errno;
use tests::cluster::{Cluster, Mount, VOLUME, run};

const SOON: Duration = Duration::from_secs(10);

fn mounted() -> (Cluster, Mount) {
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01:/v01", "");
    (cluster, mount)
}

fn end(cluster: &Cluster, mount: Mount) {
    cluster.assert_healed_and_equal();
    mount.unmount();
    cluster.assert_logs_clean(&[]);
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn files_are_made_written_read_truncated_and_removed() {
    let (cluster, mount) = mounted();
    let path = mount.join("file");
    let mut file = File::create_new(&path).unwrap();
    assert_eq!(
        File::create_new(&path).unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
    file.write_all(b"0123456789").unwrap();
    file.write_all_at(b"AB", 4).unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"0123AB6789");
    file.set_len(4).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"0123");
    file.set_len(8).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"0123\0\0\0\0");
    let big: Vec<u8> = (0..3_000_001u32).map(|at| (at % 253) as u8).collect();
    fs::write(mount.join("big"), &big).unwrap();
    assert!(fs::read(mount.join("big")).unwrap() == big);
    fs::write(&path, "short").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 5);
    let mut append = OpenOptions::new().append(true).open(&path).unwrap();
    append.write_all(b" and more").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "short and more");
    fs::remove_file(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap_err().kind(), ErrorKind::NotFound);
    drop((file, append));
    end(&cluster, mount);
}

#[test]
fn an_unlinked_open_file_lives_until_it_is_closed() {
    let (cluster, mount) = mounted();
    let path = mount.join("gone");
    let mut file = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    file.write_all(b"still here").unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "another").unwrap();
    file.write_all(b", and written").unwrap();
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here, and written");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    cluster.primary(VOLUME).kill_brickd();
    text.clear();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(
        text, "still here, and written",
        "an orphan does not survive the failover"
    );
    drop(file);
    assert_eq!(fs::read_to_string(&path).unwrap(), "another");
}

#[test]
fn directories_are_made_listed_and_removed() {
    const FILES: usize = 1500;
    let (cluster, mount) = mounted();
    fs::create_dir_all(mount.join("a/b/c")).unwrap();
    assert_eq!(fs::metadata(mount.join("a")).unwrap().nlink(), 3);
    assert_eq!(
        fs::create_dir(mount.join("a")).unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
    let not_empty = fs::remove_dir(mount.join("a")).unwrap_err();
    assert_eq!(not_empty.kind(), ErrorKind::DirectoryNotEmpty);
    fs::remove_dir(mount.join("a/b/c")).unwrap();
    let folder = mount.join("many");
    fs::create_dir(&folder).unwrap();
    for number in 0..FILES {
        File::create(folder.join(format!("{number:05}"))).unwrap();
    }
    let listed = names(&folder);
    assert_eq!(listed.len(), FILES);
    assert!(
        listed
            .iter()
            .enumerate()
            .all(|(number, name)| *name == format!("{number:05}"))
    );
    assert!(!names(mount.path()).contains(&".mortar".to_owned()));
    assert_eq!(
        fs::metadata(mount.join(".mortar")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    end(&cluster, mount);
}

#[test]
fn rename_replaces_refuses_exchanges_and_leaves_a_whiteout() {
    let (cluster, mount) = mounted();
    let (a, b, d) = (mount.join("a"), mount.join("b"), mount.join("d"));
    fs::write(&a, "a").unwrap();
    fs::write(&b, "b").unwrap();
    fs::create_dir(&d).unwrap();
    fs::write(d.join("inside"), "x").unwrap();
    let noreplace = renameat_with(CWD, &a, CWD, &b, RenameFlags::NOREPLACE);
    assert_eq!(noreplace.unwrap_err(), Errno::EXIST);
    fs::rename(&a, &b).unwrap();
    assert_eq!(fs::read_to_string(&b).unwrap(), "a");
    renameat_with(CWD, &b, CWD, &d, RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read_to_string(&d).unwrap(), "a");
    assert_eq!(fs::read_to_string(b.join("inside")).unwrap(), "x");
    renameat_with(CWD, &d, CWD, &a, RenameFlags::WHITEOUT).unwrap();
    let whiteout = fs::symlink_metadata(&d).unwrap();
    assert_eq!(
        (whiteout.mode() & 0o170_000, whiteout.rdev()),
        (0o020_000, 0)
    );
    let into_itself = fs::rename(&b, b.join("below")).unwrap_err();
    assert_eq!(
        into_itself.raw_os_error(),
        Some(Errno::INVAL.raw_os_error())
    );
    end(&cluster, mount);
}

#[test]
fn links_symlinks_and_special_files() {
    let (cluster, mount) = mounted();
    fs::write(mount.join("a"), "a").unwrap();
    fs::create_dir(mount.join("d")).unwrap();
    fs::hard_link(mount.join("a"), mount.join("d/b")).unwrap();
    let (a, b) = (
        fs::metadata(mount.join("a")).unwrap(),
        fs::metadata(mount.join("d/b")).unwrap(),
    );
    assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
    fs::remove_file(mount.join("a")).unwrap();
    assert_eq!(fs::metadata(mount.join("d/b")).unwrap().nlink(), 1);
    let long = "x/".repeat(2000);
    symlink(&long, mount.join("s")).unwrap();
    assert_eq!(
        fs::read_link(mount.join("s")).unwrap().as_os_str(),
        OsStr::new(&long)
    );
    let made = [
        ("fifo", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
        ("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        ("disk", FileType::BlockDevice, rustix::fs::makedev(7, 99)),
    ];
    for (name, kind, device) in made {
        mknodat(
            CWD,
            mount.join(name),
            kind,
            Mode::from_raw_mode(0o600),
            device,
        )
        .unwrap();
        let meta = fs::symlink_metadata(mount.join(name)).unwrap();
        assert_eq!(FileType::from_raw_mode(meta.mode()), kind, "{name}");
        assert_eq!(meta.rdev(), device, "{name}");
        let on_brick = fs::symlink_metadata(cluster.brick("gfs01").join(name)).unwrap();
        assert_eq!(
            on_brick.rdev(),
            0,
            "{name} is a working device on the brick"
        );
    }
    end(&cluster, mount);
}

#[test]
fn attributes_are_set_and_kept_over_a_remount() {
    let (cluster, mount) = mounted();
    let path = mount.join("file");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o4751)).unwrap();
    std::os::unix::fs::chown(&path, Some(1234), Some(5678)).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    let at = |secs| Timespec {
        tv_sec: secs,
        tv_nsec: 123_456_789,
    };
    let times = Timestamps {
        last_access: at(1_000_000_000),
        last_modification: at(-5),
    };
    utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    let before = fs::metadata(&path).unwrap();
    assert_eq!(
        (before.mode() & 0o7777, before.uid(), before.gid()),
        (0o640, 1234, 5678)
    );
    assert_eq!((before.mtime(), before.mtime_nsec()), (-5, 123_456_789));
    assert_eq!(before.atime(), 1_000_000_000);
    mount.unmount();
    let mount = cluster.mount("client", "gfs02:/v01", "");
    let after = fs::metadata(mount.join("file")).unwrap();
    assert_eq!(
        (
            after.ino(),
            after.ctime(),
            after.ctime_nsec(),
            after.mtime(),
            after.nlink()
        ),
        (
            before.ino(),
            before.ctime(),
            before.ctime_nsec(),
            before.mtime(),
            before.nlink()
        )
    );
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    utimensat(CWD, mount.join("file"), &times, AtFlags::empty()).unwrap();
    let touched = fs::metadata(mount.join("file"))
        .unwrap()
        .modified()
        .unwrap();
    assert!(touched.elapsed().map_or(true, |since| since < SOON));
    assert!(SystemTime::now().duration_since(touched).is_ok() || touched.elapsed().is_err());
    end(&cluster, mount);
}

#[test]
fn st_ino_ctime_and_nlink_survive_a_failover() {
    let (cluster, mount) = mounted();
    fs::create_dir(mount.join("d")).unwrap();
    for number in 0..20 {
        fs::write(mount.join(format!("d/f{number}")), "x").unwrap();
    }
    let seen = || -> Vec<_> {
        let meta = |number| fs::metadata(mount.join(format!("d/f{number}"))).unwrap();
        (0..20)
            .map(meta)
            .map(|meta| {
                (
                    meta.ino(),
                    meta.nlink(),
                    meta.ctime(),
                    meta.ctime_nsec(),
                    meta.mtime_nsec(),
                )
            })
            .collect()
    };
    let before = seen();
    cluster.primary(VOLUME).kill_brickd();
    fs::write(mount.join("after"), "x").unwrap();
    assert_eq!(seen(), before);
}

#[test]
fn xattrs_and_acls() {
    let (cluster, mount) = mounted();
    let path = mount.join("file");
    fs::write(&path, "x").unwrap();
    for (name, value) in [
        ("user.one", b"1".as_slice()),
        ("trusted.two", b""),
        ("user.big", &[b'x'; 1500]),
    ] {
        setxattr(&path, name, value, XattrFlags::CREATE).unwrap();
        let mut read = vec![0u8; 4096];
        let len = getxattr(&path, name, &mut read[..]).unwrap();
        assert_eq!(&read[..len], value, "{name}");
    }
    assert_eq!(
        setxattr(&path, "user.one", b"2", XattrFlags::CREATE),
        Err(Errno::EXIST)
    );
    assert_eq!(
        setxattr(&path, "user.none", b"2", XattrFlags::REPLACE),
        Err(Errno::NODATA)
    );
    let mut list = vec![0u8; 4096];
    let len = listxattr(&path, &mut list[..]).unwrap();
    let listed = String::from_utf8_lossy(&list[..len]).into_owned();
    assert!(
        listed.contains("user.one") && listed.contains("trusted.two"),
        "{listed}"
    );
    assert!(
        !listed.contains("mortar"),
        "Mortar's own attribute is visible: {listed}"
    );
    removexattr(&path, "user.one").unwrap();
    assert_eq!(removexattr(&path, "user.one"), Err(Errno::NODATA));
    let own = getxattr(&path, "trusted.mortar", &mut list[..]);
    assert!(own.is_err(), "Mortar's own attribute can be read");

    fs::create_dir(mount.join("d")).unwrap();
    let point = mount.path().display();
    let host = cluster.host("client");
    host.run(
        &format!("setfacl -m u:1001:rw,d:u:1002:rwx {point}/d"),
        SOON,
    )
    .ok();
    host.run(&format!("setfacl -m g:1003:r {point}/file"), SOON)
        .ok();
    fs::write(mount.join("d/inherits"), "x").unwrap();
    let acl = host
        .run(&format!("getfacl -npc {point}/d/inherits"), SOON)
        .ok();
    assert!(acl.contains("user:1002:rwx"), "{acl}");
    end(&cluster, mount);
}

#[test]
fn ordinary_users_get_what_permissions_allow_and_setuid_is_cleared() {
    let (cluster, mount) = mounted();
    let point = mount.path().display();
    fs::create_dir(mount.join("open")).unwrap();
    fs::set_permissions(mount.join("open"), Permissions::from_mode(0o1777)).unwrap();
    fs::write(mount.join("secret"), "x").unwrap();
    fs::set_permissions(mount.join("secret"), Permissions::from_mode(0o600)).unwrap();
    let host = cluster.host("client");
    let as_nobody = |script: &str| {
        let mut command = host.command("setpriv");
        command.args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "/bin/sh",
            "-c",
            script,
        ]);
        run(command, SOON)
    };
    as_nobody(&format!(
        "echo mine > {point}/open/file && cat {point}/open/file"
    ))
    .ok();
    assert_eq!(fs::metadata(mount.join("open/file")).unwrap().uid(), 65534);
    assert!(
        as_nobody(&format!("cat {point}/secret"))
            .refused()
            .contains("denied")
    );
    assert!(
        as_nobody(&format!("rm -f {point}/secret"))
            .refused()
            .contains("denied")
    );
    fs::write(mount.join("open/suid"), "x").unwrap();
    fs::set_permissions(mount.join("open/suid"), Permissions::from_mode(0o6777)).unwrap();
    as_nobody(&format!("echo changed >> {point}/open/suid")).ok();
    assert_eq!(
        fs::metadata(mount.join("open/suid")).unwrap().mode() & 0o7777,
        0o777
    );
    end(&cluster, mount);
}

#[test]
fn holes_are_made_found_and_copied() {
    const MIB: u64 = 1 << 20;
    let (cluster, mount) = mounted();
    let mut file = File::options()
        .create(true)
        .read(true)
        .write(true)
        .truncate(true)
        .open(mount.join("file"))
        .unwrap();
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, MIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    file.write_all(&vec![b'x'; 2 * MIB as usize]).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, MIB / 2, MIB / 2).unwrap();
    fallocate(&file, FallocateFlags::ZERO_RANGE, MIB, 4096).unwrap();
    let content = fs::read(mount.join("file")).unwrap();
    let expected = |at: usize| match at as u64 {
        at if at < MIB / 2 => b'x',
        at if at < MIB + 4096 => 0,
        _ => b'x',
    };
    assert!(
        content.len() as u64 == 2 * MIB
            && content
                .iter()
                .enumerate()
                .all(|(at, byte)| *byte == expected(at))
    );
    file.set_len(8 * MIB).unwrap();
    let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(MIB / 2)).unwrap();
    assert!((MIB / 2..=2 * MIB).contains(&data));
    let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(MIB + MIB / 2)).unwrap();
    assert!((2 * MIB..=8 * MIB).contains(&hole));
    fs::copy(mount.join("file"), mount.join("copy")).unwrap();
    assert!(fs::read(mount.join("copy")).unwrap() == fs::read(mount.join("file")).unwrap());
    let space = statvfs(mount.path()).unwrap();
    assert!(space.f_blocks > 0 && space.f_bavail <= space.f_bfree);
    drop(file);
    end(&cluster, mount);
}

#[test]
fn names_may_be_anything_a_disk_takes() {
    let (cluster, mount) = mounted();
    let longest = [b'n'; 255];
    let odd: [&[u8]; 6] = [
        b"new\nline",
        b"\xff\xfe not utf-8",
        b" ",
        b"-rf",
        "名前".as_bytes(),
        &longest,
    ];
    for name in odd {
        fs::write(mount.join(OsStr::from_bytes(name)), name).unwrap();
    }
    for name in odd {
        assert_eq!(fs::read(mount.join(OsStr::from_bytes(name))).unwrap(), name);
    }
    let too_long = fs::write(mount.join(OsStr::from_bytes(&[b'n'; 256])), "").unwrap_err();
    assert_eq!(
        too_long.raw_os_error(),
        Some(Errno::NAMETOOLONG.raw_os_error())
    );
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), odd.len());
    end(&cluster, mount);
}

#[test]
fn mmap_writes_reach_the_file() {
    let (cluster, mount) = mounted();
    let path = mount.join("mapped");
    // Python is on every machine that builds; std has no mmap.
    let script = format!(
        "import mmap\nf=open('{}','w+b')\nf.truncate(8192)\nm=mmap.mmap(f.fileno(),8192)\n\
         m[4090:4100]=b'0123456789'\nm.flush()\nm.close()\nf.close()\n",
        path.display()
    );
    let mut python = Command::new("python3");
    python.args(["-c", &script]);
    run(python, SOON).ok();
    assert_eq!(&fs::read(&path).unwrap()[4090..4100], b"0123456789");
    end(&cluster, mount);
}

#[test]
fn read_only_and_subdirectory_mounts() {
    let (cluster, mount) = mounted();
    fs::create_dir_all(mount.join("sub/dir")).unwrap();
    fs::write(mount.join("sub/dir/file"), "x").unwrap();
    let sub = cluster.mount("client", "gfs01:/v01/sub/dir", "");
    assert_eq!(names(sub.path()), ["file"]);
    let up = fs::canonicalize(sub.join("..")).unwrap();
    assert_eq!(up, sub.path().parent().unwrap());
    let ro = cluster.mount("client", "gfs01:/v01", "ro");
    assert_eq!(
        fs::write(ro.join("no"), "x").unwrap_err().kind(),
        ErrorKind::ReadOnlyFilesystem
    );
    assert_eq!(fs::read_to_string(ro.join("sub/dir/file")).unwrap(), "x");
    let missing = cluster.host("client").try_mount("gfs01:/v01/none", "");
    assert!(
        missing
            .err()
            .expect("no such folder")
            .refused()
            .contains("none")
    );
}

#[test]
fn a_short_seek_of_a_listing_continues_where_it_was() {
    let (cluster, mount) = mounted();
    for number in 0..300 {
        File::create(mount.join(format!("f{number}"))).unwrap();
    }
    let folder = File::open(mount.path()).unwrap();
    let mut listing = rustix::fs::Dir::read_from(&folder).unwrap();
    let mut seen: Vec<Vec<u8>> = Vec::new();
    let note = |name: &CStr| name.to_bytes().to_vec();
    for _ in 0..100 {
        seen.push(note(listing.read().unwrap().unwrap().file_name()));
    }
    // A listing goes on over the loss of the brick that began it, with nothing doubled or lost.
    cluster.primary(VOLUME).kill_brickd();
    while let Some(entry) = listing.read() {
        seen.push(note(entry.unwrap().file_name()));
    }
    seen.sort();
    let all = seen.len();
    seen.dedup();
    assert_eq!((seen.len(), all), (302, 302));
}
