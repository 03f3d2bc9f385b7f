"""Stores on the file systems that people have: both drivers, exact numbers, no content twice."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from abilities import needs_overlay, needs_root, needs_tool

from layerstore import rootfs
from layerstore.api import Layerstore
from layerstore.names import ImageRef
from layerstore.run import RunOptions
from layerstore.settings import Settings

pytestmark = [
    needs_root,
    needs_overlay,
    needs_tool("mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "busybox"),
]

MAKE = {
    "ext4": ["mkfs.ext4", "-q"],
    "xfs": ["mkfs.xfs", "-q"],
    "btrfs": ["mkfs.btrfs", "-q"],
}
BIG = 8 << 20


@pytest.fixture(params=["ext4", "xfs", "btrfs", "tmpfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, empty."""
    kind: str = request.param
    where = tmp_path / kind
    where.mkdir()
    if kind == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", where], check=True)
    else:
        image = tmp_path / "disk"
        with image.open("wb") as file:
            file.truncate(512 << 20)
        subprocess.run([*MAKE[kind], image], check=True)
        subprocess.run(["mount", "-o", "loop", image, where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root filesystem with a program, an incompressible file, and its copy under another name."""
    folder = tmp_path / "root"
    (folder / "bin").mkdir(parents=True)
    for name in ("busybox", "sh", "cat", "chmod"):
        (folder / "bin" / name).write_bytes(Path("/bin/busybox").read_bytes())
        (folder / "bin" / name).chmod(0o755)
    content = os.urandom(BIG)
    (folder / "big").write_bytes(content)
    (folder / "other").mkdir()
    (folder / "other" / "copy").write_bytes(content)
    os.utime(folder, (1, 1))  # layers keep whole seconds, and a test is faster than one
    return folder


def used(where: Path) -> int:
    subprocess.run(["sync", "-f", where], check=True)
    status = os.statvfs(where)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def test_both_drivers_run_and_every_byte_is_accounted_for(disk: Path, root: Path) -> None:
    store = Layerstore(disk / "store")
    store.import_root(root, ImageRef("image"))
    with open(os.devnull) as nothing:
        for driver in (rootfs.COMPOSED, rootfs.STACKED):
            options = RunOptions(
                image="image",
                argv=("sh", "-c", "chmod 600 /big && cat /other/copy > /new && echo x >> /big"),
                name=driver,
                driver=driver,
            )
            outcome = store.run(options, stdin=nothing.fileno())
            assert outcome.exit_code == 0
            changes = [(c.kind, c.path) for c in store.container_diff(driver)]
            assert changes == [("C", b"/"), ("C", b"/big"), ("A", b"/new")]
    usage = store.usage()
    done = subprocess.run(
        ["du", "-s", "--block-size=1", disk / "store"], capture_output=True, check=True
    )
    assert (usage.physical, usage.adds_up) == (int(done.stdout.split()[0]), True)
    assert store.check(read_data=True).problems == ()


@pytest.mark.parametrize("driver", [rootfs.COMPOSED, rootfs.STACKED])
def test_a_mounted_image_stores_each_content_once(disk: Path, root: Path, driver: str) -> None:
    before = used(disk)
    store = Layerstore(disk / "store", settings=Settings(root=disk / "store", driver=driver))
    store.import_root(root, ImageRef("image"))
    image = store.store.images.find("image")
    rootfs.overlay(store.store, image.diff_ids, driver=driver)
    grown = used(disk) - before
    # The file that occurs twice is one object. A hard link can stand for one of its two places;
    # without clones, the stacked driver has to copy it for the other.
    may_copy = driver == rootfs.STACKED and disk.name in ("ext4", "tmpfs")
    copies = 2 if may_copy else 1
    busybox = 4 if may_copy else 1
    content = copies * BIG + busybox * Path("/bin/busybox").stat().st_size
    assert content <= grown < content + (16 << 20)
