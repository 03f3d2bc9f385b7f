"""Compression of layers: the same input gives the same bytes, however many processors there are.

The counterpart of ``formats.streams.decompressed``. gzip is one member (RFC 1952) with no name, no
time and OS 255, its deflate data made of blocks of 1 MiB that are compressed independently, each
with the 32 KiB before it as dictionary, as pigz does. zstd is one frame that says its content size.
Another version of zlib or zstd may give other bytes: the DiffID is the identity, not these.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

from layerstore.formats.streams import Exact

Compression = Literal["zstd", "gzip", "none"]

_GZIP_LEVEL = 6
_ZSTD_LEVEL = 3
_ZSTD_JOB = 4 << 20
"""What one thread compresses at once; several are in memory. The default takes twice as much."""
_THREADS = 2
_BLOCK = 1 << 20
_WINDOW = 32 << 10


def compressed(chunks: Iterable[bytes], compression: Compression, *, size: int) -> Iterator[bytes]:
    """The compressed stream in chunks. ``size`` is that of all ``chunks`` together."""
    if compression == "gzip":
        return _gzip(chunks)
    if compression == "zstd":
        return _zstd(chunks, size)
    return iter(chunks)


def _gzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    yield b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
    source = Exact(chunks)
    checksum = 0
    size = 0
    window = b""
    block = source.take(_BLOCK)
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[Future[bytes]] = deque()
        while True:
            following = source.take(_BLOCK)
            waiting.append(pool.submit(_deflate, block, window, not following))
            checksum = zlib.crc32(block, checksum)
            size += len(block)
            if not following:
                break
            window, block = block[-_WINDOW:], following
            if len(waiting) > 2 * _THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    yield struct.pack("<II", checksum, size & 0xFFFFFFFF)


def _deflate(block: bytes, window: bytes, is_last: bool) -> bytes:
    deflater = zlib.compressobj(_GZIP_LEVEL, wbits=-15, zdict=window)
    packed = deflater.compress(block)
    return packed + deflater.flush(zlib.Z_FINISH if is_last else zlib.Z_SYNC_FLUSH)


def _zstd(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    import zstandard

    parameters = zstandard.ZstdCompressionParameters.from_level(
        _ZSTD_LEVEL, threads=_THREADS, job_size=_ZSTD_JOB
    )
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=size)
    for chunk in chunks:
        if packed := frame.compress(chunk):
            yield packed
    yield frame.flush()
