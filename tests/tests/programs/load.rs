//! Load generators that check what they read: fio, dbench, stress-ng.

use tests::outage::{end, mounted};
use tests::scale;

use super::{Bricks, work};

/// stress-ng's stressors of the class "filesystem" that pass on ext4 and ask nothing of a disk
/// that only a local one has; CI runs the first of them.
const STRESSORS: [&str; 35] = [
    "access",
    "copy-file",
    "dentry",
    "fallocate",
    "fcntl",
    "flock",
    "fpunch",
    "link",
    "lockf",
    "rename",
    "utime",
    "xattr",
    "chmod",
    "chown",
    "dir",
    "dirdeep",
    "dirmany",
    "dup",
    "filename",
    "fsize",
    "fstat",
    "getdent",
    "handle",
    "hdd",
    "io",
    "iomix",
    "lease",
    "locka",
    "lockofd",
    "mknod",
    "open",
    "symlink",
    "sync-file",
    "touch",
    "verity",
];
const STRESSORS_OF_CI: usize = 12;

/// Every block that fio wrote is read back and its checksum compared.
fn fio_verifies(bricks: Bricks) {
    let mib = scale::pick(24, 512);
    let (cluster, mount) = mounted();
    let one = |name: &str, how: &str| {
        format!(
            "fio --name={name} --directory=. --size={mib}m --bs=4k-64k --verify=crc32c \
             --verify_fatal=1 --do_verify=1 --fallocate=none --output-format=terse {how} >/dev/null"
        )
    };
    let text = format!(
        "{}; : >\"$MIDDLE\"; {}; {}; {}",
        one("sequential", "--rw=write --ioengine=psync"),
        one(
            "random",
            "--rw=randwrite --ioengine=psync --fsync=32 --numjobs=2"
        ),
        one("mapped", "--rw=randwrite --ioengine=mmap"),
        one("mixed", "--rw=randrw --ioengine=psync --fdatasync=16"),
    );
    work(&cluster, &mount, bricks, &text);
    end(&cluster, mount);
}

#[test]
fn fio_reads_back_what_it_wrote() {
    fio_verifies(Bricks::Stay);
}

#[test]
fn fio_reads_back_what_it_wrote_and_a_brick_is_lost() {
    fio_verifies(Bricks::Lose("gfs02"));
}

/// Said when the kernel's semaphore with the key that dbench wants is there already; it goes on
/// without, and no file system has a part in it.
const LATE_SEMAPHORE: &str = "failed to create barrier semaphore";

fn dbench_runs(bricks: Bricks) {
    let seconds = scale::pick(8, 60);
    let (cluster, mount) = mounted();
    let text = format!("dbench -D . -t {seconds} 4 & bench=$!; : >\"$MIDDLE\"; wait $bench");
    let said = work(&cluster, &mount, bricks, &text).stdout;
    assert!(said.contains("Throughput"), "{said}");
    let failed = |line: &&str| line.contains("failed") && !line.contains(LATE_SEMAPHORE);
    assert_eq!(said.lines().find(failed), None, "{said}");
    end(&cluster, mount);
}

#[test]
fn dbench_with_four_clients() {
    dbench_runs(Bricks::Stay);
}

#[test]
fn dbench_with_four_clients_and_a_lost_brick() {
    dbench_runs(Bricks::Lose("gfs01"));
}

fn stress(bricks: Bricks) {
    let (operations, seconds) = scale::pick((30, 2), (2_000, 20));
    let (cluster, mount) = mounted();
    let stressors = &STRESSORS[..scale::pick(STRESSORS_OF_CI, STRESSORS.len())];
    let (first, second) = stressors.split_at(stressors.len() / 2);
    let run = |stressors: &[&str]| {
        let each = stressors.iter().map(|name| {
            format!(
                "stress-ng -q --verify --temp-path . --{name} 1 --{name}-ops {operations} -t {seconds}"
            )
        });
        each.collect::<Vec<_>>().join("; ")
    };
    let text = format!("{}; : >\"$MIDDLE\"; {}", run(first), run(second));
    work(&cluster, &mount, bricks, &text);
    end(&cluster, mount);
}

#[test]
fn stressors_of_the_class_filesystem() {
    stress(Bricks::Stay);
}

#[test]
fn stressors_of_the_class_filesystem_and_a_lost_brick() {
    stress(Bricks::Lose("gfs01"));
}
