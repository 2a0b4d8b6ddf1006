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
    if random.below(2) == 0 {
        return (random_name(random, tree, &view), Vec::new());
    }
    let file = random.pick(&view.files);
    let any = random.pick(&view.others).or(random.pick(&view.dirs));
    let xattr = Bytes::from_static(b"user.x");
    let step = match random.below(15) {
        0 => {
            let size = (random.below(2) == 0).then(|| random.below(40_000));
            let mode = size
                .is_none()
                .then_some(libc::S_IFREG | random.below(0o777) as u32);
            Step::Setattr(SetAttrStep {
                gfid: file,
                size,
                mode,
                ..Default::default()
            })
        }
        1 => Step::Fallocate(FallocateStep {
            gfid: file,
            mode: (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32,
            offset: random.below(30_000),
            len: random.below(9_000),
            ..Default::default()
        }),
        2 => Step::CopyRange(CopyRangeStep {
            from: random.pick(&view.files),
            from_offset: random.below(3_000),
            to: file,
            to_offset: random.below(30_000),
            len: random.below(5_000),
            ..Default::default()
        }),
        3..5 => {
            let value = Bytes::from(vec![random.next() as u8]);
            Step::Setxattr(SetXattrStep {
                gfid: any,
                name: xattr,
                value,
                new_mode: None,
            })
        }
        5 => Step::Removexattr(RemoveXattrStep {
            gfid: any,
            name: xattr,
        }),
        6 => Step::Fsync(FsyncStep {
            gfid: file,
            data_only: false,
        }),
        7 => Step::Free(FreeStep {
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

/// What a name of some directory is, and what it holds.
fn random_place(random: &mut Random, tree: &Tree, view: &View) -> (Gfid, Bytes, Option<Gfid>) {
    let parent = random.pick(&view.dirs).unwrap_or(Gfid::ROOT);
    let name = Bytes::from_static(random.pick(&NAMES).unwrap_or(b"x"));
    let held = tree
        .nodes
        .get(&parent)
        .and_then(|dir| dir.names.get(&name))
        .copied();
    (parent, name, held)
}

fn random_name(random: &mut Random, tree: &Tree, view: &View) -> Step {
    let (parent, name, gfid) = random_place(random, tree, view);
    let parent = Some(parent);
    match random.below(15) {
        0..6 => {
            let gfid = Some(Gfid {
                hi: random.below(1 << 40),
                lo: random.next() | 2,
            });
            let types = [libc::S_IFREG, libc::S_IFREG, libc::S_IFDIR, libc::S_IFLNK];
            let file_type = random.pick(&types).unwrap_or(libc::S_IFREG);
            let link = file_type == libc::S_IFLNK;
            let target = if link {
                Bytes::from_static(b"to")
            } else {
                Bytes::new()
            };
            let mode = file_type | 0o640;
            let has_name = file_type != libc::S_IFREG || random.below(4) > 0;
            let name = if has_name { name } else { Bytes::new() };
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
            ..Default::default()
        }),
        7..9 => Step::Unlink(UnlinkStep {
            parent,
            name,
            gfid,
            orphan: random.below(2) == 0,
        }),
        9 => Step::Rmdir(RmDirStep { parent, name, gfid }),
        _ => {
            let (to_parent, to_name, replaced) = random_place(random, tree, view);
            let exchange = replaced.is_some() && random.below(2) == 0;
            let how = if exchange {
                RenameMode::RenameExchange
            } else {
                RenameMode::RenameReplace
            };
            Step::Rename(RenameStep {
                from_parent: parent,
                from_name: name,
                gfid,
                to_parent: Some(to_parent),
                to_name,
                replaced,
                replaced_orphan: random.below(2) == 0,
                how: how.into(),
                moves_directory: false,
                whiteout: None,
                ..Default::default()
            })
        }
    }
}
