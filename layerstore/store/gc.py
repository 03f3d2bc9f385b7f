"""What nothing needs any more, and how it goes without a byte of free space.

Planning reads and never writes. Sweeping follows the plan's candidates in the reverse of the write
order, records before objects, and decides each batch anew under the exclusive lock: leases are
read first, then refs and containers, because a build publishes its ref before it drops its lease.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from pathlib import Path

from layerstore.errors import ConflictError, NotFoundError
from layerstore.kernel.fs import fsync_path
from layerstore.names import DiffID, Digest, ImageID
from layerstore.store import locks
from layerstore.store.containers import remove_tree
from layerstore.store.store import Store, drop_ballast, make_ballast
from layerstore.store.trees import stack_keys

_BATCH = 2_000


@dataclass(slots=True)
class Live:
    """What must stay."""

    images: set[ImageID] = field(default_factory=set)
    layers: set[DiffID] = field(default_factory=set)
    objects: set[str] = field(default_factory=set)
    trees: set[str] = field(default_factory=set)
    leased: set[str] = field(default_factory=set)

    def keeps(self, digest: str) -> bool:
        return digest in self.objects or digest in self.leased


@dataclass(frozen=True, slots=True)
class GcPlan:
    """What goes, and the bytes on disk that come back (``st_blocks * 512``)."""

    images: tuple[ImageID, ...] = ()
    layers: tuple[DiffID, ...] = ()
    objects: tuple[Digest, ...] = ()
    trees: tuple[str, ...] = ()
    cache: tuple[str, ...] = ()
    freed: int = 0


def live(store: Store, *, without: Iterable[ImageID] = ()) -> Live:
    """What refs, containers and leases reach. Raises DamagedError if a root cannot be read.

    ``without``: as if these images had no names.
    """
    found = Live(leased=_leased(store))
    gone = set(without)
    roots = {image_id for image_id in store.refs.all().values() if image_id not in gone}
    stacks: set[tuple[DiffID, ...]] = set()
    for container in store.containers.all():
        roots.add(container.image_id)
        stacks.add(container.diff_ids)
    roots.update(
        ImageID(d) for d in found.leased if (store.layout.root / "images" / d[7:]).exists()
    )
    for image_id in roots:
        try:
            image = store.images.get(image_id)
        except NotFoundError:
            continue  # fsck reports it; it reaches nothing
        found.images.add(image_id)
        stacks.add(image.diff_ids)
    for stack in stacks:
        found.layers.update(stack)
        found.trees.update(stack_keys(store, stack))
    found.layers.update(DiffID(d) for d in found.leased if store.layers.has(DiffID(d)))
    for diff_id in found.layers:
        found.objects.update(objects_of(store, diff_id))
    return found


def objects_of(store: Store, diff_id: DiffID) -> set[Digest]:
    """The objects that a layer names; none if its record is missing."""
    try:
        return {entry.digest for entry in store.layers.entries(diff_id) if entry.digest}
    except NotFoundError:
        return set()


def _leased(store: Store) -> set[str]:
    leased: set[str] = set()
    folder = store.layout.folder("leases")
    for txid in os.listdir(folder):
        if locks.is_held(folder / txid):
            try:
                leased.update((folder / txid).read_text().split())
            except FileNotFoundError:
                continue
    return leased


def plan(store: Store) -> GcPlan:
    """Everything that no root reaches."""
    keep = live(store)
    images = [image_id for image_id in store.images.all() if image_id not in keep.images]
    layers = [diff_id for diff_id in store.layers.all() if diff_id not in keep.layers]
    objects = [digest for digest, _ in store.objects.all() if not keep.keeps(digest)]
    return _plan(store, keep, images, layers, objects, all_cache=True)


def plan_removal(store: Store, image_ids: Iterable[ImageID]) -> GcPlan:
    """What goes when these images lose all their names: what only they reach, and nothing else."""
    removed = set(image_ids)
    keep = live(store, without=removed)
    images = sorted(removed - keep.images)
    stacks = {store.images.get(image_id).diff_ids for image_id in images}
    layers = sorted({diff_id for stack in stacks for diff_id in stack} - keep.layers)
    trees = {key for stack in stacks for key in stack_keys(store, stack)}
    objects = sorted({d for layer in layers for d in objects_of(store, layer) if not keep.keeps(d)})
    return _plan(store, keep, images, layers, objects, all_cache=False, gone_trees=trees)


def _plan(
    store: Store,
    keep: Live,
    images: list[ImageID],
    layers: list[DiffID],
    objects: list[Digest],
    *,
    all_cache: bool,
    gone_trees: Set[str] = frozenset(),
) -> GcPlan:
    layout = store.layout
    trees = [
        name
        for name in sorted(os.listdir(layout.folder("trees")))
        if name not in keep.trees and (all_cache or name in gone_trees)
    ]
    cache = sorted(os.listdir(layout.folder("cache"))) if all_cache else []
    physical = _Physical()
    for image_id in images:
        physical.add(layout.image(image_id))
    for diff_id in layers:
        physical.add(layout.layer(diff_id))
    for name in trees:
        physical.add(layout.folder("trees") / name)
    for digest in objects:
        physical.add(layout.object(digest))
    for name in cache:
        physical.add(layout.folder("cache") / name)
    return GcPlan(
        tuple(images), tuple(layers), tuple(objects), tuple(trees), tuple(cache), physical.freed()
    )


class _Physical:
    """Blocks of a set of files: an inode counts once, when all its names are in the set."""

    def __init__(self) -> None:
        self._inodes: dict[tuple[int, int], list[int]] = {}

    def add(self, path: Path) -> None:
        try:
            status = path.lstat()
        except FileNotFoundError:
            return
        key = (status.st_dev, status.st_ino)
        seen = self._inodes.setdefault(key, [0, status.st_nlink, status.st_blocks * 512])
        seen[0] += 1
        if path.is_dir() and not path.is_symlink():
            seen[0] = seen[1]
            for child in path.iterdir():
                self.add(child)

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
        full = status.f_bavail * status.f_frsize < 1 << 20
        if full:
            drop_ballast(layout)
        _sweep(store, plan)
        if not (layout.root / "ballast").exists():
            make_ballast(layout)
    finally:
        os.close(guard)


def _sweep(store: Store, plan: GcPlan) -> None:
    layout = store.layout
    trash = layout.folder("trash")
    with locks.collecting(layout.root):
        keep = live(store)
        for image_id in plan.images:
            if image_id not in keep.images:
                layout.image(image_id).unlink(missing_ok=True)
        fsync_path(layout.folder("images"))
        moved: list[Path] = []
        for name in plan.trees:
            if name not in keep.trees:
                moved.append(_move(layout.folder("trees") / name, trash))
        for diff_id in plan.layers:
            if diff_id not in keep.layers:
                moved.append(_move(layout.layer(diff_id), trash))
        for name in plan.cache:
            (layout.folder("cache") / name).unlink(missing_ok=True)
        fsync_path(layout.folder("layers"))
    for path in moved:
        if path.exists():
            remove_tree(path)
    for start in range(0, len(plan.objects), _BATCH):
        with locks.collecting(layout.root):
            leased = _leased(store)
            if start:
                keep = live(store)
            for digest in plan.objects[start : start + _BATCH]:
                if not keep.keeps(digest) and digest not in leased:
                    # Unlinked in place: renaming to the trash needs a block on a full disk.
                    layout.object(digest).unlink(missing_ok=True)


def _move(path: Path, trash: Path) -> Path:
    target = trash / f"{path.name}-gc"
    try:
        path.rename(target)
    except FileNotFoundError:
        return target
    except OSError:
        remove_tree(path)  # a full disk may have no room for another name
    return target
