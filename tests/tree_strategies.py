"""Random trees for Hypothesis, with the contents of their files."""

from __future__ import annotations

import os

from erofs_trees import ACL, CAPABILITY, Contents, content_of, file
from hypothesis import strategies as st

from layerstore.formats.entries import Kind, Xattrs
from layerstore.formats.tree import RESERVED_NAME, Node, Tree

names = (
    st.builds(
        bytes.ljust,
        st.one_of(
            st.binary(min_size=1, max_size=4),
            st.sampled_from([b"a", b"b", b"...", b".-", b"-", b"+", b"\xff", b" "]),
        ),
        st.sampled_from([0, 0, 0, 150, 255]),
        st.just(b"x"),
    )
    .map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"_"))
    .filter(lambda name: name not in (b".", b"..", RESERVED_NAME))
)
_targets = st.one_of(
    st.binary(min_size=1, max_size=8), st.integers(1, 4095).map(lambda size: b"t" * size)
).map(lambda target: target.replace(b"\0", b"0"))
_owners = st.one_of(st.just(0), st.integers(0, 2**32 - 2))
_times = st.one_of(
    st.just(0), st.integers(-(2**34) * 10**9, 2**34 * 10**9), st.integers(-(2**62), 2**62)
)
_sizes = st.one_of(st.integers(0, 200), st.integers(0, 13000), st.sampled_from([4095, 4096, 4097]))
_kinds = st.sampled_from(
    [Kind.FILE, Kind.FILE, Kind.FILE, Kind.DIRECTORY, Kind.DIRECTORY, Kind.SYMLINK, Kind.CHAR,
     Kind.BLOCK, Kind.FIFO, Kind.HARDLINK]
)  # fmt: skip
_suffixes = st.binary(min_size=1, max_size=5).map(lambda name: name.replace(b"\0", b"0"))
_values = st.one_of(st.binary(max_size=5), st.integers(0, 9000).map(lambda size: content_of(size)))


@st.composite
def _xattrs(draw: st.DrawFn, kind: Kind, for_kernel: bool) -> Xattrs:
    """``for_kernel``: only what the kernel also lets one read back."""
    prefixes = [b"trusted.", b"trusted.overlay.", b"security."]
    found = {}
    if kind in (Kind.FILE, Kind.DIRECTORY) or not for_kernel:
        prefixes += [b"user."]
        if draw(st.integers(0, 9)) == 0:
            found[b"system.posix_acl_access"] = ACL
        if kind is Kind.FILE and draw(st.integers(0, 9)) == 0:
            found[b"security.capability"] = CAPABILITY
    count = draw(st.sampled_from([0, 0, 0, 1, 2, 5]))
    for _ in range(count):
        name = draw(st.sampled_from(prefixes)) + draw(_suffixes)
        if name not in found and name != b"trusted.overlay.":
            found[name] = draw(_values)
    return tuple(sorted(found.items()))


@st.composite
def trees(draw: st.DrawFn, *, for_kernel: bool = False) -> tuple[Tree, Contents]:
    tree = Tree()
    contents: Contents = {}
    directories = [tree.root]
    linkable: list[Node] = []
    _dress(draw, tree.root, for_kernel)
    for _ in range(draw(st.integers(0, 25))):
        children = draw(st.sampled_from(directories)).children
        assert children is not None
        name = draw(names)
        if name in children:
            continue
        kind = draw(_kinds)
        if kind is Kind.HARDLINK:
            if linkable:
                children[name] = draw(st.sampled_from(linkable))
            continue
        if kind is Kind.FILE:
            node = file(content_of(draw(_sizes), draw(st.integers(0, 3))), contents)
        else:
            node = Node(kind, 0)
        if kind is Kind.SYMLINK:
            node.link = draw(_targets)
        elif kind in (Kind.CHAR, Kind.BLOCK):
            node.rdev = (draw(st.integers(1, 4095)), draw(st.integers(0, 2**20 - 1)))
        _dress(draw, node, for_kernel)
        children[name] = node
        (directories if kind is Kind.DIRECTORY else linkable).append(node)
    return tree, contents


def _dress(draw: st.DrawFn, node: Node, for_kernel: bool) -> None:
    node.mode = draw(st.integers(0, 0o7777))
    node.uid, node.gid = draw(_owners), draw(_owners)
    node.mtime_ns = draw(_times)
    node.xattrs = draw(_xattrs(node.kind, for_kernel))


def shuffled(tree: Tree) -> Tree:
    """The same tree in dictionaries of another order."""
    copies: dict[Node, Node] = {}

    def copy(node: Node) -> Node:
        if node not in copies:
            copies[node] = node.copy()
            if node.children is not None:
                order = sorted(node.children, key=lambda name: os.fsencode(name)[::-1])
                copies[node].children = {name: copy(node.children[name]) for name in order}
        return copies[node]

    return Tree(copy(tree.root))
