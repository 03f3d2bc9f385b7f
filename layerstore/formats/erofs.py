"""The metadata image: a whole Tree as one EROFS file system that holds names and no content.

A regular file has its size and two xattrs, ``trusted.overlay.metacopy`` and
``trusted.overlay.redirect``, which make overlayfs take the content from an object of a data-only
lower directory. Small contents may be in the image itself. The kernel's documentation is
Documentation/filesystems/erofs.rst; the structures are those of fs/erofs/erofs_fs.h.

Integers are little-endian, blocks have 4096 bytes. In this order: 1024 zero bytes, the superblock,
the inodes (each with its xattrs and its tail, 32-aligned, the root first), the data blocks. An
inode's *nid* is its offset / 32.

::

    off  size  superblock field
      0     4  magic 0xE0F5E1E2
      4     4  crc32c of the bytes from 1024 to 4096, this field 0 (see ``checksums``)
      8     4  compatible features: 1 checksum, 2 inode times are mtimes, 4 xattr filters
     12     1  log2 of the block size
     13     1  zero
     14     2  nid of the root
     16     8  number of inodes
     24    12  zero: the time of compact inodes
     36     4  number of blocks
     40     8  zero: the blocks that nids and shared xattrs count from
     48    16  uuid: see ``seal``
     64    16  zero: the volume's name
     80     4  incompatible features: 4 files of chunks
     84    44  zero

    off  size  inode field
      0     2  1 + 2 x layout: 0 plain (all data in blocks), 2 inline (the tail after the xattrs),
               4 chunks
      2     2  0 without xattrs, else (size of the xattr area - 12) / 4 + 1
      4     2  st_mode
      6     2  zero
      8     8  size
     16     4  plain, inline: the first data block; chunks: log2 of the chunk's blocks;
               devices: the device as new_encode_dev() of the kernel has it
     20     4  serial number, from 1
     24     4  uid
     28     4  gid
     32     8  mtime, signed seconds
     40     4  mtime, nanoseconds
     44     4  nlink
     48    16  zero

    off  size  directory entry field
      0     8  nid
      8     2  offset of the name in this block
     10     1  type: 1 file, 2 directory, 3 char, 4 block, 5 fifo, 7 symlink
     11     1  zero

A file without content in the image is one chunk that is a hole (u32 0xFFFFFFFF after the xattrs).
A directory is a sequence of blocks: entries, then names; its entries, ``.`` and ``..`` among them,
ascend bytewise over all blocks. A symlink's target is its data. No block boundary is within an
inline tail, nor anywhere between the start of a symlink's inode and the end of its inline target.

Of an xattr that several inodes have, the first keeps the entry and the others share it. No inode
is compact, and nothing is compressed. Not representable: sizes over 8 TiB, xattr values over 65535
bytes, sockets, char devices 0:0 (a whiteout for overlayfs).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from layerstore.errors import FormatError
from layerstore.formats import erofs_xattrs as xattrs
from layerstore.formats.checksums import crc32c
from layerstore.formats.entries import NANOSECOND, Kind, Xattrs
from layerstore.formats.erofs_xattrs import UnsayableError
from layerstore.formats.tree import RESERVED_NAME, Node, Tree, show
from layerstore.names import Digest

WRITER = 1  # store.composed has it in its file names; a test holds them equal
"""Part of every uuid; rises when the same Tree gives another image."""

INLINE_LIMIT = 64

BLOCK = 4096
SUPERBLOCK_AT = 1024
INODES_AT = SUPERBLOCK_AT + 128
MAGIC = 0xE0F5E1E2
COMPATIBLE, INCOMPATIBLE = 0x7, 0x4
PLAIN, INLINE, CHUNKS = 1, 5, 9
HOLE = b"\xff\xff\xff\xff"

SUPERBLOCK = struct.Struct("<IIIBxHQ12xI8x16s16xI44x")
INODE = struct.Struct("<HHH2xQIIIIqII16x")
DIRENT = struct.Struct("<QHBx")
_CHECKSUM_AT, _UUID_AT = SUPERBLOCK_AT + 4, SUPERBLOCK_AT + 48
_START_AT, _NLINK_AT = 16, 44
_U32 = struct.Struct("<I")

FILE_TYPES = {
    Kind.FILE: (1, 0o100000),
    Kind.DIRECTORY: (2, 0o040000),
    Kind.CHAR: (3, 0o020000),
    Kind.BLOCK: (4, 0o060000),
    Kind.FIFO: (5, 0o010000),
    Kind.SYMLINK: (7, 0o120000),
}
"""Kind: (type in a directory entry, type bits of st_mode)."""

MAX_SIZE = BLOCK << 31
MAX_TARGET = 4095
MAX_NAME = 255
_NOBODY = 0xFFFFFFFF
"""(uid_t)-1, which Linux takes for no owner at all."""
_MAX_FILE_TAIL, _MAX_DIRECTORY_TAIL = 3072, 2048
"""Longer tails become a block of their own: keeping them off block boundaries pads too much."""

_FILE, _DIRECTORY, _SYMLINK = Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK
_DIRECTORY_TYPE = FILE_TYPES[_DIRECTORY][0]
_ZEROS = tuple(bytes(n) for n in range(32))


class ErofsError(FormatError):
    """A Tree that EROFS cannot say, or an image that is not one of ours."""


_Area = tuple[bytes, Sequence[bytes]]
"""An inode's xattrs: header with the shared ones, entries."""

_NO_AREA: _Area = (b"", ())

Contents = Mapping[Digest, bytes] | Callable[[Digest], bytes | None]


def object_path(digest: Digest) -> bytes:
    """Where a file's content is in the data-only lower directory."""
    return f"/.layerstore/{digest[7:9]}/{digest[9:]}".encode()


def emit(
    tree: Tree,
    *,
    inline: Contents | None = None,
    inline_limit: int = INLINE_LIMIT,
    redirect: Callable[[Digest], bytes] = object_path,
) -> bytes:
    """The image of the tree; the same tree gives the same bytes.

    A file of up to ``inline_limit`` bytes whose content ``inline`` has is in the image itself, any
    other at ``redirect(digest)`` below the data-only lower directory. Raises ErofsError, naming
    the path, for what an image cannot hold.
    """
    if tree.root.children and RESERVED_NAME in tree.root.children:
        raise ErofsError(
            f"an image may not have the path {show(RESERVED_NAME)}",
            hint="rename it: the name is kept for the objects of composed root file systems",
        )
    if inline is None:
        inline = {}
    contents = inline.get if isinstance(inline, Mapping) else inline
    return _Writer(contents, inline_limit, redirect).image(tree.root)


def seal(image: bytearray) -> None:
    """The uuid and the checksum are those of the rest of the image.

    The uuid covers every byte: overlayfs keeps nids in an upper directory and trusts them as long
    as the uuid is the same. (Two images without any would make it give up stable inode numbers.)
    """
    image[_CHECKSUM_AT : _CHECKSUM_AT + 4] = bytes(4)
    image[_UUID_AT : _UUID_AT + 16] = bytes(16)
    hashed = hashlib.sha256(b"layerstore erofs %d\0" % WRITER)
    hashed.update(image)
    image[_UUID_AT : _UUID_AT + 16] = hashed.digest()[:16]
    _U32.pack_into(image, _CHECKSUM_AT, crc32c(image[SUPERBLOCK_AT:BLOCK]))


_METACOPY = xattrs.entry(xattrs.TRUSTED, b"overlay.metacopy", b"")
_REDIRECT_NAME = b"overlay.redirect"
_OVERLAY_BITS = xattrs.filter_bit(xattrs.TRUSTED, b"overlay.metacopy") | xattrs.filter_bit(
    xattrs.TRUSTED, _REDIRECT_NAME
)


class _Directory(NamedTuple):
    """A directory whose inode has its place, and whose entries have not."""

    path: bytes
    node: Node
    nid: int
    parent: int
    names: list[bytes]
    """With ``.`` and ``..``, ascending."""
    counts: list[int]
    """How many of the names each block has."""
    block: int
    """Index in ``blocks`` of the first one."""
    tail: int | None
    """Index in ``parts`` of the last block, if that is inline."""


class _Writer:
    """Places one inode after the other: all children of a directory, then each one's children."""

    def __init__(
        self,
        contents: Callable[[Digest], bytes | None],
        inline_limit: int,
        redirect: Callable[[Digest], bytes],
    ) -> None:
        self.contents = contents
        self.inline_limit = inline_limit
        self.redirect = redirect
        self.at = INODES_AT
        self.serial = 0
        self.parts: list[bytes] = []
        self.blocks: list[bytes] = []
        self.nids: dict[Node, int] = {}
        self.nlinks: dict[int, int] = {}
        """Of the inodes where it is not the usual 1 or 2, by nid."""
        self.starts: dict[int, int] = {}
        """Index in ``blocks`` of an inode's first data block, by nid."""
        self.known: dict[bytes, int] = {}
        """Every xattr entry that is in the image: its offset / 4."""
        self.encoded: dict[Xattrs, tuple[tuple[bytes, ...], int]] = {}
        self.pending: list[_Directory] = []

    def image(self, root: Node) -> bytes:
        if root.kind is not _DIRECTORY:
            raise ErofsError("the root of an image must be a directory")
        try:
            self._directory(root, b"", None)
        except (UnsayableError, struct.error) as error:
            raise _refusal(b"", root, error) from None
        while self.pending:
            self._fill(self.pending.pop())
        used = -(-self.at // BLOCK)
        padding = bytes(used * BLOCK - self.at)
        image = bytearray().join((bytes(INODES_AT), *self.parts, padding, *self.blocks))
        for nid, block in self.starts.items():
            _U32.pack_into(image, 32 * nid + _START_AT, used + block)
        for nid, nlink in self.nlinks.items():
            _U32.pack_into(image, 32 * nid + _NLINK_AT, nlink)
        SUPERBLOCK.pack_into(
            image, SUPERBLOCK_AT, MAGIC, 0, COMPATIBLE, 12, self.nids[root], self.serial,
            used + len(self.blocks), bytes(16), INCOMPATIBLE,
        )  # fmt: skip
        seal(image)
        return bytes(image)

    def _fill(self, directory: _Directory) -> None:
        """Places the directory's children and writes its entries."""
        children = directory.node.children or {}
        nids = []
        types = []
        first_pending = len(self.pending)
        for name in directory.names:
            node = children.get(name)
            if node is None:
                nids.append(directory.nid if name == b"." else directory.parent)
                types.append(_DIRECTORY_TYPE)
                continue
            nid = self.nids.get(node)
            try:
                if nid is None:
                    nid = self._place(node, directory, name)
                elif node.kind is _DIRECTORY:
                    raise UnsayableError("is a directory with another name")
                else:
                    self.nlinks[nid] = self.nlinks.get(nid, 1) + 1
            except (UnsayableError, struct.error) as error:
                raise _refusal(_below(directory.path, name), node, error) from None
            nids.append(nid)
            types.append(FILE_TYPES[node.kind][0])
        subdirectories = len(self.pending) - first_pending
        if subdirectories:
            self.nlinks[directory.nid] = 2 + subdirectories
            # The last one is taken first: siblings in order.
            self.pending[first_pending:] = reversed(self.pending[first_pending:])
        start = 0
        for number, count in enumerate(directory.counts):
            end = start + count
            block = _dirents(nids[start:end], types[start:end], directory.names[start:end])
            start = end
            if end == len(nids) and directory.tail is not None:
                self.parts[directory.tail] = block
            else:
                self.blocks[directory.block + number] = block.ljust(BLOCK, b"\0")

    def _place(self, node: Node, parent: _Directory, name: bytes) -> int:
        """The new inode's nid."""
        kind = node.kind
        if kind is _FILE:
            return self._file(node)
        if kind is _DIRECTORY:
            return self._directory(node, _below(parent.path, name), parent.nid)
        if kind is _SYMLINK:
            return self._symlink(node)
        if kind not in FILE_TYPES:
            raise UnsayableError(f"is a {kind.name.lower()}, which is nothing in a tree")
        major, minor = node.rdev
        if kind is Kind.FIFO:
            return self._inode(node, PLAIN, 0, 0, self._own(node))
        if kind is Kind.CHAR and not (major or minor):
            raise UnsayableError("is the char device 0:0, which overlayfs takes for a whiteout")
        if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
            raise UnsayableError(f"is the device {major}:{minor}; Linux has 4095:1048575 at most")
        device = (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12
        return self._inode(node, PLAIN, 0, device, self._own(node))

    def _file(self, node: Node) -> int:
        size = node.size
        if size == 0:
            return self._inode(node, PLAIN, 0, 0, self._own(node))
        digest = node.digest
        if digest is None:
            raise UnsayableError(f"has {size} bytes and no digest")
        if size <= self.inline_limit and node.extents is None:
            content = self.contents(digest)
            if content is not None:
                if len(content) != size:
                    raise UnsayableError(f"has {size} bytes, its content {len(content)}")
                return self._data(node, content)
        if size > MAX_SIZE:
            raise UnsayableError(f"has {size} bytes; EROFS has {MAX_SIZE} at most")
        redirect = xattrs.entry(xattrs.TRUSTED, _REDIRECT_NAME, self.redirect(digest))
        chunk_bits = (size - 1).bit_length() - 12 if size > BLOCK else 0
        area = self._own(node, (_METACOPY, redirect), _OVERLAY_BITS)
        return self._inode(node, CHUNKS, size, chunk_bits, area, HOLE)

    def _data(self, node: Node, content: bytes) -> int:
        size = len(content)
        inline = size % BLOCK
        if inline > _MAX_FILE_TAIL:
            inline = 0
        whole = size - inline
        start = len(self.blocks)
        for at in range(0, whole, BLOCK):
            self.blocks.append(content[at : min(at + BLOCK, whole)].ljust(BLOCK, b"\0"))
        layout = INLINE if inline else PLAIN
        nid = self._inode(node, layout, size, 0, self._own(node), content[whole:], inline)
        if whole:
            self.starts[nid] = start
        return nid

    def _symlink(self, node: Node) -> int:
        target = node.link
        size = len(target)
        if not 1 <= size <= MAX_TARGET or b"\0" in target:
            raise UnsayableError(f"is a symlink to {show(target[:80])} of {size} bytes")
        area = self._own(node)
        # The kernel wants the inode, its xattrs and an inline target in one block.
        length = INODE.size + len(area[0]) + sum(map(len, area[1])) + size
        if length <= BLOCK:
            return self._inode(node, INLINE, size, 0, area, target, length)
        nid = self._inode(node, PLAIN, size, 0, area)
        self.starts[nid] = len(self.blocks)
        self.blocks.append(target.ljust(BLOCK, b"\0"))
        return nid

    def _directory(self, node: Node, path: bytes, parent: int | None) -> int:
        names = _names(node, path)
        counts = _block_counts(names)
        last = names[len(names) - counts[-1] :]
        inline = 12 * len(last) + sum(map(len, last))
        if inline > _MAX_DIRECTORY_TAIL:
            inline = 0
        block = len(self.blocks)
        whole = len(counts) - (1 if inline else 0)
        self.blocks += [b""] * whole
        layout = INLINE if inline else PLAIN
        size = whole * BLOCK + inline
        nid = self._inode(node, layout, size, 0, self._own(node), bytes(inline), inline)
        if whole:
            self.starts[nid] = block
        tail = len(self.parts) - 2 if inline else None
        parent = nid if parent is None else parent
        self.pending.append(_Directory(path, node, nid, parent, names, counts, block, tail))
        return nid

    def _own(self, node: Node, overlay: tuple[bytes, ...] = (), overlay_bits: int = 0) -> _Area:
        """The xattr area of the node's own xattrs, those for overlayfs before them."""
        if not node.xattrs:
            return self._area(overlay, overlay_bits)
        own = self.encoded.get(node.xattrs)
        if own is None:
            own = self.encoded[node.xattrs] = xattrs.encode(node.xattrs)
        return self._area((*overlay, *own[0]), overlay_bits | own[1])

    def _area(self, entries: Sequence[bytes], bits: int) -> _Area:
        if not entries:
            return _NO_AREA
        shared: list[bytes] = []
        fresh: list[bytes] = []
        for entry in entries:
            place = self.known.get(entry)
            if place is None or len(shared) == xattrs.MAX_SHARED:
                fresh.append(entry)
            else:
                shared.append(_U32.pack(place))
        return xattrs.AREA.pack(~bits & 0xFFFFFFFF, len(shared)) + b"".join(shared), fresh

    def _inode(
        self,
        node: Node,
        layout: int,
        size: int,
        start: int,
        area: _Area,
        tail: bytes = b"",
        unbroken: int = 0,
    ) -> int:
        """Writes an inode and gives its nid; its last ``unbroken`` bytes are in one block.

        The last two of ``parts`` are then its tail and its padding.
        """
        mode, uid, gid = node.mode, node.uid, node.gid
        if mode > 0o7777 or uid == _NOBODY or gid == _NOBODY:
            raise UnsayableError(f"has the mode {mode:#o} and the owner {uid}:{gid}")
        head, fresh = area
        entries = b"".join(fresh)
        length = INODE.size + len(head) + len(entries) + len(tail)
        at = self.at
        if unbroken:
            end = at + length
            boundary = (end - 1) // BLOCK * BLOCK
            if end - unbroken < boundary:
                # Unbroken bytes are few enough to fit after rounding up, a symlink needs none.
                moved = (boundary - length + unbroken + 31) // 32 * 32
                self.parts.append(bytes(moved - at))
                at = moved
        place = at + INODE.size + len(head)
        for entry in fresh:
            self.known.setdefault(entry, place >> 2)
            place += len(entry)
        seconds, nanoseconds = divmod(node.mtime_ns, NANOSECOND)
        self.serial += 1
        core = INODE.pack(
            layout,
            (len(head) + len(entries) - 12) // 4 + 1 if head else 0,
            FILE_TYPES[node.kind][1] | mode,
            size,
            start,
            self.serial,
            uid,
            gid,
            seconds,
            nanoseconds,
            2 if node.children is not None else 1,
        )
        padding = -length & 31
        self.parts += (core, head, entries, tail, _ZEROS[padding])
        self.at = at + length + padding
        nid = self.nids[node] = at >> 5
        return nid


def _names(node: Node, path: bytes) -> list[bytes]:
    """The directory's names with ``.`` and ``..``, ascending. Raises ErofsError for a bad one."""
    children = node.children or {}
    names = sorted((*children, b".", b".."))
    joined = b"".join(names)
    if (
        b"/" in joined
        or b"\0" in joined
        or not names[0]
        or max(map(len, names)) > MAX_NAME
        or b"." in children
        or b".." in children
    ):
        for name in children:
            if not 1 <= len(name) <= MAX_NAME or name in (b".", b"..") or set(name) & {0, 0x2F}:
                raise ErofsError(
                    f"the directory {show(path)} has the entry {name[:80]!r}, which is no name",
                    hint="make the image again with a tool that writes sound archives",
                )
    return names


def _block_counts(names: list[bytes]) -> list[int]:
    """How many of the names go into each block of their directory."""
    if DIRENT.size * len(names) + sum(map(len, names)) <= BLOCK:
        return [len(names)]
    counts = []
    count = used = 0
    for name in names:
        needed = DIRENT.size + len(name)
        if used + needed > BLOCK:
            counts.append(count)
            count = used = 0
        count += 1
        used += needed
    return [*counts, count]


def _dirents(nids: list[int], types: list[int], names: list[bytes]) -> bytes:
    """One block of a directory."""
    offsets = accumulate(map(len, names), initial=DIRENT.size * len(names))
    return b"".join((*map(DIRENT.pack, nids, offsets, types), *names))


def _below(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _refusal(path: bytes, node: Node, error: Exception) -> ErofsError:
    if isinstance(error, struct.error):
        error = UnsayableError(
            f"has a number that is out of range: mode {node.mode:o}, owner {node.uid}:{node.gid}, "
            f"mtime {node.mtime_ns} ns, size {node.size}"
        )
    return ErofsError(
        f"{show(path)} {error}, which no metadata image can hold",
        hint="remove it from the image, or use the stacked driver",
    )
