"""Tars built by hand, so that the codec under test does not write what it is tested with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

BLOCK = 512
END = bytes(2 * BLOCK)


@dataclass(frozen=True)
class Member:
    """One archive member; ``pax`` holds further records, ``size`` overrides the content's."""

    name: bytes
    typeflag: bytes = b"0"
    content: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 100
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    pax: Mapping[bytes, bytes] = field(default_factory=dict)

    def pack(self) -> bytes:
        records = {b"SCHILY.xattr." + name: value for name, value in self.xattrs.items()}
        records |= self.pax
        if len(self.name) > 100:
            records[b"path"] = self.name
        if len(self.link) > 100:
            records[b"linkpath"] = self.link
        uid, gid = self.uid, self.gid
        if uid > 0o7777777:
            records[b"uid"], uid = b"%d" % uid, 0
        if gid > 0o7777777:
            records[b"gid"], gid = b"%d" % gid, 0
        head = b""
        if records:
            body = b"".join(_record(key, value) for key, value in sorted(records.items()))
            head = _block(b"x", b"x", 0, 0, 0, len(body), 0, b"", (0, 0)) + _padded(body)
        return head + _block(
            self.name[:100], self.typeflag, self.mode, uid, gid, len(self.content),
            self.mtime, self.link[:100], self.device,
        ) + _padded(self.content)  # fmt: skip


def directory(
    name: bytes, mode: int = 0o755, uid: int = 0, gid: int = 0, *, mtime: int = 100,
    xattrs: Mapping[bytes, bytes] | None = None, pax: Mapping[bytes, bytes] | None = None,
) -> Member:  # fmt: skip
    return Member(
        name, b"5", mode=mode, uid=uid, gid=gid, mtime=mtime, xattrs=xattrs or {}, pax=pax or {}
    )


def symlink(name: bytes, target: bytes) -> Member:
    return Member(name, b"2", link=target, mode=0o777)


def hardlink(name: bytes, target: bytes, **fields: int) -> Member:
    return Member(name, b"1", link=target, **fields)  # type: ignore[arg-type]


def whiteout(path: bytes) -> Member:
    head, slash, name = path.rpartition(b"/")
    return Member(head + slash + b".wh." + name, mode=0, mtime=0)


def opaque(path: bytes) -> Member:
    return Member(path + b"/.wh..wh..opq", mode=0, mtime=0)


def archive(members: Iterable[Member]) -> bytes:
    return b"".join(member.pack() for member in members) + END


def _record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    while len(b"%d" % size) + len(key) + len(value) + 3 != size:
        size += 1
    return b"%d %s=%s\n" % (size, key, value)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def _block(
    name: bytes, typeflag: bytes, mode: int, uid: int, gid: int, size: int, mtime: int,
    link: bytes, device: tuple[int, int],
) -> bytes:  # fmt: skip
    block = (
        name.ljust(100, b"\0")
        + b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, uid, gid, size, mtime)
        + b" " * 8
        + typeflag
        + link.ljust(100, b"\0")
        + b"ustar\x0000"
        + bytes(64)
        + b"%07o\0%07o\0" % device
        + bytes(167)
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
