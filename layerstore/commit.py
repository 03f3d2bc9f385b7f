"""What a container changed: shown as lines, or kept as an image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import NamedTuple

from layerstore.formats.changes import diff
from layerstore.formats.entries import Entry, Kind
from layerstore.formats.oci import Json, emit_config, load_json
from layerstore.formats.tree import Tree
from layerstore.idmaps import ids
from layerstore.kernel.cgroups import Cgroup
from layerstore.names import ImageID, ImageRef
from layerstore.run import check_same_user, status, timestamp
from layerstore.runtime.state import read_stubs
from layerstore.snapshot import AS_THEY_ARE, Contents, Hashed, Times, capture
from layerstore.store.containers import Container
from layerstore.store.layers import stage_entries
from layerstore.store.store import Store


class Change(NamedTuple):
    """``A`` added, ``C`` changed, ``D`` deleted; the path is absolute."""

    kind: str
    path: bytes


def changed_entries(
    store: Store, container: Container, contents: Contents, times: Times = AS_THEY_ARE
) -> tuple[Tree, list[Entry]]:
    """The parent tree, and the entries that the container's changes are."""
    folder = store.containers.path(container.container_id)
    check_same_user(container)
    parent = store.layers.tree(container.diff_ids)
    tree = capture(
        folder / "upper",
        parent,
        contents,
        xattr_prefix=container.xattr_prefix.encode(),
        stubs={stub.path.strip(b"/") for stub in read_stubs(folder / "state")},
        times=times,
        ids=ids(),
    )
    return parent, diff(parent, tree)


def changes(store: Store, name: str) -> list[Change]:
    """What the container changed, by path."""
    container = store.containers.get(store.containers.find(name))
    parent, entries = changed_entries(store, container, Hashed())
    return changes_of(parent, entries)


def changes_of(parent: Tree, entries: list[Entry]) -> list[Change]:
    found = []
    for entry in entries:
        if entry.kind is Kind.WHITEOUT:
            kind = "D"
        else:
            kind = "C" if parent.lookup(entry.path) is not None else "A"
        found.append(Change(kind, b"/" + entry.path))
    return found


@contextmanager
def frozen(store: Store, container: Container) -> Iterator[None]:
    """If the container runs, its processes stand still meanwhile. Raises HostError."""
    state = status(store, container).state
    if state.status != "running":
        yield
        return
    cgroup = Cgroup.of_paths(state.cgroups)
    cgroup.freeze()
    try:
        yield
    finally:
        with suppress(FileNotFoundError):  # it was killed
            cgroup.thaw()


def commit(
    store: Store, name: str, ref: ImageRef, *, epoch: int | None = None, pause: bool = True
) -> ImageID:
    """An image of the container's layers and its changes.

    If it runs, its processes stand still meanwhile; without ``pause`` they don't, and a file that
    changes while it is read may be in the image half old and half new.
    """
    container = store.containers.get(store.containers.find(name))
    with frozen(store, container) if pause else nullcontext():
        return _commit(store, container, ref, epoch)


def _commit(store: Store, container: Container, ref: ImageRef, epoch: int | None) -> ImageID:
    image = store.images.get(container.image_id)
    with store.transaction() as transaction:
        transaction.lease([image.image_id, *image.diff_ids])
        _, entries = changed_entries(store, container, transaction, Times(latest=epoch))
        diff_ids = list(container.diff_ids)
        history: Json = {
            "created": timestamp(epoch),
            "created_by": " ".join(container.argv),
            "comment": f"layerstore commit {container.name}",
        }
        if entries:
            diff_ids.append(stage_entries(transaction, entries).diff_id)
        else:
            history["empty_layer"] = True
        document = load_json(image.raw_config, where=f"image {image.image_id.short}")
        config = emit_config(
            platform=image.config.platform,
            diff_ids=diff_ids,
            run=document.get("config") or {},
            created=timestamp(epoch),
            history=(*image.config.history, history),
        )
        image_id = transaction.stage_image(config)
        transaction.publish({ref: image_id})
    return image_id
