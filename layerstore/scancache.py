"""The digests of a folder's files by what stat(2) said of them, so that unchanged ones stay unread.

git's rule (Documentation/technical/racy-git.adoc): a row is believed only if every field is equal
and the file's times lie before the moment at which the scan that read it began, by more than the
clock's grain; a later change might have left the same times. ctime and inode are part of it, so
``touch -d`` fools nobody.
"""

from __future__ import annotations

import marshal
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from layerstore.cachekey import framed
from layerstore.names import Digest

Stamp = tuple[int, int, int, int, int, int]
"""(device, inode, size, mtime in ns, ctime in ns, mode)."""

_SLACK_NS = 2_000_000_000


def stamp_of(status: os.stat_result) -> Stamp:
    return (
        status.st_dev, status.st_ino, status.st_size,
        status.st_mtime_ns, status.st_ctime_ns, status.st_mode,
    )  # fmt: skip


class ScanCache:
    """Rows of one folder. A file that cannot be read, or is of another Python, is no cache."""

    def __init__(self, derived: Path, folder: Path, now_ns: int) -> None:
        name = framed([b"scan 1", sys.version.encode(), os.fsencode(folder.resolve())])
        self._path = derived / f"scan-{name.hex}"
        self._now_ns = now_ns
        self._rows: dict[bytes, tuple[Stamp, str]] = {}
        self._is_changed = False
        with suppress(OSError, ValueError, EOFError, TypeError):
            rows = marshal.loads(self._path.read_bytes())
            if isinstance(rows, dict):
                self._rows = rows

    def digest(self, path: bytes, stamp: Stamp, read: Callable[[], Digest]) -> Digest:
        """The file's digest: remembered if the file is as it was, else what ``read`` gives."""
        row = self._rows.get(path)
        if row is not None and row[0] == stamp:
            return Digest(row[1])
        digest = read()
        if max(stamp[3], stamp[4]) < self._now_ns - _SLACK_NS:
            self._rows[path] = (stamp, str(digest))
            self._is_changed = True
        elif self._rows.pop(path, None) is not None:
            self._is_changed = True
        return digest

    def save(self, replace: Callable[[Path, bytes], None]) -> None:
        """The rows are on disk, if any is new. ``replace`` puts content at a path, whole."""
        if self._is_changed:
            with suppress(OSError):
                replace(self._path, marshal.dumps(self._rows))
            self._is_changed = False
