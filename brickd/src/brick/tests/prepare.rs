//! Which folders become bricks, and which are served.

use super::*;

fn refusal<T: std::fmt::Debug>(done: Result<T, BrickError>) -> String {
    match done {
        Err(error) => {
            let sentence = error.to_string();
            assert!(
                !sentence.contains('\n') && sentence.len() < 400,
                "{sentence}"
            );
            sentence
        }
        Ok(done) => panic!("not refused: {done:?}"),
    }
}

#[test]
fn folders_that_cannot_be_bricks_are_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b");
    let check = |path: &std::path::Path| refusal(Brick::check(path, true));
    assert!(check("relative/b".as_ref()).contains("not an absolute path"));
    assert!(check(&folder.path().join("../b")).contains("not an absolute path"));
    assert!(check(&folder.path().join("no/b")).contains("does not exist"));
    std::fs::write(&path, "").unwrap();
    assert!(check(&path).contains("not a directory"));
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(folder.path(), &path).unwrap();
    assert!(check(&path).contains("not a directory"));
    std::fs::remove_file(&path).unwrap();

    std::fs::create_dir_all(path.join("sub")).unwrap();
    assert!(refusal(Brick::check(&path, false)).contains("is not empty"));
    let limits = Brick::check(&path, true).unwrap();
    assert!(limits.links > 1000 && limits.xattr_bytes >= 2048 && limits.file_bytes > 1 << 40);
    std::fs::create_dir(path.join("sub/.mortar")).unwrap();
    assert!(check(&path).contains("another brick"));
    std::fs::remove_dir_all(path.join("sub")).unwrap();

    if rustix::fs::stat("/").unwrap().st_dev == rustix::fs::stat(folder.path()).unwrap().st_dev {
        assert!(refusal(Brick::check(&path, false)).contains("root partition"));
    }
    Brick::make(&path, &identity(), true).unwrap();
    assert!(check(&path).contains("is already part of a volume"));
    assert!(check(&path.join("below")).contains("parent directory"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn only_the_brick_that_is_meant_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b");
    let open =
        |identity: &BrickIdentity| Brick::open(&path, identity, Reserve::default()).map(|_| ());
    assert!(refusal(open(&identity())).contains("no such folder"));
    std::fs::create_dir(&path).unwrap();
    assert!(refusal(open(&identity())).contains("no .mortar"));
    Brick::make(&path, &identity(), true).unwrap();
    let other = BrickIdentity {
        brick: BrickId(1),
        ..identity()
    };
    assert!(refusal(open(&other)).contains("mount the right disk"));
    assert!(refusal(Brick::unmake(&path, &other)).contains("left as it is"));

    let brick = Brick::open(&path, &identity(), Reserve::default()).unwrap();
    assert!(refusal(open(&identity())).contains("in use"));
    assert!(refusal(Brick::unmake(&path, &identity())).contains("in use"));
    drop(brick);
    rustix::fs::lremovexattr(&path, "trusted.mortar").unwrap();
    assert!(refusal(open(&identity())).contains("lacks the xattr"));
    std::fs::remove_file(path.join(".mortar/volume")).unwrap();
    assert!(refusal(open(&identity())).contains(".mortar/volume"));
}

#[test]
fn unmake_takes_back_what_make_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b");
    Brick::make(&path, &identity(), true).unwrap();
    Brick::unmake(&path, &identity()).unwrap();
    assert!(!path.exists());
    Brick::unmake(&path, &identity()).unwrap();

    std::fs::create_dir(&path).unwrap();
    Brick::make(&path, &identity(), true).unwrap();
    Brick::unmake(&path, &identity()).unwrap();
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
}

#[test]
fn files_of_a_deleted_volume_stay_but_do_not_come_back_to_life() {
    let mut fix = Fixture::new();
    let dir = fix.dir(Gfid::ROOT, "d");
    let file = fix.file(dir, "f");
    fix.write(file, 0, b"kept");
    fix.brick = None;
    Brick::unmake(&fix.root(), &identity()).unwrap();
    assert_eq!(std::fs::read(fix.root().join("d/f")).unwrap(), b"kept");
    assert!(refusal(Brick::check(&fix.root(), false)).contains("not empty"));
    Brick::make(&fix.root(), &identity(), true).unwrap();
    fix.open();
    assert_eq!(fix.lookup(Gfid::ROOT, "d"), Err(FsError::NotFound));
    assert_eq!(std::fs::read(fix.root().join("d/f")).unwrap(), b"kept");
}

#[test]
fn what_is_reserved_is_not_shown_as_free() {
    let fix = Fixture::new();
    let whole = rustix::fs::statvfs(fix.root()).unwrap();
    let shown = fix.brick().stat_fs().unwrap();
    let reserved = Reserve::default().bytes_of(whole.f_blocks * whole.f_frsize);
    assert!(reserved >= 256 << 20);
    let free = whole.f_bavail * whole.f_frsize;
    let difference = free.abs_diff(shown.blocks_available * shown.block_size + reserved);
    assert!(difference < 512 << 20, "{difference}");
}
