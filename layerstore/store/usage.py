"""Where every byte of a store is, and how many of them each image alone keeps.

Three words, each with one meaning (``st_size`` and blocks never mixed):

- *apparent*: the sum of ``st_size`` over every path that a container of the image sees. A hard
  link counts at each of its paths, a symlink counts its target's length, a directory 0.
- *stored*: bytes of the distinct contents that the image's layers name, holes left out.
- *physical*: ``st_blocks * 512``, each inode once: what ``du -s --block-size=1`` says.

Sharing is exact: each object has the set of images that reach it, one bit an image, and objects
with the same set are one row. A container, a mount or a running transaction is a root as well; it
has a bit that stands for no image, so nothing that it holds is ever promised as freed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from layerstore.errors import DamagedError, NotFoundError
from layerstore.formats.tree import Tree, apply
from layerstore.names import ChainID, ImageID, ImageRef
from layerstore.store.deep import open_directory
from layerstore.store.images import Image
from layerstore.store.layout import is_digits
from layerstore.store.refs import is_ref
from layerstore.store.sharing import Sharing, apparent_size, data_size
from layerstore.store.store import Store

SCHEMA = "layerstore.df/1"

CLASSES = (
    "objects", "layers", "images", "refs", "containers", "trees", "cache", "staging", "leases",
    "mounts", "trash", "quarantine", "derived", "fixed", "directories", "orphans",
)  # fmt: skip
"""``fixed``: FORMAT, lock files and ballast. ``directories``: of all but containers and trees.
``trees``: what is not shared with objects. ``orphans``: what no part of the layout owns."""

_CLASS_OF_FOLDER = {
    "objects": "objects", "layers": "layers", "images": "images", "refs": "refs",
    "containers": "containers", "names": "containers", "mounts": "mounts", "cache": "cache",
    "trees": "trees", "leases": "leases", "tmp": "staging", "trash": "trash",
    "quarantine": "quarantine", "composed": "derived", "derived": "derived",
}  # fmt: skip
_OWNED = frozenset(("layers", "images", "trees", "refs", "composed", "derived"))
_FIXED = frozenset(("FORMAT", "gate", "lock", "gc", "ballast"))


@dataclass(frozen=True, slots=True)
class Amount:
    """Bytes on disk, and inodes."""

    physical: int = 0
    inodes: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """What exactly the roots of ``mask`` reach."""

    mask: int
    """Bit i is ``Usage.images[i]``; higher bits are ``Usage.pins``."""
    stored: int
    physical: int
    """With the records and names that go when the last of these roots goes."""
    count: int
    """Objects."""


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """An image that has a name."""

    image_id: ImageID
    names: tuple[ImageRef, ...]
    chain_id: ChainID
    created: str | None
    apparent: int
    stored: int
    exclusive: int
    """The part of ``stored`` that nothing but this image reaches."""
    freed: int
    """Physical bytes that come back if this image alone is removed."""
    pinned_by: tuple[str, ...]
    """Containers (by name) and others that hold the image while it has no name, too."""

    @property
    def shared(self) -> int:
        return self.stored - self.exclusive


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """A container. Whether it runs is the launcher's to say."""

    container_id: str
    name: str
    image_id: ImageID | None
    """None: its record is damaged."""
    image_name: str
    created: str | None
    upper: int
    """Physical bytes of its writable layer."""
    physical: int
    """All of its folder."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The whole store, as one walk saw it."""

    physical: int
    inodes: int
    classes: Mapping[str, Amount]
    free: int
    free_inodes: int
    open_transactions: int
    """Transactions that ran meanwhile: with any, this is no snapshot."""
    images: tuple[ImageUsage, ...]
    containers: tuple[ContainerUsage, ...]
    pins: tuple[str, ...]
    rows: tuple[Row, ...]
    unreadable: tuple[str, ...]
    """What is damaged or missing, so that numbers of its images are too low; fsck says more."""

    @property
    def adds_up(self) -> bool:
        """Whether the classes sum up to ``physical``."""
        return sum(amount.physical for amount in self.classes.values()) == self.physical

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """``df --json``. An image has a row for each of its names, with the same numbers; the
        numbers of ``store`` count it once."""
        return {
            "schema": SCHEMA,
            "store": {
                "physical": self.physical,
                "inodes": self.inodes,
                "free": self.free,
                "free_inodes": self.free_inodes,
                "adds_up": self.adds_up,
                "open_transactions": self.open_transactions,
                "by_class": {name: amount.physical for name, amount in self.classes.items()},
                "unreferenced": sum(row.physical for row in self.rows if not row.mask),
                "unreadable": list(self.unreadable),
            },
            "images": [_image_json(image, name) for image in self.images for name in image.names],
            "containers": [_container_json(container) for container in self.containers],
        }


def _image_json(image: ImageUsage, name: ImageRef) -> dict[str, Any]:  # Any: JSON
    return {
        "name": str(name),
        "image_id": str(image.image_id),
        "created": image.created,
        "apparent": image.apparent,
        "stored": image.stored,
        "exclusive": image.exclusive,
        "shared": image.shared,
        "freed": image.freed,
        "pinned_by": list(image.pinned_by),
    }


def _container_json(container: ContainerUsage) -> dict[str, Any]:  # Any: JSON
    return {
        "container_id": container.container_id,
        "name": container.name,
        "image_id": str(container.image_id) if container.image_id else None,
        "image_name": container.image_name,
        "created": container.created,
        "upper": container.upper,
        "physical": container.physical,
    }


def exclusive_of(usage: Usage, image_ids: Iterable[ImageID]) -> int:
    """Stored bytes that exactly these images together keep. Raises NotFoundError."""
    chosen = _mask_of(usage, image_ids)
    return sum(row.stored for row in usage.rows if row.mask and not row.mask & ~chosen)


def freed_by(usage: Usage, image_ids: Iterable[ImageID]) -> int:
    """Physical bytes that come back when these images lose all their names."""
    chosen = _mask_of(usage, image_ids)
    return sum(row.physical for row in usage.rows if row.mask and not row.mask & ~chosen)


def _mask_of(usage: Usage, image_ids: Iterable[ImageID]) -> int:
    bits = {image.image_id: 1 << index for index, image in enumerate(usage.images)}
    mask = 0
    for image_id in image_ids:
        if image_id not in bits:
            raise NotFoundError(f"no name of this store means {image_id}")
        mask |= bits[image_id]
    return mask


def sizes_of(store: Store, image: Image) -> tuple[int, int]:
    """(apparent, stored) of one image. Raises NotFoundError or DamagedError."""
    stored: dict[str, int] = {}
    tree = Tree()
    for diff_id in image.diff_ids:
        entries = store.layers.entries(diff_id)
        stored.update((entry.digest, data_size(entry)) for entry in entries if entry.digest)
        tree = apply(tree, entries)
    return apparent_size(tree), sum(stored.values())


def measure(store: Store) -> Usage:
    """One walk over the store; damage is listed, never raised."""
    return _Measure(store).run()


@dataclass(slots=True)
class _Links:
    """An inode with several names: its blocks come back when all of them are gone."""

    mask: int
    physical: int
    names: int
    links: int
    is_held_by_garbage: bool


class _Measure:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._sharing = Sharing(store)
        self._root = os.fspath(store.layout.root)
        self._device = os.stat(self._root).st_dev
        self._amounts = {name: [0, 0] for name in CLASSES}
        self._physical = 0
        self._seen: set[int] = set()
        self._links: dict[int, _Links] = {}
        self._rows: dict[int, list[int]] = {}
        self._ref_masks = {
            store.layout.ref(ref).name: 1 << index
            for index, image_id in enumerate(self._sharing.images)
            for ref in self._sharing.names[image_id]
        }

    def run(self) -> Usage:
        sharing = self._sharing
        status = os.statvfs(self._root)
        containers = self._walk()
        for links in self._links.values():
            mask = links.mask
            if mask and (links.is_held_by_garbage or links.names < links.links):
                mask |= sharing.garbage_bit
            self._row(mask)[1] += links.physical
        rows = tuple(Row(mask, *numbers) for mask, numbers in sorted(self._rows.items()))
        return Usage(
            physical=self._physical,
            inodes=sum(inodes for _, inodes in self._amounts.values()),
            classes={name: Amount(*numbers) for name, numbers in self._amounts.items()},
            free=status.f_bavail * status.f_frsize,
            free_inodes=status.f_favail,
            open_transactions=sharing.open_transactions,
            images=tuple(self._image_usage(rows)),
            containers=tuple(containers),
            pins=tuple(sharing.pins),
            rows=rows,
            unreadable=tuple(sharing.unreadable),
        )

    # -- the walk ----------------------------------------------------------------------------

    def _walk(self) -> list[ContainerUsage]:
        self._add("directories", os.lstat(self._root))
        containers: list[ContainerUsage] = []
        # Objects first: what lower directories share with them is theirs.
        names = sorted(os.listdir(self._root), key=lambda name: (name != "objects", name))
        for name in names:
            path = f"{self._root}/{name}"
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            kind = _CLASS_OF_FOLDER.get(name) if stat.S_ISDIR(status.st_mode) else None
            if kind is None:
                self._whole(path, status, "fixed" if name in _FIXED else "orphans")
                continue
            self._add("directories", status)
            if name == "objects":
                self._walk_objects(path)
            elif name == "containers":
                containers = [self._container(found, st) for found, st in _scan(path)]
            elif name in _OWNED:
                self._walk_owned(name, path)
            else:
                for found, found_status in _scan(path):
                    self._whole(f"{path}/{found}", found_status, kind)
        return containers

    def _add(self, kind: str, status: os.stat_result) -> int:
        """The inode is counted, unless it was before. Its bytes."""
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            if status.st_ino in self._seen:
                return 0
            self._seen.add(status.st_ino)
        physical = status.st_blocks * 512
        self._physical += physical
        numbers = self._amounts[kind]
        numbers[0] += physical
        numbers[1] += 1
        return physical

    def _row(self, mask: int) -> list[int]:
        return self._rows.setdefault(mask, [0, 0, 0])

    def _own(self, status: os.stat_result, mask: int) -> None:
        """The inode's blocks come back when the roots of ``mask`` are gone, as far as this name
        is concerned."""
        if status.st_nlink == 1 or stat.S_ISDIR(status.st_mode):
            self._row(mask)[1] += status.st_blocks * 512
            return
        links = self._links.get(status.st_ino)
        if links is None:
            self._links[status.st_ino] = _Links(
                mask, status.st_blocks * 512, 1, status.st_nlink, not mask
            )
            return
        links.mask |= mask
        links.names += 1
        links.is_held_by_garbage |= not mask

    def _walk_objects(self, path: str) -> None:
        amounts = self._amounts["objects"]
        masks, data_sizes = self._sharing.object_masks, self._sharing.data_sizes
        rows = self._rows
        for name, status in _scan(path):
            if name != ".layerstore" or not stat.S_ISDIR(status.st_mode):
                self._whole(f"{path}/{name}", status, "orphans")
                continue
            self._add("directories", status)
            for prefix, folder in _scan(f"{path}/{name}"):
                if len(prefix) != 2 or not stat.S_ISDIR(folder.st_mode):
                    self._whole(f"{path}/{name}/{prefix}", folder, "orphans")
                    continue
                self._add("directories", folder)
                for rest, found in _scan(f"{path}/{name}/{prefix}"):
                    digits = prefix + rest
                    if not is_digits(digits) or not stat.S_ISREG(found.st_mode):
                        self._whole(f"{path}/{name}/{prefix}/{rest}", found, "orphans")
                        continue
                    mask = masks.get(digits, 0)
                    row = rows.get(mask)
                    if row is None:
                        row = rows[mask] = [0, 0, 0]
                    row[0] += data_sizes.get(digits, found.st_size)
                    row[2] += 1
                    if found.st_nlink == 1:
                        physical = found.st_blocks * 512
                        row[1] += physical
                        amounts[0] += physical
                        amounts[1] += 1
                        self._physical += physical
                    else:
                        self._own(found, mask)
                        self._add("objects", found)

    def _walk_owned(self, folder: str, path: str) -> None:
        """Records, names and derived things: what goes with the images that own them."""
        kind = _CLASS_OF_FOLDER[folder]
        for name, status in _scan(path):
            mask = self._owner(folder, name, status)
            if mask is None:
                self._whole(f"{path}/{name}", status, "orphans")
                continue
            self._own(status, mask)
            is_directory = stat.S_ISDIR(status.st_mode)
            self._add("directories" if is_directory and kind != "trees" else kind, status)
            if is_directory:
                for found in self._below(f"{path}/{name}"):
                    self._own(found, mask)
                    is_record = stat.S_ISDIR(found.st_mode) and kind != "trees"
                    self._add("directories" if is_record else kind, found)

    def _owner(self, folder: str, name: str, status: os.stat_result) -> int | None:
        """The roots with which it goes; None for what no part of the layout owns."""
        sharing = self._sharing
        is_directory = stat.S_ISDIR(status.st_mode)
        if folder in ("layers", "trees"):
            masks = sharing.layer_masks if folder == "layers" else sharing.tree_masks
            return masks.get(name, 0) if is_directory and is_digits(name) else None
        if is_directory:
            return None
        if folder == "images":
            return sharing.image_masks.get(name, 0) if is_digits(name) else None
        if folder == "refs":
            return self._ref_masks.get(name, sharing.garbage_bit) if is_ref(name) else None
        if folder == "derived" and not name.startswith("stack-"):
            return sharing.garbage_bit
        return sharing.chain_masks.get(name.removeprefix("stack-")[:64], 0)

    def _container(self, container_id: str, status: os.stat_result) -> ContainerUsage:
        path = f"{self._root}/containers/{container_id}"
        physical = self._add("containers", status)
        upper = 0
        if stat.S_ISDIR(status.st_mode):
            for name, found in _scan(path):
                size = self._whole(f"{path}/{name}", found, "containers")
                physical += size
                if name == "upper":
                    upper = size
        try:
            record = self._store.containers.get(container_id)
        except (NotFoundError, DamagedError):
            return ContainerUsage(container_id, "", None, "", None, upper, physical)
        return ContainerUsage(
            container_id, record.name, record.image_id, record.image_name, record.created,
            upper, physical,
        )  # fmt: skip

    def _whole(self, path: str, status: os.stat_result, kind: str) -> int:
        """The file, or the directory and everything in it, is counted. Its bytes."""
        directories = kind if kind in ("containers", "trees") else "directories"
        if not stat.S_ISDIR(status.st_mode):
            return self._add(kind, status)
        physical = self._add(directories, status)
        for found in self._below(path):
            is_directory = stat.S_ISDIR(found.st_mode)
            physical += self._add(directories if is_directory else kind, found)
        return physical

    def _below(self, path: str) -> Iterator[os.stat_result]:
        """Everything in a directory, at any depth, without what is mounted there."""
        stack = [path]
        while stack:
            directory = stack.pop()
            for name, status in _scan(directory):
                if stat.S_ISDIR(status.st_mode):
                    if status.st_dev != self._device:
                        continue
                    stack.append(f"{directory}/{name}")
                yield status

    # -- results -----------------------------------------------------------------------------

    def _image_usage(self, rows: tuple[Row, ...]) -> Iterator[ImageUsage]:
        sharing = self._sharing
        for index, (image_id, image) in enumerate(sharing.images.items()):
            bit = 1 << index
            alone = [row for row in rows if row.mask == bit]
            pins = sharing.image_masks[image_id.hex] >> len(sharing.images)
            yield ImageUsage(
                image_id=image_id,
                names=tuple(sorted(sharing.names[image_id])),
                chain_id=image.chain_id,
                created=image.config.created,
                apparent=sharing.apparent[image.diff_ids],
                stored=sum(row.stored for row in rows if row.mask & bit),
                exclusive=sum(row.stored for row in alone),
                freed=sum(row.physical for row in alone),
                pinned_by=tuple(
                    pin for position, pin in enumerate(sharing.pins) if pins >> position & 1
                ),
            )


def _scan(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Names and status of what is in a directory; nothing if it is gone or closed to us."""
    try:
        fd = open_directory(path)
    except OSError:
        return
    try:
        with os.scandir(fd) as found:
            for item in found:
                try:
                    yield item.name, item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
    finally:
        os.close(fd)
