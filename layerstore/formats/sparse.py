"""Sparse files: which ones are kept as data and map, and the GNU PAX 1.0 payload that says so.

The image-spec has no sparse type, and a dense tar of a 1 TiB hole costs 1 TiB to hash. A file that
is mostly holes is therefore written as a GNU "PAX 1.0" sparse member: typeflag ``0``, a decimal
map, then the data. GNU tar, libarchive and Go's archive/tar, hence docker, podman and containerd,
read it as the full file.

Whether a file is sparse depends on its content alone, never on how a file system keeps it, so that
the same tree gives the same layer everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from layerstore.formats.entries import Extents

BLOCK = 4096
"""Zeros are looked for in aligned blocks of this many bytes."""

SPARSE_HOLES = 1 << 30
"""A file is kept sparse if at least so many bytes of it, and half of it, are blocks of zeros.

docker and podman load sparse members, but cannot save or push them again: tar-split has no word for
them. Below this size a dense member costs a second to hash, and every tool can handle it.
"""

MAX_MAP = 1 << 20
"""Bytes of a map; Go's archive/tar reads no longer one (CVE-2025-58183)."""

_ZERO_BLOCK = bytes(BLOCK)


def is_sparse(size: int, extents: Sequence[tuple[int, int]]) -> bool:
    holes = size - sum(length for _, length in extents)
    return holes >= SPARSE_HOLES and holes * 2 >= size


class ExtentFinder:
    """The canonical extents of a file: its blocks that are not all zeros, neighbours joined.

    Feed it the data in ascending order; what is not fed is taken as zeros.
    """

    def __init__(self) -> None:
        self.extents: list[tuple[int, int]] = []

    def feed(self, offset: int, chunk: bytes | memoryview) -> None:
        """``offset`` is a multiple of BLOCK."""
        size = len(chunk)
        if not size:
            return
        if any_data(chunk) is False:
            return
        for start in range(0, size, BLOCK):
            block = chunk[start : start + BLOCK]
            if block == _ZERO_BLOCK or (len(block) < BLOCK and not any(block)):
                continue
            self._add(offset + start, len(block))

    def _add(self, offset: int, length: int) -> None:
        if self.extents:
            last_offset, last_length = self.extents[-1]
            if last_offset + last_length == offset:
                self.extents[-1] = (last_offset, last_length + length)
                return
        self.extents.append((offset, length))


def any_data(chunk: bytes | memoryview) -> bool:
    """Whether any byte is not zero."""
    return bytes(chunk).count(0) != len(chunk)


def fitting(size: int, extents: Sequence[tuple[int, int]]) -> Extents:
    """The extents, with the smallest holes taken as data if the map were too long otherwise."""
    fitted = tuple(extents)
    least = 2 * BLOCK
    while len(fitted) > 1000 and len(emit_map(size, fitted)) > MAX_MAP:
        joined = [fitted[0]]
        for offset, length in fitted[1:]:
            start, before = joined[-1]
            if offset - (start + before) < least:
                joined[-1] = (start, offset + length - start)
            else:
                joined.append((offset, length))
        fitted = tuple(joined)
        least *= 2
    return fitted


def emit_map(size: int, extents: Extents) -> bytes:
    """The map at the start of a PAX 1.0 payload, padded to 512 bytes.

    As GNU tar writes it, a last empty extent marks the file's end.
    """
    numbers: list[int] = []
    for offset, length in extents:
        numbers += (offset, length)
    if not extents or sum(extents[-1]) != size:
        numbers += (size, 0)
    text = b"%d\n" % (len(numbers) // 2) + b"".join(b"%d\n" % number for number in numbers)
    return text + bytes(-len(text) % 512)


def payload_size(size: int, extents: Extents) -> int:
    """Bytes of map and data together."""
    return len(emit_map(size, extents)) + sum(length for _, length in extents)


def check_extents(size: int, extents: Sequence[tuple[int, int]]) -> Extents:
    """The extents without empty ones. Raises ValueError if they overlap or leave the file."""
    kept = []
    position = 0
    for offset, length in extents:
        if offset < position or length < 0 or offset + length > size:
            raise ValueError("a sparse map whose extents overlap or leave the file")
        position = offset + length
        if length:
            kept.append((offset, length))
    return tuple(kept)
