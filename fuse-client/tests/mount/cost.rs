//! Promise 8: what operations cost in requests.

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use crate::{Mount, until};

/// Promise 8: what an operation costs in requests.
#[test]
fn requests_per_operation() {
    let mount = Mount::new();
    let counts = |what: &str, expected: &[(&str, u64)], act: &dyn Fn()| {
        // Names and attributes of what went before are out of date.
        std::thread::sleep(Duration::from_millis(1_200));
        fs::metadata(mount.root()).unwrap();
        mount.fake.take_counts();
        act();
        let mut counts = mount.fake.take_counts();
        counts.remove("release");
        let expected: std::collections::BTreeMap<&str, u64> = expected.iter().copied().collect();
        assert_eq!(counts, expected, "{what}");
    };
    let path = |name: &str| mount.path(name);
    let create = [("requests", 3), ("lookup", 1), ("create", 1), ("write", 1)];
    counts("create, write, close", &create, &|| {
        fs::write(path("a"), [1; 4096]).unwrap()
    });
    counts("stat", &[("requests", 1), ("lookup", 1)], &|| {
        drop(fs::metadata(path("a")))
    });
    let read = [("requests", 2), ("lookup", 1), ("open", 1), ("read", 1)];
    counts("open, read, close", &read, &|| {
        drop(fs::read(path("a")).unwrap())
    });
    let again = [("requests", 2), ("lookup", 1), ("open", 1)];
    counts("read again", &again, &|| drop(fs::read(path("a")).unwrap()));
    let rename = [("requests", 3), ("lookup", 2), ("rename", 1)];
    counts("rename", &rename, &|| {
        fs::rename(path("a"), path("b")).unwrap()
    });
    let mkdir = [("requests", 2), ("lookup", 1), ("create", 1)];
    counts("mkdir", &mkdir, &|| fs::create_dir(path("d")).unwrap());
    let unlink = [("requests", 2), ("lookup", 1), ("unlink", 1)];
    counts("unlink", &unlink, &|| fs::remove_file(path("b")).unwrap());
    let absent = [("requests", 1), ("lookup", 1)];
    counts("lookup of nothing", &absent, &|| {
        assert!(!path("x").exists())
    });
    for n in 0..200 {
        File::create(path(&format!("d/{n:03}"))).unwrap();
    }
    // One for the folder's name, one for its attributes and all entries with theirs.
    let ls = [
        ("requests", 2),
        ("lookup", 1),
        ("getattr", 1),
        ("readdir", 1),
    ];
    counts("ls -l of 200 files", &ls, &|| {
        let output = Command::new("ls")
            .arg("-l")
            .arg(path("d"))
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap().lines().count(),
            201
        );
    });
    mount.assert_quiet();
}

#[test]
fn closed_files_are_released_in_the_background() {
    let mount = Mount::new();
    let open = || mount.fake.shared.tree.lock().unwrap().opens.len();
    let files: Vec<_> = (0..50)
        .map(|n| File::create(mount.path(&format!("{n}"))).unwrap())
        .collect();
    assert_eq!(open(), 50);
    drop(files);
    until("all are released", || open() == 0);
    mount.assert_quiet();
}
