//! What Mortar adds: a lookup and a 4 KiB write over what bare FUSE takes, and a streamed GiB,
//! beside a bare TCP ping-pong and stream between the same hosts in the same run.
//!
//! `cargo bench -p tests` prints one table; medians, because the machine has other work.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyEntry, ReplyWrite, Request, WriteFlags,
};
use tests::cluster::Cluster;

const ROUNDS: usize = 5_000;
const SYNCED_ROUNDS: usize = 500;
const BLOCK: usize = 4096;
const PIECE: usize = 1 << 20;
const STREAM_BYTES: u64 = 1 << 30;
const PING_PORT: u16 = 7777;
const FILE: u64 = 2;

/// A file system that does nothing: what is left is the kernel's round trip.
struct Bare;

impl Filesystem for Bare {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "file" {
            reply.entry(&Duration::ZERO, &attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::from_secs(1), &attributes(ino.into()));
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.written(u32::try_from(data.len()).expect("at most 1 MiB"));
    }
}

fn attributes(ino: u64) -> FileAttr {
    let (kind, perm) = if ino == FILE {
        (FileType::RegularFile, 0o644)
    } else {
        (FileType::Directory, 0o755)
    };
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn mount_bare(at: &Path) -> BackgroundSession {
    fuser::spawn_mount(Bare, at, &Config::default()).expect("a bare FUSE mount")
}

/// The median time of one call, in µs.
fn median_us(rounds: usize, mut call: impl FnMut(usize)) -> f64 {
    let mut took: Vec<Duration> = (0..rounds)
        .map(|round| {
            let start = Instant::now();
            call(round);
            start.elapsed()
        })
        .collect();
    took.sort_unstable();
    took[rounds / 2].as_secs_f64() * 1e6
}

fn lookup_us(mount: &Path) -> f64 {
    median_us(ROUNDS, |round| {
        let missing = fs::symlink_metadata(mount.join(format!("missing-{round}")));
        assert!(missing.is_err());
    })
}

fn write_us(file: &Path, rounds: usize, sync: Sync) -> f64 {
    let file = File::options()
        .write(true)
        .open(file)
        .expect("the file to write");
    let block = [7u8; BLOCK];
    median_us(rounds, |round| {
        file.write_all_at(&block, (round % 64 * BLOCK) as u64)
            .expect("a write");
        if matches!(sync, Sync::Each) {
            file.sync_data().expect("an fsync");
        }
    })
}

#[derive(Clone, Copy)]
enum Sync {
    Never,
    Each,
}

/// MiB/s of a GiB written, synced, and read back through a mount that has cached nothing of it.
fn stream(cluster: &Cluster) -> (f64, f64) {
    let mount = cluster.mount("client", "gfs01:/v01", "");
    let piece = vec![7u8; PIECE];
    let start = Instant::now();
    let mut file = File::create(mount.join("stream")).expect("a file");
    for _ in 0..STREAM_BYTES / PIECE as u64 {
        file.write_all(&piece).expect("a write");
    }
    file.sync_all().expect("an fsync");
    let written = rate(STREAM_BYTES, start);
    drop(file);
    mount.unmount();
    let mount = cluster.mount("client", "gfs01:/v01", "");
    let start = Instant::now();
    let mut file = File::open(mount.join("stream")).expect("the file");
    let read = read_all(&mut file);
    assert_eq!(read, STREAM_BYTES);
    (written, rate(read, start))
}

fn read_all(from: &mut impl Read) -> u64 {
    let mut piece = vec![0u8; PIECE];
    let mut bytes = 0;
    loop {
        match from.read(&mut piece).expect("a read") {
            0 => return bytes,
            read => bytes += read as u64,
        }
    }
}

fn rate(bytes: u64, since: Instant) -> f64 {
    bytes as f64 / (1 << 20) as f64 / since.elapsed().as_secs_f64()
}

/// µs of a small and of a 4 KiB question with a small answer, and MiB/s of a GiB, over plain TCP
/// from the client to gfs01.
fn bare_tcp(cluster: &Cluster) -> (f64, f64, f64) {
    let (client, server) = (cluster.host("client"), cluster.host("gfs01"));
    let address = SocketAddr::from((server.address, PING_PORT));
    let listener = server
        .in_network(|| TcpListener::bind(address))
        .expect("a port");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for size in [64, BLOCK] {
                let (mut stream, _) = listener.accept().expect("the ping");
                stream.set_nodelay(true).expect("no delay");
                let mut question = vec![0; size];
                while stream.read_exact(&mut question).is_ok() {
                    stream.write_all(&question[..64]).expect("a pong");
                }
            }
            let (mut stream, _) = listener.accept().expect("the stream");
            read_all(&mut stream);
        });
        let connect = || {
            let stream = client
                .in_network(|| TcpStream::connect(address))
                .expect("a connection");
            stream.set_nodelay(true).expect("no delay");
            stream
        };
        let ping = |size: usize| {
            let (mut stream, question) = (connect(), vec![7; size]);
            let mut answer = [0; 64];
            median_us(ROUNDS, |_| {
                stream.write_all(&question).expect("a ping");
                stream.read_exact(&mut answer).expect("a pong");
            })
        };
        let (small, block) = (ping(64), ping(BLOCK));
        let (mut stream, piece) = (connect(), vec![7u8; PIECE]);
        let start = Instant::now();
        for _ in 0..STREAM_BYTES / PIECE as u64 {
            stream.write_all(&piece).expect("a write");
        }
        (small, block, rate(STREAM_BYTES, start))
    })
}

fn main() {
    let cluster = Cluster::two_hosts();
    let (ping, ping_block, tcp_rate) = bare_tcp(&cluster);
    let at = cluster.folder("bare");
    let bare = mount_bare(&at);
    let (bare_lookup, bare_write) = (
        lookup_us(&at),
        write_us(&at.join("file"), ROUNDS, Sync::Never),
    );
    bare.umount_and_join().expect("unmounting bare FUSE");

    let mount = cluster.mount("client", "gfs01:/v01", "");
    File::create(mount.join("file")).expect("a file");
    let lookup = lookup_us(mount.path());
    let write = write_us(&mount.join("file"), ROUNDS, Sync::Never);
    let synced = write_us(&mount.join("file"), SYNCED_ROUNDS, Sync::Each);
    mount.unmount();
    let local = cluster.folder("local").join("file");
    File::create(&local).expect("a file");
    let disk_synced = write_us(&local, SYNCED_ROUNDS, Sync::Each);
    let (written, read) = stream(&cluster);

    println!("TCP between two hosts, 64 B and back      {ping:8.1} us");
    println!("TCP between two hosts, 4 KiB, 64 B back   {ping_block:8.1} us");
    println!("lookup of a missing name: bare FUSE       {bare_lookup:8.1} us");
    println!("lookup of a missing name: Mortar          {lookup:8.1} us");
    let added = lookup - bare_lookup;
    println!("  added {added:.1} us = {:.2} ping-pongs", added / ping);
    println!("write of 4 KiB: bare FUSE                 {bare_write:8.1} us");
    println!("write of 4 KiB on two copies: Mortar      {write:8.1} us");
    let added = write - bare_write;
    println!(
        "  added {added:.1} us = {:.2} ping-pongs (two are the floor)",
        added / ping_block
    );
    println!("write of 4 KiB and fsync: the bare disk   {disk_synced:8.1} us");
    println!("write of 4 KiB and fsync: Mortar          {synced:8.1} us");
    println!("  {:.2} times the bare disk", synced / disk_synced);
    println!(
        "a GiB: bare TCP {tcp_rate:.0} MiB/s; written on two copies {written:.0}; read {read:.0}"
    );
    println!(
        "  {:.2} and {:.2} of bare TCP",
        written / tcp_rate,
        read / tcp_rate
    );
}
