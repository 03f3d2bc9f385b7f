"""Layers written elsewhere, and what they show: the catalogue of the layers reference, 8.2.

Each case is a stack over a common base. It is read in every order of its top layer's members that
keeps duplicates in theirs, and must show the expected files in memory and mounted.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from abilities import needs_overlay
from erofs_trees import ACL, CAPABILITY
from layer_world import Fact, View, World, differences, in_namespace, view_of_mount, view_of_tree
from tarkit import Member, archive, directory, hardlink, opaque, symlink, whiteout

from layerstore.errors import FormatError
from layerstore.formats.entries import Kind
from layerstore.formats.tree import TreeError, apply
from layerstore.formats.untar import TarError
from layerstore.names import DiffID

pytestmark = needs_overlay

_OLD = 100 * 10**9

BASE: tuple[Member, ...] = (
    directory(b"d/", 0o700, 1000, 1000), Member(b"d/f1", content=b"1"),
    Member(b"d/f2", content=b"2"), directory(b"d/sub/"), Member(b"d/sub/x", content=b"x"),
    Member(b"file", content=b"file"), hardlink(b"hl", b"file"), symlink(b"link", b"d"),
    symlink(b"lib", b"usr/lib"), directory(b"usr/"), directory(b"usr/lib/"),
    Member(b"usr/lib/so", content=b"so"),
)  # fmt: skip


def file(
    content: bytes = b"new", mode: int = 0o644, uid: int = 0, gid: int = 0, **more: object
) -> Fact:
    block = b"0:" + content if content.strip(b"\0") else b""
    shown = hashlib.sha256(b"%d:" % len(content) + block).hexdigest()
    fact = Fact(Kind.FILE, mode, uid, gid, _OLD, len(content), shown)
    return fact._replace(**more)  # type: ignore[arg-type]


def folder(
    mode: int = 0o755, uid: int = 0, gid: int = 0, mtime_ns: int = _OLD, **more: object
) -> Fact:
    return Fact(Kind.DIRECTORY, mode, uid, gid, mtime_ns)._replace(**more)  # type: ignore[arg-type]


def sym(target: bytes, **more: object) -> Fact:
    return Fact(Kind.SYMLINK, 0o777, 0, 0, _OLD, link=target)._replace(**more)  # type: ignore[arg-type]


IMPLIED = folder(mtime_ns=0)

SHOWN: View = {
    b"": IMPLIED, b"d": folder(0o700, 1000, 1000), b"d/f1": file(b"1"), b"d/f2": file(b"2"),
    b"d/sub": folder(), b"d/sub/x": file(b"x"),
    b"file": file(b"file", links=(b"file", b"hl")), b"hl": file(b"file", links=(b"file", b"hl")),
    b"link": sym(b"d"), b"lib": sym(b"usr/lib"), b"usr": folder(), b"usr/lib": folder(),
    b"usr/lib/so": file(b"so"),
}  # fmt: skip

_D = (b"d/f1", b"d/f2", b"d/sub", b"d/sub/x")
_NEW = Member(b"d/new", content=b"new")


@dataclass(frozen=True)
class Case:
    layer: tuple[Member, ...]
    shows: Mapping[bytes, Fact]
    hides: tuple[bytes, ...] = ()
    in_order: bool = False
    """Entries for one path: their order counts."""
    between: tuple[tuple[Member, ...], ...] = ()
    """Layers between the base and the last."""
    base: tuple[Member, ...] = BASE
    warnings: int | None = 0
    not_on_disk: tuple[bytes, ...] = ()
    """Paths with times that ext4 cannot keep."""


def _xattrs(*pairs: tuple[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(sorted(pairs))


CASES: dict[str, Case] = {
    "a56-replaced-directory": Case(
        (whiteout(b"d"), directory(b"d/", 0o750), _NEW), {b"d": folder(0o750), b"d/new": file()}, _D
    ),
    "a58-whiteout-in-no-directory": Case((whiteout(b"nodir/zz"),), {}),
    "a58-whiteout-of-nothing": Case((whiteout(b"d/zz"), whiteout(b"zz")), {}),
    "a58-whiteout-in-a-directory-of-this-layer": Case(
        (directory(b"n/"), whiteout(b"n/zz"), Member(b"n/new", content=b"new")),
        {b"n": folder(), b"n/new": file()},
    ),
    "a60-replaced-directory-that-is-implied": Case(
        (whiteout(b"d"), _NEW), {b"d": IMPLIED, b"d/new": file()}, _D
    ),
    "a62-opaque-after-its-child": Case((_NEW, opaque(b"d")), {b"d/new": file()}, _D),
    "a63-opaque-alone": Case((opaque(b"d"),), {}, _D),
    "a63-opaque-in-no-directory": Case((opaque(b"nodir"),), {}),
    "a63-opaque-root": Case(
        (Member(b".wh..wh..opq"), Member(b"only", content=b"new")),
        {b"only": file()}, tuple(path for path in SHOWN if path),
    ),
    "a65-whiteout-and-file": Case(
        (whiteout(b"d/f1"), Member(b"d/f1", content=b"new")), {b"d/f1": file()}
    ),
    "a67-nested-opaques": Case(
        (
            opaque(b"d"), opaque(b"d/sub"), directory(b"d/sub/", 0o711),
            Member(b"d/sub/y", content=b"new"),
        ),
        {b"d/sub": folder(0o711), b"d/sub/y": file()}, (b"d/f1", b"d/f2", b"d/sub/x"),
    ),
    "a69-implied-parent": Case((_NEW,), {b"d/new": file()}),
    "a69-implied-parents-of-nothing": Case(
        (Member(b"n/e/w", content=b"new"),), {b"n": IMPLIED, b"n/e": IMPLIED, b"n/e/w": file()}
    ),
    "a70-through-a-symlink": Case(
        (Member(b"lib/foo", content=b"new"),), {b"usr/lib/foo": file()}, warnings=1
    ),
    "a70-through-a-symlink-with-a-directory-of-its-own": Case(
        (directory(b"lib/"), Member(b"lib/foo", content=b"new")),
        {b"lib": folder(), b"lib/foo": file()},
    ),
    "a70-through-a-symlink-to-nothing-yet": Case(
        (Member(b"l/foo", content=b"new"),),
        {b"": IMPLIED, b"l": sym(b"n/o"), b"n": IMPLIED, b"n/o": IMPLIED, b"n/o/foo": file()},
        base=(symlink(b"l", b"n/o"),), warnings=1,
    ),
    "a70-through-an-absolute-symlink-and-one-with-dots": Case(
        (Member(b"l/m/foo", content=b"new"),),
        {b"": IMPLIED, b"l": sym(b"/../n"), b"n": folder(), b"n/m": sym(b"../../../o"),
         b"o": folder(), b"o/foo": file()},
        base=(
            symlink(b"l", b"/../n"), directory(b"n/"), symlink(b"n/m", b"../../../o"),
            directory(b"o/"),
        ),
        warnings=2,
    ),
    "a71-whiteout-through-a-symlink": Case(
        (whiteout(b"lib/so"),), {}, (b"usr/lib/so",), warnings=1
    ),
    "a71-opaque-through-a-symlink": Case((opaque(b"lib"),), {}, (b"usr/lib/so",), warnings=None),
    "a72-directory-over-a-symlink": Case((directory(b"link/", 0o711),), {b"link": folder(0o711)}),
    "a73-file-over-a-directory": Case((Member(b"d", content=b"new"),), {b"d": file()}, _D),
    "a73-symlink-over-a-directory": Case((symlink(b"d", b"usr"),), {b"d": sym(b"usr")}, _D),
    "a73-directory-over-a-file": Case(
        (directory(b"file/"),), {b"file": folder(), b"hl": file(b"file")}
    ),
    "a74-directory-file-directory": Case(
        (directory(b"d/"), _NEW), {b"d": folder(), b"d/new": file()}, _D,
        between=((Member(b"d", content=b"file"),),),
    ),
    "a74-directory-whiteout-directory": Case(
        (directory(b"d/"), _NEW), {b"d": folder(), b"d/new": file()}, _D,
        between=((whiteout(b"d"),),),
    ),
    "a74-directory-symlink-directory": Case(
        (directory(b"d/"), _NEW), {b"d": folder(), b"d/new": file()}, _D,
        between=((symlink(b"d", b"usr"),),),
    ),
    "a74-the-same-layer-twice": Case(
        (Member(b"again", content=b"new"),), {b"again": file()},
        between=((Member(b"again", content=b"new"),), (whiteout(b"again"),)),
    ),
    "a74-layers-that-change-nothing": Case(
        (), {}, between=((), (), (whiteout(b"nothing"),), (), (directory(b"usr/"),)),
    ),
    "a74-a-change-undone-and-done-three-times": Case(
        (whiteout(b"n"),), {},
        between=(
            (Member(b"n"),), (whiteout(b"n"),), (Member(b"n"),), (whiteout(b"n"),), (Member(b"n"),),
        ),
    ),
    "a75-link-to-a-lower-file": Case(
        (hardlink(b"new", b"d/f1"),), {b"new": file(b"1")}
    ),
    "a75-two-links-to-a-lower-file": Case(
        (hardlink(b"n1", b"d/f1"), hardlink(b"n2", b"d/f1")),
        {b"n1": file(b"1", links=(b"n1", b"n2")), b"n2": file(b"1", links=(b"n1", b"n2"))},
    ),
    "a75-link-to-a-lower-file-that-goes": Case(
        (hardlink(b"new", b"d/f1"), whiteout(b"d/f1")), {b"new": file(b"1")}, (b"d/f1",)
    ),
    "a75-link-to-a-file-of-both-layers": Case(
        (hardlink(b"new", b"d/f1"), Member(b"d/f1", content=b"new")),
        {b"d/f1": file(links=(b"d/f1", b"new")), b"new": file(links=(b"d/f1", b"new"))},
    ),
    "a75-link-through-a-lower-symlink": Case(
        (hardlink(b"new", b"lib/so"),), {b"new": file(b"so")}
    ),
    "a75-links-to-links": Case(
        (hardlink(b"n1", b"n2"), hardlink(b"n2", b"n3"), Member(b"n3", content=b"new")),
        {name: file(links=(b"n1", b"n2", b"n3")) for name in (b"n1", b"n2", b"n3")},
    ),
    "a75-link-has-no-attributes-of-its-own": Case(
        (Member(b"n1", content=b"new"), hardlink(b"n2", b"n1", mode=0, uid=5, mtime=7)),
        {name: file(links=(b"n1", b"n2")) for name in (b"n1", b"n2")},
    ),
    "a77-link-to-a-symlink": Case(
        (symlink(b"s", b"d"), hardlink(b"t", b"s")),
        {b"s": sym(b"d", links=(b"s", b"t")), b"t": sym(b"d", links=(b"s", b"t"))},
    ),
    "a77-link-to-a-lower-symlink": Case((hardlink(b"t", b"link"),), {b"t": sym(b"d")}),
    "a80-link-to-an-absolute-name": Case((hardlink(b"new", b"/d/f1"),), {b"new": file(b"1")}),
    "a81-times": Case(
        (
            Member(b"t1", pax={b"mtime": b"1.123456789"}),
            Member(b"t2", pax={b"mtime": b"-86400.5"}),
            Member(b"t3", pax={b"mtime": b"99999999999"}),
            directory(b"t4/", pax={b"mtime": b"-0.000000001"}),
        ),
        {
            b"t1": file(b"", mtime_ns=1_123_456_789),
            b"t2": file(b"", mtime_ns=-86_400_500_000_000),
            b"t3": file(b"", mtime_ns=99_999_999_999 * 10**9), b"t4": folder(mtime_ns=-1),
        },
        not_on_disk=(b"t3",),
    ),
    "a82-directory-times-at-the-end": Case(
        (directory(b"n/"), directory(b"n/m/", mtime=5), Member(b"n/m/f", content=b"new")),
        {b"n": folder(), b"n/m": folder(mtime_ns=5 * 10**9), b"n/m/f": file()},
    ),
    "a82-directory-replaced-later": Case(
        (directory(b"n/"), Member(b"n/f"), Member(b"n", content=b"new")), {b"n": file()},
        in_order=True, warnings=None,
    ),
    "a83-the-root": Case((directory(b"./", 0o711, 7, 8),), {b"": folder(0o711, 7, 8)}),
    "a83-the-root-has-xattrs": Case(
        (directory(b"./", xattrs={b"user.r": b"1"}),), {b"": folder(xattrs=((b"user.r", b"1"),))}
    ),
    "a85-directory-without-a-slash": Case((directory(b"n"),), {b"n": folder()}),
    "a85-old-file-with-a-slash": Case((Member(b"n/", b"\0", mode=0o755),), {b"n": folder()}),
    "a85-file-with-a-slash": Case((Member(b"n/", content=b"new"),), {b"n": file()}),
    "a86-a-path-twice": Case(
        (Member(b"n", content=b"old"), Member(b"./n", content=b"new")), {b"n": file()},
        in_order=True, warnings=1,
    ),
    "a87-a-file-in-the-way": Case(
        (Member(b"pf", content=b"pf"), Member(b"pf/child", content=b"new")),
        {b"pf": IMPLIED, b"pf/child": file()}, in_order=True, warnings=1,
    ),
    "a87-a-file-in-the-way-over-a-lower-directory": Case(
        (Member(b"d", content=b"pf"), _NEW), {b"d/new": file()}, in_order=True, warnings=1,
    ),
    "a87-a-directory-after-a-file-over-a-lower-directory": Case(
        (Member(b"d", content=b"pf"), directory(b"d/", 0o711), _NEW),
        {b"d": folder(0o711), b"d/new": file()}, in_order=True, warnings=1,
    ),
    "a87-an-own-symlink-in-the-way": Case(
        (symlink(b"s", b"usr"), Member(b"s/f", content=b"new")),
        {b"s": IMPLIED, b"s/f": file()}, in_order=True, warnings=1,
    ),
    "a90-overlay-xattrs": Case(
        (
            Member(b"n", content=b"new", xattrs={
                b"user.overlay.opaque": b"y", b"trusted.overlay.metacopy": b"y", b"user.o": b"1",
            }),
            directory(
                b"m/", xattrs={b"trusted.overlay.opaque": b"y", b"user.overlay.redirect": b"/d"}
            ),
        ),
        # Kept, and escaped wherever overlayfs would read them.
        {
            b"n": file(xattrs=(
                (b"trusted.overlay.metacopy", b"y"), (b"user.o", b"1"),
                (b"user.overlay.opaque", b"y"),
            )),
            b"m": folder(xattrs=(
                (b"trusted.overlay.opaque", b"y"), (b"user.overlay.redirect", b"/d"),
            )),
        },
    ),
    "a91-empty-origin": Case(
        (Member(b"n", content=b"new", xattrs={b"user.overlay.origin": b""}),), {b"n": file()},
        warnings=None,
    ),
    "a92-user-xattr-on-a-symlink": Case(
        (Member(b"s", b"2", link=b"d", mode=0o777, xattrs={b"user.x": b"1", b"none.x": b"1"}),),
        {b"s": sym(b"d")}, warnings=2,
    ),
    "a93-selinux": Case(
        (Member(b"n", content=b"new", xattrs={b"security.selinux": b"l"}),), {b"n": file()}
    ),
    "a94-special-modes": Case(
        (
            Member(b"su", mode=0o4755, uid=5, gid=6, xattrs={b"security.capability": CAPABILITY}),
            directory(b"sg/", 0o2775, 5, 6), Member(b"sg/f", mode=0o2711),
            directory(b"tmp/", 0o1777),
        ),
        {
            b"su": file(b"", 0o4755, 5, 6, xattrs=((b"security.capability", CAPABILITY),)),
            b"sg": folder(0o2775, 5, 6), b"sg/f": file(b"", 0o2711), b"tmp": folder(0o1777),
        },
    ),
    "a95-acl": Case(
        (
            Member(b"n", mode=0o674, xattrs={b"system.posix_acl_access": ACL}),
            directory(b"m/", 0o2775, xattrs={b"system.posix_acl_default": ACL}),
            Member(b"m/f", mode=0o600), directory(b"m/k/", 0o700),
        ),
        {
            b"n": file(b"", 0o674, xattrs=((b"system.posix_acl_access", ACL),)),
            b"m": folder(0o2775, xattrs=((b"system.posix_acl_default", ACL),)),
            b"m/f": file(b"", 0o600), b"m/k": folder(0o700),
        },
    ),
    "a97-devices": Case(
        (
            Member(b"c", b"3", device=(4095, 1048575)),
            Member(b"b", b"4", device=(0, 0), mode=0o600),
            Member(b"p", b"6", mode=0o4622, uid=1, gid=2),
        ),
        {
            b"c": Fact(Kind.CHAR, 0o644, 0, 0, _OLD, rdev=(4095, 1048575)),
            b"b": Fact(Kind.BLOCK, 0o600, 0, 0, _OLD), b"p": Fact(Kind.FIFO, 0o4622, 1, 2, _OLD),
        },
    ),
    "a98-contiguous-file": Case((Member(b"n", b"7", content=b"new"),), {b"n": file()}),
    "a104-markers-of-other-types": Case(
        (
            directory(b"d/.wh.f1/"), Member(b"d/.wh.f2", b"2", link=b"/etc"),
            Member(b"d/.wh.sub", content=b"data"),
        ),
        {}, _D,
    ),
    "a104-bookkeeping-names": Case(
        (
            Member(b".wh..wh.aufs", content=b"a"), directory(b".wh..wh.plnk/"),
            Member(b".wh..wh.plnk/1.2", content=b"new"), hardlink(b"n", b".wh..wh.plnk/1.2"),
            hardlink(b"m", b".wh..wh.plnk/1.2"),
        ),
        {b"n": file(links=(b"m", b"n")), b"m": file(links=(b"m", b"n"))},
    ),
    "a106-modes-that-forbid": Case(
        (directory(b"n/", 0o555), directory(b"n/m/", 0), Member(b"n/m/f", content=b"new", mode=0)),
        {b"n": folder(0o555), b"n/m": folder(0), b"n/m/f": file(mode=0)},
    ),
    "a117-the-longest-names": Case(
        (Member(b"/".join([b"n" * 255] * 20), content=b"new"),),
        {b"/".join([b"n" * 255] * depth): IMPLIED for depth in range(1, 20)}
        | {b"/".join([b"n" * 255] * 20): file()},
    ),
}  # fmt: skip


def _orders(case: Case) -> list[tuple[Member, ...]]:
    if case.in_order:
        return [case.layer]
    if len(case.layer) <= 3:
        return list(itertools.permutations(case.layer))
    shuffler = random.Random(7)
    orders = [case.layer, case.layer[::-1]]
    for _ in range(4):
        order = list(case.layer)
        shuffler.shuffle(order)
        orders.append(tuple(order))
    return orders


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_layer_shows_what_it_says(world: World, case: Case) -> None:
    base = world.import_tar(case.base)
    between = tuple(world.import_tar(members) for members in case.between)
    start = SHOWN if case.base is BASE else {}
    expected = {path: fact for path, fact in start.items() if path not in case.hides}
    expected |= case.shows
    for order in _orders(case):
        stack = (base, *between, world.import_tar(order))
        tree = world.store.layers.tree(stack)
        assert differences(expected, view_of_tree(tree, world.store)) == []

        def look(stack: tuple[DiffID, ...] = stack) -> View:
            with world.mounted(stack) as merged:
                return view_of_mount(merged)

        shown = in_namespace(look)
        on_disk = {path: fact for path, fact in expected.items() if path not in case.not_on_disk}
        assert differences(on_disk, {p: f for p, f in shown.items() if p in on_disk}) == []
        assert shown.keys() == expected.keys()


WARNED = {name: case for name, case in CASES.items() if case.warnings is not None}


@pytest.mark.parametrize("case", WARNED.values(), ids=WARNED)
def test_what_is_surprising_is_warned_of(world: World, case: Case) -> None:
    warnings: list[str] = []
    stack = [world.import_tar(layer) for layer in (case.base, *case.between)]
    layer = world.import_tar(case.layer, warn=warnings.append)
    below = world.store.layers.tree(stack)
    apply(below, world.store.layers.entries(layer), warn=warnings.append)
    assert len(warnings) == case.warnings, warnings


REFUSED: dict[str, tuple[bytes, type[FormatError], str]] = {
    "a70-through-a-symlink-to-a-file": (
        archive([Member(b"tofile/n")]), TreeError, "/tofile' leads to '/file', which is no direc"
    ),
    "a70-through-a-symlink-below-a-file": (
        archive([Member(b"belowfile/n")]), TreeError, "leads to '/file', which is no directory"
    ),
    "a79-link-to-a-directory": (archive([hardlink(b"n", b"d")]), TreeError, "leads to a directory"),
    "a79-link-to-itself": (archive([hardlink(b"n", b"n")]), TreeError, "leads to itself"),
    "a79-link-to-the-root": (archive([hardlink(b"n", b"/")]), TarError, "link to the root"),
    "a79-links-in-a-circle": (
        archive([hardlink(b"n", b"m"), hardlink(b"m", b"n")]), TreeError, "leads to itself"
    ),
    "a79-link-to-nothing": (archive([hardlink(b"n", b"nothing")]), TreeError, "does not exist"),
    "a79-link-below-a-file": (archive([hardlink(b"n", b"file/x")]), TreeError, "does not exist"),
    "a80-link-that-leaves": (archive([hardlink(b"n", b"../t")]), TarError, "leaves the root"),
    "a83-root-that-is-a-file": (archive([Member(b"./")]), TarError, "a root that is no directory"),
    "a83-root-that-is-a-symlink": (archive([symlink(b"/", b"d")]), TarError, "no directory"),
    "a85-empty-name": (archive([Member(b"")]), TarError, "an empty name"),
    "a97-device-over-20-bits": (
        archive([Member(b"c", b"3", device=(1, 1 << 20))]), TarError, "no kernel knows"
    ),
    "a97-device-of-a-whiteout": (archive([Member(b"c", b"3")]), TarError, "takes for a whiteout"),
    "a98-unknown-type-X": (archive([Member(b"n", b"X")]), TarError, "unknown type 'X'"),
    "a98-unknown-type-Z": (archive([Member(b"n", b"Z")]), TarError, "unknown type 'Z'"),
    "a104-whiteout-of-dots": (archive([Member(b"d/.wh...")]), TarError, "no legal name"),
    "a104-whiteout-of-nothing": (archive([Member(b"d/.wh.")]), TarError, "no legal name"),
    "a104-entry-below-a-whiteout": (archive([Member(b".wh.d/f")]), TarError, "below a whiteout"),
    "a108-symlink-loop": (
        archive([Member(b"l/n")]), TreeError, "too many levels"
    ),
    "a117-name-of-256-bytes": (archive([Member(b"n" * 256)]), TarError, "over 255 bytes"),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_meaning_is_refused(
    world: World, raw: bytes, error: type[FormatError], words: str
) -> None:
    links = {b"l": b"k", b"k": b"l", b"tofile": b"file", b"belowfile": b"file/x/y"}
    base = world.import_tar((*BASE, *(symlink(name, to) for name, to in links.items())))
    with pytest.raises(error, match=words):
        world.store.layers.tree((base, world.import_tar(raw)))


@pytest.mark.parametrize(
    "tail", [b"", bytes(512), b"garbage", bytes(1024) + b"after", bytes(1024) + archive([_NEW])],
    ids=["no end", "half an end", "junk", "junk after the end", "a second archive"],
)  # fmt: skip
def test_a102_what_follows_the_end_is_kept_and_never_read(world: World, tail: bytes) -> None:
    raw = archive([Member(b"n", content=b"new")])[:-1024] + tail
    if tail == b"garbage":
        with pytest.raises(TarError):
            world.import_tar(raw)
        return
    layer = world.import_tar(raw)
    assert b"".join(world.store.layers.tar(layer)) == raw
    tree = world.store.layers.tree((layer,))
    assert [path for path, _ in tree.walk()] == [b"n"]


def test_a102_an_empty_blob_is_an_empty_layer(world: World) -> None:
    layer = world.import_tar(b"")
    assert world.store.layers.entries(layer) == []
    assert b"".join(world.store.layers.tar(layer)) == b""
