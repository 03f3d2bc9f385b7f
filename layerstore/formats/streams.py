"""Byte streams: decompression by magic number, read-ahead with hashing, and exact reads.

Everything is an iterator of chunks, so memory is bounded by the chunk size whatever the length.
"""

from __future__ import annotations

import hashlib
import lzma
import queue
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self

from layerstore.errors import FormatError
from layerstore.formats.entries import CHUNK as CHUNK


class StreamError(FormatError):
    """A compressed stream is truncated, damaged, or expands beyond its limit."""


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may ask for. Checked before memory or disk is given."""

    entries: int = 2_000_000
    """Headers that are entries; about 700 bytes of memory each."""
    total_bytes: int = 1 << 40
    """The whole uncompressed stream."""
    file_bytes: int = 8 << 40
    """One file's size, holes included: what the composed driver can show."""
    ratio: int = 2_000
    """Uncompressed bytes for one compressed byte, once 256 MiB have come out."""
    record_bytes: int = 1 << 20
    """A PAX header, GNU long name or sparse map, as Go's archive/tar has it."""
    metadata_bytes: int = 1 << 28
    """Names, link targets, xattrs and sparse maps of all entries: they are held in memory."""
    path_bytes: int = 1 << 16
    depth: int = 1_000


RATIO_FREE = 256 << 20

_BITE = 64 << 10
"""Compressed bytes that a decoder gets at once. What is left of a bite when a member or frame ends
is copied, so that a chunk full of empty ones would cost its size for each of them."""
_ZSTD_BITE = 2048
"""Smaller: four compressed bytes may become 128 KiB, and decompressobj gives it all."""


def chunks_of(stream: Readable) -> Iterator[bytes]:
    """The stream in chunks, as it is."""
    while chunk := stream.read(CHUNK):
        yield chunk


def decompressed(stream: Readable, *, limits: Limits, where: str) -> Iterator[bytes]:
    """The uncompressed chunks of a plain, gzip, zstd or xz stream, told by its first bytes.

    Every gzip member and zstd frame is read; junk after the last one is an error. Raises
    StreamError, naming ``where``.
    """
    head = b""
    while len(head) < 6 and (chunk := stream.read(CHUNK)):
        head += chunk
    if head.startswith(b"\x1f\x8b"):
        decoder: Callable[[Iterator[bytes]], Iterator[bytes]] = _gunzip
    elif head.startswith(b"\x28\xb5\x2f\xfd") or head[1:4] == b"\x2a\x4d\x18":
        decoder = _unzstd
    elif head.startswith(b"\xfd7zXZ\0"):
        decoder = _unxz
    else:
        return _limited(_prepend(head, stream), None, limits, where)
    counter = _Counter(_prepend(head, stream))
    return _limited(decoder(counter), counter, limits, where)


def _prepend(head: bytes, stream: Readable) -> Iterator[bytes]:
    if head:
        yield head
    yield from chunks_of(stream)


class _Counter:
    """Counts the compressed bytes that went by."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.count = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        self.count += len(chunk)
        return chunk


def _limited(
    chunks: Iterator[bytes], compressed: _Counter | None, limits: Limits, where: str
) -> Iterator[bytes]:
    total = 0
    try:
        for chunk in chunks:
            total += len(chunk)
            if total > limits.total_bytes:
                raise StreamError(f"{where} is larger than the limit of {limits.total_bytes} bytes")
            taken = compressed.count if compressed is not None else total
            if total > RATIO_FREE and total > limits.ratio * max(taken, 1):
                raise StreamError(
                    f"{where} expands more than {limits.ratio} times",
                    hint="raise the limit if you trust the archive",
                )
            yield chunk
    except StreamError as error:
        if where in error.brief:
            raise
        raise StreamError(f"{where}: {error.brief}", hint=error.hint) from None


def _bites(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    for chunk in chunks:
        for start in range(0, len(chunk), size):
            yield chunk[start : start + size]


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    inflater = zlib.decompressobj(wbits=31)
    for pending in _bites(chunks, _BITE):
        while True:
            if inflater.eof:
                if not pending:
                    break
                inflater = zlib.decompressobj(wbits=31)
            try:
                out = inflater.decompress(pending, CHUNK)
            except zlib.error as error:
                raise StreamError(f"damaged gzip data ({error})") from None
            pending = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            if out:
                yield out
            elif not pending:
                break
    if not inflater.eof:
        raise StreamError("the gzip data is truncated")


def _unzstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    # Imported here: 6 ms that only compressed input should pay.
    import zstandard

    context = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    frame = context.decompressobj()
    ready: list[bytes] = []
    ready_bytes = 0
    for pending in _bites(chunks, _ZSTD_BITE):
        while pending:
            if frame.eof:
                frame = context.decompressobj()
            try:
                out = frame.decompress(pending)
            except zstandard.ZstdError as error:
                raise StreamError(f"damaged zstd data ({error})") from None
            pending = frame.unused_data if frame.eof else b""
            ready.append(out)
            ready_bytes += len(out)
            if ready_bytes >= CHUNK:
                whole = b"".join(ready)
                ready.clear()
                ready_bytes = 0
                # In chunks of the ordinary size, or a queue of them would hold too much.
                yield from _bites(iter((whole,)), CHUNK)
    if ready_bytes:
        yield b"".join(ready)
    if not frame.eof:
        raise StreamError("the zstd data is truncated")


_XZ_MEMORY = 160 << 20
"""As much as zstd may take; xz -9 needs 65 MiB."""


def _unxz(chunks: Iterator[bytes]) -> Iterator[bytes]:
    decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
    for pending in _bites(chunks, _BITE):
        while pending or not (decoder.eof or decoder.needs_input):
            if decoder.eof:
                pending = pending.lstrip(b"\0")  # stream padding, xz-file-format 2.2
                if not pending:
                    break
                decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
            try:
                out = decoder.decompress(pending, CHUNK)
            except lzma.LZMAError as error:
                raise StreamError(f"damaged xz data ({error})") from None
            if out:
                yield out
            pending = decoder.unused_data if decoder.eof else b""
    if not decoder.eof:
        raise StreamError("the xz data is truncated")


_END = None


class ReadAhead:
    """Chunks fetched and hashed by one helper thread while the caller works on earlier ones.

    A context manager; ``digest`` is the sha256 of all chunks, once they were all taken.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self._hasher = hashlib.sha256()
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(4)
        self._stop = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._done = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def _work(self) -> None:
        try:
            for chunk in self._chunks:
                self._hasher.update(chunk)
                if self._stop:
                    return
                self._queue.put(chunk)
            self._queue.put(_END)
        except BaseException as error:  # handed to the caller, who raises it
            self._queue.put(error)

    def __iter__(self) -> Iterator[bytes]:
        while not self._done:
            item = self._queue.get()
            if item is None:
                self._done = True
                return
            if isinstance(item, BaseException):
                self._done = True
                raise item
            yield item

    @property
    def digest(self) -> bytes:
        """The raw sha256. Call it after the last chunk."""
        self._thread.join()
        return self._hasher.digest()


class Exact:
    """Exact reads from an iterator of chunks."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._buffer = b""
        self._position = 0

    def take(self, size: int) -> bytes:
        """``size`` bytes, or what is left of the stream if that is less."""
        end = self._position + size
        if end <= len(self._buffer):
            piece = self._buffer[self._position : end]
            self._position = end
            return piece
        parts = [self._buffer[self._position :]]
        missing = size - len(parts[0])
        self._buffer = b""
        self._position = 0
        while missing > 0:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            if len(chunk) > missing:
                self._buffer = chunk
                self._position = missing
                chunk = chunk[:missing]
            parts.append(chunk)
            missing -= len(chunk)
        return b"".join(parts)

    def some(self, limit: int) -> bytes:
        """At least one and at most ``limit`` bytes; nothing at the end of the stream."""
        if self._position >= len(self._buffer):
            self._buffer = next(self._chunks, b"")
            self._position = 0
        end = min(self._position + limit, len(self._buffer))
        piece = self._buffer[self._position : end]
        self._position = end
        return piece
