"""What a container changed: its upper directory and its parent tree make a new tree.

One read-only walk of the upper directory; the image is never walked and never mounted. Every
directory is entered by its descriptor, so a container that runs meanwhile cannot lead the walk
out. A file that changes while it is read fails the whole capture: nothing is skipped or guessed.

The upper directory holds what was copied up, which is more than what changed; whatever equals its
parent is the parent's own node in the result, so that ``formats.changes.diff`` drops it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NoReturn, Protocol, Self

from layerstore.errors import ConflictError, FormatError
from layerstore.formats import sparse
from layerstore.formats.changes import floor_to_seconds
from layerstore.formats.entries import NANOSECOND, Extents, Kind, Xattrs
from layerstore.formats.streams import CHUNK
from layerstore.formats.tree import RESERVED_NAME, Node, Tree, show
from layerstore.formats.whiteout import is_reserved
from layerstore.formats.xattrs import TRUSTED_OVERLAY, USER_OVERLAY, emitted_xattrs
from layerstore.names import Digest
from layerstore.store.objects import canonical_extents

MAX_DEPTH = 900
"""Directories held open at once, one for each level."""

_SMALL = 1 << 20
_PATH_MAX = 4096
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Times:
    """Which times new content gets, so that the same step makes the same layer on any day.

    Times at or after ``made_since_ns`` become ``made_at``; times after ``latest`` become it. Both
    in seconds. None: times stay as they are.
    """

    made_since_ns: int | None = None
    made_at: int = 0
    latest: int | None = None

    def of(self, mtime_ns: int) -> int:
        if self.made_since_ns is not None and mtime_ns >= self.made_since_ns:
            return self.made_at * NANOSECOND
        if self.latest is not None and mtime_ns > self.latest * NANOSECOND:
            return self.latest * NANOSECOND
        return floor_to_seconds(mtime_ns)


AS_THEY_ARE = Times()


class Ids(Protocol):
    """From the ids on disk to the container's. ``parent`` is what the image has at that place.

    An id that has no name in the container is an error, never "nobody".
    """

    def owner(self, uid: int, gid: int, parent: Node | None) -> tuple[int, int]: ...
    def uid(self, uid: int) -> int: ...


class SameIds:
    """The container's ids are those on disk."""

    def owner(self, uid: int, gid: int, parent: Node | None) -> tuple[int, int]:
        return uid, gid

    def uid(self, uid: int) -> int:
        return uid


SAME_IDS = SameIds()


class ObjectSink(Protocol):
    """Takes one content that is too large for memory."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...
    def write(self, chunk: bytes) -> None: ...
    def finish(self) -> Digest: ...


class Contents(Protocol):
    """Where new contents go: a store's transaction, or nowhere."""

    def stage(self, content: bytes) -> Digest: ...
    def writer(self, extents: Extents | None = None, size: int = 0) -> ObjectSink: ...
    def take(
        self, path: bytes, digest: Digest, size: int, content: bytes | None = None
    ) -> None: ...


class Hashed:
    """Contents that are only told apart, and kept nowhere: for looking at changes."""

    last: bytes | None = None
    """The content of the last small file."""

    def stage(self, content: bytes) -> Digest:
        self.last = content
        return Digest.of(content)

    def take(self, path: bytes, digest: Digest, size: int, content: bytes | None = None) -> None:
        pass

    def writer(self, extents: Extents | None = None, size: int = 0) -> _Hasher:
        return _Hasher(sparse.emit_map(size, extents) if extents is not None else b"")


class _Hasher:
    def __init__(self, head: bytes) -> None:
        self._hash = hashlib.sha256(head)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def write(self, chunk: bytes) -> None:
        self._hash.update(chunk)

    def finish(self) -> Digest:
        return Digest("sha256:" + self._hash.hexdigest())


@dataclass(slots=True)
class _Place:
    """A directory of the upper directory, and what it merges with below."""

    path: bytes
    fd: int
    low: Node | None
    node: Node
    names: list[bytes]
    has_marked_whiteouts: bool = False
    """Whiteouts may be files with an xattr here (overlayfs.rst, "Whiteouts")."""


def capture(
    upper: str | os.PathLike[str],
    parent: Tree,
    contents: Contents,
    *,
    xattr_prefix: bytes | None,
    stubs: Collection[bytes] = (),
    times: Times = AS_THEY_ARE,
    ids: Ids = SAME_IDS,
    takes: bool = False,
    warn: Callable[[str], None] = lambda text: None,
) -> Tree:
    """The tree that the container shows. New contents are given to ``contents``.

    With ``takes`` nobody needs the upper directory any more, and its files may be moved.

    ``xattr_prefix`` says how this upper directory was mounted; None: it never was one, so nothing
    in it is a mark of overlayfs, and a device 0:0 has no meaning. ``stubs`` are the paths of mount
    points that the launcher made. Raises FormatError for what no layer can say, ConflictError if
    a file changes meanwhile.
    """
    return _Capture(parent, contents, xattr_prefix, stubs, times, ids, takes, warn).run(upper)


class _Capture:
    def __init__(
        self,
        parent: Tree,
        contents: Contents,
        prefix: bytes | None,
        stubs: Collection[bytes],
        times: Times,
        ids: Ids,
        takes: bool,
        warn: Callable[[str], None],
    ) -> None:
        self._takes = takes
        self._upper = b""
        self._parent = parent
        self._contents = contents
        self._is_upper = prefix is not None
        # A plain directory's own overlay xattrs are left out below, so no mark is ever found.
        self._prefix = TRUSTED_OVERLAY if prefix is None else prefix
        self._bookkeeping = frozenset(self._prefix + mark for mark in _BOOKKEEPING)
        self._stubs = frozenset(stubs)
        self._times = times
        self._ids = ids
        self._warn = warn
        self._linked: dict[tuple[int, int], Node] = {}

    def run(self, upper: str | os.PathLike[str]) -> Tree:
        self._upper = os.fsencode(upper)
        fd = os.open(upper, _DIRECTORY)
        low = self._parent.root
        xattrs = self._xattrs(fd)
        root = self._directory_node(fd, b"", low, xattrs, low)
        is_marked = xattrs.get(self._prefix + b"opaque") == b"x"
        stack = [_Place(b"", fd, low, root, self._names(fd, b""), is_marked)]
        try:
            while stack:
                place = stack[-1]
                if not place.names:
                    os.close(stack.pop().fd)
                    continue
                inner = self._take(place, place.names.pop())
                if inner is not None:
                    if len(stack) >= MAX_DEPTH:
                        os.close(inner.fd)
                        self._refuse(inner.path, f"is more than {MAX_DEPTH} directories deep")
                    stack.append(inner)
        finally:
            for place in stack:
                os.close(place.fd)
        return Tree(root)

    def _names(self, fd: int, path: bytes) -> list[bytes]:
        names = sorted((os.fsencode(name) for name in os.listdir(fd)), reverse=True)
        if not path and RESERVED_NAME in names:
            self._refuse(RESERVED_NAME, "is a reserved name")
        return names

    def _refuse(self, path: bytes, why: str) -> NoReturn:
        raise FormatError(f"{show(path)} {why}, and no layer can say that", hint="remove it there")

    # -- one name --------------------------------------------------------------------------

    def _take(self, place: _Place, name: bytes) -> _Place | None:
        """Puts one name into the new directory; a directory is given back to be entered."""
        path = place.path + b"/" + name if place.path else name
        status = os.stat(name, dir_fd=place.fd, follow_symlinks=False)
        children = _children(place.node)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFCHR and status.st_rdev == 0:
            if not self._is_upper:
                self._refuse(path, "is a device 0:0, which overlayfs takes for a whiteout")
            children.pop(name, None)
            return None
        if is_reserved(name):
            self._refuse(path, "has a name that means a whiteout")
        if path in self._stubs and not self._below(place, name):
            if kind == stat.S_IFREG and status.st_size == 0:
                return None
            if kind == stat.S_IFDIR and not self._has_changes(place.fd, name, path):
                return None
        if kind == stat.S_IFDIR:
            return self._enter(place, name, path)
        if kind == stat.S_IFSOCK:
            children.pop(name, None)
            return None
        xattrs = self._raw_xattrs(place.fd, name)
        is_marked = place.has_marked_whiteouts and self._prefix + b"whiteout" in xattrs
        if is_marked and kind == stat.S_IFREG and status.st_size == 0:
            children.pop(name, None)
            return None
        children[name] = self._leaf(place, name, path, status, xattrs)
        return None

    def _has_changes(self, parent_fd: int, name: bytes, path: bytes) -> bool:
        """Whether a stub directory holds anything but stubs."""
        fd = os.open(name, _DIRECTORY, dir_fd=parent_fd)
        try:
            return any(
                path + b"/" + os.fsencode(child) not in self._stubs for child in os.listdir(fd)
            )
        finally:
            os.close(fd)

    def _below(self, place: _Place, name: bytes) -> Node | None:
        """What the lower directory has at this name."""
        return place.low.children.get(name) if place.low and place.low.children else None

    def _enter(self, place: _Place, name: bytes, path: bytes) -> _Place:
        fd = os.open(name, _DIRECTORY, dir_fd=place.fd)
        try:
            xattrs = self._xattrs(fd)
            low = self._low_of(place, name, path, xattrs)
            if low is not None and low.kind is not Kind.DIRECTORY:
                low = None
            same_place = _children(place.node).get(name)
            if same_place is not None and same_place.kind is not Kind.DIRECTORY:
                same_place = None
            node = self._directory_node(fd, path, low, xattrs, same_place)
            _children(place.node)[name] = node
            is_marked = xattrs.get(self._prefix + b"opaque") == b"x"
            return _Place(path, fd, low, node, self._names(fd, path), is_marked)
        except BaseException:
            os.close(fd)
            raise

    def _low_of(
        self, place: _Place, name: bytes, path: bytes, xattrs: dict[bytes, bytes]
    ) -> Node | None:
        """Where the lower half of a directory or metacopy file is, by the marks it carries."""
        if xattrs.get(self._prefix + b"opaque") == b"y":
            return None
        redirect = xattrs.get(self._prefix + b"redirect")
        if redirect is None:
            return self._below(place, name)
        if redirect.startswith(b"/"):
            found = self._parent.lookup(redirect.strip(b"/"))
        else:
            found = self._below(place, redirect)
        if found is None:
            self._refuse(path, f"was moved from {show(redirect)}, which its image does not have")
        return found

    def _directory_node(
        self,
        fd: int,
        path: bytes,
        low: Node | None,
        xattrs: dict[bytes, bytes],
        same_place: Node | None,
    ) -> Node:
        status = os.fstat(fd)
        owner = self._ids.owner(status.st_uid, status.st_gid, low or same_place)
        node = Node(
            Kind.DIRECTORY,
            stat.S_IMODE(status.st_mode),
            *owner,
            status.st_mtime_ns,
            xattrs=self._emitted(xattrs, path),
        )
        if same_place is None or node.mtime_ns != same_place.mtime_ns:
            node.mtime_ns = self._times.of(node.mtime_ns)
        if low is not None and low.children is not None:
            node.children = dict(low.children)
        return node

    # -- what is no directory --------------------------------------------------------------

    def _leaf(
        self,
        place: _Place,
        name: bytes,
        path: bytes,
        status: os.stat_result,
        xattrs: dict[bytes, bytes],
    ) -> Node:
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and (known := self._linked.get(key)) is not None:
            known.linked = True
            return known
        old = _children(place.node).get(name)
        node = self._bare_node(place, name, path, status, xattrs, old)
        if node.kind is Kind.FILE:
            self._fill(node, place, name, path, status, xattrs, old)
        if old is not None and node.same_as(old) and status.st_nlink == 1 and not old.linked:
            return old
        if old is None or node.mtime_ns != old.mtime_ns:
            node.mtime_ns = self._times.of(node.mtime_ns)
        if status.st_nlink > 1:
            self._linked[key] = node
        return node

    def _bare_node(
        self,
        place: _Place,
        name: bytes,
        path: bytes,
        status: os.stat_result,
        xattrs: dict[bytes, bytes],
        old: Node | None,
    ) -> Node:
        kind = _KINDS[stat.S_IFMT(status.st_mode)]
        link = b""
        rdev = (0, 0)
        if kind is Kind.SYMLINK:
            link = os.readlink(name, dir_fd=place.fd)
        elif kind is Kind.CHAR or kind is Kind.BLOCK:
            rdev = (os.major(status.st_rdev), os.minor(status.st_rdev))
        return Node(
            kind,
            stat.S_IMODE(status.st_mode),
            *self._ids.owner(status.st_uid, status.st_gid, old),
            status.st_mtime_ns,
            link=link,
            rdev=rdev,
            xattrs=self._emitted(xattrs, path),
        )

    def _fill(
        self,
        node: Node,
        place: _Place,
        name: bytes,
        path: bytes,
        status: os.stat_result,
        xattrs: dict[bytes, bytes],
        old: Node | None,
    ) -> None:
        """The size and digest of a regular file."""
        node.size = status.st_size
        if self._prefix + b"metacopy" in xattrs:
            source = self._low_of(place, name, path, xattrs)
            if source is None or source.kind is not Kind.FILE or source.size != node.size:
                self._refuse(path, "has its content in a lower file that is not there")
            node.digest, node.extents = source.digest, source.extents
            return
        node.digest, node.extents = self._content(place.fd, name, path, status)

    def _content(
        self, dir_fd: int, name: bytes, path: bytes, status: os.stat_result
    ) -> tuple[Digest | None, Extents | None]:
        if not status.st_size:
            return None, None
        fd = _open_file(name, dir_fd)
        try:
            before = os.fstat(fd)
            if (before.st_ino, before.st_dev) != (status.st_ino, status.st_dev):
                self._changed(path)
            name_on_disk = self._upper + b"/" + path
            takes = self._takes and before.st_nlink == 1 and len(name_on_disk) < _PATH_MAX
            hashed = Hashed()
            sink: Contents = hashed if takes else self._contents
            digest, extents = self._stage(sink, fd, before.st_size, path)
            after = os.fstat(fd)
            if _stamp(before) != _stamp(after) or _stamp(before) != _stamp(status):
                self._changed(path)
            if takes:
                self._contents.take(name_on_disk, digest, before.st_size, hashed.last)
            return digest, extents
        finally:
            os.close(fd)

    def _changed(self, path: bytes) -> NoReturn:
        raise ConflictError(
            f"{show(path)} changed while it was read", hint="stop the container, and try again"
        )

    def _stage(
        self, sink: Contents, fd: int, size: int, path: bytes
    ) -> tuple[Digest, Extents | None]:
        if size <= _SMALL:
            content = os.read(fd, size + 1)
            while len(content) < size and (more := os.read(fd, size - len(content))):
                content += more
            if len(content) != size:
                self._changed(path)
            return sink.stage(content), None
        extents: Extents | None = None
        if size >= sparse.SPARSE_HOLES:
            found = canonical_extents(fd, size)
            if sparse.is_sparse(size, found):
                extents = found
                holes = size - sum(length for _, length in found)
                self._warn(f"{show(path)} is sparse: {holes} of its {size} bytes are zeros")
        with sink.writer(extents, size) as writer:
            for offset, length in ((0, size),) if extents is None else extents:
                for start in range(offset, offset + length, CHUNK):
                    chunk = os.pread(fd, min(CHUNK, offset + length - start), start)
                    if len(chunk) != min(CHUNK, offset + length - start):
                        self._changed(path)
                    writer.write(chunk)
            return writer.finish(), extents

    # -- xattrs ----------------------------------------------------------------------------

    def _emitted(self, xattrs: dict[bytes, bytes], path: bytes) -> Xattrs:
        if not xattrs:
            return ()
        found = emitted_xattrs(xattrs, overlay_prefix=self._prefix, uid=self._ids.uid)
        for name, value in found:
            if not value:
                # An empty PAX record means "no such record" (POSIX.1-2017, pax(1)).
                label = name.decode("utf-8", "backslashreplace")
                self._warn(f"{show(path)} has the xattr {label} without a value: it is left out")
        return tuple(pair for pair in found if pair[1])

    def _xattrs(self, fd: int) -> dict[bytes, bytes]:
        return self._read_xattrs(fd, follow=True)

    def _raw_xattrs(self, dir_fd: int, name: bytes) -> dict[bytes, bytes]:
        """Through the directory's descriptor: a device or fifo is never opened."""
        return self._read_xattrs(b"/proc/self/fd/%d/%s" % (dir_fd, name), follow=False)

    def _read_xattrs(self, where: int | bytes, *, follow: bool) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for xattr in os.listxattr(where, follow_symlinks=follow):
            name = os.fsencode(xattr)
            if not self._is_upper:
                # It may once have been some other overlay's: its marks mean nothing here.
                if name.startswith((TRUSTED_OVERLAY, USER_OVERLAY)):
                    continue
            elif name in self._bookkeeping:
                continue
            found[name] = os.getxattr(where, xattr, follow_symlinks=follow)
        return found


_BOOKKEEPING = (b"origin", b"impure", b"nlink", b"upper", b"uuid", b"protattr")
"""Overlayfs' marks that say nothing of a change. Nearly every copied-up file has an origin."""

_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHAR,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}


def _children(node: Node) -> dict[bytes, Node]:
    if node.children is None:
        raise TypeError("a directory node has children")
    return node.children


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _open_file(name: bytes, dir_fd: int) -> int:
    try:
        return os.open(name, _FILE, dir_fd=dir_fd)
    except PermissionError:  # O_NOATIME is for owners
        return os.open(name, _FILE & ~os.O_NOATIME, dir_fd=dir_fd)
