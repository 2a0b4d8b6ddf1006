//! Our ACL rules beside the kernel's own, on a real disk.

use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::fs::{XattrFlags, getxattr, setxattr};

use super::super::acl::{Acl, Says, tests::value};
use super::*;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

fn random_acl(random: &mut StdRng) -> Vec<u8> {
    let mut entries = vec![(0x01, random.random_range(0..8), 0)];
    let named = random.random_bool(0.6);
    if named {
        entries.push((0x02, random.random_range(0..8), 1000));
    }
    entries.push((0x04, random.random_range(0..8), 0));
    if named && random.random_bool(0.5) {
        entries.push((0x08, random.random_range(0..8), 1000));
    }
    if named || random.random_bool(0.3) {
        entries.push((0x10, random.random_range(0..8), 0));
    }
    entries.push((0x20, random.random_range(0..8), 0));
    value(&entries)
}

fn xattr(path: &Path, name: &str) -> Vec<u8> {
    let mut buffer = [0; 256];
    getxattr(path, name, &mut buffer[..]).map_or_else(|_| Vec::new(), |len| buffer[..len].to_vec())
}

#[test]
fn the_kernel_inherits_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = StdRng::seed_from_u64(1);
    for number in 0..200 {
        let parent = folder.path().join(number.to_string());
        DirBuilder::new().mode(0o755).create(&parent).unwrap();
        let default = random_acl(&mut random);
        setxattr(&parent, DEFAULT, &default, XattrFlags::empty()).unwrap();
        let mode = random.random_range(0..0o1000);
        let (file, directory) = (parent.join("f"), parent.join("d"));
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&file)
            .unwrap();
        DirBuilder::new().mode(mode).create(&directory).unwrap();

        let acl = Acl::parse(&default).unwrap().unwrap();
        for (path, kind) in [(&file, FILE), (&directory, DIR)] {
            let ours = acl.inherit(kind | mode, kind == DIR);
            let theirs = path.metadata().unwrap().mode();
            assert_eq!(ours.mode, theirs, "mode {mode:o} under {default:?}");
            assert_eq!(
                ours.access,
                xattr(path, ACCESS),
                "mode {mode:o} under {default:?}"
            );
            assert_eq!(
                ours.default,
                xattr(path, DEFAULT),
                "mode {mode:o} under {default:?}"
            );
        }
    }
}

#[test]
fn the_kernel_makes_the_same_mode_of_an_acl() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = StdRng::seed_from_u64(2);
    for number in 0..200 {
        let path = folder.path().join(number.to_string());
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o640)
            .open(&path)
            .unwrap();
        let before = file.metadata().unwrap().mode();
        let access = random_acl(&mut random);
        setxattr(&path, ACCESS, &access, XattrFlags::empty()).unwrap();
        let (mode, says) = Acl::parse(&access).unwrap().unwrap().mode_of(before);
        assert_eq!(mode, file.metadata().unwrap().mode(), "{access:?}");
        assert_eq!(
            says == Says::More,
            !xattr(&path, ACCESS).is_empty(),
            "{access:?}"
        );
    }
}
