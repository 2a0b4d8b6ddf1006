//! Drawing random sequences.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::Union;
use rustix::fs::{FallocateFlags, RenameFlags};

use super::op::{Acl, Act, How, NAMES, Op, Outage, SLOTS, Special, Spot, When, Who, XattrHow};

/// Operations of one sequence.
const LEN_MAX: usize = 60;
/// Where in a file something is done: over a few pages.
const OFFSET_MAX: u32 = 40_000;
const BYTES_MAX: u32 = 20_000;

/// Whether bricks are lost in a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bricks {
    /// All stay.
    Stay,
    /// They are killed and return.
    AreLost,
}

/// Sequences of operations.
pub fn sequences(bricks: Bricks) -> BoxedStrategy<Vec<Op>> {
    let outages = match bricks {
        Bricks::Stay => 0,
        Bricks::AreLost => 6,
    };
    let acts = Union::new_weighted(
        [
            (40, names()),
            (26, attributes()),
            (60, data()),
            (outages, losses()),
        ]
        .into_iter()
        .filter(|(weight, _)| *weight > 0)
        .collect(),
    );
    vec(
        (who(), acts).prop_map(|(who, act)| Op { who, act }),
        1..=LEN_MAX,
    )
    .boxed()
}

/// What each sequence begins with, so that most of what is drawn meets something.
pub fn founding() -> Vec<Op> {
    let [a, b, c, d] = [0, 1, 2, 3];
    let spot = |names: &[usize]| Spot(names.to_vec());
    let open = |slot, names: &[usize]| Act::Open {
        slot,
        at: spot(names),
        how: How::Create,
        mode: 0o666,
    };
    let folder = |names: &[usize]| Act::Mkdir {
        at: spot(names),
        mode: 0o777,
    };
    let write = |slot, len| Act::Write {
        slot,
        offset: 0,
        len,
        fill: 7,
    };
    [
        folder(&[a]),
        folder(&[b]),
        folder(&[b, a]),
        open(0, &[c]),
        write(0, 10_000),
        open(1, &[a, a]),
        write(1, 100),
        open(2, &[b, d]),
    ]
    .map(|act| Op {
        who: Who::Root,
        act,
    })
    .into()
}

fn who() -> impl Strategy<Value = Who> {
    prop_oneof![6 => Just(Who::Root), 1 => Just(Who::Alice), 1 => Just(Who::Bob)]
}

fn spot() -> impl Strategy<Value = Spot> {
    let depth = |depth| vec(0..NAMES, depth).prop_map(Spot);
    prop_oneof![6 => depth(1), 6 => depth(2), 1 => depth(3)]
}

fn slot() -> impl Strategy<Value = usize> {
    0..SLOTS
}

fn mode() -> impl Strategy<Value = u32> {
    proptest::sample::select(vec![
        0o755, 0o644, 0o666, 0o600, 0o755, 0o777, 0o666, 0o700, 0o000, 0o444, 0o4755, 0o6777,
        0o1777, 0o2775,
    ])
}

fn offset() -> impl Strategy<Value = u32> {
    let pages = (0..OFFSET_MAX / 4096).prop_map(|page| page * 4096);
    prop_oneof![2 => Just(0), 3 => 0..OFFSET_MAX, 2 => pages]
}

fn bytes() -> impl Strategy<Value = u32> {
    prop_oneof![1 => Just(0), 4 => 1..BYTES_MAX, 2 => (1..5u32).prop_map(|pages| pages * 4096)]
}

fn arm<S: Strategy + 'static>(
    weight: u32,
    from: S,
    act: impl Fn(S::Value) -> Act + 'static,
) -> (u32, BoxedStrategy<Act>) {
    (weight, from.prop_map(act).boxed())
}

fn names() -> BoxedStrategy<Act> {
    let special = proptest::sample::select(vec![
        Special::Fifo,
        Special::Socket,
        Special::Device,
        Special::Whiteout,
        Special::File,
    ]);
    let target = proptest::sample::select(vec!["a", "b", "a/b", "c/a", "nowhere"]);
    let flags = proptest::sample::select(vec![
        RenameFlags::empty(),
        RenameFlags::empty(),
        RenameFlags::empty(),
        RenameFlags::NOREPLACE,
        RenameFlags::EXCHANGE,
        RenameFlags::WHITEOUT,
    ]);
    Union::new_weighted(vec![
        arm(6, (spot(), mode()), |(at, mode)| Act::Mkdir { at, mode }),
        arm(3, (spot(), special, mode()), |(at, special, mode)| {
            Act::Mknod { at, special, mode }
        }),
        arm(2, (spot(), target), |(at, target)| Act::Symlink {
            at,
            target,
        }),
        arm(5, (spot(), spot()), |(from, to)| Act::Link { from, to }),
        arm(8, (spot(), spot(), flags), |(from, to, flags)| {
            Act::Rename { from, to, flags }
        }),
        arm(4, spot(), |at| Act::Unlink { at }),
        arm(3, spot(), |at| Act::Rmdir { at }),
        arm(1, spot(), |at| Act::List { at }),
    ])
    .boxed()
}

fn attributes() -> BoxedStrategy<Act> {
    let uid = proptest::option::of(proptest::sample::select(vec![0u32, 1001, 1002]));
    let gid = proptest::option::of(proptest::sample::select(vec![0u32, 1001, 1003]));
    // That neither is changed is no change to POSIX; ext4 sets ctime.
    let owner = (uid, gid).prop_filter("a change", |(uid, gid)| uid.is_some() || gid.is_some());
    let when = prop_oneof![
        1 => Just(When::Now),
        1 => Just(When::Omit),
        4 => (-2_000_000_000..900_000_000i64, 0..1_000_000_000i64)
            .prop_map(|(secs, nanos)| When::At(secs, nanos)),
    ];
    let xattr = || proptest::sample::select(vec!["user.one", "user.two", "trusted.three"]);
    let flags = prop_oneof![
        3 => Just(XattrHow::Set),
        1 => Just(XattrHow::Create),
        1 => Just(XattrHow::Replace),
    ];
    let acl = proptest::sample::select(vec![Acl::Minimal, Acl::Bob, Acl::Group, Acl::Broken]);
    let acl_name =
        proptest::sample::select(vec!["system.posix_acl_access", "system.posix_acl_default"]);
    Union::new_weighted(vec![
        arm(4, (spot(), mode()), |(at, mode)| Act::Chmod { at, mode }),
        arm(4, (spot(), owner), |(at, (uid, gid))| Act::Chown {
            at,
            uid,
            gid,
        }),
        arm(5, (spot(), when), |(at, mtime)| Act::Utimens { at, mtime }),
        arm(2, (spot(), offset()), |(at, len)| Act::Resize { at, len }),
        arm(
            5,
            (spot(), xattr(), 0..300u16, flags),
            |(at, name, len, flags)| Act::SetXattr {
                at,
                name,
                len,
                flags,
            },
        ),
        arm(3, (spot(), xattr()), |(at, name)| Act::RemoveXattr {
            at,
            name,
        }),
        arm(4, (spot(), acl_name, acl), |(at, name, acl)| Act::SetAcl {
            at,
            name,
            acl,
        }),
    ])
    .boxed()
}

fn data() -> BoxedStrategy<Act> {
    let how = prop_oneof![
        1 => Just(How::Read),
        2 => Just(How::Write),
        2 => Just(How::Append),
        4 => Just(How::Create),
        1 => Just(How::CreateNew),
        1 => Just(How::Truncate),
    ];
    Union::new_weighted(vec![
        arm(
            16,
            (slot(), spot(), how, mode()),
            |(slot, at, how, mode)| Act::Open {
                slot,
                at,
                how,
                mode,
            },
        ),
        arm(1, slot(), |slot| Act::Close { slot }),
        arm(3, slot(), |slot| Act::Stat { slot }),
        arm(5, (slot(), offset(), bytes()), |(slot, offset, len)| {
            Act::Read { slot, offset, len }
        }),
        arm(16, written(), |act| act),
        arm(3, slot(), |slot| Act::Sync { slot }),
        arm(1, (slot(), mode()), |(slot, mode)| Act::Fchmod {
            slot,
            mode,
        }),
        arm(
            1,
            (slot(), 1001..1003u32, 1001..1004u32),
            |(slot, uid, gid)| Act::Fchown { slot, uid, gid },
        ),
        (16, ranges()),
    ])
    .boxed()
}

fn written() -> impl Strategy<Value = Act> {
    (slot(), offset(), bytes(), 1..=255u8, 0..4u8).prop_map(|(slot, offset, len, fill, kind)| {
        if kind == 0 {
            Act::Store {
                slot,
                offset,
                len,
                fill,
            }
        } else {
            Act::Write {
                slot,
                offset,
                len,
                fill,
            }
        }
    })
}

fn ranges() -> BoxedStrategy<Act> {
    let keep = FallocateFlags::KEEP_SIZE;
    let flags = proptest::sample::select(vec![
        FallocateFlags::empty(),
        keep,
        FallocateFlags::PUNCH_HOLE | keep,
        FallocateFlags::PUNCH_HOLE | keep,
        FallocateFlags::ZERO_RANGE,
        FallocateFlags::ZERO_RANGE | keep,
        FallocateFlags::PUNCH_HOLE,
    ]);
    Union::new_weighted(vec![
        arm(3, (slot(), offset()), |(slot, len)| Act::Truncate {
            slot,
            len,
        }),
        arm(
            5,
            (slot(), flags, offset(), bytes()),
            |(slot, flags, offset, len)| Act::Allocate {
                slot,
                flags,
                offset,
                len,
            },
        ),
        arm(
            4,
            (slot(), slot(), offset(), offset(), bytes()),
            |(from, to, from_offset, to_offset, len)| Act::Copy {
                from,
                to,
                from_offset,
                to_offset,
                len,
            },
        ),
        arm(2, (slot(), offset()), |(slot, offset)| Act::SeekData {
            slot,
            offset,
        }),
        arm(2, (slot(), offset()), |(slot, offset)| Act::SeekHole {
            slot,
            offset,
        }),
    ])
    .boxed()
}

fn losses() -> BoxedStrategy<Act> {
    prop_oneof![
        1 => Just(Act::Outage(Outage::KillPrimary)),
        1 => Just(Act::Outage(Outage::KillBackup)),
        2 => Just(Act::Outage(Outage::Return)),
    ]
    .boxed()
}
