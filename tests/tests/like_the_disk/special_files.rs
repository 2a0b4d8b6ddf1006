use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use super::*;

/// The kernel does what these stand for; the volume only keeps them.
#[test]
fn fifos_sockets_and_devices_work_where_they_are_mounted() {
    let both = Both::new();
    let mode = Mode::from_raw_mode(0o666);
    let fifo = both.mount.join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
    let mut text = String::new();
    std::thread::scope(|scope| {
        scope.spawn(|| fs::write(&fifo, "through the fifo").unwrap());
        File::open(&fifo)
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
    });
    assert_eq!(text, "through the fifo");

    let path = both.mount.join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"through the socket").unwrap();
    drop(client);
    text.clear();
    let mut accepted = listener.accept().unwrap().0;
    accepted.read_to_string(&mut text).unwrap();
    // Either keeps the mount in use.
    drop((listener, accepted));
    assert_eq!(text, "through the socket");

    let zero = both.mount.join("zero");
    mknodat(CWD, &zero, FileType::CharacterDevice, mode, makedev(1, 5)).unwrap();
    let mut bytes = [1u8; 8];
    File::open(&zero).unwrap().read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [0; 8]);
    let nodev = both.cluster.mount("client", "gfs01:/v01", "nodev");
    let refused = File::open(nodev.join("zero")).unwrap_err();
    assert_eq!(Errno::from_io_error(&refused), Some(Errno::ACCESS));
    nodev.unmount();
    let ordinary = User::ordinary(1000, 1000);
    let device = both.mount.join("of-a-user");
    let refused =
        ordinary.does(|| mknodat(CWD, &device, FileType::CharacterDevice, mode, makedev(1, 5)));
    assert_eq!(refused, Err(Errno::ACCESS), "the folder is root's");
    fs::set_permissions(both.mount.path(), Permissions::from_mode(0o1777)).unwrap();
    let refused =
        ordinary.does(|| mknodat(CWD, &device, FileType::CharacterDevice, mode, makedev(1, 5)));
    assert_eq!(refused, Err(Errno::PERM));
    both.end();
}
