"""What the crash tests do to a store, and mutations: the protocol with one rule left out.

The tests must find each mutation wrong. They change this process for good: use them in a child.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from storekit import config_of, put_container, put_image, stage_files

from layerstore.errors import NotFoundError
from layerstore.kernel.fs import fsync_path, syncfs
from layerstore.names import Digest, ImageID, ImageRef
from layerstore.store import atomic, gc
from layerstore.store.atomic import Transaction
from layerstore.store.store import Store
from layerstore.store.trees import lower_directories

OLD = {"kept": b"kept" * 2000, "small": b"small", "gone": b"gone" * 3000}
OTHER = {"kept": b"kept" * 2000, "other": b"other" * 2500, "another": b"another" * 100}
NEW = {"kept": b"kept" * 2000, "first": b"first" * 2500, "second": b"second" * 100}
TOP = {"third": b"third" * 5000}

Refs = Mapping[ImageRef, ImageID] | None
State = tuple[dict[str, str], list[str], list[str]]


def make_pristine(root: Path) -> None:
    """The store that every command starts from."""
    store = Store.open(root)
    old = put_image(store, "old", OLD, {"more": b"more" * 500})
    put_image(store, "other", OTHER)
    put_container(store, "c0", "web", old)
    put_image(store, "garbage", {"garbage": b"garbage" * 4000})
    lower_directories(store, store.images.find("garbage").diff_ids)
    store.refs.delete(ImageRef.parse("garbage"))


def do_import(store: Store) -> None:
    put_image(store, "old", NEW, TOP)


def do_build(store: Store) -> None:
    """As a build: published step by step, with a large object, named at the end."""
    with store.transaction() as transaction:
        layers = [stage_files(transaction, NEW)]
        transaction.publish()
        with transaction.writer() as writer:
            writer.write(b"large" * 40_000)
            writer.finish()
        layers.append(stage_files(transaction, TOP))
        image_id = transaction.stage_image(config_of(layers, "build"))
        transaction.publish()
        transaction.publish({ImageRef.parse("built"): image_id})


def do_tag(store: Store) -> None:
    image_id = store.images.find("old").image_id
    with store.transaction() as transaction:
        transaction.lease([image_id])
        transaction.publish({ImageRef.parse("tagged"): image_id})


def do_rmi(store: Store) -> None:
    ref = ImageRef.parse("other")
    image_id = store.refs.get(ref)
    plan = gc.plan_removal(store, [image_id] if image_id else [])
    with suppress(NotFoundError):
        store.refs.delete(ref)
    gc.sweep(store, plan)


def do_gc(store: Store) -> None:
    gc.sweep(store, gc.plan(store))


def do_create(store: Store) -> None:
    if "c1" not in store.containers.ids():
        put_container(store, "c1", "db", store.images.find("old").image_id)


def do_remove(store: Store) -> None:
    with suppress(NotFoundError):
        store.containers.remove("c0")


def do_mount(store: Store) -> None:
    lower_directories(store, store.images.find("old").diff_ids)


COMMANDS: dict[str, Callable[[Store], None]] = {
    "import": do_import, "build": do_build, "tag": do_tag, "rmi": do_rmi, "gc": do_gc,
    "create": do_create, "remove": do_remove, "mount": do_mount,
}  # fmt: skip


def state_of(store: Store) -> State:
    """What users see of a store."""
    return (
        {str(ref): str(image_id) for ref, image_id in store.refs.all().items()},
        [container.container_id for container in store.containers.all()],
        [c.container_id for c in store.containers.all() if store.containers.find(c.name)],
    )


# -- the protocol with a rule left out ---------------------------------------------------------


def _patch(owner: object, name: str, value: object) -> None:
    setattr(owner, name, value)


def rename_before_flush() -> None:
    """Flushed before the ref is written, so it looks safe."""

    def publish(self: Transaction, refs: Refs = None) -> None:
        self._flush_batch()
        self._publish_objects()
        syncfs(self._staging_fd)
        self._publish_records()
        if refs:
            self._write_refs(refs)

    _patch(Transaction, "publish", publish)


def no_flush() -> None:
    _patch(atomic, "syncfs", lambda fd: None)


def flush_result_ignored() -> None:
    def careless(fd: int) -> None:
        with suppress(OSError):
            syncfs(fd)

    _patch(atomic, "syncfs", careless)


def _refs_with(fsync_file: bool, fsync_folder: bool) -> None:
    def write(self: Transaction, refs: Mapping[ImageRef, ImageID]) -> None:
        for ref, image_id in refs.items():
            staged = self._staging / "ref"
            atomic._write_file(staged, f"{image_id}\n".encode())
            if fsync_file:
                fsync_path(staged)
            staged.rename(self._layout.ref(ref))
        if fsync_folder:
            fsync_path(self._layout.folder("refs"))

    _patch(Transaction, "_write_refs", write)


def ref_not_flushed() -> None:
    _refs_with(fsync_file=False, fsync_folder=True)


def ref_folder_not_flushed() -> None:
    _refs_with(fsync_file=True, fsync_folder=False)


def ref_before_objects() -> None:
    real = Transaction.publish

    def publish(self: Transaction, refs: Refs = None) -> None:
        for ref, image_id in (refs or {}).items():
            path = self._staging / "early"
            atomic._write_file(path, f"{image_id}\n".encode())
            fsync_path(path)
            path.rename(self._layout.ref(ref))
            fsync_path(self._layout.folder("refs"))
        real(self, refs)

    _patch(Transaction, "publish", publish)


def records_before_objects() -> None:
    real_objects, real_records = Transaction._publish_objects, Transaction._publish_records
    _patch(Transaction, "_publish_objects", real_records)
    _patch(Transaction, "_publish_records", real_objects)


def folders_not_flushed() -> None:
    def careless(path: Path | str) -> None:
        if Path(path).parent.name != ".layerstore":
            fsync_path(path)

    _patch(atomic, "fsync_path", careless)


def short_write_taken_as_whole() -> None:
    def write(path: Path, content: bytes) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, content)
        os.close(fd)

    _patch(atomic, "write_all", os.write)
    _patch(atomic, "_write_file", write)
    _patch(Transaction, "_check_size", lambda *_: None)


def hit_by_name_alone() -> None:
    real = Transaction._flush_batch

    def flush(self: Transaction) -> None:
        sizes = {digest: len(content) for digest, content in self._batch.items()}
        plain = type(self)._size_of

        def size_of(digest: Digest) -> int | None:
            found = plain(self, digest)
            return sizes.get(digest, found) if found is not None else None

        _patch(self, "_size_of", size_of)
        real(self)

    _patch(Transaction, "_flush_batch", flush)


def objects_before_records() -> None:
    """A collection in the order in which things are written, whatever records still name."""

    def keeps_nothing(*_: object, **__: object) -> None:
        pass

    _patch(gc, "_keep_objects_of_layers", keeps_nothing)
    real_records, real_objects = gc._sweep_records, gc._sweep_objects
    _patch(gc, "_sweep_records", real_objects)
    _patch(gc, "_sweep_objects", real_records)


def collected_before_unnamed() -> None:
    """An image's parts go, and then its name."""

    def rmi(store: Store) -> None:
        ref = ImageRef.parse("other")
        image_id = store.refs.get(ref)
        plan = gc.plan_removal(store, [image_id] if image_id else [])
        keep = gc.live(store, without=plan.images)
        real = gc.live
        _patch(gc, "live", lambda *_, **__: keep)
        gc.sweep(store, plan)
        _patch(gc, "live", real)
        with suppress(NotFoundError):
            store.refs.delete(ref)

    COMMANDS["rmi"] = rmi


MUTATIONS: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        rename_before_flush, no_flush, flush_result_ignored, ref_not_flushed,
        ref_folder_not_flushed, ref_before_objects, records_before_objects, folders_not_flushed,
        short_write_taken_as_whole, hit_by_name_alone, objects_before_records,
        collected_before_unnamed,
    )
}  # fmt: skip
