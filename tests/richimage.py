"""An image of three layers with one of everything that a layer can say."""

from __future__ import annotations

import random
from collections.abc import Sequence

from erofs_trees import ACL, CAPABILITY

from layerstore.formats.entries import Entry, Kind
from layerstore.formats.oci import emit_config
from layerstore.names import ImageID, ImageRef, Platform
from layerstore.store.atomic import Transaction
from layerstore.store.layers import stage_entries
from layerstore.store.store import Store

SECOND = 10**9
TIME = 1_500_000_000 * SECOND

LONG = b"n" * 120
DEEP = b"/".join([b"deep" * 15] * 6)
BAD_UTF8 = b"bad\xff\xfename"


class _Layer:
    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self.entries: list[Entry] = []

    # object: the field types are Entry's.
    def add(self, path: bytes, kind: Kind, mode: int, **fields: object) -> None:
        self.entries.append(Entry(path, kind, mode, **{"mtime_ns": TIME, **fields}))  # type: ignore[arg-type]

    def directory(self, path: bytes, mode: int = 0o755, **fields: object) -> None:
        self.add(path, Kind.DIRECTORY, mode, **fields)

    def file(self, path: bytes, content: bytes, mode: int = 0o644, **fields: object) -> None:
        digest = self._transaction.stage(content) if content else None
        self.add(path, Kind.FILE, mode, size=len(content), digest=digest, **fields)

    def link(self, path: bytes, target: bytes, mode: int, uid: int) -> None:
        self.add(path, Kind.HARDLINK, mode, link=target, uid=uid)

    def sparse(self, path: bytes, size: int, offset: int, content: bytes) -> None:
        extents = ((offset, len(content)),)
        with self._transaction.writer(extents, size) as writer:
            writer.write(content)
            digest = writer.finish()
        self.add(path, Kind.FILE, 0o644, size=size, digest=digest, extents=extents)

    def hide(self, path: bytes) -> None:
        self.entries.append(Entry(path, Kind.WHITEOUT))


def _bottom(layer: _Layer) -> None:
    layer.directory(b"a")
    layer.file(b"a/changed", b"one\n")
    layer.file(b"a/chmodded", b"same content\n")
    layer.file(b"a/plain", b"plain\n")
    layer.file(b"a/removed", b"removed\n")
    layer.directory(b"gone")
    layer.directory(b"gone/inner")
    layer.file(b"gone/inner/file", b"gone\n")
    layer.directory(b"kinds")
    layer.add(b"kinds/block", Kind.BLOCK, 0o660, rdev=(7, 200), gid=6)
    layer.add(b"kinds/char", Kind.CHAR, 0o666, rdev=(1, 3))
    layer.add(b"kinds/char-large", Kind.CHAR, 0o600, rdev=(511, 70_000))
    layer.add(b"kinds/fifo", Kind.FIFO, 0o640, uid=5)
    layer.add(b"kinds/symlink", Kind.SYMLINK, 0o777, link=b"../a/plain")
    layer.add(b"kinds/symlink-absolute", Kind.SYMLINK, 0o777, link=b"/nowhere/at all")
    layer.directory(b"links")
    layer.file(b"links/first", b"linked\n", 0o600, uid=7)
    layer.link(b"links/second", b"links/first", 0o600, 7)
    layer.add(b"links/symlink", Kind.SYMLINK, 0o777, link=b"first")
    layer.link(b"links/third", b"links/first", 0o600, 7)
    layer.directory(b"modes", 0o3775)
    layer.file(b"modes/none", b"x", 0o000)
    layer.file(b"modes/setgid", b"x", 0o2755, gid=50)
    layer.file(b"modes/setuid", b"x", 0o4755, uid=10)
    layer.directory(b"modes/sticky", 0o1777)
    layer.directory(b"names")
    layer.file(b"names/" + LONG, b"long\n")
    layer.file(b"names/" + BAD_UTF8, b"not UTF-8\n")
    layer.file("names/\u00fcml\u00e4ut".encode(), b"UTF-8\n")
    layer.file(b"names/with space\nand newline", b"x")
    prefix = b""
    for part in DEEP.split(b"/"):
        prefix = prefix + b"/" + part if prefix else part
        layer.directory(prefix)
    layer.file(DEEP + b"/" + LONG, b"deep\n")
    layer.add(b"names/" + b"s" * 110, Kind.SYMLINK, 0o777, link=b"t" * 200)
    layer.directory(b"numbers")
    layer.file(b"numbers/before-1970", b"x", mtime_ns=-86_400 * SECOND)
    layer.file(b"numbers/empty", b"")
    layer.file(b"numbers/fraction", b"x", mtime_ns=TIME + 123_456_789)
    layer.file(b"numbers/large-id", b"x", uid=3_000_000, gid=4_000_000)
    layer.file(b"numbers/year-2200", b"x", mtime_ns=7_258_118_400 * SECOND)
    layer.directory(b"replaced", 0o700)
    layer.directory(b"replaced/below")
    layer.file(b"replaced/below/old", b"old\n")
    layer.file(b"replaced/old", b"old\n")
    layer.file(b"swap-directory", b"a file\n")
    layer.directory(b"swap-file")
    layer.file(b"swap-file/child", b"x")
    layer.directory(b"swap-symlink")
    layer.file(b"swap-symlink/child", b"x")
    layer.directory(b"touched")
    layer.directory(b"xattrs", xattrs=((b"user.directory", b"value"),))
    layer.file(b"xattrs/acl", b"x", 0o674, xattrs=((b"system.posix_acl_access", ACL),))
    layer.file(b"xattrs/capability", b"x", 0o755, xattrs=((b"security.capability", CAPABILITY),))
    layer.file(b"xattrs/user", b"x", xattrs=((b"user.binary", b"a\0b=\n"), (b"user.text", b"text")))


def _middle(layer: _Layer) -> None:
    layer.hide(b"gone")
    layer.directory(b"a")
    layer.hide(b"a/removed")
    layer.file(b"a/changed", b"two\n")
    layer.file(b"a/chmodded", b"same content\n", 0o755)
    layer.directory(b"replaced", 0o755)
    layer.hide(b"replaced/below")
    layer.hide(b"replaced/old")
    layer.file(b"replaced/new", b"new\n")
    layer.directory(b"swap-directory")
    layer.file(b"swap-directory/child", b"x")
    layer.file(b"swap-file", b"a file\n")
    layer.add(b"swap-symlink", Kind.SYMLINK, 0o777, link=b"a")
    layer.directory(b"touched", mtime_ns=TIME + 60 * SECOND)


def _top(layer: _Layer) -> None:
    layer.directory(b"a")
    layer.hide(b"a/changed")
    layer.directory(b"gone")
    layer.file(b"gone/again", b"back, without what was there\n")
    layer.hide(b"swap-directory")
    layer.directory(b"large")
    source = random.Random(3)
    for number in range(300):
        content = source.randbytes(source.randrange(40_000)) + b"words " * source.randrange(5_000)
        layer.file(b"large/%03d" % number, content)


def put_rich_image(store: Store, name: str, *, with_sparse: bool = True) -> ImageID:
    """The image, published under ``name``. Of a sparse file some tools keep no exact record."""
    with store.transaction() as transaction:
        diff_ids = []
        for fill in (_bottom, _middle, _top):
            layer = _Layer(transaction)
            fill(layer)
            if fill is _bottom and with_sparse:
                layer.sparse(b"sparse", 40 << 20, 30 << 20, b"in the middle".ljust(8192, b"."))
            diff_ids.append(stage_entries(transaction, _ordered(layer.entries)).diff_id)
        config = emit_config(
            platform=Platform("linux", "amd64"),
            diff_ids=diff_ids,
            run={"Cmd": ["/bin/true"], "Env": ["A=b"]},
            created="2020-01-01T00:00:00Z",
            history=[{"created_by": "tests"}] * 3,
        )
        image_id = transaction.stage_image(config)
        transaction.publish({ImageRef.parse(name): image_id})
    return image_id


def _ordered(entries: Sequence[Entry]) -> list[Entry]:
    """Parents first; siblings bytewise, whiteouts before them."""
    return sorted(
        entries, key=lambda entry: (entry.path.split(b"/")[:-1], entry.kind is not Kind.WHITEOUT,
                                    entry.path)
    )  # fmt: skip
