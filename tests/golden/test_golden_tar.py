"""The canonical tar is frozen: any change of a digest here changes the diff_ids of every layer.

``tar/digests.json`` holds the sha256 of every header. ``tar/go_headers.json`` holds what Go's
archive/tar writes for the same entries, compressed with zlib and in base64. ``tar/go_headers.go``
made it, from the JSON that ``go_header_of`` describes::

    python tests/golden/test_golden_tar.py | go run tests/golden/tar/go_headers.go \\
        > tests/golden/tar/go_headers.json
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import zlib
from pathlib import Path

import pytest

from layerstore.formats import tar
from layerstore.formats.entries import NANOSECOND, Entry, Kind
from layerstore.formats.tar import header
from layerstore.formats.whiteout import write_name
from layerstore.names import Digest

_CONTENT = b"hello\n"
_DIGEST = Digest.of(_CONTENT)
_CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def _file(path: bytes, size: int = 6, **fields: object) -> Entry:
    digest = _DIGEST if size else None
    entry = Entry(path, Kind.FILE, 0o644, mtime_ns=1_700_000_000 * NANOSECOND)
    return entry._replace(size=size, digest=digest)._replace(**fields)  # type: ignore[arg-type]


def _dir(path: bytes, **fields: object) -> Entry:
    return Entry(path, Kind.DIRECTORY, 0o755)._replace(**fields)  # type: ignore[arg-type]


ENTRIES: dict[str, Entry] = {
    "file": _file(b"etc/hostname"),
    "empty file": _file(b"empty", 0),
    "all mode bits": _file(b"f", mode=0o7777),
    "directory": _dir(b"etc"),
    "root": _dir(b"", mode=0o711, uid=7, gid=8),
    "symlink": Entry(b"lib", Kind.SYMLINK, 0o777, link=b"usr/lib"),
    "hard link": Entry(b"b", Kind.HARDLINK, 0o644, 1, 2, 3 * NANOSECOND, link=b"a"),
    "character device": Entry(b"null", Kind.CHAR, 0o666, rdev=(1, 3)),
    "block device": Entry(b"sda", Kind.BLOCK, 0o660, gid=6, rdev=(4095, 1048575)),
    "fifo": Entry(b"fifo", Kind.FIFO, 0o600),
    "whiteout": Entry(b"gone", Kind.WHITEOUT),
    "whiteout below": Entry(b"a/b/gone", Kind.WHITEOUT),
    "opaque": Entry(b"a/b", Kind.OPAQUE),
    "opaque root": Entry(b"", Kind.OPAQUE),
    "whiteout of a long name": Entry(b"d" * 50 + b"/" + b"n" * 97, Kind.WHITEOUT),
    "whiteout of a longer name": Entry(b"d/" + b"n" * 251, Kind.WHITEOUT),
    "name of 100": _file(b"n" * 100),
    "name of 101 that splits": _file(b"d/" + b"n" * 99),
    "name of 101 that does not split": _file(b"n" * 101),
    "directory of 99": _dir(b"n" * 99),
    "directory of 100": _dir(b"n" * 100),
    "directory of 100 with a parent": _dir(b"d/" + b"n" * 98),
    "directory that splits at its end": _dir(b"d" * 100 + b"/" + b"n" * 99),
    "prefix of 155": _file(b"p" * 155 + b"/" + b"n" * 100),
    "prefix of 156": _file(b"p" * 156 + b"/" + b"n" * 99),
    "prefix of 154 with name of 100": _file(b"p" * 154 + b"/" + b"n" * 100),
    "last part of 101": _file(b"p/" + b"n" * 101),
    "many parts": _file(b"/".join([b"part"] * 50)),
    "many parts, too long": _file(b"/".join([b"part"] * 60)),
    "cut after a slash": _file(b"d" * 99 + b"/" + b"n" * 200),
    "cut after slashes that stay": _file(b"d" * 98 + b"/e/" + b"n" * 200),
    "no ASCII": _file("naïve".encode()),
    "no ASCII at all": _file("ü/ü".encode()),
    "no UTF-8": _file(b"bad\xff"),
    "no ASCII in a directory's name": _dir("ü/é".encode()),
    "no ASCII, 101 bytes": _file(b"d/" + "ü".encode() + b"n" * 97),
    "link of 100": Entry(b"s", Kind.SYMLINK, 0o777, link=b"l" * 100),
    "link of 101": Entry(b"s", Kind.SYMLINK, 0o777, link=b"l/" * 50 + b"l"),
    "link that is no ASCII": Entry(b"s", Kind.SYMLINK, 0o777, link="ü".encode()),
    "link and name too long": Entry(b"n" * 101, Kind.HARDLINK, 0o644, link=b"l" * 101),
    "uid that fits": _file(b"f", uid=2097151),
    "uid that does not fit": _file(b"f", uid=2097152),
    "gid that does not fit": _file(b"f", gid=3_000_000),
    "both ids the largest": _dir(b"d", uid=2**32 - 2, gid=2**32 - 2),
    "size that fits": _file(b"f", 2**33 - 1),
    "size that does not fit": _file(b"f", 2**33),
    "time zero": _file(b"f", mtime_ns=0),
    "time before the epoch": _file(b"f", mtime_ns=-86400 * NANOSECOND),
    "last time that fits": _file(b"f", mtime_ns=(2**33 - 1) * NANOSECOND),
    "time that does not fit": _file(b"f", mtime_ns=2**33 * NANOSECOND),
    "time with a fraction": _file(b"f", mtime_ns=1_500_000_000),
    "time with all digits": _file(b"f", mtime_ns=1_700_000_000_123_456_789),
    "time with a fraction before the epoch": _file(b"f", mtime_ns=-1_500_000_000),
    "a nanosecond before the epoch": _file(b"f", mtime_ns=-1),
    "xattr": _file(b"ping", xattrs=((b"security.capability", _CAPABILITY),)),
    "xattrs": _file(b"f", xattrs=((b"user.a", b"\n=\xff"), (b"user.b", b"2"))),
    "xattr of a directory": _dir(b"d/e", xattrs=((b"user.a", b"1"),)),
    "xattr of the root": _dir(b"", xattrs=((b"user.a", b"1"),)),
    "xattr below a long name": _file(b"d" * 60 + b"/" + b"n" * 60, xattrs=((b"user.a", b"1"),)),
    "record of 99": _file(b"f", xattrs=((b"user.a", b"v" * 75),)),
    "record of 100 or 101": _file(b"f", xattrs=((b"user.a", b"v" * 76),)),
    "record of more than a block": _file(b"f", xattrs=((b"user.a", b"v" * 600),)),
    "everything at once": _file(
        "ü".encode() * 120, 2**33, mode=0o4755, uid=2**21, gid=2**31, mtime_ns=-1,
        xattrs=((b"security.capability", _CAPABILITY), (b"user.a", b"1")),
    ),
    "sparse": _file(b"d/big", 1 << 40, extents=((4096, 4096), (1 << 39, 8192))),
    "sparse without data": _file(b"hole", 16 << 20, extents=()),
    "sparse that ends in data": _file(b"end", 16 << 20, extents=(((16 << 20) - 4096, 4096),)),
    "sparse with a long name": _file(b"d" * 99 + b"/" + b"n" * 99, 16 << 20, extents=()),
}  # fmt: skip

_FOLDER = Path(__file__).parent / "tar"
GOLDEN: dict[str, str] = json.loads((_FOLDER / "digests.json").read_text())

WHOLE_ARCHIVE = "ee97b79caaf324a39e10f14a2eecde90f832a11987b0e2fceb441c4c6b4ddaa9"


def go_header_of(entry: Entry) -> dict[str, object] | None:
    """The fields of Go's tar.Header; names in hex. None for what Go cannot write: sparse files."""
    if entry.extents is not None:
        return None
    if entry.kind in (Kind.WHITEOUT, Kind.OPAQUE):
        entry = Entry(write_name(entry), Kind.FILE)
    name = entry.path or b"."
    if entry.kind is Kind.DIRECTORY:
        name += b"/"
    seconds, nanoseconds = divmod(entry.mtime_ns, NANOSECOND)
    return {
        "name": name.hex(), "typeflag": chr(entry.kind), "mode": entry.mode, "uid": entry.uid,
        "gid": entry.gid, "size": entry.size, "sec": seconds, "nsec": nanoseconds,
        "link": entry.link.hex(), "major": entry.rdev[0], "minor": entry.rdev[1],
        "xattrs": {name.hex(): value.hex() for name, value in entry.xattrs},
    }  # fmt: skip


def whole_archive() -> bytes:
    """Entries with contents, so that padding and the end are in it."""
    names = ["file", "empty file", "directory", "symlink", "whiteout", "no ASCII", "xattrs"]
    return b"".join(
        piece.raw if piece.digest is None else _CONTENT
        for piece in tar.pieces([ENTRIES[name] for name in names])
    )


def test_every_entry_has_a_frozen_digest() -> None:
    assert GOLDEN.keys() == ENTRIES.keys()
    assert tar.CANONICAL_FORMAT == 1


@pytest.mark.parametrize("name", ENTRIES)
def test_the_header_is_the_frozen_one(name: str) -> None:
    assert hashlib.sha256(header(ENTRIES[name])).hexdigest() == GOLDEN[name]


def test_the_archive_is_the_frozen_one() -> None:
    assert hashlib.sha256(whole_archive()).hexdigest() == WHOLE_ARCHIVE


@pytest.mark.parametrize("name", [n for n, entry in ENTRIES.items() if go_header_of(entry)])
def test_go_writes_the_same_header(name: str) -> None:
    written: dict[str, str] = json.loads((_FOLDER / "go_headers.json").read_text())
    assert header(ENTRIES[name]) == zlib.decompress(base64.b64decode(written[name]))


if __name__ == "__main__":
    json.dump({name: go_header_of(entry) for name, entry in ENTRIES.items()}, sys.stdout)
