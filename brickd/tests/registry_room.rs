//! What a long life of the registry costs: disk and memory stay bounded. Alone in its process, because
//! it keeps the disk busy and looks at the memory.

#[path = "registry/fixture.rs"]
#[allow(dead_code, reason = "it is that of the registry's other tests")]
mod fixture;

use std::path::Path;

use brickd::registry::Timing;
use fixture::{agree, create, end, option, pool, slow, wait};

const CHANGES: usize = 10_000;
/// Changes on their way at once, as from several administrators' scripts.
const AT_ONCE: usize = 32;
/// More than compaction should ever leave.
const FILE_BYTES_MAX: u64 = 16 << 20;
const MEMORY_BYTES_MAX: u64 = 64 << 20;

fn memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

fn file_bytes(dir: &Path) -> u64 {
    std::fs::metadata(dir.join("registry.redb")).unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_changes_leave_disk_and_memory_small() {
    let hosts = pool(2, slow()).await;
    let ids = [hosts[0].id(), hosts[1].id()];
    hosts[0]
        .registry
        .propose(create("v01", &ids))
        .await
        .unwrap();
    let before = memory_bytes();
    for batch in 0..CHANGES.div_ceil(AT_ONCE) {
        let asks = (0..AT_ONCE).map(|number| {
            let value = format!("{}", batch * AT_ONCE + number);
            let registry = hosts[number % 2].registry.clone();
            async move {
                // A busy machine may need more than one try.
                let outcome = wait("a change", || async {
                    registry.propose(option("v01", &value)).await.ok()
                });
                outcome.await.refusal
            }
        });
        let refusals = futures::future::join_all(asks).await;
        assert!(refusals.iter().all(String::is_empty), "{refusals:?}");
    }
    agree(&hosts).await;
    let grown = memory_bytes().saturating_sub(before);
    let kept = slow().snapshot_every + Timing::default().log_kept;
    for host in &hosts {
        let status = wait("a snapshot", || async {
            let status = host.registry.status().await.unwrap();
            (status.snapshot + kept >= status.last_log).then_some(status)
        })
        .await;
        assert!(status.applied as usize >= CHANGES, "{status:?}");
        let bytes = file_bytes(host.dir.path());
        println!("{CHANGES} changes: a file of {bytes} bytes, {grown} bytes of memory more");
        assert!(bytes < FILE_BYTES_MAX, "the file has {bytes} bytes");
    }
    assert!(grown < MEMORY_BYTES_MAX, "{grown} bytes of memory more");
    end(hosts).await;
}
