"""Random layers and random work in a container, for Hypothesis.

Names come from a small set, so that layers and operations meet each other all the time.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EXDEV
from pathlib import Path

from erofs_trees import ACL, CAPABILITY
from hypothesis import strategies as st
from tarkit import Member, directory, hardlink, opaque, symlink, whiteout

_NAMES = (b"a", b"b", b"a-", b"\xff")
PATHS = tuple(
    b"/".join(parts)
    for parts in (
        *((one,) for one in _NAMES),
        *((one, two) for one in _NAMES[:3] for two in _NAMES),
        *((one, two, three) for one in _NAMES[:2] for two in _NAMES[:2] for three in _NAMES[:3]),
    )
)
_paths = st.sampled_from(PATHS)
_CONTENTS = (b"", b"x", b"y", b"z" * 5000, bytes(9000))
_MODES = (0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777, 0)
_TARGETS = (b"a", b"a/b", b"/b", b"../a", b"nothing")
_XATTRS: tuple[dict[bytes, bytes], ...] = (
    {}, {}, {b"user.x": b"1"}, {b"user.x": b"2", b"user.y": b"\0"},
    {b"security.capability": CAPABILITY}, {b"system.posix_acl_access": ACL},
)  # fmt: skip
_members = st.builds(
    lambda path, kind, content, mode, uid, target, xattrs, mtime: (
        path, kind, content, mode, uid, target, xattrs, mtime
    ),
    _paths, st.sampled_from("fffffdddddslhcpwwwwo"), st.sampled_from(_CONTENTS),
    st.sampled_from(_MODES), st.sampled_from((0, 0, 5, 3_000_000)), st.sampled_from(_TARGETS),
    st.sampled_from(_XATTRS), st.integers(0, 300),
)  # fmt: skip


@st.composite
def layers(draw: st.DrawFn, *, most: int = 14, explicit: bool = False) -> tuple[Member, ...]:
    """One layer without duplicates, in an order of its own.

    ``explicit``: every parent has an entry, so that the layer says the same whatever is below.
    """
    made: dict[bytes, Member] = {}
    markers: dict[bytes, Member] = {}
    directories: set[bytes] = set()
    for path, kind, content, mode, uid, target, xattrs, mtime in draw(
        st.lists(_members, max_size=most)
    ):
        parents = _parents(path)
        if kind == "w":
            if not explicit or not parents or parents[-1] in directories:
                markers[b"w" + path] = whiteout(path)
            continue
        if kind == "o":
            if not explicit or path in directories:
                markers[b"o" + path] = opaque(path)
            continue
        in_the_way = [p for p in parents if p in made and p not in directories]
        if path in made or in_the_way or (kind != "d" and path in directories):
            continue
        if kind == "l" and not (files := [p for p in made if made[p].typeflag == b"0"]):
            continue
        for parent in parents:
            directories.add(parent)
            if explicit and parent not in made:
                made[parent] = directory(parent + b"/", mtime=len(parent))
        on_file = dict(xattrs)
        if b"system.posix_acl_access" in on_file:
            mode = mode & 0o7000 | 0o674  # what the ACL says
        if kind == "f":
            made[path] = Member(path, b"0", content, mode, uid, uid, mtime, xattrs=on_file)
        elif kind == "d":
            directories.add(path)
            on_file.pop(b"security.capability", None)
            made[path] = directory(path + b"/", mode, uid, 0, mtime=mtime, xattrs=on_file)
        elif kind == "s":
            made[path] = symlink(path, target)
        elif kind == "l":
            made[path] = hardlink(path, files[len(path) % len(files)])
        elif kind == "c":
            made[path] = Member(path, b"3", mode=mode, device=(1, 3))
        elif kind == "p":
            made[path] = Member(path, b"6", mode=mode, uid=uid)
    return tuple(draw(st.permutations([*made.values(), *markers.values()])))


def _parents(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[:count]) for count in range(1, len(parts))]


# -- work in a container ---------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """``verb`` on one or two paths, varied by a number. What the kernel refuses is skipped."""

    verb: str
    path: bytes
    other: bytes
    number: int


_VERBS = (
    "write", "write", "append", "truncate", "sparse", "mkdir", "mkdir", "rmdir", "remove", "remove",
    "rename", "rename", "rename", "link", "link", "symlink", "chmod", "chown", "utime", "setxattr",
    "removexattr", "mkfifo", "mknod", "replace", "chmod_back", "rename_back", "link_over", "touch",
    "overlay_xattr", "exchange", "open", "acl",
)  # fmt: skip
operations = st.lists(
    st.builds(Operation, st.sampled_from(_VERBS), _paths, _paths, st.integers(0, 7)), max_size=25
)


def work(top: Path, todo: list[Operation]) -> bool:
    """Does everything in the container; whether a rename had to be a copy."""
    copied = False
    for operation in todo:
        path = os.path.join(os.fsencode(top), operation.path)
        other = os.path.join(os.fsencode(top), operation.other)
        try:
            getattr(_Verbs, operation.verb)(path, other, operation.number)
        except (shutil.Error, OSError) as error:
            copied = copied or getattr(error, "errno", None) == EXDEV
    return copied


class _Verbs:
    """Each takes the path, the other path and the number."""

    @staticmethod
    def write(path: bytes, _: bytes, number: int) -> None:
        _put(path, _CONTENTS[number % len(_CONTENTS)])

    @staticmethod
    def append(path: bytes, _: bytes, number: int) -> None:
        with _opened(path, os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, b"more" * number)

    @staticmethod
    def truncate(path: bytes, _: bytes, number: int) -> None:
        with _opened(path, os.O_WRONLY) as fd:
            os.ftruncate(fd, number)

    @staticmethod
    def sparse(path: bytes, _: bytes, number: int) -> None:
        with _opened(path, os.O_WRONLY | os.O_CREAT) as fd:
            os.ftruncate(fd, (20 << 20) + number)
            os.pwrite(fd, b"data", number << 20)

    @staticmethod
    def mkdir(path: bytes, _: bytes, number: int) -> None:
        os.mkdir(path, _MODES[number % len(_MODES)])

    @staticmethod
    def rmdir(path: bytes, _: bytes, number: int) -> None:
        os.rmdir(path)

    @staticmethod
    def remove(path: bytes, _: bytes, number: int) -> None:
        _remove(path)

    @staticmethod
    def rename(path: bytes, other: bytes, number: int) -> None:
        os.rename(path, other)

    @staticmethod
    def exchange(path: bytes, other: bytes, number: int) -> None:
        top = path[: path.index(b"/merged/") + 8]
        os.rename(path, top + b"spare")
        os.rename(other, path)
        os.rename(top + b"spare", other)

    @staticmethod
    def link(path: bytes, other: bytes, number: int) -> None:
        os.link(path, other, follow_symlinks=False)

    @staticmethod
    def link_over(path: bytes, other: bytes, number: int) -> None:
        os.unlink(other)
        os.link(path, other, follow_symlinks=False)

    @staticmethod
    def symlink(path: bytes, _: bytes, number: int) -> None:
        os.symlink(_TARGETS[number % len(_TARGETS)], path)

    @staticmethod
    def chmod(path: bytes, _: bytes, number: int) -> None:
        _refuse_links(path)
        os.chmod(path, _MODES[number % len(_MODES)])

    @staticmethod
    def chmod_back(path: bytes, _: bytes, number: int) -> None:
        _refuse_links(path)
        mode = os.lstat(path).st_mode & 0o7777
        os.chmod(path, 0o700)
        os.chmod(path, mode)

    @staticmethod
    def chown(path: bytes, _: bytes, number: int) -> None:
        os.lchown(path, number, 2**32 - 2 - number)

    @staticmethod
    def utime(path: bytes, _: bytes, number: int) -> None:
        os.utime(path, ns=(0, (number - 3) * 1_500_000_000), follow_symlinks=False)

    @staticmethod
    def touch(path: bytes, _: bytes, number: int) -> None:
        os.utime(path, follow_symlinks=False)

    @staticmethod
    def setxattr(path: bytes, _: bytes, number: int) -> None:
        os.setxattr(path, b"user.%d" % (number % 3), b"v%d" % number, follow_symlinks=False)

    @staticmethod
    def removexattr(path: bytes, _: bytes, number: int) -> None:
        os.removexattr(path, (b"user.x", b"user.y", b"user.0")[number % 3], follow_symlinks=False)

    @staticmethod
    def overlay_xattr(path: bytes, _: bytes, number: int) -> None:
        name = (b"opaque", b"redirect", b"metacopy", b"whiteout")[number % 4]
        os.setxattr(path, b"trusted.overlay." + name, b"y", follow_symlinks=False)

    @staticmethod
    def acl(path: bytes, _: bytes, number: int) -> None:
        _Verbs.chmod_back(path, _, number)  # copied up: see the contract test of ACLs
        os.setxattr(path, b"system.posix_acl_access", ACL, follow_symlinks=False)

    @staticmethod
    def mkfifo(path: bytes, _: bytes, number: int) -> None:
        os.mkfifo(path, 0o600)

    @staticmethod
    def mknod(path: bytes, _: bytes, number: int) -> None:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3 + number % 2 * 2))

    @staticmethod
    def replace(path: bytes, other: bytes, number: int) -> None:
        was_directory = stat.S_ISDIR(os.lstat(path).st_mode)
        _remove(path)
        if was_directory and number % 2:
            _put(path, b"replaced")
        elif number % 4 == 2:
            os.symlink(b"a", path)
        else:
            os.mkdir(path)
            _put(path + b"/a", b"inside")

    @staticmethod
    def rename_back(path: bytes, _: bytes, number: int) -> None:
        os.rename(path, path + b".tmp")
        os.rename(path + b".tmp", path)

    @staticmethod
    def open(path: bytes, _: bytes, number: int) -> None:
        with _opened(path, os.O_RDWR):
            pass


def _put(path: bytes, content: bytes) -> None:
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        os.write(fd, content)


@contextmanager
def _opened(path: bytes, flags: int) -> Iterator[int]:
    """A regular file; never a device or a fifo, however it came there."""
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise OSError("no regular file")
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def _remove(path: bytes) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _refuse_links(path: bytes) -> None:
    if stat.S_ISLNK(os.lstat(path).st_mode):
        raise OSError("a symlink may lead out of the container")
