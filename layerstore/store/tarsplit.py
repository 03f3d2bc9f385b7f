"""What it takes to give a foreign tar back bit for bit: its raw bytes, contents left out.

Format 1: one zstd frame of::

    off  size  field
      0     8  magic ``LSTSPLT1``
      8     …  records:
                 ``R`` u32 length, bytes      bytes of the archive as they were
                 ``F`` 32 digest, u64 offset, u64 length   a range of an object's content

and after the frame, outside it, 32 bytes: the sha256 of the frame.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from layerstore.errors import DamagedError
from layerstore.formats.tar import Piece
from layerstore.names import Digest

MAGIC = b"LSTSPLT1"
_TOGETHER = 64 << 10
"""Bytes of records compressed by one call: records are small, and calls are not free."""
_RAW = struct.Struct("<cI")
_FILE = struct.Struct("<c32sQQ")


class TarsplitWriter:
    """Writes the archive's pieces, taken in order, to ``fd``, which it owns."""

    def __init__(self, fd: int) -> None:
        self._file = os.fdopen(fd, "wb")
        self._hasher = hashlib.sha256()
        self._records: list[bytes] = []
        self._size = 0
        self._compressor = zstandard.ZstdCompressor(level=3).compressobj()
        self._write(MAGIC)

    def raw(self, chunk: bytes) -> None:
        if chunk:
            self._write(_RAW.pack(b"R", len(chunk)) + chunk)

    def content(self, digest: Digest, offset: int, length: int) -> None:
        self._write(_FILE.pack(b"F", digest.raw, offset, length))

    def _write(self, record: bytes) -> None:
        self._records.append(record)
        self._size += len(record)
        if self._size >= _TOGETHER:
            self._compress()

    def _compress(self) -> None:
        self._put(self._compressor.compress(b"".join(self._records)))
        self._records.clear()
        self._size = 0

    def _put(self, packed: bytes) -> None:
        self._hasher.update(packed)
        self._file.write(packed)

    def finish(self) -> None:
        """Everything is written; the descriptor is closed."""
        self._compress()
        self._put(self._compressor.flush())
        self._file.write(self._hasher.digest())
        self._file.close()


def is_whole(path: Path) -> bool:
    """Whether a tarsplit is what was written."""
    try:
        with path.open("rb") as file:
            return _frame_size(file) is not None
    except OSError:
        return False


def _frame_size(file: BinaryIO) -> int | None:
    """Bytes of the frame; None if the digest after it is another's."""
    size = file.seek(0, os.SEEK_END) - 32
    file.seek(0)
    hasher = hashlib.sha256()
    left = size
    while left > 0 and (chunk := file.read(min(left, 1 << 20))):
        hasher.update(chunk)
        left -= len(chunk)
    return size if not left and hasher.digest() == file.read(32) else None


def parse(file: BinaryIO, *, where: str) -> Iterator[Piece]:
    """The pieces, in order, of a seekable file. Raises DamagedError, naming ``where``."""
    size = _frame_size(file)
    if size is None:
        raise DamagedError(f"the tar record of {where} is damaged", hint="import the image again")
    file.seek(0)
    reader = zstandard.ZstdDecompressor().stream_reader(_Frame(file, size))  # type: ignore[arg-type] # it only reads
    if reader.read(8) != MAGIC:
        raise DamagedError(f"the tar record of {where} has an unknown format")
    while tag := reader.read(1):
        if tag == b"R":
            (length,) = struct.unpack("<I", reader.read(4))
            yield Piece(reader.read(length))
        else:
            raw, offset, length = struct.unpack("<32sQQ", reader.read(48))
            yield Piece(b"", Digest.from_raw(raw), offset, length)


class _Frame:
    """The file without the digest at its end."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(min(size, self._left) if size >= 0 else self._left)
        self._left -= len(chunk)
        return chunk
