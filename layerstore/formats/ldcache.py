"""``/etc/ld.so.cache`` in glibc's new format: which file the loader takes for a library's name.

Header (48 bytes), rows (24 bytes each), strings. glibc 2.32 and later, ``elf/dl-cache.h``
("struct cache_file_new"); older loaders read it too, for they skip the extension fields.

======  ====  ===================================================================================
offset  size  header field
======  ====  ===================================================================================
0       20    ``glibc-ld.so.cache1.1``
20      4     rows
24      4     bytes of strings
28      1     byte order: 2 little, 3 big (0 in caches written before 2.33)
32      4     offset of the extension directory: 0, there is none
======  ====  ===================================================================================

A row is int32 flags, uint32 offset of the name, uint32 offset of the path, uint32 OS version (0),
uint64 hwcaps (0); offsets count from the file's start. Rows are sorted by name in descending order
of ``_dl_cache_libcmp``, which takes runs of digits as numbers: the loader searches by bisection.

Not supported: the old format (``ld.so-1.7.0``), a new-format part after an old one, and hwcaps
subdirectories, whose libraries would bind an image to its builder's processor.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from layerstore.errors import FormatError
from layerstore.formats.elf import (
    EM_386,
    EM_AARCH64,
    EM_ARM,
    EM_PPC64,
    EM_RISCV,
    EM_S390,
    EM_X86_64,
    Elf,
)

MAGIC = b"glibc-ld.so.cache1.1"
_LITTLE, _BIG = 2, 3
_ELF_LIBC6 = 0x0003
_ABI_FLAGS = {
    (EM_386, 32): 0,
    (EM_X86_64, 64): 0x0300,
    (EM_X86_64, 32): 0x0800,
    (EM_AARCH64, 64): 0x0A00,
    (EM_ARM, 32): 0x0900,  # hard float: the only ARM that distributions still build
    (EM_PPC64, 64): 0x0500,
    (EM_S390, 64): 0x0400,
    (EM_RISCV, 64): 0x1000,  # double float
}


@dataclass(frozen=True, slots=True)
class CachedLibrary:
    """One row: the loader takes ``path`` for ``name`` where ``flags`` are those of its own ABI."""

    name: bytes
    path: bytes
    flags: int


def flags_of(elf: Elf) -> int | None:
    """What the loader of that machine looks for; None where glibc's value is not known here."""
    abi = _ABI_FLAGS.get((elf.machine, elf.bits))
    return None if abi is None else _ELF_LIBC6 | abi


def emit(libraries: Iterable[CachedLibrary], *, little_endian: bool) -> bytes:
    """The cache's bytes. Of two rows with one name and ABI the loader takes the first given."""
    rows = sorted(libraries, key=lambda library: _order(library.name), reverse=True)
    order = "<" if little_endian else ">"
    start = 48 + 24 * len(rows)
    table, strings = bytearray(), bytearray()
    for row in rows:
        name_at = start + len(strings)
        strings += row.name + b"\0"
        path_at = start + len(strings)
        strings += row.path + b"\0"
        table += struct.pack(order + "iIIIQ", row.flags, name_at, path_at, 0, 0)
    byte_order = _LITTLE if little_endian else _BIG
    header = struct.pack(order + "20sIIB3xI12x", MAGIC, len(rows), len(strings), byte_order, 0)
    return bytes(header + table + strings)


def parse(cache: bytes, *, little_endian: bool) -> list[CachedLibrary]:
    """The rows in the file's order, those of hwcaps subdirectories left out."""
    if len(cache) < 48 or cache[:20] != MAGIC:
        raise FormatError(f"not an ld.so.cache of the new format: it begins with {cache[:20]!r}")
    order = "<" if little_endian else ">"
    count, size, byte_order = struct.unpack_from(order + "IIB", cache, 20)
    if byte_order & 3 not in (0, _LITTLE if little_endian else _BIG):
        raise FormatError(f"an ld.so.cache of the other byte order ({byte_order})")
    if 48 + 24 * count + size > len(cache):
        raise FormatError(f"an ld.so.cache of {count} rows ends at byte {len(cache)}")
    rows = struct.iter_unpack(order + "iIIIQ", cache[48 : 48 + 24 * count])
    return [
        CachedLibrary(_string(cache, name), _string(cache, path), flags)
        for flags, name, path, _, hwcaps in rows
        if hwcaps == 0
    ]


def _string(cache: bytes, start: int) -> bytes:
    end = cache.find(b"\0", start)
    if end < 0:
        raise FormatError(f"string {start} is outside the ld.so.cache")
    return cache[start:end]


def _order(name: bytes) -> list[tuple[int, int]]:
    """A key that compares as ``_dl_cache_libcmp``: a run of digits is above any other character."""
    return [
        (1, int(part)) if part.isdigit() else (0, part[0])
        for part in re.findall(rb"[0-9]+|[^0-9]", name, re.DOTALL)
    ]
