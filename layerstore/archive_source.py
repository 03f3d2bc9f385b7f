"""The files of an image archive, by name: those of a directory, or the members of a tar.

A tar is indexed once, by its headers, and its members are then read in place, in any order. A
compressed one, or one that comes through a pipe, is spooled first. Nothing is ever extracted.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol, Self

from layerstore.errors import FormatError, HostError, NotFoundError
from layerstore.formats.entries import Kind
from layerstore.formats.oci import MAX_DOCUMENT, OciError
from layerstore.formats.streams import CHUNK, Limits, decompressed
from layerstore.formats.untar import BLOCK, TarError, TarReader
from layerstore.kernel.fs import write_all

_MAX_MEMBERS = 100_000
_MAX_SYMLINKS = 8
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0")
_ENDINGS = (".gz", ".zst", ".xz", ".tgz", ".txz", ".tzst", ".tar")


class Part:
    """One file, read from its start. Owns its descriptor; a context manager."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd = fd
        self._position = offset
        self._end = offset + size
        self.size = size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, size: int, /) -> bytes:
        chunk = os.pread(self._fd, min(size, self._end - self._position), self._position)
        self._position += len(chunk)
        return chunk


class Files(Protocol):
    """What an image archive holds."""

    where: str
    """The archive, for people."""
    stem: str
    """Its name without endings."""
    is_folder: bool

    def has(self, name: str) -> bool: ...

    def open(self, name: str) -> Part:
        """Raises FormatError if there is no such file."""
        ...


def read_document(files: Files, name: str) -> bytes:
    """A whole small file."""
    with files.open(name) as part:
        if part.size > MAX_DOCUMENT:
            raise OciError(f"{files.where}: {name} is longer than any document: {part.size} bytes")
        content = b""
        while chunk := part.read(CHUNK):
            content += chunk
        return content


def open_input(path: Path) -> int:
    """A descriptor of a file to read. Raises NotFoundError or HostError, with what to do."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"there is no file {str(path)!r}", hint="check the path") from None
    except OSError as error:
        raise HostError(
            f"{str(path)!r} cannot be read: {error.strerror}", hint="check who may read it"
        ) from error


@contextmanager
def opened(path: Path, *, spool: Callable[[], Path], limits: Limits) -> Iterator[Files]:
    """The files of the archive at ``path``. ``spool`` gives a path that may hold a copy of it."""
    with ExitStack() as stack:
        fd = open_input(path)
        stack.callback(os.close, fd)
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            yield Folder(path, fd)
            return
        if not stat.S_ISREG(mode) or os.pread(fd, 6, 0).startswith(_COMPRESSED):
            fd = _spooled(fd, spool(), limits, str(path))
            stack.callback(os.close, fd)
        yield Tarball(path, fd, limits)


def _spooled(fd: int, target: Path, limits: Limits, where: str) -> int:
    copy = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "rb", buffering=0, closefd=False) as stream:
            for chunk in decompressed(stream, limits=limits, where=where):
                write_all(copy, chunk)
    except BaseException:
        os.close(copy)
        raise
    return copy


class Folder:
    """The files of a directory. Symlinks are followed: what they lead to is checked by digest."""

    is_folder = True

    def __init__(self, path: Path, fd: int) -> None:
        self.where = str(path)
        self.stem = Path(os.path.abspath(path)).name
        self._fd = fd

    def has(self, name: str) -> bool:
        try:
            return stat.S_ISREG(os.stat(name, dir_fd=self._fd).st_mode)
        except OSError:
            return False

    def open(self, name: str) -> Part:
        try:
            # Non-blocking: a fifo must not stop us before it is seen to be one.
            fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            raise FormatError(f"{self.where} has no file {name}") from None
        except OSError as error:
            raise HostError(f"{self.where}/{name} cannot be read: {error.strerror}") from error
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise FormatError(f"{self.where}: {name} is no regular file")
        return Part(fd, 0, status.st_size)


class Tarball:
    """The members of a tar. Of two with one name the last counts; symlinks stay inside."""

    is_folder = False

    def __init__(self, path: Path, fd: int, limits: Limits) -> None:
        self.where = str(path)
        self.stem = _stem(path.name)
        self._fd = fd
        self._files: dict[bytes, tuple[int, int]] = {}
        self._links: dict[bytes, bytes] = {}
        self._index(limits)

    def _index(self, limits: Limits) -> None:
        size = os.fstat(self._fd).st_size
        source = _Headers(self._fd)
        bounds = replace(limits, entries=min(limits.entries, _MAX_MEMBERS))
        reader = TarReader(source.chunks(), where=self.where, limits=bounds)
        for member in reader:
            entry, start = member.entry, source.position
            self._files.pop(entry.path, None)
            self._links.pop(entry.path, None)
            if entry.kind is Kind.FILE and entry.extents is None:
                self._files[entry.path] = (start, member.content_size)
            elif entry.kind is Kind.SYMLINK:
                folder = posixpath.dirname(entry.path)
                self._links[entry.path] = posixpath.normpath(posixpath.join(folder, entry.link))
            elif entry.kind is Kind.HARDLINK:
                self._links[entry.path] = entry.link
            if start + member.content_size > size:
                raise TarError(
                    f"{self.where} is truncated inside {entry.path.decode(errors='replace')}"
                )
            source.skip(member.content_size)

    def _find(self, name: str) -> tuple[int, int] | None:
        key = posixpath.normpath(name.encode(errors="replace"))
        for _ in range(_MAX_SYMLINKS):
            if key not in self._links:
                break
            key = self._links[key].lstrip(b"/")
        return self._files.get(key)

    def has(self, name: str) -> bool:
        return self._find(name) is not None

    def open(self, name: str) -> Part:
        found = self._find(name)
        if found is None:
            raise FormatError(
                f"{self.where} has no file {name!r}",
                hint="the archive is incomplete: write it again",
            )
        return Part(os.dup(self._fd), *found)


class _Headers:
    """A tar's headers as chunks for a reader; contents are passed over, not read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._skip = 0
        self.position = 0

    def skip(self, size: int) -> None:
        """The next ``size`` bytes, up to the end of their block, need not be true."""
        self._skip = size + -size % BLOCK

    def chunks(self) -> Iterator[bytes]:
        # One block at a time, so that the reader holds nothing back when a content begins.
        while True:
            if self._skip:
                chunk = _ANY[: self._skip]
                self._skip -= len(chunk)
            else:
                chunk = os.pread(self._fd, BLOCK, self.position)
            if not chunk:
                return
            self.position += len(chunk)
            yield chunk


_ANY = bytes(CHUNK)


def _stem(name: str) -> str:
    while (root := os.path.splitext(name))[1] in _ENDINGS:
        name = root[0]
    return name
