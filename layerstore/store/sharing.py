"""Which roots reach what: exact sets, one bit for each root.

Bits 0, 1, … are the images that have a name, in the order of ``Sharing.images``. Above them is one
for each container, one for each mount and one for all running transactions: these hold what they
reach, but stand for no image that could be removed.
"""

from __future__ import annotations

from layerstore.errors import DamagedError, FormatError, NotFoundError
from layerstore.formats.entries import Entry
from layerstore.formats.tree import Tree, apply
from layerstore.names import ChainID, DiffID, ImageID, ImageRef
from layerstore.store.atomic import leases
from layerstore.store.images import Image
from layerstore.store.mounted import mounted_stacks
from layerstore.store.store import Store
from layerstore.store.trees import all_stacks


class Sharing:
    """The masks of everything that a root reaches, by the 64 digits of its name.

    Damage is listed in ``unreadable``, never raised.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.images: dict[ImageID, Image] = {}
        """Those with a name, sorted: bit i is the i-th."""
        self.names: dict[ImageID, list[ImageRef]] = {}
        self.pins: list[str] = []
        self.unreadable: list[str] = []
        self.open_transactions = 0
        self.image_masks: dict[str, int] = {}
        self.layer_masks: dict[str, int] = {}
        self.chain_masks: dict[str, int] = {}
        self.tree_masks: dict[str, int] = {}
        self.object_masks: dict[str, int] = {}
        self.data_sizes: dict[str, int] = {}
        """Of objects with holes: the bytes of their data."""
        self.apparent: dict[tuple[DiffID, ...], int] = {}
        self._stacks: set[tuple[DiffID, ...]] = set()
        self._take_names()
        self._take_pins()
        for stack in all_stacks(store.layout):
            mask = self.chain_masks.get(stack.chain, 0)
            for key in stack.keys:
                self.tree_masks[key] = self.tree_masks.get(key, 0) | mask
        self._take_layers()

    @property
    def garbage_bit(self) -> int:
        """Stands for what holds an inode without being a root: damaged names, old directories."""
        return 1 << (len(self.images) + len(self.pins))

    def _take_names(self) -> None:
        store = self._store
        # Leases before names, as a collector reads them: a build names its image before it ends.
        held = leases(store.layout)
        self.open_transactions = len(held)
        self._leased: set[str] = set().union(*held)
        found: dict[ImageID, Image] = {}
        for ref in store.refs.names():
            try:
                image_id = store.refs.get(ref)
                if image_id is not None:
                    found[image_id] = store.images.get(image_id)
                    self.names.setdefault(image_id, []).append(ref)
            except (NotFoundError, DamagedError, FormatError) as error:
                self._note(error.brief)
        self.images = {image_id: found[image_id] for image_id in sorted(found)}
        for index, (image_id, image) in enumerate(self.images.items()):
            self._reach_image(image_id, image.diff_ids, 1 << index)

    def _take_pins(self) -> None:
        store = self._store
        for container_id in store.containers.ids():
            try:
                container = store.containers.get(container_id)
            except (NotFoundError, DamagedError) as error:
                self._note(error.brief)
                continue
            bit = self._pin(f"container {container.name}")
            self._reach_image(container.image_id, self._diff_ids(container.image_id), bit)
            self._reach_stack(container.diff_ids, bit)
        for stack in sorted(mounted_stacks(store.layout)):
            self._reach_stack(stack, self._pin("mount"))
        if self._leased:
            self._reach_leased(self._pin("running transactions"))

    def _note(self, brief: str) -> None:
        if brief not in self.unreadable:
            self.unreadable.append(brief)

    def _diff_ids(self, image_id: ImageID) -> tuple[DiffID, ...]:
        try:
            return self._store.images.get(image_id).diff_ids
        except (NotFoundError, DamagedError, FormatError):
            return ()

    def _pin(self, who: str) -> int:
        bit = self.garbage_bit
        self.pins.append(who)
        return bit

    def _reach_image(self, image_id: ImageID, stack: tuple[DiffID, ...], bit: int) -> None:
        self.image_masks[image_id.hex] = self.image_masks.get(image_id.hex, 0) | bit
        self._reach_stack(stack, bit)

    def _reach_stack(self, stack: tuple[DiffID, ...], bit: int) -> None:
        self._stacks.add(stack)
        for diff_id in stack:
            self.layer_masks[diff_id.hex] = self.layer_masks.get(diff_id.hex, 0) | bit
        chain = ChainID.of_stack(stack).hex
        self.chain_masks[chain] = self.chain_masks.get(chain, 0) | bit

    def _reach_leased(self, bit: int) -> None:
        leased = self._leased
        for image_id in self._store.images.all():
            if image_id in leased:
                self._reach_image(image_id, self._diff_ids(image_id), bit)
        for diff_id in self._store.layers.all():
            if diff_id in leased:
                self.layer_masks[diff_id.hex] = self.layer_masks.get(diff_id.hex, 0) | bit
        for digest in leased:
            self.object_masks[digest[7:]] = self.tree_masks[digest[7:]] = bit
        for stack in all_stacks(self._store.layout):
            if leased.issuperset(stack.diff_ids):
                self.chain_masks[stack.chain] = self.chain_masks.get(stack.chain, 0) | bit

    def _take_layers(self) -> None:
        """Objects get their masks and stacks their sizes; what stacks begin with is read once."""
        taken: set[str] = set()
        path: list[tuple[DiffID, Tree]] = []
        for stack in sorted(self._stacks):
            same = 0
            while same < min(len(path), len(stack)) and path[same][0] == stack[same]:
                same += 1
            del path[same:]
            for diff_id in stack[same:]:
                entries = self._entries(diff_id)
                if diff_id.hex not in taken:
                    taken.add(diff_id.hex)
                    self._take_objects(entries, self.layer_masks[diff_id.hex])
                try:
                    tree = apply(path[-1][1] if path else Tree(), entries)
                except FormatError as error:
                    self._note(f"layer {diff_id}: {error.brief}")
                    tree = path[-1][1] if path else Tree()
                path.append((diff_id, tree))
            self.apparent[stack] = apparent_size(path[-1][1]) if path else 0
        for name, mask in self.layer_masks.items():
            if name not in taken:
                self._take_objects(self._entries(DiffID(f"sha256:{name}")), mask)

    def _entries(self, diff_id: DiffID) -> list[Entry]:
        try:
            return self._store.layers.entries(diff_id)
        except (NotFoundError, DamagedError) as error:
            self._note(error.brief)
            return []

    def _take_objects(self, entries: list[Entry], mask: int) -> None:
        masks = self.object_masks
        for entry in entries:
            if entry.digest is not None:
                name = entry.digest[7:]
                masks[name] = masks.get(name, 0) | mask
                if entry.extents is not None:
                    self.data_sizes[name] = data_size(entry)


def data_size(entry: Entry) -> int:
    """Bytes of a file's content without the holes that its layer knows of."""
    if entry.extents is None:
        return entry.size
    return sum(length for _, length in entry.extents)


def apparent_size(tree: Tree) -> int:
    """The sum of ``st_size`` over every path: hard links each time, directories as 0."""
    total = 0
    stack = [tree.root]
    while stack:
        for node in (stack.pop().children or {}).values():
            if node.children is None:
                total += node.size or len(node.link)
            else:
                stack.append(node)
    return total
