//! Volumes and mounts that cannot be.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use super::*;

#[test]
fn an_odd_count_of_bricks() {
    let cluster = alone();
    let host = cluster.host("gfs01");
    let bricks: Vec<String> = (0..3)
        .map(|number| host.brick_spec(&format!("bricks/b{number}")))
        .collect();
    create_is_refused(
        &cluster,
        &format!("replica 2 {} force", bricks.join(" ")),
        "multiple",
    );
    create_is_refused(&cluster, "replica 2 force", "");
    create_is_refused(&cluster, &format!("replica 0 {} force", bricks[0]), "");
    create_is_refused(&cluster, &format!("replica two {} force", bricks[0]), "");
    assert!((0..3).all(|number| {
        !host
            .brick(&format!("bricks/b{number}"))
            .join(".mortar")
            .exists()
    }));
}

#[test]
fn names_of_volumes() {
    let cluster = alone();
    let host = cluster.host("gfs01");
    let brick = host.brick_spec("bricks/one");
    let longest = "v".repeat(300);
    let names: [&[u8]; 8] = [
        b"",
        longest.as_bytes(),
        b"a/b",
        b"..",
        b"-rf",
        b"new\nline",
        b"\xff\xfe",
        b"all",
    ];
    for name in names {
        let words: [&OsStr; 5] = [
            OsStr::new("volume"),
            OsStr::new("create"),
            OsStr::from_bytes(name),
            OsStr::new(&brick),
            OsStr::new("force"),
        ];
        host.mortar_words(&words).refused();
    }
    assert!(
        !host.brick("bricks/one/.mortar").exists(),
        "a refused volume left its brick behind"
    );
    let listed = host.mortar("volume list").said();
    assert!(listed.contains("No volumes present"), "{listed}");
}

#[test]
fn a_started_volume_is_not_deleted() {
    let cluster = Cluster::one_host();
    let said = cluster.mortar("gfs01", "volume delete v01").refused();
    assert!(
        said.contains("needs to be stopped before deletion"),
        "{said}"
    );
    let mount = cluster.mount("client", "gfs01:/v01", "");
    fs::write(mount.join("a"), "a").unwrap();
    let twice = cluster.mortar("gfs01", "volume start v01").refused();
    assert!(twice.contains("already started"), "{twice}");
}

#[test]
fn an_absent_volume() {
    let cluster = alone();
    for words in [
        "volume start no",
        "volume stop no",
        "volume delete no",
        "volume info no",
    ] {
        let said = cluster.mortar("gfs01", words).refused();
        assert!(
            said.contains("Volume no does not exist"),
            "`{words}`: {said}"
        );
    }
    let mount = cluster.host("client").try_mount("gfs01:/no", "");
    let said = mount.err().expect("there is no such volume").refused();
    assert!(said.contains("no") && said.contains("exist"), "{said}");
}

#[test]
fn a_stopped_volume_is_not_mounted() {
    let cluster = Cluster::one_host();
    cluster.mortar("gfs01", "volume stop v01").ok();
    let mount = cluster.host("client").try_mount("gfs01:/v01", "");
    let said = mount.err().expect("the volume is stopped").refused();
    assert!(said.contains("v01") && said.contains("start"), "{said}");
    cluster.mortar("gfs01", "volume delete v01").ok();
}

#[test]
fn mounts_of_nonsense() {
    let cluster = Cluster::one_host();
    let client = cluster.host("client");
    for source in [
        "",
        "gfs01",
        "gfs01:",
        "gfs01:/",
        ":/v01",
        "gfs01:v01/../x",
        "nowhere:/v01",
    ] {
        let mount = client.try_mount(source, "");
        mount
            .err()
            .unwrap_or_else(|| panic!("'{source}' was mounted"))
            .refused();
    }
    let options = client.try_mount("gfs01:/v01", "attribute-timeout=soon");
    assert!(
        options
            .err()
            .expect("no number")
            .refused()
            .contains("attribute-timeout")
    );
}
