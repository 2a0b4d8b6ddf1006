use super::*;

/// Opens a file of no name in a folder.
fn unnamed(folder: &Path, more: OFlags) -> Result<OwnedFd> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | more;
    openat(CWD, folder, flags, Mode::from_raw_mode(0o640))
}

/// Gives an open file a name.
fn give_name(file: &OwnedFd, path: &Path) -> Result<()> {
    let held = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, &*held, CWD, path, AtFlags::SYMLINK_FOLLOW)
}

/// What a disk and the mount answer alike.
fn says(folder: &Path) -> Vec<String> {
    let mut said = Vec::new();
    let before = fs::metadata(folder).unwrap();
    let file = unnamed(folder, OFlags::empty()).unwrap();
    write(&file, b"content").unwrap();
    let stat = fstat(&file).unwrap();
    said.push(format!(
        "{:o} {} {}",
        stat.st_mode, stat.st_nlink, stat.st_size
    ));
    let after = fs::metadata(folder).unwrap();
    let same_times = before.mtime_nsec() == after.mtime_nsec();
    said.push(format!(
        "{same_times} {}",
        fs::read_dir(folder).unwrap().count()
    ));
    said.push(format!("{:?}", give_name(&file, &folder.join("named"))));
    said.push(format!("{:?}", give_name(&file, &folder.join("named"))));
    said.push(format!("{:?}", give_name(&file, &folder.join("twice"))));
    said.push(format!("{}", fstat(&file).unwrap().st_nlink));
    fs::remove_file(folder.join("named")).unwrap();
    fs::remove_file(folder.join("twice")).unwrap();
    said.push(format!("{:?}", give_name(&file, &folder.join("again"))));
    let never = unnamed(folder, OFlags::EXCL).unwrap();
    said.push(format!("{:?}", give_name(&never, &folder.join("never"))));
    said.push(format!(
        "{:?}",
        unnamed(&folder.join("none"), OFlags::empty()).err()
    ));
    fs::write(folder.join("file"), "").unwrap();
    said.push(format!(
        "{:?}",
        unnamed(&folder.join("file"), OFlags::empty()).err()
    ));
    said
}

#[test]
fn a_file_of_no_name_is_like_the_disks() {
    let mut both = Both::new();
    both.case("a file of no name", says);
    both.end();
}

/// Made, named and dropped with both copies, with one, and over the loss of the primary.
#[test]
fn a_file_of_no_name_outlives_a_brick() {
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    let backup = cluster.backup(VOLUME);
    let make = |text: &str| {
        let file = unnamed(mount.path(), OFlags::empty()).unwrap();
        write(&file, text.as_bytes()).unwrap();
        file
    };
    let (before, dropped) = (make("before"), make("dropped"));
    backup.kill_brickd();
    let (meanwhile, named_later) = (make("meanwhile"), make("later"));
    give_name(&before, &mount.join("before")).unwrap();
    give_name(&meanwhile, &mount.join("meanwhile")).unwrap();
    backup.start_brickd();
    cluster.wait_healed(VOLUME);
    let primary = cluster.primary(VOLUME);
    primary.kill_brickd();
    give_name(&named_later, &mount.join("later")).unwrap();
    let mut back = [0; 16];
    let len = pread(&dropped, &mut back[..], 0).unwrap();
    assert_eq!(&back[..len], b"dropped");
    drop(dropped);
    primary.start_brickd();
    cluster.wait_healed(VOLUME);
    for name in ["before", "meanwhile", "later"] {
        assert_eq!(fs::read_to_string(mount.join(name)).unwrap(), name);
    }
    drop((before, meanwhile, named_later));
    mount.unmount();
    cluster.assert_healed_and_equal();
    cluster.assert_logs_clean(&[]);
}
