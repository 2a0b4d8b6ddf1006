//! The store: openraft's own suite, restarts, size.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::{Cluster, found, put, slow, wait};
use crate::registry::disk::{Disk, Key, Put, Then, to_json};
use crate::registry::log::Log;
use crate::registry::machine::{Applied, Machine};
use crate::registry::types::{Change, PoolMeta, Types};

struct Stores;

impl StoreBuilder<Types, Log, Machine, (TempDir, Closing)> for Stores {
    async fn build(&self) -> Result<((TempDir, Closing), Log, Machine), StorageError<Types>> {
        let dir = tempfile::tempdir().unwrap();
        let (disk, mut stored) = Disk::open(&dir.path().join("registry.redb")).unwrap();
        let log = Log::new(disk.clone(), &mut stored);
        let machine = Machine::new(disk.clone(), Applied::default(), &mut stored).unwrap();
        Ok(((dir, Closing(disk)), log, machine))
    }
}

/// Closes the file when a case ends.
struct Closing(Disk);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openrafts_suite_accepts_the_store() {
    Suite::<Types, Log, Machine, Stores, (TempDir, Closing)>::test_all(Stores)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_life_writes_nothing_into_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.redb");
    let (old, _) = Disk::open(&path).unwrap();
    old.write(vec![Put::Entry(7, b"{}".to_vec())], Then::Lazy);
    let pool = PoolMeta {
        peer: 1,
        pool: 2,
        ..PoolMeta::default()
    };
    let new = old.begin_life(Some(&pool)).await.unwrap();
    let late = old
        .write_durable(vec![Put::Meta(Key::Pool, b"garbage".to_vec())])
        .await;
    assert!(late.unwrap_err().to_string().contains("left that pool"));
    new.close();
    let (disk, stored) = Disk::open(&path).unwrap();
    assert_eq!(stored.pool, Some(pool));
    assert!(stored.entries.is_empty());
    disk.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_an_error_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.redb");
    let (disk, _) = Disk::open(&path).unwrap();
    disk.write_durable(vec![Put::Meta(Key::Vote, b"no vote".to_vec())])
        .await
        .unwrap();
    disk.close();
    let error = Disk::open(&path).err().unwrap();
    assert!(error.contains("'vote' is damaged"), "{error}");
    std::fs::write(&path, [7; 9000]).unwrap();
    assert!(Disk::open(&path).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_small_changes_keep_the_disk_bounded() {
    let mut cluster = Cluster::start(1, slow(), true).await;
    cluster.write(&[1], found(9)).await;
    let raft = cluster.node(1).raft.clone();
    for _ in 0..100 {
        let writes = (0..100).map(|_| {
            let id = mortar_common::ids::random_id();
            raft.client_write(Change {
                id,
                command: put(1),
            })
        });
        for written in futures::future::join_all(writes).await {
            assert_eq!(written.unwrap().data.refusal, "");
        }
    }
    let timing = slow();
    wait("the log to be compacted", || async {
        let metrics = cluster.node(1).metrics();
        let kept = metrics.last_log_index? - metrics.purged?.index;
        (kept <= 2 * timing.snapshot_every + timing.log_kept).then_some(())
    })
    .await;
    assert_eq!(cluster.view_index(1), 10_001);
    let dir = cluster.stop(1).await;
    let bytes = std::fs::metadata(dir.path().join("registry.redb"))
        .unwrap()
        .len();
    println!("10000 changes: {} KiB on the disk", bytes >> 10);
    assert!(bytes < 16 << 20, "{bytes} bytes on the disk");

    // And what is there is all there was.
    cluster.open(1, dir).await;
    cluster.leader_of(&[1]).await;
    wait("the state to return", || async {
        (cluster.view_index(1) == 10_001).then_some(())
    })
    .await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_peer_shows_its_state_without_a_quorum() {
    let mut cluster = Cluster::start(2, slow(), true).await;
    cluster.write(&[1, 2], found(9)).await;
    for id in 1..=20 {
        cluster.write(&[1, 2], put(id)).await;
    }
    // Applied and known to be committed here, on the disk a moment later.
    wait("both to apply", || async {
        (cluster.view_index(2) == 21).then_some(())
    })
    .await;
    let alone = cluster.stop(2).await;
    drop(cluster.stop(1).await);
    cluster.open(2, alone).await;
    wait("the state", || async {
        (cluster.view_index(2) == 21).then_some(())
    })
    .await;
    assert_eq!(
        cluster
            .node(2)
            .metrics()
            .current_leader
            .filter(|leader| *leader == 2),
        None
    );
    cluster.end().await;
}

#[test]
fn what_is_kept_is_small() {
    let change = Change {
        id: 1,
        command: put(1),
    };
    let bytes = to_json(&Arc::new(change).command).unwrap();
    assert!(bytes.len() < 200, "{} bytes for one peer", bytes.len());
}
