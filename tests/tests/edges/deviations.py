# Says what a folder's file system makes of calls that few programs make, one line each.
import ctypes, errno, fcntl, os, struct, sys

os.chdir(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
EMPTY_PATH_FOLLOW, STATX_BTIME = 0, 0x800


def say(what, act):
    try:
        answer = act()
    except OSError as error:
        answer = errno.errorcode.get(error.errno, error.errno)
    print(f'{what}: {answer}')


def check(answer):
    if answer < 0:
        raise OSError(ctypes.get_errno(), '')
    return answer


def atime_moves(path, read):
    os.utime(path, (1, 1))
    read(path)
    return os.stat(path).st_atime > 1


def has_birth_time():
    found = ctypes.create_string_buffer(256)
    check(libc.statx(-100, b'file', EMPTY_PATH_FOLLOW, STATX_BTIME, found))
    return bool(struct.unpack_from('I', found)[0] & STATX_BTIME)


def fiemap():
    asked = bytearray(struct.pack('QQIIII', 0, 2**63, 0, 0, 10, 0) + bytes(560))
    fcntl.ioctl(file, 0xC020660B, asked)
    return 'answered'


def ioctl(request):
    fcntl.ioctl(file, request, bytearray(64))
    return 'answered'


def in_a_removed_directory(act):
    here = os.getcwd()
    os.mkdir('gone')
    os.chdir('gone')
    os.rmdir('../gone')
    try:
        return act()
    finally:
        os.chdir(here)


with open('file', 'w') as f:
    f.write('0123456789' * 1000)
file = os.open('file', os.O_RDWR)
os.mkdir('folder')

say('O_TMPFILE', lambda: os.close(os.open('.', os.O_TMPFILE | os.O_RDWR, 0o600)))
say('atime of a file', lambda: atime_moves('file', lambda at: open(at).read()))
say('atime of a directory', lambda: atime_moves('folder', os.listdir))
say('birth time', has_birth_time)
say('FS_IOC_GETFLAGS', lambda: ioctl(0x80086601))
say('FS_IOC_FSGETXATTR', lambda: ioctl(0x801C581F))
say('FS_IOC_GETFSUUID', lambda: ioctl(0x80111500))
say('FIEMAP', fiemap)
say('insert range', lambda: check(libc.fallocate(file, 0x20, ctypes.c_long(0), ctypes.c_long(4096))))
say('collapse range', lambda: check(libc.fallocate(file, 8, ctypes.c_long(0), ctypes.c_long(4096))))
say('xattr of 2,000 bytes', lambda: os.setxattr('folder', 'user.x', b'x' * 2000))
say('xattr of 3,000 bytes', lambda: os.setxattr('folder', 'user.x', b'x' * 3000))
say('xattrs together', lambda: [os.setxattr('file', f'user.{n}', b'x' * 100) for n in range(15)] and 15)
say('O_DIRECT unaligned', lambda: os.pread(os.open('file', os.O_RDONLY | os.O_DIRECT), 3, 1))
say('O_DIRECT aligned', lambda: os.lseek(os.open('file', os.O_RDONLY | os.O_DIRECT), 0, 2))
say('O_NOATIME', lambda: os.open('file', os.O_RDONLY | os.O_NOATIME) > 0)
say('RWF_NOWAIT', lambda: os.preadv(file, [bytearray(1)], 0, 8))
say('RWF_DSYNC', lambda: os.pwritev(file, [b'x'], 0, 2))
say('RWF_APPEND', lambda: os.pwritev(file, [b'x'], 0, 0x10) and os.fstat(file).st_size)
say('PC_LINK_MAX', lambda: os.pathconf('file', 'PC_LINK_MAX'))
say('PC_NAME_MAX', lambda: os.pathconf('file', 'PC_NAME_MAX'))
say('listing a removed directory', lambda: in_a_removed_directory(lambda: os.listdir('.')))
say('the parent of a removed directory', lambda: in_a_removed_directory(lambda: os.stat('..').st_nlink > 0))
say('F_SETLEASE', lambda: fcntl.fcntl(os.open('file', os.O_RDONLY), 1024, 0))
say('a cloned file', lambda: fcntl.ioctl(os.open('clone', os.O_CREAT | os.O_WRONLY), 0x40049409, file))
say('swapon', lambda: check(libc.swapon(b'file', 0)))
say('syncfs', lambda: check(libc.syncfs(file)))
say('lseek after an append', lambda: os.lseek(file, 0, 1))
