"""Copies files between a container's root and the host's, whatever the container does meanwhile.

Every directory is walked by descriptor, and no symbolic link is followed but in the two paths that
the user named, and those never out of their root.
"""

from __future__ import annotations

import errno
import os
import stat

from layerstore.errors import ConflictError, NotFoundError, UsageError
from layerstore.kernel.fs import (
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    copy_data,
    data_extents,
    filesystem_type,
    openat2,
    write_all,
)
from layerstore.kernel.values import Value

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_INSIDE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_KERNEL_VIEWS = (0x9FA0, 0x62656572, 0x27E0EB, 0x63677270)  # proc, sysfs, cgroup, cgroup2
_CHUNK = 1 << 20


class Place(Value):
    """A path below a root. One that ends with ``/.`` means what is in a directory."""

    root_fd: int
    path: bytes

    @property
    def is_content(self) -> bool:
        return self.path.endswith(b"/.") or not self.path.strip(b"/.")

    @property
    def stem(self) -> bytes:
        """Without what says how it is meant."""
        return self.path.removesuffix(b"/.").rstrip(b"/") or b"/"

    def shown(self) -> str:
        return os.fsdecode(self.path)


class Copied(Value):
    """What a copy did."""

    skipped: tuple[bytes, ...]
    """Devices and sockets, by their path below the source."""


def copy(source: Place, target: Place, *, archive: bool = False, follow: bool = False) -> Copied:
    """As ``docker cp``: into a directory that exists, else under the target's own name.

    Modes and times are kept; with ``archive`` owners and setuid bits, too. With ``follow`` a link
    as the source is what it points to. Raises NotFoundError, UsageError, ConflictError.
    """
    nofollow = 0 if follow or source.is_content else os.O_NOFOLLOW
    try:
        found = openat2(source.root_fd, source.stem, os.O_PATH | nofollow, 0, _INSIDE)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"there is no {source.shown()}", hint="check the path") from None
    work = _Copy(archive=archive)
    try:
        is_directory = stat.S_ISDIR(os.fstat(found).st_mode)
        if source.path.endswith((b"/", b"/.")) and not is_directory:
            raise UsageError(f"{source.shown()} is not a directory")
        parent, name = _destination(source, target, is_directory=is_directory)
        try:
            if filesystem_type(parent) in _KERNEL_VIEWS:
                raise UsageError(f"nothing can be copied into {target.shown()}: it is the kernel's")
            if name is None:
                work.content(found, parent, b"")
            else:
                work.node(found, parent, name, b"")
        finally:
            os.close(parent)
    finally:
        os.close(found)
    return Copied(skipped=tuple(work.skipped))


def _destination(source: Place, target: Place, *, is_directory: bool) -> tuple[int, bytes | None]:
    """(directory, name in it); without a name the directory itself takes the content."""
    try:
        found = openat2(target.root_fd, target.stem, os.O_PATH, 0, _INSIDE)
    except (FileNotFoundError, NotADirectoryError):
        found = -1
    if found >= 0:
        is_there_directory = stat.S_ISDIR(os.fstat(found).st_mode)
        os.close(found)
        if is_there_directory:
            into = openat2(target.root_fd, target.stem, os.O_RDONLY | os.O_DIRECTORY, 0, _INSIDE)
            return into, None if source.is_content else os.path.basename(source.stem)
        if is_directory:
            raise ConflictError(f"{target.shown()} is a file, and a directory can't replace it")
        if target.path.endswith(b"/"):
            raise UsageError(f"{target.shown()} is not a directory")
    elif target.path.endswith(b"/") and not is_directory:
        raise NotFoundError(f"there is no directory {target.shown()}", hint="make it first")
    above, name = os.path.split(target.stem)
    if name in (b"", b".", b".."):
        raise UsageError(f"{target.shown()} can't be made")
    try:
        parent = openat2(target.root_fd, above or b"/", os.O_RDONLY | os.O_DIRECTORY, 0, _INSIDE)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(
            f"there is no directory {os.fsdecode(above)}", hint="make it first"
        ) from None
    return parent, name


class _Copy:
    def __init__(self, *, archive: bool) -> None:
        self._archive = archive
        self._mode_mask = 0o7777 if archive else 0o1777
        self.skipped: list[bytes] = []

    def node(self, source: int, parent: int, name: bytes, shown: bytes) -> None:
        """``name`` in ``parent`` is a copy of what the path descriptor is open on."""
        status = os.fstat(source)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            try:
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                pass
            made = _open_directory(name, parent)
            try:
                self.content(source, made, shown)
                self._dress(made, status)
            finally:
                os.close(made)
        elif kind == stat.S_IFREG:
            self._file(source, parent, name, status)
        elif kind == stat.S_IFLNK:
            _clear(name, parent)
            os.symlink(os.readlink(b"", dir_fd=source), name, dir_fd=parent)
            if self._archive:
                os.chown(name, status.st_uid, status.st_gid, dir_fd=parent, follow_symlinks=False)
            times = (status.st_atime_ns, status.st_mtime_ns)
            os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)
        elif kind == stat.S_IFIFO:
            _clear(name, parent)
            os.mkfifo(name, 0o600, dir_fd=parent)
            made = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                self._dress(made, status)
            finally:
                os.close(made)
        else:
            self.skipped.append(shown or name)

    def content(self, source: int, target: int, shown: bytes) -> None:
        """What is in the one directory is in the other."""
        listed = os.open(f"/proc/self/fd/{source}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in sorted(map(os.fsencode, os.listdir(listed))):
                try:
                    child = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=listed)
                except FileNotFoundError:  # gone meanwhile
                    continue
                try:
                    self.node(child, target, name, shown + b"/" + name if shown else name)
                finally:
                    os.close(child)
        finally:
            os.close(listed)

    def _file(self, source: int, parent: int, name: bytes, status: os.stat_result) -> None:
        # The descriptor is known to be a regular file's, so that opening it can't block or act.
        reading = os.open(f"/proc/self/fd/{source}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            writing = _create(name, parent)
            try:
                _copy_content(reading, writing)
                self._dress(writing, status)
            finally:
                os.close(writing)
        finally:
            os.close(reading)

    def _dress(self, fd: int, status: os.stat_result) -> None:
        path = f"/proc/self/fd/{fd}"
        if self._archive:
            os.chown(path, status.st_uid, status.st_gid)
        os.chmod(path, stat.S_IMODE(status.st_mode) & self._mode_mask)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _open_directory(name: bytes, parent: int) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise ConflictError(
            f"{os.fsdecode(name)} is there already and is no directory", hint="remove it first"
        ) from None


def _clear(name: bytes, parent: int) -> None:
    """Nothing has the name; a directory stays, and is a ConflictError."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        raise ConflictError(
            f"{os.fsdecode(name)} is a directory, and a file can't replace it"
        ) from None


def _create(name: bytes, parent: int) -> int:
    """A new file of that name, or, where something is mounted on it, the emptied old one."""
    try:
        _clear(name, parent)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        there = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            if not stat.S_ISREG(os.fstat(there).st_mode):
                raise
            return os.open(f"/proc/self/fd/{there}", os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        finally:
            os.close(there)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=parent)


def _copy_content(reading: int, writing: int) -> None:
    size = os.fstat(reading).st_size
    if not size:  # files of /proc and /sys say so, whatever they hold
        while chunk := os.read(reading, _CHUNK):
            write_all(writing, chunk)
        return
    try:
        copy_data(reading, writing)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EIO):
            raise
        _send_data(reading, writing, size)


def _send_data(reading: int, writing: int, size: int) -> None:
    """As copy_data, between file systems that share nothing, and of a file that may shrink."""
    os.ftruncate(writing, size)
    for offset, length in data_extents(reading, size):
        os.lseek(writing, offset, os.SEEK_SET)
        while length:
            sent = os.sendfile(writing, reading, offset, length)
            if not sent:
                break
            offset, length = offset + sent, length - sent
