"""Who may do what when: flock(2) on files of the store, held by open file descriptions.

The kernel drops them when a process dies, so no lock is ever stale. The order is lease, ``gc``,
``gate``, ``lock``; a lease or a container's lock is never waited for while ``gate`` or ``lock`` is
held. ``gate`` is a turnstile: flock is not fair, and a stream of shared holders would starve the
collector for ever if everyone did not have to pass it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def publishing(root: Path) -> Iterator[None]:
    """Shared with other publishers; no collection moves an object meanwhile."""
    yield from _through_gate(root, fcntl.LOCK_SH)


@contextmanager
def collecting(root: Path) -> Iterator[None]:
    """Alone: nobody publishes meanwhile."""
    yield from _through_gate(root, fcntl.LOCK_EX)


def _through_gate(root: Path, mode: int) -> Iterator[None]:
    lock = open_lock(root / "lock")
    try:
        gate = open_lock(root / "gate")
        try:
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(lock, mode)
        finally:
            os.close(gate)
        yield
    finally:
        os.close(lock)


def open_lock(path: Path) -> int:
    """A close-on-exec descriptor of the lock file, made if it is missing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(fd: int) -> bool:
    """Whether this description now holds the lock exclusively; never waits."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Whether some process holds the lock at ``path``; False if the file is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(fd)
    finally:
        os.close(fd)
