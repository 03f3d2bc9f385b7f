"""The strict tar reader: V7, ustar, PAX, GNU and star archives to entries, bit for bit.

It refuses whatever Go's archive/tar refuses, so that every container tool sees the same tree, and
it never takes damage for the end. Python's tarfile does neither.

A header block (POSIX.1-2017, pax(1), "ustar Interchange Format"; GNU and star differ at 345)::

    off  size  field            off  size  field
      0   100  name             257     6  magic ``ustar\\0`` (GNU: ``ustar `` )
    100     8  mode             263     2  version ``00`` (GNU: `` \\0``)
    108     8  uid              265    32  uname
    116     8  gid              297    32  gname
    124    12  size             329     8  devmajor
    136    12  mtime            337     8  devminor
    148     8  checksum         345   155  prefix
    156     1  typeflag
    157   100  linkname         508     4  star: ``tar\\0``

Numbers are octal, or base-256 when the first bit is set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn
from zlib import adler32

from layerstore.errors import FormatError
from layerstore.formats import pax, sparse
from layerstore.formats.entries import NANOSECOND, Entry, Extents, Kind, Xattrs
from layerstore.formats.streams import CHUNK, Exact, Limits
from layerstore.formats.whiteout import read_name
from layerstore.formats.xattrs import XATTR_PREFIX, accepted_xattrs, fits

BLOCK = 512
_KNOWN_OCTALS = 10_000
_ZEROS = bytes(BLOCK)

MAX_ID = (1 << 32) - 2
"""2^32-1 means "leave it alone" to chown(2)."""
_MAX_MAJOR = (1 << 12) - 1
_MAX_MINOR = (1 << 20) - 1
_MAX_TIME = (1 << 63) * NANOSECOND

_EXTENSIONS = 4
"""Extension headers of the greatest size that one entry may have: name, link, PAX and one more."""

_KINDS = {
    ord("0"): Kind.FILE,
    0: Kind.FILE,
    ord("7"): Kind.FILE,
    ord("S"): Kind.FILE,
    ord("1"): Kind.HARDLINK,
    ord("2"): Kind.SYMLINK,
    ord("3"): Kind.CHAR,
    ord("4"): Kind.BLOCK,
    ord("5"): Kind.DIRECTORY,
    ord("6"): Kind.FIFO,
}


class TarError(FormatError):
    """The archive is malformed, truncated or hostile; the message says where and how."""


@dataclass(slots=True)
class Member:
    """One entry as it stands in the archive.

    ``entry`` has no digest yet: whoever takes the content knows it. ``raw`` is every byte of the
    archive between the content before and this content: padding, extension headers, the header, a
    sparse map. ``content_size`` bytes follow; for a sparse file they are the data of
    ``entry.extents``, one after the other.
    """

    entry: Entry
    raw: bytes
    content_size: int


@dataclass(slots=True)
class _Header:
    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    typeflag: int
    link: bytes
    rdev: tuple[int, int]
    block: bytes


@dataclass(slots=True)
class _Extensions:
    """What extension headers say of the next entry."""

    records: dict[bytes, bytes] = field(default_factory=dict)
    sparse_pairs: list[bytes] = field(default_factory=list)
    long_name: bytes = b""
    long_link: bytes = b""
    any: bool = False


class TarReader:
    """Iterates over an archive's members, in order, taking each content in between.

    After a member the caller takes ``content()`` to its end. After the last, ``trailer()`` gives
    what follows: the zero blocks, and whatever else the stream holds, which is never parsed.
    """

    def __init__(
        self,
        chunks: Iterator[bytes],
        *,
        where: str,
        limits: Limits | None = None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._source = Exact(chunks)
        self._where = where
        self._limits = limits or Limits()
        self._warn = warn
        self._offset = 0
        self._raw: list[bytes] = []
        self._kept = 0
        self._left = 0
        self._padding = 0
        self._shown: bytes | None = None
        # Modes, owners and times repeat: looking them up takes a fifth of parsing them.
        self._octals: dict[bytes, int] = {}
        self.has_end = False
        """Whether the zero blocks that end an archive were there: without them it may be cut."""

    def __iter__(self) -> Iterator[Member]:
        count = 0
        while (member := self._next()) is not None:
            count += 1
            if count > self._limits.entries:
                self._fail(f"has more than {self._limits.entries} entries")
            self._kept += _kept_bytes(member.entry)
            if self._kept > self._limits.metadata_bytes:
                self._fail(
                    f"has names, xattrs and maps of more than {self._limits.metadata_bytes} bytes"
                )
            yield member

    def content(self) -> Iterator[bytes]:
        """The current member's content, in chunks."""
        while self._left:
            chunk = self._source.some(min(self._left, CHUNK))
            if not chunk:
                self._fail("is truncated inside a file's content")
            self._left -= len(chunk)
            self._offset += len(chunk)
            yield chunk

    def whole_content(self) -> bytes:
        """The current member's content at once: for small ones."""
        content = self._source.take(self._left)
        if len(content) != self._left:
            self._fail("is truncated inside a file's content")
        self._offset += self._left
        self._left = 0
        return content

    def trailer(self) -> Iterator[bytes]:
        """Every byte after the last member's content."""
        yield b"".join(self._raw)
        self._raw = []
        while chunk := self._source.some(CHUNK):
            yield chunk

    # -- blocks ------------------------------------------------------------------------------

    def _fail(self, what: str) -> NoReturn:
        entry = f", entry {_for_people(self._shown)!r}" if self._shown else ""
        raise TarError(f"{self._where} {what} (at byte {self._offset}{entry})")

    def _take(self, size: int) -> bytes:
        piece = self._source.take(size)
        self._raw.append(piece)
        self._offset += len(piece)
        if len(piece) != size:
            self._fail("is truncated")
        return piece

    def _skip_padding(self) -> None:
        if self._padding:
            # A last padding that is missing is tolerated, as Go does: nothing is lost by it.
            piece = self._source.take(self._padding)
            self._raw.append(piece)
            self._offset += len(piece)
            self._padding = 0

    def _block(self) -> bytes | None:
        """The next header block, or None at the end of the archive."""
        block = self._source.take(BLOCK)
        self._raw.append(block)
        self._offset += len(block)
        if len(block) != BLOCK:
            if block:
                self._fail("is truncated inside a header")
            return None
        if block != _ZEROS:
            return block
        self.has_end = True
        second = self._source.take(BLOCK)
        self._raw.append(second)
        self._offset += len(second)
        if second and second != _ZEROS:
            self._fail("has a single zero block between headers" if len(second) == BLOCK
                       else "is truncated after a zero block")  # fmt: skip
        return None

    # -- members -----------------------------------------------------------------------------

    def _next(self) -> Member | None:
        if self._left:
            for _ in self.content():
                pass
        self._raw = []
        self._skip_padding()
        extensions = _Extensions()
        while True:
            self._shown = None
            block = self._block()
            if block is None:
                if extensions.any:
                    self._fail("ends after an extension header")
                return None
            header = self._header(block)
            typeflag = header.typeflag
            if typeflag == 0x78:  # x
                extensions.records.clear()
                extensions.sparse_pairs.clear()
                self._pax(header, extensions)
                extensions.any = True
            elif typeflag == 0x67:
                # g is read and of no effect, as in Go and thus in every peer. It ends what other
                # extension headers say: they are of the entry directly after them.
                self._pax(header, _Extensions())
                extensions = _Extensions()
            elif typeflag == 0x4C:  # L
                extensions.long_name = self._record(header).partition(b"\0")[0]
                extensions.any = True
            elif typeflag == 0x4B:  # K
                extensions.long_link = self._record(header).partition(b"\0")[0]
                extensions.any = True
            else:
                return self._member(header, extensions)

    def _header(self, block: bytes) -> _Header:
        # Two halves, because adler32's sum is modulo 65521 and a whole block may exceed it.
        total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2
        blanked = total - sum(block[148:156]) + 256
        checksum = self._octal(block[148:156], "checksum")
        if checksum != blanked:
            signed = blanked - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
            if checksum != signed:
                self._fail("has a header whose checksum is wrong")
        name = block[:100].partition(b"\0")[0]
        magic = block[257:265]
        rdev = (0, 0)
        if magic[:6] == b"ustar\0" or magic == b"ustar  \0":
            if block[329:345] != _NO_DEVICE and block[329:345] != _ZEROS[:16]:
                rdev = (
                    self._number(block[329:337], "device major"),
                    self._number(block[337:345], "device minor"),
                )
            if magic[5] == 0:
                width = 155
                if block[508:512] == b"tar\0":  # star keeps times where ustar's prefix ends
                    width = 131
                    for start in (476, 488):
                        self._number(block[start : start + 12], "time of access or change")
                if block[345] != 0:
                    prefix = block[345 : 345 + width].partition(b"\0")[0]
                    name = prefix + b"/" + name
            elif block[345] or block[357]:
                # GNU keeps atime and ctime where ustar has the prefix.
                for start in (345, 357):
                    if block[start]:
                        self._number(block[start : start + 12], "time of access or change")
        number = self._number
        return _Header(
            name,
            number(block[100:108], "mode"),
            number(block[108:116], "uid"),
            number(block[116:124], "gid"),
            number(block[124:136], "size"),
            number(block[136:148], "mtime") * NANOSECOND,
            block[156],
            block[157:257].partition(b"\0")[0],
            rdev,
            block,
        )

    def _number(self, raw: bytes, what: str) -> int:
        if raw[0] & 0x80:
            bits = 8 * len(raw)
            value = int.from_bytes(raw, "big")
            value = value - (1 << bits) if raw[0] & 0x40 else value & ~(1 << (bits - 1))
            if not -(1 << 63) <= value < 1 << 63:
                self._fail(f"has a {what} out of range")
            return value
        known = self._octals.get(raw)
        if known is None:
            known = self._octal(raw, what)
            if len(self._octals) < _KNOWN_OCTALS:
                self._octals[raw] = known
        return known

    def _octal(self, raw: bytes, what: str) -> int:
        digits = raw.strip(b" \0").partition(b"\0")[0]
        if not digits:
            return 0
        if not digits.isdigit() or b"8" in digits or b"9" in digits:
            self._fail(f"has a {what} that is no number: {raw!r}")
        return int(digits, 8)

    def _record(self, header: _Header) -> bytes:
        """The content of an extension header."""
        if not 0 <= header.size <= self._limits.record_bytes:
            self._fail(f"has an extension header of {header.size} bytes")
        if sum(map(len, self._raw)) + header.size > _EXTENSIONS * self._limits.record_bytes:
            self._fail("has too many extension headers before one entry")
        content = self._take(header.size)
        if padding := -header.size % BLOCK:
            self._take(padding)
        return content

    def _pax(self, header: _Header, extensions: _Extensions) -> None:
        try:
            for key, value in pax.parse(self._record(header)):
                if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                    expected = b"GNU.sparse.numbytes" if len(extensions.sparse_pairs) % 2 else (
                        b"GNU.sparse.offset")  # fmt: skip
                    if key != expected or b"," in value:
                        self._fail("has a malformed sparse map")
                    extensions.sparse_pairs.append(value)
                else:
                    extensions.records[key] = value
        except pax.PaxError as error:
            self._fail(f"has {error}")

    def _member(self, header: _Header, extensions: _Extensions) -> Member:
        if extensions.records:
            try:
                self._merge(header, extensions.records)
            except pax.PaxError as error:
                self._fail(f"has a PAX header in which {error}")
        if extensions.long_name:
            header.name = extensions.long_name
        if extensions.long_link:
            header.link = extensions.long_link
        self._shown = header.name
        kind = _KINDS.get(header.typeflag)
        if kind is None:
            self._fail(f"has an entry of the unknown type {chr(header.typeflag)!r}")
        if header.size < 0:
            self._fail("has a file of negative size")
        if header.typeflag == 0 and header.name.endswith(b"/"):
            kind = Kind.DIRECTORY
        # Header-only types have no content whatever their size field says, as in Go.
        content_size = header.size if kind is Kind.FILE else 0
        stored_size = content_size
        extents: Extents | None = None
        if kind is Kind.FILE:
            size, content_size, extents = self._sparse(header, extensions, content_size)
        else:
            size = 0
            if _sparse_version(extensions) is not None:
                self._fail("has a sparse map for what is no file")
        if size > self._limits.file_bytes:
            self._fail(f"has a file of {size} bytes; the limit is {self._limits.file_bytes}")
        self._padding = -stored_size % BLOCK
        self._left = content_size
        entry = self._entry(header, kind, size, extents, extensions.records)
        raw = b"".join(self._raw)
        self._raw = []
        return Member(entry, raw, content_size)

    def _merge(self, header: _Header, records: dict[bytes, bytes]) -> None:
        """What PAX records say goes before the header's fields; an empty value says nothing."""
        get = records.get
        header.name = get(b"path") or header.name
        header.link = get(b"linkpath") or header.link
        if value := get(b"uid"):
            header.uid = pax.parse_number(value)
        if value := get(b"gid"):
            header.gid = pax.parse_number(value)
        if value := get(b"size"):
            header.size = pax.parse_number(value)
        if value := get(b"mtime"):
            header.mtime_ns = pax.parse_time(value)
        for key in (b"atime", b"ctime"):
            if value := get(key):
                pax.parse_time(value)

    # -- sparse files ------------------------------------------------------------------------

    def _sparse(
        self, header: _Header, extensions: _Extensions, stored: int
    ) -> tuple[int, int, Extents | None]:
        """(size of the file, content bytes that follow, extents) of a regular file."""
        records = extensions.records
        if header.typeflag == 0x53:  # S
            size, pairs = self._gnu_sparse_map(header)
        elif (version := _sparse_version(extensions)) is not None:
            in_content = version == b"1"
            pairs = []
            if not in_content:
                text = records.get(b"GNU.sparse.map")
                listed = extensions.sparse_pairs or (text.split(b",") if text else [])
                pairs = self._pairs(listed)
                if self._decimal(records.get(b"GNU.sparse.numblocks", b"")) != len(pairs):
                    self._fail("has a malformed sparse map")
            header.name = records.get(b"GNU.sparse.name") or header.name
            shown = records.get(b"GNU.sparse.size") or records.get(b"GNU.sparse.realsize") or b""
            size = self._decimal(shown) if shown else stored
            if in_content:
                pairs, used = self._map_1_0(stored)
                stored -= used
        else:
            return stored, stored, None
        try:
            extents = sparse.check_extents(size, pairs)
        except ValueError as error:
            self._fail(f"has {error}")
        if sum(length for _, length in extents) != stored:
            self._fail("has a sparse file whose map and content disagree")
        return size, stored, extents if size else None

    def _decimal(self, text: bytes) -> int:
        if not text.isdigit() or len(text) > 19:
            self._fail("has a malformed sparse map")
        return int(text)

    def _pairs(self, numbers: list[bytes]) -> list[tuple[int, int]]:
        if len(numbers) % 2:
            self._fail("has a malformed sparse map")
        values = [self._decimal(number) for number in numbers]
        return list(zip(values[::2], values[1::2], strict=True))

    def _map_1_0(self, stored: int) -> tuple[list[tuple[int, int]], int]:
        """The map that begins a PAX 1.0 payload, and the bytes it takes."""
        used = 0
        text = b""
        numbers: list[bytes] = []
        wanted = 1
        while len(numbers) < wanted:
            if used + BLOCK > stored:
                self._fail("has a sparse map without an end")
            if used + BLOCK > self._limits.record_bytes:
                self._fail("has a sparse map that is too long")
            text += self._take(BLOCK)
            used += BLOCK
            *lines, text = text.split(b"\n")
            for line in lines:
                if len(numbers) < wanted:
                    numbers.append(line)
                    if len(numbers) == 1:
                        wanted = 1 + 2 * self._decimal(line)
            # After the last number come NULs, up to the end of the block.
            if len(text) > 20 and len(numbers) < wanted:
                self._fail("has a malformed sparse map")
        return self._pairs(numbers[1:]), used

    def _gnu_sparse_map(self, header: _Header) -> tuple[int, list[tuple[int, int]]]:
        """The old GNU format: four pairs in the header, 21 in each extension block."""
        block = header.block
        if block[257:265] != b"ustar  \0":
            self._fail("has a GNU sparse entry in an archive that is not GNU's")
        size = self._number(block[483:495], "size")
        if size < 0:
            self._fail("has a file of negative size")
        pairs: list[tuple[int, int]] = []
        fields, more = block[386:482], block[482]
        used = 0
        while True:
            for start in range(0, len(fields), 24):
                if fields[start] == 0:
                    break
                offset = self._number(fields[start : start + 12], "sparse offset")
                length = self._number(fields[start + 12 : start + 24], "sparse length")
                pairs.append((offset, length))
            if not more:
                return size, pairs
            used += BLOCK
            if used > self._limits.record_bytes:
                self._fail("has a sparse map that is too long")
            extension = self._take(BLOCK)
            fields, more = extension[:504], extension[504]

    # -- entries -----------------------------------------------------------------------------

    def _entry(
        self,
        header: _Header,
        kind: Kind,
        size: int,
        extents: Extents | None,
        records: dict[bytes, bytes],
    ) -> Entry:
        path = self._path(header.name, "name")
        if b".wh." in path:
            try:
                marker = read_name(path)
            except ValueError as error:
                self._fail(f"has {error}")
            if marker is not None:
                return marker
        uid, gid, mode = header.uid, header.gid, header.mode
        if not 0 <= uid <= MAX_ID or not 0 <= gid <= MAX_ID:
            self._fail(f"has an owner {uid}:{gid} that no kernel knows")
        if mode < 0:
            self._fail("has a negative mode")
        if not -_MAX_TIME <= header.mtime_ns < _MAX_TIME:
            self._fail("has a time that no kernel knows")
        link = b""
        rdev = (0, 0)
        if kind is Kind.SYMLINK:
            link = header.link
            if not link or len(link) > 4095 or b"\0" in link:
                self._fail("has a symlink whose target is empty or too long")
        elif kind is Kind.HARDLINK:
            link = self._path(header.link, "link target")
            if not link:
                self._fail("has a hard link to the root")
        elif kind is Kind.CHAR or kind is Kind.BLOCK:
            rdev = header.rdev
            if not (0 <= rdev[0] <= _MAX_MAJOR and 0 <= rdev[1] <= _MAX_MINOR):
                self._fail(f"has a device number {rdev[0]}:{rdev[1]} that no kernel knows")
            if kind is Kind.CHAR and rdev == (0, 0):
                self._fail("has a character device 0:0, which overlayfs takes for a whiteout")
        xattrs: Xattrs = ()
        if records and any(key.startswith(XATTR_PREFIX) for key in records):
            xattrs = accepted_xattrs(records, kind, header.name, self._warn)
            if not fits(xattrs):
                self._fail(f"has {len(xattrs)} xattrs of one file: more than it can have")
        if not path and kind is not Kind.DIRECTORY:
            self._fail("has a root that is no directory")
        return Entry(
            path, kind, mode & 0o7777, uid, gid, header.mtime_ns, size, None, link, rdev,
            xattrs, extents,
        )  # fmt: skip

    def _path(self, name: bytes, what: str) -> bytes:
        """The name without a leading ``/``, ``./`` and a trailing ``/``."""
        if not name:
            self._fail(f"has an entry with an empty {what}")
        if b"\0" in name:
            self._fail(f"has a {what} with a NUL in it")
        if len(name) > self._limits.path_bytes:
            self._fail(f"has a {what} of {len(name)} bytes")
        if name.startswith(b"./"):
            name = name[2:]
        if name.endswith(b"/"):
            name = name[:-1]
        if b"/." in b"/" + name or b"//" in name or name[:1] == b"/" or name[-1:] == b"/":
            parts = [part for part in name.split(b"/") if part and part != b"."]
            if b".." in parts:
                self._fail(f"has a {what} that leaves the root")
            name = b"/".join(parts)
        if len(name) > 255 or len(name) >= 2 * self._limits.depth:
            parts = name.split(b"/")
            if len(parts) > self._limits.depth:
                self._fail(f"has a {what} more than {self._limits.depth} levels deep")
            if max(map(len, parts)) > 255:
                self._fail(f"has a {what} with a component over 255 bytes")
        return name


def _for_people(name: bytes) -> str:
    shown = name if len(name) <= 300 else name[:200] + b"\xe2\x80\xa6" + name[-90:]
    return shown.decode("utf-8", "backslashreplace")


def _kept_bytes(entry: Entry) -> int:
    """Roughly the memory that an entry needs beyond that of a small one."""
    kept = len(entry.path) + len(entry.link)
    if entry.xattrs:
        kept += sum(200 + len(name) + len(value) for name, value in entry.xattrs)
    if entry.extents:
        kept += 120 * len(entry.extents)
    return kept


def _sparse_version(extensions: _Extensions) -> bytes | None:
    """The major version of GNU's PAX sparse format that an entry has, told as Go does."""
    records = extensions.records
    major = records.get(b"GNU.sparse.major", b"")
    minor = records.get(b"GNU.sparse.minor", b"")
    if (major, minor) in ((b"0", b"0"), (b"0", b"1"), (b"1", b"0")):
        return major
    if major or minor:
        return None
    # 0.0 and 0.1 had no versions at first.
    return b"0" if extensions.sparse_pairs or records.get(b"GNU.sparse.map") else None


_NO_DEVICE = b"0000000\x000000000\0"
