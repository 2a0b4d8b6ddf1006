//! Folders that cannot be bricks.

use std::fs;

use super::*;

#[test]
fn a_brick_path_that_is_relative() {
    create_is_refused(&alone(), "gfs01:relative/path force", "abs-path");
}

#[test]
fn a_brick_nested_in_another() {
    let cluster = Cluster::one_host();
    let nested = cluster
        .host("gfs01")
        .brick_spec("glusterfs/distributed/nested");
    create_is_refused(
        &cluster,
        &format!("{nested} force"),
        "contained by an existing brick",
    );
    let left = fs::read_dir(cluster.brick("gfs01")).unwrap().flatten();
    assert!(
        left.map(|entry| entry.file_name())
            .all(|name| name == ".mortar" || name == "nested")
    );
}

#[test]
fn a_brick_around_another() {
    let cluster = Cluster::one_host();
    let around = cluster.host("gfs01").brick_spec("glusterfs");
    create_is_refused(
        &cluster,
        &format!("{around} force"),
        "contained by an existing brick",
    );
}

#[test]
fn a_brick_that_is_used_already() {
    let cluster = Cluster::one_host();
    let used = cluster.host("gfs01").brick_spec("glusterfs/distributed");
    create_is_refused(
        &cluster,
        &format!("{used} force"),
        "already part of a volume",
    );
}

#[test]
fn a_brick_twice_in_one_volume() {
    let cluster = alone();
    let brick = cluster.host("gfs01").brick_spec("bricks/one");
    create_is_refused(
        &cluster,
        &format!("replica 2 {brick} {brick} force"),
        "brick",
    );
    assert!(!cluster.host("gfs01").brick("bricks/one/.mortar").exists());
}

#[test]
fn a_brick_that_is_a_file() {
    let cluster = alone();
    let brick = cluster.host("gfs01").brick_spec("bricks/file");
    fs::write(cluster.host("gfs01").brick("bricks/file"), "x").unwrap();
    create_is_refused(&cluster, &format!("{brick} force"), "director");
}

#[test]
fn a_brick_on_a_read_only_disk() {
    let cluster = alone();
    let host = cluster.host("gfs01");
    let brick = host.small_disk(64, "ro");
    create_is_refused(&cluster, &format!("{brick} force"), "read-only");
}

#[test]
fn a_brick_on_a_full_disk() {
    let cluster = alone();
    let host = cluster.host("gfs01");
    let brick = host.small_disk(64, "rw");
    create_is_refused(&cluster, &format!("{brick} force"), "space");
}

#[test]
fn a_brick_on_an_unknown_host() {
    let cluster = alone();
    create_is_refused(&cluster, "nowhere:/bricks/one force", "nowhere");
    // It resolves and runs nothing: still no peer.
    create_is_refused(&cluster, "gfs02:/bricks/one force", "gfs02");
}
