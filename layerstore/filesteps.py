"""The steps that need no container, no mount and no root: edits of a tree in memory.

Parents of a path are found as a process in the container would find them, symlinks followed inside
the image's root; the last component is never followed, but for ``attrs``. What is new gets one
fixed time; directories that gain or lose a name keep theirs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from layerstore.errors import BuildError, LayerstoreError
from layerstore.formats.changes import floor_to_seconds
from layerstore.formats.entries import NANOSECOND, Entry, Kind
from layerstore.formats.tree import Editor, Node, Tree, TreeError, apply, show
from layerstore.names import Digest
from layerstore.sources import Context, ContextFile
from layerstore.spec import (
    AttrsStep,
    CopyStep,
    ExtractStep,
    MkdirStep,
    Mode,
    Owner,
    RemoveStep,
    Source,
    Step,
    SymlinkStep,
    WriteStep,
)


@dataclass(frozen=True, slots=True)
class Materials:
    """What a step may use."""

    context: Context
    stages: dict[str, Tree]
    stage_file: Callable[[ContextFile], Digest | None]
    """Puts a file of the folder into the store."""
    stage_bytes: Callable[[bytes], Digest]
    read_object: Callable[[Digest], bytes]
    unpack: Callable[[bytes], list[Entry]]
    """The entries of an archive of the folder, contents put into the store."""
    made_at: int
    """Seconds: the time of everything new."""


def edit(step: Step, tree: Tree, materials: Materials) -> Tree:
    """The tree after the step. Raises BuildError, saying at which line of the spec."""
    try:
        if isinstance(step, ExtractStep):
            return _extract(step, tree, materials)
        editing = _Editing(tree, materials)
        match step:
            case CopyStep():
                editing.copy(step)
            case WriteStep():
                editing.write(step)
            case MkdirStep():
                editing.mkdir(step)
            case SymlinkStep():
                editing.symlink(step)
            case RemoveStep():
                editing.remove(step)
            case AttrsStep():
                editing.attrs(step)
            case _:
                raise TypeError(f"{type(step).__name__} is no file step")
        return editing.editor.finish()
    except (BuildError, TreeError) as error:
        raise BuildError(
            f"{step.position}: {step.title}: {error.brief}", hint=error.hint, details=error.details
        ) from error


@dataclass(slots=True)
class _Editing:
    tree: Tree
    materials: Materials
    editor: Editor = field(init=False)
    _accounts: Accounts | None = None

    def __post_init__(self) -> None:
        self.editor = self.tree.edit()

    # -- places ----------------------------------------------------------------------------

    def place(self, path: bytes) -> bytes:
        """The path with its parents' symlinks followed."""
        head, _, name = path.rpartition(b"/")
        real, node = self.editor.resolve(head)
        if node is not None and node.kind is not Kind.DIRECTORY:
            raise BuildError(f"{show(head)} is no directory in the image")
        return real + b"/" + name if real else name

    def directory(self, path: bytes) -> bytes:
        """The real path of a directory, made with its parents if missing."""
        real, node = self.editor.resolve(path)
        if node is not None and node.kind is not Kind.DIRECTORY:
            raise BuildError(f"{show(path)} is no directory in the image")
        if node is None:
            made = b""
            for name in real.split(b"/"):
                made = made + b"/" + name if made else name
                if self.editor.lookup(made) is None:
                    self.editor.put(made, self.node(Kind.DIRECTORY, 0o755, 0, 0))
        return real

    def node(
        self,
        kind: Kind,
        mode: int,
        uid: int,
        gid: int,
        *,
        digest: Digest | None = None,
        size: int = 0,
        link: bytes = b"",
    ) -> Node:
        time = self.materials.made_at * NANOSECOND
        return Node(kind, mode, uid, gid, time, size, digest, link)

    def ids(self, owner: Owner) -> tuple[int, int]:
        if self._accounts is None:
            self._accounts = Accounts(Tree(self.editor.root), self.materials.read_object)
        return self._accounts.ids(owner)

    def put(self, path: bytes, node: Node) -> None:
        """As ``Editor.put``, but a file does not silently take the place of a directory."""
        existing = self.editor.lookup(path)
        if existing is not None and (existing.kind is Kind.DIRECTORY) != (
            node.kind is Kind.DIRECTORY
        ):
            raise BuildError(
                f"{show(path)} is {'a' if existing.kind is Kind.DIRECTORY else 'no'} directory "
                "in the image",
                hint="remove it in a step before, or end the target with a slash",
            )
        self.editor.put(path, node)

    # -- verbs -----------------------------------------------------------------------------

    def write(self, step: WriteStep) -> None:
        content = step.text.encode("utf-8", "surrogateescape")
        uid, gid = self.ids(step.owner)
        digest = self.materials.stage_bytes(content) if content else None
        mode = step.mode.apply(0o644, False)
        head = step.to.rpartition(b"/")[0]
        self.directory(head)
        self.put(
            self.place(step.to),
            self.node(Kind.FILE, mode, uid, gid, digest=digest, size=len(content)),
        )

    def mkdir(self, step: MkdirStep) -> None:
        before = self.editor.resolve(step.path)[1]
        path = self.directory(step.path)
        node = self.editor.directory(path)
        if step.mode is not None:
            node.mode = step.mode.apply(0o755 if before is None else node.mode, True)
        if step.owner is not None:
            node.uid, node.gid = self.ids(step.owner)

    def symlink(self, step: SymlinkStep) -> None:
        self.directory(step.path.rpartition(b"/")[0])
        self.put(self.place(step.path), self.node(Kind.SYMLINK, 0o777, 0, 0, link=step.target))

    def remove(self, step: RemoveStep) -> None:
        for path in step.paths:
            if not path or not self.editor.remove(self.place(path)):
                raise BuildError(f"{show(path)} is not there to be removed")

    def attrs(self, step: AttrsStep) -> None:
        for path in step.paths:
            real, node = self.editor.resolve(path)
            if node is None:
                raise BuildError(f"{show(path)} is not there")
            self._change(real, node, step)
            if step.recursive and node.kind is Kind.DIRECTORY:
                for inner, child in list(Tree(node).walk()):
                    self._change(real + b"/" + inner if real else inner, child, step)

    def _change(self, path: bytes, node: Node, step: AttrsStep) -> None:
        changed = self.editor.directory(path) if node.kind is Kind.DIRECTORY else node.copy()
        if step.owner is not None:
            changed.uid, changed.gid = self.ids(step.owner)
            if node.kind is Kind.FILE and step.mode is None:
                changed.mode &= ~0o6000  # as chown(2) does
        if step.mode is not None and node.kind is not Kind.SYMLINK:
            changed.mode = step.mode.apply(node.mode, node.kind is Kind.DIRECTORY)
        if step.xattrs:
            changed.xattrs = tuple(sorted((dict(node.xattrs) | dict(step.xattrs)).items()))
        if step.mtime is not None:
            changed.mtime_ns = step.mtime * NANOSECOND
        if node.kind is not Kind.DIRECTORY:
            self.editor.put(path, changed)

    def copy(self, step: CopyStep) -> None:
        for source in step.sources:
            if step.stage is not None:
                self._copy_from_stage(step, source, self.materials.stages[step.stage])
            else:
                self._copy_from_context(step, source)

    def _target(self, step: CopyStep, source: Source) -> bytes:
        """Where the source itself goes; with ``contents`` the directory that takes them."""
        if source.contents:
            return self.directory(step.to)
        name = source.path.rpartition(b"/")[2]
        if step.into:
            real = self.directory(step.to)
            return real + b"/" + name if real else name
        self.directory(step.to.rpartition(b"/")[0])
        return self.place(step.to)

    def _copy_from_context(self, step: CopyStep, source: Source) -> None:
        uid, gid = self.ids(step.owner) if step.owner is not None else (0, 0)
        target = self._target(step, source)
        for file in self.materials.context.select(source):
            if source.contents and not file.name:
                continue
            path = b"/".join(part for part in (target, file.name) if part)
            if file.kind is Kind.SYMLINK:
                node = self.node(Kind.SYMLINK, 0o777, uid, gid, link=file.link)
            else:
                mode = step.mode.apply(file.mode, file.kind is Kind.DIRECTORY)
                digest = self.materials.stage_file(file) if file.kind is Kind.FILE else None
                node = self.node(file.kind, mode, uid, gid, digest=digest, size=file.size)
            self.put(path, node)

    def _copy_from_stage(self, step: CopyStep, source: Source, origin: Tree) -> None:
        find = origin.resolve if source.contents else partial(_placed, origin)
        top = find(source.path)[1]
        if top is None:
            raise BuildError(f"{show(source.path)} is not in the stage {step.stage!r}")
        if source.contents and top.kind is not Kind.DIRECTORY:
            raise BuildError(f"{show(source.path)} is no directory in the stage {step.stage!r}")
        ids = self.ids(step.owner) if step.owner is not None else None
        target = self._target(step, source)
        # Names of one inode stay names of one inode, but of a new one.
        copies: dict[int, Node] = {}
        inner = list(Tree(top).walk()) if top.kind is Kind.DIRECTORY else []
        for name, node in [(b"", top), *inner]:
            if source.contents and not name:
                continue
            copy = copies.get(id(node))
            if copy is None:
                copy = copies[id(node)] = _copied(node, step.mode, ids)
                copy.linked = node.linked
            path = b"/".join(part for part in (target, name) if part)
            self.put(path, copy)


def _placed(tree: Tree, path: bytes) -> tuple[bytes, Node | None]:
    """A path whose parents' symlinks are followed, its own not."""
    head, _, name = path.rpartition(b"/")
    real, node = tree.resolve(head)
    if not name:
        return real, node
    found = node.children.get(name) if node is not None and node.children is not None else None
    return (real + b"/" + name if real else name), found


def _copied(node: Node, mode: Mode, ids: tuple[int, int] | None) -> Node:
    copy = node.copy()
    if copy.children is not None:
        copy.children = {}
    if node.kind is not Kind.SYMLINK:
        copy.mode = mode.apply(node.mode, node.kind is Kind.DIRECTORY)
    if ids is not None:
        copy.uid, copy.gid = ids
    copy.mtime_ns = floor_to_seconds(copy.mtime_ns)
    return copy


def _extract(step: ExtractStep, tree: Tree, materials: Materials) -> Tree:
    editing = _Editing(tree, materials)
    prefix = editing.directory(step.to)
    prefix = prefix + b"/" if prefix else b""
    entries: list[Entry] = []
    for entry in materials.unpack(step.source):
        if entry.kind is Kind.WHITEOUT or entry.kind is Kind.OPAQUE:
            raise BuildError(
                f"the archive hides {show(entry.path)}: it is an image's layer",
                hint="load the image, and start from: {image: NAME}",
            )
        link = prefix + entry.link if entry.kind is Kind.HARDLINK else entry.link
        path = prefix + entry.path if entry.path else prefix[:-1]
        time = floor_to_seconds(entry.mtime_ns)
        entries.append(entry._replace(path=path, link=link, mtime_ns=time))
    return apply(editing.editor.finish(), entries)


class Accounts:
    """The image's own /etc/passwd and /etc/group."""

    def __init__(self, tree: Tree, read_object: Callable[[Digest], bytes]) -> None:
        self._tree = tree
        self._read_object = read_object

    def ids(self, owner: Owner) -> tuple[int, int]:
        """Raises BuildError for a name that the image does not have."""
        uid, primary = self._user(owner.user)
        if owner.group is None:
            return uid, primary
        return uid, self._group(owner.group)

    def _user(self, user: int | str) -> tuple[int, int]:
        if isinstance(user, int):
            return user, user
        for fields in self._lines(b"etc/passwd"):
            if (
                fields[0] == user
                and len(fields) >= 4
                and fields[2].isdigit()
                and fields[3].isdigit()
            ):
                return int(fields[2]), int(fields[3])
        raise BuildError(f"the image's /etc/passwd has no user {user!r}", hint="use a number")

    def _group(self, group: int | str) -> int:
        if isinstance(group, int):
            return group
        for fields in self._lines(b"etc/group"):
            if fields[0] == group and len(fields) >= 3 and fields[2].isdigit():
                return int(fields[2])
        raise BuildError(f"the image's /etc/group has no group {group!r}", hint="use a number")

    def _lines(self, path: bytes) -> Iterable[list[str]]:
        _, node = self._tree.resolve(path)
        if node is None or node.kind is not Kind.FILE or node.digest is None:
            return []
        try:
            text = os.fsdecode(self._read_object(node.digest))
        except LayerstoreError:
            return []
        return [line.split(":") for line in text.splitlines()]
