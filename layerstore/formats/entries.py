"""A layer as an ordered list of entries, and the file that keeps it.

An entry is what one tar header says, names normalised: no leading ``/`` or ``./``, no trailing
``/``, the root is the empty path. A whiteout's path is the path that it hides, an opaque marker's
path is the directory whose lower children it hides.

The ``entries`` file (format 1; integers little-endian)::

    off  size  field
      0     8  magic ``LSENTRY1``
      8     8  u64 number of entries
     16     …  the entries, one after the other, in the layer's order
    end    32  sha256 of all bytes before it

    off  size  entry field
      0     1  kind: tar's typeflag, or ``W`` whiteout, ``O`` opaque
      1     1  1: a digest follows
      2     2  mode & 07777
      4     4  uid
      8     4  gid
     12     8  mtime, signed seconds
     20     4  mtime, nanoseconds
     24     8  size
     32     4  device major
     36     4  device minor
     40     4  length of path
     44     4  length of link
     48     4  number of xattrs
     52     4  number of extents
     56     …  path, link, digest (32), xattrs (u32 name length, u32 value length, name, value),
               extents (u64 offset, u64 length)
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from layerstore.errors import DamagedError
from layerstore.names import Digest

NANOSECOND = 1_000_000_000

CHUNK = 1 << 20
"""Bytes read at once: large enough that hashing and decompression run without the GIL."""

MAGIC = b"LSENTRY1"
_HEADER = struct.Struct("<8sQ")
_FIXED = struct.Struct("<BBHIIqIQIIIIII")
_PAIR = struct.Struct("<II")
_EXTENT = struct.Struct("<QQ")


class Kind(IntEnum):
    """What an entry or a node is; the values are tar's typeflags where tar has one."""

    FILE = ord("0")
    HARDLINK = ord("1")
    SYMLINK = ord("2")
    CHAR = ord("3")
    BLOCK = ord("4")
    DIRECTORY = ord("5")
    FIFO = ord("6")
    OPAQUE = ord("O")
    WHITEOUT = ord("W")


_KINDS = {int(kind): kind for kind in Kind}

Xattrs = tuple[tuple[bytes, bytes], ...]
"""(name, value) pairs, sorted by name."""

Extents = tuple[tuple[int, int], ...]
"""(offset, length) of the data of a sparse file, ascending; what lies between is zeros."""


class Entry(NamedTuple):
    """One entry of a layer. A file's ``digest`` names its object; see ``sparse`` for the exception.

    A file with ``extents`` is sparse: its digest is that of its PAX 1.0 payload (the map and the
    data, see ``formats.sparse``), so that a hole costs nothing to hash. None: a file without.
    """

    path: bytes
    kind: Kind
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    digest: Digest | None = None
    link: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: Xattrs = ()
    extents: Extents | None = None


def emit(entries: Iterable[Entry]) -> bytes:
    """The ``entries`` file."""
    parts: list[bytes] = []
    count = 0
    pack = _FIXED.pack
    for entry in entries:
        count += 1
        seconds, nanoseconds = divmod(entry.mtime_ns, NANOSECOND)
        digest = entry.digest
        extents = entry.extents
        parts.append(
            pack(
                entry.kind,
                (1 if digest else 0) | (2 if extents is not None else 0),
                entry.mode,
                entry.uid,
                entry.gid,
                seconds,
                nanoseconds,
                entry.size,
                *entry.rdev,
                len(entry.path),
                len(entry.link),
                len(entry.xattrs),
                len(extents or ()),
            )
        )
        parts.append(entry.path)
        parts.append(entry.link)
        if digest:
            parts.append(digest.raw)
        for name, value in entry.xattrs:
            parts += (_PAIR.pack(len(name), len(value)), name, value)
        for extent in extents or ():
            parts.append(_EXTENT.pack(*extent))
    body = b"".join((_HEADER.pack(MAGIC, count), *parts))
    return body + hashlib.sha256(body).digest()


def parse(raw: bytes, *, where: str) -> list[Entry]:
    """The entries of an ``entries`` file. Raises DamagedError, naming ``where``, on any flaw."""
    if len(raw) < _HEADER.size + 32 or hashlib.sha256(raw[:-32]).digest() != raw[-32:]:
        raise DamagedError(f"the entries of {where} are damaged", hint="import the image again")
    magic, count = _HEADER.unpack_from(raw)
    if magic != MAGIC:
        raise DamagedError(f"the entries of {where} have an unknown format {magic!r}")
    entries: list[Entry] = []
    append = entries.append
    unpack = _FIXED.unpack_from
    position = _HEADER.size
    for _ in range(count):
        (
            kind, flags, mode, uid, gid, seconds, nanoseconds, size, major, minor,
            path_length, link_length, xattr_count, extent_count,
        ) = unpack(raw, position)  # fmt: skip
        position += 56
        path = raw[position : position + path_length]
        position += path_length
        link = b""
        if link_length:
            link = raw[position : position + link_length]
            position += link_length
        digest = None
        if flags & 1:
            digest = Digest("sha256:" + raw[position : position + 32].hex())
            position += 32
        xattrs: Xattrs = ()
        if xattr_count:
            pairs = []
            for _ in range(xattr_count):
                name_length, value_length = _PAIR.unpack_from(raw, position)
                position += 8
                middle = position + name_length
                end = middle + value_length
                pairs.append((raw[position:middle], raw[middle:end]))
                position = end
            xattrs = tuple(pairs)
        extents: Extents | None = None
        if flags & 2:
            end = position + 16 * extent_count
            extents = tuple(_EXTENT.iter_unpack(raw[position:end]))
            position = end
        append(
            Entry(
                path,
                _KINDS[kind],
                mode,
                uid,
                gid,
                seconds * NANOSECOND + nanoseconds,
                size,
                digest,
                link,
                (major, minor),
                xattrs,
                extents,
            )
        )
    return entries
