"""What a file system shows, read by three roads that share no code: trees, directories, tars.

A fact is everything that an image can say of one path. Contents are hashed as they read, holes
included; names of one inode are told by the first of them.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import BinaryIO

from layerstore.formats.entries import Kind
from layerstore.names import DiffID, Digest
from layerstore.store.store import Store

SECOND = 10**9


@dataclass(frozen=True)
class Fact:
    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    content: bytes | str | tuple[int, int] = b""
    """A file's digest, a symlink's target, a device's number."""
    first_name: bytes = b""


Facts = dict[bytes, Fact]


def of_image(store: Store, diff_ids: Iterable[DiffID]) -> Facts:
    tree = store.layers.tree(diff_ids)
    facts: Facts = {}
    first_names: dict[int, bytes] = {}
    for path, node in tree.walk():
        content: bytes | str | tuple[int, int] = b""
        if node.kind is Kind.FILE:
            content = _digest(store, node.digest) if node.digest else hashlib.sha256().hexdigest()
        elif node.kind is Kind.SYMLINK:
            content = node.link
        elif node.kind in (Kind.CHAR, Kind.BLOCK):
            content = node.rdev
        first = path if node.kind is Kind.DIRECTORY else first_names.setdefault(id(node), path)
        facts[path] = Fact(
            node.kind.name, node.mode, node.uid, node.gid, node.mtime_ns, node.xattrs, content,
            first,
        )  # fmt: skip
    return facts


def _digest(store: Store, digest: Digest) -> str:
    return _hash(os.fsencode(store.layout.object(digest)))


def _hash(path: bytes) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_MODES = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHAR,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
}


def of_directory(root: bytes) -> Facts:
    facts: Facts = {}
    first_names: dict[tuple[int, int], bytes] = {}
    for path in sorted(_paths(root, b""), key=lambda path: path.split(b"/")):
        full = root + b"/" + path
        status = os.lstat(full)
        kind = _MODES[stat.S_IFMT(status.st_mode)]
        content: bytes | str | tuple[int, int] = b""
        if kind is Kind.FILE:
            content = _hash(full)
        elif kind is Kind.SYMLINK:
            content = os.readlink(full)
        elif kind in (Kind.CHAR, Kind.BLOCK):
            content = (os.major(status.st_rdev), os.minor(status.st_rdev))
        names = os.listxattr(full, follow_symlinks=False)
        xattrs = sorted(
            (os.fsencode(name), os.getxattr(full, name, follow_symlinks=False)) for name in names
        )
        inode = (status.st_dev, status.st_ino)
        first = path if kind is Kind.DIRECTORY else first_names.setdefault(inode, path)
        facts[path] = Fact(
            kind.name, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid,
            status.st_mtime_ns, tuple(xattrs), content, first,
        )  # fmt: skip
    return facts


def _paths(root: bytes, below: bytes) -> Iterable[bytes]:
    with os.scandir(root + b"/" + below) as found:
        for item in found:
            path = below + b"/" + item.name if below else item.name
            yield path
            if item.is_dir(follow_symlinks=False):
                yield from _paths(root, path)


_TYPES = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.CHRTYPE: Kind.CHAR,
    tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.FIFOTYPE: Kind.FIFO,
}


def of_tar(file: BinaryIO) -> Facts:
    """Times to whole seconds; the first name of an inode is the one that the tar has first."""
    facts: Facts = {}
    with tarfile.open(fileobj=file, mode="r|", encoding="utf-8") as archive:
        for member in archive:
            path = os.fsencode(member.name).rstrip(b"/")
            if member.islnk():
                facts[path] = facts[os.fsencode(member.linkname)]
                continue
            kind = _TYPES[member.type]
            content: bytes | str | tuple[int, int] = b""
            if kind is Kind.FILE:
                stream = archive.extractfile(member)
                assert stream is not None
                hasher = hashlib.sha256()
                while chunk := stream.read(1 << 20):
                    hasher.update(chunk)
                content = hasher.hexdigest()
            elif kind is Kind.SYMLINK:
                content = os.fsencode(member.linkname)
            elif kind in (Kind.CHAR, Kind.BLOCK):
                content = (member.devmajor, member.devminor)
            xattrs = tuple(
                sorted(
                    (os.fsencode(key[13:]), value.encode("utf-8", "surrogateescape"))
                    for key, value in member.pax_headers.items()
                    if key.startswith("SCHILY.xattr.")
                )
            )
            facts[path] = Fact(
                kind.name, member.mode & 0o7777, member.uid, member.gid,
                int(member.mtime // 1) * SECOND, xattrs, content, path,
            )  # fmt: skip
    return facts


def in_whole_seconds(facts: Facts) -> Facts:
    return {path: replace(fact, mtime_ns=fact.mtime_ns // SECOND * SECOND)
            for path, fact in facts.items()}  # fmt: skip


def differences(expected: Facts, found: Facts) -> dict[bytes, dict[str, tuple[object, object]]]:
    """Per path and field: (expected, found). A path that one lacks differs in ``kind``."""
    result: dict[bytes, dict[str, tuple[object, object]]] = {}
    for path in sorted(expected.keys() | found.keys()):
        left, right = expected.get(path), found.get(path)
        if left == right:
            continue
        if left is None or right is None:
            result[path] = {"kind": (left and left.kind, right and right.kind)}
            continue
        result[path] = {
            field: (getattr(left, field), getattr(right, field))
            for field in Fact.__dataclass_fields__
            if getattr(left, field) != getattr(right, field)
        }
    return result
