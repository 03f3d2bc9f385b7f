"""Small images in small stores, and what ``du`` says of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from layerstore.formats.entries import Entry, Kind
from layerstore.formats.oci import emit_config
from layerstore.names import DiffID, ImageID, ImageRef, Platform
from layerstore.store.atomic import Transaction
from layerstore.store.containers import Container
from layerstore.store.layers import stage_entries
from layerstore.store.store import Store

Files = Mapping[str, bytes]


def stage_files(transaction: Transaction, files: Files) -> DiffID:
    """A layer of regular files with these contents."""
    entries = [
        Entry(
            path.encode(), Kind.FILE, 0o644, size=len(content),
            digest=transaction.stage(content) if content else None,
        )
        for path, content in sorted(files.items())
    ]  # fmt: skip
    return stage_entries(transaction, entries).diff_id


def config_of(diff_ids: Sequence[DiffID], comment: str = "") -> bytes:
    return emit_config(
        platform=Platform("linux", "amd64"),
        diff_ids=diff_ids,
        run={},
        created="2020-01-01T00:00:00Z",
        history=[{"comment": comment}],
    )


def put_image(store: Store, name: str | None, *layers: Files, comment: str = "") -> ImageID:
    """An image of these layers, bottom first, published under ``name``."""
    with store.transaction() as transaction:
        diff_ids = [stage_files(transaction, files) for files in layers]
        image_id = transaction.stage_image(config_of(diff_ids, comment))
        transaction.publish({ImageRef.parse(name): image_id} if name else None)
    return image_id


def put_container(
    store: Store, container_id: str, name: str, image_id: ImageID, *, ephemeral: bool = False
) -> Path:
    image = store.images.get(image_id)
    container = Container(
        container_id=container_id, name=name, image_id=image_id, image_name="image",
        diff_ids=image.diff_ids, created="2020-01-01T00:00:00Z", argv=("true",), driver="stacked",
        xattr_prefix="trusted.overlay.", ephemeral=ephemeral,
    )  # fmt: skip
    with store.transaction() as transaction:
        transaction.lease([image_id])
        return store.containers.create(transaction, container)


def du(root: Path) -> int:
    """Bytes on disk below a directory, as du(1) counts them."""
    result = subprocess.run(
        ["du", "-sx", "--block-size=1", str(root)], capture_output=True, text=True, check=True
    )
    return int(result.stdout.split()[0])


def put_five_images(store: Store, large: int, further: int, small: int) -> dict[str, ImageID]:
    """The fixture that exposes what a report may get wrong (names as in the reports reference).

    ``a`` is a child of ``base``, ``b`` of ``a``, ``c`` of ``base`` with the content of ``b``'s file
    at another path, ``d`` from scratch with the content of ``a``'s.
    """
    random = Random(large)
    base = {"base": random.randbytes(small)}
    big, more = random.randbytes(large), random.randbytes(further)
    return {
        "base": put_image(store, "base", base),
        "a": put_image(store, "a", base, {"opt/large": big}),
        "b": put_image(store, "b", base, {"opt/large": big}, {"opt/more": more}),
        "c": put_image(store, "c", base, {"srv/same": more}),
        "d": put_image(store, "d", {"other/place": big}),
    }


def copy_store(store: Store, target: Path) -> Store:
    """Another store with the same content, hard links kept."""
    subprocess.run(["cp", "-a", str(store.layout.root), str(target)], check=True)
    return Store.open(target)


def run_with_mount(mount: str, script: str, *arguments: str) -> str:
    """What a Python script prints that runs where ``mount`` (a shell command) mounted something.

    In a mount namespace of its own, so that nothing stays mounted.
    """
    result = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-ec", f'{mount}; exec "$@"', "sh",
         sys.executable, "-c", script, *arguments],
        capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def make_deep(root: Path, depth: int) -> None:
    """Directories nested deeper than a path can say."""
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 20, dir_fd=fd)
        inner = os.open("d" * 20, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
