"""Layers as directories on disk: the lower directories of the stacked driver.

A layer is written out as the difference that it makes in its stack: every parent is there with the
attributes that the stack gives it, hard links and paths through symlinks are resolved, and a
whiteout is written only where it hides something. So no lower directory shows a ghost, and none
depends on how overlayfs reads what is below it. The directory is named after exactly that
difference: stacks in which a layer makes the same difference share it.

``trees/<key>/`` is one such directory; ``derived/stack-<chain id>.<flavour>`` has a line with the
layers of a stack and one with the keys of its directories, both bottom first, so that mounting it
again reads no layer, and a collector knows what is in use.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from layerstore.errors import DamagedError, HostError
from layerstore.formats import entries as entries_format
from layerstore.formats.changes import diff
from layerstore.formats.entries import Entry, Kind
from layerstore.formats.tree import Tree, apply, entry_of, show
from layerstore.formats.xattrs import TRUSTED_OVERLAY, USER_OVERLAY, escaped_name
from layerstore.kernel.fs import can_reflink, copy_data, fsync_path, try_reflink
from layerstore.names import ChainID, DiffID, Digest, MalformedName
from layerstore.store.atomic import replace_file
from layerstore.store.layout import Layout
from layerstore.store.store import Store

TREE_FORMAT = 1

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_OPEN = 64
"""Directories open at once: a layer may be deeper than the limit on open files."""


@dataclass(frozen=True, slots=True)
class Stack:
    """The record of a stack that was written out for one kind of user."""

    chain: str
    """The chain id's hex digits."""
    diff_ids: tuple[DiffID, ...]
    keys: tuple[str, ...]
    """Its directories, bottom first."""


def lower_directories(store: Store, diff_ids_bottom_up: tuple[DiffID, ...]) -> list[Path]:
    """The stack's directories, topmost first as overlayfs takes them; written if missing.

    The caller holds the layers: by a ref, a container or a lease.
    """
    flavour = "trusted" if os.geteuid() == 0 else "user"
    chain = ChainID.of_stack(diff_ids_bottom_up)
    record = store.layout.folder("derived") / f"stack-{chain.hex}.{flavour}"
    stack = _recorded(record)
    if stack is None or not all(store.layout.tree(key).is_dir() for key in stack.keys):
        stack = _write_stack(store, record, diff_ids_bottom_up, flavour)
    return [store.layout.tree(key) for key in reversed(stack.keys)]


def all_stacks(layout: Layout) -> list[Stack]:
    """Every stack that was ever mounted and is on record."""
    folder = layout.folder("derived")
    found = (_recorded(folder / name) for name in os.listdir(folder) if name.startswith("stack-"))
    return [stack for stack in found if stack is not None]


def _recorded(record: Path) -> Stack | None:
    """Two lines: the layers and the directories. None if that is not what is there."""
    try:
        layers, _, keys = record.read_text("ascii").partition("\n")
        diff_ids = tuple(DiffID.parse(text) for text in layers.split())
    except (OSError, ValueError, MalformedName):
        return None
    chain = ChainID.of_stack(diff_ids).hex
    if not keys.endswith("\n") or not record.name.startswith(f"stack-{chain}."):
        return None
    return Stack(chain, diff_ids, tuple(keys.split()))


def _write_stack(store: Store, record: Path, diff_ids: tuple[DiffID, ...], flavour: str) -> Stack:
    keys: list[str] = []
    tree = Tree()
    with store.transaction() as transaction:
        transaction.lease(list(diff_ids))
        pending: list[tuple[Path, Path]] = []
        # An image without layers still needs one directory to mount.
        for diff_id in diff_ids or (None,):
            below = tree
            if diff_id is not None:
                tree = apply(below, store.layers.entries(diff_id))
            entries = diff(below, tree)
            if not entries and keys:
                continue
            if not entries or entries[0].path:
                entries.insert(0, entry_of(b"", tree.root))
            # Overlayfs refuses a directory that a stack has twice, as where a layer's changes are
            # undone and made again.
            key = next(key for key in _keys(entries, flavour) if key not in keys)
            keys.append(key)
            # Until the record says that the stack uses it.
            transaction.lease([Digest(f"sha256:{key}")])
            final = store.layout.tree(key)
            if not final.is_dir() and not any(target == final for _, target in pending):
                staged = transaction.stage_directory(f"tree-{key}")
                write_tree(store, entries, staged, flavour=flavour)
                pending.append((staged, final))
        if pending:
            # A directory that exists is trusted: everything in it must be on disk before.
            transaction.flush()
            for staged, final in pending:
                with suppress(FileExistsError):
                    _rename_into(staged, final)
            fsync_path(store.layout.folder("trees"))
        replace_file(store.layout, record, f"{' '.join(diff_ids)}\n{' '.join(keys)}\n".encode())
    return Stack(ChainID.of_stack(diff_ids).hex, diff_ids, tuple(keys))


def _rename_into(staged: Path, final: Path) -> None:
    try:
        staged.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise  # else somebody else was faster with the same directory


def _keys(entries: list[Entry], flavour: str) -> Iterator[str]:
    """The names of the difference: of its directory, and of each further one in the same stack."""
    content = entries_format.emit(entries)
    for count in itertools.count():
        again = f" {count}" if count else ""
        head = f"layerstore tree {TREE_FORMAT} {flavour}{again}\0".encode()
        yield hashlib.sha256(head + content).hexdigest()


def write_tree(store: Store, entries: Iterable[Entry], root: Path, *, flavour: str) -> None:
    """``root`` holds what the canonical ``entries`` say, as overlayfs reads a lower directory.

    Contents are clones of objects where the file system can clone; else an object's first use is
    a hard link to it, later ones copies, so that no two files share an inode that the layer did
    not link.
    """
    _TreeWriter(store, root, flavour).write(entries)


class _TreeWriter:
    def __init__(self, store: Store, root: Path, flavour: str) -> None:
        self._layout = store.layout
        self._prefix = TRUSTED_OVERLAY if flavour == "trusted" else USER_OVERLAY
        self._is_root = flavour == "trusted"
        self._root = root
        self._can_reflink = can_reflink(root)
        # The directories from the root to where we are: path, descriptor, entry. Of a deep path
        # only the root and the last few are open; the others have -1.
        self._open: list[tuple[bytes, int, Entry | None]] = []

    def write(self, entries: Iterable[Entry]) -> None:
        self._open = [(b"", os.open(self._root, _DIRECTORY), None)]
        try:
            for entry in entries:
                if not entry.path:
                    self._open[0] = (b"", self._open[0][1], entry)
                    continue
                head, _, name = entry.path.rpartition(b"/")
                self._go_to(head)
                self._one(entry, name, self._open[-1][1])
            while self._open:
                self._close_directory()
        finally:
            for _, fd, _ in self._open:
                if fd >= 0:
                    os.close(fd)

    def _go_to(self, head: bytes) -> None:
        """Canonical order puts a directory before what is in it, and leaves it only once."""
        while self._open[-1][0] != head:
            self._close_directory()

    def _close_directory(self) -> None:
        _, fd, entry = self._open.pop()
        try:
            if self._open and self._open[-1][1] < 0:
                path, _, above = self._open[-1]
                # Nobody moves directories in staging, so this is the one that was closed.
                self._open[-1] = (path, os.open(b"..", _DIRECTORY, dir_fd=fd), above)
            if entry is not None:
                # Last, because making children changes the time, and a mode may forbid them.
                self._attributes(fd, entry)
        finally:
            os.close(fd)

    def _one(self, entry: Entry, name: bytes, parent: int) -> None:
        kind = entry.kind
        if kind is Kind.DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=parent)
            self._open.append((entry.path, os.open(name, _DIRECTORY, dir_fd=parent), entry))
            if len(self._open) > _MOST_OPEN:
                path, fd, above = self._open[-_MOST_OPEN]
                if fd >= 0 and path:
                    os.close(fd)
                    self._open[-_MOST_OPEN] = (path, -1, above)
        elif kind is Kind.FILE:
            self._file(entry, name, parent)
        elif kind is Kind.WHITEOUT:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)
        elif kind is Kind.HARDLINK:
            self._hard_link(entry, name, parent)
        else:
            self._special(entry, name, parent)

    def _hard_link(self, entry: Entry, name: bytes, parent: int) -> None:
        # The target is of this difference, in a directory that may be closed again: walk there.
        head, _, target = entry.link.rpartition(b"/")
        fd = os.dup(self._open[0][1])
        try:
            for part in head.split(b"/") if head else ():
                inner = os.open(part, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = inner
            os.link(target, name, src_dir_fd=fd, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(fd)

    def _special(self, entry: Entry, name: bytes, parent: int) -> None:
        if entry.kind is Kind.SYMLINK:
            os.symlink(entry.link, name, dir_fd=parent)
        elif entry.kind is Kind.FIFO:
            os.mkfifo(name, 0o600, dir_fd=parent)
        else:
            kind = stat.S_IFCHR if entry.kind is Kind.CHAR else stat.S_IFBLK
            try:
                os.mknod(name, kind | 0o600, os.makedev(*entry.rdev), dir_fd=parent)
            except PermissionError:
                return  # a plain user's container gets its devices from the launcher
        if self._is_root:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.kind is not Kind.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=parent)
        path = b"/proc/self/fd/%d/%s" % (parent, name)
        for xattr, value in entry.xattrs:
            self._set_xattr(path, entry, xattr, value)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _file(self, entry: Entry, name: bytes, parent: int) -> None:
        if entry.digest is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=parent)
        else:
            fd = self._content(entry, entry.digest, name, parent)
        try:
            self._attributes(fd, entry)
        finally:
            os.close(fd)

    def _content(self, entry: Entry, digest: Digest, name: bytes, parent: int) -> int:
        """A descriptor of the new file ``name`` with the object's content."""
        path = self._layout.object(digest)
        try:
            source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            source = -1
        try:
            if source < 0 or os.fstat(source).st_size != entry.size:
                raise DamagedError(
                    f"the object {digest} of {show(entry.path)} is missing or damaged",
                    hint="import the image again: that replaces it",
                )
            # A plain user could not read an object that has become such a file.
            may_share = self._is_root or entry.mode & 0o400
            if not self._can_reflink and may_share and self._link(path, name, parent):
                os.close(source)
                source = -1
                return self._adopt(entry, name, parent)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            target = os.open(name, flags, 0o600, dir_fd=parent)
            if not self._can_reflink or not try_reflink(source, target):
                copy_data(source, target)
            return target
        finally:
            if source >= 0:
                os.close(source)

    def _link(self, path: Path, name: bytes, parent: int) -> bool:
        """Whether ``name`` is now the object's first use, a second name of its inode."""
        try:
            os.link(path, name, dst_dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.EMLINK, errno.EPERM, errno.EXDEV):
                return False
            raise
        # Looked at after linking: of two that link at once, both see the other and copy.
        if os.stat(name, dir_fd=parent, follow_symlinks=False).st_nlink == 2:
            return True
        os.unlink(name, dir_fd=parent)
        return False

    def _adopt(self, entry: Entry, name: bytes, parent: int) -> int:
        """The linked inode, without the xattrs that an earlier use may have left on it."""
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        wanted = {escaped_name(xattr, self._prefix) for xattr, _ in entry.xattrs}
        for xattr in os.listxattr(fd):
            if os.fsencode(xattr) not in wanted:
                with suppress(OSError):
                    os.removexattr(fd, xattr)
        return fd

    def _attributes(self, fd: int, entry: Entry) -> None:
        """In an order in which no call undoes another.

        chown drops setuid and capabilities; chmod changes the mask of an ACL; all change times.
        """
        if self._is_root:
            os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode)
        for xattr, value in entry.xattrs:
            self._set_xattr(fd, entry, xattr, value)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def _set_xattr(self, where: int | bytes, entry: Entry, name: bytes, value: bytes) -> None:
        try:
            shown = escaped_name(name, self._prefix)
            os.setxattr(where, shown, value, follow_symlinks=isinstance(where, int))
        except OSError as error:
            unprivileged = not self._is_root and error.errno == errno.EPERM
            if error.errno in (errno.ENOSPC, errno.E2BIG):
                # ext4 has one block for all xattrs of a file, whatever room the disk has.
                raise HostError(
                    f"the xattr {name.decode('utf-8', 'backslashreplace')} of {show(entry.path)}, "
                    f"of {len(value)} bytes, does not fit the file system of the store",
                    hint="use --driver composed, a store on XFS or btrfs, or make room on the disk",
                ) from error
            if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP) and not unprivileged:
                raise
