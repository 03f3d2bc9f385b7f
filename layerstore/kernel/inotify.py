"""Waits until something in a directory changes (inotify(7))."""

from __future__ import annotations

import os
import select

from layerstore.kernel import numbers
from layerstore.kernel.libc import syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_MODIFY, _MOVED_TO, _CREATE, _DELETE_SELF = 0x2, 0x80, 0x100, 0x400
_EVENTS = _MODIFY | _MOVED_TO | _CREATE | _DELETE_SELF


class Changes:
    """Changes in some directories, since this was made: written, new and renamed files."""

    def __init__(self, directories: Iterable[str | os.PathLike[str]]) -> None:
        self._fd = syscall("inotify_init1", numbers.INOTIFY_INIT1, os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            for directory in directories:
                path = os.fsencode(directory)
                syscall("inotify_add_watch", numbers.INOTIFY_ADD_WATCH, self._fd, path, _EVENTS)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        os.close(self._fd)

    def await_any(self, timeout_s: float) -> None:
        """Returns when something has changed since the last call, or after the time."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if poll.poll(timeout_s * 1000):
            try:
                os.read(self._fd, 1 << 16)
            except BlockingIOError:
                pass
