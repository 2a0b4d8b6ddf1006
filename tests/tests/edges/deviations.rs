use std::collections::BTreeSet;
use std::process::Command;

use super::*;

/// What ARCHITECTURE.md lists, under "Where this differs from ext4".
const LISTED: [&str; 13] = [
    "atime of a file",
    "atime of a directory",
    "birth time",
    "FS_IOC_GETFLAGS",
    "FS_IOC_FSGETXATTR",
    "FS_IOC_GETFSUUID",
    "FIEMAP",
    "insert range",
    "collapse range",
    "xattr of 3,000 bytes",
    "O_DIRECT unaligned",
    "RWF_NOWAIT",
    "PC_LINK_MAX",
];

#[test]
fn what_differs_from_the_disk_is_listed() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/edges/deviations.py");
    let both = Both::new();
    let said = [both.cluster.folder("disk"), both.mount.join("folder")].map(|folder| {
        fs::create_dir_all(&folder).unwrap();
        let output = Command::new("python3")
            .arg(script)
            .arg(&folder)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    });
    let lines = said.each_ref().map(|said| said.lines().collect::<Vec<_>>());
    assert_eq!(lines[0].len(), lines[1].len());
    let differing = lines[0]
        .iter()
        .zip(&lines[1])
        .filter(|(disk, mount)| disk != mount);
    let differing: Vec<_> = differing.collect();
    let names = differing
        .iter()
        .map(|(disk, _)| disk.split(':').next().unwrap());
    let listed = BTreeSet::from(LISTED);
    let unlisted: Vec<_> = names.filter(|name| !listed.contains(name)).collect();
    assert!(unlisted.is_empty(), "{unlisted:?} of {differing:#?}");
    report::say(&format!(
        "{} of {} calls differ",
        differing.len(),
        lines[0].len()
    ));
    both.end();
}
