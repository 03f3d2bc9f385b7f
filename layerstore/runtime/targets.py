"""Places inside a root whose every name may be an attack.

A place is found once, as a descriptor, by a walk that holds a descriptor for each directory on the
way: symbolic links are read and followed by hand, absolute ones and ``..`` stay inside the root,
and nobody can swap a component between check and use. Links of /proc lead nowhere.
"""

from __future__ import annotations

import errno
import os

from layerstore.kernel.fs import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from layerstore.runtime.plan import LaunchError
from layerstore.runtime.state import Stub, record_stub

_LINKS_MAX = 40
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Root:
    """A mounted root, by the descriptor of its top."""

    def __init__(self, fd: int, stubs_fd: int) -> None:
        self.fd = fd
        self._stubs_fd = stubs_fd
        self._device = os.fstat(fd).st_dev

    def find(self, path: bytes) -> int | None:
        """A path descriptor of what is there, or None."""
        try:
            return openat2(self.fd, path, os.O_PATH, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            return None

    def find_or_make(self, path: bytes, *, directory: bool, is_stub: bool = True) -> int:
        """As ``find``, after making what is missing; stubs are recorded before they exist."""
        found = self.find(path)
        if found is None:
            found = self._make(path, directory=directory, is_stub=is_stub)
        is_directory = os.stat(found).st_mode >> 12 == 0o04
        if is_directory != directory:
            os.close(found)
            raise LaunchError(
                f"{os.fsdecode(path)} in the container is {'a' if is_directory else 'no'} "
                f"directory, and what is mounted there is {'a' if directory else 'no'} directory"
            )
        return found

    def _make(self, path: bytes, *, directory: bool, is_stub: bool) -> int:
        walked: list[tuple[bytes, int]] = [(b"", os.dup(self.fd))]  # the directories we are in
        todo = path.split(b"/")[::-1]
        links = 0
        try:
            while todo:
                name = todo.pop()
                if name in (b"", b"."):
                    continue
                if name == b"..":
                    if len(walked) > 1:
                        os.close(walked.pop()[1])
                    continue
                here = walked[-1][1]
                link = _readlink(here, name)
                if link is not None:
                    links += 1
                    if links > _LINKS_MAX:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(path))
                    if link.startswith(b"/"):
                        while len(walked) > 1:
                            os.close(walked.pop()[1])
                    todo += link.split(b"/")[::-1]
                    continue
                if any(part not in (b"", b".") for part in todo) or directory:
                    walked.append((name, self._enter(walked, name, is_stub=is_stub)))
                else:
                    return self._touch(walked, name)
            return os.dup(walked[-1][1])
        finally:
            for _, fd in walked:
                os.close(fd)

    def _enter(self, walked: list[tuple[bytes, int]], name: bytes, *, is_stub: bool) -> int:
        here = walked[-1][1]
        try:
            return os.open(name, _DIRECTORY, dir_fd=here)
        except FileNotFoundError:
            mtime_ns = self._record(walked, name, "dir", is_stub=is_stub)
            os.mkdir(name, 0o755, dir_fd=here)
            _restore_time(here, mtime_ns)
            return os.open(name, _DIRECTORY, dir_fd=here)

    def _touch(self, walked: list[tuple[bytes, int]], name: bytes) -> int:
        here = walked[-1][1]
        mtime_ns = self._record(walked, name, "file", is_stub=True)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o644, dir_fd=here))
        _restore_time(here, mtime_ns)
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)

    def _record(
        self, walked: list[tuple[bytes, int]], name: bytes, kind: str, *, is_stub: bool
    ) -> int | None:
        """The parent's time, to be restored: making a stub must not look like a change."""
        parent = os.stat(walked[-1][1])
        if not is_stub or parent.st_dev != self._device:  # inside another mount
            return None
        path = b"/".join([part for part, _ in walked] + [name])
        record_stub(self._stubs_fd, Stub(path=path, kind=kind, parent_mtime_ns=parent.st_mtime_ns))
        return parent.st_mtime_ns


def _restore_time(directory: int, mtime_ns: int | None) -> None:
    if mtime_ns is not None:
        os.utime(f"/proc/self/fd/{directory}", ns=(mtime_ns, mtime_ns))


def _readlink(dir_fd: int, name: bytes) -> bytes | None:
    try:
        return os.readlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EINVAL:  # not a link
            raise
        return None
