//! A bit that a disk gives back otherwise than it was written: `volume heal V full` compares the
//! copies, under live I/O. Of two nobody knows which is right, so both are kept and people decide;
//! of three two are right.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{XattrFlags, setxattr};
use tests::cluster::assert_bricks_equal;
use tests::cluster::{Allowed, Cluster, FileSystem, Host, Mount, VOLUME, wait_until};
use tests::stall::StallMeter;

const WITHIN: Duration = Duration::from_secs(120);
const FILE_BYTES: usize = 3 << 20;

const DIFFER: Allowed<'static> = Allowed {
    text: "the copies of a file differ, and no change explains it",
    why: "a bit was flipped",
};

fn brick(host: &Host) -> PathBuf {
    host.brick("disk/brick")
}

fn content(mark: &str) -> Vec<u8> {
    let mut content = mark.as_bytes().to_vec();
    content.resize(FILE_BYTES, b'c');
    content
}

fn write_file(mount: &Mount, name: &str) {
    let mut file = File::create(mount.join(name)).unwrap();
    file.write_all(&content(&format!("mark of {name}")))
        .unwrap();
    file.sync_all().unwrap();
}

/// Something of each kind, none of which may be taken for different.
fn fill(mount: &Mount) {
    for number in 0..40 {
        let folder = mount.join(format!("d{}", number % 4));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("f{number}")), format!("{number}")).unwrap();
    }
    let file = mount.join("d1/f1");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4711)).unwrap();
    setxattr(&file, "user.x", b"1", XattrFlags::empty()).unwrap();
    fs::hard_link(&file, mount.join("d2/linked")).unwrap();
    symlink("d1/f1", mount.join("link")).unwrap();
    File::create(mount.join("sparse"))
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    fs::rename(mount.join("d3/f3"), mount.join("d0/moved")).unwrap();
    fs::remove_file(mount.join("d3/f7")).unwrap();
}

fn heal_full(cluster: &Cluster) {
    let said = cluster.mortar("gfs01", "volume heal v01 full").ok();
    assert!(said.contains("has been successful"), "{said}");
}

/// Launches a comparison and waits for its end.
#[track_caller]
fn compare(cluster: &Cluster) {
    let ends = || {
        let text = |name: &str| fs::read_to_string(cluster.host(name).log()).unwrap();
        let count = |text: String| text.matches("the copies are compared").count();
        ["gfs01", "gfs02", "gfs03"]
            .map(text)
            .map(count)
            .iter()
            .sum::<usize>()
    };
    let before = ends();
    heal_full(cluster);
    wait_until(WITHIN, "the copies are compared", || ends() > before);
}

fn split_brain(cluster: &Cluster) -> String {
    cluster
        .mortar("gfs01", "volume heal v01 info split-brain")
        .ok()
}

#[test]
fn of_two_copies_that_differ_both_are_kept_and_people_decide() {
    let cluster = Cluster::with_brick_disks(FileSystem::Ext4);
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    fill(&mount);
    let meter = StallMeter::start(mount.path());
    compare(&cluster);
    cluster.wait_healed(VOLUME);

    let (primary, backup) = (cluster.primary(VOLUME), cluster.backup(VOLUME));
    let spec = |host: &Host| format!("{}:{}", host.name, brick(host).display());
    for (name, flipped, right) in [("one", backup, primary), ("two", primary, backup)] {
        write_file(&mount, name);
        cluster.wait_healed(VOLUME);
        flipped.flip_bit(
            &brick(flipped).join(name),
            format!("mark of {name}").as_bytes(),
        );
        compare(&cluster);
        // Nobody gets bytes of which nobody knows whether they are right.
        let reader = cluster.mount("client", "gfs01,gfs02:/v01", "");
        let refused = fs::read(reader.join(name)).expect_err("the file is in conflict");
        assert_eq!(refused.raw_os_error(), Some(libc::EIO), "{refused}");
        let refused = File::options().append(true).open(reader.join(name));
        assert_eq!(
            refused.expect_err("in conflict").raw_os_error(),
            Some(libc::EIO)
        );
        let listed = split_brain(&cluster);
        assert!(listed.contains(&format!("/{name}")), "{listed}");
        assert!(
            listed.contains("/.split-brain/"),
            "both versions can be read: {listed}"
        );
        assert_eq!(fs::read_to_string(reader.join("d1/f5")).unwrap(), "5");
        let decide = format!(
            "volume heal v01 split-brain source-brick {} /{name}",
            spec(right)
        );
        let said = cluster.mortar("gfs01", &decide).ok();
        assert!(said.contains(&format!("Healed /{name}.")), "{said}");
        let read = fs::read(reader.join(name)).expect("it is decided");
        assert!(
            read == content(&format!("mark of {name}")),
            "the wrong version was taken"
        );
        reader.unmount();
        cluster.wait_healed(VOLUME);
        meter.wait_for_progress();
    }
    compare(&cluster);
    cluster.wait_healed(VOLUME);
    let stalls = meter.stop();
    assert!(stalls.errors.is_empty(), "{stalls:?}");
    assert_bricks_equal(&brick(primary), &brick(backup));
    mount.unmount();
    cluster.assert_logs_clean(&[DIFFER]);
}

#[test]
fn of_three_copies_two_are_right() {
    let cluster = Cluster::new(&["gfs01", "gfs02", "gfs03", "client"]);
    let names = ["gfs01", "gfs02", "gfs03"];
    let specs = names.map(|name| cluster.host(name).brick_disk(FileSystem::Ext4));
    cluster.found_on(&names, &specs);
    let mount = cluster.mount("client", "gfs01,gfs02,gfs03:/v01", "");
    fill(&mount);
    let (primary, backup) = (cluster.primary(VOLUME), cluster.backup(VOLUME));
    for (name, flipped) in [("one", backup), ("two", primary)] {
        write_file(&mount, name);
        cluster.wait_healed(VOLUME);
        let mark = format!("mark of {name}");
        flipped.flip_bit(&brick(flipped).join(name), mark.as_bytes());
        assert!(fs::read(brick(flipped).join(name)).unwrap() != content(&mark));
        compare(&cluster);
        cluster.wait_healed(VOLUME);
        assert!(
            fs::read(mount.join(name)).unwrap() == content(&mark),
            "{name}"
        );
    }
    for other in ["gfs02", "gfs03"] {
        assert_bricks_equal(&brick(cluster.host("gfs01")), &brick(cluster.host(other)));
    }
    mount.unmount();
    cluster.assert_logs_clean(&[Allowed {
        text: "one of three copies had other bytes than the others",
        why: "a bit was flipped",
    }]);
}
