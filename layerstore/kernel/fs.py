"""File system calls that Python has no name for."""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from layerstore.kernel.libc import Memory, syscall
from layerstore.kernel.numbers import FSTATFS, SYNCFS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OPENAT2 = 437

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10


def openat2(
    dir_fd: int,
    path: bytes,
    flags: int,
    mode: int = 0,
    resolve: int = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
) -> int:
    """A close-on-exec descriptor of ``path``, resolved under the constraints of ``resolve``."""
    how = struct.pack("3Q", flags | os.O_CLOEXEC, mode, resolve)
    return syscall("openat2", _OPENAT2, dir_fd, path, how, len(how))


def filesystem_type(fd: int) -> int:
    """The magic number of the file system that holds ``fd`` (statfs(2))."""
    answer = Memory(120)
    syscall("fstatfs", FSTATFS, fd, answer.address)
    return int.from_bytes(answer.read()[:8], "little")


_FICLONE = 0x40049409


def syncfs(fd: int) -> None:
    """All data of the file system that holds ``fd`` is on disk.

    Reports only the writeback errors since ``fd`` was opened: open it before writing.
    """
    syscall("syncfs", SYNCFS, fd)


def try_reflink(source_fd: int, target_fd: int) -> bool:
    """Whether the target now shares all extents of the source (ioctl_ficlone(2))."""
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError:
        return False
    return True


def can_reflink(directory: Path) -> bool:
    """Whether files below ``directory`` can share extents; tried with two small ones."""
    flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
    try:
        source = os.open(directory, flags, 0o600)
    except OSError:
        return False
    try:
        os.write(source, bytes(4096))
        target = os.open(directory, flags, 0o600)
        try:
            return try_reflink(source, target)
        finally:
            os.close(target)
    finally:
        os.close(source)


def copy_data(source_fd: int, target_fd: int) -> None:
    """The empty target has the source's content, holes left out."""
    size = os.fstat(source_fd).st_size
    os.ftruncate(target_fd, size)
    for offset, length in data_extents(source_fd, size):
        while length:
            copied = os.copy_file_range(source_fd, target_fd, length, offset, offset)
            if not copied:
                raise OSError(errno.EIO, "the file shrank while it was copied")
            offset += copied
            length -= copied


def data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the parts of a file that are not holes, ascending."""
    offset = 0
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if start >= size:
            return
        offset = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, offset - start


def write_all(fd: int, payload: bytes | memoryview) -> None:
    """Every byte is written, however short the single writes are."""
    view = memoryview(payload)
    while view:
        view = view[os.write(fd, view) :]


def fsync_path(path: Path | str) -> None:
    """The file, or the names in the directory, at ``path`` are on disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
