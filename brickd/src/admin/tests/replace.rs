//! `replace-brick` and `reset-brick`: what is refused, and that a refusal leaves things as they were.

use mortar_proto::control::{ResetBrickStep, VolumeReplaceBrickRequest, VolumeResetBrickRequest};
use mortar_proto::registry::{BrickStatus, VolumeStatus};

use super::fixture::Pool;
use crate::admin::ProposeError;

fn replace(brick: &str, with: &str) -> VolumeReplaceBrickRequest {
    VolumeReplaceBrickRequest {
        volume: "v".to_owned(),
        brick: brick.to_owned(),
        with: with.to_owned(),
    }
}

fn reset(brick: &str, step: ResetBrickStep, with: &str, force: bool) -> VolumeResetBrickRequest {
    VolumeResetBrickRequest {
        volume: "v".to_owned(),
        brick: brick.to_owned(),
        step: step.into(),
        with: with.to_owned(),
        force,
    }
}

/// v on gfs01:/b and gfs02:/b, both in sync.
async fn pool() -> Pool {
    let pool = Pool::new().await;
    let bricks = [("gfs01", "/b"), ("gfs02", "/b")];
    pool.add_volume("v", &bricks, VolumeStatus::VolumeStarted);
    pool.set_in_sync("v", &[0, 1]);
    pool
}

async fn refused(pool: &Pool, brick: &str, with: &str) -> String {
    let before = pool.volume("v");
    let refusal = pool.admin.replace_brick(replace(brick, with)).await;
    let now = pool.volume("v");
    assert_eq!(now.bricks, before.bricks, "a refusal changes nothing");
    assert!(pool.here.made().is_empty() && pool.there.made().is_empty());
    refusal.unwrap_err().0
}

#[tokio::test]
async fn a_new_brick_takes_the_place_of_the_old_one() {
    let pool = pool().await;
    let old = pool.volume("v").bricks;
    let done = pool
        .admin
        .replace_brick(replace("gfs01:/b", "gfs02:/c"))
        .await;
    assert_eq!(
        done.unwrap(),
        "replace-brick commit force operation successful"
    );
    let volume = pool.volume("v");
    let new = &volume.bricks[0];
    assert!(new.id != old[0].id && new.id != 0);
    assert_eq!((new.peer, new.path.as_str()), (2, "/c"));
    assert_eq!(new.status(), BrickStatus::BrickUp);
    assert_eq!(volume.sets[0].bricks, [new.id, old[1].id]);
    let in_sync = &volume.sets[0].epoch.as_ref().unwrap().in_sync;
    assert_eq!(in_sync.len(), 1, "put out, and the new one is not in yet");
    assert_eq!(pool.there.made(), ["/c"]);
}

#[tokio::test]
async fn what_cannot_be_replaced_is_told_and_left() {
    let pool = pool().await;
    let why = refused(&pool, "gfs01:/x", "gfs02:/c").await;
    assert_eq!(why, "brick: gfs01:/x does not exist in volume: v");
    let why = refused(&pool, "gfs01:/b", "gfs02:/b").await;
    assert_eq!(why, "gfs02:/b is already part of a volume (v)");
    let why = refused(&pool, "gfs01:/b", "gfs02:/b/c").await;
    assert!(why.contains("containing or be contained"), "{why}");
    let why = refused(&pool, "gfs01:/b", "gfs01:/b").await;
    assert!(why.contains("reset-brick v gfs01:/b start"), "{why}");
    let why = refused(&pool, "gfs01:/b", "elsewhere:/c").await;
    assert!(why.contains("peer probe elsewhere"), "{why}");
    pool.there.refuse_check("read-only file system");
    let why = refused(&pool, "gfs01:/b", "gfs02:/c").await;
    assert_eq!(why, "gfs02:/c: read-only file system");
    pool.there.refuse_check("");
    pool.there.refuse_make("disk full");
    let why = refused(&pool, "gfs01:/b", "gfs02:/c").await;
    assert_eq!(why, "gfs02:/c: disk full");
    pool.there.refuse_make("");
    let no_quorum = ProposeError::NotMade("no quorum: 1 of 2 voters reachable".to_owned());
    pool.registry.fail_next(no_quorum.clone());
    let why = refused(&pool, "gfs01:/b", "gfs02:/c").await;
    assert_eq!(why, no_quorum.to_string());

    pool.set_in_sync("v", &[0]);
    let why = refused(&pool, "gfs01:/b", "gfs02:/c").await;
    assert!(why.contains("it holds the only up-to-date copy"), "{why}");
    pool.admin.stop_volume("v").await.unwrap();
    let why = refused(&pool, "gfs02:/b", "gfs02:/c").await;
    assert_eq!(why, "Volume v is not in the started state");
}

#[tokio::test]
async fn reset_takes_a_stopped_brick_and_its_own_folder() {
    use ResetBrickStep::{ResetBrickCommit, ResetBrickStart};
    let pool = pool().await;
    let old = pool.volume("v").bricks[1].clone();
    let commit = reset("gfs02:/b", ResetBrickCommit, "gfs02:/b", true);
    let why = pool.admin.reset_brick(commit.clone()).await.unwrap_err().0;
    assert!(
        why.contains("must be stopped") && why.contains("reset-brick v gfs02:/b start"),
        "{why}"
    );
    let start = reset("gfs02:/b", ResetBrickStart, "", false);
    let done = pool.admin.reset_brick(start).await.unwrap();
    assert_eq!(done, "reset-brick start operation successful");
    assert_eq!(pool.volume("v").bricks[1].status(), BrickStatus::BrickDown);
    let elsewhere = reset("gfs02:/b", ResetBrickCommit, "gfs02:/c", true);
    let why = pool.admin.reset_brick(elsewhere).await.unwrap_err().0;
    assert_eq!(
        why,
        "When destination brick is new, please use replace-brick command."
    );
    let done = pool.admin.reset_brick(commit).await.unwrap();
    assert_eq!(done, "reset-brick commit force operation successful");
    let new = pool.volume("v").bricks[1].clone();
    assert_eq!((new.peer, &new.path), (old.peer, &old.path));
    assert_ne!(new.id, old.id);
    assert_eq!(new.status(), BrickStatus::BrickUp);
    let only = reset("gfs01:/b", ResetBrickStart, "", false);
    let why = pool.admin.reset_brick(only).await.unwrap_err().0;
    assert!(why.contains("only up-to-date copy"), "{why}");
    assert_eq!(pool.volume("v").bricks[0].status(), BrickStatus::BrickUp);
}
