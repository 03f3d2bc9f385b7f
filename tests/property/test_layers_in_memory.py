"""The algebra of layers and trees, and the bytes that say them: no mounts, no store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from hypothesis import given, reject
from hypothesis import strategies as st
from layer_strategies import layers
from tarkit import Member, archive
from tree_strategies import trees

from layerstore.formats import entries as entries_format
from layerstore.formats import tar
from layerstore.formats.changes import diff
from layerstore.formats.entries import Entry, Kind
from layerstore.formats.tree import Node, Tree, TreeError, apply, merge
from layerstore.formats.untar import TarReader
from layerstore.formats.xattrs import TRUSTED_OVERLAY, USER_OVERLAY
from layerstore.names import Digest

_CONTENTS = [b"%d" % number * (number + 1) for number in range(3)]
_DIGESTS = [Digest.of(content) for content in _CONTENTS]
_NAMES = (b"a", b"b", b"a-", b"\xff", b".w")


def _shape(tree: Tree) -> list[tuple[object, ...]]:
    """Everything that a tree says, with the groups of names that are one file."""
    names: dict[int, list[bytes]] = {}
    for path, node in tree.walk():
        names.setdefault(id(node), []).append(path)
    return [
        (
            path, node.kind, node.mode, node.uid, node.gid, node.mtime_ns, node.size, node.digest,
            node.link, node.rdev, node.xattrs,
            tuple(names.get(id(node), ())) if node.kind is not Kind.DIRECTORY else (),
        )
        for path, node in [(b"", tree.root), *tree.walk()]
    ]  # fmt: skip


# -- diff ------------------------------------------------------------------------------------


@st.composite
def _small_trees(draw: st.DrawFn, parent: Tree | None = None) -> Tree:
    """A tree of few names; with ``parent`` it may hold nodes of that, whole directories too."""
    tree = Tree(Node(Kind.DIRECTORY, draw(st.sampled_from((0o755, 0o700)))))
    directories = [tree.root]
    made: list[Node] = []
    old = [node for _, node in parent.walk()] if parent else []
    for _ in range(draw(st.integers(0, 12))):
        children = draw(st.sampled_from(directories)).children
        assert children is not None
        name = draw(st.sampled_from(_NAMES))
        how = draw(st.sampled_from("fffdddslo" if old else "fffdddsl"))
        if how == "l" and made:
            node = draw(st.sampled_from(made))
            node.linked = True
        elif how == "o":
            node = draw(st.sampled_from(old))
            if node.kind is Kind.DIRECTORY and draw(st.booleans()):
                node = node.copy()
                directories.append(node)
        else:
            node = _draw_node(draw, how)
            (directories if node.kind is Kind.DIRECTORY else made).append(node)
        children[name] = node
    _mark_links(tree)
    return tree


def _draw_node(draw: st.DrawFn, how: str) -> Node:
    mode = draw(st.sampled_from((0o644, 0o600)))
    mtime = draw(st.sampled_from((0, 10**9, -1)))
    if how == "d":
        return Node(Kind.DIRECTORY, mode, mtime_ns=mtime)
    if how == "s":
        return Node(Kind.SYMLINK, 0o777, link=draw(st.sampled_from((b"a", b"b"))))
    number = draw(st.integers(0, 2))
    return Node(
        Kind.FILE, mode, mtime_ns=mtime, size=len(_CONTENTS[number]), digest=_DIGESTS[number]
    )


def _mark_links(tree: Tree) -> None:
    seen: set[int] = set()
    for _, node in tree.walk():
        if node.kind is not Kind.DIRECTORY:
            node.linked = node.linked or id(node) in seen
            seen.add(id(node))


@st.composite
def _pairs(draw: st.DrawFn) -> tuple[Tree, Tree]:
    parent = draw(_small_trees())
    child = draw(_small_trees(parent))
    if draw(st.booleans()):
        assert child.root.children is not None and parent.root.children is not None
        child.root.children = parent.root.children | child.root.children
        _mark_links(child)
    return parent, child


@given(pair=_pairs())
def test_the_diff_of_two_trees_makes_one_of_the_other(pair: tuple[Tree, Tree]) -> None:
    parent, child = pair
    said = diff(parent, child)
    assert _shape(apply(parent, said)) == _shape(child)


@given(pair=_pairs())
def test_a_diff_says_nothing_that_could_be_left_out(pair: tuple[Tree, Tree]) -> None:
    """Directories are said whenever something in them is; every other entry counts."""
    parent, child = pair
    said = diff(parent, child)
    wanted = _shape(child)
    for number, entry in enumerate(said):
        if entry.kind is Kind.DIRECTORY:
            node, before = child.lookup(entry.path), parent.lookup(entry.path)
            assert node is not None
            is_needed = before is None or before.kind is not node.kind or not node.same_as(before)
            below = entry.path + b"/" if entry.path else b""
            assert is_needed or (entry.path and any(other.path.startswith(below) for other in said))
            continue
        if _is_linked_name(entry, said):
            continue  # all names of a changed file are said
        try:
            without = apply(parent, said[:number] + said[number + 1 :])
        except TreeError:
            continue
        assert _shape(without) != wanted, entry


def _is_linked_name(entry: Entry, said: list[Entry]) -> bool:
    return entry.kind is Kind.HARDLINK or any(e.link == entry.path for e in said if e.link)


@given(tree=_small_trees())
def test_the_diff_of_equal_trees_is_empty(tree: Tree) -> None:
    other = apply(Tree(), diff(Tree(), tree))
    assert _shape(other) == _shape(tree)
    assert diff(tree, other) == []
    assert diff(tree, tree) == []


@given(pair=_pairs())
def test_a_diff_is_in_canonical_order(pair: tuple[Tree, Tree]) -> None:
    said = diff(*pair)
    keys = []
    for entry in said:
        head, _, name = entry.path.rpartition(b"/")
        parents = [(1, part) for part in head.split(b"/")] if head else []
        keys.append([*parents, (0 if entry.kind is Kind.WHITEOUT else 1, name)])
    # The root has no name; everything else is sorted, a whiteout before its siblings.
    assert keys == sorted(keys, key=lambda key: [] if key == [(1, b"")] else key)
    assert len({entry.path for entry in said}) == len(said)


# -- apply -----------------------------------------------------------------------------------


_LOWER = (
    Member(b"s", b"2", link=b"t", mode=0o777), Member(b"t/u/f"), Member(b"t/v/g"),
    Member(b"a/a/a"), Member(b"a/b"), Member(b"b/a/b"), Member(b"a-/b", b"2", link=b"a"),
)  # fmt: skip


def _entries(members: tuple[Member, ...]) -> list[Entry]:
    return [
        member.entry._replace(digest=Digest.of(member.raw)) if member.entry.size else member.entry
        for member in TarReader(iter([archive(members)]), where="test")
    ]


@given(
    layer=layers(), through=st.lists(st.sampled_from([b"s/u/n", b"s/n", b"s/u/m/o"]), unique=True),
    data=st.data(),
)  # fmt: skip
def test_the_order_of_a_layer_decides_nothing(
    layer: tuple[Member, ...], through: list[bytes], data: st.DataObject
) -> None:
    lower = merge([_entries(_LOWER)])
    # Paths through a symlink of the layer below, too.
    said = _entries((*layer, *(Member(path) for path in through)))
    said = [entry for entry in said if not _lies_below_symlink(lower, entry.path)]
    other = data.draw(st.permutations(said))
    results = []
    for order in (said, other):
        try:
            results.append(_shape(apply(lower, order)))
        except TreeError as error:
            results.append([(type(error),)])
    assert results[0] == results[1]


def _lies_below_symlink(lower: Tree, path: bytes) -> bool:
    """Whether two names of the layer may be one file: duplicates, whose order counts."""
    head = path
    while head := head.rpartition(b"/")[0]:
        node = lower.lookup(head)
        if node is not None and node.kind is Kind.SYMLINK:
            return not path.startswith(b"s/")
    return False


@given(stack=st.lists(layers(), min_size=1, max_size=5), cut=st.integers(0, 5))
def test_layers_may_be_merged_in_two_parts(stack: list[tuple[Member, ...]], cut: int) -> None:
    """What is above does not matter to what is below, and a squashed stack shows the same."""
    said = [_entries(layer) for layer in stack]
    try:
        whole = merge(said)
    except TreeError:
        reject()
    below = merge(said[:cut])
    above = whole
    assert _shape(apply(below, diff(below, above))) == _shape(whole)
    assert _shape(merge([diff(Tree(), whole)])) == _shape(whole)


@given(layer=layers(), lower=layers())
def test_applying_a_layer_leaves_the_tree_below_as_it_was(
    layer: tuple[Member, ...], lower: tuple[Member, ...]
) -> None:
    try:
        below = merge([_entries(lower)])
        before = _shape(below)
        apply(below, _entries(layer))
    except TreeError:
        reject()
    assert _shape(below) == before


# -- bytes -----------------------------------------------------------------------------------


def _sayable(tree: Tree) -> Tree:
    """Without what an archive of somebody else may not bring along."""
    for _, node in [(b"", tree.root), *tree.walk()]:
        node.xattrs = tuple(
            (name, value)
            for name, value in node.xattrs
            if value
            and not name.startswith((TRUSTED_OVERLAY, USER_OVERLAY))
            and b"=" not in name
            and not (name.startswith(b"user.") and node.kind not in (Kind.FILE, Kind.DIRECTORY))
            and not (name.startswith(b"system.") and node.kind is Kind.SYMLINK)
            and len(name) <= 255
            and name not in (b"security.selinux", b"security.ima", b"security.evm")
        )
        if not node.size:
            node.digest = None
        for name in list(node.children or {}):
            assert node.children is not None
            if name.startswith(b".wh."):
                del node.children[name]
    _mark_links(tree)
    return tree


@given(drawn=trees())
def test_a_canonical_tar_says_its_entries_and_nothing_else(
    drawn: tuple[Tree, dict[Digest, bytes]],
) -> None:
    tree, contents = drawn
    said = diff(Tree(), _sayable(tree))
    raw = b"".join(_bytes_of(said, contents))
    assert len(raw) % 512 == 0
    read = []
    reader = TarReader(iter([raw]), where="test")
    for member in reader:
        entry = member.entry
        if entry.size:
            entry = entry._replace(digest=Digest.of(reader.whole_content()))
        read.append(entry)
    padding = -read[-1].size % 512 if read else 0
    assert b"".join(reader.trailer()) == bytes(padding) + tar.END
    assert read == said
    assert b"".join(_bytes_of(read, contents)) == raw


def _bytes_of(said: list[Entry], contents: dict[Digest, bytes]) -> Iterator[bytes]:
    for piece in tar.pieces(said):
        if piece.digest is None:
            yield piece.raw
        else:
            yield contents[piece.digest][piece.offset : piece.offset + piece.length]


_u32 = st.integers(0, 2**32 - 1)
_any_entries = st.builds(
    Entry,
    st.binary(max_size=300),
    st.sampled_from(list(Kind)),
    st.integers(0, 0o7777),
    _u32,
    _u32,
    st.integers(-(2**63) * 10**9, (2**63) * 10**9 - 1),
    st.integers(0, 2**64 - 1),
    st.none() | st.binary(min_size=32, max_size=32).map(Digest.from_raw),
    st.binary(max_size=50),
    st.tuples(_u32, _u32),
    st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9)), max_size=3).map(tuple),
    st.none()
    | st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=3).map(
        tuple
    ),
)


@given(said=st.lists(_any_entries, max_size=8))
def test_an_entries_file_gives_its_entries_back(said: list[Entry]) -> None:
    raw = entries_format.emit(said)
    assert entries_format.parse(raw, where="test") == said
    assert hashlib.sha256(raw[:-32]).digest() == raw[-32:]
