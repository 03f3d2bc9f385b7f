"""Compression is the same whatever the chunks, and every reader undoes it."""

from __future__ import annotations

import gzip
import hashlib
import random
import subprocess
from collections.abc import Iterator
from typing import get_args

import pytest
import zstandard
from abilities import needs_tool

from layerstore.formats import compress
from layerstore.formats.compress import Compression, compressed


def text(size: int) -> bytes:
    source = random.Random(1)
    words = [bytes(source.choices(range(97, 123), k=6)) + b" " for _ in range(2000)]
    return b"".join(source.choices(words, k=size // 7 + 1))[:size]


def chunks(content: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


SIZES = (0, 1, 1000, 1 << 20, (1 << 20) + 1, (9 << 20) + 12345)


@pytest.mark.parametrize("compression", get_args(Compression))
@pytest.mark.parametrize("size", SIZES)
def test_the_bytes_do_not_depend_on_the_chunks(compression: Compression, size: int) -> None:
    content = text(size)
    outputs = {
        hashlib.sha256(
            b"".join(compressed(chunks(content, step), compression, size=size))
        ).hexdigest()
        for step in (777, 1 << 20, 1 << 24)
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("size", SIZES)
def test_gzip_is_one_member_without_a_name_or_a_time(size: int) -> None:
    content = text(size)
    packed = b"".join(compressed([content], "gzip", size=size))
    assert packed[:10] == bytes.fromhex("1f8b08000000000000ff")
    assert gzip.decompress(packed) == content
    assert len(packed) < 100 + size * 0.7


@needs_tool("gzip")
def test_gzip_itself_reads_it() -> None:
    content = text(5 << 20)
    packed = b"".join(compressed([content], "gzip", size=len(content)))
    result = subprocess.run(["gzip", "-dc"], input=packed, capture_output=True, check=True)
    assert result.stdout == content


@pytest.mark.parametrize("size", SIZES)
def test_zstd_is_one_frame_that_says_its_size(size: int) -> None:
    content = text(size)
    packed = b"".join(compressed(chunks(content, 12345), "zstd", size=size))
    parameters = zstandard.get_frame_parameters(packed)
    assert parameters.content_size == size
    assert zstandard.ZstdDecompressor().decompress(packed) == content


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_the_bytes_do_not_depend_on_the_number_of_threads(
    compression: Compression, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = text((9 << 20) + 12345)
    outputs = set()
    for threads in (1, 2, 5):
        monkeypatch.setattr(compress, "_THREADS", threads)
        outputs.add(b"".join(compressed(chunks(content, 1 << 20), compression, size=len(content))))
    assert len(outputs) == 1


def test_an_error_of_the_source_reaches_the_caller() -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(3 << 20)
        raise KeyError("source")

    for compression in get_args(Compression):
        with pytest.raises(KeyError):
            list(compressed(broken(), compression, size=4 << 20))
