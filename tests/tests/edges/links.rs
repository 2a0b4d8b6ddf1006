use super::*;

/// What ext4 allows. One of them is the brick's own.
const LINKS_MAX: u32 = 65_000;
const NAMES_MAX: u32 = LINKS_MAX - 1;
/// Names made last, through the mount, up to the end.
const LAST: u32 = 20;

/// Names of a brick's file that are not the brick's but count on its disk.
fn make_beside(brick: &Path, beside: &Path, names: u32) {
    let file = brick.join("names/0");
    for number in 0..names {
        fs::hard_link(&file, beside.join(number.to_string())).unwrap();
    }
}

/// CI has no time for all of them through the mount: most are made beside the bricks, on their
/// disks.
#[test]
fn a_file_has_as_many_names_as_the_disk_allows_but_one() {
    let through_the_mount = scale::pick(1_000, NAMES_MAX - LAST);
    let cluster = Cluster::two_hosts();
    let mount = cluster.mount("client", "gfs01,gfs02:/v01", "");
    let limit = cluster.volume(VOLUME).limits.unwrap().links;
    assert_eq!(limit, NAMES_MAX, "what two ext4 bricks allow");
    let folder = mount.join("names");
    fs::create_dir(&folder).unwrap();
    let file = folder.join("0");
    fs::write(&file, "one file").unwrap();
    let link = |number: u32| errno(fs::hard_link(&file, folder.join(number.to_string())));
    let backup = cluster.backup(VOLUME);
    let began = Instant::now();
    for number in 1..through_the_mount {
        if number == through_the_mount / 2 {
            backup.kill_brickd();
        }
        link(number).unwrap();
    }
    report::say(&format!(
        "{through_the_mount} names of one file in {:?}",
        began.elapsed()
    ));
    backup.start_brickd();
    cluster.wait_healed(VOLUME);
    let beside = ["gfs01", "gfs02"].map(|host| cluster.folder(&format!("beside-{host}")));
    for (host, beside) in ["gfs01", "gfs02"].iter().zip(&beside) {
        make_beside(
            &cluster.brick(host),
            beside,
            NAMES_MAX - LAST - through_the_mount,
        );
    }
    let taken: Vec<Result<()>> = (0..LAST + 1)
        .map(|number| link(through_the_mount + number))
        .collect();
    let mut expected = vec![Ok(()); LAST as usize];
    expected.push(Err(Errno::MLINK));
    assert_eq!(taken, expected);
    let refused = errno(fs::rename(&file, folder.join("renamed")));
    assert_eq!(refused, Ok(()), "a rename needs no link more");
    beside
        .iter()
        .for_each(|beside| fs::remove_dir_all(beside).unwrap());
    let file = folder.join("renamed");
    let names = u64::from(through_the_mount + LAST);
    wait_until(WITHIN, "the names are counted anew", || {
        fs::metadata(&file).unwrap().nlink() == names
    });
    assert_eq!(fs::read_dir(&folder).unwrap().count() as u64, names);
    mount.unmount();
    cluster.assert_healed_and_equal();
    cluster.assert_logs_clean(&[]);
}
