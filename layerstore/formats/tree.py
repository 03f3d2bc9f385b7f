"""The Tree: what an image's layers look like from inside, whiteouts and opaques applied.

A tree is a value. Applying a layer or editing gives a new tree that shares every directory that
did not change with the old one; so a comparison costs only what changed. Hard links are one node
under several names.

Nodes are frozen by convention once their tree is made: only an ``Editor`` changes a node, and
only a directory node that it copied itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from layerstore.errors import FormatError
from layerstore.formats.entries import Entry, Extents, Kind, Xattrs
from layerstore.names import Digest

RESERVED_NAME = b".layerstore"
"""No image may have this name in its root: the composed driver keeps objects under it."""

_MAX_LINKS = 40
"""Symlinks followed for one path, as Linux does (path_resolution(7))."""

_FREE_STEPS = 100_000
_STEPS_PER_ENTRY = 64
"""Names in the targets of symlinks that a layer may have looked up: 40 symlinks of 2,000 names
each take 40 ms for every path that leads through them."""


class TreeError(FormatError):
    """A layer that makes no tree: a link to nothing, a loop, a root that is no directory."""


class Node:
    """A file, directory, symlink, device or fifo: an inode, without its names.

    ``linked`` is a hint that there was once more than one name. ``children`` is None for all but
    directories. A directory's ``size`` is 0.
    """

    __slots__ = (
        "children",
        "digest",
        "extents",
        "gid",
        "kind",
        "link",
        "linked",
        "mode",
        "mtime_ns",
        "rdev",
        "size",
        "uid",
        "xattrs",
    )

    def __init__(
        self,
        kind: Kind,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        mtime_ns: int = 0,
        size: int = 0,
        digest: Digest | None = None,
        link: bytes = b"",
        rdev: tuple[int, int] = (0, 0),
        xattrs: Xattrs = (),
        extents: Extents | None = None,
    ) -> None:
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.size = size
        self.digest = digest
        self.link = link
        self.rdev = rdev
        self.xattrs = xattrs
        self.extents = extents
        self.linked = False
        self.children: dict[bytes, Node] | None = {} if kind is Kind.DIRECTORY else None

    def copy(self) -> Node:
        """Another inode with the same attributes; a directory's children are shared nodes."""
        node = Node.__new__(Node)
        for name in Node.__slots__:
            setattr(node, name, getattr(self, name))
        node.linked = False
        if self.children is not None:
            node.children = dict(self.children)
        return node

    def same_as(self, other: Node) -> bool:
        """Whether both say the same of everything but names and children."""
        return (
            self.mtime_ns == other.mtime_ns
            and self.size == other.size
            and self.digest == other.digest
            and self.kind is other.kind
            and self.mode == other.mode
            and self.uid == other.uid
            and self.gid == other.gid
            and self.link == other.link
            and self.rdev == other.rdev
            and self.xattrs == other.xattrs
        )

    def __repr__(self) -> str:
        return f"<{self.kind.name} {self.mode:04o} {self.uid}:{self.gid} {self.size}>"


def node_of(entry: Entry) -> Node:
    return Node(*entry[1:])


def entry_of(path: bytes, node: Node) -> Entry:
    return Entry(
        path, node.kind, node.mode, node.uid, node.gid, node.mtime_ns, node.size,
        node.digest, node.link, node.rdev, node.xattrs, node.extents,
    )  # fmt: skip


class Tree:
    """A whole root filesystem, in memory."""

    __slots__ = ("root",)

    def __init__(self, root: Node | None = None) -> None:
        self.root = root or Node(Kind.DIRECTORY, 0o755)

    def lookup(self, path: bytes) -> Node | None:
        """The node at ``path`` (``a/b``, the root is empty); no symlink is followed."""
        node = self.root
        if not path:
            return node
        for name in path.split(b"/"):
            found = node.children.get(name) if node.children is not None else None
            if found is None:
                return None
            node = found
        return node

    def resolve(self, path: bytes) -> tuple[bytes, Node | None]:
        """Where ``path`` leads inside this root with every symlink followed, and what is there.

        The node is None when nothing is there. Raises TreeError for a loop.
        """
        real, node, _ = _follow(self.root, path)
        return real, node

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Every path but the root with its node: parents first, siblings bytewise by name."""
        stack: list[tuple[bytes, Node]] = [(b"", self.root)]
        while stack:
            path, node = stack.pop()
            if path:
                yield path, node
            if node.children:
                prefix = path + b"/" if path else b""
                stack.extend(
                    (prefix + name, node.children[name])
                    for name in sorted(node.children, reverse=True)
                )

    def edit(self) -> Editor:
        return Editor(self)


def _follow(root: Node, path: bytes) -> tuple[bytes, Node | None, int]:
    """(real path, node or None, names that symlinks put in)."""
    done: list[bytes] = []
    nodes: list[Node] = [root]
    left = [name for name in reversed(path.split(b"/")) if name]
    missing = False
    followed = steps = 0
    while left:
        name = left.pop()
        if name == b".":
            continue
        if name == b"..":
            if done:
                done.pop()
                if len(nodes) > len(done) + 1:
                    nodes.pop()
                missing = len(nodes) != len(done) + 1
            continue
        children = None if missing else nodes[-1].children
        node = children.get(name) if children is not None else None
        if node is not None and node.kind is Kind.SYMLINK:
            followed += 1
            if followed > _MAX_LINKS:
                raise TreeError(f"too many levels of symbolic links at {show(path)}")
            if node.link.startswith(b"/"):
                done.clear()
                del nodes[1:]
            parts = node.link.split(b"/")
            steps += len(parts)
            left.extend(part for part in reversed(parts) if part)
            continue
        done.append(name)
        if node is None:
            missing = True
        else:
            nodes.append(node)
    return b"/".join(done), None if missing else nodes[-1], steps


def show(path: bytes) -> str:
    """A path for people: absolute, undecodable and control bytes escaped, in quotes."""
    text = (b"/" + path).decode("utf-8", "backslashreplace")
    return repr(text) if not text.isprintable() else f"'{text}'"


class Editor:
    """Changes to a tree, each directory copied at most once. ``finish`` gives the new tree."""

    def __init__(self, tree: Tree) -> None:
        self.root = tree.root.copy()
        self._owned: dict[int, Node] = {id(self.root): self.root}
        self._directories: dict[bytes, Node] = {b"": self.root}

    def finish(self) -> Tree:
        """The new tree; the editor must not be used after it."""
        return Tree(self.root)

    def lookup(self, path: bytes) -> Node | None:
        return Tree(self.root).lookup(path)

    def resolve(self, path: bytes) -> tuple[bytes, Node | None]:
        return Tree(self.root).resolve(path)

    def owned_child(self, parent: Node, name: bytes) -> Node:
        """``parent``'s child directory ``name``, copied if this editor has not yet."""
        children = _children(parent)
        node = children[name]
        if id(node) not in self._owned:
            node = node.copy()
            self._owned[id(node)] = node
            children[name] = node
        return node

    def new_directory(self, parent: Node, name: bytes, node: Node) -> Node:
        self._owned[id(node)] = node
        _children(parent)[name] = node
        return node

    def directory(self, path: bytes) -> Node:
        """The directory at ``path``, ready to be changed; made with its parents if missing.

        A new parent gets 0755 0:0 and time 0: nothing says otherwise, and "now" would make the
        same layer differ from day to day. Whatever else is in the way is replaced.
        """
        node = self._directories.get(path)
        if node is not None:
            return node
        missing = []
        while node is None:
            path, _, name = path.rpartition(b"/")
            missing.append(name)
            node = self._directories.get(path)
        for name in reversed(missing):
            existing = _children(node).get(name)
            if existing is not None and existing.kind is Kind.DIRECTORY:
                node = self.owned_child(node, name)
            else:
                node = self.new_directory(node, name, Node(Kind.DIRECTORY, 0o755))
            path = path + b"/" + name if path else name
            self._directories[path] = node
        return node

    def put(self, path: bytes, node: Node) -> Node | None:
        """``node`` is at ``path``: a directory over a directory keeps the children that are there.

        Anything else replaces what was there, children included; gives what was replaced.
        """
        if not path:
            if node.kind is not Kind.DIRECTORY:
                raise TreeError("the root of an image must be a directory")
            _take_attributes(self.root, node)
            return None
        head, _, name = path.rpartition(b"/")
        parent = self.directory(head)
        children = _children(parent)
        existing = children.get(name)
        if node.kind is Kind.DIRECTORY:
            if existing is not None and existing.kind is Kind.DIRECTORY:
                _take_attributes(self.directory(path), node)
                return None
            self.new_directory(parent, name, node)
            self._directories[path] = node
            return existing
        if existing is not None:
            self._forget(path, existing)
        children[name] = node
        return existing

    def remove(self, path: bytes) -> bool:
        """Nothing is at ``path`` any more. False if nothing was."""
        head, _, name = path.rpartition(b"/")
        parent = Tree(self.root).lookup(head)
        if parent is None or parent.children is None or name not in parent.children:
            return False
        self._forget(path, _children(self.directory(head)).pop(name))
        return True

    def clear(self, path: bytes) -> None:
        """The directory at ``path`` has no children any more."""
        children = _children(self.directory(path))
        for name, child in children.items():
            self._forget(path + b"/" + name if path else name, child)
        children.clear()

    def _forget(self, path: bytes, node: Node) -> None:
        """What was at ``path`` is gone.

        Only directories that were copied are remembered, and all that lead to one were copied
        too: so the search ends at the first that was not, and costs no more than the copies did.
        """
        stack = [(path, node)]
        while stack:
            path, node = stack.pop()
            if node.children is not None and id(node) in self._owned:
                self._directories.pop(path, None)
                stack.extend((path + b"/" + name, node.children[name]) for name in node.children)


def _children(node: Node) -> dict[bytes, Node]:
    if node.children is None:
        raise TreeError("not a directory")
    return node.children


def _take_attributes(into: Node, other: Node) -> None:
    into.mode = other.mode
    into.uid = other.uid
    into.gid = other.gid
    into.mtime_ns = other.mtime_ns
    into.xattrs = other.xattrs


Warn = Callable[[str], None]


def _silent(text: str) -> None:
    pass


def apply(tree: Tree, entries: Iterable[Entry], *, warn: Warn = _silent) -> Tree:
    """The tree with one layer on top: what a container of the longer stack would see.

    Markers act on ``tree`` only, whatever their place in the layer (image-spec layer.md,
    "Whiteouts"; reference case 56). Entries are laid on top in order, so that of two entries for
    one path the last one wins. Raises TreeError for links that lead nowhere and symlink loops.
    """
    return _Application(tree, entries, warn).result()


class _Application:
    def __init__(self, tree: Tree, entries: Iterable[Entry], warn: Warn) -> None:
        self.lower = tree
        self.entries = entries if isinstance(entries, list) else list(entries)
        self.warn = warn
        self.editor = tree.edit()
        self._bared = tree
        self._parents: dict[bytes, bytes] = {b"": b""}
        self._laid: set[bytes] = set()
        self._explicit: set[bytes] | None = None
        self._fresh: dict[int, Node] = {}
        self._links: dict[int, tuple[bytes, Node]] = {}
        self._hidden: dict[bytes, Node] = {}
        self._copies: dict[int, Node] = {}
        self._bent = False
        self._steps = _FREE_STEPS + _STEPS_PER_ENTRY * len(self.entries)

    def result(self) -> Tree:
        markers = [e for e in self.entries if e.kind is Kind.WHITEOUT or e.kind is Kind.OPAQUE]
        # Sorted: a whiteout of a directory must be seen before one of a name below it, wherever
        # the archive has them, or a symlink that is hidden might still be followed.
        for marker in sorted(markers):
            self._hide(marker)
        # What is laid on top may replace a directory and then want it back.
        self._bared = self.editor.finish()
        self.editor = self._bared.edit()
        for entry in self.entries:
            if entry.kind is not Kind.WHITEOUT and entry.kind is not Kind.OPAQUE:
                self._lay(entry)
        for path, placeholder in self._links.values():
            self._resolve_link(path, placeholder)
        return self.editor.finish()

    def _hide(self, marker: Entry) -> None:
        if marker.kind is Kind.OPAQUE:
            directory = self._real_directory(marker.path)
            node = self.editor.lookup(directory) if directory is not None else None
            if directory is not None and node is not None and node.kind is Kind.DIRECTORY:
                self.editor.clear(directory)
            return
        head, _, name = marker.path.rpartition(b"/")
        real = self._real_directory(head)
        if real is not None:
            self.editor.remove(real + b"/" + name if real else name)

    def _lay(self, entry: Entry) -> None:
        path = entry.path
        if b".wh." in path and any(name.startswith(b".wh.") for name in path.split(b"/")):
            # Union-mount bookkeeping (aufs): no part of the tree, but a link's source.
            hidden = self._hidden[path] = node_of(entry)
            self._fresh[id(hidden)] = hidden
            return
        node = node_of(entry)
        head, _, name = path.rpartition(b"/")
        real_head = self._parents.get(head)
        if real_head is None:
            real_head = self._real_parent(head)
        if real_head != head:
            path = real_head + b"/" + name if real_head else name
        if entry.kind is Kind.HARDLINK:
            self._links[id(node)] = (path, node)
        if path in self._laid:
            self.warn(f"{show(path)} is in the layer more than once: the last entry counts")
        self._laid.add(path)
        if entry.kind is Kind.DIRECTORY:
            self._uncover(path)
        else:
            self._fresh[id(node)] = node
        replaced = self.editor.put(path, node)
        if replaced is not None and replaced.kind in (Kind.DIRECTORY, Kind.SYMLINK):
            if self._bent:
                self._parents = {b"": b""}  # some may have led through what is gone
            else:
                self._parents.pop(path, None)

    def _real_parent(self, head: bytes) -> bytes:
        """Where entries whose parent is called ``head`` go: lower symlinks are followed."""
        known, missing = head, []
        while (found_real := self._parents.get(known)) is None:
            known, _, name = known.rpartition(b"/")
            missing.append(name)
        real = found_real
        for name in reversed(missing):
            known = known + b"/" + name if known else name
            path = real + b"/" + name if real else name
            node = _children(self.editor.directory(real)).get(name)
            if (
                node is not None
                and node.kind is Kind.SYMLINK
                and self._follows(node, path)
                and self._follows(node, known)
            ):
                target, found = self._follow(self.editor.root, path)
                self._bent = True
                self.warn(f"{show(head)} leads through the symlink {show(path)} to {show(target)}")
                above = target
                while found is None:  # only what is missing is implied
                    above = above.rpartition(b"/")[0]
                    found = self.editor.lookup(above)
                if found.kind is not Kind.DIRECTORY:
                    raise TreeError(f"{show(path)} leads to {show(above)}, which is no directory")
                path = target
            elif node is not None and node.kind is not Kind.DIRECTORY:
                self.warn(f"{show(path)} is replaced by the directory that entries below it imply")
            if path == RESERVED_NAME or path.startswith(RESERVED_NAME + b"/"):
                raise TreeError(f"{show(head)} leads to the reserved name {show(path)}")
            self._uncover(path)
            self.editor.directory(path)
            self._parents[known] = real = path
        return real

    def _uncover(self, path: bytes) -> None:
        """A directory comes to ``path``: the lower one is there again if this layer replaced it.

        The layer's own entries are told apart before anything of them meets what is below, so a
        duplicate that did not win has no effect on that.
        """
        if path not in self._laid:
            return
        present = self.editor.lookup(path)
        below = self._bared.lookup(path)
        if below is None or present is None or present.kind is Kind.DIRECTORY:
            return
        if below.kind is Kind.DIRECTORY:
            self.editor.put(path, below.copy())

    def _real_directory(self, head: bytes) -> bytes | None:
        """As ``_real_parent`` for markers, which make nothing: None if nothing is there."""
        real = b""
        directory = self.editor.root
        for name in head.split(b"/") if head else ():
            path = real + b"/" + name if real else name
            node = _children(directory).get(name)
            if node is not None and node.kind is Kind.SYMLINK and self._follows(node, path):
                path, node = self._follow(self.editor.root, path)
                self.warn(f"a whiteout below {show(head)} leads through a symlink to {show(path)}")
            if node is None or node.kind is not Kind.DIRECTORY:
                return None
            directory, real = node, path
        return real

    def _follow(self, root: Node, path: bytes) -> tuple[bytes, Node | None]:
        """As ``_follow``, within what a layer of this many entries may spend on it."""
        real, node, steps = _follow(root, path)
        self._steps -= steps
        if self._steps < 0:
            raise TreeError(f"too many names in the symbolic links that lead to {show(path)}")
        return real, node

    def _follows(self, node: Node, path: bytes) -> bool:
        """A lower layer's symlink is followed, unless this layer has a directory of that name."""
        if id(node) in self._fresh:
            return False
        if self._explicit is None:
            self._explicit = {e.path for e in self.entries if e.kind is Kind.DIRECTORY}
        return path not in self._explicit

    def _resolve_link(self, path: bytes, placeholder: Node) -> None:
        if self.editor.lookup(path) is not placeholder:
            return  # a later entry of the same name won, or it is resolved already
        trail: dict[int, Node] = {}
        target = placeholder
        while target.kind is Kind.HARDLINK:
            if id(target) in trail:
                raise TreeError(f"the hard link {show(path)} leads to itself")
            trail[id(target)] = target
            target = self._link_target(path, target.link)
        if target.kind is Kind.DIRECTORY:
            raise TreeError(f"the hard link {show(path)} leads to a directory")
        # All at once: to go down a chain again for each of its links would be quadratic.
        for key, link in trail.items():
            name, _ = self._links.get(key, (b"", None))
            if name and self.editor.lookup(name) is link:
                target = self._place(name, target)

    def _place(self, path: bytes, target: Node) -> Node:
        """The node of the file ``target`` that is now at ``path``."""
        if id(target) in self._fresh:
            target.linked = True
        else:
            # The lower file joins this layer as a copy, whichever driver shows it: a layer
            # cannot add a name to an inode of the layer below.
            copy = self._copies.get(id(target))
            if copy is None:
                copy = self._copies[id(target)] = target.copy()
            else:
                copy.linked = True
            target = copy
        self._fresh[id(target)] = target
        self.editor.put(path, target)
        return target

    def _link_target(self, path: bytes, link: bytes) -> Node:
        hidden = self._hidden.get(link)
        if hidden is not None:
            return hidden
        head, _, name = link.rpartition(b"/")
        for root in (self.editor.root, self.lower.root):
            _, directory = self._follow(root, head)
            if directory is not None and directory.children is not None:
                node = directory.children.get(name)
                if node is not None:
                    return node
        raise TreeError(f"the hard link {show(path)} leads to {show(link)}, which does not exist")


def merge(layers_bottom_up: Iterable[Iterable[Entry]], *, warn: Warn = _silent) -> Tree:
    """The tree of a whole image."""
    tree = Tree()
    for entries in layers_bottom_up:
        tree = apply(tree, entries, warn=warn)
    return tree
