"""Merged EROFS images: what the composed driver mounts, one for each stack of layers.

``composed/<chain id>.<writer>.erofs`` holds every name and attribute of a stack and almost no
content. ``….facts`` beside it is an ``entries`` file of the root and of the witness: a file with,
as its link, the first bytes of its content, by which whoever mounts sees that contents are found.
Both are caches, made again on any doubt.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from layerstore.errors import DamagedError
from layerstore.formats import entries as entries_format
from layerstore.formats.entries import Entry, Kind
from layerstore.names import ChainID, DiffID, Digest
from layerstore.store.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.formats.tree import Tree

WRITER = 1
"""``formats.erofs.WRITER``, known without loading the writer."""

_WITNESS_BYTES = 64
_PATH_MAX = 4096


class Composed(NamedTuple):
    """A merged image. The witness is (path, first bytes), or None if no file has an object."""

    image: Path
    root: Entry
    witness: tuple[bytes, bytes] | None


def name_of(diff_ids: tuple[DiffID, ...]) -> str:
    """The file name of a stack's image; the format of the writer is part of it."""
    return f"{ChainID.of_stack(diff_ids).hex}.{WRITER}"


def composed(
    store: Store, diff_ids_bottom_up: tuple[DiffID, ...], tree: Tree | None = None
) -> Composed:
    """The stack's image; written if missing. ``tree`` saves reading the layers.

    The caller holds the layers. Raises DamagedError if an object is missing or has a wrong size.
    """
    folder = store.layout.folder("composed")
    name = name_of(diff_ids_bottom_up)
    image = folder / f"{name}.erofs"
    facts = folder / f"{name}.facts"
    try:
        image.stat()
        return _with_facts(image, entries_format.parse(facts.read_bytes(), where=facts.name))
    except (FileNotFoundError, DamagedError):
        pass
    from layerstore.formats import erofs
    from layerstore.formats.tree import entry_of

    with store.transaction() as transaction:
        transaction.lease(list(diff_ids_bottom_up))
        if tree is None:
            tree = store.layers.tree(diff_ids_bottom_up)
        _check_objects(store, tree)
        staged = transaction.stage_directory("composed")
        entries = [entry_of(b"", tree.root), *_witness(store, tree)]
        _write(staged / "image", erofs.emit(tree, inline=store.objects.read))
        _write(staged / "facts", entries_format.emit(entries))
        # The image last: where there is an image there are facts.
        (staged / "facts").rename(facts)
        (staged / "image").rename(image)
    return _with_facts(image, entries)


def _with_facts(image: Path, entries: list[Entry]) -> Composed:
    witness = (entries[1].path, entries[1].link) if len(entries) > 1 else None
    return Composed(image, entries[0], witness)


def _write(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)  # what has its final name is trusted


def _check_objects(store: Store, tree: Tree) -> None:
    """Overlayfs would serve a short object silently, and find a missing one only when read."""
    from layerstore.formats.tree import show

    seen: set[Digest] = set()
    for path, node in tree.walk():
        if node.digest is not None and node.digest not in seen:
            seen.add(node.digest)
            if not store.objects.has(node.digest, node.size):
                raise DamagedError(
                    f"the object {node.digest} of {show(path)} is missing or damaged",
                    hint="import or build the image again: that replaces it",
                )


def _witness(store: Store, tree: Tree) -> list[Entry]:
    from layerstore.formats.erofs import INLINE_LIMIT

    for path, node in tree.walk():
        if (
            node.kind is Kind.FILE
            and node.digest is not None
            and node.size > INLINE_LIMIT
            and node.extents is None
            and len(path) < _PATH_MAX
        ):
            head = next(store.objects.chunks(node.digest, 0, _WITNESS_BYTES))
            if any(head):
                return [Entry(path, Kind.FILE, link=head)]
    return []
