"""The layer between two trees: the one home of "what changed", for builds and commits alike.

The result is in canonical order (docs/formats.md): parents first, siblings bytewise, and in each
directory the whiteouts before everything else. Whiteouts are explicit, one for each name that is
gone; opaque markers are accepted everywhere but never written (image-spec layer.md recommends it).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from layerstore.formats.entries import NANOSECOND, Entry, Kind
from layerstore.formats.tree import Node, Tree, entry_of


@dataclass(slots=True)
class _Record:
    """A path that may have to be said: a node of the child tree, or None for a whiteout."""

    path: bytes
    node: Node | None
    parent: int
    keep: bool


@dataclass(slots=True)
class _Walk:
    records: list[_Record] = field(default_factory=list)
    groups: dict[int, list[int]] = field(default_factory=dict)
    """Records of each non-directory node of the child tree: its names, in order."""


def diff(parent: Tree, child: Tree) -> list[Entry]:
    """The entries that turn ``parent`` into ``child`` when applied.

    A directory is said with its attributes whenever something below it is (parent inclusion), the
    root only when its own attributes changed. Names of one node become hard links to the first of
    them. Nodes that both trees share are equal by identity: the cost follows the change.
    """
    walk = _walk(parent, child, frozenset())
    if shared := _names_of_changed_groups(walk, child):
        walk = _walk(parent, child, shared)
    _keep_link_groups(walk, parent, child)
    return _emit(walk)


def _walk(parent: Tree, child: Tree, shared: Collection[bytes]) -> _Walk:
    """What differs by identity, and the paths ``shared`` although they do not."""
    walk = _Walk()
    records = walk.records
    stack: list[tuple[bytes, Node | None, Node | None, int]] = []
    if parent.root is not child.root:
        stack.append((b"", parent.root, child.root, -1))
    while stack:
        path, old, new, up = stack.pop()
        index = len(records)
        if new is None:
            records.append(_Record(path, None, up, True))
            continue
        if new.children is None:
            records.append(_Record(path, new, up, old is None or not new.same_as(old)))
            walk.groups.setdefault(id(new), []).append(index)
            continue
        old_children = old.children if old is not None else None
        records.append(_Record(path, new, up, old_children is None or not new.same_as(old)))  # type: ignore[arg-type]
        if old_children is None:
            old_children = {}
        prefix = path + b"/" if path else b""
        children = new.children
        for name in sorted(children, reverse=True):
            before, after = old_children.get(name), children[name]
            if before is not after or (shared and prefix + name in shared):
                stack.append((prefix + name, before, after, index))
        gone = sorted(old_children.keys() - children.keys(), reverse=True)
        stack.extend((prefix + name, None, None, index) for name in gone)
    return walk


def _names_of_changed_groups(walk: _Walk, child: Tree) -> set[bytes]:
    """Names that nodes with changed names have elsewhere, with the directories above them.

    A directory that was moved without being read (overlayfs' redirects) is made of the parent
    tree's nodes, and one of those may have a name outside it that did not change.
    """
    records = walk.records
    if not any(records[indices[0]].node.linked for indices in walk.groups.values()):  # type: ignore[union-attr]
        return set()
    names = _names_of_linked_nodes(child)
    found: set[bytes] = set()
    for identity, indices in walk.groups.items():
        for path in names.get(identity, set()) - {records[index].path for index in indices}:
            while path:
                found.add(path)
                path = path.rpartition(b"/")[0]
    return found


def _keep_link_groups(walk: _Walk, parent: Tree, child: Tree) -> None:
    """All names of a node are said, or none: saying one alone would break the link.

    Where no name changed by itself, the names may still be other ones than the parent had, as
    after ``ln -f`` of two equal files, or when one of two links was copied up.
    """
    undecided: list[list[tuple[_Record, Node]]] = []
    for indices in walk.groups.values():
        members = [walk.records[index] for index in indices]
        if any(member.keep for member in members):
            for member in members:
                member.keep = True
            continue
        before = [(member, node) for member in members if (node := parent.lookup(member.path))]
        if len(members) > 1 or before[0][1].linked:
            undecided.append(before)
    if undecided:
        _keep_changed_groups(undecided, _names_left(walk, parent, child))


def _names_left(walk: _Walk, parent: Tree, child: Tree) -> dict[int, set[bytes]]:
    """The names that each linked node of the parent keeps by what is said so far."""
    said = {record.path for record in walk.records if record.keep}
    return {
        identity: {name for name in names - said if child.lookup(name) is not None}
        for identity, names in _names_of_linked_nodes(parent).items()
    }


def _keep_changed_groups(
    undecided: list[list[tuple[_Record, Node]]], names_left: dict[int, set[bytes]]
) -> None:
    """A group is said if its names would not be one node's. What is said leaves the old node."""
    for group in undecided:
        names = {member.path for member, _ in group}
        if all(names_left.get(id(old), {member.path}) == names for member, old in group):
            continue
        for member, old in group:
            member.keep = True
            names_left.get(id(old), set()).discard(member.path)


def _names_of_linked_nodes(tree: Tree) -> dict[int, set[bytes]]:
    names: dict[int, set[bytes]] = {}
    for path, node in tree.walk():
        if node.linked:
            names.setdefault(id(node), set()).add(path)
    return names


def _emit(walk: _Walk) -> list[Entry]:
    records = walk.records
    for record in reversed(records):  # every path comes after its parent
        if record.keep and record.parent > 0:
            records[record.parent].keep = True
    entries: list[Entry] = []
    first_names: dict[int, bytes] = {}
    for record in records:
        if not record.keep:
            continue
        node = record.node
        if node is None:
            entries.append(Entry(record.path, Kind.WHITEOUT))
            continue
        if node.children is None:
            first = first_names.setdefault(id(node), record.path)
            if first is not record.path:
                entries.append(_link_entry(record.path, node, first))
                continue
        entries.append(entry_of(record.path, node))
    return entries


def _link_entry(path: bytes, node: Node, target: bytes) -> Entry:
    """A canonical link repeats its target's mode, ids and time, and not its xattrs."""
    return Entry(path, Kind.HARDLINK, node.mode, node.uid, node.gid, node.mtime_ns, 0, None, target)


def floor_to_seconds(mtime_ns: int) -> int:
    """A new layer's times are whole seconds, rounded toward minus infinity, as its tar has them."""
    return mtime_ns - mtime_ns % NANOSECOND
