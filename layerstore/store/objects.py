"""File contents, each distinct one once.

An object's name is the sha256 of its content, or for a sparse file the sha256 of its PAX payload
(``formats.sparse``): the map and the data, so that a hole costs nothing. What is at a final name
is complete and flushed; only ``store.atomic`` puts it there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress

from layerstore.errors import DamagedError
from layerstore.formats import sparse
from layerstore.formats.entries import CHUNK, Extents
from layerstore.kernel.fs import data_extents
from layerstore.names import Digest
from layerstore.store.layout import Layout, is_digits


class Objects:
    """Reads objects."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        # A Path for each of 100,000 lookups costs more than the lookups.
        self._folder = os.fspath(layout.objects)

    def _path(self, digest: Digest) -> str:
        return f"{self._folder}/{digest[7:9]}/{digest[9:]}"

    def has(self, digest: Digest, size: int) -> bool:
        """Whether the object is there with the right size: a name alone is no hit."""
        try:
            return os.stat(self._path(digest)).st_size == size
        except FileNotFoundError:
            return False

    def open(self, digest: Digest) -> int:
        """A read-only descriptor. Raises DamagedError if the object is missing."""
        try:
            return os.open(self._path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DamagedError(
                f"the object {digest} is missing",
                hint="run layerstore fsck to see which images need it, and import them again",
            ) from None

    def read(self, digest: Digest) -> bytes:
        """The whole content: for small objects."""
        fd = self.open(digest)
        try:
            size = os.fstat(fd).st_size
            content = os.read(fd, size + 1)
            while len(content) < size:
                more = os.read(fd, size - len(content))
                if not more:
                    break
                content += more
            return content
        finally:
            os.close(fd)

    def chunks(self, digest: Digest, offset: int, length: int) -> Iterator[bytes]:
        """A range of the content. Raises DamagedError if the object is shorter."""
        fd = self.open(digest)
        try:
            left = length
            while left:
                chunk = os.pread(fd, min(left, CHUNK), offset)
                if not chunk:
                    raise DamagedError(
                        f"the object {digest} is shorter than its layer says",
                        hint="import the image again: that replaces the object",
                    )
                offset += len(chunk)
                left -= len(chunk)
                yield chunk
        finally:
            os.close(fd)

    def all(self) -> Iterator[tuple[Digest, os.stat_result]]:
        """Every object's name and status. What has no object's name is none: fsck reports it."""
        for prefix in range(256):
            folder = f"{prefix:02x}"
            with suppress(FileNotFoundError), os.scandir(self._layout.objects / folder) as found:
                for item in found:
                    if is_digits(folder + item.name):
                        with suppress(FileNotFoundError):
                            status = item.stat(follow_symlinks=False)
                            yield Digest(f"sha256:{folder}{item.name}"), status


def digest_of_file(fd: int, extents: Extents | None) -> Digest:
    """The name that the content of an open file deserves."""
    hasher = hashlib.sha256()
    size = os.fstat(fd).st_size
    if extents is not None:
        hasher.update(sparse.emit_map(size, extents))
    for offset, length in ((0, size),) if extents is None else extents:
        position = offset
        while position < offset + length:
            chunk = os.pread(fd, min(CHUNK, offset + length - position), position)
            if not chunk:
                break
            hasher.update(chunk)
            position += len(chunk)
    return Digest("sha256:" + hasher.hexdigest())


def canonical_extents(fd: int, size: int) -> Extents:
    """The blocks of an open file that are not all zeros, as far as a map can list them.

    Holes are not read.
    """
    finder = sparse.ExtentFinder()
    for offset, length in data_extents(fd, size):
        position = offset - offset % sparse.BLOCK
        end = offset + length
        while position < end:
            chunk = os.pread(fd, min(CHUNK, size - position), position)
            if not chunk:
                break
            finder.feed(position, chunk)
            position += len(chunk)
    return sparse.fitting(size, finder.extents)
