use super::*;

fn object(lo: u64, counter: u64, size: u64) -> Object {
    Object {
        gfid: Some(Gfid { hi: 7, lo }),
        mode: libc::S_IFREG | 0o644,
        size,
        attr_counter: counter,
        data_counter: counter,
        ..Default::default()
    }
}

fn table() -> Inodes {
    Inodes::new(Gfid::ROOT, Duration::from_secs(60))
}

#[test]
fn the_kernel_never_gets_older_attributes_than_it_has() {
    let inodes = table();
    let before = Instant::now();
    inodes.look_up(&object(9, 5, 500), Instant::now()).unwrap();
    // Sent before the newer one came, so it was overtaken.
    assert_eq!(inodes.learn(&object(9, 4, 400), before).unwrap().size, 500);
    assert_eq!(inodes.fresh(NodeId(9)).unwrap().0.size, 500);
    // Sent afterwards: the history itself is another now.
    let afterwards = Instant::now() + Duration::from_millis(2);
    let learned = inodes.learn(&object(9, 4, 400), afterwards).unwrap();
    assert_eq!(learned.size, 400);
}

#[test]
fn lookups_are_counted_and_forgotten() {
    let inodes = table();
    inodes.look_up(&object(9, 1, 0), Instant::now()).unwrap();
    inodes.look_up(&object(9, 1, 0), Instant::now()).unwrap();
    inodes.forget(NodeId(9), 1);
    assert_eq!(inodes.gfid(NodeId(9)), Ok(Gfid { hi: 7, lo: 9 }));
    inodes.forget(NodeId(9), 1);
    assert_eq!(inodes.gfid(NodeId(9)), Err(FsError::Stale));
    assert_eq!(inodes.len(), 1);
}

#[test]
fn two_objects_with_one_number_are_told_apart() {
    let inodes = table();
    inodes.look_up(&object(9, 1, 0), Instant::now()).unwrap();
    let twin = Object {
        gfid: Some(Gfid { hi: 8, lo: 9 }),
        ..object(9, 1, 0)
    };
    assert_eq!(inodes.look_up(&twin, Instant::now()), Err(FsError::Io));
    // A reply about the twin changes nothing of the first.
    inodes.learn(&Object { size: 77, ..twin }, Instant::now());
    assert_eq!(inodes.fresh(NodeId(9)).unwrap().0.size, 0);
}

#[test]
fn the_kernel_is_behind_until_it_is_told() {
    let inodes = table();
    let node = inodes.look_up(&object(9, 5, 0), Instant::now()).unwrap().0;
    assert!(!inodes.kernel_is_behind(node, 6), "it was told nothing yet");
    inodes.tell(node, 5);
    assert!(!inodes.kernel_is_behind(node, 5));
    inodes.learn(&object(9, 6, 0), Instant::now());
    assert!(inodes.kernel_is_behind(node, 6));
    inodes.tell(node, 6);
    assert!(!inodes.kernel_is_behind(node, 6));
    // However long ago it was told: nobody knows when it took the reply.
    let inodes = Inodes::new(Gfid::ROOT, Duration::ZERO);
    inodes.look_up(&object(9, 5, 0), Instant::now()).unwrap();
    inodes.tell(node, 5);
    inodes.learn(&object(9, 6, 0), Instant::now());
    assert!(inodes.kernel_is_behind(node, 6));
    // The kernel keeps its size when it writes a page back.
    inodes.wrote(node, 7, Wrote::FromPageCache);
    assert!(inodes.kernel_is_behind(node, 7));
    inodes.wrote(node, 7, Wrote::ByCall);
    assert!(!inodes.kernel_is_behind(node, 7));
}

#[test]
fn pages_are_kept_only_when_nobody_else_wrote() {
    let inodes = table();
    inodes.look_up(&object(9, 5, 0), Instant::now()).unwrap();
    let node = NodeId(9);
    assert_eq!(inodes.validate(node, 5), Cached::Nothing);
    assert_eq!(inodes.validate(node, 5), Cached::Current);
    inodes.wrote(node, 6, Wrote::ByCall);
    assert_eq!(inodes.validate(node, 6), Cached::Current);
    inodes.wrote(node, 8, Wrote::ByCall);
    assert_eq!(inodes.validate(node, 8), Cached::Stale);
    inodes.dropped(node, 8);
    assert_eq!(inodes.validate(node, 8), Cached::Current);
    assert_eq!(inodes.validate(node, 0), Cached::Stale);
    inodes.dropped(node, 0);
    assert_eq!(
        inodes.validate(node, 8),
        Cached::Stale,
        "of unknown content"
    );
}

/// Two processes of one mount are granted a shared lock at once: the second one read what the
/// kernel was still to drop for the first.
#[test]
fn pages_that_are_being_dropped_are_right_for_nobody() {
    let inodes = table();
    inodes.look_up(&object(9, 5, 0), Instant::now()).unwrap();
    let node = NodeId(9);
    inodes.validate(node, 5);
    assert_eq!(inodes.validate(node, 6), Cached::Stale, "the first one's");
    assert_eq!(inodes.validate(node, 6), Cached::Stale, "the second one's");
    inodes.wrote(node, 7, Wrote::ByCall);
    assert!(!inodes.has_pages(node, 7));
    inodes.dropped(node, 6);
    assert_eq!(inodes.validate(node, 7), Cached::Stale, "7 came meanwhile");
    inodes.dropped(node, 7);
    assert_eq!(inodes.validate(node, 7), Cached::Current);
}

#[test]
fn a_listing_is_kept_when_nothing_has_changed() {
    let inodes = table();
    inodes.look_up(&object(9, 5, 0), Instant::now()).unwrap();
    let node = NodeId(9);
    assert_eq!(inodes.opened(node, 5), Pages::Stale);
    assert_eq!(inodes.opened(node, 5), Pages::Current);
    assert_eq!(inodes.opened(node, 6), Pages::Stale);
    assert_eq!(inodes.opened(node, 0), Pages::Stale);
}
