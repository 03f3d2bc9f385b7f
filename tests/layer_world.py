"""Real overlay mounts for tests of layers, and one form in which a tree and a mount compare.

Mounts are made by one thread that has a mount namespace of its own: no other thread, process or
test ever sees them, and they are gone with it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import tarkit

from layerstore import rootfs
from layerstore.formats.entries import Entry, Kind
from layerstore.formats.tree import Node, Tree
from layerstore.formats.xattrs import TRUSTED_OVERLAY
from layerstore.kernel import mounts, namespaces
from layerstore.names import DiffID, Digest
from layerstore.store.layers import stage_entries, stage_tar
from layerstore.store.store import Store

_CLONE_NEWNS = 0x20000
WHOLE = 64 << 20
"""Larger files are told apart by their data and where it is."""

NEW = 7
"""Seconds: the time that content of the container gets in a capture of these tests."""
MADE_SINCE_NS = 1_700_000_000 * 10**9


class Driver(Protocol):
    """What shows a stack of layers: a line in ``DRIVERS`` puts one under every contract test."""

    name: str
    xattr_prefix: bytes

    def mount(
        self, store: Store, diff_ids: tuple[DiffID, ...], upper: Path | None, work: Path | None,
        target: Path, *, metacopy: bool = False, redirect: bool = False, index: bool = False,
    ) -> None: ...  # fmt: skip


class _Shipped:
    """A driver that ships with layerstore, with its own mount options changed where a test says."""

    xattr_prefix = TRUSTED_OVERLAY

    def __init__(self, name: str) -> None:
        self.name = name

    def mount(
        self, store: Store, diff_ids: tuple[DiffID, ...], upper: Path | None, work: Path | None,
        target: Path, *, metacopy: bool = False, redirect: bool = False, index: bool = False,
    ) -> None:  # fmt: skip
        spec = rootfs.overlay(store, diff_ids, driver=self.name, upper=upper, work=work)
        if metacopy or redirect or index:
            redirect_dir = "on" if redirect or metacopy else spec.redirect_dir
            spec = spec.replace(
                metacopy=metacopy or spec.metacopy, redirect_dir=redirect_dir, index=index
            )
        # A device in a random layer must never be the host's.
        mounts.mount_overlay(spec, target, attributes=mounts.NODEV | mounts.NOSUID)


DRIVERS: tuple[Driver, ...] = (_Shipped(rootfs.STACKED), _Shipped(rootfs.COMPOSED))

_T = TypeVar("_T")


def _alone() -> None:
    namespaces.unshare(_CLONE_NEWNS)
    mounts.make_private()


_executor: ThreadPoolExecutor | None = None


def in_namespace(work: Callable[[], _T]) -> _T:
    """The result of ``work``, done where mounts may be made."""
    global _executor
    if _executor is None:
        _executor = ThreadPoolExecutor(1, initializer=_alone)
    return _executor.submit(work).result()


def leave_namespace() -> None:
    """The thread that ``in_namespace`` works in is gone; the next call makes another."""
    global _executor
    if _executor is not None:
        _executor.shutdown()
        _executor = None


class Fact(NamedTuple):
    """What is at one path. ``links``: every path of the same inode, if there are more."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    content: str | None = None
    link: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    links: tuple[bytes, ...] = ()


View = dict[bytes, Fact]


class World:
    """A store in a directory of its own, with one mount at a time."""

    def __init__(self, root: Path, driver: Driver) -> None:
        self.root = root
        self.driver = driver
        self.store = Store.open(root / "store")
        self._count = 0

    def import_tar(
        self, raw: bytes | Iterable[tarkit.Member], warn: Callable[[str], None] = lambda text: None
    ) -> DiffID:
        """A layer of an archive, published."""
        if not isinstance(raw, bytes):
            raw = tarkit.archive(raw)
        with self.store.transaction() as transaction:
            stored = stage_tar(transaction, [raw], where="test", warn=warn)
            transaction.publish()
        return stored.diff_id

    def import_entries(self, entries: list[Entry]) -> DiffID:
        with self.store.transaction() as transaction:
            stored = stage_entries(transaction, entries)
            transaction.publish()
        return stored.diff_id

    def put(self, content: bytes) -> Digest:
        """A published object."""
        with self.store.transaction() as transaction:
            digest = transaction.stage(content)
            transaction.publish()
        return digest

    @contextmanager
    def mounted(self, diff_ids: tuple[DiffID, ...], **options: bool) -> Iterator[Path]:
        """The stack, read-only. Only inside ``in_namespace``."""
        target = Path(tempfile.mkdtemp(dir=self.root))
        self.driver.mount(self.store, diff_ids, None, None, target, **options)
        try:
            yield target
        finally:
            mounts.umount(target)
            target.rmdir()

    @contextmanager
    def container(self) -> Iterator[Container]:
        self._count += 1
        container = Container(self, self.root / f"container-{self._count}")
        try:
            yield container
        finally:
            shutil.rmtree(container.folder, ignore_errors=True)


class Container:
    """An upper directory, to be mounted and read."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.upper, self.work, self.merged = (folder / name for name in ("upper", "work", "merged"))
        for path in (self.upper, self.work, self.merged):
            path.mkdir(parents=True)

    @contextmanager
    def mounted(self, diff_ids: tuple[DiffID, ...], **options: bool) -> Iterator[Path]:
        """Only inside ``in_namespace``."""
        self.world.driver.mount(
            self.world.store, diff_ids, self.upper, self.work, self.merged, **options
        )
        try:
            yield self.merged
        finally:
            mounts.umount(self.merged)


# -- views -----------------------------------------------------------------------------------


def view_of_mount(top: Path) -> View:
    """Everything below a directory, walked by descriptors: paths may be of any length."""
    found: View = {}
    inodes: dict[tuple[int, int], list[bytes]] = {}
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found[b""] = _fact(fd, b".")
        _walk(fd, b"", found, inodes)
    finally:
        os.close(fd)
    for paths in inodes.values():
        if len(paths) > 1:
            for path in paths:
                found[path] = found[path]._replace(links=tuple(sorted(paths)))
    return found


def _walk(fd: int, path: bytes, found: View, inodes: dict[tuple[int, int], list[bytes]]) -> None:
    stack = [(os.dup(fd), path, sorted(map(os.fsencode, os.listdir(fd))))]
    while stack:
        here, at, names = stack[-1]
        if not names:
            os.close(here)
            stack.pop()
            continue
        name = names.pop()
        below = at + b"/" + name if at else name
        if stat.S_ISSOCK(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
            continue  # no layer can say one
        fact = found[below] = _fact(here, name)  # a ghost raises FileNotFoundError here
        if fact.kind is Kind.DIRECTORY:
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            stack.append((inner, below, sorted(map(os.fsencode, os.listdir(inner)))))
        else:
            status = os.stat(name, dir_fd=here, follow_symlinks=False)
            inodes.setdefault((status.st_dev, status.st_ino), []).append(below)


_KINDS = {
    stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHAR, stat.S_IFBLK: Kind.BLOCK, stat.S_IFIFO: Kind.FIFO,
}  # fmt: skip


def _fact(fd: int, name: bytes) -> Fact:
    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
    path = b"/proc/self/fd/%d/%b" % (fd, name)
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    is_file = kind is Kind.FILE
    xattrs = {
        os.fsencode(xattr): os.getxattr(path, xattr, follow_symlinks=False)
        for xattr in os.listxattr(path, follow_symlinks=False)
    }
    return Fact(
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_size if is_file else 0,
        _content(path, status.st_size) if is_file else None,
        os.readlink(name, dir_fd=fd) if kind is Kind.SYMLINK else b"",
        (os.major(status.st_rdev), os.minor(status.st_rdev))
        if kind in (Kind.CHAR, Kind.BLOCK) else (0, 0),
        tuple(sorted((n, v) for n, v in xattrs.items() if _is_said(n) and v)),
    )  # fmt: skip


def _is_said(xattr: bytes) -> bool:
    """Whether a layer says it (reference 3.12)."""
    if xattr in (b"security.selinux", b"security.ima", b"security.evm", b"system.nfs4_acl"):
        return False
    return not xattr.startswith(b"trusted.") or xattr.startswith(TRUSTED_OVERLAY)


def _content(path: bytes | Path, size: int) -> str:
    """A name for a file's bytes that does not depend on where its holes are."""
    with open(path, "rb", buffering=0) as file:
        hasher = hashlib.sha256(b"%d:" % size)
        offset = 0
        while offset < size:
            try:
                offset = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:
                break
            offset -= offset % 4096
            block = os.pread(file.fileno(), 4096, offset)
            if block.strip(b"\0"):
                hasher.update(b"%d:" % offset + block)
            offset += 4096
        return hasher.hexdigest()


def view_of_tree(tree: Tree, store: Store) -> View:
    """What a mount of the tree must show."""
    names: dict[int, list[bytes]] = {}
    found: View = {}
    for path, node in [(b"", tree.root), *tree.walk()]:
        if node.kind is not Kind.DIRECTORY:
            names.setdefault(id(node), []).append(path)
        found[path] = _fact_of_node(node, store)
    for paths in names.values():
        if len(paths) > 1:
            for path in paths:
                found[path] = found[path]._replace(links=tuple(sorted(paths)))
    return found


def _fact_of_node(node: Node, store: Store) -> Fact:
    content = None
    if node.kind is Kind.FILE:
        if node.digest is None:
            assert node.size == 0
            content = hashlib.sha256(b"0:").hexdigest()
        else:
            path = store.layout.object(node.digest)
            assert path.stat().st_size == node.size
            content = _content(path, node.size)
    return Fact(
        node.kind, 0o777 if node.kind is Kind.SYMLINK else node.mode, node.uid, node.gid,
        node.mtime_ns, node.size, content, node.link, node.rdev,
        tuple(pair for pair in node.xattrs if pair[1]),
    )  # fmt: skip


def differences(expected: View, found: View) -> list[str]:
    """Where two views differ, for people; empty if they are the same."""
    lines = []
    for path in sorted(expected.keys() | found.keys()):
        mine, theirs = expected.get(path), found.get(path)
        if mine is None or theirs is None:
            lines.append(f"{path!r}: expected {mine}, found {theirs}")
            continue
        lines += [
            f"{path!r} {name}: expected {one!r}, found {other!r}"
            for name, one, other in zip(Fact._fields, mine, theirs, strict=True)
            if one != other
        ]
    return lines


def captured_times(shown: View, below: View) -> View:
    """The view as a layer says it over ``below``: new times are ``NEW``, others floored."""
    expected = {}
    for path, fact in shown.items():
        mtime_ns = fact.mtime_ns
        if path not in below or below[path].mtime_ns != mtime_ns:
            mtime_ns = NEW * 10**9 if mtime_ns >= MADE_SINCE_NS else mtime_ns - mtime_ns % 10**9
        expected[path] = fact._replace(mtime_ns=mtime_ns)
    return expected


@contextmanager
def world_in_scratch(driver: Driver) -> Iterator[World]:
    root = Path(tempfile.mkdtemp(prefix="layerstore-test-"))
    try:
        yield World(root, driver)
    finally:
        with suppress(OSError):
            shutil.rmtree(root)
