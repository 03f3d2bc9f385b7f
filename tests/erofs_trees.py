"""Trees with everything in them that a root file system may have, and their contents."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from layerstore.formats.entries import Kind, Xattrs
from layerstore.formats.tree import Node, Tree
from layerstore.names import Digest

ACL = struct.pack("<I" + "HHI" * 5, 2, 1, 6, 2**32 - 1, 2, 7, 1000, 4, 4, 2**32 - 1,
                  0x10, 7, 2**32 - 1, 0x20, 4, 2**32 - 1)  # fmt: skip
"""u::rw-,u:1000:rwx,g::r--,m::rwx,o::r--"""
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
"""cap_net_bind_service=ep"""

FILE_SIZES = (
    0, 1, 63, 64, 65, 2048, 2049, 3071, 3072, 3073, 4064, 4095, 4096, 4097, 7168, 7169, 8191,
    8192, 8193, 12288, 1 << 20, (1 << 20) + 3000,
)  # fmt: skip

Contents = dict[Digest, bytes]


def content_of(size: int, salt: int = 0) -> bytes:
    return (b"%d:%d|" % (size, salt) * (size // 4 + 1))[:size]


def directory() -> Node:
    return Node(Kind.DIRECTORY, 0o755)


def file(content: bytes, contents: Contents, mode: int = 0o644, xattrs: Xattrs = ()) -> Node:
    digest = Digest.of(content)
    contents[digest] = content
    return Node(
        Kind.FILE, mode, mtime_ns=1_700_000_000_123_456_789, size=len(content), digest=digest,
        xattrs=tuple(sorted(xattrs)),
    )  # fmt: skip


def symlink(target: bytes, xattrs: Xattrs = ()) -> Node:
    return Node(Kind.SYMLINK, 0o777, size=0, link=target, xattrs=xattrs)


def awkward_tree() -> tuple[Tree, Contents]:
    """The round-trip set of the EROFS reference: some 3,400 paths."""
    contents: Contents = {}
    tree = Tree()
    root = tree.root
    root.mode, root.uid, root.gid, root.mtime_ns = 0o1751, 7, 8, 1_600_000_000_000_000_001
    root.xattrs = ((b"user.root", b"yes"),)
    for name, node in (
        (b"sizes", _sizes(contents)),
        (b"many", _many(contents)),
        (b"long names", _long_names(contents)),
        (b"deep", _deep(contents)),
        (b"symlinks", _symlinks()),
        (b"odd names", _odd_names(contents)),
        (b"devices", _devices()),
        (b"attributes", _attributes(contents)),
        (b"xattrs", _xattrs(contents)),
        (b"empty", Node(Kind.DIRECTORY, 0)),
        (b"tails", _tails(contents)),
    ):
        _children(root)[name] = node
    _hard_links(root, contents)
    return tree, contents


def _children(node: Node) -> dict[bytes, Node]:
    assert node.children is not None
    return node.children


def _filled(children: dict[bytes, Node]) -> Node:
    node = Node(Kind.DIRECTORY, 0o755, mtime_ns=5)
    _children(node).update(children)
    return node


def _sizes(contents: Contents) -> Node:
    return _filled({b"%d" % size: file(content_of(size), contents) for size in FILE_SIZES})


def _many(contents: Contents) -> Node:
    same = content_of(100)
    return _filled(
        {
            b"few": _filled({b"%d" % n: file(same, contents) for n in range(150)}),
            b"lots": _filled({b"entry-%d" % n: file(content_of(n), contents) for n in range(2500)}),
            b"directories": _filled({b"%d" % n: Node(Kind.DIRECTORY, 0o700) for n in range(60)}),
        }
    )


def _long_names(contents: Contents) -> Node:
    return _filled({(b"%03d" % n).ljust(255, b"x"): file(b"x%d" % n, contents) for n in range(40)})


def _deep(contents: Contents) -> Node:
    node = _filled({b"bottom": file(content_of(5000, 1), contents)})
    for level in range(200):
        node = _filled({b"level-%d" % level: node})
    return node


def _symlinks() -> Node:
    lengths = (1, 2, 59, 60, 61, 1000, 2000, 3000, 3968, 4031, 4032, 4033, 4094, 4095)
    children = {b"%d" % n: symlink(b"t" * n) for n in lengths}
    # Every alignment before a block boundary.
    children |= {b"s%d" % n: symlink(b"/usr/" + b"a" * (n * 7 % 500)) for n in range(150)}
    children[b"bytes"] = symlink(b"\xff\xfe/\x01\n")
    children[b"attributes"] = symlink(
        b"x" * 900, ((b"security.a", b"1"), (b"trusted.b", b"2" * 700))
    )
    children[b"much"] = symlink(b"x" * 100, ((b"trusted.b", b"2" * 4000),))
    return _filled(children)


def _odd_names(contents: Contents) -> Node:
    names = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
    names += [b"...", b".a", b".-", b"..-", b"..a", b". ", b" ", b"-", b"a\nb", b".layerstore"]
    names += [b"\xff" * 255, "ü".encode(), "ü".encode("latin-1"), b".wh", b"a" * 255]
    return _filled({name: file(name * 20, contents) for name in names})


def _devices() -> Node:
    numbers = ((1, 3), (0, 1), (1, 0), (8, 255), (8, 256), (8, 1048575), (4095, 0), (4095, 1048575))
    children = {
        b"%c%d-%d" % (letter, *number): Node(kind, 0o660, 0, 6, rdev=number)
        for letter, kind in ((ord("c"), Kind.CHAR), (ord("b"), Kind.BLOCK))
        for number in numbers
    }
    children[b"b0-0"] = Node(Kind.BLOCK, 0o660)
    children[b"fifo"] = Node(Kind.FIFO, 0o4, 3, 4, -1)
    return _filled(children)


def _attributes(contents: Contents) -> Node:
    children = {}
    times = (0, 1, 999_999_999, 10**9, -1, -(10**9), -(10**9) - 1, 2**31 * 10**9 + 5,
             2**33 * 10**9 + 999_999_999, -(2**33) * 10**9 + 3, (2**62) * 10**9 + 7)  # fmt: skip
    for number, mtime_ns in enumerate(times):
        node = children[b"time%d" % number] = file(content_of(1000, number), contents)
        node.mtime_ns = mtime_ns
    for mode in (0, 0o4755, 0o2755, 0o1777, 0o7777, 0o111):
        children[b"mode%o" % mode] = file(content_of(2000, mode), contents, mode)
        children[b"dir%o" % mode] = Node(Kind.DIRECTORY, mode)
    for number in (1, 65535, 65536, 2**31, 2**32 - 2):
        node = children[b"owner%d" % number] = file(content_of(number % 9999 + 1), contents)
        node.uid, node.gid = number, number - 1
    return _filled(children)


def _xattrs(contents: Contents) -> Node:
    sets: dict[bytes, Xattrs] = {
        b"acl": ((b"system.posix_acl_access", ACL),),
        b"capability": ((b"security.capability", CAPABILITY),),
        b"empty value": ((b"user.e", b""),),
        b"binary": ((b"user.\xff\x01", bytes(range(256))),),
        b"long name": ((b"user." + b"n" * 250, b"v"),),
        b"long": ((b"user.l", content_of(5000)), (b"user.m", content_of(3000))),
        b"longest": ((b"user.l", content_of(65535)),),
        b"area": tuple((b"user.%d" % n, content_of(65000, n)) for n in range(4)),
        b"many": tuple(sorted((b"user.%d" % n, b"%d" % n) for n in range(300))),
        b"overlay": (
            (b"trusted.overlay.metacopy", b""),
            (b"trusted.overlay.opaque", b"y"),
            (b"trusted.overlay.overlay.redirect", b"/etc/shadow"),
            (b"trusted.overlay.redirect", b"/etc/shadow"),
            (b"user.overlay.opaque", b"y"),
        ),
        b"mixed": ((b"security.x", b"1"), (b"trusted.x", b"2"), (b"user.x", b"3")),
    }
    children = {}
    for name, xattrs in sets.items():
        for copy in range(3):
            path = b"%b %d" % (name, copy)
            children[path] = file(content_of(300, copy), contents, xattrs=xattrs)
            children[b"empty " + path] = file(b"", contents, xattrs=xattrs)
            node = children[b"dir " + path] = _filled({b"child": file(b"c", contents)})
            node.xattrs = tuple(sorted(xattrs))
    node = children[b"default acl"] = Node(Kind.DIRECTORY, 0o755)
    node.xattrs = ((b"system.posix_acl_access", ACL), (b"system.posix_acl_default", ACL))
    children[b"fifo"] = Node(Kind.FIFO, 0o600, xattrs=((b"trusted.f", b"1"),))
    return _filled(children)


def _tails(contents: Contents) -> Node:
    """Small files and directories of every length, so that their tails meet every boundary."""
    children = {b"f%d" % n: file(content_of(n * 37 % 3100 + 1, n), contents) for n in range(200)}
    for n in range(60):
        children[b"d%d" % n] = _filled(
            {(b"%d" % m).ljust(n + 3, b"_"): file(b"", contents) for m in range(n * 2)}
        )
    return _filled(children)


def _hard_links(root: Node, contents: Contents) -> None:
    for number, node in enumerate(
        (
            file(content_of(4000, 9), contents),
            file(b"", contents),
            file(b"small", contents, xattrs=((b"user.a", b"b"),)),
            symlink(b"target"),
            Node(Kind.CHAR, 0o666, rdev=(1, 5)),
            Node(Kind.FIFO, 0o666),
        )
    ):
        for place in (b"many", b"deep", b"sizes", b"empty"):
            _children(_children(root)[place])[b"link %d" % number] = node
        _children(root)[b"link %d" % number] = node


def links_of(tree: Tree) -> dict[Node, list[bytes]]:
    """The paths of every node."""
    paths: dict[Node, list[bytes]] = {tree.root: [b""]}
    for path, node in tree.walk():
        paths.setdefault(node, []).append(path)
    return paths


def differences(expected: Tree, found: Tree) -> Iterator[str]:
    """Where two trees differ; empty files' digests and sparse files' maps are no difference."""
    ours, theirs = dict(expected.walk()), dict(found.walk())
    if ours.keys() != theirs.keys():
        yield f"paths: {sorted(ours.keys() ^ theirs.keys())[:5]}"
        return
    for path, node in [(b"", expected.root), *ours.items()]:
        other = theirs.get(path, found.root)
        mine = node.copy()
        mine.xattrs = tuple(sorted(mine.xattrs))
        if not mine.size:
            mine.digest = None
        if not mine.same_as(other):
            yield f"{path!r}: {node!r} {node.xattrs!r:.200} / {other!r} {other.xattrs!r:.200}"
    our_links = sorted(links_of(expected).values())
    if our_links != sorted(links_of(found).values()):
        yield "hard links"
