"""Hostile and malformed archives, made byte by byte: what each is, and what must become of it.

``cases(outside)`` gives them all; ``outside`` is the path of a directory that they try to reach.
Names of cases are stable: ``compat/go_verdicts.json`` holds what Go's archive/tar says of each.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import zstandard

BLOCK = 512
ZERO = bytes(BLOCK)
END = bytes(2 * BLOCK)
USTAR = b"ustar\x0000"
GNU = b"ustar  \0"
V7 = bytes(8)


@dataclass(frozen=True)
class Case:
    """An archive (or a stack of layers, bottom first) and its verdict: a refusal or a tree."""

    name: str
    layers: tuple[bytes, ...]
    refused: str | None = None
    """Part of the message."""
    tree: dict[str, str] | None = None
    """Path → kind, mode, owner if not 0:0, size or target; ``=path`` for a further hard link."""


def field(number: int, width: int) -> bytes:
    """GNU's base-256 form."""
    raw = (number & ((1 << 8 * width) - 1)).to_bytes(width, "big")
    return bytes([raw[0] | 0x80]) + raw[1:]


def header(
    name: bytes = b"f",
    typeflag: bytes = b"0",
    *,
    size: int | bytes = 0,
    mode: int | bytes | None = None,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 0,
    link: bytes = b"",
    magic: bytes = USTAR,
    major: int | bytes = 0,
    minor: int | bytes = 0,
    prefix: bytes = b"",
    at: dict[int, bytes] | None = None,
    checksum: bytes | None = None,
) -> bytes:
    """A header block; numbers are octal, bytes are taken as they are."""

    def put(value: int | bytes, width: int) -> bytes:
        if isinstance(value, bytes):
            return value.ljust(width, b"\0")[:width]
        return b"%0*o\0" % (width - 1, value)

    if mode is None:
        mode = {b"5": 0o755, b"2": 0o777}.get(typeflag, 0o644)
    block = bytearray(BLOCK)
    devices = (0, 0) if magic == V7 else (329, 337)
    for offset, width, value in (
        (0, 100, name),
        (100, 8, mode),
        (108, 8, uid),
        (116, 8, gid),
        (124, 12, size),
        (136, 12, mtime),
        (157, 100, link),
        (345, 155, prefix),
    ):
        block[offset : offset + width] = put(value, width)
    block[156:157] = typeflag
    block[257:265] = magic
    if devices[0]:
        block[329:337] = put(major, 8)
        block[337:345] = put(minor, 8)
    if magic == GNU:
        block[345:500] = bytes(155)
    for offset, value in (at or {}).items():
        block[offset : offset + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = checksum if checksum is not None else b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def file(name: bytes, content: bytes = b"", **fields: object) -> bytes:
    return header(name, size=len(content), **fields) + padded(content)  # type: ignore[arg-type]


def folder(name: bytes, **fields: object) -> bytes:
    return header(name, b"5", **fields)  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes) -> bytes:
    if len(name) > 100 or len(target) > 100:
        return pax({b"path": name, b"linkpath": target}) + header(b"l", b"2", link=b"t")
    return header(name, b"2", link=target)


def hardlink(name: bytes, target: bytes, **fields: object) -> bytes:
    return header(name, b"1", link=target, **fields)  # type: ignore[arg-type]


def record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    while len(b"%d" % size) + len(key) + len(value) + 3 != size:
        size += 1
    return b"%d %s=%s\n" % (size, key, value)


def pax(records: dict[bytes, bytes] | Iterable[tuple[bytes, bytes]], kind: bytes = b"x") -> bytes:
    pairs = records.items() if isinstance(records, dict) else records
    return raw_pax(b"".join(record(key, value) for key, value in pairs), kind)


def raw_pax(body: bytes, kind: bytes = b"x") -> bytes:
    return header(b"pax", kind, size=len(body)) + padded(body)


def gnu_long(text: bytes, kind: bytes = b"L") -> bytes:
    body = text + b"\0"
    return header(b"././@LongLink", kind, size=len(body), magic=GNU) + padded(body)


def old_sparse(
    pairs: Iterable[tuple[int, int]],
    content: bytes,
    real_size: int,
    *,
    extended: bytes = b"",
    stored: int | None = None,
    magic: bytes = GNU,
) -> bytes:
    """An old GNU sparse member; ``extended``: extension blocks as they are."""
    at = {386 + 24 * i: field_12(o) + field_12(n) for i, (o, n) in enumerate(pairs)}
    at |= {482: b"\1" if extended else b"\0", 483: field_12(real_size)}
    size = len(content) if stored is None else stored
    return header(b"s", b"S", size=size, magic=magic, at=at) + extended + padded(content)


def field_12(number: int) -> bytes:
    return b"%011o\0" % number if 0 <= number < 1 << 33 else field(number, 12)


def pax_sparse(
    records: dict[bytes, bytes] | list[tuple[bytes, bytes]],
    content: bytes,
    kind: bytes = b"0",
    name: bytes = b"s",
) -> bytes:
    pairs = list(records.items() if isinstance(records, dict) else records)
    return (
        pax([(b"GNU.sparse." + key, value) for key, value in pairs])
        + header(name, kind, size=len(content))
        + padded(content)
    )


def sparse_1_0(text: bytes, data: bytes, real_size: int, **more: bytes) -> bytes:
    records = {b"major": b"1", b"minor": b"0", b"realsize": b"%d" % real_size}
    records |= {key.encode(): value for key, value in more.items()}
    return pax_sparse(records, padded(text) + data)


# What lies where ``..`` may be, whatever field says it.
ESCAPES = {
    "dotdot": b"..",
    "parent": b"../x",
    "sibling-with-the-roots-name": b"../root-evil",
    "dotdot-last": b"a/..",
    "dotdot-middle": b"a/../x",
    "dotdot-twice": b"a/../../x",
    "absolute-dotdot": b"/../x",
    "dot-dotdot": b"./../x",
    "dotdot-slashes": b"..//x",
    "deep": b"a/b/../../../../etc/x",
    "dotdot-slash-last": b"a/../",
    "slashes-dotdot": b"///../../x",
}
Make = Callable[[bytes], bytes]
NAME_FIELDS: dict[str, Make] = {
    "name": lambda text: file(text),
    "prefix": lambda text: file(b"y", prefix=text),
    "pax": lambda text: pax({b"path": text}) + file(b"ok"),
    "gnu": lambda text: gnu_long(text) + file(b"ok", magic=GNU),
    "sparse": lambda text: sparse_1_0(b"0\n", b"", 0, name=text),
    "directory": lambda text: folder(text),
}
LINK_FIELDS: dict[str, Make] = {
    "link": lambda text: hardlink(b"h", text),
    "pax": lambda text: pax({b"linkpath": text}) + hardlink(b"h", b"ok"),
    "gnu": lambda text: gnu_long(text, b"K") + hardlink(b"h", b"ok", magic=GNU),
}


def cases(outside: bytes = b"/nowhere/outside") -> list[Case]:
    """Every case. Names are unique."""
    found: list[Case] = []
    for part in (
        _names,
        _lengths,
        _symlink_escapes(outside),
        _hard_links(outside),
        _cves(outside),
        _devices,
        _numbers,
        _checksums,
        _extension_headers,
        _pax_records,
        _sparse,
        _duplicates,
        _whiteouts,
        _reserved,
        _types,
        _truncations,
        _ends,
        _compressed,
        _xattrs,
    ):
        found += part() if callable(part) else part
    if len({case.name for case in found}) != len(found):
        raise ValueError("two cases have one name")
    return found


def refused(name: str, raw: bytes | tuple[bytes, ...], why: str) -> Case:
    return Case(name, (raw + END,) if isinstance(raw, bytes) else tuple(x + END for x in raw), why)


def accepted(name: str, raw: bytes | tuple[bytes, ...], **tree: str) -> Case:
    return shows(name, raw, tree)


def shows(name: str, raw: bytes | tuple[bytes, ...], tree: dict[str, str]) -> Case:
    layers = (raw + END,) if isinstance(raw, bytes) else tuple(x + END for x in raw)
    return Case(name, layers, None, tree)


def _names() -> Iterator[Case]:
    for where, make in NAME_FIELDS.items():
        for label, text in ESCAPES.items():
            yield refused(f"name-{where}-{label}", make(text), "a name that leaves the root")
    for where, make in LINK_FIELDS.items():
        for label, text in ESCAPES.items():
            yield refused(
                f"hardlink-{where}-{label}", file(b"x") + make(text), "link target that leaves"
            )
    for label, text in {
        "three-dots": b"...",
        "dots-first": b"..a",
        "dots-last": b"a..",
        "backslash": b"..\\x",
        "dots-space": b".. ",
        "newline": b"a\nb",
        "tilde": b"~root",
        "percent": b"%2e%2e",
    }.items():
        shown = text.decode()
        yield shows(f"legal-{label}", file(text, b"hello"), {shown: "f644 5"})
    yield shows("legal-not-utf8", file(b"bad\xff", b"hello"), {"bad\\xff": "f644 5"})
    for label, text in {
        "absolute": b"/x",
        "slashes": b"//x",
        "dot": b"./x",
        "dots": b"././/./x",
        "absolute-dot": b"/./x",
        "slash-last": b"x/",
        "dot-last": b"x/.",
        "slashes-last": b"x//",
    }.items():
        yield accepted(f"stripped-{label}", file(text, b"hello"), x="f644 5")
    for label, text in {"empty": b"", "empty-with-slash-type": b""}.items():
        kind = b"5" if "slash" in label else b"0"
        yield refused(f"name-{label}", header(text, kind), "empty name")
    for label, text in {"dot": b".", "dot-slash": b"./", "slash": b"/", "slashes": b"///"}.items():
        yield shows(
            f"root-{label}", folder(text, mode=0o711) + file(b"x"), {"": "d711", "x": "f644 0"}
        )
        yield refused(f"root-as-file-{label}", file(text), "a root that is no directory")
        yield refused(f"root-as-symlink-{label}", symlink(text, b"/etc"), "root that is no direc")
        yield refused(
            f"root-as-hardlink-{label}", file(b"x") + hardlink(text, b"x"), "no directory"
        )
    yield refused("nul-in-pax-path", pax({b"path": b"a\0b"}) + file(b"x"), "malformed PAX record")
    yield refused("nul-in-pax-linkpath", pax({b"linkpath": b"a\0b"}) + symlink(b"x", b"y"), "PAX")
    yield refused("nul-in-sparse-name", sparse_1_0(b"0\n", b"", 0, name=b"a\0/../b"), "NUL in it")
    yield accepted("nul-ends-a-name-field", file(b"a\0/../../b", b"hello"), a="f644 5")
    yield accepted(
        "nul-ends-a-gnu-name", gnu_long(b"a\0/../../b") + file(b"x", magic=GNU), a="f644 0"
    )
    yield shows("name-of-spaces", file(b"   ", b"hello"), {"   ": "f644 5"})


def _lengths() -> Iterator[Case]:
    longest, too_long = b"n" * 255, b"n" * 256
    yield shows("component-255", pax({b"path": longest}) + file(b"x"), {"n" * 255: "f644 0"})
    for where, make in (("pax", NAME_FIELDS["pax"]), ("gnu", NAME_FIELDS["gnu"])):
        yield refused(f"component-256-{where}", make(too_long), "component over 255 bytes")
        yield refused(f"component-256-inside-{where}", make(b"a/" + too_long + b"/b"), "over 255")
    yield refused("component-256-link", pax({b"linkpath": too_long}) + hardlink(b"h", b"x"), "255")
    parts = [b"p" * 200] * 30
    tree = {"/".join(["p" * 200] * i): "d755" for i in range(1, 30)}
    yield shows(
        "path-over-4096",
        pax({b"path": b"/".join(parts)}) + file(b"x", b"hello"),
        tree | {"/".join(["p" * 200] * 30): "f644 5"},
    )
    tree = {"/".join(["d"] * i): "d755" for i in range(1, 1000)}
    yield shows(
        "depth-1000",
        pax({b"path": b"/".join([b"d"] * 1000)}) + file(b"x", b"hello"),
        tree | {"/".join(["d"] * 1000): "f644 5"},
    )
    yield refused(
        "depth-1001", pax({b"path": b"/".join([b"d"] * 1001)}) + file(b"x"), "1000 levels deep"
    )
    yield refused("path-over-64K", pax({b"path": b"a/" * 33000}) + file(b"x"), "a name of 66000 b")
    yield refused("symlink-target-4096", symlink(b"l", b"t" * 4096), "empty or too long")
    yield shows("symlink-target-4095", symlink(b"l", b"t" * 4095), {"l": "l " + "t" * 4095})
    yield refused("symlink-target-empty", symlink(b"l", b""), "empty or too long")


def _symlink_escapes(outside: bytes) -> Iterator[Case]:
    targets = {
        "absolute": outside,
        "dotdot": b"../../../outside",
        "root": b"/",
        "dot": b".",
        "dotdot-only": b"..",
        "proc-root": b"/proc/self/root" + outside,
        "proc-cwd": b"/proc/self/cwd/../outside",
        "far-up": b"../" * 20 + outside[1:],
    }
    for label, target in targets.items():
        shown = target.decode()
        write = file(b"esc/pwn", b"hello")
        under = {"esc": "d755", "esc/pwn": "f644 5"}
        yield shows(f"symlink-{label}-then-write", symlink(b"esc", target) + write, under)
        yield accepted(
            f"write-then-symlink-{label}", write + symlink(b"esc", target), esc=f"l {shown}"
        )
        yield shows(
            f"symlink-{label}-directory-write",
            symlink(b"esc", target) + folder(b"esc/") + write,
            under,
        )
        yield shows(
            f"directory-symlink-{label}-write",
            folder(b"esc") + symlink(b"esc", target) + write,
            under,
        )
        yield shows(
            f"symlink-{label}-under-a-parent",
            folder(b"d") + symlink(b"d/esc", target) + file(b"d/esc/canary", b"hello"),
            {"d": "d755", "d/esc": "d755", "d/esc/canary": "f644 5"},
        )
        yield accepted(
            f"symlink-{label}-overwritten-by-a-file",
            symlink(b"esc", target) + file(b"esc", b"hello"),
            esc="f644 5",
        )
    inside = {"absolute": b"/tmp", "dotdot": b"../../tmp", "proc": b"/proc/self/root/../../../tmp"}
    for label, target in inside.items():
        yield shows(
            f"lower-symlink-{label}-then-write",
            (symlink(b"esc", target), file(b"esc/pwn", b"hello")),
            {"esc": f"l {target.decode()}", "tmp": "d755", "tmp/pwn": "f644 5"},
        )
        yield shows(
            f"lower-symlink-{label}-and-a-whiteout",
            (symlink(b"esc", target) + file(b"tmp/x") + file(b"tmp/y"), file(b"esc/.wh.x")),
            {"esc": f"l {target.decode()}", "tmp": "d755", "tmp/y": "f644 0"},
        )
    chain = symlink(b"a", b"b/c") + symlink(b"b", b"/d") + symlink(b"d", b"../e/../f")
    yield shows(
        "lower-symlink-chain",
        (chain, file(b"a/x")),
        {
            "a": "l b/c",
            "b": "l /d",
            "d": "l ../e/../f",
            "f": "d755",
            "f/c": "d755",
            "f/c/x": "f644 0",
        },
    )
    for label, lower in {
        "self": symlink(b"a", b"a"),
        "two": symlink(b"a", b"b") + symlink(b"b", b"a"),
        "below": symlink(b"a", b"a/x"),
        "parent": symlink(b"a", b"./././../a"),
        "long": b"".join(symlink(b"a%d" % i, b"a%d" % (i + 1)) for i in range(50))
        + symlink(b"a", b"a0"),
    }.items():
        yield refused(f"lower-symlink-loop-{label}", (lower, file(b"a/pwn")), "too many levels")
        yield refused(
            f"lower-symlink-loop-{label}-whiteout", (lower, file(b"a/.wh.x")), "too many le"
        )
    yield refused(
        "lower-symlink-to-a-file", (symlink(b"a", b"f") + file(b"f"), file(b"a/x")), "no directory"
    )
    yield shows(
        "swaps",
        folder(b"a")
        + symlink(b"a", outside)
        + folder(b"a")
        + file(b"a/x")
        + symlink(b"a", b"..")
        + file(b"a/y"),
        {"a": "d755", "a/y": "f644 0"},
    )
    for label, target in {"dev": b"/dev", "etc": b"/etc"}.items():
        name = label.encode()
        yield shows(
            f"etc-as-symlink-{label}",
            symlink(name, b"../../.." + target) + file(name + b"/passwd", b"x"),
            {label: "d755", f"{label}/passwd": "f644 1"},
        )


def _hard_links(outside: bytes) -> Iterator[Case]:
    canary = outside + b"/canary"
    for label, target, why in (
        ("missing", b"nothing", "does not exist"),
        ("itself", b"h", "leads to itself"),
        ("empty", b"", "empty link target"),
        ("root", b"/", "hard link to the root"),
        ("dot", b".", "hard link to the root"),
        ("absolute-outside", canary, "does not exist"),
        ("directory", b"d", "leads to a directory"),
        ("whiteout-name", b".wh.x", "does not exist"),
    ):
        yield refused(f"hardlink-to-{label}", folder(b"d") + hardlink(b"h", target), why)
    yield refused(
        "hardlink-loop",
        hardlink(b"a", b"b") + hardlink(b"b", b"c") + hardlink(b"c", b"a"),
        "itself",
    )
    yield refused(
        "hardlink-through-an-escaping-symlink",
        symlink(b"esc", outside) + hardlink(b"h", b"esc/canary"),
        "does not exist",
    )
    yield refused(
        "hardlink-through-dotdot-symlink",
        folder(b"d") + symlink(b"d/up", b"../../../outside") + hardlink(b"h", b"d/up/canary"),
        "does not exist",
    )
    yield refused(
        "hardlink-through-a-loop", symlink(b"a", b"a") + hardlink(b"h", b"a/x"), "too many levels"
    )
    yield refused("hardlink-below-a-file", file(b"f") + hardlink(b"h", b"f/x"), "does not exist")
    to_canary = symlink(b"s", canary)
    shown = "l " + canary.decode()
    yield shows(
        "hardlink-to-an-escaping-symlink",
        to_canary + hardlink(b"h", b"s", mode=0o4777, uid=7),
        {"h": shown, "s": f"{shown} =h"},
    )
    yield shows(
        "hardlink-to-an-escaping-symlink-then-write",
        to_canary + hardlink(b"h", b"s") + file(b"h", b"hello"),
        {"h": "f644 5", "s": shown},
    )
    yield shows(
        "symlink-behind-a-hardlink-then-write",
        file(b"f", b"hello") + hardlink(b"h", b"f") + symlink(b"f", canary) + file(b"f", b"by"),
        {"f": "f644 2", "h": "f644 2 =f"},
    )
    yield shows(
        "hardlink-attributes-are-not-applied",
        file(b"f", b"hello") + hardlink(b"h", b"f", mode=0o6777, uid=1000, gid=1000, mtime=5),
        {"f": "f644 5", "h": "f644 5 =f"},
    )
    yield shows(
        "hardlink-absolute-is-inside",
        file(b"f") + hardlink(b"h", b"/f"),
        {"f": "f644 0", "h": "f644 0 =f"},
    )
    yield shows(
        "hardlink-before-its-target",
        hardlink(b"h", b"f") + file(b"f", b"x"),
        {"f": "f644 1", "h": "f644 1 =f"},
    )
    yield shows(
        "hardlink-chain-backwards",
        b"".join(hardlink(b"h%d" % i, b"h%d" % (i + 1)) for i in range(3)) + file(b"h3", b"x"),
        {"h0": "f644 1"} | {f"h{i}": "f644 1 =h0" for i in (1, 2, 3)},
    )
    yield shows(
        "hardlink-with-a-size",
        file(b"f", b"x") + hardlink(b"h", b"f", size=1024),
        {"f": "f644 1", "h": "f644 1 =f"},
    )
    yield shows(
        "hardlink-replaced-by-a-directory",
        hardlink(b"h", b"nothing") + file(b"h/x"),
        {"h": "d755", "h/x": "f644 0"},
    )
    yield shows(
        "hardlink-to-a-lower-file",
        (file(b"f", b"x"), hardlink(b"h", b"f")),
        {"f": "f644 1", "h": "f644 1"},
    )
    yield refused(
        "hardlink-to-a-lower-directory",
        (folder(b"d"), hardlink(b"h", b"d")),
        "leads to a directory",
    )
    yield shows(
        "hardlink-to-a-device",
        header(b"c", b"3", major=1, minor=3) + hardlink(b"h", b"c"),
        {"c": "c644 1:3", "h": "c644 1:3 =c"},
    )


def _cves(outside: bytes) -> Iterator[Case]:
    canary = outside + b"/canary"
    # CVE-2025-4517: a path whose symlinks expand beyond PATH_MAX, so that realpath() gives up.
    step, steps = b"d" * 247, b"abcdefghijklmnop"
    path, raw = b"", b""
    tree: dict[str, str] = {}
    for letter in steps:
        name, link = path + step, path + bytes([letter])
        raw += pax({b"path": name}) + folder(b"d") + symlink(link, step)
        tree |= {name.decode(): "d755", link.decode(): f"l {step.decode()}"}
        path = name + b"/"
    short = b"/".join(bytes([letter]) for letter in steps)
    up = short + b"/" + b"l" * 254
    raw += pax({b"path": up, b"linkpath": b"../" * len(steps)}) + symlink(b"u", b"t")
    # Links of this layer are not followed: `a/` is a directory that replaces the link `a`.
    kept = {path: what for path, what in tree.items() if path != "a"}
    kept |= {"/".join("abcdefghijklmnop"[:i]): "d755" for i in range(1, 17)}
    kept[up.decode()] = "l " + "../" * len(steps)
    escape = up + b"/../../../" + outside
    for label, number in (("2025-4517", b"flaglink"), ("2025-4330", b"f"), ("2025-4138", b"link")):
        kept["escape"] = "l " + escape.decode()
        more = symlink(b"escape", escape) + hardlink(number, b"escape/canary")
        yield refused(
            f"cve-{label}-hardlink-through-an-overlong-path", raw + more, "does not exist"
        )
        yield shows(
            f"cve-{label}-then-write",
            raw + more + file(number, b"hello"),
            kept | {number.decode(): "f644 5"},
        )
    yield shows(
        "cve-2025-4138-symlink-outside",
        symlink(b"l", outside) + hardlink(b"m", b"l") + file(b"m/x"),
        {"l": "l " + outside.decode(), "m": "d755", "m/x": "f644 0"},
    )
    # CVE-2024-12718: attributes of what a link leads to.
    yield shows(
        "cve-2024-12718-mode-and-time-of-a-link",
        header(b"l", b"2", link=canary, mode=0o777, mtime=1)
        + hardlink(b"h", b"l", mode=0o777, mtime=1),
        {"h": "l " + canary.decode(), "l": f"l {canary.decode()} =h"},
    )
    yield shows(
        "cve-2024-12718-directory-over-a-link",
        symlink(b"d", outside) + folder(b"d/", mode=0o777),
        {"d": "d777"},
    )
    # CVE-2026-4360: the owner of what a hard link leads to.
    yield shows(
        "cve-2026-4360-owner-of-a-hard-link",
        symlink(b"s", canary) + hardlink(b"h", b"s", uid=4242, gid=4242),
        {"h": "l " + canary.decode(), "s": f"l {canary.decode()} =h"},
    )
    # CVE-2025-8194: sizes below zero that take a reader back.
    yield refused("cve-2025-8194-pax-size", pax({b"size": b"-512"}) + file(b"f"), "negative size")
    yield refused(
        "cve-2025-8194-base-256", header(size=field(-512, 12), magic=GNU), "negative size"
    )
    yield refused(
        "cve-2025-8194-extension-header",
        header(b"x", b"L", size=field(-1024, 12), magic=GNU),
        "of -1024",
    )
    yield refused(
        "cve-2025-8194-pax-header",
        header(b"x", b"x", size=field(-512, 12), magic=GNU),
        "of -512 bytes",
    )
    # CVE-2025-62518: whose size is it?
    inner = padded(file(b"inner", b"evil"))
    size = pax({b"size": b"%d" % len(inner)})
    for label, between in {
        "direct": b"",
        "gnu-name": gnu_long(b"outer"),
        "gnu-link": gnu_long(b"x", b"K"),
        "two-names": gnu_long(b"a") + gnu_long(b"outer"),
    }.items():
        shown = "outer" if "name" in label else "f"
        yield accepted(
            f"cve-2025-62518-{label}",
            size + between + header(b"f", size=0) + inner,
            **{shown: f"f644 {len(inner)}"},
        )
    yield accepted(
        "cve-2025-62518-smaller",
        pax({b"size": b"0"}) + header(b"f", size=len(inner)) + inner,
        f="f644 0",
        inner="f644 4",
    )
    yield accepted(
        "cve-2026-33055-directory-with-a-size",
        pax({b"size": b"512"}) + folder(b"d") + file(b"inner"),
        d="d755",
        inner="f644 0",
    )


def _device(kind: bytes, major: int | bytes, minor: int | bytes) -> bytes:
    return header(b"n", kind, major=major, minor=minor, magic=GNU)


def _devices() -> Iterator[Case]:
    for label, kind, letter in (("char", b"3", "c"), ("block", b"4", "b")):
        make = partial(_device, kind)
        yield accepted(f"{label}-1-3", make(1, 3), n=f"{letter}644 1:3")
        yield accepted(f"{label}-greatest", make(4095, 1048575), n=f"{letter}644 4095:1048575")
        yield refused(f"{label}-major-4096", make(4096, 0), "device number 4096:0")
        yield refused(f"{label}-minor-1048576", make(1, 1048576), "device number 1:1048576")
        yield refused(f"{label}-negative", make(field(-1, 8), 1), "device number -1:1")
        yield refused(f"{label}-minor-negative", make(1, field(-5, 8)), "device number 1:-5")
        yield refused(f"{label}-huge", make(field(1 << 40, 8), 1), "device number 1099511627776:1")
    yield refused("char-0-0", header(b"n", b"3"), "a character device 0:0")
    yield refused("char-v7-has-no-device", header(b"n", b"3", magic=V7), "a character device 0:0")
    yield accepted("block-0-0", header(b"n", b"4"), n="b644 0:0")
    yield accepted("fifo-with-a-device", header(b"n", b"6", major=1, minor=3), n="p644")
    yield accepted("setuid", file(b"f", b"x", mode=0o6755), f="f6755 1")
    yield accepted("type-bits-in-mode", file(b"f", b"x", mode=0o104755), f="f4755 1")


def _numbers() -> Iterator[Case]:
    widths = {"mode": 8, "uid": 8, "gid": 8, "size": 12, "mtime": 12, "major": 8, "minor": 8}
    for name, width in widths.items():
        for label, text in {
            "digit-8": b"0000008",
            "letters": b"abcdefg",
            "minus": b"-000001",
            "hex": b"0x00001",
            "inner-space": b"01 0001",
            "inner-nul": b"12\0junk",
            "underscore": b"0_00001",
        }.items():
            raw = header(b"f", **{name: text.ljust(width, b"\0")})  # type: ignore[arg-type]
            if label == "inner-nul":
                size = 0o12 if name == "size" else 0
                mode = "012" if name == "mode" else "644"
                owner = " 10:0" if name == "uid" else " 0:10" if name == "gid" else ""
                content = padded(b"x" * size) if size else b""
                yield accepted(
                    f"{name}-{label}", raw + content, f=f"f{mode.lstrip('0')}{owner} {size}"
                )
            else:
                yield refused(f"{name}-{label}", raw, "that is no number")
        for label, value, fine in (
            ("minus-one", b"\xff" * width, name in ("mtime", "major", "minor")),
            ("overflow", b"\x80" + b"\xff" * (width - 1), name in ("major", "minor")),
            ("over-63-bits", b"\x80" * width, name in ("major", "minor")),
        ):
            raw = header(b"f", magic=GNU, **{name: value})  # type: ignore[arg-type]
            if fine:
                yield accepted(f"{name}-{label}", raw, f="f644 0")
            elif name == "mode" and label != "minus-one":
                mode = "7777" if label == "overflow" else "200"
                yield accepted(f"{name}-{label}", raw, f=f"f{mode} 0")
            else:
                yield refused(f"{name}-{label}", raw, "")
        blank = {name: b" " * width}
        mode = "f0 0" if name == "mode" else "f644 0"
        yield accepted(f"{name}-blank", header(b"f", **blank), f=mode)  # type: ignore[arg-type]
    yield accepted(
        "uid-greatest", header(b"f", uid=field(2**32 - 2, 8), magic=GNU), f="f644 4294967294:0 0"
    )
    yield refused("uid-leave-alone", header(b"f", uid=field(2**32 - 1, 8), magic=GNU), "an owner")
    yield refused("gid-leave-alone", header(b"f", gid=field(2**32 - 1, 8), magic=GNU), "an owner")
    yield refused("size-8-eib", header(b"f", size=field(2**63 - 1, 12), magic=GNU), "the limit is")
    yield refused("size-truncated", header(b"f", size=1 << 30), "is truncated")
    yield accepted(
        "mtime-greatest", header(b"f", mtime=field(2**63 - 1, 12), magic=GNU), f="f644 0"
    )
    yield accepted("mtime-least", header(b"f", mtime=field(-(2**63), 12), magic=GNU), f="f644 0")
    yield refused(
        "mtime-just-over-63-bits", header(b"f", mtime=field(2**63, 12), magic=GNU), "out of range"
    )
    yield refused(
        "star-access-time", header(b"f", at={508: b"tar\0", 476: b"junk"}), "is no number"
    )
    yield refused("gnu-access-time", header(b"f", magic=GNU, at={345: b"junk"}), "is no number")
    yield accepted("unix-v7", header(b"f", magic=V7, at={329: b"junk"}), f="f644 0")
    yield accepted("unknown-magic", header(b"f", magic=b"ustar\x01\x02\x03"), f="f644 0")


def _checksums() -> Iterator[Case]:
    good = header(b"f")
    total = sum(good[:148]) + 256 + sum(good[156:])
    for label, text in {
        "wrong": b"%06o\0 " % (total + 1),
        "blank": b" " * 8,
        "nul": bytes(8),
        "letters": b"abcdef\0 ",
        "base-256": field(total, 8),
        "minus": b"-00001\0 ",
        "huge": b"77777777",
        "hex": b"0x%05x\0" % total,
    }.items():
        yield refused(f"checksum-{label}", header(b"f", checksum=text), "checksum")
    for label, text in {
        "seven-digits": b"%07o\0" % total,
        "spaces": b"  %05o " % total,
        "no-end": b"%08o" % total,
    }.items():
        yield accepted(f"checksum-{label}", header(b"f", checksum=text), f="f644 0")
    high = header(b"\xff\xfe")
    signed = sum(high[:148]) + 256 + sum(high[156:]) - 512
    yield shows(
        "checksum-signed",
        header(b"\xff\xfe", checksum=b"%06o\0 " % signed),
        {"\\xff\\xfe": "f644 0"},
    )
    two = bytearray(header(b"f") + header(b"g"))
    two[BLOCK + 3] ^= 1
    yield refused("checksum-flipped-bit-in-the-second", bytes(two), "checksum is wrong")
    yield refused("checksum-text-file", b"This is no archive.\n" * 60, "")
    yield refused("checksum-all-ones", b"\xff" * BLOCK, "")


def _extension_headers() -> Iterator[Case]:
    mib = 1 << 20
    name = b"n" * 200
    yield shows("gnu-name", gnu_long(name) + file(b"x", magic=GNU), {"n" * 200: "f644 0"})
    for kind in (b"L", b"K", b"x", b"g"):
        label = kind.decode()
        for what, size in (("over-1-MiB", mib + 1), ("8-GiB", 8 << 30), ("63-bits", 2**63 - 1)):
            raw = header(b"e", kind, size=field(size, 12), magic=GNU) + bytes(4 * BLOCK)
            yield refused(f"extension-{label}-{what}", raw, f"an extension header of {size} bytes")
        yield refused(
            f"extension-{label}-truncated", header(b"e", kind, size=4000) + ZERO, "truncated"
        )
        last = refused(
            f"extension-{label}-last", header(b"e", kind, size=0), "ends after an extension"
        )
        if kind == b"g":
            yield accepted("extension-g-last", header(b"e", kind, size=0))
        else:
            yield last
    for kind in (b"L", b"K"):
        body = b"a" * mib
        raw = b"".join(header(b"e", kind, size=mib, magic=GNU) + body for _ in range(5))
        yield refused(f"extension-{kind.decode()}-repeated", raw + file(b"x"), "too many extension")
    many = pax([(b"k%06d" % i, b"v") for i in range(60000)])
    yield refused("extension-x-repeated", many * 6 + file(b"x"), "too many extension headers")
    yield refused(
        "extension-g-repeated", raw_pax(record(b"c", b"v" * 1048000), b"g") * 5 + file(b"x"), "too"
    )
    yield accepted("extension-x-with-60000-records", many + file(b"x"), x="f644 0")
    evil = pax({b"path": b"evil"})
    yield accepted("x-then-x", evil + pax({b"mtime": b"5"}) + file(b"good"), good="f644 0")
    yield accepted("x-then-g", evil + pax({b"comment": b"c"}, b"g") + file(b"good"), good="f644 0")
    yield accepted(
        "gnu-name-then-g",
        gnu_long(b"evil") + pax({b"a": b"b"}, b"g") + file(b"good"),
        good="f644 0",
    )
    yield accepted(
        "g-path-has-no-effect", pax({b"path": b"evil"}, b"g") + file(b"good"), good="f644 0"
    )
    yield accepted(
        "g-size-has-no-effect",
        pax({b"size": b"512"}, b"g") + file(b"a") + file(b"b"),
        a="f644 0",
        b="f644 0",
    )
    yield accepted(
        "x-is-of-one-entry", evil + file(b"a") + file(b"good"), evil="f644 0", good="f644 0"
    )
    yield accepted("gnu-name-wins-over-path", evil + gnu_long(b"good") + file(b"a"), good="f644 0")
    yield accepted(
        "gnu-name-twice", gnu_long(b"evil") + gnu_long(b"good") + file(b"a"), good="f644 0"
    )
    yield accepted("gnu-name-empty", gnu_long(b"") + file(b"good"), good="f644 0")
    yield accepted("pax-path-empty", pax({b"path": b""}) + file(b"good"), good="f644 0")
    yield accepted(
        "pax-path-twice", pax([(b"path", b"evil"), (b"path", b"good")]) + file(b"a"), good="f644 0"
    )
    yield accepted(
        "pax-path-then-empty",
        pax([(b"path", b"evil"), (b"path", b"")]) + file(b"good"),
        good="f644 0",
    )
    yield refused(
        "x-with-its-own-x", evil + header(b"e", b"x", size=field(-1, 12), magic=GNU), "of -1"
    )
    yield accepted(
        "nul-type-directory-with-content",
        header(b"d/", b"\0", size=512, mode=0o755) + file(b"i"),
        d="d755",
        i="f644 0",
    )
    yield accepted(
        "nul-type-pax-directory",
        pax({b"path": b"d/"}) + header(b"f", b"\0", size=512, mode=0o755) + file(b"i"),
        d="d755",
        i="f644 0",
    )
    yield accepted(
        "directory-with-content", folder(b"d", size=512) + file(b"i"), d="d755", i="f644 0"
    )


def _pax_records() -> Iterator[Case]:
    good = record(b"path", b"x")
    for label, body in {
        "no-length": b" path=x\n",
        "no-space": b"9path=xx\n",
        "zero-length": b"0 path=x\n",
        "too-short": b"5 path=x\n",
        "too-long": b"99 path=x\n",
        "no-newline": b"10 path=xyz",
        "no-equals": b"10 pathxx\n",
        "no-key": b"7 =xyz\n",
        "minus": b"-9 path=x\n",
        "hex": b"0x9 path=x\n",
        "letters": b"nine path=x\n",
        "huge": b"99999999999999999999999 path=x\n",
        "only-length": b"4 \n\n",
        "nul-in-key": b"12 pa\0th=xy\n",
        "junk-after": good + b"junk",
        "zeros-after": good + bytes(9),
        "space-first": b" 10 path=x\n",
        "nul-in-uname": record(b"uname", b"a\0b"),
        "nul-in-gname": record(b"gname", b"\0"),
        "nul-in-xattr-name": record(b"SCHILY.xattr.user.\0", b"x"),
        "next-overlaps": b"18 path=x\n9 path=y\n",
    }.items():
        if label == "next-overlaps":
            yield shows(
                "pax-record-holds-a-newline",
                raw_pax(b"19 path=x\n8 path=y\n") + file(b"f"),
                {"x\n8 path=y": "f644 0"},
            )
            continue
        yield refused(f"pax-record-{label}", raw_pax(body) + file(b"f"), "PAX")
        yield refused(f"pax-record-{label}-global", raw_pax(body, b"g") + file(b"f"), "PAX")
    yield accepted(
        "pax-record-key-with-equals", raw_pax(record(b"a=b", b"c")) + file(b"f"), f="f644 0"
    )
    yield accepted("pax-records-none", raw_pax(b"") + file(b"f"), f="f644 0")
    for key in (b"uid", b"gid", b"size"):
        for label, value in {
            "letters": b"abc",
            "float": b"1.5",
            "hex": b"0x1",
            "exponent": b"1e3",
            "space": b" 5",
            "space-last": b"5 ",
            "minus": b"-",
            "huge": b"99999999999999999999",
            "nul": b"5\0",
            "underscore": b"1_0",
            "arabic": "٣".encode(),
        }.items():
            yield refused(
                f"pax-{key.decode()}-{label}",
                pax({key: value}) + file(b"f"),
                "no number" if label not in ("huge",) else "PAX header",
            )
    for label, value in {
        "minus": b"-1",
        "leave-alone": b"4294967295",
        "33-bits": b"4294967296",
    }.items():
        yield refused(
            f"pax-uid-{label}-one", pax({b"uid": value}) + file(b"f"), "that no kernel knows"
        )
        yield refused(
            f"pax-gid-{label}-one", pax({b"gid": value}) + file(b"f"), "that no kernel knows"
        )
    yield accepted(
        "pax-uid-greatest", pax({b"uid": b"4294967294"}) + file(b"f"), f="f644 4294967294:0 0"
    )
    for key in (b"mtime", b"atime", b"ctime"):
        for label, value in {
            "letters": b"abc",
            "fraction-letters": b"1.x",
            "exponent": b"1e5",
            "no-seconds": b".5",
            "two-points": b"1.2.3",
            "minus": b"-",
            "huge": b"9" * 30,
            "inf": b"inf",
            "nan": b"nan",
        }.items():
            yield refused(
                f"pax-{key.decode()}-{label}", pax({key: value}) + file(b"f"), "PAX header"
            )
        for label, value in {
            "point-last": b"1.",
            "long-fraction": b"1." + b"9" * 40,
            "minus-half": b"-0.5",
        }.items():
            yield accepted(
                f"pax-{key.decode()}-{label}", pax({key: value}) + file(b"f"), f="f644 0"
            )
    yield refused(
        "pax-mtime-below-63-bits",
        pax({b"mtime": b"-9223372036854775808.5"}) + file(b"f"),
        "a time that",
    )


def _sparse() -> Iterator[Case]:
    data = b"x" * 512
    no = "sparse"
    overlap = "extents overlap or leave the file"
    disagree = "map and content disagree"
    yield accepted("sparse-old", old_sparse([(1024, 512)], data, 4096), s="f644 4096")
    for label, pairs, why in (
        ("overlap", [(0, 512), (256, 512)], overlap),
        ("order", [(1024, 512), (0, 512)], overlap),
        ("beyond", [(4000, 512)], overlap),
        ("negative-length", [(1024, -512)], overlap),
        ("negative-offset", [(-512, 512)], overlap),
        ("too-much-data", [(0, 100)], disagree),
        ("too-little-data", [(0, 512), (1024, 512)], disagree),
        ("no-map", [], disagree),
        ("63-bits", [(2**63 - 1, 512)], overlap),
        ("length-63-bits", [(1, 2**63 - 1)], overlap),
    ):
        text = ",".join(f"{o},{n}" for o, n in pairs).encode()
        yield refused(f"sparse-old-{label}", old_sparse(pairs, data, 4096), why)
        count = b"%d" % len(pairs)
        bad = "malformed sparse map" if "negative" in label else why
        if pairs:
            yield refused(
                f"sparse-0.1-{label}",
                pax_sparse({b"size": b"4096", b"numblocks": count, b"map": text}, data),
                bad,
            )
            listed = [(b"size", b"4096"), (b"numblocks", count)]
            for offset, length in pairs:
                listed += [(b"offset", b"%d" % offset), (b"numbytes", b"%d" % length)]
            yield refused(f"sparse-0.0-{label}", pax_sparse(listed, data), bad)
        lines = b"%d\n" % len(pairs) + b"".join(b"%d\n%d\n" % pair for pair in pairs)
        yield refused(f"sparse-1.0-{label}", sparse_1_0(lines, data, 4096), bad)
    yield refused("sparse-old-not-gnu", old_sparse([(0, 512)], data, 4096, magic=USTAR), no)
    yield refused("sparse-old-negative-size", old_sparse([], b"", -5), "negative size")
    yield refused("sparse-old-huge-size", old_sparse([], b"", 1 << 62), "the limit is")
    yield accepted("sparse-old-all-hole", old_sparse([], b"", 1 << 20), s="f644 1048576")
    extended = bytearray(BLOCK)
    extended[:24] = field_12(1024) + field_12(512)
    four = [(128 * i, 128) for i in range(4)]
    yield accepted(
        "sparse-old-extended",
        old_sparse(four, data + data, 4096, extended=bytes(extended)),
        s="f644 4096",
    )
    more = bytes(504) + b"\1" + bytes(7)
    yield Case(
        "sparse-old-extension-missing",
        (old_sparse(four, b"", 4096, extended=more, stored=512),),
        "is truncated",
    )
    yield refused(
        "sparse-old-extension-bomb",
        old_sparse([], b"", 0, extended=more * 4000),
        "map that is too long",
    )
    junk = bytearray(extended)
    junk[0:12] = b"junkjunkjunk"
    yield refused(
        "sparse-old-extension-junk",
        old_sparse(four, data, 4096, extended=bytes(junk)),
        "is no number",
    )
    yield accepted(
        "sparse-0.1",
        pax_sparse({b"size": b"4096", b"numblocks": b"1", b"map": b"1024,512"}, data),
        s="f644 4096",
    )
    yield accepted(
        "sparse-0.0",
        pax_sparse(
            [(b"size", b"4096"), (b"numblocks", b"1"), (b"offset", b"1024"), (b"numbytes", b"512")],
            data,
        ),
        s="f644 4096",
    )
    yield accepted("sparse-1.0", sparse_1_0(b"1\n1024\n512\n", data, 4096), s="f644 4096")
    for label, records in {
        "no-count": {b"map": b"0,512"},
        "count-letters": {b"map": b"0,512", b"numblocks": b"x"},
        "count-wrong": {b"map": b"0,512", b"numblocks": b"2"},
        "count-negative": {b"map": b"0,512", b"numblocks": b"-1"},
        "count-long": {b"map": b"0,512", b"numblocks": b"9" * 5000},
        "odd": {b"map": b"0,512,600", b"numblocks": b"1"},
        "empty-part": {b"map": b"0,512,,", b"numblocks": b"1"},
        "empty-first": {b"map": b",0,512", b"numblocks": b"1"},
        "letters": {b"map": b"a,b", b"numblocks": b"1"},
        "spaces": {b"map": b"0, 512", b"numblocks": b"1"},
        "float": {b"map": b"0,512.0", b"numblocks": b"1"},
        "size-letters": {b"map": b"0,512", b"numblocks": b"1", b"size": b"x"},
        "size-negative": {b"map": b"0,512", b"numblocks": b"1", b"size": b"-1"},
        "size-small": {b"map": b"0,512", b"numblocks": b"1", b"size": b"100"},
        "versioned-no-map": {b"major": b"0", b"minor": b"1"},
    }.items():
        yield refused(f"sparse-0.1-{label}", pax_sparse(records, data), no)
    one = [(b"size", b"4096"), (b"numblocks", b"1")]
    for label, listed in {
        "numbytes-first": [(b"numbytes", b"512"), (b"offset", b"0")],
        "offset-twice": [(b"offset", b"0"), (b"offset", b"512")],
        "offset-only": [(b"offset", b"0")],
        "comma": [(b"offset", b"0,512"), (b"numbytes", b"1")],
        "empty": [(b"offset", b""), (b"numbytes", b"")],
    }.items():
        yield refused(f"sparse-0.0-{label}", pax_sparse(one + listed, data), "malformed sparse map")
    for label, text, why in (
        ("no-newline", b"1", "sparse map"),
        ("empty", b"", "sparse map"),
        ("letters", b"x\n", "malformed"),
        ("negative-count", b"-1\n", "malformed"),
        ("huge-count", b"999999999999\n0\n512\n", "malformed"),
        ("count-20-digits", b"99999999999999999999\n", "malformed"),
        ("missing-number", b"1\n0\n", "malformed"),
        ("long-line", b"1\n" + b"0" * 2000, "malformed"),
        ("blank-lines", b"\n\n\n", "malformed"),
        ("spaces", b"1\n 0\n512\n", "malformed"),
        ("crlf", b"1\r\n0\r\n512\r\n", "malformed"),
    ):
        yield refused(f"sparse-1.0-{label}", sparse_1_0(text, data, 4096), why)
    bomb = b"%d\n" % 500_000 + b"0\n0\n" * 500_000
    yield refused("sparse-1.0-map-bomb", sparse_1_0(bomb, b"", 0), "a sparse map that is too long")
    yield refused(
        "sparse-1.0-no-content", pax_sparse({b"major": b"1", b"minor": b"0"}, b""), "without an end"
    )
    yield refused("sparse-1.0-huge", sparse_1_0(b"0\n", b"", 1 << 62), "the limit is")
    for label, kind in (
        ("directory", b"5"),
        ("symlink", b"2"),
        ("hardlink", b"1"),
        ("char", b"3"),
        ("fifo", b"6"),
    ):
        raw = pax_sparse({b"major": b"1", b"minor": b"0"}, b"", kind)
        yield refused(f"sparse-1.0-{label}", raw, "")
        raw = pax_sparse({b"major": b"0", b"minor": b"1", b"numblocks": b"0"}, b"", kind)
        yield refused(f"sparse-0.1-{label}", raw, "")
    yield accepted(
        "sparse-unknown-version", pax_sparse({b"major": b"2", b"minor": b"0"}, data), s="f644 512"
    )
    yield accepted(
        "sparse-records-without-a-map", pax_sparse({b"realsize": b"99999"}, data), s="f644 512"
    )


def _duplicates() -> Iterator[Case]:
    a = file(b"a", b"one")
    yield accepted("twice", a + file(b"a", b"three"), a="f644 5")
    yield accepted("twice-with-dot", a + file(b"./a", b"three"), a="f644 5")
    yield accepted("file-then-directory", a + folder(b"a"), a="d755")
    yield accepted("directory-then-file", folder(b"a") + file(b"a/x") + a, a="f644 3")
    yield shows("file-then-child", a + file(b"a/x"), {"a": "d755", "a/x": "f644 0"})
    yield shows(
        "device-then-child",
        header(b"a", b"3", major=1, minor=3) + file(b"a/x"),
        {"a": "d755", "a/x": "f644 0"},
    )
    yield shows(
        "fifo-then-child",
        header(b"a", b"6") + file(b"a/x/y"),
        {"a": "d755", "a/x": "d755", "a/x/y": "f644 0"},
    )
    yield shows(
        "directory-file-directory",
        folder(b"a") + file(b"a/x") + a + folder(b"a", mode=0o700) + file(b"a/y"),
        {"a": "d700", "a/y": "f644 0"},
    )
    yield accepted("child-then-symlink", file(b"a/x") + symlink(b"a", b".."), a="l ..")
    yield shows(
        "symlink-then-child", symlink(b"a", b"..") + file(b"a/x"), {"a": "d755", "a/x": "f644 0"}
    )
    yield accepted(
        "all-kinds",
        b"".join(
            header(b"a", t, link=b"b", major=1, minor=3)
            for t in (b"0", b"2", b"3", b"4", b"5", b"6")
        ),
        a="p644",
    )
    yield shows(
        "directory-twice",
        folder(b"a", mode=0o700) + file(b"a/x") + folder(b"a/", mode=0o711),
        {"a": "d711", "a/x": "f644 0"},
    )


def _whiteouts() -> Iterator[Case]:
    for label, name, why in (
        ("nothing", b".wh.", "no legal name"),
        ("dot", b".wh..", "no legal name"),
        ("dotdot", b".wh...", "no legal name"),
        ("nothing-inside", b"a/.wh.", "no legal name"),
        ("below", b".wh.x/y", "below a whiteout"),
        ("below-deep", b"a/.wh.b/c/d", "below a whiteout"),
        ("dotdot-inside", b"a/b/.wh...", "no legal name"),
    ):
        yield refused(f"whiteout-of-{label}", file(name), why)
        yield refused(f"whiteout-of-{label}-as-directory", folder(name), why)
    kinds = {
        "file": file(b".wh.x"),
        "data": file(b".wh.x", b"hello"),
        "directory": folder(b".wh.x"),
        "symlink": symlink(b".wh.x", b"/etc"),
        "hardlink": hardlink(b".wh.x", b"y"),
        "char-0-0": header(b".wh.x", b"3"),
        "fifo": header(b".wh.x", b"6"),
        "slash": file(b".wh.x/"),
        "bad-owner": header(b".wh.x", uid=field(-1, 8), magic=GNU),
    }
    lower = file(b"x", b"hello") + file(b"y")
    for label, raw in kinds.items():
        yield accepted(f"whiteout-as-{label}", (lower, raw), y="f644 0")
    yield accepted("whiteout-of-nothing-there", (lower, file(b".wh.z")), x="f644 5", y="f644 0")
    yield accepted(
        "whiteout-in-no-directory", (lower, file(b"no/dir/.wh.z")), x="f644 5", y="f644 0"
    )
    yield accepted("whiteout-below-a-file", (lower, file(b"y/.wh.z")), x="f644 5", y="f644 0")
    yield accepted(
        "whiteout-and-entry", (lower, file(b"x", b"ab") + file(b".wh.x")), x="f644 2", y="f644 0"
    )
    for label, raw in {
        "root": file(b".wh..wh..opq"),
        "absolute": file(b"/.wh..wh..opq"),
        "twice": file(b".wh..wh..opq") * 2,
    }.items():
        yield accepted(f"opaque-{label}", (lower, raw + file(b"n")), n="f644 0")
    yield accepted(
        "bookkeeping",
        (lower, file(b".wh..wh.plnk/1", b"x") + folder(b".wh..wh.orph")),
        x="f644 5",
        y="f644 0",
    )
    yield accepted(
        "bookkeeping-as-link-source",
        file(b".wh..wh.plnk/1", b"abc") + hardlink(b"h", b".wh..wh.plnk/1"),
        h="f644 3",
    )
    yield refused(
        "bookkeeping-directory-as-link-source",
        folder(b".wh..wh.d") + hardlink(b"h", b".wh..wh.d"),
        "to a directory",
    )
    yield refused(
        "link-to-a-whited-out-name",
        (lower, file(b".wh.x") + hardlink(b"h", b".wh.x")),
        "does not exist",
    )
    yield shows(
        "resurrected-directory",
        (file(b"d/f"), file(b".wh.d"), folder(b"d") + file(b"d/n")),
        {"d": "d755", "d/n": "f644 0"},
    )


def _reserved() -> Iterator[Case]:
    for label, name in {
        "file": b".layerstore",
        "child": b".layerstore/ab/cd",
        "absolute": b"/.layerstore/x",
        "dot": b"./.layerstore",
        "whiteout": b".wh..layerstore",
        "opaque": b".layerstore/.wh..wh..opq",
    }.items():
        yield refused(f"reserved-{label}", file(name), "reserved")
    yield refused("reserved-directory", folder(b".layerstore/"), "reserved")
    yield refused("reserved-symlink", symlink(b".layerstore", b"/"), "reserved")
    for label, target in {
        "relative": b".layerstore",
        "absolute": b"/.layerstore/ab",
        "dotdot": b"../.layerstore",
    }.items():
        yield refused(
            f"reserved-behind-a-symlink-{label}", (symlink(b"x", target), file(b"x/y")), "reserved"
        )
    yield shows(
        "reserved-deeper-is-fine", file(b"a/.layerstore"), {"a": "d755", "a/.layerstore": "f644 0"}
    )
    yield shows("reserved-as-prefix-is-fine", file(b".layerstores"), {".layerstores": "f644 0"})


def _types() -> Iterator[Case]:
    for kind in b"89ADEIMNVXZaz~ \x01\x7f\x80\xff":
        yield refused(f"type-{kind:02x}", header(b"f", bytes([kind])), "unknown type")
    yield accepted("type-nul", header(b"f", b"\0", size=3) + padded(b"abc"), f="f644 3")
    yield accepted("type-7", header(b"f", b"7", size=3) + padded(b"abc"), f="f644 3")


def sample() -> tuple[bytes, dict[int, int]]:
    """A small archive without its end, and for each offset at which it may end its entries."""
    members = [
        folder(b"d"),
        file(b"d/a", b"x" * 700),
        pax({b"path": b"d/" + b"p" * 120}) + file(b"p", b"hello"),
        gnu_long(b"d/" + b"g" * 120) + file(b"g", magic=GNU),
        sparse_1_0(b"1\n1024\n512\n", b"y" * 512, 4096),
        old_sparse([(1024, 512)], b"z" * 512, 4096),
        symlink(b"l", b"d"),
        hardlink(b"h", b"d/a"),
    ]
    raw, ends = b"", {0: 0}
    for count, member in enumerate(members, 1):
        raw += member
        ends[len(raw)] = count
    return raw, ends


EXTENDED = (3072, 5120, 6656)
"""Where the sample's extension headers end."""


def _truncations() -> Iterator[Case]:
    raw, ends = sample()
    paths = ["d", "d/a", "d/" + "p" * 120, "d/" + "g" * 120, "s", "s", "l", "h"]
    shown = [
        "d755",
        "f644 700",
        "f644 5",
        "f644 0",
        "f644 4096",
        "f644 4096",
        "l d",
        "f644 700 =d/a",
    ]
    for end in range(0, len(raw), 256):
        name = f"truncated-at-{end}"
        count = ends.get(end)
        if count is None and raw[end:][: -end % BLOCK].strip(b"\0") == b"" and end % BLOCK:
            # Only a last padding is missing: nothing is lost by it (as Go).
            count = ends.get(end - end % BLOCK + BLOCK)
            if count is not None and not _ends_in_padding(raw, end):
                count = None
        if count is None:
            why = "truncated" if end % BLOCK or end not in EXTENDED else "ends after an extension"
            yield Case(name, (raw[:end],), why)
            continue
        tree = dict(zip(paths[:count], shown, strict=False))
        yield Case(name, (raw[:end],), None, tree)


def _ends_in_padding(raw: bytes, end: int) -> bool:
    """Whether the block at ``end`` is a content's last one (the header block says its size)."""
    start = end - end % BLOCK
    # Contents that end inside a block: the 700 and the 5 bytes.
    return any(
        raw[start:end].startswith(text) and end - start >= len(text)
        for text in (b"x" * 188 + b"\0", b"hello")
    )


def _ends() -> Iterator[Case]:
    f = file(b"f", b"hello")
    tree = {"f": "f644 5"}
    yield Case("end-missing", (f,), None, tree)
    yield Case("end-one-block", (f + ZERO,), None, tree)
    yield Case("end-one-block-then-entry", (f + ZERO + file(b"g"),), "single zero block")
    yield Case("end-one-block-first", (ZERO + f + END,), "single zero block")
    yield Case("end-half-a-block", (f + bytes(100),), "truncated inside a header")
    yield Case("end-block-and-a-half", (f + ZERO + bytes(100),), "truncated after a zero block")
    yield Case("end-one-block-junk", (f + ZERO + b"junk",), "truncated after a zero block")
    yield Case("end-then-junk", (f + END + b"junk" * 999,), None, tree)
    yield Case("end-then-archive", (f + END + file(b"g") + END,), None, tree)
    yield Case("end-10240", ((f + END).ljust(10240, b"\0"),), None, tree)
    yield Case("end-only", (END,), None, {})
    yield Case("end-empty-blob", (b"",), None, {})
    yield Case("end-one-byte", (b"x",), "truncated inside a header")
    yield Case("end-511-zeros", (bytes(511),), "truncated inside a header")
    yield Case("padding-missing", (header(b"f", size=5) + b"hello",), None, tree)
    yield Case(
        "padding-of-junk", (header(b"f", size=5) + b"hello".ljust(512, b"j") + END,), None, tree
    )


def _compressed() -> Iterator[Case]:
    tar = file(b"f", b"hello" * 1000) + END
    tree = {"f": "f644 5000"}
    packers: dict[str, Make] = {
        "gzip": lambda raw: gzip.compress(raw, mtime=0),
        "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
        "xz": lambda raw: lzma.compress(raw, check=lzma.CHECK_CRC32),
    }
    for label, pack in packers.items():
        packed = pack(tar)
        half = len(tar) // 2
        yield Case(f"{label}-whole", (packed,), None, tree)
        yield Case(f"{label}-two-parts", (pack(tar[:half]) + pack(tar[half:]),), None, tree)
        yield Case(f"{label}-empty-parts", (pack(b"") * 50 + packed + pack(b"") * 50,), None, tree)
        yield Case(
            f"{label}-split-small",
            (b"".join(pack(tar[i : i + 500]) for i in range(0, len(tar), 500)),),
            None,
            tree,
        )
        for part in (1, 2, 3):
            cut = packed[: len(packed) * part // 4]
            yield Case(f"{label}-truncated-{part}", (cut,), label)
        yield Case(f"{label}-last-byte-missing", (packed[:-1],), label)
        yield Case(f"{label}-header-only", (packed[:6],), label)
        yield Case(f"{label}-junk-after", (packed + b"junk",), label)
        yield Case(f"{label}-tar-after", (packed + tar,), label)
        yield Case(f"{label}-second-truncated", (packed + packed[:-4],), label)
        damaged = bytearray(packed)
        damaged[-6] ^= 0xFF
        yield Case(f"{label}-damaged", (bytes(damaged),), label)
        yield Case(f"{label}-twice", (pack(packed),), "truncated inside a header")
        yield Case(f"{label}-of-junk", (pack(b"junk" * 1000),), "")
        yield Case(f"{label}-of-nothing", (pack(b""),), None, {})
        yield Case(f"{label}-truncated-tar", (pack(tar[:700]),), "truncated")
    gz = packers["gzip"](tar)
    yield Case("gzip-zeros-after", (gz + bytes(512),), "gzip")
    yield Case("gzip-bad-flags", (gz[:3] + b"\xff" + gz[4:],), "gzip")
    yield Case("gzip-bad-method", (gz[:2] + b"\x07" + gz[3:],), "gzip")
    yield Case("gzip-wrong-length", (gz[:-4] + struct.pack("<I", 5),), "gzip")
    yield Case("gzip-bare-zlib", (zlib.compress(tar),), "")
    xz = packers["xz"](tar)
    yield Case("xz-padding", (xz + bytes(8) + xz_empty() + bytes(4),), None, tree)
    yield Case("xz-lzma-alone", (lzma.compress(tar, format=lzma.FORMAT_ALONE),), "")
    zst = packers["zstd"](tar)
    skip = struct.pack("<II", 0x184D2A50, 100) + bytes(100)
    yield Case("zstd-skippable-frames", (skip + zst + skip,), None, tree)
    yield Case("zstd-skippable-truncated", (zst + skip[:-1],), "zstd")
    yield Case(
        "zstd-huge-window",
        (
            zstandard.ZstdCompressor(
                compression_params=zstandard.ZstdCompressionParameters(window_log=28, strategy=1)
            )
            .compressobj()
            .compress(tar)
            or _huge_window(tar),
        ),
        "zstd",
    )
    yield Case("bzip2", (bz2.compress(tar),), "")


def xz_empty() -> bytes:
    return lzma.compress(b"", check=lzma.CHECK_CRC32)


def _huge_window(raw: bytes) -> bytes:
    """A zstd frame that wants a window of 256 MiB."""
    body = raw[:1000]
    return (
        b"\x28\xb5\x2f\xfd\x00"
        + bytes([(28 - 10) << 3])
        + struct.pack("<I", len(body) << 3 | 1)[:3]
        + body
    )


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NONE = 0xFFFFFFFF
GOOD_ACL = acl((1, 6, NONE), (2, 4, 1000), (4, 4, NONE), (16, 4, NONE), (32, 4, NONE))


def _xattrs() -> Iterator[Case]:
    def with_xattr(name: bytes, value: bytes, kind: bytes) -> bytes:
        return pax({b"SCHILY.xattr." + name: value}) + header(
            b"f", kind, link=b"t", major=1, minor=3
        )

    capability = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)
    shown = {b"0": "f644 0", b"5": "d755", b"2": "l t", b"3": "c644 1:3", b"6": "p644"}
    for label, name, value, kind, kept in (
        ("user", b"user.a", b"v", b"0", True),
        ("user-directory", b"user.a", b"v", b"5", True),
        ("user-symlink", b"user.a", b"v", b"2", False),
        ("user-fifo", b"user.a", b"v", b"6", False),
        ("empty", b"user.a", b"", b"0", False),
        ("bare-user", b"user.", b"v", b"0", False),
        ("bare-trusted", b"trusted.", b"v", b"0", False),
        ("bare-security", b"security.", b"v", b"0", False),
        ("no-name", b"", b"v", b"0", False),
        ("unknown", b"com.apple.x", b"v", b"0", False),
        ("system", b"system.data", b"v", b"0", False),
        ("long-name", b"user." + b"n" * 251, b"v", b"0", False),
        ("longest-name", b"user." + b"n" * 250, b"v", b"0", True),
        ("too-long", b"user.a", b"v" * 65536, b"0", False),
        ("selinux", b"security.selinux", b"v", b"0", False),
        ("trusted-overlay", b"trusted.overlay.opaque", b"y", b"5", True),
        ("user-overlay", b"user.overlay.opaque", b"y", b"5", True),
        ("overlay-redirect", b"trusted.overlay.redirect", b"/etc", b"0", True),
        ("overlay-escaped", b"trusted.overlay.overlay.opaque", b"y", b"5", True),
        ("overlay-bare", b"trusted.overlay.", b"y", b"5", False),
        ("capability", b"security.capability", capability, b"0", True),
        ("capability-junk", b"security.capability", b"junk", b"0", False),
        ("capability-short", b"security.capability", capability[:-1], b"0", False),
        ("capability-version", b"security.capability", b"\1\0\0\7" + capability[4:], b"0", False),
        ("acl", b"system.posix_acl_access", GOOD_ACL, b"0", True),
        ("acl-default", b"system.posix_acl_default", GOOD_ACL, b"5", True),
        ("acl-default-on-a-file", b"system.posix_acl_default", GOOD_ACL, b"0", False),
        ("acl-on-a-symlink", b"system.posix_acl_access", GOOD_ACL, b"2", False),
        ("acl-junk", b"system.posix_acl_access", b"junk", b"0", False),
        ("acl-version", b"system.posix_acl_access", b"\3" + GOOD_ACL[1:], b"0", False),
        ("acl-half-an-entry", b"system.posix_acl_access", GOOD_ACL[:-4], b"0", False),
        (
            "acl-no-mask",
            b"system.posix_acl_access",
            acl((1, 6, NONE), (2, 4, 5), (4, 4, NONE), (32, 4, NONE)),
            b"0",
            False,
        ),
        (
            "acl-order",
            b"system.posix_acl_access",
            acl((4, 4, NONE), (1, 6, NONE), (32, 4, NONE)),
            b"0",
            False,
        ),
        ("acl-no-other", b"system.posix_acl_access", acl((1, 6, NONE), (4, 4, NONE)), b"0", False),
        (
            "acl-perm",
            b"system.posix_acl_access",
            acl((1, 8, NONE), (4, 4, NONE), (32, 4, NONE)),
            b"0",
            False,
        ),
        (
            "acl-tag",
            b"system.posix_acl_access",
            acl((1, 6, NONE), (3, 4, 5), (4, 4, NONE), (32, 4, NONE)),
            b"0",
            False,
        ),
        (
            "acl-nobody",
            b"system.posix_acl_access",
            acl((1, 6, NONE), (2, 4, NONE), (4, 4, NONE), (16, 4, NONE), (32, 4, NONE)),
            b"0",
            False,
        ),
        ("acl-empty", b"system.posix_acl_access", acl(), b"0", False),
        ("acl-other-suffix", b"system.posix_acl_accessx", GOOD_ACL, b"0", False),
    ):
        what = shown[kind]
        if kept:
            what += " +" + name.decode()
        yield accepted(f"xattr-{label}", with_xattr(name, value, kind), f=what)
    many = pax([(b"SCHILY.xattr.user.%05d" % i, b"v") for i in range(20000)])
    yield refused("xattr-20000", many + file(b"f"), "xattrs")
    large = pax([(b"SCHILY.xattr.user.%d" % i, b"v" * 60000) for i in range(10)])
    yield refused("xattr-600000-bytes", large + file(b"f"), "xattrs")


def tars() -> Iterator[tuple[str, bytes]]:
    """(name, tar) of every layer of every case that is not compressed."""
    packed = {case.name for case in _compressed()}
    for case in cases():
        if case.name not in packed:
            for number, raw in enumerate(case.layers):
                yield f"{case.name}.{number}" if number else case.name, raw
