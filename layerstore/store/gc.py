"""What nothing needs any more, and how it goes without a byte of free space.

Planning reads and never writes. Sweeping follows the plan's candidates in the reverse of the write
order, records before objects, and decides each batch anew under the exclusive lock: leases are
read first, then refs, containers and mounts, because a build publishes its ref before it drops its
lease.

A root or record that cannot be read stops no collection: whatever it might reach is kept, and the
plan names it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from layerstore.errors import ConflictError, DamagedError, FormatError, NotFoundError
from layerstore.kernel.fs import fsync_path
from layerstore.names import ChainID, DiffID, Digest, ImageID, ImageRef
from layerstore.store import locks
from layerstore.store.atomic import leases, new_id
from layerstore.store.deep import remove_tree
from layerstore.store.layout import Layout
from layerstore.store.mounted import mounted_stacks
from layerstore.store.store import Store, drop_ballast, make_ballast
from layerstore.store.trees import all_stacks

_BATCH = 2_000

Named = dict[tuple[DiffID, int, int], frozenset[Digest]]
"""The objects that layers name. Layers never change, so what was read once stays true."""


@dataclass(slots=True)
class Live:
    """What must stay."""

    images: set[ImageID] = field(default_factory=set)
    layers: set[DiffID] = field(default_factory=set)
    objects: set[Digest] = field(default_factory=set)
    trees: set[str] = field(default_factory=set)
    chains: set[str] = field(default_factory=set)
    """Of the stacks that may be mounted: hex digits."""
    leased: set[str] = field(default_factory=set)
    unreadable: list[str] = field(default_factory=list)
    any_image: bool = False
    """A root is unreadable: every image may be its."""
    any_layer: bool = False
    any_object: bool = False

    def keeps_image(self, image_id: ImageID) -> bool:
        return self.any_image or image_id in self.images

    def keeps_layer(self, diff_id: DiffID) -> bool:
        return self.any_layer or diff_id in self.layers

    def keeps_object(self, digest: Digest) -> bool:
        return self.any_object or digest in self.objects or digest in self.leased

    def keeps_tree(self, key: str) -> bool:
        return self.any_layer or key in self.trees or f"sha256:{key}" in self.leased

    def keeps_chain(self, chain: str) -> bool:
        return self.any_layer or chain in self.chains or f"sha256:{chain}" in self.leased


@dataclass(frozen=True, slots=True)
class GcPlan:
    """What goes, and the bytes on disk that come back (``st_blocks * 512``)."""

    images: tuple[ImageID, ...] = ()
    layers: tuple[DiffID, ...] = ()
    objects: tuple[Digest, ...] = ()
    trees: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    """Derived files of stacks that are gone, relative to the store."""
    cache: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    """Of ``run --rm``, with a record that a power cut took."""
    freed: int = 0
    unreadable: tuple[str, ...] = ()
    """Damage, because of which more is kept than is needed; ``fsck --repair`` sets it aside."""


def live(store: Store, *, without: Iterable[ImageID] = (), named: Named | None = None) -> Live:
    """What refs, containers, mounts and leases reach.

    ``without``: as if these images had no names. ``named`` is filled, and saves reading the same
    layers again.
    """
    found = Live(leased=set().union(*leases(store.layout)))
    roots = _named_images(store, found) - set(without)
    stacks = set(mounted_stacks(store.layout))
    for container_id in store.containers.ids():
        try:
            container = store.containers.get(container_id)
        except NotFoundError:
            continue
        except DamagedError as error:
            if not store.containers.is_lost(container_id):
                found.unreadable.append(error.brief)
                found.any_image = found.any_layer = found.any_object = True
            continue
        roots.add(container.image_id)
        stacks.add(container.diff_ids)
    roots.update(image_id for image_id in store.images.all() if image_id in found.leased)
    for image_id in roots:
        try:
            stacks.add(store.images.get(image_id).diff_ids)
        except NotFoundError:
            continue  # fsck reports it; it reaches nothing
        except (DamagedError, FormatError) as error:
            found.unreadable.append(error.brief)
            found.any_layer = found.any_object = True
        found.images.add(image_id)
    for stack in stacks:
        found.layers.update(stack)
    found.layers.update(diff_id for diff_id in store.layers.all() if diff_id in found.leased)
    found.chains = {ChainID.of_stack(stack).hex for stack in stacks}
    _add_trees(store, found)
    _add_objects(store, found, {} if named is None else named, found.layers)
    return found


def _named_images(store: Store, found: Live) -> set[ImageID]:
    images = set()
    for ref in store.refs.names():
        try:
            image_id = store.refs.get(ref)
        except DamagedError as error:
            found.unreadable.append(error.brief)
            found.any_image = found.any_layer = found.any_object = True
            continue
        if image_id is not None:
            images.add(image_id)
    return images


def _add_trees(store: Store, found: Live) -> None:
    for stack in all_stacks(store.layout):
        # A build mounts stacks that no image has yet; it holds their layers.
        if stack.chain in found.chains or (
            found.leased and found.leased.issuperset(stack.diff_ids)
        ):
            found.chains.add(stack.chain)
            found.trees.update(stack.keys)


def _add_objects(store: Store, found: Live, named: Named, layers: Iterable[DiffID]) -> None:
    for diff_id in layers:
        try:
            status = (store.layout.layer(diff_id) / "entries").stat()
        except OSError:
            continue  # there is no record: it may come back, and is looked at again then
        key = (diff_id, status.st_ino, status.st_mtime_ns)
        if key not in named:
            try:
                named[key] = frozenset(objects_of(store, diff_id))
            except DamagedError as error:
                if error.brief not in found.unreadable:
                    found.unreadable.append(error.brief)
                found.any_object = True
                continue
        found.objects |= named[key]


def _keep_layers_of_images(store: Store, found: Live, *, gone: Collection[ImageID] = ()) -> None:
    """No image record that stays may name a layer that goes, reachable or not.

    An image that lost its name since the plan was made is not of the plan, and stays.
    """
    for image_id in store.images.all():
        if image_id not in gone:
            try:
                found.layers.update(store.images.get(image_id).diff_ids)
            except NotFoundError:
                continue
            except (DamagedError, FormatError):
                found.any_layer = found.any_object = True


def _keep_objects_of_layers(
    store: Store, found: Live, named: Named, *, gone: Collection[DiffID] = ()
) -> None:
    """No layer record that stays may name an object that goes: the build cache may have it yet."""
    _add_objects(store, found, named, (d for d in store.layers.all() if d not in gone))


def objects_of(store: Store, diff_id: DiffID) -> set[Digest]:
    """The objects that a layer names; none if its record is missing. Raises DamagedError."""
    try:
        return {entry.digest for entry in store.layers.entries(diff_id) if entry.digest}
    except NotFoundError:
        return set()


def plan(store: Store) -> GcPlan:
    """Everything that no root reaches."""
    keep = live(store)
    layout = store.layout
    return _plan(
        store,
        keep,
        images=[image_id for image_id in store.images.all() if not keep.keeps_image(image_id)],
        layers=[diff_id for diff_id in store.layers.all() if not keep.keeps_layer(diff_id)],
        objects=[digest for digest, _ in store.objects.all() if not keep.keeps_object(digest)],
        trees=[k for k in sorted(os.listdir(layout.folder("trees"))) if not keep.keeps_tree(k)],
        tables=[t for t in _tables(layout) if not keep.keeps_chain(_chain_of(t))],
        cache=sorted(os.listdir(layout.folder("cache"))),
        containers=[c for c in store.containers.ids() if store.containers.is_lost(c)],
    )


def plan_removal(
    store: Store, image_ids: Iterable[ImageID], *, refs: Iterable[ImageRef] | None = None
) -> GcPlan:
    """What goes when these images lose all their names: what only they reach, and nothing else.

    ``freed`` counts the names, too: all that the images have, unless the caller says which ``refs``
    it removes. Removing them is the caller's, before the sweep.
    """
    removed = set(image_ids)
    keep = live(store, without=removed)
    images = sorted(removed - keep.images)
    _keep_layers_of_images(store, keep, gone=images)
    stacks = set()
    for image_id in images:
        with suppress(NotFoundError, DamagedError, FormatError):
            stacks.add(store.images.get(image_id).diff_ids)
    chains = {ChainID.of_stack(stack).hex for stack in stacks}
    layers = {diff_id for stack in stacks for diff_id in stack if not keep.keeps_layer(diff_id)}
    objects: set[Digest] = set()
    _keep_objects_of_layers(store, keep, {}, gone=layers)
    for diff_id in layers:
        with suppress(DamagedError):  # what a damaged layer named, the next collection finds
            objects |= objects_of(store, diff_id)
    trees = {
        key for stack in all_stacks(store.layout) if stack.chain in chains for key in stack.keys
    }
    if refs is None:
        refs = [ref for ref, image_id in store.refs.all().items() if image_id in removed]
    return _plan(
        store,
        keep,
        images=images if not keep.any_image else [],
        layers=sorted(layers),
        objects=sorted(digest for digest in objects if not keep.keeps_object(digest)),
        trees=sorted(key for key in trees if not keep.keeps_tree(key)),
        tables=[
            table
            for table in _tables(store.layout)
            if _chain_of(table) in chains and not keep.keeps_chain(_chain_of(table))
        ],
        refs=refs,
    )


def _tables(layout: Layout) -> list[str]:
    """Derived files that belong to one stack of layers."""
    stacks = [f"derived/{name}" for name in os.listdir(layout.folder("derived"))]
    merged = [f"composed/{name}" for name in os.listdir(layout.folder("composed"))]
    return sorted([name for name in stacks if name.startswith("derived/stack-")] + merged)


def _chain_of(table: str) -> str:
    return table.partition("/")[2].removeprefix("stack-")[:64]


def _plan(
    store: Store,
    keep: Live,
    *,
    images: list[ImageID],
    layers: list[DiffID],
    objects: list[Digest],
    trees: list[str],
    tables: list[str],
    cache: Iterable[str] = (),
    containers: Iterable[str] = (),
    refs: Iterable[ImageRef] = (),
) -> GcPlan:
    layout = store.layout
    physical = _Physical()
    for paths in (
        map(layout.ref, refs),
        map(layout.image, images),
        map(layout.layer, layers),
        map(layout.tree, trees),
        map(layout.object, objects),
        map(layout.root.joinpath, tables),
        map(layout.folder("cache").joinpath, cache := tuple(cache)),
        map(layout.container, containers := tuple(containers)),
    ):
        for path in paths:
            physical.add(path)
    return GcPlan(
        tuple(images), tuple(layers), tuple(objects), tuple(trees), tuple(tables), cache,
        containers, physical.freed(), tuple(keep.unreadable),
    )  # fmt: skip


class _Physical:
    """Blocks of a set of files: an inode counts once, when all its names are in the set."""

    def __init__(self) -> None:
        self._inodes: dict[tuple[int, int], list[int]] = {}

    def add(self, path: Path) -> None:
        stack = [os.fspath(path)]
        while stack:
            name = stack.pop()
            try:
                status = os.lstat(name)
                if stat.S_ISDIR(status.st_mode):
                    stack.extend(f"{name}/{child}" for child in os.listdir(name))
            except FileNotFoundError:
                continue
            links = 1 if stat.S_ISDIR(status.st_mode) else status.st_nlink
            key = (status.st_dev, status.st_ino)
            self._inodes.setdefault(key, [0, links, status.st_blocks * 512])[0] += 1

    def freed(self) -> int:
        return sum(size for names, links, size in self._inodes.values() if names >= links)


def sweep(store: Store, plan: GcPlan) -> None:
    """What the plan names and nothing needs even now is gone. Needs no free space.

    Raises ConflictError if another collection runs.
    """
    layout = store.layout
    guard = locks.open_lock(layout.root / "gc")
    try:
        if not locks.try_lock(guard):
            raise ConflictError("another collection is running", hint="wait for it to end")
        # A removed ref that a power cut brings back must not find its objects gone.
        fsync_path(layout.folder("refs"))
        fsync_path(layout.folder("containers"))
        status = os.statvfs(layout.root)
        if status.f_bavail * status.f_frsize < 1 << 20:
            drop_ballast(layout)
        for container_id in plan.containers:
            if store.containers.is_lost(container_id):
                with suppress(NotFoundError):
                    store.containers.remove(container_id)
        named: Named = {}
        _sweep_records(store, plan, named)
        _sweep_objects(store, plan, named)
        make_ballast(layout)
    finally:
        os.close(guard)


def _sweep_records(store: Store, plan: GcPlan, named: Named) -> None:
    layout = store.layout
    trash = layout.folder("trash") / new_id()
    with suppress(OSError):  # a full disk has no room for it
        trash.mkdir(0o700)
    with locks.collecting(layout.root):
        keep = live(store, named=named)
        for image_id in plan.images:
            if not keep.keeps_image(image_id):
                layout.image(image_id).unlink(missing_ok=True)
        fsync_path(layout.folder("images"))
        _keep_layers_of_images(store, keep)
        for table in plan.tables:
            if not keep.keeps_chain(_chain_of(table)):
                (layout.root / table).unlink(missing_ok=True)
        for key in plan.trees:
            if not keep.keeps_tree(key):
                _move(layout.tree(key), trash)
        for diff_id in plan.layers:
            if not keep.keeps_layer(diff_id):
                _move(layout.layer(diff_id), trash)
        for name in plan.cache:
            (layout.folder("cache") / name).unlink(missing_ok=True)
        fsync_path(layout.folder("layers"))
    remove_tree(trash)


def _sweep_objects(store: Store, plan: GcPlan, named: Named) -> None:
    for start in range(0, len(plan.objects), _BATCH):
        with locks.collecting(store.layout.root):
            # Read again each time: a build may have begun and ended since the last batch.
            keep = live(store, named=named)
            _keep_objects_of_layers(store, keep, named)
            for digest in plan.objects[start : start + _BATCH]:
                if not keep.keeps_object(digest):
                    # Unlinked in place: renaming to the trash needs a block on a full disk.
                    store.layout.object(digest).unlink(missing_ok=True)


def _move(path: Path, trash: Path) -> None:
    """Out of the way with one rename: nothing that is half removed may keep its name."""
    try:
        path.rename(trash / path.name)
    except OSError:
        if not path.exists():
            return
        # The folder was not made for want of space, or was taken for a dead collection's.
        aside = trash.with_name(new_id())
        path.rename(aside)
        remove_tree(aside)
