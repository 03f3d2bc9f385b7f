"""Directories of any depth: a container may nest them deeper than a path, the stack or the limit
on open files allows, and its removal must work all the same."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 3000
"""Bytes of a path that are resolved at once; Linux takes 4096."""


def open_directory(path: str) -> int:
    """A descriptor of the directory at an absolute path of any length."""
    if len(path) < _PIECE:
        return os.open(path, _DIRECTORY)
    fd = os.open("/", _DIRECTORY)
    try:
        rest = path.strip("/")
        while rest:
            end = len(rest) if len(rest) < _PIECE else rest.rfind("/", 1, _PIECE)
            inner = os.open(rest[:end], _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = inner
            rest = rest[end + 1 :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def remove_tree(path: Path) -> None:
    """Nothing is at ``path`` any more, folders that are closed to us included.

    Follows no symlink, enters no mount, and holds one directory open whatever the depth. What
    others remove at the same time is fine; nobody may move it.
    """
    try:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            path.unlink()
            return
        fd = _enter(os.fspath(path), None, status.st_dev)
    except FileNotFoundError:
        return
    names: list[str] = []
    try:
        pending = [_remove_files(fd)]
        while True:
            if pending[-1]:
                name = pending[-1].pop()
                try:
                    child = _enter(name, fd, status.st_dev)
                except FileNotFoundError:
                    continue
                os.close(fd)
                fd = child
                names.append(name)
                pending.append(_remove_files(fd))
                continue
            pending.pop()
            if not pending:
                break
            parent = os.open("..", _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = parent
            with suppress(FileNotFoundError):
                os.rmdir(names.pop(), dir_fd=fd)
    finally:
        os.close(fd)
    with suppress(FileNotFoundError):
        path.rmdir()


def _enter(name: str, dir_fd: int | None, device: int) -> int:
    """The directory, opened, and made writable if its mode forbids that to its owner."""
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=dir_fd)
        fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
    status = os.fstat(fd)
    if status.st_dev != device:
        os.close(fd)
        raise OSError(errno.EBUSY, "something is mounted there", name)
    if status.st_mode & 0o300 != 0o300:
        with suppress(PermissionError):
            os.fchmod(fd, 0o700)
    return fd


def _remove_files(fd: int) -> list[str]:
    """What is left in the directory then: subdirectories that are not empty."""
    left = []
    # Listed first: a file system may skip names while others are removed.
    with os.scandir(fd) as found:
        names = [(item.name, item.is_dir(follow_symlinks=False)) for item in found]
    for name, is_directory in names:
        try:
            if not is_directory:
                os.unlink(name, dir_fd=fd)
            else:
                os.rmdir(name, dir_fd=fd)
        except FileNotFoundError:
            continue
        except OSError:
            if not is_directory:
                raise
            left.append(name)
    return left
