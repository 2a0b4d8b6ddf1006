//! `volume status` and `heal info`: what is told of volumes, and when it may be old.

use mortar_proto::control::{CopyRole, HealAction};
use mortar_proto::registry::VolumeStatus;

use super::fixture::Pool;
use super::heal;

#[tokio::test]
async fn what_may_be_old_is_not_told_as_if_it_were_new() {
    let pool = Pool::new().await;
    let bricks = [("gfs01", "/b"), ("gfs02", "/b")];
    pool.add_volume("v", &bricks, VolumeStatus::VolumeStarted);
    // The registry has put gfs01 out, which says of itself that it is the primary.
    pool.set_in_sync("v", &[1]);
    let status = pool.admin.volume_status("v").await;
    assert_eq!(status.note, "");
    let [put_out, in_sync] = &status.bricks[..] else {
        panic!("{status:?}")
    };
    assert_eq!(put_out.role(), CopyRole::CopyOut);
    assert_eq!(put_out.detail, "not in sync; it has not heard of that yet");
    assert_eq!(
        (in_sync.role(), in_sync.detail.as_str()),
        (CopyRole::CopyPrimary, "")
    );

    pool.registry.cut_off("no quorum: 1 of 3 voters reachable");
    let note = "what this peer knows of the volume may be old: no quorum: 1 of 3 voters reachable";
    assert_eq!(pool.admin.volume_status("v").await.note, note);
    assert_eq!(pool.admin.volume_status("").await.note, note);
    let info = pool
        .admin
        .heal_volume(heal("v", HealAction::HealInfo))
        .await;
    assert_eq!(info.done.unwrap().message, note);
}

#[tokio::test]
async fn status_of_all_absent_and_stopped_volumes() {
    let pool = Pool::new().await;
    pool.add_volume("b", &[("gfs02", "/b")], VolumeStatus::VolumeStarted);
    pool.add_volume("a", &[("gfs01", "/a")], VolumeStatus::VolumeStopped);
    let all = pool.admin.volume_status("").await;
    let names: Vec<&str> = all
        .others
        .iter()
        .map(|one| one.volume.as_ref().unwrap().name.as_str())
        .collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(
        all.others[0].problem.as_ref().unwrap().message,
        "Volume a is not started"
    );
    assert!(all.others[1].problem.is_none() && all.others[1].bricks[0].online);
    let absent = pool.admin.volume_status("c").await.problem.unwrap();
    assert_eq!(absent.message, "Volume c does not exist");
}
