"""What is measured inside a Python that runs already. Each task times itself, in seconds.

Stores and directories come as text: tasks are called by ``benchmarks.worker``.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from layerstore import commit as committing
from layerstore import rootfs
from layerstore import run as running
from layerstore.api import Layerstore
from layerstore.formats.changes import diff
from layerstore.formats.entries import Entry, Kind
from layerstore.formats.oci import emit_config
from layerstore.formats.tree import Tree
from layerstore.formats.xattrs import TRUSTED_OVERLAY
from layerstore.kernel import mounts
from layerstore.names import ImageRef, platform_of
from layerstore.run import RunOptions
from layerstore.snapshot import Hashed, capture
from layerstore.sources import Context
from layerstore.spec import Source
from layerstore.store import composed as merging
from layerstore.store.containers import Container
from layerstore.store.layers import stage_entries
from layerstore.store.store import Store


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# -- containers ----------------------------------------------------------------------------------


def launch(store: str, image: str) -> float:
    """A whole container, from the open store to nothing left."""
    opened = Store.open(Path(store))
    options = RunOptions(image=image, argv=("true",), remove=True)
    with open(os.devnull, "r+b") as null:
        fd = null.fileno()
        return _seconds(lambda: running.run(opened, options, stdin=fd, stdout=fd, stderr=fd))


def changed(store: str, image: str, script: str, driver: str = "auto") -> dict[str, float]:
    """A container of ``image`` in which a shell script ran, in ``$ROOT``, and what it cost to keep.

    ``diff`` is the reading of the upper directory, with the parent tree at hand; ``tree`` reading
    that tree; ``commit`` the whole, durable. Nothing of it stays.
    """
    opened = Store.open(Path(store))
    container, plan = running.create(opened, RunOptions(image=image, argv=("x",), driver=driver))
    ref = ImageRef.parse(f"bench-{container.container_id}")
    try:
        with tempfile.TemporaryDirectory() as where:
            mounts.mount_overlay(plan.root, where)
            try:
                script_env = {**os.environ, "ROOT": where}
                subprocess.run(["sh", "-ec", script], env=script_env, check=True)
            finally:
                mounts.umount(Path(where))
        return _kept(opened, container, ref)
    finally:
        opened.containers.remove(container.container_id)
        api = Layerstore(Path(store))
        if opened.refs.get(ref) is not None:
            api.remove_images([str(ref)])


def _kept(store: Store, container: Container, ref: ImageRef) -> dict[str, float]:
    parent = Tree()
    entries: list[Entry] = []

    def read_parent() -> None:
        nonlocal parent
        parent = store.layers.tree(container.diff_ids)

    def read_upper() -> None:
        upper = store.containers.path(container.container_id) / "upper"
        prefix = container.xattr_prefix.encode()
        entries.extend(diff(parent, capture(upper, parent, Hashed(), xattr_prefix=prefix)))

    took = {"tree": _seconds(read_parent), "diff": _seconds(read_upper)}
    before = _objects(store)
    took["commit"] = _seconds(lambda: committing.commit(store, container.container_id, ref))
    took["entries"] = len(entries)
    took["added"] = _objects(store) - before
    return took


def _objects(store: Store) -> int:
    return sum(status.st_size for _, status in store.objects.all())


# -- stores --------------------------------------------------------------------------------------


def layered(store: str, base: str, name: str, count: int) -> None:
    """``name`` is ``base`` with layers of one file each on top, ``count`` in all."""
    opened = Store.open(Path(store))
    image = opened.images.find(base)
    with opened.transaction() as transaction:
        transaction.lease([image.image_id, *image.diff_ids])
        diff_ids = list(image.diff_ids)
        for number in range(len(diff_ids), count):
            content = f"layer {number}\n".encode() * 10
            digest = transaction.stage(content)
            entry = Entry(b"layer%d" % number, Kind.FILE, 0o644, size=len(content), digest=digest)
            diff_ids.append(stage_entries(transaction, [entry]).diff_id)
        config = emit_config(
            platform=platform_of(os.uname().machine), diff_ids=diff_ids, run={},
            created="2020-01-01T00:00:00Z", history=[{}] * count,
        )  # fmt: skip
        transaction.publish({ImageRef.parse(name): transaction.stage_image(config)})


def synthetic(store: str, objects: int) -> None:
    """Images of ten layers each, with ``objects`` different contents in all."""
    opened = Store.open(Path(store))
    random = Random(1)
    for image in range(5):
        with opened.transaction() as transaction:
            diff_ids = []
            for layer in range(10):
                entries = []
                for number in range(objects // 50):
                    content = random.randbytes(64)
                    path = b"d%d/%d/f%d" % (layer, number // 100, number)
                    digest = transaction.stage(content)
                    entries.append(Entry(path, Kind.FILE, 0o644, size=64, digest=digest))
                diff_ids.append(stage_entries(transaction, entries).diff_id)
            config = emit_config(
                platform=platform_of(os.uname().machine), diff_ids=diff_ids, run={},
                created="2020-01-01T00:00:00Z", history=[{}] * 10,
            )  # fmt: skip
            ref = ImageRef.parse(f"synthetic-{image}")
            transaction.publish({ref: transaction.stage_image(config)})


def merge(store: str, image: str) -> dict[str, float]:
    """A merged image made anew: layers read, tree merged, objects looked up, written."""
    opened = Store.open(Path(store))
    diff_ids = opened.images.find(image).diff_ids
    for path in opened.layout.folder("composed").glob(f"{merging.name_of(diff_ids)}.*"):
        path.unlink()
    took = _seconds(lambda: merging.composed(opened, diff_ids))
    return {"seconds": took, "entries": sum(1 for _ in opened.layers.tree(diff_ids).walk())}


def mount(store: str, image: str, driver: str) -> float:
    """A writable root whose parts are cached is mounted."""
    opened = Store.open(Path(store))
    diff_ids = opened.images.find(image).diff_ids
    with tempfile.TemporaryDirectory(dir=store) as place:
        where = Path(place)
        for name in ("upper", "work", "merged"):
            (where / name).mkdir()

        def mount_it() -> None:
            root = rootfs.overlay(
                opened, diff_ids, driver=driver, upper=where / "upper", work=where / "work"
            )
            mounts.mount_overlay(root, where / "merged")

        rootfs.overlay(opened, diff_ids, driver=driver)
        took = _seconds(mount_it)
        mounts.umount(where / "merged")
    return took


def read_all(directory: str) -> float:
    """Every regular file below a directory is read once."""
    buffer = memoryview(bytearray(1 << 20))

    def read() -> None:
        for folder, _, names, fd in os.fwalk(os.fsencode(directory)):
            for name in names:
                path = folder + b"/" + name
                if os.path.islink(path) or not os.path.isfile(path):
                    continue
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd)
                while os.readv(file, [buffer]):
                    pass
                os.close(file)

    return _seconds(read)


def store_work(store: str) -> dict[str, float]:
    """df, gc and fsck of a store, in that order; gc only plans, with one image removed."""
    api = Layerstore(Path(store))
    took = {"df": _seconds(api.usage)}
    removal = api.store.images.find("synthetic-0")
    took["plan of rmi"] = _seconds(lambda: api.remove_images(["synthetic-0"], dry_run=True))
    took["plan of gc"] = _seconds(lambda: api.collect(dry_run=True))
    took["fsck"] = _seconds(api.check)
    if removal.image_id not in api.store.refs.all().values():
        raise RuntimeError("a plan removed something")
    return took


# -- builds --------------------------------------------------------------------------------------


def scan(folder: str) -> float:
    """The content of a whole context is known."""
    context = Context(Path(folder), ())
    try:
        return _seconds(
            lambda: context.digest(context.select(Source(b"tree")), lambda file: file.mode)
        )
    finally:
        context.close()


# -- memory --------------------------------------------------------------------------------------


def peak_of_import(store: str, tar: str) -> int:
    """The most memory that this process ever had, after an import, in bytes."""
    Layerstore(Path(store)).import_root(Path(tar), ImageRef.parse("peak"))
    return _peak()


def peak_of_diff(directory: str) -> int:
    """The same, after reading an upper directory."""
    tree = capture(Path(directory), Tree(), Hashed(), xattr_prefix=TRUSTED_OVERLAY)
    diff(Tree(), tree)
    return _peak()


def _peak() -> int:
    # Not getrusage: its maximum is inherited from whoever started this process.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError("the kernel does not tell VmHWM")
    return int(found[1]) * 1024
