"""The canonical tar: the one archive of a list of entries, the same on every machine.

Format 1, frozen: golden digests hold it, docs/formats.md describes it. It is Go's archive/tar
output in PAX mode, so that layers of ordinary files equal containerd's byte for byte: ustar headers
with no names of owners, PAX records only where ustar cannot say it, and two zero blocks at the end.
The layout of a header is drawn in ``formats.untar``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from layerstore.formats import pax, sparse
from layerstore.formats.entries import NANOSECOND, Entry, Kind
from layerstore.formats.untar import BLOCK as BLOCK
from layerstore.formats.whiteout import write_name
from layerstore.formats.xattrs import XATTR_PREFIX
from layerstore.names import Digest

CANONICAL_FORMAT = 1
END = bytes(2 * BLOCK)

_MAX_OCTAL_8 = 0o7777777
_MAX_OCTAL_12 = 0o77777777777


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of the archive, or a range of an object's content where ``digest`` is given."""

    raw: bytes
    digest: Digest | None = None
    offset: int = 0
    length: int = 0


def pieces(entries: Iterable[Entry]) -> Iterator[Piece]:
    """The archive as headers and references to contents, in order."""
    for entry in entries:
        head = header(entry)
        if entry.kind is not Kind.FILE or not entry.size or entry.digest is None:
            yield Piece(head)
            continue
        if entry.extents is None:
            yield Piece(head)
            yield Piece(b"", entry.digest, 0, entry.size)
            stored = entry.size
        else:
            mapped = sparse.emit_map(entry.size, entry.extents)
            yield Piece(head + mapped)
            for offset, length in entry.extents:
                yield Piece(b"", entry.digest, offset, length)
            stored = len(mapped) + sum(length for _, length in entry.extents)
        if padding := -stored % BLOCK:
            yield Piece(bytes(padding))
    yield Piece(END)


def header(entry: Entry) -> bytes:
    """Every header block of an entry: PAX header and records where needed, then its own."""
    if entry.kind is Kind.WHITEOUT or entry.kind is Kind.OPAQUE:
        entry = Entry(write_name(entry), Kind.FILE)
    name = entry.path or b"."
    if entry.kind is Kind.DIRECTORY:
        name += b"/"
    size = entry.size if entry.kind is Kind.FILE else 0
    seconds, nanoseconds = divmod(entry.mtime_ns, NANOSECOND)
    records: dict[bytes, bytes] = {}
    if entry.kind is Kind.FILE and entry.extents is not None:
        records |= {
            b"GNU.sparse.major": b"1",
            b"GNU.sparse.minor": b"0",
            b"GNU.sparse.name": name,
            b"GNU.sparse.realsize": b"%d" % size,
        }
        head, _, base = name.rpartition(b"/")
        name = (head + b"/" if head else b"") + b"GNUSparseFile.0/" + base
        size = sparse.payload_size(size, entry.extents)
    prefix, suffix = b"", name
    must = bool(records)
    if len(name) > 100 or not _is_ascii(name):
        records[b"path"] = name
        split = _split(name)
        if split is None:
            must = True
        else:
            prefix, suffix = split
    link = entry.link
    if len(link) > 100 or not _is_ascii(link):
        records[b"linkpath"] = link
        must = True
    for key, value, most in (
        (b"uid", entry.uid, _MAX_OCTAL_8),
        (b"gid", entry.gid, _MAX_OCTAL_8),
        (b"size", size, _MAX_OCTAL_12),
    ):
        if value > most:
            records[key] = b"%d" % value
            must = True
    if not 0 <= seconds <= _MAX_OCTAL_12 or nanoseconds:
        records[b"mtime"] = _time(entry.mtime_ns)
        must = True
    for xattr, content in entry.xattrs:
        records[XATTR_PREFIX + xattr] = content
        must = True
    if not must:
        return _block(entry, suffix, size, seconds, link, prefix)
    body = pax.emit(sorted(records.items()))
    head, _, base = name.rpartition(b"/")
    # Go's path.Join: a directory's own name is the folder, and the root's is none.
    parts = (head if entry.path else b"", b"PaxHeaders.0", base)
    pax_name = _only_ascii(b"/".join(part for part in parts if part))[:100].rstrip(b"/")
    return b"".join(
        (
            _raw_block(pax_name, len(body)),
            body,
            bytes(-len(body) % BLOCK),
            _block(entry, _only_ascii(name), size, seconds, _only_ascii(link), b""),
        )
    )


def _block(entry: Entry, name: bytes, size: int, seconds: int, link: bytes, prefix: bytes) -> bytes:
    major, minor = entry.rdev
    uid, gid = entry.uid, entry.gid
    block = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0        %c%sustar\x0000%s%07o\0%07o\0%s" % (
        _field(name, 100),
        entry.mode,
        uid if uid <= _MAX_OCTAL_8 else 0,
        gid if gid <= _MAX_OCTAL_8 else 0,
        size if size <= _MAX_OCTAL_12 else 0,
        seconds if 0 <= seconds <= _MAX_OCTAL_12 else 0,
        entry.kind,
        _field(link, 100),
        _NAMES,
        major,
        minor,
        prefix.ljust(167, b"\0"),
    )
    return _summed(block)


def _raw_block(name: bytes, size: int) -> bytes:
    """The header of PAX records: zeros where an entry has attributes, NULs for the device."""
    block = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0        x%sustar\x0000%s" % (
        name.ljust(100, b"\0"), 0, 0, 0, size, 0, bytes(100), bytes(247),
    )  # fmt: skip
    return _summed(block)


_NAMES = bytes(64)


def _summed(block: bytes) -> bytes:
    return b"%s%06o\0 %s" % (block[:148], sum(block), block[156:])


def _field(text: bytes, width: int) -> bytes:
    """Go's formatString: cut to the width, and no cut name may end in a slash.

    Some readers take a regular file whose ustar name ends in one for a directory.
    """
    if len(text) > width:
        cut = text[:width]
        return cut[:-1].rstrip(b"/").ljust(width, b"\0") if cut.endswith(b"/") else cut
    return text.ljust(width, b"\0")


def _is_ascii(text: bytes) -> bool:
    return text.isascii() and b"\0" not in text


def _only_ascii(text: bytes) -> bytes:
    return text if text.isascii() else text.translate(None, bytes(range(128, 256)))


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """(prefix, name) of a ustar header, split where Go's splitUSTARPath does; None: it can't be."""
    if not _is_ascii(name):
        return None
    length = len(name)
    if length > 156:
        length = 156
    elif name.endswith(b"/"):
        length -= 1
    index = name.rfind(b"/", 0, length)
    rest = len(name) - index - 1
    if index <= 0 or not 0 < rest <= 100 or index > 155:
        return None
    return name[:index], name[index + 1 :]


def _time(mtime_ns: int) -> bytes:
    """A PAX time: decimal seconds, with a fraction only if there is one."""
    sign = b"-" if mtime_ns < 0 else b""
    seconds, nanoseconds = divmod(abs(mtime_ns), NANOSECOND)
    if not nanoseconds:
        return b"%s%d" % (sign, seconds)
    return (b"%s%d.%09d" % (sign, seconds, nanoseconds)).rstrip(b"0")
