"""What a build reads from outside: the spec's folder, and the bases that are no image yet.

The only input before planning. Paths of a spec stay inside its folder: they are opened beneath it
(openat2(2), RESOLVE_BENEATH), whatever symlinks the folder holds.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from layerstore.cachekey import framed
from layerstore.errors import BuildError
from layerstore.formats.entries import Kind
from layerstore.formats.streams import CHUNK
from layerstore.kernel.fs import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, openat2
from layerstore.names import Digest
from layerstore.scancache import ScanCache, Stamp, stamp_of
from layerstore.spec import Source


class ContextFile(NamedTuple):
    """One file, directory or symlink of the folder that a step selects."""

    name: bytes
    """Relative to what was selected; empty for the selected thing itself."""
    kind: Kind
    mode: int
    size: int
    link: bytes
    path: bytes
    """In the folder."""
    stamp: Stamp


class Context:
    """The folder of a spec, as its ``ignore`` patterns leave it."""

    def __init__(
        self, folder: Path, ignore: tuple[str, ...], cache: ScanCache | None = None
    ) -> None:
        self.folder = folder
        self._cache = cache
        self._selected: dict[tuple[Source, bool], list[ContextFile]] = {}
        self.digests: dict[bytes, Digest] = {}
        """Of the files whose content is part of some key: what is copied must be that."""
        self._fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._ignored = _matcher(ignore)

    def close(self) -> None:
        os.close(self._fd)

    def open(self, path: bytes, flags: int = os.O_RDONLY) -> int:
        """A descriptor of a path of the folder. Raises BuildError."""
        try:
            return openat2(
                self._fd, path or b".", flags, 0, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
            )
        except OSError as error:
            shown = os.fsdecode(path)
            if error.errno in (errno.EXDEV, errno.ELOOP):
                raise BuildError(
                    f"{shown!r} leads out of the folder {self.folder}",
                    hint="copy the files into the folder of the spec",
                ) from None
            raise BuildError(
                f"{shown!r} in the folder {self.folder}: {os.strerror(error.errno or 0)}",
                hint="paths are relative to the folder of the spec; ignore may hide a file",
            ) from None

    def check(self, path: bytes) -> None:
        """Raises BuildError unless the path is there and in the folder."""
        os.close(self.open(path, os.O_PATH))

    def read(self, path: bytes) -> bytes:
        fd = self.open(path)
        with os.fdopen(fd, "rb") as file:
            return file.read()

    def select(self, source: Source) -> list[ContextFile]:
        """What a source stands for, parents first, siblings bytewise. Raises BuildError.

        Looked at once: a step copies what its key was made of.
        """
        known = self._selected.get((source, source.contents))
        if known is None:
            known = self._selected[(source, source.contents)] = self._select(source)
        return known

    def _select(self, source: Source) -> list[ContextFile]:
        top = self.look(source.path)
        if top.kind is not Kind.DIRECTORY:
            if source.contents:
                raise BuildError(
                    f"{os.fsdecode(source.path)!r} is no directory",
                    hint="leave out the slash at its end",
                )
            return [top]
        return [top, *self._walk(source.path, b"", self._ignored)]

    def below(self, path: bytes) -> list[ContextFile]:
        """A path of the folder with all that is in it, ignored or not, as it is now."""
        top = self.look(path)
        if top.kind is not Kind.DIRECTORY:
            return [top]
        return [top, *self._walk(path, b"", _nothing_ignored)]

    def resolve(self, path: bytes) -> bytes:
        """The path of the folder that this one leads to, every symlink followed."""
        folder = os.readlink(f"/proc/self/fd/{self._fd}".encode())
        real = os.fsencode(self.real_path(path))
        return real[len(folder) :].strip(b"/") or b"."

    def real_path(self, path: bytes) -> Path:
        """Where a path of the folder is on the host, once every symlink is followed."""
        fd = self.open(path, os.O_PATH)
        try:
            return Path(os.readlink(f"/proc/self/fd/{fd}"))
        finally:
            os.close(fd)

    def look(self, path: bytes) -> ContextFile:
        """What is at a path of the folder; a symlink is not followed."""
        fd = self.open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            link = os.readlink(b"", dir_fd=fd) if stat.S_ISLNK(status.st_mode) else b""
        finally:
            os.close(fd)
        return _context_file(b"", path, status, link)

    def _walk(
        self, folder: bytes, name: bytes, ignored: Callable[[bytes, bool], bool]
    ) -> Iterator[ContextFile]:
        path = folder + b"/" + name if name else folder
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            found = sorted(os.fsencode(child) for child in os.listdir(fd))
            for child in found:
                status = os.stat(child, dir_fd=fd, follow_symlinks=False)
                inner = name + b"/" + child if name else child
                full = path + b"/" + child if path != b"." else child
                if ignored(full, stat.S_ISDIR(status.st_mode)):
                    continue
                if stat.S_ISSOCK(status.st_mode):
                    continue
                link = os.readlink(child, dir_fd=fd) if stat.S_ISLNK(status.st_mode) else b""
                file = _context_file(inner, full, status, link)
                yield file
                if file.kind is Kind.DIRECTORY:
                    yield from self._walk(folder, inner, ignored)
        finally:
            os.close(fd)

    def digest(self, files: list[ContextFile], mode_of: Callable[[ContextFile], int]) -> Digest:
        """What is selected: names, modes as they will be, links and contents; no times."""
        parts: list[bytes] = []
        for file in files:
            content = self.known_digest(file) if file.kind is Kind.FILE else ""
            parts += (
                file.name,
                b"%c %o" % (file.kind, mode_of(file)),
                file.link,
                content.encode(),
            )
        return framed(parts)

    def known_digest(self, file: ContextFile) -> Digest:
        """As ``content_digest``; a file that did not change since it was last read stays unread."""
        if self._cache is None:
            digest = self.content_digest(file)
        else:
            digest = self._cache.digest(file.path, file.stamp, lambda: self.content_digest(file))
        self.digests[file.path] = digest
        return digest

    def content_digest(self, file: ContextFile) -> Digest:
        """Raises BuildError if the file changes while it is read."""
        fd = self.open(file.path)
        try:
            before = os.fstat(fd)
            hasher = hashlib.sha256()
            while chunk := os.read(fd, CHUNK):
                hasher.update(chunk)
            after = os.fstat(fd)
        finally:
            os.close(fd)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise BuildError(f"{os.fsdecode(file.path)!r} changed while it was read")
        return Digest("sha256:" + hasher.hexdigest())


def _nothing_ignored(path: bytes, is_directory: bool) -> bool:
    return False


def _context_file(name: bytes, path: bytes, status: os.stat_result, link: bytes) -> ContextFile:
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        raise BuildError(
            f"{os.fsdecode(path)!r} is a device or socket, which no step can copy",
            hint="add it to ignore",
        )
    size = status.st_size if kind is Kind.FILE else 0
    return ContextFile(name, kind, stat.S_IMODE(status.st_mode), size, link, path, stamp_of(status))


_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFIFO: Kind.FIFO,
}


def _matcher(patterns: tuple[str, ...]) -> Callable[[bytes, bool], bool]:
    """Whether a path of the folder is ignored, by gitignore(5)."""
    if not patterns:
        return lambda path, is_directory: False
    from pathspec import GitIgnoreSpec

    matcher = GitIgnoreSpec.from_lines(patterns)

    def ignored(path: bytes, is_directory: bool) -> bool:
        return matcher.match_file(os.fsdecode(path) + ("/" if is_directory else ""))

    return ignored


def fingerprint(paths: list[bytes]) -> Digest | None:
    """What stat(2) says of files: while it stays the same, so do their contents.

    None if one changed so recently that a further change might leave the same times (git's "racy"
    rule, with two seconds for coarse clocks): read them then.
    """
    newest = 0
    parts: list[bytes] = []
    for path in paths:
        status = os.stat(path)
        newest = max(newest, status.st_mtime_ns, status.st_ctime_ns)
        fields = (
            status.st_dev, status.st_ino, status.st_mode, status.st_size,
            status.st_mtime_ns, status.st_ctime_ns,
        )  # fmt: skip
        parts += (path, b" ".join(b"%d" % field for field in fields))
    if newest > now_ns() - 2_000_000_000:
        return None
    return framed(parts)


def now_ns() -> int:
    """The file system's clock, not the wall's: that of a file just made."""
    import tempfile

    with tempfile.TemporaryFile() as probe:
        return os.fstat(probe.fileno()).st_mtime_ns
