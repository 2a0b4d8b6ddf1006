//! Random changes, mostly valid.

use bytes::Bytes;
use mortar_common::Gfid;
use mortar_proto::data::change::Step;
use mortar_proto::data::{
    CopyRangeStep, CreateStep, FallocateStep, FreeStep, FsyncStep, LinkStep, RemoveXattrStep,
    RenameMode, RenameStep, RmDirStep, SetAttrStep, SetXattrStep, UnlinkStep, WriteStep,
};

use super::tree::{Node, Tree};

/// A small generator: the same seed, the same run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        of.get(self.below(of.len() as u64) as usize).copied()
    }
}

const NAMES: [&[u8]; 7] = [b"a", b"b", b"c", b"d", b"e", b"f", b"\xff\n"];

struct View {
    dirs: Vec<Gfid>,
    files: Vec<Gfid>,
    others: Vec<Gfid>,
    orphans: Vec<Gfid>,
}

fn view(tree: &Tree) -> View {
    let all = |keep: &dyn Fn(&Node) -> bool| {
        tree.nodes
            .iter()
            .filter(|(_, node)| keep(node))
            .map(|(gfid, _)| *gfid)
            .collect()
    };
    let regular = |node: &Node| node.object.mode & libc::S_IFMT == libc::S_IFREG;
    View {
        dirs: all(&Node::is_dir),
        files: all(&regular),
        others: all(&|node| !node.is_dir()),
        orphans: all(&|node| !node.is_dir() && node.object.nlink == 0),
    }
}

/// One change; the source may still refuse it.
pub fn random_step(random: &mut Random, tree: &Tree) -> (Step, Vec<u8>) {
    let view = view(tree);
    let parent = random.pick(&view.dirs);
    let name = Bytes::from_static(random.pick(&NAMES).unwrap_or(b"x"));
    let held = tree
        .nodes
        .get(&parent.unwrap_or_default())
        .and_then(|dir| dir.names.get(&name))
        .copied();
    let file = random.pick(&view.files);
    let any = random.pick(&view.others).or(parent);
    let step = match random.below(30) {
        0..6 => {
            let gfid = Some(Gfid {
                hi: random.below(1 << 40),
                lo: random.next() | 2,
            });
            let mode = [libc::S_IFREG, libc::S_IFREG, libc::S_IFDIR, libc::S_IFLNK];
            let mode = random.pick(&mode).unwrap_or(libc::S_IFREG) | 0o640;
            let target = if mode & libc::S_IFMT == libc::S_IFLNK {
                Bytes::from_static(b"to")
            } else {
                Bytes::new()
            };
            Step::Create(CreateStep {
                parent,
                name,
                gfid,
                mode,
                target,
                ..Default::default()
            })
        }
        6 => Step::Link(LinkStep {
            gfid: random.pick(&view.others),
            parent,
            name,
        }),
        7..9 => Step::Unlink(UnlinkStep {
            parent,
            name,
            gfid: held,
            orphan: random.below(2) == 0,
        }),
        9 => Step::Rmdir(RmDirStep {
            parent,
            name,
            gfid: held,
        }),
        10..15 => {
            let to_parent = random.pick(&view.dirs);
            let to_name = Bytes::from_static(random.pick(&NAMES).unwrap_or(b"y"));
            let replaced = tree.nodes.get(&to_parent.unwrap_or_default());
            let replaced = replaced.and_then(|dir| dir.names.get(&to_name)).copied();
            let exchange = replaced.is_some() && random.below(2) == 0;
            let how = if exchange {
                RenameMode::RenameExchange
            } else {
                RenameMode::RenameReplace
            };
            Step::Rename(RenameStep {
                from_parent: parent,
                from_name: name,
                gfid: held,
                to_parent,
                to_name,
                replaced,
                replaced_orphan: random.below(2) == 0,
                how: how.into(),
                whiteout: None,
            })
        }
        15 => {
            let size = (random.below(2) == 0).then(|| random.below(40_000));
            let mode = (size.is_none()).then_some(libc::S_IFREG | random.below(0o777) as u32);
            Step::Setattr(SetAttrStep {
                gfid: file,
                size,
                mode,
                ..Default::default()
            })
        }
        16 => Step::Fallocate(FallocateStep {
            gfid: file,
            mode: (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32,
            offset: random.below(30_000),
            len: random.below(9_000),
            ..Default::default()
        }),
        17 => Step::CopyRange(CopyRangeStep {
            from: random.pick(&view.files),
            from_offset: random.below(3_000),
            to: file,
            to_offset: random.below(30_000),
            len: random.below(5_000),
            ..Default::default()
        }),
        18..20 => {
            let (name, value) = (
                Bytes::from_static(b"user.x"),
                Bytes::from(vec![random.next() as u8]),
            );
            Step::Setxattr(SetXattrStep {
                gfid: any,
                name,
                value,
                new_mode: None,
            })
        }
        20 => Step::Removexattr(RemoveXattrStep {
            gfid: any,
            name: Bytes::from_static(b"user.x"),
        }),
        21 => Step::Fsync(FsyncStep {
            gfid: file,
            data_only: false,
        }),
        22 => Step::Free(FreeStep {
            gfid: random.pick(&view.orphans),
        }),
        _ => {
            let payload = vec![random.next() as u8 | 1; random.below(6_000) as usize];
            let (offset, len) = (random.below(60_000), payload.len() as u32);
            let step = WriteStep {
                gfid: file,
                offset,
                len,
                ..Default::default()
            };
            return (Step::Write(step), payload);
        }
    };
    (step, Vec::new())
}
