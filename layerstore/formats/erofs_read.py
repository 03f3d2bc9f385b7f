"""The Tree that a metadata image shows: for fsck and tests, since mounting is the kernel's work.

Reads what ``erofs`` writes, by the tables there, and takes nothing else for an image: every rule
that the kernel relies on is checked, and so is the uuid, hence every byte.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from layerstore.errors import LayerstoreError
from layerstore.formats import erofs_xattrs as xattrs
from layerstore.formats.entries import NANOSECOND, Kind, Xattrs
from layerstore.formats.erofs import (
    BLOCK,
    CHUNKS,
    COMPATIBLE,
    DIRENT,
    FILE_TYPES,
    HOLE,
    INCOMPATIBLE,
    INLINE,
    INODE,
    MAGIC,
    MAX_NAME,
    MAX_TARGET,
    PLAIN,
    SUPERBLOCK,
    SUPERBLOCK_AT,
    ErofsError,
    object_path,
    seal,
)
from layerstore.formats.tree import Node, Tree
from layerstore.formats.xattrs import TRUSTED_OVERLAY
from layerstore.names import Digest

_KINDS = {bits: (kind, number) for kind, (number, bits) in FILE_TYPES.items()}
_METACOPY, _REDIRECT = TRUSTED_OVERLAY + b"metacopy", TRUSTED_OVERLAY + b"redirect"
_ESCAPED = TRUSTED_OVERLAY + b"overlay."


class Image(NamedTuple):
    """What an image says. Empty files have no digest; which files are sparse it does not say."""

    tree: Tree
    inline: dict[Digest, bytes]
    """The contents that are in the image itself."""
    uuid: bytes


def parse(image: bytes, *, where: str) -> Image:
    """Raises ErofsError, naming ``where``, for anything that ``erofs.emit`` would not write."""
    try:
        return _Reader(image).read()
    except (ValueError, struct.error, LayerstoreError) as error:
        raise ErofsError(
            f"the metadata image {where} is damaged: {error}",
            hint="remove it: it is made again from the layers",
        ) from None


class _Inode(NamedTuple):
    node: Node
    number: int
    """The type in a directory entry."""
    nlink: int
    content: bytes
    """Of a directory, its blocks."""


class _Reader:
    def __init__(self, image: bytes) -> None:
        self.image = image
        self.inodes: dict[int, _Inode] = {}
        self.names: dict[int, int] = {}
        """How many names lead to each inode that is no directory."""
        self.inline: dict[Digest, bytes] = {}

    def read(self) -> Image:
        image = self.image
        if len(image) < BLOCK or len(image) % BLOCK:
            raise ValueError(f"a length of {len(image)} bytes")
        magic, _, compatible, bits, root_nid, count, blocks, uuid, incompatible = (
            SUPERBLOCK.unpack_from(image, SUPERBLOCK_AT)
        )
        if (magic, compatible, bits, incompatible) != (MAGIC, COMPATIBLE, 12, INCOMPATIBLE):
            raise ValueError("a superblock of another kind")
        if blocks * BLOCK != len(image):
            raise ValueError(f"{blocks} blocks in {len(image)} bytes")
        sealed = bytearray(image)
        seal(sealed)
        if sealed != image:
            raise ValueError("a wrong uuid or checksum")
        root = self._inode(root_nid)
        self._tree(root_nid, root)
        if len(self.inodes) != count:
            raise ValueError(f"{len(self.inodes)} of {count} inodes have a name")
        for nid, names in self.names.items():
            if self.inodes[nid].nlink != names:
                raise ValueError(f"an inode of {names} names and nlink {self.inodes[nid].nlink}")
        return Image(Tree(root.node), self.inline, uuid)

    def _tree(self, root_nid: int, root: _Inode) -> None:
        if root.node.kind is not Kind.DIRECTORY:
            raise ValueError("a root that is no directory")
        pending = [(root_nid, root_nid, root)]
        while pending:
            own_nid, parent_nid, directory = pending.pop()
            children: dict[bytes, Node] = {}
            subdirectories = 0
            dots = {b".": own_nid, b"..": parent_nid}
            for name, nid, number in _directory_entries(directory.content):
                expected = dots.pop(name, None)
                if expected is not None:
                    if (nid, number) != (expected, FILE_TYPES[Kind.DIRECTORY][0]):
                        raise ValueError(f"a {name!r} that leads to the inode {nid}")
                    continue
                known = nid in self.inodes
                inode = self._inode(nid)
                if inode.number != number:
                    raise ValueError(f"the name {name!r} with the type {number}")
                if inode.node.kind is Kind.DIRECTORY:
                    if known:
                        raise ValueError(f"the second name {name!r} of a directory")
                    subdirectories += 1
                    pending.append((nid, own_nid, inode))
                else:
                    self.names[nid] = self.names.get(nid, 0) + 1
                children[name] = inode.node
            if dots or directory.nlink != 2 + subdirectories:
                raise ValueError(f"a directory of nlink {directory.nlink} or without {dots}")
            directory.node.children = children

    def _inode(self, nid: int) -> _Inode:
        known = self.inodes.get(nid)
        if known is not None:
            return known
        at = 32 * nid
        if at + INODE.size > len(self.image):
            raise ValueError(f"the inode {nid}, beyond the end")
        layout, count, mode, size, start, _, uid, gid, seconds, nanoseconds, nlink = (
            INODE.unpack_from(self.image, at)
        )
        if mode & 0o170000 not in _KINDS or nanoseconds >= NANOSECOND:
            raise ValueError(f"an inode of mode {mode:#o} and {nanoseconds} ns")
        kind, number = _KINDS[mode & 0o170000]
        own, marks, tail_at = self._xattrs(at + INODE.size, count)
        node = Node(kind, mode & 0o7777, uid, gid, seconds * NANOSECOND + nanoseconds, xattrs=own)
        content = b""
        if layout == CHUNKS:
            self._metadata_only(node, size, start, marks, tail_at)
        elif marks:
            raise ValueError("overlayfs' xattrs on an inode that has its content here")
        elif kind in (Kind.CHAR, Kind.BLOCK):
            node.rdev = (start >> 8 & 0xFFF, start & 0xFF | start >> 12 & 0xFFF00)
            if layout != PLAIN or size or (kind is Kind.CHAR and not start):
                raise ValueError(f"a device {node.rdev} of {size} bytes")
        elif layout in (PLAIN, INLINE):
            content = self._content(layout, size, start, tail_at)
        else:
            raise ValueError(f"an inode of layout {layout >> 1}")
        if kind is Kind.FILE and content:
            node.size = size
            node.digest = Digest.of(content)
            self.inline[node.digest] = content
        elif kind is Kind.SYMLINK:
            if not 1 <= size <= MAX_TARGET or b"\0" in content:
                raise ValueError(f"a symlink of {size} bytes")
            if layout == INLINE and at // BLOCK != (tail_at + size - 1) // BLOCK:
                raise ValueError("a symlink across blocks")
            node.link = content
        elif kind is Kind.FIFO and size:
            raise ValueError(f"a fifo of {size} bytes")
        inode = self.inodes[nid] = _Inode(node, number, nlink, content)
        return inode

    def _metadata_only(
        self, node: Node, size: int, chunk_bits: int, marks: dict[bytes, bytes], tail_at: int
    ) -> None:
        if node.kind is not Kind.FILE or chunk_bits != max(0, (size - 1).bit_length() - 12):
            raise ValueError(f"chunks of 2^{chunk_bits} blocks for {size} bytes")
        if self._bytes(tail_at, len(HOLE)) != HOLE:
            raise ValueError("a chunk with data")
        redirect = marks.get(_REDIRECT, b"")
        if marks != {_METACOPY: b"", _REDIRECT: redirect}:
            raise ValueError(f"a file with the overlayfs xattrs {sorted(marks)}")
        digest = Digest.parse("sha256:" + redirect[-65:].decode("ascii").replace("/", ""))
        if redirect != object_path(digest):
            raise ValueError(f"a redirect to {redirect!r}")
        node.size = size
        node.digest = digest

    def _content(self, layout: int, size: int, start: int, tail_at: int) -> bytes:
        whole = size // BLOCK * BLOCK if layout == INLINE else size
        tail = size - whole
        if layout == INLINE and (not tail or tail_at // BLOCK != (tail_at + tail - 1) // BLOCK):
            raise ValueError(f"an inline tail of {tail} bytes at {tail_at}")
        content = self._bytes(start * BLOCK, whole) if whole else b""
        if whole % BLOCK and any(self._bytes(start * BLOCK + whole, -whole % BLOCK)):
            raise ValueError("data after the end of a file")
        return content + self._bytes(tail_at, tail)

    def _xattrs(self, at: int, count: int) -> tuple[Xattrs, dict[bytes, bytes], int]:
        """The inode's own xattrs, overlayfs' ones, and the offset of what follows."""
        if not count:
            return (), {}, at
        end = at + xattrs.AREA.size + 4 * (count - 1)
        inverted, shared = xattrs.AREA.unpack_from(self.image, at)
        at += xattrs.AREA.size
        places = struct.iter_unpack("<I", self._bytes(at, 4 * shared))
        entries = [xattrs.decode(self.image, 4 * place) for (place,) in places]
        at += 4 * shared
        while at < end:
            entries.append(xattrs.decode(self.image, at))
            at += len(entries[-1][0])
        found = {name: value for _, name, value in entries}
        if at != end or not entries or len(found) != len(entries):
            raise ValueError(f"an xattr area of {len(entries)} entries up to {at}, not {end}")
        bits = 0
        for raw, _, _ in entries:
            bits |= xattrs.filter_bit(raw[1], raw[4 : 4 + raw[0]])
        if inverted != ~bits & 0xFFFFFFFF:
            raise ValueError(f"an xattr filter {inverted:#x}")
        marks = {
            name: value
            for name, value in found.items()
            if name.startswith(TRUSTED_OVERLAY) and not name.startswith(_ESCAPED)
        }
        own = (
            (name.replace(_ESCAPED, TRUSTED_OVERLAY, 1) if name.startswith(_ESCAPED) else name, v)
            for name, v in found.items()
            if name not in marks
        )
        return tuple(sorted(own)), marks, end

    def _bytes(self, at: int, size: int) -> bytes:
        if at + size > len(self.image):
            raise ValueError(f"{size} bytes at {at}, beyond the end")
        return self.image[at : at + size]


def _directory_entries(content: bytes) -> list[tuple[bytes, int, int]]:
    """(name, nid, type) of all blocks. Raises ValueError unless the names ascend."""
    found: list[tuple[bytes, int, int]] = []
    for at in range(0, len(content), BLOCK):
        block = content[at : at + BLOCK]
        first = DIRENT.unpack_from(block)[1]
        if not first or first % DIRENT.size:
            raise ValueError(f"a directory with {first} bytes of entries")
        entries = list(DIRENT.iter_unpack(block[:first]))
        ends = [offset for _, offset, _ in entries[1:]]
        ends.append(first + len(block[first:].rstrip(b"\0")))
        for (nid, offset, number), end in zip(entries, ends, strict=True):
            name = block[offset:end]
            if not 1 <= len(name) <= MAX_NAME or b"/" in name or b"\0" in name:
                raise ValueError(f"the name {name!r}")
            if found and found[-1][0] >= name:
                raise ValueError(f"the name {name!r} after {found[-1][0]!r}")
            found.append((name, nid, number))
    return found
